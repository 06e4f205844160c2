"""Files that are damaged or incomplete: one clear error each, and nothing is left behind."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.importer.importing import import_checkpoint
from esolm.pipeline.importer.recognise import Options
from tests.pipeline.importer import published
from tests.pipeline.importer.published import SYSTEMS

SYSTEM = SYSTEMS["esolm_b"]
FIRST_EMA = "ema.shadow_params 'backbone.vocab_embed.embedding'"


def refused(tmp_path: Path, message: str) -> None:
    with pytest.raises(ImportCheckpointError, match=message) as caught:
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert "a.ckpt" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["a.ckpt"])


def save(tmp_path: Path, change: Any) -> None:
    """A checkpoint after `change(content)`."""
    raw, ema = (published.random_weights(True, seed) for seed in (1, 2))
    content = published.checkpoint(SYSTEM, raw, ema, published.configuration(SYSTEM))
    change(content)
    torch.save(content, tmp_path / "a.ckpt")


def put(key: str, value: Tensor) -> Any:
    return lambda content: content["state_dict"].update({key: value})


def put_average(index: int, value: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["ema"]["shadow_params"][index] = value

    return change


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_file_that_was_cut_short(tmp_path: Path, share: float) -> None:
    save(tmp_path, lambda content: None)
    content = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(content[: int(share * len(content))])
    refused(tmp_path, "no zip archive, or was cut short")


def test_file_that_is_missing(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be opened")


def test_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("not a checkpoint")
    refused(tmp_path, "no zip archive")
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as file:
        file.writestr("text.txt", "not a checkpoint")
    refused(tmp_path, r"has no data\.pkl")
    torch.save([1, 2], tmp_path / "a.ckpt")
    refused(tmp_path, "no Lightning checkpoint")
    torch.save({"state_dict": {"weight": "text"}}, tmp_path / "a.ckpt")
    refused(tmp_path, "no Lightning checkpoint")


def test_one_flipped_byte_of_a_weight(tmp_path: Path) -> None:
    save(tmp_path, lambda content: None)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as file:
        entry = max(file.infolist(), key=lambda each: each.file_size)
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    content[entry.header_offset + 1000] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)
    refused(tmp_path, "is damaged in record")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["state_dict"].pop("backbone.blocks.1.norm2.weight"),
            r"1 missing, 0 unknown.*lacks 'backbone\.blocks\.1\.norm2\.weight'",
        ),
        (
            lambda content: content["state_dict"].pop("backbone.vocab_embed.embedding"),
            "vocab_embed.embedding",
        ),
        (put("backbone.extra", torch.zeros(3)), r"0 missing, 1 unknown.*has 'backbone\.extra'"),
        (
            put("backbone.blocks.0.attn_out.weight", torch.zeros(32, 31)),
            r"\[32, 31\] at state_dict 'backbone.blocks.0.attn_out.weight'.*\[32, 32\]",
        ),
        (
            put("backbone.blocks.0.norm1.weight", torch.full((32,), torch.nan)),
            "32 values that are NaN or infinite at state_dict 'backbone.blocks.0.norm1.weight'",
        ),
        (put_average(0, torch.full((13, 32), torch.inf)), f"416 values that.*{FIRST_EMA}"),
        (put_average(0, torch.zeros(32, 13)), rf"\[32, 13\] at {FIRST_EMA}.*\[13, 32\]"),
        (put_average(0, "text"), f"no tensor at {FIRST_EMA}"),
        (lambda content: content["ema"]["shadow_params"].pop(), "has 29 averaged tensors.* 30"),
        (lambda content: content.update(ema={}), "no list 'shadow_params'"),
        (put("backbone.rotary_emb.inv_freq", torch.rand(4)), "no rotary frequencies"),
        (put("backbone.rotary_emb.inv_freq", published.inv_freq(16)), "number of heads is unclear"),
        (put("sampling_eps_min", torch.zeros(2)), "a single number is due"),
        (put("backbone._orig_mod.blocks.0.norm1.weight", torch.zeros(32)), "same key twice"),
    ],
)
def test_content_that_does_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    save(tmp_path, change)
    refused(tmp_path, message)


def test_directory_that_is_not_empty(tmp_path: Path) -> None:
    save(tmp_path, lambda content: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ImportCheckpointError, match="not empty"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_gate_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from esolm.pipeline.errors import ExportError
    from esolm.pipeline.export import gate

    def fail(*_: Any) -> None:
        raise ExportError("reload: no")

    monkeypatch.setattr(gate, "check_reload", fail)
    save(tmp_path, lambda content: None)
    with pytest.raises(ExportError, match="reload: no"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
