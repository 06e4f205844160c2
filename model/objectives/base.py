"""What an objective is."""

from typing import Protocol, Self

from torch import Tensor

from model.inputs import NetworkInput, Targets
from model.objectives.draws import SampleKeys


class Objective(Protocol):
    """A pure function of (tokens, keys), and how it shares out a global batch among its terms."""

    def terms(self, global_batch_size: int) -> dict[str, range]:
        """Slots of the global batch by loss term; a micro-batch lies within one term."""
        ...

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        """Makes the network's input and targets of int64 tokens [B, L], all of one term."""
        ...

    def for_validation(self) -> Self:
        """The same objective with the weights of the bound itself."""
        ...

    def problems(self) -> list[str]:
        """Everything that makes this objective impossible, in words."""
        ...


def term_of(objective: Objective, keys: SampleKeys) -> str:
    """The one loss term of a micro-batch.

    Raises ValueError if the rows span two terms; the configuration check rules that out.
    """
    for name, slots in objective.terms(keys.global_batch_size).items():
        if all(int(slot) in slots for slot in keys.slot):
            return name
    raise ValueError(f"rows {keys.slot.tolist()} of a micro-batch span more than one loss term")
