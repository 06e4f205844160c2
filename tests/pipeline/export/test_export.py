"""Whole exports: what a bundle holds, what the gate refuses, and that nothing is left behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from esolm.pipeline.errors import ConfigError, ExportError
from esolm.pipeline.export import export as exporting
from esolm.pipeline.export import gate, gate_network
from esolm.pipeline.export.export import export_source
from esolm.pipeline.export.manifest import verify_bundle
from esolm.pipeline.export.writer import read_model
from tests.pipeline.blind_cache import blind_to_the_first_slot
from tests.pipeline.export.conftest import MODELS, RandomSource


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fresh process, which takes seconds and has tests of its own."""
    monkeypatch.setattr(gate, "check_reload", lambda *_: ({}, {}))


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.check)])
def test_full_gate(paper_source: Any, tmp_path: Path, dtype: str) -> None:
    report = export_source(paper_source, tmp_path / "bundle", dtype=dtype)
    assert list(report.gate) == ["coverage", "logit_parity", "decoding", "reload", "tokenizer"]
    assert report.gate["coverage"]["training_tensors"] == len(paper_source.tensors("ema"))
    assert max(report.gate["logit_parity"]["largest_difference"].values()) < 1e-5
    rounding = report.gate["logit_parity"]["rounding"]
    assert rounding > 1e-4 if dtype == "bf16" else rounding == 0.0
    told = f"{rounding:.1e} more by rounding to bf16"
    assert (told in report.accuracy) == (dtype == "bf16")
    assert report.gate["reload"]["network"] == "EsoLMForMaskedLM"
    assert report.gate["tokenizer"]["documents"] == 100
    record = verify_bundle(tmp_path / "bundle")
    assert (record["step"], record["weights"], record["dtype"]) == (7, "ema", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["dtype"] == {"bf16": "bfloat16", "fp32": "float32"}[dtype]
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM",
    }  # fmt: skip


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "ar", "prepend": "none"},
        {"name": "ar", "prepend": "mask"},
        {"name": "esolm", "variant": "A", "alpha_0": 0.5},
        {"name": "mdlm"},
        {"name": "bd3lm", "block_size": 8},
        {"name": "bd3lm", "block_size": 3, "keep_first": False},
    ],
)
def test_every_objective(
    modern_source: Any, tmp_path: Path, quick: None, objective: dict[str, Any]
) -> None:
    """MDLM has no cache to be tested."""
    modern_source.objective = objective
    report = export_source(modern_source, tmp_path / "bundle", dtype="fp32")
    assert report.gate["decoding"]["schedules"] == (0 if objective["name"] == "mdlm" else 5)
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config.get("block_size") == objective.get("block_size")
    assert config["keep_first"] == (objective.get("block_size") == 8)
    modes = {path.stat().st_mode for path in (tmp_path / "bundle").iterdir()}
    assert len(modes) == 1, "who may read one file may read the bundle"


@pytest.mark.check
@pytest.mark.parametrize(
    "objective",
    [
        {"name": "esolm", "variant": "A", "alpha_0": 0.5},
        {"name": "mdlm"},
        {"name": "bd3lm", "block_size": 8},
    ],
    ids=["esolm_a", "mdlm", "bd3lm"],
)
def test_reload_writes_the_same_tokens(
    modern_source: Any, tmp_path: Path, objective: dict[str, Any]
) -> None:
    """In a fresh process, by the code in the bundle: its relative imports find each other there."""
    modern_source.objective = objective
    report = export_source(modern_source, tmp_path / "bundle")
    assert report.gate["reload"]["network"] == "EsoLMForMaskedLM"


