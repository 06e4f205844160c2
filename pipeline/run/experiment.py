"""Turns a configuration into the things it describes, and names everything wrong with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import MANIFEST_NAME, TASKS_DIRECTORY
from esolm.data_prep.remote import is_url
from esolm.model.config import ModelConfig
from esolm.model.objectives import Objective, VocabularyIds, objective_kind
from esolm.pipeline.checkpoint.commit import committed
from esolm.pipeline.checkpoint.remote import url_problems
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.mixture import MixtureSource
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.layout import Layout, fit_layout
from esolm.pipeline.run.contexts import context_problems
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.fp8 import fp8_problems
from esolm.pipeline.run.sections import RunConfig, section_problems
from esolm.pipeline.run.sources import open_sources, uses_of
from esolm.pipeline.run.step_range import steps_problems


@dataclass(frozen=True)
class Experiment:
    """A configuration that holds together: what is trained, on what, in which layout."""

    config: RunConfig
    sources: tuple[MixtureSource, ...]
    model: ModelConfig
    objective: Objective
    layout: Layout

    @property
    def dataset(self) -> TokenDataset:
        """The first dataset, for what all have in common: tokenizer and vocabulary."""
        return self.sources[0].dataset

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per step on each data-parallel rank."""
        train = self.config.train
        return train.global_batch_size // (train.micro_batch_size * self.layout.dp)


def resolve(config: RunConfig, world_size: int) -> Experiment:
    """Checks the configuration against the dataset and the number of ranks.

    Raises ConfigError with every problem at once.
    """
    sources, problems = open_sources(config)
    if not problems:
        problems = problems_of_a_start(config, sources)
    experiment, others = _assemble(config, world_size, sources)
    if problems or experiment is None:
        raise ConfigError(problems + others)
    return experiment


def problems_of_a_start(config: RunConfig, sources: Sequence[MixtureSource]) -> list[str]:
    """Says which sources a run would read too often."""
    if config.train.steps < 1 or config.train.global_batch_size < 1:
        return []
    if config.checkpoint.mirror and not committed(RunDirectory(config.run.dir).checkpoints):
        return []  # from where it goes on is known once its checkpoint is here
    try:
        return [use.problem for use in uses_of(config, sources) if use.problem]
    except DataError:  # a setting that is named with the others, or a checkpoint that is refused
        return []


def problems_before_data(config: RunConfig, world_size: int) -> list[str]:
    """Names everything wrong with a configuration whose dataset is yet to be made."""
    return _assemble(config, world_size, [])[1]


def _assemble(
    config: RunConfig, world_size: int, sources: Sequence[MixtureSource]
) -> tuple[Experiment | None, list[str]]:
    """Returns the experiment and the problems found.

    The experiment is None if there are problems or there is no dataset.
    """
    dataset = sources[0].dataset if sources else None
    layout, problems = layout_of(config, world_size)
    problems += _train_problems(config)
    ids = dataset.ids if dataset else VocabularyIds(1, 0, 0, 0)
    model = ModelConfig(vocab_size=ids.size, mask_id=ids.mask_id, **asdict(config.model))
    objective, objective_problems = build_objective(config, ids)
    problems += model.problems() + objective_problems + _sharing_problems(config, model)
    if objective is not None and not objective_problems:
        problems += _term_problems(config, objective) + _sequence_problems(config, objective)
        problems += fp8_problems(config.train, config.parallel, model, objective)
    if layout is not None:
        problems += _batch_problems(config, layout)
    if problems or dataset is None:
        return None, problems
    assert objective is not None
    assert layout is not None
    return Experiment(config, tuple(sources), model, objective, layout), []


def layout_of(config: RunConfig, world_size: int) -> tuple[Layout | None, list[str]]:
    """Returns the layout of so many ranks (None if there is none) and every reason against it."""
    parallel = config.parallel
    return fit_layout(
        parallel.tp, parallel.pp, parallel.zero, parallel.sequence, world_size, parallel.cp
    )


def build_objective(config: RunConfig, ids: VocabularyIds) -> tuple[Objective | None, list[str]]:
    """Returns the objective that the configuration names (None if unknown) and its problems."""
    try:
        objective = objective_kind(config.objective.name).build(asdict(config.objective), ids)
    except ValueError as error:
        return None, str(error).splitlines()
    problems = objective.problems(config.train.seq_len)
    if config.objective.separate_documents and objective.eos_id is None:
        problems.append(
            f"objective.separate_documents: '{config.objective.name}' does not keep documents apart"
        )
    for entry in config.train.context_schedule:
        shortened = objective.with_context(entry.length)
        if shortened is None:
            problems.append(
                f"train.context_schedule: '{config.objective.name}' has no shorter contexts"
            )
        else:
            found = shortened.problems(config.train.seq_len)
            problems += [problem for problem in found if problem not in problems]
    return objective, problems


def _train_problems(config: RunConfig) -> list[str]:
    problems = section_problems(config)
    if config.train.precision == "fp16":
        problems.append(
            "train.precision: fp16 needs loss scaling, which skips steps, and the run would not be "
            "exact"
        )
    problems += steps_problems(config.train.profile_steps) + context_problems(
        config.train.context_schedule, config.train.seq_len
    )
    problems += _place_problems(Path(config.run.dir)) + _origin_problems(config)
    problems += url_problems("checkpoint.mirror", config.checkpoint.mirror)
    return problems


