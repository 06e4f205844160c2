"""Finds which of the paper's systems a checkpoint holds, by configuration, keys and options."""

import math
from dataclasses import dataclass, field
from typing import Any

from esolm.model.objectives import BD3LM, EsoLM
from esolm.model.objectives.noise import EPSILON
from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.importer.stored_config import StoredConfig
from esolm.pipeline.run.sections import ObjectiveSection

# The attention modes in the published configuration: (diffusion phase, sequential phase).
MODES = {"A": ("mixed2", "mixed"), "B": ("causal", "causal")}
NAMES = ("esolm", "ar", "mdlm", "bd3lm")


@dataclass(frozen=True)
class Options:
    """What a user says of a checkpoint; None leaves it to the file.

    weights, dtype: those of the bundle. objective: only for files without a configuration.
    """

    variant: str | None = None
    weights: str = "ema"
    dtype: str = "bf16"
    objective: str | None = None
    alpha_0: float | None = None
    block_size: int | None = None
    seq_len: int | None = None
    num_heads: int | None = None
    mask_id: int | None = None
    bos_id: int | None = None

    def problems(self) -> list[str]:
        """Says which options are out of range or contradict each other, one sentence each."""
        choices = {
            "--variant": (self.variant, (None, "A", "B")),
            "--weights": (self.weights, ("ema", "raw")),
            "--dtype": (self.dtype, ("fp32", "bf16")),
            "--objective": (self.objective, (None, *NAMES)),
        }
        found = [
            f"{name} is '{given}'; choose {' or '.join(c for c in allowed if c is not None)}"
            for name, (given, allowed) in choices.items()
            if given not in allowed
        ]
        ranges = {
            "--alpha-0": (self.alpha_0, 0.0, 1.0),
            "--block-size": (self.block_size, 1, math.inf),
            "--length": (self.seq_len, 1, math.inf),
            "--num-heads": (self.num_heads, 1, math.inf),
        }
        found += [
            f"{name} is {given}; it must lie in [{low}, {high}]"
            for name, (given, low, high) in ranges.items()
            if given is not None and not low <= given <= high
        ]
        if self.variant is not None and self.objective not in (None, "esolm"):
            found.append("--variant and --objective: Eso-LM alone has variants")
        return found


@dataclass
class Reading:
    """What is read from a file and the options; notes: what had to be assumed, for the user."""

    config: StoredConfig
    options: Options
    notes: list[str] = field(default_factory=list)

    def value(self, path: str, option: str, given: Any, otherwise: Any) -> Any:
        """Returns the value of the configuration, or else the option, or else an assumption.

        An assumption is noted. Raises ImportCheckpointError if configuration and option contradict
        each other, and if the configuration has something that cannot be read and the option is
        not given.
        """
        stored = self.config.number(path)
        if stored is not None:
            stored = type(otherwise)(stored)
            if given is not None and given != stored:
                raise ImportCheckpointError(
                    f"its configuration says {path} = {stored}, the option says {given}; leave the "
                    "option out"
                )
            return stored
        if given is not None:
            return given
        if self.config.has(path):
            raise ImportCheckpointError(f"its {path} is stored, but not as a number: pass {option}")
        what = path.rpartition(".")[2]
        self.notes.append(f"{what} is not stored in the file; {otherwise} is assumed")
        return otherwise


def objective_name(reading: Reading, has_adaln: bool, has_clips: bool) -> str:
    """Returns `esolm`, `ar`, `mdlm` or `bd3lm`.

    Raises ImportCheckpointError if the name cannot be told, or if what is known contradicts itself.
    """
    stored, given = reading.config.get("algo.name"), reading.options.objective
    if stored is not None and stored not in NAMES:
        raise ImportCheckpointError(
            f"it was trained as '{stored}'; an import knows {', '.join(NAMES)}"
        )
    by_keys = None if has_adaln and not has_clips else "bd3lm" if has_adaln else "ar"
    by_option = given or ("esolm" if reading.options.variant else None)
    name = stored or by_option or by_keys
    if name is None:
        raise ImportCheckpointError(
            "it holds no configuration, and Eso-LM and MDLM have the same tensors: pass "
            "--variant A or --variant B, or --objective mdlm"
        )
    if by_option not in (None, name):
        raise ImportCheckpointError(f"it was trained as '{name}', not as '{by_option}'")
    if (name == "ar") == has_adaln:
        found = "has" if has_adaln else "lacks"
        raise ImportCheckpointError(f"'{name}' does not fit: the network {found} adaLN tensors")
    return str(name)


def objective_of(reading: Reading, name: str, clips: dict[str, float]) -> ObjectiveSection:
    """Returns the objective as the configuration of a run would state it.

    Raises ImportCheckpointError for an objective that cannot be trained here.
    """
    _refuse_other_options(reading.options, name)
    if name != "ar" and _has_time(reading.config):
        raise ImportCheckpointError(
            "it was trained with time_conditioning, that is with another adaLN at every t; the "
            "networks here have a constant one"
        )
    section = ObjectiveSection(name=name)
    section.low_variance = reading.config.get("algo.loss_type") == "low_var"
    if name == "esolm":
        return _esolm(reading, section)
    if name == "ar":
        section.prepend = str(reading.config.get("algo.prepend_token") or "none")
        if section.prepend not in ("none", "bos", "mask"):
            raise ImportCheckpointError(f"it prepends '{section.prepend}', not bos or mask")
    elif name == "bd3lm":
        _bd3lm(reading, section, clips)
    return section


