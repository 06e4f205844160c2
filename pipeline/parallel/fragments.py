"""What one rank owns of the training state, as boxes of the full tensors.

A ZeRO fragment is a contiguous flat range of a (tensor-parallel local) parameter. In a row-major
matrix such a range is at most three boxes: the rest of a row, whole rows, the start of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

WEIGHTS, AVERAGE = "weights", "ema"
MOMENTS = ("exp_avg", "exp_avg_sq")
STATES = (WEIGHTS, *MOMENTS, AVERAGE)
"""The states that are saved of every parameter, all in fp32."""


@dataclass(frozen=True)
class Box:
    """A rectangular part of a full tensor, and where it lies in the fragment's flat storage."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    numel: int


@dataclass(frozen=True)
class Fragment:
    """This rank's part of one parameter.

    full_shape: the shape over all tensor-parallel ranks, without vocabulary padding. local_shape:
    the shape on this tensor-parallel rank, padding included. offsets: where the local part starts
    in the full tensor. start: the fragment's first element in the flattened local part. states: the
    fragment's 1-D tensors, which are views into the live training state.
    """

    name: str
    full_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    start: int
    states: dict[str, Tensor]
    writes: bool
    """False on ranks that hold a copy of what another rank writes."""

    @property
    def numel(self) -> int:
        return next(iter(self.states.values())).numel()

    def boxes(self) -> list[Box]:
        """Returns boxes that tile the fragment, cut to the full shape."""
        cut = (self._place(*box) for box in _tile(self.start, self.numel, self.local_shape))
        return [box for box in cut if box is not None]

    def fill(self, state: str, full: Tensor) -> None:
        """Copies this rank's part of a full tensor into a state."""
        for box in self.boxes():
            place = zip(box.offsets, box.sizes, strict=True)
            part = full[tuple(slice(start, start + size) for start, size in place)]
            self.states[state].narrow(0, box.start, box.numel).view(box.sizes).copy_(part)

    def _place(self, row: int, column: int, rows: int, columns: int, start: int) -> Box | None:
        """Moves a box of the local part into the full tensor and cuts it at the last row there."""
        row += self.offsets[0]
        rows = min(rows, self.full_shape[0] - row)
        if rows <= 0:
            return None
        if len(self.full_shape) == 1:
            return Box((row,), (rows,), start, rows)
        column += self.offsets[1]
        return Box((row, column), (rows, columns), start, rows * columns)


def _tile(
    start: int, numel: int, shape: tuple[int, ...]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (row, column, rows, columns, flat start) of the boxes that tile a flat range.

    A 1-D shape counts as one column.
    """
    width = shape[1] if len(shape) == 2 else 1
    position, end = start, start + numel
    while position < end:
        row, column = divmod(position, width)
        if column or end - position < width:
            rows, columns = 1, min(width - column, end - position)
        else:
            rows, columns = (end - position) // width, width
        yield row, column, rows, columns, position - start
        position += rows * columns
