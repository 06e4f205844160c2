"""Whole chains from one submit, and what a failed task leaves to be done."""

import json
import os
from pathlib import Path

import pytest

from esolm.pipeline.slurm.client import FINAL_STATES
from esolm.pipeline.slurm.status import StageStatus, chain_status, format_chain
from tests.data_prep.corpus import make_tokenizer
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import esolm, job_of, submit_run, write_profile, write_run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


def wait_for_chain(cluster: MiniCluster, run: Path, timeout: float = 900) -> dict[str, StageStatus]:
    """Until no stage waits or runs any more."""

    def over() -> list[StageStatus] | None:
        statuses = chain_status(run)
        return statuses if all(s.state in FINAL_STATES for s in statuses) else None

    try:
        statuses = cluster.wait_until(over, "the end of the chain", timeout)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{format_chain(chain_status(run))}") from None
    return {status.stage: status for status in statuses}


def states_without_slurm(run: Path) -> list[str]:
    """Of the stages, by what the jobs wrote down: from where Slurm is not, or has forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        return [status.state for status in chain_status(run)]


def test_one_submit_from_text_to_a_bundle(
    cluster: MiniCluster, corpus: Path, tmp_path: Path
) -> None:
    config = write_run(tmp_path, tmp_path / "data", steps=10, save_every=5)
    run, profile = tmp_path / "run", write_profile(tmp_path, tasks=2)
    settings = [f"prep.inputs=[{corpus}]", f"prep.tokenizer={tmp_path / 'tokenizer'}"]
    settings += ["prep.vocab_size=400", "prep.tasks=4", "prep.valid_fraction=0.2"]
    command = ["submit", str(config), "--cluster", str(profile), *settings]
    submitted = esolm(*command, "parallel.tp=2", "slurm.nodes=2")
    assert submitted.returncode == 0, submitted.stderr
    assert "prep: job" in submitted.stdout
    assert f"esolm status {run}" in submitted.stdout
    stages = wait_for_chain(cluster, run)
    assert list(stages) == ["tokenizer", "prep", "merge", "train", "evaluate", "export"]
    assert {status.state for status in stages.values()} == {"COMPLETED"}, format_chain(
        list(stages.values())
    )
    assert stages["prep"].detail == "4 of 4 tasks done"
    assert "TP2 x PP1 x DP2" in (run / "logs" / "rank_0.log").read_text()
    assert json.loads((run / "DONE").read_text())["step"] == 10
    assert json.loads((run / "evaluation.json").read_text())
    assert (run / "bundle" / "export.json").exists()
    revision = json.loads((run / "env.json").read_text())["git_revision"]
    assert revision == json.loads((run / "slurm" / "chain.json").read_text())["revision"]
    assert states_without_slurm(run) == ["COMPLETED"] * 6
    shown = esolm("status", str(run))
    assert all(f"COMPLETED  {line}" in shown.stdout for line in ("4 of 4", "finished: exit code 0"))
    again = esolm(*command, "parallel.tp=2", "slurm.nodes=2", "--stages", "prep,train")
    assert again.returncode == 0, again.stderr
    assert "4 of 4 tasks are finished" in again.stderr
    assert "all steps are done" in again.stderr
    assert "nothing is left to do" in again.stdout


# As strict as the real one about mounts, but what it starts runs outside.
APPTAINER = """#!/bin/bash
shift
while [[ $1 == --* ]]; do
    [ "$1" = --bind ] && bound="$bound $2"
    [ "$1" = --pwd ] && cd "$2"
    shift 2
done
for mount in $bound ${APPTAINER_BIND//,/ }; do
    [ -e "${mount%%:*}" ] || { echo "OSError: mount source ${mount%%:*} doesn't exist"; exit 255; }
    [ "${mount%%:*}" = "$TMPDIR" ] && scratch=yes
done
[ -n "$scratch" ] || { echo "OSError: no $TMPDIR in the container"; exit 255; }
exec "${@:2}"
"""


@pytest.mark.check
def test_in_a_container_from_the_first_submit(
    cluster: MiniCluster, corpus: Path, tmp_path: Path
) -> None:
    """Neither data nor tokenizer is there yet, and the scratch folder is to be made."""
    config, run = write_run(tmp_path, tmp_path / "data", steps=10), tmp_path / "run"
    apptainer = tmp_path / "apptainer"
    apptainer.write_text(APPTAINER)
    apptainer.chmod(0o755)
    extra = "container: {runtime: apptainer, image: image.sif}\n"
    extra += f"setup: ['PATH={tmp_path}:$PATH']\nscratch: {tmp_path}/scratch/$SLURM_JOB_ID\n"
    settings = [f"prep.inputs=[{corpus}]", f"prep.tokenizer={tmp_path / 'tokenizer'}"]
    settings += ["prep.vocab_size=400", "prep.tasks=1", "prep.valid_fraction=0.2"]
    submit_run(config, write_profile(tmp_path, extra=extra), *settings, stages=("prep",))
    stages = wait_for_chain(cluster, run)
    assert [s.state for s in stages.values()] == ["COMPLETED"] * 3, format_chain([*stages.values()])


@pytest.mark.check
def test_a_failing_prep_task_and_its_repair(
    cluster: MiniCluster, corpus: Path, tmp_path: Path
) -> None:
    """The file is damaged on disk and restored: neither its size nor its time changes.

    Damaged for the last task, whose job has the number of the whole array; the first one waits,
    to be still there when it fails.
    """
    config = write_run(tmp_path, tmp_path / "data", steps=10)
    run = tmp_path / "run"
    wait = f'until grep -qsE "failed|stopped" {run}/slurm/events/prep-3.tsv; do sleep 0.2; done'
    first_waits = f"""setup: ['[ "$SLURM_ARRAY_TASK_ID" != 0 ] || {wait}']\n"""
    profile = write_profile(tmp_path, extra=first_waits)
    text = tmp_path / "text.jsonl"
    sound, moment = corpus.read_bytes(), (1_700_000_000, 1_700_000_000)
    lines = sound.splitlines(keepends=True)
    lines[-2] = lines[-2].replace(b'{"text"', b'{"text?')
    text.write_bytes(b"".join(lines))
    os.utime(text, moment)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    settings = [f"prep.inputs=[{text}]", f"prep.tokenizer={tokenizer}", "prep.tasks=4"]
    submit_run(config, profile, *settings, stages=("prep", "train", "export"))
    stages = wait_for_chain(cluster, run)
    assert stages["prep"].state == "FAILED"
    assert "3 of 4 tasks done; task 3: exit code 64" in stages["prep"].detail
    assert f"{text}:{len(lines) - 1}: invalid JSON" in stages["prep"].detail
    for name in ("merge", "train", "export"):
        assert stages[name].state == "CANCELLED"
        assert stages[name].detail == "never started, because prep did not succeed"
    assert states_without_slurm(run) == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", 30)
    text.write_bytes(sound)
    os.utime(text, moment)
    chain = submit_run(config, profile, *settings, stages=("prep",))
    script = Path(chain.submission) / "prep.sbatch"
    assert "#SBATCH --array=3%2\n" in script.read_text()
    stages = wait_for_chain(cluster, run)
    assert {status.state for status in stages.values()} == {"COMPLETED"}
    assert stages["prep"].detail == "1 of 1 tasks done"
    assert [record["ArrayTaskId"] for record in cluster.jobs(job_of(chain, "prep"))] == ["3"]
    assert (tmp_path / "data" / "manifest.json").exists()
