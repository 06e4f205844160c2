"""Reads the network, the objective and the states of training from a published file."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.importer import published, recognise
from esolm.pipeline.importer.checkpoint_file import PublishedFile
from esolm.pipeline.importer.recognise import Options, Reading
from esolm.pipeline.importer.stored_config import stored_bos_id, stored_mask_id
from esolm.pipeline.run.sections import ObjectiveSection

DEFAULT_LENGTH = 1024
# The tokenizer of the paper that has a mask token of its own: name, vocabulary size, mask id.
OWN_MASK = ("bert-base-uncased", 30522, 103)


@dataclass(frozen=True)
class StoredNetwork:
    """What a file holds.

    weights, ema, moments: the states of training by name; ema and moments are None if the file has
    none. bos_id: what the tokenizer in the file or the option says; None if neither does.
    """

    step: int
    model: ModelConfig
    objective: ObjectiveSection
    seq_len: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    moments: dict[str, dict[str, Tensor]] | None
    notes: list[str]
    bos_id: int | None = None


def read_network(
    file: PublishedFile, options: Options, tokenizer_mask: int | None
) -> StoredNetwork:
    """Reads and checks everything that a file holds.

    tokenizer_mask: the row of the mask according to a tokenizer that the user gave. Raises
    ImportCheckpointError, which names the file.
    """
    reading = Reading(file.config, options)
    try:
        objective, model, seq_len = _describe(file, reading, tokenizer_mask)
        bos_id = _bos_id(file, options, model)
    except ImportCheckpointError as error:
        text = str(error)
        raise (
            error if str(file.archive.path) in text else file.problem(f"cannot be used: {text}")
        ) from None
    weights, ema = file.weights(model), file.ema(model)
    moments, origin = file.moments(model)
    reading.notes.append(f"moments: {origin}")
    if ema is None:
        if options.weights == "ema":
            raise file.problem("holds no averaged weights ('ema'); pass --weights raw")
        reading.notes.append("ema: the raw weights (the file holds no average)")
    return StoredNetwork(
        file.step, model, objective, seq_len, weights, ema, moments, reading.notes, bos_id
    )


def _describe(
    file: PublishedFile, reading: Reading, tokenizer_mask: int | None
) -> tuple[ObjectiveSection, ModelConfig, int]:
    shapes, options = file.shapes(), reading.options
    rope_base = published.ROPE_BASE
    head_dim = None
    if published.ROTARY in file.tensors:
        inv_freq = file.archive.read(file.tensors[published.ROTARY])
        if inv_freq.dim() != 1 or not len(inv_freq):
            raise ImportCheckpointError(f"its '{published.ROTARY}' holds no rotary frequencies")
        rope_base, head_dim = published.rope_base_of(inv_freq), 2 * len(inv_freq)
    embedding = shapes.get("backbone.vocab_embed.embedding", ())
    rows, size = embedding if len(embedding) == 2 else (1, 1)
    model = published.architecture(
        shapes,
        _num_heads(reading, size, head_dim),
        _mask_id(file, reading, rows, tokenizer_mask),
        rope_base,
    )
    clips = {key: value for key in published.CLIPS if (value := file.scalar(key)) is not None}
    name = recognise.objective_name(reading, model.adaln, bool(clips))
    objective = recognise.objective_of(reading, name, clips)
    seq_len = reading.value("model.length", "--length", options.seq_len, DEFAULT_LENGTH)
    if seq_len < 1:
        raise ImportCheckpointError(f"its length is {seq_len}")
    if name == "bd3lm" and seq_len % objective.block_size:
        raise ImportCheckpointError(
            f"its length {seq_len} does not divide by its block size {objective.block_size}"
        )
    return objective, _with_dropout(model, reading), seq_len


def _with_dropout(model: ModelConfig, reading: Reading) -> ModelConfig:
    dropout = reading.config.number("model.dropout")
    return replace(model, dropout=dropout) if dropout is not None and 0 <= dropout < 1 else model


def _num_heads(reading: Reading, size: int, head_dim: int | None) -> int:
    """Returns the number of heads by the rotary buffer, the configuration or the option.

    The shapes of the weights do not tell it. Raises ImportCheckpointError if none of these tells
    it, or if they disagree.
    """
    stored, given = reading.config.count("model.n_heads"), reading.options.num_heads
    by_rotary = size // head_dim if head_dim and size % head_dim == 0 else None
    known = {
        f"{count} by {source}": count
        for source, count in {
            "model.n_heads": stored, "--num-heads": given, "the rotary buffer": by_rotary
        }.items()
        if count is not None
    }  # fmt: skip
    if not known:
        raise ImportCheckpointError("the number of heads is not stored in it: pass --num-heads")
    if len(set(known.values())) > 1:
        raise ImportCheckpointError(f"its number of heads is unclear: {', '.join(known)}")
    return next(iter(known.values()))


def _mask_id(file: PublishedFile, reading: Reading, rows: int, tokenizer_mask: int | None) -> int:
    """Returns the row of the mask: the last one, unless the tokenizer has a mask of its own."""
    found: dict[str, Any] = {
        "--mask-id": reading.options.mask_id,
        "--tokenizer": tokenizer_mask,
        "the tokenizer in the file": stored_mask_id(file.tokenizer, rows),
    }
    name = str(reading.config.get("data.tokenizer_name_or_path") or "")
    if name.endswith(OWN_MASK[0]) and rows == OWN_MASK[1]:
        found[f"the tokenizer's name {name}"] = OWN_MASK[2]
    mask_id = _agreed("mask id", found)
    return rows - 1 if mask_id is None else mask_id


def _bos_id(file: PublishedFile, options: Options, model: ModelConfig) -> int | None:
    found = {
        "--bos-id": options.bos_id,
        "the tokenizer in the file": stored_bos_id(file.tokenizer, model.vocab_size),
    }
    bos_id = _agreed("bos id", found)
    if bos_id is not None and (not 0 <= bos_id < model.vocab_size or bos_id == model.mask_id):
        raise ImportCheckpointError(
            f"--bos-id is {bos_id}; it must be one of the {model.vocab_size} rows, and not the mask"
        )
    return bos_id


def _agreed(what: str, found: dict[str, Any]) -> int | None:
    """Returns the index on which all known sources agree, or None if no source knows it.

    Raises ImportCheckpointError if they disagree.
    """
    known = {source: index for source, index in found.items() if index is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{index} by {source}" for source, index in known.items())
        raise ImportCheckpointError(f"its {what} is unclear: {told}")
    return next(iter(known.values()), None)
