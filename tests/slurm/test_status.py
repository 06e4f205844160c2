"""What `esolm status` says of jobs that Slurm has forgotten. Small programs stand in for Slurm."""

from pathlib import Path

import pytest

from esolm.pipeline.slurm.chain import Chain, ChainJob, write_chain
from esolm.pipeline.slurm.client import PROGRAMS
from esolm.pipeline.slurm.status import StageStatus, chain_status, read_events

FORGETFUL = """#!/bin/sh
[ "$1" = ping ] && exit 0
echo 'slurm_load_jobs error: Invalid job id specified' >&2
exit 1
"""
NO_ACCOUNTS = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
TRAINING = "2026-01-01T00:00:00Z\t7\t2\ttraining\tfrom step 3 on 2 of node[1-2]\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose training was killed without a last word, on a cluster that has forgotten it."""
    (tmp_path / "slurm" / "events").mkdir(parents=True)
    (tmp_path / "slurm" / "events" / "train.tsv").write_text(TRAINING)
    jobs = [ChainJob("train", "7", None, 0, "log"), ChainJob("export", "8", "7", 0, "log")]
    write_chain(Chain(str(tmp_path), "cpu", "abc", "now", "submission", jobs))
    for program in PROGRAMS:
        write_program(tmp_path / program, FORGETFUL)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def status_with(run: Path, sacct: str) -> list[StageStatus]:
    write_program(run / "sacct", f"#!/bin/sh\n{sacct}\n")
    return chain_status(run)


def test_accounts_know_what_slurm_has_forgotten(run: Path) -> None:
    answers = "case $3 in 7) echo '7|OUT_OF_MEMORY';; 8) echo '8|CANCELLED by 0';; esac"
    train, export = status_with(run, answers)
    assert (train.state, train.restarts) == ("OUT_OF_MEMORY", 2)
    assert train.detail == "training: from step 3 on 2 of node[1-2]"
    assert export.detail == "never started, because train did not succeed"


@pytest.mark.parametrize("sacct", [NO_ACCOUNTS, "exit 127"])
def test_without_accounts_it_is_said(run: Path, sacct: str) -> None:
    train, export = status_with(run, sacct)
    assert train.state == export.state == "UNKNOWN"
    assert "training: from step 3" in train.detail
    assert "forgotten the job and keeps no accounts" in train.detail


def test_last_words_are_enough_without_accounts(run: Path) -> None:
    with (run / "slurm" / "events" / "train.tsv").open("a") as events:
        events.write("2026-01-01T01:00:00Z\t7\t2\tfinished\texit code 0\n")
    assert status_with(run, NO_ACCOUNTS)[0].state == "COMPLETED"


def test_torn_lines_and_cut_characters(run: Path) -> None:
    failed = "2026-01-01T01:00:00Z\t7\t3\tfailed\texit code 1: ValueError: caf\u00e9".encode()
    with (run / "slurm" / "events" / "train.tsv").open("ab") as events:
        events.write(b"2026-01-01T00:3\n2026-01-01T00:40:00Z\t7\t\n" + failed[:-1] + b"\n")
    names = [event.name for event in read_events(run, "train")]
    assert names == ["training", "failed"]
    assert "ValueError: caf" in status_with(run, NO_ACCOUNTS)[0].detail
