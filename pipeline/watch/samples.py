"""Samples texts of a run's newest checkpoint and shows the order in which tokens were written."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from esolm.data_prep.progress import phase
from esolm.data_prep.tokenizers import Tokenizer, load_tokenizer
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.export.consolidate import load_tensors
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.writer import bundle_config, load_model
from esolm.pipeline.generate import DecodingProgress, Request, decoding_device

PROMPT = -1


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that one pass wrote.

    number: the number of the pass, or PROMPT for what was given. parallel: whether passes of its
    phase write several tokens at once, as diffusion steps do.
    """

    text: str
    number: int
    parallel: bool


@dataclass(frozen=True)
class Samples:
    """The texts that a checkpoint wrote.

    texts: each text as its pieces from left to right. nfe: the number of forward passes.
    """

    step: int
    nfe: int
    texts: list[list[Piece]]


def sample_run(path: Path, weights: str, request: Request) -> Samples:
    """Writes samples with the weights of a checkpoint, folded as an export folds them.

    path: a run directory or one checkpoint. Raises ConfigError for what cannot be decoded.
    """
    with phase(f"read {path}"):
        reader, tokenizer, model = _load(path, weights)
    prompt = None
    if request.prompt:
        ids = tokenizer.encode(request.prompt, recognise_specials=True)
        prompt = torch.tensor([ids] * request.num_samples)
    options = {"length": reader.seq_len, "alpha_0": reader.objective.get("alpha_0", 1.0)}
    try:
        with DecodingProgress() as progress:
            options = {
                **options,
                **request.options(),
                "streamer": progress,
                "return_dict_in_generate": True,
            }
            output = model.generate(prompt, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = (output.sequences, output.order, output.counts.T, output.num_diffusion)
    rows = zip(*(each.tolist() for each in found), strict=True)
    texts = [pieces(tokenizer, *row) for row in rows]
    return Samples(reader.step, output.nfe, texts)


def _load(path: Path, weights: str) -> tuple[CheckpointReader, Tokenizer, Any]:
    reader = CheckpointReader(path)
    if reader.tokenizer_path is None:
        raise ConfigError(f"{path} carries no tokenizer")
    tokenizer = load_tokenizer(reader.tokenizer_path)
    model = load_model(
        bundle_config(reader, tokenizer), fold(load_tensors(reader, weights), reader.model)
    )
    return reader, tokenizer, model.to(decoding_device())


def pieces(
    tokenizer: Tokenizer, ids: list[int], order: list[int], counts: list[int], num_parallel: int
) -> list[Piece]:
    """Cuts one text into pieces.

    order: the positions as they were written, those that were given first. counts: how many tokens
    each pass wrote. num_parallel: how many passes belong to the diffusion phase, which comes first.
    """
    given = len(order) - sum(counts)
    passes = [PROMPT] * len(ids)
    written = given
    for number, count in enumerate(counts):
        for position in order[written : written + count]:
            passes[position] = number
        written += count
    found, end = [], 0
    text = tokenizer.decode(ids)
    start = 0
    for number, group in groupby(passes):
        end += len(list(group))
        # Each piece is decoded from the start: a token's text depends on what stands in front.
        stop = len(tokenizer.decode(ids[:end])) if end < len(ids) else len(text)
        found.append(Piece(text[start:stop], number, 0 <= number < num_parallel))
        start = max(start, stop)
    return found


def marked(text: list[Piece]) -> str:
    """Returns plain text in which each piece of the parallel phase stands as ⟨number|piece⟩."""
    return "".join(f"⟨{p.number}|{p.text}⟩" if p.parallel else p.text for p in text)


def write_to_tensorboard(samples: Samples, folder: Path) -> None:
    """Writes the texts to a folder of their own: TensorBoard reads only the newest file of each."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as events:
        for number, text in enumerate(samples.texts):
            # Four spaces make it a block of code in the Markdown that TensorBoard shows.
            shown = "\n".join(f"    {line}" for line in marked(text).splitlines())
            events.add_text(f"sample_{number}", shown, samples.step)
