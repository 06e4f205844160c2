"""Starts a run from the weights of another: from a checkpoint or an exported bundle."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from esolm.data_prep.remote import is_url
from esolm.pipeline.checkpoint import store
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.errors import ConfigError, EsolmError
from esolm.pipeline.export.architecture import from_bundle
from esolm.pipeline.export.consolidate import STATES
from esolm.pipeline.export.manifest import NAME as BUNDLE_RECORD
from esolm.pipeline.export.manifest import verify_bundle
from esolm.pipeline.export.unfold import unfold
from esolm.pipeline.parallel.engine import Engine
from esolm.pipeline.parallel.first_rank import from_first_rank
from esolm.pipeline.parallel.fragments import AVERAGE, WEIGHTS, Fragment
from esolm.pipeline.run.experiment import Experiment

logger = logging.getLogger(__name__)

# These fields change nothing about the weights' shapes and meaning.
ROTATION = ("rope_base", "rope_bases", "rope_factor", "rope_original_length")
FREE = ("dropout", "z_loss", "init_std", *ROTATION)


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    model: the fields of ModelConfig, as far as the origin fixes them.
    """

    path: str
    is_bundle: bool
    model: dict[str, Any]
    seq_len: int
    tokenizer: str | None
    weights: str


def start_from(experiment: Experiment, engine: Engine, group: dist.ProcessGroup) -> None:
    """Fills a fresh engine with the weights of train.init_from; collective over the group (of all).

    The average starts at the same weights, the moments start at zero. Raises ConfigError, on every
    rank, if the weights are damaged or of another network or vocabulary.
    """
    train = experiment.config.train
    origin = from_first_rank(
        lambda: _verified(train.init_from, train.init_weights, experiment), group
    )
    fragments = engine.fragments()
    if origin.is_bundle:
        fill(fragments, unfold(BundleTensors(Path(origin.path)), experiment.model))
    else:
        state = STATES[origin.weights]
        sources = [replace(part, states={state: part.states[WEIGHTS]}) for part in fragments]
        store.read(Path(origin.path), sources, group)
    dist.barrier(group)
    if dist.get_rank() == 0:
        shutil.rmtree(_copies(experiment), ignore_errors=True)
    for part in fragments:
        part.states[AVERAGE].copy_(part.states[WEIGHTS])
    engine.adopt(0)
    logger.info("%s weights of %s, step 0", origin.weights, origin.path)


def _verified(path: str, weights: str, experiment: Experiment) -> Origin:
    """Returns the origin after every byte was checked. Raises ConfigError with every objection."""
    try:
        if is_url(path):
            origin = _checkpoint_origin(path, weights, _copies(experiment))
        elif (Path(path) / BUNDLE_RECORD).is_file():
            origin = _bundle_origin(Path(path))
        else:
            origin = _checkpoint_origin(path, weights)
    except EsolmError as error:
        raise ConfigError(f"train.init_from: {error}") from error
    problems = _problems(origin, experiment)
    if problems:
        raise ConfigError([f"train.init_from: {problem}" for problem in problems])
    for note in _notes(origin, experiment):
        logger.info("%s", note)
    return origin


def _copies(experiment: Experiment) -> Path:
    """Where a remote origin is copied to: every rank must see it, as it sees the run directory."""
    return Path(experiment.config.run.dir) / "init_from"


def _checkpoint_origin(path: str, weights: str, copies: Path | None = None) -> Origin:
    reader = CheckpointReader(path, copies)
    tokenizer = reader.manifest.run["tokenizer"]
    model = asdict(reader.model)
    return Origin(str(reader.directory), False, model, reader.seq_len, tokenizer, weights)


def _bundle_origin(path: Path) -> Origin:
    record = verify_bundle(path)
    model = from_bundle(json.loads((path / "config.json").read_text()))
    seq_len, tokenizer = record["seq_len"], record["tokenizer"]
    return Origin(str(path), True, model, seq_len, tokenizer, record["weights"])


def _problems(origin: Origin, experiment: Experiment) -> list[str]:
    here = asdict(experiment.model)
    problems = [
        f"model.{name} is {value} in {origin.path}, {here[name]} here"
        for name, value in origin.model.items()
        if name not in FREE and here[name] != value
    ]
    if origin.is_bundle and origin.model["adaln"] != here["adaln"]:
        problems.append(
            "a bundle whose norms have biases starts a network with model.adaln=true, any other "
            "bundle one without: nothing else computes exactly what it computes"
        )
    dataset = experiment.dataset
    # An import without a tokenizer names none; the size of its vocabulary is compared above.
    if origin.tokenizer and origin.tokenizer != dataset.tokenizer_fingerprint:
        problems.append(
            f"the vocabulary of {origin.path} (tokenizer {origin.tokenizer[:12]}) is not that "
            f"of {dataset.name} (tokenizer {dataset.tokenizer_fingerprint[:12]})"
        )
    return problems


def _notes(origin: Origin, experiment: Experiment) -> list[str]:
    """Says which settings differ from the origin's and are allowed to."""
    notes, config = [], experiment.config
    for name in ROTATION:
        there, here = origin.model[name], getattr(experiment.model, name)
        if there != here:
            notes.append(f"model.{name}: trained with {there}, now {here}")
    if origin.seq_len != config.train.seq_len:
        notes.append(f"train.seq_len: trained with {origin.seq_len}, now {config.train.seq_len}")
    return notes


class BundleTensors(Mapping[str, Tensor]):
    """The parameters of a bundle by name, each of which is read when it is asked for.

    A file is opened for every tensor anew: what was read of one that stays open counts as memory of
    the process.
    """

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted(path.glob("*.safetensors")):
            with _opened(file) as content:
                self._files |= dict.fromkeys(content.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        with _opened(self._files[name]) as content:
            tensor: Tensor = content.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _opened(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="pt")


def fill(fragments: list[Fragment], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Fills the weights; what has no tensor, the conditioning of adaLN, stays as initialised."""
    parts = {part.name: part for part in fragments}
    for name, tensor in tensors:
        if name in parts:
            parts[name].fill(WEIGHTS, tensor)
