"""What an objective is."""

from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.flops import RowWork
from model.inputs import NetworkInput, Targets
from model.objectives.draws import SampleKeys

DIFFUSION, SEQUENTIAL = "diffusion", "sequential"


class Objective(Protocol):
    """A pure function of (tokens, keys), and how it shares out a global batch among its terms."""

    def problems(self, seq_len: int) -> list[str]:
        """Everything that makes this objective impossible on rows of seq_len tokens, in words."""
        ...

    def predicted_tokens(self, seq_len: int) -> int:
        """Tokens of a row that the loss speaks of; the others are given."""
        ...

    def terms(self, global_batch_size: int) -> dict[str, range]:
        """Slots of the global batch by loss term; a micro-batch lies within one term."""
        ...

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        """Makes the network's input and targets of int64 tokens [B, L], all of one term."""
        ...

    def times(self, seq_len: int, keys: SampleKeys) -> NDArray[np.float64] | None:
        """t of every output position as `corrupt` draws it, [B, L]; None in a term without time."""
        ...

    def for_validation(self) -> Self:
        """The same objective with the weights of the bound itself.

        It equals the objective where the training loss is a bound already.
        """
        ...

    def work(self, seq_len: int) -> list[RowWork]:
        """The kinds of rows in a global batch, as far as their cost goes."""
        ...


def term_of(objective: Objective, keys: SampleKeys) -> str:
    """The one loss term of a micro-batch.

    Raises ValueError if the rows span two terms; the configuration check rules that out.
    """
    for name, slots in objective.terms(keys.global_batch_size).items():
        if all(int(slot) in slots for slot in keys.slot):
            return name
    raise ValueError(f"rows {keys.slot.tolist()} of a micro-batch span more than one loss term")
