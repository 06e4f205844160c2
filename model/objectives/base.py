"""What an objective is, and what the registry knows of each.

An `Objective` is a pure function of (tokens, keys), with properties that say what holds for it. An
`ObjectiveKind` is its entry in the registry: its name, how it is built from the settings of a run,
and what evaluation, export and decoding must know. No code outside the file of an objective asks
which objective it is.

To add one of your own, write it in a package that is installed, and name its kind among the entry
points of the group `esolm.objectives`; `objective.name` then finds it. The following one trains a
denoiser: a share t of the tokens is replaced by random ones, and all of them are predicted.

```python
from dataclasses import dataclass

import numpy as np
import torch

from esolm.model.attention import AttentionPattern
from esolm.model.flops import RowWork
from esolm.model.objectives.base import DIFFUSION, Objective, ObjectiveKind
from esolm.model.objectives.draws import Purpose
from esolm.model.objectives.noise import row_times
from esolm.model.objectives.rows import MaskedRows


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

from esolm.model.flops import RowWork
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.objectives.draws import SampleKeys

DIFFUSION, SEQUENTIAL = "diffusion", "sequential"


class Orders(Enum):
    """The generation orders under which a network gives the exact likelihood of a sequence."""

    NONE = "none"
    LEFT_TO_RIGHT = "left to right"
    """Only the order in which `corrupt` feeds the network; `corrupt` then draws nothing."""
    ANY = "any"
    """Any order, in one pass over 2L tokens; see `esolm.model.likelihood.order_log_likelihood`."""
    ANY_BEHIND_PREFIX = "any, behind a prefix"
    """Any order; the tokens of the diffusion phase, which stand in front, see each other."""


class Objective(ABC):
    """A pure function of (tokens, keys), and how it shares out a global batch among its terms."""

    @abstractmethod
    def predicted_tokens(self, seq_len: int) -> int:
        """The number of tokens of a row that are predicted; the others are given."""

    @abstractmethod
    def terms(self, global_batch_size: int) -> dict[str, range]:
        """Which slots of the global batch each loss term takes; a micro-batch lies within one term.

        A batch that is large enough has as many terms as `work` has kinds of rows.
        """

    @abstractmethod
    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        """Makes the network's input and targets from int64 tokens [B, L], all of one term."""

    @abstractmethod
    def work(self, seq_len: int) -> list[RowWork]:
        """The kinds of rows in a global batch, with what their cost depends on."""

    def problems(self, seq_len: int) -> list[str]:
        """Says all that makes this objective impossible on rows of seq_len tokens."""
        return []

    def for_validation(self) -> Self:
        """The same objective with the weights of the bound itself.

        If the training loss is a bound already, that is the objective as it is.
        """
        return self

    eos_id: int | None = None
    """What ends the documents of a row, where tokens see only those of their own document."""
    context: int = 0
    """How many tokens of a row end what counts as a document whatever they are; 0: no number."""

    @property
    def keeps_apart(self) -> bool:
        """Whether rows are of documents that do not see each other."""
        return self.eos_id is not None or self.context > 0

    @property
    def _asked_by(self) -> str:
        """The setting by which they do not."""
        if self.eos_id is not None:
            return "objective.separate_documents"
        return "train.context_schedule"

    def with_context(self, length: int) -> Self | None:
        """The same objective where tokens see those of their own `length` tokens of the row alone.

        None if it does not keep documents apart.
        """
        return None

    @property
    def is_exact(self) -> bool:
        """Whether the validation loss is the negative log-likelihood itself and draws nothing."""
        return False

    @property
    def orders(self) -> Orders:
        """The orders under which the network gives an exact likelihood."""
        return Orders.NONE

    @property
    def without_likelihood(self) -> str | None:
        """Why the network has no exact likelihood; None if it has one."""
        if self.is_exact or self.orders is not Orders.NONE:
            return None
        return "no exact likelihood: none is known for this objective"

    @property
    def diffusion_share(self) -> float:
        """The share of the tokens that the network is trained to write by diffusion, alpha_0."""
        return 1.0

    def at_alpha_0(self, alpha_0: float) -> Self | None:
        """The same objective at another share of diffusion; None if it has no such choice."""
        return None

    def clipped(self, t_min: float, t_max: float) -> Self | None:
        """The same objective with t drawn from a range; None if t always has all of [0, 1]."""
        return None


@dataclass(frozen=True)
class VocabularyIds:
    """The ids that objectives put into sequences, and the size of the vocabulary.

    bos_id, eos_id: None if the tokenizer is not known.
    """

    size: int
    mask_id: int
    bos_id: int | None
    eos_id: int | None = None


SCHEDULE_OPTIONS = ("alpha_0", "num_steps")
"""The options of decoding that only some decoders heed."""


@dataclass(frozen=True)
class Decoding:
    """How text is written from a bundle.

    decoders: keys of the bundle's WALKS, one for each variant; a test compares the two. options:
    those of SCHEDULE_OPTIONS that the decoders heed. fixed_share: the share of tokens that they
    write by diffusion; None if the option `alpha_0` sets it.
    """

    decoders: tuple[str, ...]
    options: tuple[str, ...]
    fixed_share: float | None


@dataclass(frozen=True)
class ObjectiveKind:
    """An entry of the registry.

    build: makes the objective from the settings of `objective:`, by name, and the ids of the
    vocabulary; it raises ValueError with everything that is wrong, one line each. orders: those
    under which every network of the kind gives an exact likelihood. decoding: None if no decoder of
    a bundle writes text. bundle_fields: takes the same arguments and returns what the configuration
    of a bundle must know beside the name.
    """

    name: str
    build: Callable[[Mapping[str, Any], VocabularyIds], Objective]
    orders: Orders = Orders.NONE
    decoding: Decoding | None = None
    bundle_fields: Callable[[Mapping[str, Any], VocabularyIds], dict[str, Any]] = lambda *_: {}


def end_of_documents(settings: Mapping[str, Any], ids: VocabularyIds) -> int | None:
    """Returns the id that ends the documents of a row, or None where they are not kept apart.

    Raises ValueError if they are and the id is not known.
    """
    if not settings.get("separate_documents", False):
        return None
    if ids.eos_id is None:
        raise ValueError(
            "the network was trained on separate documents, whose end only its tokenizer knows: "
            "name its --tokenizer"
        )
    return ids.eos_id


def term_of(objective: Objective, keys: SampleKeys) -> str:
    """Returns the name of the one loss term that a micro-batch belongs to.

    Raises ValueError if the rows span two terms, which the check of the configuration rules out.
    """
    for name, slots in objective.terms(keys.global_batch_size).items():
        if all(int(slot) in slots for slot in keys.slot):
            return name
    raise ValueError(f"rows {keys.slot.tolist()} of a micro-batch span more than one loss term")
