"""Exports a checkpoint: folds it, writes a bundle, checks it and only then gives it its name."""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esolm.data_prep.progress import phase
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.errors import ConfigError, ExportError
from esolm.pipeline.export.consolidate import Source, load_tensors, open_source
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.gate import run_gate
from esolm.pipeline.export.manifest import write_manifest
from esolm.pipeline.export.writer import DTYPES, bundle_config, load_model, write_bundle

FORMAT = 1


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    bytes: the size of all files. gate: the figures of each check, as in export.json.
    """

    path: Path
    step: int
    weights: str
    dtype: str
    parameters: int
    bytes: int
    gate: dict[str, dict[str, Any]]

    @property
    def accuracy(self) -> str:
        """How far the logits are from the training network's, relative to the largest, in words."""
        parity = self.gate["logit_parity"]
        worst, rounding = max(parity["largest_difference"].values()), parity["rounding"]
        text = f"logits within {worst:.1e} of the training network"
        return f"{text}, and {rounding:.1e} more by rounding to {self.dtype}" if rounding else text


def export(
    checkpoint: str | Path,
    out: Path,
    weights: str = "ema",
    dtype: str = "bf16",
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports the newest valid checkpoint of a run directory or URL, or one checkpoint directory.

    Raises CheckpointError if there is none, and otherwise what `export_source` raises.
    """
    _refuse_existing(out, overwrite)
    source = open_source(checkpoint)
    if source.objective.get("prepend") == "bos" and not (tokenizer or source.tokenizer_path):
        raise ExportError("the network was trained with bos in front: give its --tokenizer")
    return export_source(source, out, weights, dtype, tokenizer, overwrite)


def export_source(
    source: Source,
    out: Path,
    weights: str = "ema",
    dtype: str = "bf16",
    tokenizer: Path | None = None,
    overwrite: bool = False,
    bos_id: int | None = None,
) -> ExportReport:
    """Writes the bundle `out` and returns what it holds.

    weights: `ema` or `raw`. dtype: `bf16` or `fp32`. tokenizer: a tokenizer directory in place of
    the checkpoint's own. bos_id: the id of bos if there is no tokenizer. Raises ExportError, and
    leaves nothing behind, if a check of the gate fails, or if `out` exists and may not be replaced.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown; choose of {', '.join(DTYPES)}")
    _refuse_existing(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        report = _build(source, temporary, out, weights, dtype, tokenizer, bos_id)
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _build(
    source: Source, directory: Path, out: Path, weights: str, dtype: str, tokenizer: Path | None,
    bos_id: int | None,
) -> ExportReport:  # fmt: skip
    folder = tokenizer or source.tokenizer_path
    loaded_tokenizer = load_tokenizer(folder) if folder else None
    config = bundle_config(source, loaded_tokenizer, bos_id)
    with phase("read the weights"):
        tensors = load_tensors(source, weights)
    with phase("fold and write the bundle"):
        model = load_model(config, fold(tensors, source.model, DTYPES[dtype]))
        write_bundle(directory, source, model, loaded_tokenizer)
    gate = run_gate(directory, source, tensors, DTYPES[dtype], loaded_tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record = {
        "format": FORMAT,
        "step": source.step,
        "weights": weights,
        "dtype": dtype,
        "objective": dict(source.objective),
        "seq_len": source.seq_len,
        "packing": source.packing,
        "parameters": parameters,
        "tokenizer": loaded_tokenizer.vocabulary.fingerprint if loaded_tokenizer else None,
        "versions": _versions(),
        "gate": gate,
    }
    with phase("checksums of the bundle"):
        files = write_manifest(directory, record)["files"]
    size = sum(file["bytes"] for file in files.values())
    return ExportReport(out, source.step, weights, dtype, parameters, size, gate)


def _versions() -> dict[str, str]:
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists; remove it, choose another --out, or pass --overwrite")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; it is not overwritten, choose another --out")
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ExportError(f"{out} holds something that is no bundle; it is not overwritten")


def _put_in_place(temporary: Path, out: Path) -> None:
    """Renames directories, so that at every moment `out` is the old bundle, absent, or the new."""
    if not out.exists():
        temporary.rename(out)
        return
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
