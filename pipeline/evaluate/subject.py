"""The network that is measured, behind one function, wherever it comes from."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from esolm.data_prep.tokenizers import Tokenizer, has_tokenizer, load_tokenizer
from esolm.model.likelihood import Logits
from esolm.model.objectives import Objective, VocabularyIds, objective_kind
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.data.index import CONTINUOUS
from esolm.pipeline.errors import CheckpointError, ConfigError
from esolm.pipeline.export.consolidate import load_tensors
from esolm.pipeline.export.manifest import NAME as BUNDLE_RECORD


@dataclass(frozen=True)
class Subject:
    """A trained network in fp32, with what is known of it.

    logits: the function through which `esolm.model.likelihood` reads the network. fingerprint: that
    of the tokenizer that it was trained with, or None if that is not known. tokenizer: None if the
    network comes without one. packing: `data.packing` of its training, as far as that is known.
    """

    path: Path
    kind: str
    step: int
    weights: str
    logits: Logits
    objective: Objective
    seq_len: int
    vocab_size: int
    mask_id: int
    fingerprint: str | None
    tokenizer: Tokenizer | None
    packing: str = CONTINUOUS

    def check_vocabulary(
        self, path: Path, num_rows: int, mask_id: int, fingerprint: str | None
    ) -> None:
        """Raises ConfigError unless a tokenizer or dataset has the ids of the network.

        path: where the tokenizer or dataset lies. num_rows: the rows of a network with its
        vocabulary. fingerprint: None if it tells nothing.
        """
        known = self.fingerprint
        differs = bool(known) and fingerprint not in (None, known)
        if differs or mask_id != self.mask_id or num_rows > self.vocab_size:
            raise ConfigError(
                f"{path} has another vocabulary ({num_rows} ids, mask {mask_id}, tokenizer "
                f"{(fingerprint or 'not known')[:12]}) than {self.path} ({self.vocab_size} ids, "
                f"mask {self.mask_id}, tokenizer {(known or 'not known')[:12]})"
            )


def open_subject(
    path: Path, weights: str | None, device: torch.device, tokenizer: Path | None = None
) -> Subject:
    """Opens the newest checkpoint of a run directory, one checkpoint directory, or a bundle.

    weights: `ema` (the default) or `raw`; a bundle has only one kind. tokenizer: a directory to use
    in place of the network's own, with the same ids. Raises CheckpointError, ExportError, DataError
    or ConfigError.
    """
    if (path / BUNDLE_RECORD).is_file():
        subject = _open_bundle(path, weights, device, tokenizer)
    elif path.exists():
        subject = _open_checkpoint(path, weights or "ema", device, tokenizer)
    else:
        raise CheckpointError(f"{path} does not exist; name a run, a checkpoint or a bundle")
    if tokenizer is not None and subject.tokenizer is not None:
        given = subject.tokenizer.vocabulary
        subject.check_vocabulary(tokenizer, given.num_rows, given.mask_id, given.identity)
    return subject


def _open_checkpoint(
    path: Path, weights: str, device: torch.device, tokenizer: Path | None
) -> Subject:
    """Opens a checkpoint as the training network, which is whole in this process."""
    from esolm.pipeline.parallel.single import load_network, whole_network

    reader = CheckpointReader(path)
    directory = tokenizer or reader.tokenizer_path
    loaded = load_tokenizer(directory) if directory else None
    network = load_network(reader.model, load_tensors(reader, weights), whole_network()).to(device)
    bos_id, eos_id = (
        (loaded.vocabulary.bos_id, loaded.vocabulary.eos_id) if loaded else (None, None)
    )
    ids = VocabularyIds(reader.model.vocab_size, reader.model.mask_id, bos_id, eos_id)
    return Subject(
        path=reader.directory,
        kind="checkpoint",
        step=reader.step,
        weights=weights,
        logits=network.all_logits,
        objective=objective_of(reader.objective, ids),
        seq_len=reader.seq_len,
        vocab_size=reader.model.vocab_size,
        mask_id=reader.model.mask_id,
        fingerprint=reader.manifest.run.get("tokenizer"),
        tokenizer=loaded,
        packing=reader.packing,
    )


def _open_bundle(
    path: Path, weights: str | None, device: torch.device, tokenizer: Path | None
) -> Subject:
    from esolm.pipeline.export.gate_network import bundle_logits
    from esolm.pipeline.export.manifest import verify_bundle
    from esolm.pipeline.export.writer import read_model

    record = verify_bundle(path)
    if weights not in (None, record["weights"]):
        raise ConfigError(f"{path} holds {record['weights']} weights, not {weights}")
    directory = tokenizer or (path if has_tokenizer(path) else None)
    loaded = load_tokenizer(directory) if directory else None
    model = read_model(path, torch.float32).to(device)
    config = model.config
    bos_id = loaded.vocabulary.bos_id if loaded else config.bos_token_id
    eos_id = loaded.vocabulary.eos_id if loaded else config.eos_token_id
    ids = VocabularyIds(config.vocab_size, config.mask_token_id, bos_id, eos_id)
    return Subject(
        path=path,
        kind="bundle",
        step=record["step"],
        weights=record["weights"],
        logits=partial(bundle_logits, model),
        objective=objective_of(record["objective"], ids),
        seq_len=record["seq_len"],
        vocab_size=config.vocab_size,
        mask_id=config.mask_token_id,
        fingerprint=record.get("tokenizer"),
        tokenizer=loaded,
        packing=record.get("packing", CONTINUOUS),
    )


def objective_of(stored: dict[str, Any], ids: VocabularyIds) -> Objective:
    """Returns the objective that a checkpoint or bundle says it was trained with.

    Raises ConfigError if that objective cannot be built.
    """
    try:
        return objective_kind(stored["name"]).build(stored, ids)
    except ValueError as error:
        raise ConfigError(f"the network's objective cannot be had: {error}") from error


def with_alpha_0(objective: Objective, alpha_0: float | None) -> Objective:
    """Returns the same objective at another share of diffusion, or as it is for None.

    Raises ConfigError if the share is out of range or the objective has no such choice.
    """
    if alpha_0 is None:
        return objective
    if not 0.0 <= alpha_0 <= 1.0:
        raise ConfigError(f"--alpha-0 is {alpha_0}; it must lie in [0, 1]")
    changed = objective.at_alpha_0(alpha_0)
    if changed is None:
        raise ConfigError("--alpha-0 goes with networks trained as an Eso-LM")
    return changed
