"""A published checkpoint file -> a run directory with one checkpoint, and a bundle."""

import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from data_prep.files import sha256_of_file, write_json
from data_prep.tokenizer import copy_tokenizer
from pipeline.errors import ImportCheckpointError
from pipeline.export.export import ExportReport, export_source, load_any_tokenizer
from pipeline.export.foreign_tokenizer import ForeignTokenizer
from pipeline.importer.checkpoint import ImportedSource, write_checkpoint
from pipeline.importer.checkpoint_file import PublishedFile
from pipeline.importer.network import StoredNetwork, read_network
from pipeline.importer.recognise import Options
from pipeline.run.config import ModelSection

if TYPE_CHECKING:
    from pipeline.export.writer import AnyTokenizer

RECORD, SETTINGS = "import.json", "config.yaml"
FORMAT = 1


@dataclass(frozen=True)
class ImportReport:
    """What was imported. checkpoint, bundle: where it lies. notes: what was assumed, in words."""

    checkpoint: Path
    bundle: Path
    system: str
    network: StoredNetwork
    export: ExportReport
    notes: list[str]


def import_checkpoint(
    file: Path, out: Path, options: Options, tokenizer: Path | None = None
) -> ImportReport:
    """Writes OUT: checkpoints/step_N, bundle, config.yaml, import.json and a given tokenizer.

    Raises ImportCheckpointError for a file or options that cannot be imported, ExportError if the
    bundle fails its gate. Then nothing is left behind.
    """
    problems = options.problems()
    if options.bos_id is not None and tokenizer is not None:
        problems.append("--bos-id and --tokenizer: a tokenizer knows its bos")
    if problems:
        raise ImportCheckpointError("; ".join(problems))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ImportCheckpointError(f"{out} exists and is not empty; choose another --out")
    with PublishedFile(file) as opened:
        vocabulary = None if tokenizer is None else load_any_tokenizer(tokenizer)
        mask = _tokenizer_mask(opened, vocabulary, tokenizer)
        network = read_network(opened, options, mask)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    staging.mkdir()
    try:
        report = _write(file, staging, network, options, tokenizer, vocabulary)
        (staging / SETTINGS).write_text(_settings(network, out))
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ImportReport(
        checkpoint=out / report.checkpoint.relative_to(staging),
        bundle=out / "bundle",
        system=report.system,
        network=network,
        export=report.export,
        notes=report.notes,
    )


def system_name(network: StoredNetwork) -> str:
    """What the paper calls it."""
    objective = network.objective
    names = {"ar": "AR", "mdlm": "MDLM", "bd3lm": f"BD3-LM (blocks of {objective.block_size})"}
    return names.get(objective.name) or f"Eso-LM ({objective.variant}), alpha_0 {objective.alpha_0}"


def _tokenizer_mask(
    file: PublishedFile, vocabulary: "AnyTokenizer | None", path: Path | None
) -> int | None:
    """The mask's row by a given tokenizer; raises ImportCheckpointError if it does not fit."""
    if vocabulary is None:
        return None
    size, mask = vocabulary.info.vocab_size, vocabulary.info.mask_id
    rows = size + (mask is None)
    shape = file.shapes().get("backbone.vocab_embed.embedding", ())
    if shape and shape[0] != rows:
        raise ImportCheckpointError(
            f"{path} has a vocabulary of {size} tokens "
            f"{'and no mask of its own' if mask is None else f'with the mask at {mask}'}, which "
            f"makes {rows} rows; the network in {file.archive.path} has {shape[0]}: give the "
            "tokenizer that it was trained with"
        )
    return size if mask is None else mask


def _write(
    file: Path,
    directory: Path,
    network: StoredNetwork,
    options: Options,
    tokenizer: Path | None,
    vocabulary: "AnyTokenizer | None",
) -> ImportReport:
    notes = list(network.notes)
    # The run's is compared with its dataset's. One of transformers is known by its files, and the
    # dataset's may have been saved otherwise.
    own = vocabulary is not None and not isinstance(vocabulary, ForeignTokenizer)
    fingerprint = vocabulary.info.fingerprint if vocabulary is not None and own else ""
    checkpoint = write_checkpoint(directory, network, fingerprint)
    bos_id = network.bos_id if vocabulary is None else vocabulary.info.bos_id
    if network.objective.prepend == "bos" and bos_id is None:
        notes.append(
            "bos stood in front of every sequence, but which token that is the file does not say: "
            "begin prompts with it, or give --tokenizer or --bos-id"
        )
    if tokenizer is not None:
        folder = tokenizer.parent if tokenizer.is_file() else tokenizer
        copy_tokenizer(folder, directory / "tokenizer")
    report = export_source(
        ImportedSource(network), directory / "bundle", options.weights, options.dtype, tokenizer,
        bos_id=bos_id,
    )  # fmt: skip
    write_json(directory / RECORD, _record(file, network, options, report, notes))
    return ImportReport(
        checkpoint, directory / "bundle", system_name(network), network, report, notes
    )


def _settings(network: StoredNetwork, out: Path) -> str:
    """What `esolm train` has to be told to go on, without the data."""
    model = {field.name: getattr(network.model, field.name) for field in fields(ModelSection)}
    settings = {
        "run": {"dir": str(out)},
        "model": model,
        "objective": asdict(network.objective),
        "train": {"seq_len": network.seq_len},
    }
    return OmegaConf.to_yaml(OmegaConf.create(settings))


def _record(
    file: Path, network: StoredNetwork, options: Options, report: ExportReport, notes: list[str]
) -> dict[str, Any]:
    """What was imported from what, for import.json."""
    return {
        "format": FORMAT,
        "file": file.name,
        "sha256": sha256_of_file(file),
        "system": system_name(network),
        "step": network.step,
        "seq_len": network.seq_len,
        "bundle": {"weights": options.weights, "dtype": options.dtype},
        "parameters": report.parameters,
        "has_ema": network.ema is not None,
        "has_moments": network.moments is not None,
        "notes": notes,
    }
