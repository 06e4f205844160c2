"""Tokenizers of an import: given ones travel with the bundle, stored ones tell the mask's row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from esolm.data_prep.tokenizers import load_tokenizer
from esolm.model.attention import AttentionPattern
from esolm.model.objectives import AutoRegressive
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.errors import ConfigError, ExportError, ImportCheckpointError
from esolm.pipeline.evaluate.subject import open_subject
from esolm.pipeline.export.export import export
from esolm.pipeline.export.gate_network import bundle_logits, parity_inputs
from esolm.pipeline.export.manifest import verify_bundle
from esolm.pipeline.export.writer import read_model
from esolm.pipeline.generate import Request, generate, load_bundle
from esolm.pipeline.importer.importing import import_checkpoint
from esolm.pipeline.importer.recognise import Options
from tests.data_prep.corpus import make_tokenizer
from tests.foreign_tokenizers import TEXTS, like_bert, like_gpt2, saved
from tests.pipeline.importer import published
from tests.pipeline.importer.published import LENGTH, SYSTEMS, PublishedNetwork, System


@pytest.mark.check
def test_tokenizer_of_transformers_without_a_mask(tmp_path: Path) -> None:
    tokenizer = like_gpt2()
    directory = saved(tokenizer, tmp_path / "gpt2")
    rows = tokenizer.vocab_size + 1
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], rows)
    out = tmp_path / "out"
    report = import_checkpoint(tmp_path / "a.ckpt", out, Options(), directory)
    assert report.network.model.mask_id == rows - 1
    assert report.export.gate["tokenizer"]["documents"] == 100
    loaded = AutoTokenizer.from_pretrained(out / "bundle", local_files_only=True)
    text = TEXTS[1] + " unseen"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    config = json.loads((out / "bundle" / "config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == tokenizer.bos_token_id
    assert verify_bundle(out / "bundle")["tokenizer"] is not None
    export(out, tmp_path / "again")
    again = (tmp_path / "again" / "tokenizer.json").read_bytes()
    assert again == (out / "bundle" / "tokenizer.json").read_bytes()


def test_tokenizer_of_transformers_with_its_own_mask(tmp_path: Path) -> None:
    tokenizer = like_bert()
    directory = saved(tokenizer, tmp_path / "bert")
    _, ema = published.save(tmp_path / "a.ckpt", SYSTEMS["mdlm"], tokenizer.vocab_size)
    report = import_checkpoint(
        tmp_path / "a.ckpt", tmp_path / "out", Options(dtype="fp32"), directory
    )
    assert report.network.model.mask_id == tokenizer.mask_token_id == 4
    model = report.network.model
    inputs = parity_inputs(model, LENGTH, AttentionPattern.BIDIRECTIONAL)
    logits = bundle_logits(read_model(tmp_path / "out" / "bundle", torch.float32), inputs)
    expected = PublishedNetwork(ema, mask_id=4).all_logits(inputs)
    assert torch.equal(logits.isfinite(), expected.isfinite())
    assert float((logits - expected)[expected.isfinite()].abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "bert", "own"])
def test_generate_prints_text(
    tmp_path: Path, quick: None, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A prompt is text, not a sentence with [CLS] and [SEP] around it."""
    prompt = "the cat sat"
    if kind == "own":
        directory = make_tokenizer(tmp_path / "tokenizer")
        rows = load_tokenizer(directory).info.vocab_size
    else:
        tokenizer: Any = like_bert() if kind == "bert" else like_gpt2()
        directory = saved(tokenizer, tmp_path / kind)
        rows = tokenizer.vocab_size + (kind == "gpt2")
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], rows)
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(), directory)
    capfd.readouterr()
    load_tokenizer(tmp_path / "out" / "bundle")
    bundle = load_bundle(tmp_path / "out" / "bundle")
    said = "".join(capfd.readouterr())
    assert "custom code" not in said
    assert "of type `esolm`" not in said
    result = generate(bundle, Request(prompt=prompt, length=LENGTH, num_steps=2, num_samples=2))
    assert bundle.tokenizer is not None
    ids = bundle.tokenizer.encode(prompt)
    assert result.sequences[:, : len(ids)].tolist() == [ids] * 2
    for text in result.texts:
        assert text.startswith(prompt)
        assert text != " ".join(map(str, result.sequences[0].tolist()))


@pytest.mark.check
def test_tokenizer_of_our_own(tmp_path: Path) -> None:
    directory = make_tokenizer(tmp_path / "tokenizer")
    info = load_tokenizer(directory).info
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], info.vocab_size)
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(), directory)
    reader = CheckpointReader(tmp_path / "out")
    assert reader.model.mask_id == info.mask_id
    assert reader.manifest.run["tokenizer"] == info.fingerprint
    assert reader.tokenizer_path == tmp_path / "out" / "tokenizer"
    assert (tmp_path / "out" / "bundle" / "tokenizer.model").is_file()


