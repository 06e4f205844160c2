"""Ranks every valid layout of a machine by an estimate of the step time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from esolm.model.config import RECOMPUTE
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.plan.cost import HEADROOM, Machine, fits
from esolm.pipeline.plan.estimate import StepSeconds, step_seconds
from esolm.pipeline.plan.plan import Plan, Planned, make_plan
from esolm.pipeline.run.experiment import problems_before_data
from esolm.pipeline.run.sections import RunConfig


@dataclass(frozen=True)
class Candidate:
    """A layout with the micro-batch size and the checkpointing that suit it best."""

    plan: Plan
    checkpointing: str
    memory: int
    seconds: StepSeconds

    @property
    def settings(self) -> list[str]:
        """The layout as key=value settings of a run."""
        layout, train = self.plan.layout, self.plan.subject.config.train
        values = {
            "parallel.tp": layout.tp,
            "parallel.cp": layout.cp,
            "parallel.pp": layout.pp,
            "parallel.zero": layout.zero,
            "parallel.sequence": str(layout.sequence).lower(),
            "parallel.activation_checkpointing": self.checkpointing,
            "train.micro_batch_size": train.micro_batch_size,
        }
        return [f"{key}={value}" for key, value in values.items()]


@dataclass(frozen=True)
class Search:
    ranked: list[Candidate]
    tried: int
    """The number of valid layouts, each with every micro-batch size and checkpointing mode."""
    too_large: int


def layouts_of(config: RunConfig, ranks: int, gpus_per_node: int) -> Iterator[RunConfig]:
    """Yields the configuration in every layout worth a check, with tensor parallelism in a node.

    The context-parallel degree stays as it is configured.
    """
    batch, cp = config.train.global_batch_size, max(1, config.parallel.cp)
    for tp in _divisors(gpus_per_node):
        for pp in _divisors(ranks // (tp * cp)) if ranks % (tp * cp) == 0 else []:
            dp = ranks // (tp * cp * pp)
            sizes = {2**power for power in range(12) if 2**power * dp <= batch}
            for zero in (1, 2, 3) if pp == 1 and cp * dp > 1 else (1,):
                for sequence in (False, True) if tp > 1 else (False,):
                    parallel = replace(config.parallel, tp=tp, pp=pp, zero=zero, sequence=sequence)
                    for size in sorted(sizes | {config.train.micro_batch_size}):
                        train = replace(config.train, micro_batch_size=size)
                        yield replace(config, parallel=parallel, train=train)


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def sound_layouts(config: RunConfig, ranks: int, gpus_per_node: int) -> list[RunConfig]:
    """Returns those of `layouts_of` that the trainer would take.

    If there are none, raises ConfigError with what is wrong with all of them.
    """
    sound, common = [], None
    for candidate in layouts_of(config, ranks, gpus_per_node):
        problems = problems_before_data(candidate, ranks)
        if problems:
            common = [p for p in common if p in problems] if common is not None else problems
        else:
            sound.append(candidate)
    if not sound:
        own = problems_before_data(config, ranks)
        raise ConfigError(common or own or [f"no layout of {ranks} ranks suits the configuration"])
    return sound


def search(subject: Planned, layouts: list[RunConfig], machine: Machine, ranks: int) -> Search:
    """Returns the layouts that fit the machine's GPUs; those estimated as fastest come first.

    Raises ConfigError with the smallest need if none fits.
    """
    memory, tried, too_large = machine.gpu.memory, 0, 0
    smallest: Candidate | None = None
    best: dict[object, Candidate] = {}
    for config in layouts:
        plan = make_plan(replace(subject, config=config), ranks)
        for mode in RECOMPUTE:
            need = max(stage.total(mode) for stage in plan.stages)
            seconds = step_seconds(plan, machine, mode)
            candidate = Candidate(plan, mode, need, seconds)
            tried += 1
            if smallest is None or need < smallest.memory:
                smallest = candidate
            if not fits(need, memory):
                too_large += 1
            elif _order(candidate) < _order(best.get(plan.layout, candidate)) or (
                plan.layout not in best
            ):
                best[plan.layout] = candidate
    if not best:
        assert smallest is not None
        raise ConfigError(
            f"no layout fits {HEADROOM:.0%} of {memory / 1e9:.0f} GB; the smallest needs "
            f"{smallest.memory / 1e9:.1f} GB: {' '.join(smallest.settings)}"
        )
    return Search(sorted(best.values(), key=_order), tried, too_large)


def _order(candidate: Candidate) -> tuple[float, int]:
    return candidate.seconds.total, candidate.memory
