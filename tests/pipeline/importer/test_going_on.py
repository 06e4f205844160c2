"""A published checkpoint that was imported goes on training where it stood."""

from pathlib import Path

import pytest

from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.export.manifest import verify_bundle
from esolm.pipeline.importer.importing import import_checkpoint
from esolm.pipeline.importer.recognise import Options
from tests.data_prep.corpus import make_job, run_job, write_jsonl
from tests.foreign_tokenizers import like_gpt2, saved
from tests.pipeline.importer import published
from tests.pipeline.importer.published import SYSTEMS
from tests.processes import run_python


@pytest.mark.check
@pytest.mark.parametrize("foreign", [False, True])
def test_an_imported_run_goes_on(foreign: bool, dataset: Path, tmp_path: Path, quick: None) -> None:
    """foreign: on text that was tokenized with the published tokenizer, one of transformers."""
    tokenizer = dataset / "tokenizer"
    if foreign:
        tokenizer = saved(like_gpt2(), tmp_path / "tokenizer")
        source = write_jsonl(tmp_path / "text.jsonl", 40)
        dataset = tmp_path / "data"
        run_job(make_job(source, tokenizer, dataset, valid_fraction=0.2), tokenizer)
    run, vocabulary = tmp_path / "run", load_tokenizer(tokenizer).info.vocab_size
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], vocabulary)
    import_checkpoint(tmp_path / "a.ckpt", run, Options(), tokenizer)
    first = CheckpointReader(run).manifest.step
    settings = [
        f"data.path={dataset}",
        f"train.steps={first + 2}",
        "train.global_batch_size=4",
        "train.micro_batch_size=2",
        "train.precision=fp32",
    ]
    finished = run_python("-m", "esolm", "train", str(run / "config.yaml"), *settings)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"at step {first}" in finished.stderr
    assert CheckpointReader(run).manifest.step == first + 2
    bundle = tmp_path / "bundle"
    for command in (["export", str(run), "--out", str(bundle)],
                    ["evaluate", str(bundle), str(dataset), "--samples-limit", "4"]):  # fmt: skip
        finished = run_python("-m", "esolm", *command)
        assert finished.returncode == 0, finished.stderr[-3000:]
    assert verify_bundle(bundle)["tokenizer"] == load_tokenizer(tokenizer).info.fingerprint
