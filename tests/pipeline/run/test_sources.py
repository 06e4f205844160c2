"""What is wrong with the sources of a run is said before anything starts."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esolm.data_prep.packing_index import PackJob, pack_task, write_packing
from esolm.pipeline.cli.main import main
from esolm.pipeline.data.dataset import TokenDataset
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, write_jsonl
from tests.e2e.runs import sources_of, write_config, write_mixture

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What a command in this process says that ends with 64."""

    def refuse(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["esolm", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        text = capsys.readouterr().err
        assert stopped.value.code == 64, text
        return text

    return refuse


def test_checksums_of_all_or_of_none(
    source_folders: dict[str, Path], tmp_path: Path, refused: Refused
) -> None:
    config = write_mixture(tmp_path, source_folders)
    old = Path(__file__).parents[2] / "data" / "dataset_format_1"
    entries = f"{{path: {source_folders['a']}}}, {{path: {old}, name: old}}"
    text = refused("train", str(config), f"data.sources=[{entries}]")
    assert f"source 'old' ({old}) is of format 1, without checksums" in " ".join(text.split())
    trusting = refused("train", str(config), f"data.sources=[{entries}]", "data.verify=none")
    assert "is of format 1, without" not in " ".join(trusting.split())


def test_everything_that_is_wrong_is_said_at_once(
    source_folders: dict[str, Path], tmp_path: Path, refused: Refused
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", vocab_size=380)
    source = write_jsonl(tmp_path / "text.jsonl", 60)
    run_job(make_job(source, tokenizer, tmp_path / "other", valid_fraction=0.2), tokenizer)
    config = write_mixture(tmp_path, source_folders)
    a, b = source_folders["a"], source_folders["b"]
    entries = (
        f"{{path: {a}, weight: 0}}, {{path: {b}, weight: -1, name: a}}, {{weight: 1}}, "
        f"{{path: {tmp_path}/nowhere}}, {{path: {tmp_path}/other}}, {{path: {a}, name: 'x/y'}}, "
        f"{{path: {b}, name: b, weight: .inf, epochs_max: -1}}"
    )
    text = refused("train", str(config), f"data.sources=[{entries}]", "parallel.tp=3")
    for part in (
        "data.sources[0].weight is 0.0; it must be above 0",
        "data.sources[1].weight is -1.0; it must be above 0",
        "data.sources[1] is called 'a', as data.sources[0] is: give one of them another name",
        "data.sources[2].path is missing",
        f"{tmp_path}/nowhere/manifest.json does not exist",
        "source 'other'",
        "was made with another tokenizer",
        "data.sources[5].name is 'x/y'",
        "has the tokens of 'a'",
        "data.sources[6].weight is inf; it must be finite and above 0",
        "data.sources[6].epochs_max is -1.0; it must be at least 0",
        "does not divide by parallel.tp 3",
    ):
        assert part in text, text
    assert "Traceback" not in text
    text = refused("train", str(config), f"data.path={a}")
    assert "data.sources are given as well" in text
    text = refused("train", str(config), "data.sources=[{path: x, wieght: 1}]")
    assert "'wieght'" in text
    assert "Did you mean: 'weight'" in text
    text = refused("train", str(config), "data.sources=[]")
    assert "'data.path' is missing (or 'data.sources', for a mixture)" in text


@pytest.mark.parametrize("command", ["train", "plan"])
def test_more_epochs_than_are_allowed_are_refused_before_anything_starts(
    command: str, source_folders: dict[str, Path], tmp_path: Path, refused: Refused
) -> None:
    config = write_mixture(tmp_path, source_folders)
    arguments = [command, str(config), "train.steps=100000", "parallel.tp=1"]
    arguments.append(f"{sources_of(source_folders, a=1, b=2, c=1)[:-2]}, epochs_max: 900}}]")
    text = refused(*arguments, "data.epochs_max=5")
    for name in ("a", "b"):
        assert f"source '{name}' would be read" in text
    assert "more than its epochs_max 5" in text
    assert "source 'c'" not in text, "it has a bound of its own"
    assert not (tmp_path / "run").exists()


def test_a_plan_says_how_often_each_source_is_read(
    source_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_mixture(tmp_path, source_folders)

    def planned(*arguments: str) -> str:
        monkeypatch.setattr(
            sys, "argv", ["esolm", "plan", str(config), "parallel.tp=1", *arguments]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        return capsys.readouterr().out

    # 2,560 steps of 4 rows are ten windows.
    found = json.loads(planned("train.steps=2560", "data.epochs_max=500", "--json"))["sources"]
    assert [(use["name"], use["share"], use["samples"]) for use in found] == [
        ("a", 0.5, 5120), ("b", 0.3, 3072), ("c", 0.2, 2048),
    ]  # fmt: skip
    for use in found:
        rows = TokenDataset(source_folders[use["name"]], "train").num_tokens // 32
        assert use["num_sequences"] == rows
        assert use["epochs"] == use["samples"] / rows
        assert use["epochs_max"] == 500.0
    assert "5,120 rows of" in planned("train.steps=2560")


def test_a_plan_counts_the_rows_of_a_packing(
    source_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(source_folders["e"], data)
    job = PackJob.of(data, (700,))
    for task in range(job.num_tasks):
        pack_task(job, task, lambda _: None)
    [info] = write_packing(job, 700)["train"]
    config = write_config(tmp_path, data)
    options = ["train.seq_len=700", "train.valid_every_steps=0", "data.packing=best_fit"]
    monkeypatch.setattr(
        sys, "argv", ["esolm", "plan", str(config), "parallel.tp=1", *options, "--json"]
    )
    with pytest.raises(SystemExit):
        main()
    [use] = json.loads(capsys.readouterr().out)["sources"]
    assert use["num_sequences"] == info.num_rows > 3
    assert use["epochs"] == 12 * 4 / info.num_rows
