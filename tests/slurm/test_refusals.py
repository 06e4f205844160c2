"""What is refused before anything is queued, and the scripts that would be queued."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.slurm.check import association_problems
from esolm.pipeline.slurm.client import SlurmError, accounted_states
from esolm.pipeline.slurm.lint import lint_script
from esolm.pipeline.slurm.profile import PROFILES, ClusterProfile, ContainerSection, load_profile
from esolm.pipeline.slurm.stages import STAGES
from esolm.pipeline.slurm.submit import prepare, submit
from tests.e2e.runs import write_mixture
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import esolm, submit_run, write_profile, write_run

PROFILE_NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml"))


@pytest.mark.slurm
def test_a_bad_profile_is_refused_with_all_its_problems(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    config = write_run(tmp_path, dataset, steps=4)
    profile = tmp_path / "bad.yaml"
    profile.write_text(
        "partition: billed\naccount: chemistry\ngpus_per_node: 3\ncpus_per_task: 2\n"
        'time: "2-00:00"\ncpu: {partition: nowhere, cpus_per_task: 1}\n'
    )
    overrides = ("slurm.nodes=9", "parallel.tp=5", "train.seq_len=1")
    with pytest.raises(ConfigError) as refused:
        submit_run(config, profile, *overrides, stages=("train", "export"))
    for part in (
        "partition 'nowhere' is not one of billed, high, low",
        "account is 'chemistry'; partition billed takes physics",
        "gpus_per_node is 3; no node of partition billed has more than 2",
        "need 6 CPUs; no node of partition billed has more than 4",
        "slurm.nodes asks for 9 nodes; partition billed has 1",
        "time limit 2-00:00 is beyond the 01:00:00 of partition billed",
        "27 ranks do not divide by parallel.tp 5",
        "train.seq_len is 1",
    ):
        assert part in str(refused.value)
    assert not cluster.run("squeue", "-h")
    assert not (tmp_path / "run").exists(), "something was written"


@pytest.mark.slurm
def test_what_only_sbatch_knows_is_refused_too(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    config = write_run(tmp_path, dataset, steps=4)
    profile = write_profile(tmp_path, extra='constraint: quantum\nmemory: "900G"\n')
    with pytest.raises(ConfigError) as refused:
        submit_run(config, profile)
    assert "train.sbatch: sbatch --test-only" in str(refused.value)
    assert not cluster.run("squeue", "-h")


@pytest.mark.slurm
def test_a_live_run_is_not_submitted_again(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    config = write_run(tmp_path, dataset, steps=4)
    profile = write_profile(tmp_path)
    urgent = ("sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive")
    blocker = cluster.run(*urgent, "--output=/dev/null", "--wrap=sleep 300").strip()
    cluster.wait_for_state(blocker, "RUNNING")
    chain = submit_run(config, profile)
    with pytest.raises(ConfigError, match=f"submitted already: train {chain.jobs[0].job_id}"):
        submit_run(config, profile)
    cancelled = esolm("cancel", str(tmp_path / "run"))
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"train: job {chain.jobs[0].job_id} cancelled (it was PENDING)" in cancelled.stdout
    assert cluster.job(chain.jobs[0].job_id)["JobState"] == "CANCELLED"
    assert accounted_states(chain.jobs[0].job_id) is None, "this cluster keeps no accounts"
    second = submit_run(config, profile)
    assert second.submission != chain.submission


@pytest.mark.slurm
def test_a_run_that_trains_elsewhere_is_not_submitted(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    config = write_run(tmp_path, dataset, steps=4)
    directory = RunDirectory(tmp_path / "run")
    directory.lock()
    with pytest.raises(ConfigError, match="in use by another job"):
        submit_run(config, write_profile(tmp_path))
    directory.unlock()
    assert not cluster.run("squeue", "-h")


@pytest.mark.slurm
def test_a_chain_is_queued_whole_or_not_at_all(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    """The last job's partition is closed after everything was checked."""
    config = write_run(tmp_path, dataset, steps=4)
    profile = write_profile(tmp_path)
    profile.write_text(profile.read_text().replace("cpu: {", "cpu: {partition: high, "))
    checked = prepare(config, [], str(profile), ["train", "export"])
    cluster.run("scontrol", "update", "PartitionName=high", "State=DRAIN")
    try:
        with pytest.raises(SlurmError, match="sbatch"):
            submit(checked)
    finally:
        cluster.run("scontrol", "update", "PartitionName=high", "State=UP")
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", 30)
    assert not (tmp_path / "run" / "slurm" / "chain.json").exists()


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_scripts_of_every_shipped_profile_pass_shellcheck(
    name: str, dataset: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esolm.pipeline.slurm.client.why_unavailable", lambda: "no Slurm here")
    assert load_profile(name).problems() == []
    settings = [f"prep.inputs=[{corpus}]", f"prep.tokenizer={tmp_path / 'tokenizer'}"]
    settings += ["train.global_batch_size=16", "objective.kappa=0.5", "slurm.nodes=1-2"]
    settings += ["prep.max_sentences=777", "data.packing=best_fit"]
    config = write_run(tmp_path, dataset, steps=4)
    submission = prepare(config, settings, name, list(STAGES))
    named = ["tokenizer", "prep", "merge", "pack", "train", "evaluate", "export", "serve"]
    assert list(submission.scripts) == named
    assert "--max-sentences 777" in submission.scripts["tokenizer"]
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    for stage, script in submission.scripts.items():
        checked = subprocess.run(
            ["shellcheck", "-"], input=script, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, f"{stage}:\n{checked.stdout}"


def refusal(
    monkeypatch: pytest.MonkeyPatch, config: Path, profile: Path | str, *overrides: str
) -> str:
    """What a submit of all stages is refused with, where no Slurm is."""
    monkeypatch.setattr("esolm.pipeline.slurm.client.why_unavailable", lambda: "no Slurm here")
    with pytest.raises(ConfigError) as refused:
        prepare(config, list(overrides), str(profile), list(STAGES))
    return str(refused.value)


def test_what_a_node_would_find_much_later(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is a tokenizer or a dataset, all at once."""
    settings = [f"prep.inputs=[{corpus}]", f"prep.tokenizer={tmp_path / 'tokenizer'}"]
    settings += ["prep.vocab_size=260", "prep.shard_tokens=0", "slurm.time=0-00:01"]
    settings += ["prep.valid_fraction=1.5", "slurm.nodes=none", "parallel.tp=3"]
    config = write_run(tmp_path, tmp_path / "data", steps=4)
    problems = refusal(monkeypatch, config, "cpu", *settings)
    for part in (
        "prep.vocab_size is 260; it must be more than 260",
        "prep.shard_tokens is 0",
        "prep.valid_fraction is 1.5",
        "time limit 0-00:01 leaves nothing to train in",
        "slurm.nodes is 'none'",
        "2 ranks do not divide by parallel.tp 3",
    ):
        assert part in problems
    problems = refusal(monkeypatch, config, "cpu", *settings[:2], "prep.valid_fraction=0")
    assert "leaves nothing to validate on for stage evaluate" in problems
    refused = esolm("submit", str(config), "--cluster", "nowhere", "train.nonsense=1")
    assert refused.returncode == 64
    assert "no cluster profile" in refused.stderr
    assert "train.nonsense" in refused.stderr


def test_several_datasets_are_trained_on_and_no_more(
    source_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages prep and evaluate are about one dataset; what they would need is said."""
    config = write_mixture(tmp_path, source_folders)
    text = refusal(monkeypatch, config, "cpu", "prep.from_python_stdlib=true")
    assert "stage prep makes one dataset, at data.path, and the run has data.sources" in text
    assert "stage evaluate measures one dataset, and the run has data.sources" in text
    stages = ["prep", "train", "export"]
    submission = prepare(config, ["parallel.tp=1"], "cpu", stages)
    assert list(submission.scripts) == ["train", "export"]
    assert f"prep: {source_folders['a']}, " in submission.notes[0]
    assert [source.name for source in submission.config.data.sources] == ["a", "b", "c"]
    relative = os.path.relpath(source_folders["a"])
    again = prepare(
        config, ["parallel.tp=1", f"data.sources=[{{path: {relative}}}]"], "cpu", stages
    )
    assert again.config.data.sources[0].path == str(source_folders["a"])
    with pytest.raises(ConfigError, match=r"nowhere/manifest\.json does not exist"):
        prepare(config, ["data.sources=[{path: nowhere}]"], "cpu", ["train"])


def test_what_a_plan_finds_is_refused(
    dataset: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the dataset there, and with one to come."""
    profile = write_profile(tmp_path, extra="gpus_per_node: 1\ngpu_type: a100\n")
    large = ["model.hidden_size=8192", "model.num_layers=40", "model.ffn_hidden_size=32768"]
    large += ["train.precision=bf16", "train.fp8=rowwise"]
    settings = [*large, f"prep.inputs=[{corpus}]", f"prep.tokenizer={tmp_path / 'tokenizer'}"]
    for data in (dataset, tmp_path / "data"):
        config = write_run(tmp_path, data, steps=4)
        problems = refusal(monkeypatch, config, profile, *settings, "prep.tasks=0")
        assert "with slurm.nodes 1 a GPU needs" in problems
        assert "more than 90% of its 80 GB" in problems
        assert "train.fp8=rowwise: it needs compute capability 9.0, and the A100 has" in problems
        assert "prep.tasks is 0" in problems


@pytest.mark.slurm
def test_a_list_of_partitions(cluster: MiniCluster, dataset: Path, tmp_path: Path) -> None:
    """Each has to be there, and one has to do."""
    config = write_run(tmp_path, dataset, steps=4)
    profile = write_profile(tmp_path)
    text = profile.read_text()
    profile.write_text(text.replace("partition: low", 'partition: "high,low"'))
    script = prepare(config, ["slurm.nodes=2"], str(profile), ["train"]).scripts["train"]
    assert "#SBATCH --partition=high,low\n" in script
    profile.write_text(text.replace("partition: low", 'partition: "low,nowhere,elsewhere"'))
    with pytest.raises(ConfigError) as refused:
        prepare(config, ["slurm.nodes=9"], str(profile), ["train"])
    for part in ("partition 'nowhere'", "partition 'elsewhere'", "partition low has 4"):
        assert part in str(refused.value)


CONTAINER = "container: {{runtime: {}, image: i.sif, mounts: [/shared/data]}}\n"


def test_a_container_sees_what_its_job_reads(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esolm.pipeline.slurm.client.why_unavailable", lambda: "no Slurm here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first" / "checkpoints" / "step_00000004").mkdir(parents=True)
    config = write_run(tmp_path, dataset, steps=4)
    profile = write_profile(tmp_path, extra=CONTAINER.format("apptainer"))
    checkpoint = "first/checkpoints/step_00000004"
    submission = prepare(config, [f"train.init_from={checkpoint}"], str(profile), ["train"])
    assert submission.config.train.init_from == str(tmp_path / checkpoint)
    for folder in ("/shared/data", tmp_path / "run", dataset, tmp_path / "first"):
        assert f"--bind {folder}:{folder}\n" in submission.scripts["train"]
    config = write_run(tmp_path / "a b", tmp_path / "one two", steps=4)
    with pytest.raises(ConfigError) as refused:
        prepare(config, [f"run.dir={tmp_path}/run"], str(profile), ["export"])
    assert "one two cannot be mounted into a container" in str(refused.value)


def test_pyxis_makes_no_folder_on_the_node() -> None:
    container = ContainerSection("pyxis", "image.sqsh")
    profile = ClusterProfile(gpus_per_node=1, scratch="/nvme/$SLURM_JOB_ID", container=container)
    for mount in ("/nvme", "/raid:/nvme", "/raid:/nvme:rw"):
        container.mounts = [mount]
        assert profile.problems() == []
    profile.scratch = "/local/$SLURM_JOB_ID"
    assert "scratch /local/$SLURM_JOB_ID is not in the container" in profile.problems()[0]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("#SBATCH --time=10:00", "ignores options after the first command"),
        ("# SBATCH --time=10:00", "takes it for a comment"),
        ("echo {{ steps }}", "left over from the template"),
        ("if true", "syntax error"),
    ],
)
def test_the_lint_finds_what_sbatch_ignores(line: str, complaint: str) -> None:
    sound = "#!/usr/bin/env bash\n# A comment.\n#SBATCH --nodes=1\n\ntrue\n"
    assert lint_script("x", sound) == []
    assert any(complaint in problem for problem in lint_script("x", f"{sound}{line}\n"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("#SBATCH --output=$HOME/log", "does not expand variables"),
        ("#SBATCH --account=", "without its value"),
        ("#SBATCH time=10", "not of the form"),
        ("#SBATCH --nodes=2", "said already in line 2"),
    ],
)
def test_the_lint_reads_the_options(line: str, complaint: str) -> None:
    problems = lint_script("x", f"#!/bin/bash\n#SBATCH --nodes=1\n{line}\ntrue\n")
    assert any(complaint in problem for problem in problems)


def test_accounts_and_qos_against_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mini cluster keeps no accounts: a program that answers like sacctmgr stands in."""
    program = tmp_path / "sacctmgr"
    program.write_text("#!/bin/sh\nprintf 'physics|normal,long\\nstars|normal\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert association_problems(ClusterProfile(account="physics", qos="long")) == []
    assert association_problems(ClusterProfile()) == []
    problems = "\n".join(association_problems(ClusterProfile(account="chemistry")))
    assert "account 'chemistry' is not one of" in problems
    assert "physics, stars" in problems
    problems = "\n".join(association_problems(ClusterProfile(account="stars", qos="long")))
    assert "qos 'long' is not one of" in problems


def test_a_profile_that_is_not_there_names_those_that_are(dataset: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, dataset, steps=4)
    with pytest.raises(ConfigError, match="there are cpu, gpu, gpu_apptainer, gpu_pyxis"):
        prepare(config, [], "nowhere", ["train"])


def test_a_profiles_own_problems_come_all_at_once(dataset: Path, tmp_path: Path) -> None:
    profile = tmp_path / "bad.yaml"
    profile.write_text(
        "time: 3600\ngpus_per_node: 1\ntasks_per_node: 2\ncontainer: {runtime: podman}\n"
        "warn_seconds: 0\n"
    )
    problems = "\n".join(load_profile(str(profile)).problems())
    for part in ("time is '3600'", "tasks_per_node 2 is more", "'podman'", "warn_seconds is 0"):
        assert part in problems
