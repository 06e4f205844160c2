"""What `esolm status` says of jobs that Slurm has forgotten. Small programs stand in for Slurm."""

import os
import time
from pathlib import Path

import pytest

from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History
from esolm.pipeline.slurm import client
from esolm.pipeline.slurm.attendance import health_with_jobs
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


RUNNING = "echo 'JobId=7 JobState=RUNNING Reason=None Restarts=2 NodeList=node1 ExitCode=0:0'"


def fares(run: Path, scontrol: str, health: str, started_by: str = "7") -> str:
    """The health of the run with a scontrol that does so, where its files alone say `health`."""
    write_program(run / "scontrol", f"#!/bin/sh\n{scontrol}\n")
    return health_with_jobs(run, health, "why", started_by, chain_status(run))[0]


def test_how_a_run_fares_by_its_files_and_its_jobs(run: Path) -> None:
    History(RunDirectory(run)).start(3, 24, 8, "DP2", 2)  # by a start before job 7 was there
    assert fares(run, RUNNING, "failed") == "starting"
    assert fares(run, RUNNING, "done") == "done"
    pending = RUNNING.replace("RUNNING Reason=None", "PENDING Reason=BeginTime")
    assert fares(run, pending, "stopped") == "waiting"
    assert fares(run, RUNNING, "running") == "running"
    script = run / "slurm" / "alive_7"
    script.touch()
    assert fares(run, RUNNING, "running") == "running"
    long_ago = time.time() - 100
    os.utime(script, (long_ago, long_ago))
    assert fares(run, RUNNING, "running") == "unattended"
    failed = RUNNING.replace("RUNNING Reason=None", "FAILED Reason=JobLaunchFailure")
    assert fares(run, failed, "running") == "unattended"
    assert fares(run, failed, "running", started_by="6") == "running", "somebody trains it by hand"
    assert fares(run, failed, "failed") == "failed"


def test_ranks_that_have_left_are_not_starting(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    History(RunDirectory(run)).start(3, 24, 8, "DP2", 2)
    assert fares(run, RUNNING, "failed") == "ending"
    with (run / "slurm" / "events" / "train.tsv").open("a") as table:
        table.write("2026-01-01T01:00:00Z\t7\t3\tchecking\tnode[1-2]\n")
    assert fares(run, RUNNING, "failed") == "starting", "the next start has not come that far"


def test_a_requeued_job_waits_unless_it_is_cancelled(run: Path) -> None:
    with (run / "slurm" / "events" / "train.tsv").open("a") as table:
        table.write("2026-01-01T01:00:00Z\t7\t2\trequeued\tstopped at step 5 to be resumed\n")
    assert fares(run, RUNNING, "stopped") == "unattended", "it was granted, but not counted"
    assert fares(run, RUNNING.replace("Restarts=2", "Restarts=3"), "stopped") == "waiting"
    assert fares(run, RUNNING.replace("RUNNING", "COMPLETING", 1), "stopped") == "waiting"
    assert fares(run, RUNNING.replace("RUNNING", "CANCELLED", 1), "stopped") == "stopped"


def test_who_does_not_answer_is_named(run: Path) -> None:
    write_program(
        run / "scontrol", "#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1"
    )
    train, export = chain_status(run)
    assert train.state == export.state == "NO ANSWER"
    assert train.detail.endswith("show: Unable to contact slurm controller")
    write_program(run / "scontrol", "#!/bin/sh\nexec sleep 60")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "ANSWER_SECONDS", 0.2)
        assert "no answer within 0.2 s" in chain_status(run)[0].detail


def test_the_comment_stands_in_for_last_words(run: Path) -> None:
    comment = "failed: exit code 1: OSError (No space left on device)"
    failed = RUNNING.replace("RUNNING Reason=None", "FAILED Reason=NonZeroExitCode")
    failed = failed.replace(" ExitCode", f" Comment={comment} ExitCode")
    write_program(run / "scontrol", f"#!/bin/sh\n{failed}\n")
    assert chain_status(run)[0].detail.startswith(comment + ";")


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