@pytest.mark.parametrize("kind", ["gpt2", "own"])
def test_another_vocabulary_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "own":
        directory = make_tokenizer(tmp_path / "tokenizer")
    else:
        directory = saved(like_gpt2(), tmp_path / "gpt2")
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"])
    with pytest.raises(ImportCheckpointError, match=r"has a vocabulary of .* has 13: give the"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(), directory)
    assert not (tmp_path / "out").exists()


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    from esolm.data_prep.errors import DataError

    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no tokenizer"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(), tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="transformers, which cannot load it"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options(), tmp_path / "empty")


AR_BOS = System("ar_bos", {"name": "ar", "prepend_token": "bos"}, adaln=False)


@pytest.mark.parametrize("told", ["gpt2", "bert", "--bos-id"])
@pytest.mark.parametrize("system", [AR_BOS, SYSTEMS["bd3lm"]], ids=["ar", "bd3lm"])
def test_bos_is_known_without_a_tokenizer(
    tmp_path: Path, quick: None, told: str, system: System
) -> None:
    """By the pickled tokenizer, [CLS] in that of BERT, or by option: samples begin there."""
    changes, options, rows, bos_id = {}, Options(bos_id=5), 13, 5
    if told != "--bos-id":
        tokenizer: Any = like_bert() if told == "bert" else like_gpt2()
        changes, options = {"tokenizer": tokenizer}, Options()
        rows = tokenizer.vocab_size + (told == "gpt2")
        bos_id = tokenizer.cls_token_id if told == "bert" else tokenizer.bos_token_id
    published.save(tmp_path / "a.ckpt", system, rows, **changes)
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", options)
    bundle = tmp_path / "out" / "bundle"
    config = json.loads((bundle / "config.json").read_text())
    assert config["bos_token_id"] == bos_id
    assert config["prepend_token_id"] == (bos_id if system is AR_BOS else None)
    written = generate(load_bundle(bundle), Request(num_samples=2)).sequences
    if system is AR_BOS:
        objective = open_subject(bundle, None, torch.device("cpu")).objective
        assert objective == AutoRegressive(prepend_id=bos_id)
    else:
        assert written[:, 0].tolist() == [bos_id] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(bos_id=12), "one of the 13 rows, and not the mask"),
        (Options(bos_id=13), "one of the 13 rows"),
        (Options(bos_id=-1), "one of the 13 rows"),
    ],
)
def test_bos_that_is_no_token(tmp_path: Path, options: Options, message: str) -> None:
    published.save(tmp_path / "a.ckpt", AR_BOS)
    with pytest.raises(ImportCheckpointError, match=message):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", options)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_tokenizer_pickled_in_the_file_tells_the_mask(
    tmp_path: Path, quick: None, kind: str
) -> None:
    tokenizer: Any = like_bert() if kind == "bert" else like_gpt2()
    rows = tokenizer.vocab_size + (kind == "gpt2")
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], rows, tokenizer=tokenizer)
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert report.network.model.mask_id == (4 if kind == "bert" else rows - 1)
    assert not list((tmp_path / "out" / "bundle").glob("tokenizer*.json"))
    with pytest.raises(ImportCheckpointError, match="mask id is unclear: 7 by --mask-id"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "other", Options(mask_id=7))


def test_bos_in_front_without_a_tokenizer(tmp_path: Path, quick: None) -> None:
    """The bundle then asks for what is missing, and never is the bundle of another objective."""
    tokenizer = like_gpt2()
    published.save(tmp_path / "a.ckpt", AR_BOS, tokenizer.vocab_size + 1)
    report = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert any("begin prompts with it" in note for note in report.notes)
    assert CheckpointReader(tmp_path / "out").objective["prepend"] == "bos"
    assert verify_bundle(tmp_path / "out" / "bundle")["objective"]["prepend"] == "bos"
    for path in (tmp_path / "out", tmp_path / "out" / "bundle"):
        with pytest.raises(ConfigError, match="bos in front: name its --tokenizer"):
            open_subject(path, None, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"does not know its bos.*--bos-id"):
        generate(load_bundle(tmp_path / "out" / "bundle"), Request())
    with pytest.raises(ExportError, match="give its --tokenizer"):
        export(tmp_path / "out", tmp_path / "again")
    directory = saved(tokenizer, tmp_path / "gpt2")
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "with", Options(), directory)
    found = [
        json.loads((tmp_path / name / "bundle" / "config.json").read_text())["prepend_token_id"]
        for name in ("out", "with")
    ]
    assert found == [None, tokenizer.bos_token_id]
