"""Tokens that are not what was written: where they lie, and the error that names them."""

from collections.abc import Iterable
from dataclasses import dataclass

from esolm.data_prep.errors import DataError

CUT_SHORT = "the shard ends before it, it was cut short while in use"


@dataclass(frozen=True)
class DamagedPart:
    """A place in a shard from which on tokens are damaged, what is wrong, and what to do."""

    shard: str
    member: int
    byte: int
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.shard}, member {self.member}, byte {self.byte}: {self.problem}"


class DamagedTokensError(DataError):
    """Names the first of the damaged parts that rows touch."""

    def __init__(self, parts: Iterable[DamagedPart]) -> None:
        """parts: in the order in which they lie; at least one."""
        self.parts = list(parts)
        super().__init__(f"{self.parts[0]}. {self.parts[0].advice}")
