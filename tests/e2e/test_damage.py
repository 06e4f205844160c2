"""The commands of a person on a run of which any one file is damaged, in every way.

What the parts make of damage stands in `tests/pipeline/test_damage.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.damages import DAMAGES, a_folder
from tests.e2e.runs import finish, start, write_config
from tests.processes import run_python

pytestmark = [pytest.mark.check, pytest.mark.dist]

BEFORE, NEWEST, LAST = "step_00000008", "step_00000012", "step_00000013"
Case = dict[str, Any]


@pytest.fixture(scope="module")
def drill(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """What `tests.e2e.damaged` saw; the run has 12 of 13 steps, and checkpoints of 8 and 12."""
    folder = tmp_path_factory.mktemp("drill")
    config = write_config(folder, dataset)
    settings = config.read_text().replace("{tp: 2}", "{tp: 1}").replace("cosine", "constant")
    config.write_text(settings.replace("size: 1024", "size: 64"))
    finish(start("train", str(config)), 0)
    config.write_text(config.read_text().replace("steps: 12", "steps: 13"))
    (folder / "copies").mkdir()
    done = run_python("-m", "tests.e2e.damaged", str(config), str(folder / "copies"))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def resumed(drill: list[Case]) -> list[Case]:
    return [case for case in drill if "resume" in case]


@pytest.fixture(scope="module")
def exported(drill: list[Case]) -> list[Case]:
    return [case for case in drill if "export" in case]


def of_a_checkpoint(case: Case) -> bool:
    return case["file"].startswith("checkpoints") and case["damage"] != "undamaged"


def test_every_file_was_damaged_in_every_way(resumed: list[Case]) -> None:
    files = {Path(case["file"]).name for case in resumed}
    assert files >= {
        *("DONE", "config.yaml", "env.json", "metrics.jsonl", "starts.jsonl", "ends.jsonl"),
        *("manifest.json", ".metadata", "__0_0.distcp", "tokenizer.json", "tokenizer.model"),
    }
    for file in {case["file"] for case in resumed}:
        kinds = [case["damage"] for case in resumed if case["file"] == file]
        assert set(kinds) - {"undamaged"} == {damage.__name__ for damage in DAMAGES}


def test_nothing_ends_in_a_trace(drill: list[Case]) -> None:
    for case in drill:
        for command in ("ls", "verify", "status", "resume", "export"):
            code, said = case.get(command, (0, ""))
            assert code != -1, (case["file"], case["damage"], command, said)
            assert "Traceback" not in said


def test_damage_to_a_checkpoint_is_named_and_the_one_before_used(resumed: list[Case]) -> None:
    """The steps are computed again, to the very bits of the undamaged run."""
    whole = resumed[0]
    assert whole["damage"] == "undamaged"
    assert whole["verify"][0] == 0
    assert whole["left"] == [NEWEST, LAST]
    damaged = [case for case in resumed if of_a_checkpoint(case)]
    assert len(damaged) == 3 * len(DAMAGES)
    for case in damaged:
        where = (case["file"], case["damage"])
        code, said = case["verify"]
        assert code == 64, where
        assert NEWEST in said, where
        code, said = case["resume"]
        assert code == 0, where
        assert f"{NEWEST} is passed over" in said, where
        assert f"resumed from {case['run']}/checkpoints/{BEFORE}" in said, where
        assert case["left"] == [NEWEST, f"{NEWEST}.damaged", LAST], where
        assert case["digest"] == whole["digest"], where


def test_damage_to_anything_else_costs_no_step(resumed: list[Case]) -> None:
    """Or the start is refused, by the name of what lies in the way."""
    whole, others = resumed[0], [case for case in resumed if not of_a_checkpoint(case)]
    for case in others:
        where = (case["file"], case["damage"])
        code, said = case["resume"]
        assert case["verify"][0] == 0, where
        if code == 0:
            assert f"resumed from {case['run']}/checkpoints/{NEWEST}" in said, where
            assert case["left"] == whole["left"], where
            assert case["digest"] == whole["digest"], where
        else:
            assert case["damage"] == a_folder.__name__, where
            assert f"{case['file']}: Is a directory" in said, where
            assert case["left"] == [BEFORE, NEWEST], where


def test_an_export_takes_what_is_whole(exported: list[Case]) -> None:
    """It says of which step it is; what it holds is the same whatever else was damaged."""
    weights: dict[int, str] = {}
    for case in exported:
        where, (code, said) = (case["file"], case["damage"]), case["export"]
        if case["file"].startswith("tokenizer"):
            assert code == 64, where
        if code != 0:
            assert Path(case["file"]).name in said, where
            continue
        assert case["step"] == (8 if of_a_checkpoint(case) else 12), where
        assert f"of step {case['step']}," in said, where
        assert weights.setdefault(case["step"], case["digest"]) == case["digest"], where
    assert sorted(weights) == [8, 12]
