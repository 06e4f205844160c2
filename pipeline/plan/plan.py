"""The plan of a run: everything about it that follows from its configuration."""

from dataclasses import asdict, dataclass
from functools import partial

from esolm.data_prep.remote import shown
from esolm.model.config import RECOMPUTE, ModelConfig
from esolm.model.flops import flops_per_token, layer_costs
from esolm.model.objectives import Objective, VocabularyIds
from esolm.pipeline.data.mixture import SourceUse
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.activations import Activations, MicroBatchShape
from esolm.pipeline.plan.cost import Machine, bubble_share
from esolm.pipeline.plan.host import HostBytes, host_bytes
from esolm.pipeline.plan.shapes import stage_size
from esolm.pipeline.plan.stages import stage_bounds
from esolm.pipeline.plan.state import StateBytes, state_bytes
from esolm.pipeline.run.experiment import (
    build_objective,
    layout_of,
    problems_before_data,
    problems_of_a_start,
)
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.run.sources import open_sources, source_paths, uses_of

CHECKPOINT_BYTES = 16
"""The bytes of a checkpoint per parameter: fp32 weights, two moments and the average."""


@dataclass(frozen=True)
class Planned:
    """What is planned: a configuration without contradictions, with the vocabulary it will meet."""

    config: RunConfig
    model: ModelConfig
    objective: Objective
    notes: tuple[str, ...] = ()
    uses: tuple[SourceUse, ...] = ()
    """What the run takes of each dataset; none if there is no dataset."""


@dataclass(frozen=True)
class StagePlan:
    """What one rank of a pipeline stage holds."""

    layers: tuple[int, int]
    """The pipeline layers [first, end): 0 is the embedding, and the last one is the head."""
    parameters: int
    in_flight: int
    state: StateBytes
    activations: dict[str, int]
    """The bytes kept for the backward pass, by checkpointing mode."""
    working: dict[str, int]
    """The bytes that live for one block of the backward pass, by checkpointing mode."""
    logits: int
    host: HostBytes

    def total(self, mode: str) -> int:
        """The most bytes at any moment of a step under a checkpointing mode."""
        passing = max(self.working[mode], self.logits)
        return self.state.peak(self.activations[mode] + passing)


@dataclass(frozen=True)
class Plan:
    subject: Planned
    layout: Layout
    stages: tuple[StagePlan, ...]
    micro_batches: int
    flops_per_token: float
    bubble: float

    @property
    def tokens_per_step(self) -> int:
        train = self.subject.config.train
        return train.global_batch_size * train.seq_len

    @property
    def largest_stage(self) -> StagePlan:
        """The stage whose ranks need the most memory as configured."""
        mode = self.subject.config.parallel.activation_checkpointing
        return max(self.stages, key=lambda stage: stage.total(mode))

    @property
    def memory(self) -> int:
        """The most bytes on any GPU, by the plan's own count."""
        mode = self.subject.config.parallel.activation_checkpointing
        return self.largest_stage.total(mode)

    @property
    def host_memory(self) -> int:
        """The most bytes of host memory of any rank."""
        return max(stage.host.peak for stage in self.stages)

    def node_memory(self, machine: Machine) -> int:
        """The most bytes of host memory of all ranks of a node together."""
        return min(self.layout.world_size, machine.gpus_per_node) * self.host_memory

    def seconds(self, machine: Machine) -> float:
        """The seconds of the whole run at the machine's MFU, which is to include every loss."""
        tokens = self.tokens_per_step * self.subject.config.train.steps
        speed = machine.mfu * machine.gpu.peak_flops * self.layout.world_size
        return self.flops_per_token * tokens / speed


