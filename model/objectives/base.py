"""What an objective is, and what the registry knows of each.

The contract: an `Objective` is a pure function of (tokens, keys) and what can be said of it. An
`ObjectiveKind` is its entry in the registry: its name, how it is built from the settings of a run,
and what evaluation, export and decoding must know. Nothing outside of its own file asks which one
it is.

To add one of your own, write it in a package that is installed, and name its kind among the entry
points of the group `esolm.objectives`; `objective.name` then finds it. This one trains a denoiser:
a share t of the tokens is replaced by random ones, and all of them are predicted.

```python
from dataclasses import dataclass

import numpy as np
import torch

from model.attention import AttentionPattern
from model.flops import RowWork
from model.objectives.base import DIFFUSION, Objective, ObjectiveKind
from model.objectives.draws import Purpose
from model.objectives.noise import row_times
from model.objectives.rows import MaskedRows


@dataclass(frozen=True)
class UniformNoise(Objective):
    vocab_size: int
    mask_id: int

    def predicted_tokens(self, seq_len):
        return seq_len

    def terms(self, global_batch_size):
        return {DIFFUSION: range(global_batch_size)}

    def corrupt(self, tokens, keys):
        t = row_times(keys, keys.global_batch_size)
        noisy = keys.uniforms(Purpose.MASK, tokens.shape[1]) < t
        drawn = (keys.uniforms(Purpose.ORDER, tokens.shape[1]) * (self.vocab_size - 1)).astype(int)
        drawn += drawn >= self.mask_id
        fed = torch.where(torch.from_numpy(noisy), torch.from_numpy(drawn), tokens)
        inputs = MaskedRows.in_place(fed, np.zeros_like(noisy)).one_stream(
            self.mask_id, AttentionPattern.BIDIRECTIONAL, keys
        )
        weight = np.array(1.0 / (keys.global_batch_size * tokens.shape[1]))
        return inputs, MaskedRows.in_place(tokens, np.ones_like(noisy)).targets(weight, t)

    def work(self, seq_len):
        return [RowWork(1.0, AttentionPattern.BIDIRECTIONAL, seq_len, seq_len)]


KIND = ObjectiveKind("uniform", build=lambda settings, ids: UniformNoise(ids.size, ids.mask_id))
```
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from torch import Tensor

from model.flops import RowWork
from model.inputs import NetworkInput, Targets
from model.objectives.draws import SampleKeys

DIFFUSION, SEQUENTIAL = "diffusion", "sequential"


class Orders(Enum):
    """The generation orders under which a network gives the exact likelihood of a sequence."""

    NONE = "none"
    LEFT_TO_RIGHT = "left to right"
    """The one order in which `corrupt`, which then draws nothing, feeds the network."""
    ANY = "any"
    """Any order, in one pass over 2L tokens; see `model.likelihood.order_log_likelihood`."""
    ANY_BEHIND_PREFIX = "any, behind a prefix"
    """Any order; the tokens of the diffusion phase, in front, see each other."""


class Objective(ABC):
    """A pure function of (tokens, keys), and how it shares out a global batch among its terms."""

    @abstractmethod
    def predicted_tokens(self, seq_len: int) -> int:
        """Tokens of a row that the loss speaks of; the others are given."""

    @abstractmethod
    def terms(self, global_batch_size: int) -> dict[str, range]:
        """Slots of the global batch by loss term; a micro-batch lies within one term.

        A large enough batch has as many terms as `work` names kinds of rows.
        """

    @abstractmethod
    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        """Makes the network's input and targets of int64 tokens [B, L], all of one term."""

    @abstractmethod
    def work(self, seq_len: int) -> list[RowWork]:
        """The kinds of rows in a global batch, as far as their cost goes."""

    def problems(self, seq_len: int) -> list[str]:
        """Everything that makes this objective impossible on rows of seq_len tokens, in words."""
        return []

    def for_validation(self) -> Self:
        """The same objective with the weights of the bound itself.

        It equals the objective where the training loss is a bound already.
        """
        return self

    @property
    def is_exact(self) -> bool:
        """Whether the validation loss draws nothing: it is the negative log-likelihood itself."""
        return False

    @property
    def orders(self) -> Orders:
        """The orders that the network has an exact likelihood under."""
        return Orders.NONE

    @property
    def without_likelihood(self) -> str | None:
        """Why the network has no exact likelihood; None if it has one."""
        if self.is_exact or self.orders is not Orders.NONE:
            return None
        return "no exact likelihood: none is known for this objective"

    @property
    def diffusion_share(self) -> float:
        """Share of the tokens that the network is trained to write by diffusion, alpha_0."""
        return 1.0

    def at_alpha_0(self, alpha_0: float) -> Self | None:
        """The same objective at another share of diffusion; None where there is no such choice."""
        return None

    def clipped(self, t_min: float, t_max: float) -> Self | None:
        """The same objective with t drawn from a range; None where it always has all of [0, 1]."""
        return None


@dataclass(frozen=True)
class VocabularyIds:
    """Ids that objectives put into sequences. bos_id: None where the tokenizer is not known."""

    size: int
    mask_id: int
    bos_id: int | None


SCHEDULE_OPTIONS = ("alpha_0", "num_steps")
"""Options of decoding that not every decoder heeds."""


@dataclass(frozen=True)
class Decoding:
    """How text is written from a bundle.

    decoders: names of the bundle's decoders, one for each variant. options: those of
    SCHEDULE_OPTIONS that it heeds. fixed_share: the share of tokens it writes by diffusion, None
    where `alpha_0` says.
    """

    decoders: tuple[str, ...]
    options: tuple[str, ...]
    fixed_share: float | None


@dataclass(frozen=True)
class ObjectiveKind:
    """An entry of the registry.

    build: from the settings of `objective:`, by name, and the vocabulary's ids; raises ValueError
    with everything that is wrong, a line each. orders: those that every network of the kind has.
    decoding: None where no decoder of a bundle writes text. bundle_fields: what the bundle's
    configuration must know beside the name, from the settings.
    """

    name: str
    build: Callable[[Mapping[str, Any], VocabularyIds], Objective]
    orders: Orders = Orders.NONE
    decoding: Decoding | None = None
    bundle_fields: Callable[[Mapping[str, Any], VocabularyIds], dict[str, Any]] = lambda *_: {}


def term_of(objective: Objective, keys: SampleKeys) -> str:
    """The one loss term of a micro-batch.

    Raises ValueError if the rows span two terms; the configuration check rules that out.
    """
    for name, slots in objective.terms(keys.global_batch_size).items():
        if all(int(slot) in slots for slot in keys.slot):
            return name
    raise ValueError(f"rows {keys.slot.tolist()} of a micro-batch span more than one loss term")
