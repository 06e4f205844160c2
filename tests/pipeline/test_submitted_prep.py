"""The jobs that `esolm submit` makes of a preparation, run one after the other without Slurm."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.sources import named_sources, source_folders
from esolm.pipeline.slurm.stages import Job, Paths, plan_jobs, prep_problems
from tests.data_prep.corpus import text_of
from tests.processes import ROOT, environment


def jobs_of(overrides: list[str], run: Path) -> list[Job]:
    config = load_config("configs/run/demo.yaml", overrides)
    return plan_jobs(config, ["prep"], Paths(run, run / "submission"))[0]


def run_job(job: Job) -> None:
    for task in job.array or (None,):
        number = {} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(
            f"{shlex.quote(sys.executable)} -W ignore -m esolm {job.command}",
            shell=True,
            cwd=ROOT,
            env={**environment(), **number, "SLURM_CPUS_PER_TASK": "1"},
            check=True,
            capture_output=True,
        )


@pytest.mark.parametrize(
    ("dedup", "stages"),
    [
        ("task", ["tokenizer", "prep", "merge"]),
        ("near", ["tokenizer", "compare", "choose", "prep", "merge"]),
    ],
)
def test_jobs_make_the_dataset(dedup: str, stages: list[str], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus [1].jsonl"
    lines = [json.dumps({"text": text_of(i), "number": i}) for i in (*range(30), 3)]
    corpus.write_text("\n".join([*lines, "{"]))
    (tmp_path / "evaluation").write_text(text_of(5))
    settings = {
        "run.dir": tmp_path / "run",
        "data.path": tmp_path / "data",
        "prep.inputs": f"[{json.dumps(str(corpus))}]",
        "prep.tokenizer": tmp_path / "tokenizer",
        "prep.vocab_size": 400,
        "prep.tasks": 2,
        "prep.on_bad_document": "skip",
        "prep.max_bad": 1,
        "prep.clean": f"['decontaminate={tmp_path / 'evaluation'}']",
        "prep.dedup": dedup,
        "prep.id_key": "number",
        "prep.metadata": "[number, 'of what?']" if dedup == "near" else "[]",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    jobs = jobs_of(overrides, tmp_path / "run")
    assert [job.stage for job in jobs] == stages
    for job in jobs[:-2]:
        run_job(job)
    assert [job.stage for job in jobs_of(overrides, tmp_path / "run")] == ["prep", "merge"]
    for job in jobs[-2:]:
        run_job(job)
    assert jobs_of(overrides, tmp_path / "run") == []
    packed = [*overrides, "data.packing=best_fit", "train.seq_len=64"]
    [pack] = jobs_of(packed, tmp_path / "run")
    assert pack.stage == "pack"
    run_job(pack)
    assert jobs_of(packed, tmp_path / "run") == []
    manifest = read_manifest(tmp_path / "data")
    assert all(bool(shard.metadata_name) == (dedup == "near") for shard in manifest.shards)
    counts = manifest.counts
    expected = {"documents": 29, "duplicates": 1, "empty": 0, "bad": 1, "filtered": 1}
    if dedup == "task":  # the repeat falls to the other task
        expected |= {"documents": 30, "duplicates": 0}
    assert {key: counts[key] for key in expected} == expected


def test_a_dataset_at_an_address_is_not_made_or_mounted() -> None:
    overrides = ["run.dir=r", "data.path=s3://me:secret@bucket/web", "prep.inputs=[a.txt]"]
    config = load_config("configs/run/demo.yaml", overrides)
    (problem,) = prep_problems(config, ["prep"])
    assert "stage prep writes to a folder, and data.path is s3://bucket/web" in problem
    assert source_folders(config.data) == []
    assert [source.name for source in named_sources(config.data)] == ["web"]