@pytest.mark.parametrize(("prepend", "expected"), [("none", None), ("mask", 3), ("bos", 1)])
def test_token_in_front(
    paper_source: Any, tmp_path: Path, quick: None, prepend: str, expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paper_source.objective = {"name": "ar", "prepend": prepend}
    export_source(paper_source, tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["prepend_token_id"] == expected
    paper_source.tokenizer_path = None
    if prepend == "bos":
        monkeypatch.setattr(exporting, "open_source", lambda _: paper_source)
        with pytest.raises(ExportError, match="give its --tokenizer"):
            exporting.export("a run", tmp_path / "other")


def test_a_tied_bundle_holds_the_weight_once(tmp_path: Path) -> None:
    """The whole gate, a fresh process included; AutoModel ties the two layers again."""
    source = RandomSource(MODELS["tied"])
    export_source(source, tmp_path / "bundle", dtype="fp32")
    with safe_open(tmp_path / "bundle" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["tie_word_embeddings"]
    model = read_model(tmp_path / "bundle")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    embedding = source.tensors("ema")["embedding.tokens.weight"]
    assert torch.equal(model.lm_head.weight, embedding)


@pytest.mark.check
def test_reload_without_tokenizer(modern_source: Any, tmp_path: Path) -> None:
    report = export_source(modern_source, tmp_path / "bundle")
    assert report.gate["tokenizer"]["documents"] == 0
    assert not (tmp_path / "bundle" / "tokenizer.model").exists()


def test_documents_of_the_dataset(
    paper_source: Any, tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents are cut out of the token stream at each eos."""
    from esolm.data_prep.tokenizers import load_tokenizer
    from esolm.pipeline.data import dataset
    from esolm.pipeline.export.gate_reload import _documents

    tokenizer = load_tokenizer(tokenizer_directory)
    texts = ["import json\n", "", "def f():\n    return 1"]
    stream = [token for text in texts for token in (*tokenizer.encode(text), 2)]

    class Stream:
        num_tokens, eos_id = len(stream), 2

        def __init__(self, *_: Any) -> None: ...

        def read(self, start: int, length: int) -> Any:
            return torch.tensor(stream[start : start + length]).numpy()

    monkeypatch.setattr(dataset, "TokenDataset", Stream)
    paper_source.data_path = tmp_path
    assert _documents(paper_source, tokenizer) == [*texts, ""]


def test_raw_weights_differ_and_hashes_repeat(
    modern_source: Any, tmp_path: Path, quick: None
) -> None:
    names = ("first", "second", "raw")
    for name in names:
        export_source(modern_source, tmp_path / name, weights="raw" if name == "raw" else "ema")
    first, second, raw = (verify_bundle(tmp_path / name)["files"] for name in names)
    assert first == second
    assert first["model.safetensors"] != raw["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "export.json", "README.md"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_byte_fails(
    modern_source: Any, tmp_path: Path, quick: None, name: str, place: float
) -> None:
    export_source(modern_source, tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExportError, match=name):
        verify_bundle(tmp_path / "bundle")


def test_missing_and_foreign_files_fail(modern_source: Any, tmp_path: Path, quick: None) -> None:
    export_source(modern_source, tmp_path / "bundle")
    (tmp_path / "bundle" / "README.md").rename(tmp_path / "bundle" / "other.py")
    with pytest.raises(ExportError, match=r"README.md is missing; other.py is not of the bundle"):
        verify_bundle(tmp_path / "bundle")
    with pytest.raises(ExportError, match="is no bundle"):
        verify_bundle(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.output.weight", torch.nan, "coverage: 'head.output.weight' holds 1"),
        ("head.output.weight", None, "coverage: the checkpoint has no tensor"),
    ],
)
def test_bad_checkpoint_leaves_nothing(
    modern_source: Any, tmp_path: Path, name: str, value: float | None, message: str
) -> None:
    if value is None:
        del modern_source._tensors[name]
    else:
        modern_source._tensors[name][0, 0] = value
    with pytest.raises(ExportError, match=message):
        export_source(modern_source, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def alter_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    original = gate_network.training_logits
    monkeypatch.setattr(
        gate_network, "training_logits", lambda *a: [x * 1.001 for x in original(*a)]
    )


def alter_stored_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    original = exporting.write_bundle

    def write(directory: Path, source: Any, model: Any, tokenizer: Any) -> None:
        model.lm_head.weight.data[0, 0] += 1
        original(directory, source, model, tokenizer)

    monkeypatch.setattr(exporting, "write_bundle", write)


def alter_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the code in the bundle needed the training packages."""
    original = exporting.write_bundle

    def write(directory: Path, *args: Any) -> None:
        original(directory, *args)
        path = directory / "modeling_esolm.py"
        path.write_text("import esolm.model.network\n" + path.read_text())

    monkeypatch.setattr(exporting, "write_bundle", write)


def test_a_wrong_cache_of_blocks_is_found(
    modern_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a block saw one slot less of what is cached."""
    blind_to_the_first_slot(monkeypatch)
    modern_source.objective = {"name": "bd3lm", "block_size": 4}
    with pytest.raises(ExportError, match=r"decoding: .* tokens differ"):
        export_source(modern_source, tmp_path / "bundle", dtype="fp32")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (alter_logits, "logit parity: .* in pattern"),
        (alter_stored_weights, "coverage: 'lm_head.weight' was not stored as computed"),
        (blind_to_the_first_slot, "decoding: .* tokens differ"),
        (alter_code, "reload: a fresh process cannot load"),
    ],
)
def test_failed_gate_leaves_nothing(
    modern_source: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    message: str,
) -> None:
    damage(monkeypatch)
    with pytest.raises(ExportError, match=message):
        export_source(modern_source, tmp_path / "bundle", dtype="fp32")
    assert not list(tmp_path.iterdir())


def test_existing_output(modern_source: Any, tmp_path: Path, quick: None) -> None:
    out = tmp_path / "bundle"
    export_source(modern_source, out)
    with pytest.raises(ExportError, match="--overwrite"):
        export_source(modern_source, out)
    assert verify_bundle(out)["dtype"] == "bf16"
    export_source(modern_source, out, dtype="fp32", overwrite=True)
    assert verify_bundle(out)["dtype"] == "fp32"
    modern_source._tensors["head.output.weight"][0, 0] = torch.nan
    with pytest.raises(ExportError, match="coverage"):
        export_source(modern_source, out, overwrite=True)
    assert verify_bundle(out)["dtype"] == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_bundle_is_not_overwritten(modern_source: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("five years")
    with pytest.raises(ExportError, match="no bundle"):
        export_source(modern_source, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("wrong", [{"weights": "best"}, {"dtype": "int8"}])
def test_unknown_options(modern_source: Any, tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="is unknown; choose of"):
        export_source(modern_source, tmp_path / "bundle", **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"mask_id": 5}, {"vocab_size": 421}])
def test_a_tokenizer_of_another_network(
    tokenizer_directory: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    source = RandomSource(replace(MODELS["modern"], **change))
    with pytest.raises(ExportError, match="not the tokenizer that the network was trained with"):
        export_source(source, tmp_path / "bundle", tokenizer=tokenizer_directory)
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_of_another_bundle(
    modern_source: Any, tokenizer_directory: Path, tmp_path: Path, quick: None
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    export_source(modern_source, first, tokenizer=tokenizer_directory)
    export_source(modern_source, second, tokenizer=first)
    assert verify_bundle(second)["tokenizer"] == verify_bundle(first)["tokenizer"]
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
