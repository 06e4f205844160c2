"""The micro-batches of any step of a run, made again from the seed and the numbers of its rows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.network import Network
from model.objectives import Objective
from model.objectives.draws import Purpose
from pipeline.checkpoint import commit
from pipeline.checkpoint.listing import list_checkpoints
from pipeline.checkpoint.reader import CheckpointReader
from pipeline.config import RunConfig, load_config
from pipeline.data.dataset import TokenDataset
from pipeline.data.reader import SampleReader
from pipeline.errors import CheckpointError, ConfigError
from pipeline.parallel.engine import MicroBatch
from pipeline.parallel.single import single_process
from pipeline.train.batches import BatchSource
from pipeline.train.experiment import build_objective
from pipeline.train.history import History, Rollback, Start, read_lines
from pipeline.train.run_directory import RunDirectory


@dataclass(frozen=True)
class Place:
    """Where a step's rows are in the data. known_by: the record that says so."""

    first_sample: int
    global_batch_size: int
    known_by: str


@dataclass(frozen=True)
class Row:
    """One row of the global batch. t: its times in the order of the row, empty in a term without.

    sample: its global number, which with the seed keys every draw. predicted: tokens with loss.
    """

    slot: int
    sample: int
    term: str
    t: list[float]
    predicted: int
    tokens: list[int]


@dataclass(frozen=True)
class Replay:
    """A step as it was fed. seed and the sample's number key all draws, purpose by purpose."""

    step: int
    seed: int
    place: Place
    purposes: dict[str, int]
    micro_batches: list[MicroBatch]
    rows: list[Row]


def replay(run: Path, step: int, data: Path | None = None) -> Replay:
    """Step `step` of a run, counted from 1. data: the dataset, where it has moved.

    Raises ConfigError if the run says nothing of such a step, DataError if the dataset is not the
    one that the run was trained on.
    """
    directory = RunDirectory(run)
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is no run directory: it has no config.yaml")
    config = load_config(run / "config.yaml", [])
    place = find_step(directory, config, step)
    source = _source(directory, config, place, data)
    rows = [
        row
        for first_slot in source.first_slots()
        for row in _rows(source, place.first_sample, first_slot)
    ]
    batches = source.batch(place.first_sample)
    predicted = np.concatenate([_predicted(batch, source.micro_batch_size) for batch in batches])
    return Replay(
        step=step,
        seed=config.seed,
        place=place,
        purposes={purpose.name.lower(): purpose.value for purpose in Purpose},
        micro_batches=batches,
        rows=[Row(*row, predicted=int(n), tokens=tokens)
              for (*row, tokens), n in zip(rows, predicted, strict=True)],
    )  # fmt: skip


def find_step(directory: RunDirectory, config: RunConfig, step: int) -> Place:
    """By the incident of that step, else by the last start or rollback before it, else by the
    newest checkpoint before it: from there on every step took one global batch.
    """
    if step < 1:
        raise ConfigError(f"steps are counted from 1, {step} is none")
    incidents = [line for line in read_lines(directory.incidents) if line["step"] == step]
    if incidents:
        entry = incidents[-1]
        return Place(entry["first_sample"], entry["global_batch_size"], "incidents.jsonl")
    history = History(directory)
    origins: list[Start | Rollback] = [*history.starts(), *history.rollbacks()]
    for origin in sorted(origins, key=lambda origin: origin.time, reverse=True):
        if origin.step < step:
            size = origin.global_batch_size
            known_by = f"{type(origin).__name__.lower()} at step {origin.step}"
            return Place(origin.consumed_samples + (step - 1 - origin.step) * size, size, known_by)
    checkpoint = checkpoint_before(directory, step)
    size = config.train.global_batch_size
    consumed = commit.read_manifest(checkpoint).run["consumed_samples"]
    first_sample = consumed + (step - 1 - commit.step_of(checkpoint)) * size
    return Place(first_sample, size, checkpoint.name)


def checkpoint_before(directory: RunDirectory, step: int) -> Path:
    """The newest valid checkpoint from which the step was still to come."""
    found = [c for c in list_checkpoints(directory.checkpoints) if c.valid and c.step < step]
    if not found:
        raise CheckpointError(f"{directory.path} has no valid checkpoint before step {step}")
    return directory.checkpoints / found[-1].name


def _source(
    directory: RunDirectory, config: RunConfig, place: Place, data: Path | None
) -> BatchSource:
    """All replicas' rows at once."""
    dataset = TokenDataset(data or config.data.path, "train")
    reader = SampleReader(dataset, config.train.seq_len, config.seed, config.data.shuffle)
    newest = commit.newest_valid(directory.checkpoints)
    if newest is not None:
        reader.check_state(newest[1].run["data"])
    objective, problems = build_objective(config, dataset.mask_id, dataset.bos_id)
    if objective is None or problems:
        raise ConfigError(problems)
    size = place.global_batch_size
    return BatchSource(reader, objective, config.seed, size, config.train.micro_batch_size, 0, 1)


def _rows(
    source: BatchSource, first_sample: int, first_slot: int
) -> list[tuple[int, int, str, list[float], list[int]]]:
    """(slot, sample, term, t, tokens) of the rows of one micro-batch."""
    from model.objectives.base import term_of

    keys = source.keys(first_sample, first_slot)
    tokens = source.reader.read(keys.sample_index)
    times = _times(source.objective, source.reader.seq_len, keys)
    term = term_of(source.objective, keys)
    return [
        (int(slot), int(sample), term, t, row.tolist())
        for slot, sample, t, row in zip(keys.slot, keys.sample_index, times, tokens, strict=True)
    ]