def _refuse_other_options(options: Options, name: str) -> None:
    for option, given, owner in (
        ("--alpha-0", options.alpha_0, "esolm"),
        ("--block-size", options.block_size, "bd3lm"),
    ):
        if given is not None and name != owner:
            raise ImportCheckpointError(f"{option} goes with '{owner}'; this is '{name}'")


def _has_time(config: StoredConfig) -> bool:
    return bool(config.get("algo.time_conditioning") or config.get("time_conditioning"))


def _esolm(reading: Reading, section: ObjectiveSection) -> ObjectiveSection:
    options = reading.options
    section.alpha_0 = reading.value("algo.alpha_0", "--alpha-0", options.alpha_0, 1.0)
    section.kappa = _kappa(reading, section.alpha_0)
    modes = [reading.config.get(f"algo.{phase}_attn_mode") for phase in ("diffusion", "sequential")]
    # The mode of a phase that never happens means nothing.
    if section.alpha_0 == 0.0:
        modes[0] = None
    if section.alpha_0 == 1.0:
        modes[1] = None
    if modes[0] == "bidirectional" and section.alpha_0 == 1.0 and options.variant is None:
        reading.notes.append("Eso-LM with bidirectional attention and alpha_0 = 1 is MDLM")
        return ObjectiveSection(name="mdlm", low_variance=section.low_variance)
    section.variant = _variant(modes, options.variant)
    _note_shuffling(reading, section)
    problems = EsoLM(0, section.alpha_0, section.kappa, section.variant).problems(0)
    if problems:
        raise ImportCheckpointError("its configuration is impossible: " + "; ".join(problems))
    return section


def _kappa(reading: Reading, alpha_0: float) -> float:
    """Returns the share of rows that take the diffusion term; a hybrid needs rows of both terms."""
    if alpha_0 in (0.0, 1.0):
        return alpha_0
    split = reading.config.number("algo.batch_split")
    if split is not None and 0.0 < split < 1.0:
        return split
    if split is not None:
        reading.notes.append(
            f"batch_split is {split:g}, which leaves a term of alpha_0 {alpha_0:g} without rows; "
            "training goes on with 0.5"
        )
    return 0.5


def _variant(modes: list[Any], given: str | None) -> str:
    """Returns A or B by the attention modes of the phases, or else by the option.

    modes: None for one that is unknown or means nothing. Raises ImportCheckpointError if the modes
    fit neither variant, contradict the option, or tell nothing without an option.
    """
    known = [mode for mode in modes if mode is not None]
    fitting = [
        name
        for name, expected in MODES.items()
        if all(m in (None, e) for m, e in zip(modes, expected, strict=True))
    ]
    if known and not fitting:
        raise ImportCheckpointError(
            f"its attention modes {' and '.join(map(str, known))} are neither those of Eso-LM (A), "
            "mixed2 and mixed, nor of (B), causal and causal"
        )
    if known and given not in (None, *fitting):
        raise ImportCheckpointError(f"it was trained as Eso-LM ({fitting[0]}), not as ({given})")
    if not known and given is None:
        raise ImportCheckpointError(
            "its variant is not stored in the file: pass --variant A or --variant B"
        )
    return given if given is not None else fitting[0]


def _note_shuffling(reading: Reading, section: ObjectiveSection) -> None:
    """Notes a run that kept the natural order under causal attention: training here differs."""
    for phase, happens in (("diffusion", section.alpha_0 > 0), ("sequential", section.alpha_0 < 1)):
        shuffled = reading.config.get(f"algo.{phase}_shuffle")
        if shuffled is False and happens and section.variant == "B":
            reading.notes.append(
                f"{phase} steps were trained in natural order, unlike Eso-LM (B): the network is "
                "imported as it is, but training goes on in random order"
            )


def _bd3lm(reading: Reading, section: ObjectiveSection, clips: dict[str, float]) -> None:
    config, options = reading.config, reading.options
    section.block_size = reading.value("block_size", "--block-size", options.block_size, 4)
    if section.block_size < 1:
        raise ImportCheckpointError(f"its block size is {section.block_size}")
    low, high = (
        clips.get(key, config.number(f"training.{key}"))
        for key in ("sampling_eps_min", "sampling_eps_max")
    )
    # The range is stored as float32, in which 0.001 is not quite 0.001; so it is rounded.
    section.t_min = min(max(EPSILON, round(low if low is not None else EPSILON, 6)), 1.0)
    section.t_max = min(max(section.t_min, round(high if high is not None else 1.0, 6)), 1.0)
    section.resample = bool(config.get("training.resample") or False)
    keep_first = config.get("algo.ignore_bos")
    section.keep_first = True if keep_first is None else bool(keep_first)
    # The published loss drops its weight if t is never small.
    section.low_variance = section.t_min > 0.5
    if section.t_min == section.t_max == 1.0:
        section.resample = False
    problems = BD3LM(0, section.block_size, section.t_min, section.t_max).problems(
        section.block_size
    )
    if problems:
        raise ImportCheckpointError("its configuration is impossible: " + "; ".join(problems))
