"""Makes the micro-batches of any step of a run again, from the seed and the numbers of its rows."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.columns import Column
from esolm.model.network import Network
from esolm.model.objectives import SampleKeys
from esolm.model.objectives.base import term_of
from esolm.model.objectives.draws import Purpose
from esolm.pipeline.checkpoint import commit
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.data.batches import BatchSource
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.single import load_network, single_process
from esolm.pipeline.run.contexts import context_at
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.experiment import build_objective
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.run.sources import open_split, reader_of
from esolm.pipeline.watch.place import StepRows, checkpoint_before, find_step


@dataclass(frozen=True)
class Row:
    """One row of a global batch.

    sample: its global number, which together with the seed keys every draw. t: its times in the
    order of the row; a term without time has none. predicted: how many tokens carry loss.
    """

    slot: int
    sample: int
    term: str
    t: list[float]
    predicted: int
    tokens: list[int]


@dataclass(frozen=True)
class Replay:
    """A step as it was fed to the network.

    purposes: the second key of the draws, beside the seed, by name.
    """

    step: int
    seed: int
    place: StepRows
    purposes: dict[str, int]
    micro_batches: list[MicroBatch]
    rows: list[Row]


def replay(run: Path, step: int, data: Path | None = None) -> Replay:
    """Makes step `step` of a run again, counted from 1. data: the dataset, if it has moved.

    Raises ConfigError or CheckpointError if nothing says where in the data the step was, and
    DataError if the dataset is not the one that the run was trained on.
    """
    directory = RunDirectory(run)
    config = directory.config()
    if step > config.train.steps:
        raise ConfigError(f"step {step} is beyond the {config.train.steps} steps of {run}")
    place = find_step(directory, config, step)
    source = _source(directory, config, place, data)
    if context := context_at(config.train.context_schedule, step):
        source = source.with_context(context)
    batches = source.batch(place.first_sample)
    rows = []
    for slot, batch in zip(source.first_slots(), batches, strict=True):
        rows += _rows(source, source.keys(place.first_sample, slot), batch)
    purposes = {purpose.name.lower(): purpose.value for purpose in Purpose}
    return Replay(step, config.seed, place, purposes, batches, rows)


def row_losses(run: Path, replayed: Replay) -> tuple[int, list[float]]:
    """Returns the step of the newest checkpoint before the replayed one, and each row's loss there.

    The losses are shares: they add up to the loss of the step. They are computed in one process, in
    fp32 and without dropout.
    """
    reader = CheckpointReader(checkpoint_before(RunDirectory(run), replayed.step))
    network = load_network(reader.model, reader.tensors("weights"), single_process())
    with torch.no_grad():
        losses = [_losses(network, batch) for batch in replayed.micro_batches]
    return reader.step, torch.cat(losses).tolist()


def _source(
    directory: RunDirectory, config: RunConfig, place: StepRows, data: Path | None
) -> BatchSource:
    """Returns the source of all replicas' rows, in one process."""
    if data is not None:
        if config.data.sources:
            raise ConfigError(
                f"--data names one dataset, but {directory.path} has data.sources; if they have "
                "moved, put their folders back, or links to them"
            )
        config.data.path = str(data)
    sources = open_split(config, "train")
    reader, dataset = reader_of(config, sources), sources[0].dataset
    newest = commit.newest_valid(directory.checkpoints)
    if newest is not None:
        run = newest[1].run
        reader.adopt(run["data"], config.data.change_sources, run["data_path"])
    objective, problems = build_objective(config, dataset.ids)
    if objective is None or problems:
        raise ConfigError(problems)
    return BatchSource(
        reader=reader,
        objective=objective,
        seed=config.seed,
        global_batch_size=place.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=0,
        dp_size=1,
    )


def _rows(source: BatchSource, keys: SampleKeys, batch: MicroBatch) -> list[Row]:
    tokens = source.reader.read(keys.sample_index)
    times = source.objective.corrupt(torch.from_numpy(tokens), keys)[1].times
    index = batch.targets[0]
    predicted = (index // _outputs(batch)).bincount(minlength=len(tokens))
    return [
        Row(
            slot=int(keys.slot[i]),
            sample=int(keys.sample_index[i]),
            term=term_of(source.objective, keys),
            t=[] if times is None else list(dict.fromkeys(times[i].tolist())),
            predicted=int(predicted[i]),
            tokens=tokens[i].tolist(),
        )
        for i in range(len(tokens))
    ]


def _outputs(batch: MicroBatch) -> int:
    """Returns the number Q of output positions of each row."""
    tokens, _, rows = batch.inputs
    pattern = AttentionPattern.at(int(rows[0, Column.PATTERN]))
    skipped = int(rows[0, Column.SKIPPED])
    return (tokens.shape[1] + skipped) // pattern.num_streams - skipped


def _losses(network: Network, batch: MicroBatch) -> Tensor:
    """Returns the sum of weight * negative log-likelihood of every row, [B]."""
    index, labels, weights = batch.targets
    logits = network.head.logits(network(batch.inputs)[index])
    nll = F.cross_entropy(logits, labels, reduction="none")
    rows = batch.inputs[0].shape[0]
    return torch.zeros(rows).index_add_(0, index // _outputs(batch), nll * weights)