def _place_problems(run: Path) -> list[str]:
    """Says what else lies where the run is to be written."""
    if run.is_file():
        return [f"run.dir: {run} is a file; name a directory, which need not exist"]
    is_dataset = any((run / name).exists() for name in (MANIFEST_NAME, TASKS_DIRECTORY))
    if is_dataset and not (run / "checkpoints").is_dir():
        return [f"run.dir: {run} holds a dataset; name a directory of its own for the run"]
    return []


def _origin_problems(config: RunConfig) -> list[str]:
    """Says what is wrong with train.init_from.

    It says nothing once the run has a checkpoint here, or if it has a mirror, which may hold one.
    """
    origin = config.train.init_from
    if is_url(origin):
        return url_problems("train.init_from", origin)
    if not origin or Path(origin).is_dir() or config.checkpoint.mirror:
        return []
    if committed(RunDirectory(config.run.dir).checkpoints):
        return []
    return [f"train.init_from: there is no directory {origin}"]


def _sharing_problems(config: RunConfig, model: ModelConfig) -> list[str]:
    """Names what does not divide among the ranks of a replica."""
    tp, pp = config.parallel.tp, config.parallel.pp
    problems = []
    for name in ("num_heads", "ffn_hidden_size"):
        if tp > 1 and getattr(model, name) % tp:
            problems.append(
                f"model.{name} {getattr(model, name)} does not divide by parallel.tp {tp}"
            )
    if model.num_kv_heads > 0 and tp > 1 and model.num_kv_heads % tp and tp % model.num_kv_heads:
        problems.append(
            f"model.num_kv_heads {model.num_kv_heads} neither divides by parallel.tp {tp} nor "
            "divides it: each rank takes whole heads, or several ranks share one"
        )
    problems += _head_problems(config, model)
    if pp > model.num_layers + 2:
        problems.append(
            f"parallel.pp {pp} has more stages than the network has layers: {model.num_layers} "
            "blocks, an embedding and a head"
        )
    return problems


def _head_problems(config: RunConfig, model: ModelConfig) -> list[str]:
    """Names heads of a tensor-parallel rank that do not divide among context-parallel ones."""
    tp, cp = config.parallel.tp, config.parallel.cp
    if tp < 1 or cp <= 1 or model.num_heads % tp:
        return []  # what is wrong is named already
    heads, shared = model.num_heads // tp, max(1, model.num_kv_heads // tp)
    problems = []
    if heads % cp:
        problems.append(
            f"model.num_heads {model.num_heads}{_over(tp, heads)} does not divide by parallel.cp "
            f"{cp}: each rank attends with whole heads"
        )
    if model.num_kv_heads > 0 and shared % cp and cp % shared:
        problems.append(
            f"model.num_kv_heads {model.num_kv_heads}{_over(tp, shared)} neither divides by "
            f"parallel.cp {cp} nor divides it: each rank takes whole heads, or several share one"
        )
    return problems


def _over(tp: int, held: int) -> str:
    return f" / parallel.tp {tp} = {held}" if tp > 1 else ""


def _sequence_problems(config: RunConfig, objective: Objective) -> list[str]:
    """Names rows and micro-batches whose tokens do not divide among the ranks that share them."""
    train, tp, cp = config.train, config.parallel.tp, config.parallel.cp
    lengths = dict.fromkeys(work.length for work in objective.work(train.seq_len))
    undivided = [
        f"train.seq_len: the {length} tokens of a row do not divide by parallel.cp {cp}"
        for length in lengths
        if cp > 1 and length % cp
    ]
    if undivided:
        return undivided
    tokens = [train.micro_batch_size * length // max(1, cp) for length in lengths]
    held = f" that a rank of parallel.cp {cp} holds" if cp > 1 else ""
    return [
        f"parallel.sequence: the {number} tokens of a micro-batch{held} do not divide by "
        f"parallel.tp {tp}"
        for number in tokens
        if config.parallel.sequence and tp > 1 and number % tp
    ]


def _term_problems(config: RunConfig, objective: Objective) -> list[str]:
    train = config.train
    problems = []
    for name, rows in objective.terms(train.global_batch_size).items():
        if train.micro_batch_size > 0 and len(rows) % train.micro_batch_size:
            problems.append(
                f"the {name} term takes {len(rows)} of train.global_batch_size "
                f"{train.global_batch_size} rows, which does not divide by train.micro_batch_size "
                f"{train.micro_batch_size}: a micro-batch lies within one term"
            )
    terms, kinds = objective.terms(train.global_batch_size), objective.work(train.seq_len)
    if len(terms) < len(kinds):
        problems.append(
            f"only the {' and '.join(terms)} term has a row of train.global_batch_size "
            f"{train.global_batch_size}, but the objective has {len(kinds)} terms: make the batch "
            "larger, or objective.kappa less extreme"
        )
    return problems


def _batch_problems(config: RunConfig, layout: Layout) -> list[str]:
    train = config.train
    rows = train.micro_batch_size * layout.dp
    if rows > 0 and train.global_batch_size % rows:
        return [
            f"train.global_batch_size {train.global_batch_size} does not divide by "
            f"train.micro_batch_size {train.micro_batch_size} x {layout.dp} replicas = {rows}"
        ]
    return []


def optimizer_arguments(config: RunConfig) -> dict[str, Any]:
    """Returns the arguments of EmaAdamW."""
    section = config.optimizer
    return {
        "lr": section.lr,
        "betas": (section.beta_1, section.beta_2),
        "eps": section.eps,
        "weight_decay": section.weight_decay,
        "ema_decay": section.ema_decay,
    }
