"""Imports a published checkpoint file as a run directory with one checkpoint, and a bundle."""

import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from esolm.data_prep.files import sha256_of_file, write_json
from esolm.data_prep.progress import phase
from esolm.data_prep.tokenizers import Tokenizer, load_tokenizer
from esolm.model.config import Architecture
from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.export.export import ExportReport, export_source
from esolm.pipeline.importer.checkpoint import ImportedSource, write_checkpoint
from esolm.pipeline.importer.checkpoint_file import PublishedFile
from esolm.pipeline.importer.network import StoredNetwork, read_network
from esolm.pipeline.importer.recognise import Options

RECORD, SETTINGS = "import.json", "config.yaml"
FORMAT = 1


@dataclass(frozen=True)
class ImportReport:
    """What was imported.

    checkpoint, bundle: where they lie. notes: what was assumed, one sentence each.
    """

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

    Raises ImportCheckpointError for a file or options that cannot be imported, DataError for a
    tokenizer that cannot be loaded, and ExportError if the bundle fails its gate. Nothing is left
    behind then.
    """
    problems = options.problems()
    if options.bos_id is not None and tokenizer is not None:
        problems.append("--bos-id and --tokenizer: a tokenizer knows its bos")
    if problems:
        raise ImportCheckpointError("; ".join(problems))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ImportCheckpointError(f"{out} exists and is not empty; choose another --out")
    with PublishedFile(file) as opened:
        given = None if tokenizer is None else load_tokenizer(tokenizer)
        mask = None if given is None else _tokenizer_mask(opened, given)
        network = read_network(opened, options, mask)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    staging.mkdir()
    try:
        report = _write(file, staging, network, options, given)
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
    """Returns the paper's name for the system that a network belongs to."""
    objective = network.objective
    names = {"ar": "AR", "mdlm": "MDLM", "bd3lm": f"BD3-LM (blocks of {objective.block_size})"}
    return names.get(objective.name) or f"Eso-LM ({objective.variant}), alpha_0 {objective.alpha_0}"


def _tokenizer_mask(file: PublishedFile, tokenizer: Tokenizer) -> int:
    """Returns the row that the mask has under a given tokenizer.

    Raises ImportCheckpointError if the tokenizer does not fit the network.
    """
    known = tokenizer.vocabulary
    shape = file.shapes().get("backbone.vocab_embed.embedding", ())
    if shape and shape[0] != known.num_rows:
        mask = "no mask of its own" if known.mask_is_added else f"the mask at {known.mask_id}"
        raise ImportCheckpointError(
            f"{tokenizer.path} has a vocabulary of {known.num_tokens} tokens and {mask}, which "
            f"makes {known.num_rows} rows; the network in {file.archive.path} has {shape[0]}: give "
            "the tokenizer that it was trained with"
        )
    return known.mask_id


def _write(
    file: Path,
    directory: Path,
    network: StoredNetwork,
    options: Options,
    tokenizer: Tokenizer | None,
) -> ImportReport:
    notes = list(network.notes)
    known = None if tokenizer is None else tokenizer.vocabulary
    # The fingerprint is left out if a copy may have another one: a run compares it with that of its
    # dataset, whose copy of the tokenizer may have been saved in another way.
    fingerprint = known.identity if known else None
    with phase("write the checkpoint"):
        checkpoint = write_checkpoint(directory, network, fingerprint or "")
    bos_id = known.bos_id if known else network.bos_id
    if network.objective.prepend == "bos" and bos_id is None:
        notes.append(
            "bos stood in front of every sequence, but which token that is the file does not say: "
            "begin prompts with it, or give --tokenizer or --bos-id"
        )
    if tokenizer is not None:
        tokenizer.save(directory / "tokenizer")
    report = export_source(
        ImportedSource(network), directory / "bundle", options.weights, options.dtype,
        directory / "tokenizer" if tokenizer else None, bos_id=bos_id,
    )  # fmt: skip
    write_json(directory / RECORD, _record(file, network, options, report, notes))
    return ImportReport(
        checkpoint, directory / "bundle", system_name(network), network, report, notes
    )


def _settings(network: StoredNetwork, out: Path) -> str:
    """Returns the settings that `esolm train` needs to go on, except for the data, as YAML."""
    model = {field.name: getattr(network.model, field.name) for field in fields(Architecture)}
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
    """Returns what was imported and from which file, for import.json."""
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
