"""A published checkpoint that was imported goes on training where it stood."""

import json
from pathlib import Path

from pipeline.checkpoint.reader import CheckpointReader
from pipeline.importer.importing import import_checkpoint
from pipeline.importer.recognise import Options
from tests.pipeline.importer import published
from tests.pipeline.importer.published import SYSTEMS
from tests.processes import run_python


def test_an_imported_run_goes_on(dataset: Path, tmp_path: Path, quick: None) -> None:
    run = tmp_path / "run"
    vocabulary = json.loads((dataset / "manifest.json").read_text())["tokenizer"]["vocab_size"]
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], vocabulary)
    import_checkpoint(tmp_path / "a.ckpt", run, Options(), dataset / "tokenizer")
    first = CheckpointReader(run).manifest.step
    settings = [
        f"data.path={dataset}",
        f"train.steps={first + 2}",
        "train.global_batch_size=4",
        "train.micro_batch_size=2",
        "train.precision=fp32",
    ]
    finished = run_python("-m", "pipeline", "train", str(run / "config.yaml"), *settings)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"at step {first}" in finished.stderr
    assert CheckpointReader(run).manifest.step == first + 2
