"""Cleaning in a job of several tasks: what stays, what is counted, what is reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from esolm.data_prep.cleaning.with_datatrove import FILTERS
from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.status import status_of
from tests.data_prep.corpus import text_of
from tests.processes import ROOT, environment, run_python

OWN = """
from esolm.data_prep.cleaning import Drop

def cut(document):
    if "forbidden" in document.text:
        return Drop("a forbidden word")
    return document.text.removesuffix(" (c) somebody")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Texts over three files, with repeats within and across them, and what cleaning needs."""
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "own_stage.py").write_text(OWN)
    distinct = [text_of(number, 60) for number in range(30)]
    (tmp_path / "evaluation.txt").write_text(" ".join(distinct[29].split()[5:25]))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    parts = [
        [*distinct[:10], distinct[3], "forbidden " + distinct[0]],
        [*distinct[10:20], distinct[0], distinct[3] + " (c) somebody", ""],
        [*distinct[20:30], distinct[12], distinct[14] + " and more"],
    ]
    for name, texts in zip("abc", parts, strict=True):
        lines = [json.dumps({"text": text, "name": f"{name}{n}"}) for n, text in enumerate(texts)]
        (corpus / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def command(folder: Path, tokenizer: Path, out: str, *more: str) -> list[str]:
    words = ["-m", "esolm", "prep", "tokenize", folder / "corpus", "--tokenizer", tokenizer]
    words += ["--out", folder / out, "--id-key", "name", *more]
    return [str(word) for word in words]


def cleaning(folder: Path) -> list[str]:
    return [
        *("--clean", "own_stage:cut", "--clean", f"decontaminate={folder / 'evaluation.txt'}"),
        *("--dedup", "near"),
    ]


def run(folder: Path, *words: str, code: int = 0) -> str:
    done = run_python(*words, packages=(folder / "installed",))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def shard_hashes(data: Path) -> list[tuple[str, str]]:
    return [(shard.name, shard.sha256) for shard in read_manifest(data).shards]


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_every_stage_is_applied_and_reported(
    folder: Path, tokenizer_directory: Path, num_tasks: int
) -> None:
    tasks = ["--tasks", str(num_tasks), "--valid-fraction", "0"]
    run(folder, *command(folder, tokenizer_directory, "data", *tasks, *cleaning(folder)))
    printed = run(folder, "-m", "esolm", "prep", "merge", str(folder / "data"))
    manifest = read_manifest(folder / "data")
    assert manifest.counts == {
        "documents": 29,
        "duplicates": 4,
        "empty": 1,
        "bad": 0,
        "filtered": 2,
        "near_duplicates": 1,
    }
    stages = json.loads((folder / "data" / "cleaning.json").read_text())["stages"]
    figures = [(s["documents_in"], s["documents_out"], s["changed"]) for s in stages]
    assert figures == [(36, 35, 1), (35, 34, 0), (34, 30, 0), (30, 29, 0)]
    for before, after in pairwise(stages):
        assert before["bytes_out"] == after["bytes_in"]
    assert stages[1]["reasons"] == {"shares words with evaluation.txt": 1}
    examples = (folder / "data" / "cleaning-examples.jsonl").read_text().splitlines()
    found = {(one["stage"], one["id"]) for one in map(json.loads, examples)}
    assert found == {
        *{("own_stage:cut", "a11"), (stages[1]["name"], "c9")},
        *{("repeats in the corpus", name) for name in ("a10", "b10", "b11", "c10")},
        ("near-duplicates in the corpus", "c11"),
    }
    assert "own_stage:cut: 36 documents" in printed
    assert "1 left out: a forbidden word" in printed
    assert "2 filtered, 1 near duplicates" in printed


def test_tasks_of_an_array_give_the_same_and_wait_for_each_other(
    folder: Path, tokenizer_directory: Path
) -> None:
    tasks = ["--tasks", "2", *cleaning(folder)]
    run(folder, *command(folder, tokenizer_directory, "whole", *tasks))
    run(folder, "-m", "esolm", "prep", "merge", str(folder / "whole"))
    array = command(folder, tokenizer_directory, "array", *tasks)
    printed = run(folder, *array, "--task", "1", code=64)
    assert "pass compare is not finished for 2 of 2 tasks: 0, 1" in printed
    for name in ("compare", "choose", "tokenize"):
        for task in ("1", "0"):
            run(folder, *array, "--task", task, "--pass", name)
        assert "2 skipped as finished" in run(folder, *array, "--pass", name)
    run(folder, "-m", "esolm", "prep", "merge", str(folder / "array"))
    assert shard_hashes(folder / "array") == shard_hashes(folder / "whole")
    # What passes leave is needed for nothing once the tokens are there.
    shutil.rmtree(folder / "array" / "cleaning")
    assert "2 skipped as finished" in run(folder, *array)
    before = (folder / "array" / "cleaning.json").read_bytes()
    run(folder, "-m", "esolm", "prep", "merge", str(folder / "array"))
    assert (folder / "array" / "cleaning.json").read_bytes() == before


def test_other_settings_of_cleaning_are_refused(folder: Path, tokenizer_directory: Path) -> None:
    run(folder, *command(folder, tokenizer_directory, "data", *cleaning(folder)))
    assert "dedup: was near" in run(folder, *command(folder, tokenizer_directory, "data"), code=64)
    own = folder / "installed" / "own_stage.py"
    own.write_text(OWN + "\n# changed\n")
    again = command(folder, tokenizer_directory, "data", *cleaning(folder))
    assert "clean: was" in run(folder, *again, code=64)
    assert "3 tasks" not in run(folder, *again, "--overwrite")
    wrong = command(folder, tokenizer_directory, "other", "--dedup", "fuzzy", "--pass", "choose")
    assert "--dedup is 'fuzzy'" in run(folder, *wrong, code=64)
    assert "--pass is 'choose'" in run(
        folder, *command(folder, tokenizer_directory, "other", "--pass", "choose"), code=64
    )


def start(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        cwd=ROOT,
        env=environment(folder / "installed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_drill(
    folder: Path, tokenizer: Path, num_kills: int, tasks: int, seed: int, *stages: str
) -> int:
    """Kill a preparation at random moments until so many kills hit it. Returns the runs it took.

    stages: of `--clean`, besides those of `cleaning`.
    """
    options = ["--tasks", str(tasks), "--workers", "2", "--shard-tokens", "2000"]
    options += ["--on-bad-document", "skip", *cleaning(folder)]
    options += [word for stage in stages for word in ("--clean", stage)]
    merge = ["-m", "esolm", "prep", "merge"]
    whole = command(folder, tokenizer, "whole", *options)
    began = time.monotonic()
    run(folder, *whole)
    seconds = time.monotonic() - began
    run(folder, *merge, str(folder / "whole"))
    assert read_manifest(folder / "whole").counts["documents"] > 50
    random, killed, runs = Random(seed), 0, 0
    while killed < num_kills:
        words = command(folder, tokenizer, f"killed-{runs}", *options)
        out = folder / f"killed-{runs}"
        runs += 1
        for _ in range(3):
            process = start(folder, words)
            time.sleep(seconds * random.uniform(0.2, 1.0))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            process.wait()
        run(folder, *words)
        run(folder, *merge, str(out))
        assert shard_hashes(out) == shard_hashes(folder / "whole")
        for name in ("manifest.json", "cleaning.json", "cleaning-examples.jsonl", "errors.jsonl"):
            assert (out / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
        shutil.rmtree(out)
    return runs


def add_bad_lines(folder: Path, copies: int) -> None:
    for path in sorted((folder / "corpus").iterdir()):
        lines = path.read_text()
        more = "".join(
            json.dumps({"text": prose_of(1000 + n), "name": f"{path.stem}+{n}"}) + "\n"
            for n in range(copies)
        )
        path.write_text(lines + "{\n" + more)


def prose_of(number: int) -> str:
    """Sentences that every filter takes for prose, and an address."""
    words = text_of(number, 120).split()
    sentences = [
        f"The {' '.join(words[i : i + 8])} and to {words[i]}." for i in range(0, len(words), 8)
    ]
    lines = (" ".join(sentences[i : i + 2]) for i in range(0, len(sentences), 2))
    return "\n".join([*lines, f"Mail of {words[0]} to {words[1]}@{words[2]}.org."])


@pytest.mark.timeout(180)
def test_a_killed_preparation_goes_on_to_the_same_bytes(
    folder: Path, tokenizer_directory: Path
) -> None:
    add_bad_lines(folder, 100)
    kill_drill(folder, tokenizer_directory, num_kills=2, tasks=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills(folder: Path, tokenizer_directory: Path) -> None:
    """With every stage on but the language, whose model is not at hand everywhere."""
    add_bad_lines(folder, 300)
    stages = (*FILTERS, "pii")
    kill_drill(folder, tokenizer_directory, 100, 20, 2, *stages)


def test_status_of_running_stopped_and_failed_tasks(
    folder: Path, tokenizer_directory: Path
) -> None:
    (folder / "installed" / "slow_stage.py").write_text(
        "import time\n"
        "changes_text = False\n"
        "def wait(document):\n"
        "    time.sleep(0.3)\n"
        "    if document.text.startswith('forbidden'):\n"
        "        raise ValueError('on purpose')\n"
    )
    words = command(folder, tokenizer_directory, "data", "--tasks", "3")
    words += ["--clean", "slow_stage:wait"]
    with pytest.raises(DataError, match="has begun there"):
        status_of(folder / "data")
    process = start(folder, [*words, "--task", "1"])
    beat = folder / "data" / "tasks" / "tokenize-00001-of-00003.beat"
    deadline = time.monotonic() + 60
    while not (beat.exists() and json.loads(beat.read_text())["tokens"] > 0):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (running,) = status_of(folder / "data")
    assert [task["task"] for task in running.running] == [1]
    assert 0 < running.share_done < 1
    assert (running.tokens_per_second or 0) > 0
    assert (running.seconds_left or 0) > 0
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (stopped,) = status_of(folder / "data")
    assert [task["task"] for task in stopped.stopped] == [1]
    run(folder, *words, "--task", "0", code=64)
    run(folder, *words, "--task", "2")
    printed = run(folder, "-m", "esolm", "prep", "status", str(folder / "data"))
    assert "1 of 3 tasks done, 0 running, 1 failed, 1 stopped, 0 waiting" in printed
    assert "task 0 failed: --clean slow_stage:wait failed at" in printed
    record: list[dict[str, Any]] = json.loads(
        run(folder, "-m", "esolm", "prep", "status", str(folder / "data"), "--json")
    )
    assert record[0]["done"] == [2]