def find_subject(config: RunConfig, ranks: int, vocab_size: int | None) -> Planned:
    """Checks a configuration and returns what is to be planned.

    vocab_size: stands in for the dataset if there is none. Raises ConfigError with every problem at
    once.
    """
    problems, notes = problems_before_data(config, ranks), []
    ids = VocabularyIds(0, 0, 0, 0)
    sources, data_problems = open_sources(config)
    if sources:
        dataset = sources[0].dataset
        data_problems = data_problems or problems_of_a_start(config, sources)
        problems += data_problems
        if vocab_size not in (None, dataset.vocab_size):
            notes.append(
                f"the vocabulary is the dataset's, {dataset.vocab_size}; --vocab-size was not used"
            )
        ids = dataset.ids
    elif vocab_size is None:
        problems += [
            f"{problem} To plan without it, give --vocab-size N." for problem in data_problems
        ]
    elif vocab_size < 2:
        problems.append(f"--vocab-size is {vocab_size}; it must be at least 2")
    else:
        there = " or ".join(map(shown, source_paths(config.data)))
        notes.append(f"no dataset at {there}: --vocab-size {vocab_size} stands in")
        ids = VocabularyIds(vocab_size, vocab_size - 1, 0, 0)
    if config.train.context_schedule:
        notes.append("train.context_schedule: FLOPs and time are those of contexts of whole rows")
    if config.train.fp8 != "none":
        notes.append("train.fp8: time is that of products in bf16")
    if problems:
        raise ConfigError(problems)
    model = ModelConfig(vocab_size=ids.size, mask_id=ids.mask_id, **asdict(config.model))
    objective, _ = build_objective(config, ids)
    assert objective is not None
    uses = tuple(uses_of(config, sources)) if sources else ()
    return Planned(config, model, objective, tuple(notes), uses)


def make_plan(subject: Planned, ranks: int) -> Plan:
    """Makes the plan of a sound configuration on so many ranks.

    Raises ConfigError if the layout does not fit them.
    """
    config = subject.config
    train = config.train
    layout, problems = layout_of(config, ranks)
    if layout is None:
        raise ConfigError(problems)
    micro_batches = train.global_batch_size // (train.micro_batch_size * layout.dp)
    works = subject.objective.work(train.seq_len)
    bounds = stage_bounds(layer_costs(subject.model, works), layout.pp)
    return Plan(
        subject=subject,
        layout=layout,
        stages=tuple(
            _plan_stage(subject, layout, stage, bounds[stage], micro_batches)
            for stage in range(layout.pp)
        ),
        micro_batches=micro_batches,
        flops_per_token=flops_per_token(subject.model, works, train.seq_len),
        bubble=bubble_share(layout, micro_batches),
    )


def _plan_stage(
    subject: Planned, layout: Layout, stage: int, bounds: tuple[int, int], micro_batches: int
) -> StagePlan:
    train, parallel = subject.config.train, subject.config.parallel
    works = subject.objective.work(train.seq_len)
    shapes = [MicroBatchShape.of(work, train.micro_batch_size, layout.cp) for work in works]
    size = stage_size(subject.model, *bounds, layout.tp)
    of_mode = partial(
        Activations, subject.model, layout, train.precision,
        logits_mb=train.logits_mb, fp8=train.fp8 != "none",
    )  # fmt: skip
    kinds = {mode: of_mode(mode) for mode in RECOMPUTE}
    has_head = bounds[1] == subject.model.num_layers + 2
    chosen = kinds[parallel.activation_checkpointing]
    # The plan is for the kind of row that needs most memory, logits included.
    logits = [chosen.logits(shape) if has_head else 0 for shape in shapes]
    sizes = {
        mode: [kind.kept(shape, bounds, stage, micro_batches) for shape in shapes]
        for mode, kind in kinds.items()
    }
    needs = [a + b for a, b in zip(sizes[chosen.checkpointing], logits, strict=True)]
    worst = needs.index(max(needs))
    state = state_bytes(size, layout, train.precision, parallel.offload)
    asynchronous = subject.config.checkpoint.asynchronous
    return StagePlan(
        layers=bounds,
        parameters=size.parameters,
        in_flight=min(layout.pp - stage, micro_batches),
        state=state,
        activations={mode: values[worst] for mode, values in sizes.items()},
        working={mode: kind.working(shapes[worst]) for mode, kind in kinds.items()},
        logits=logits[worst],
        host=host_bytes(subject.model, bounds, size, state, layout, train.precision, asynchronous),
    )
