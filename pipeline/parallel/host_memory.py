"""How the C library hands freed host memory back to the system."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Names and values of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

LARGE_BLOCK = 1 << 20
_GROWN_MMAP_THRESHOLD = 32 << 20
"""Where glibc's own threshold ends up, once blocks of that size have been freed."""


@contextmanager
def freed_blocks_go_back() -> Iterator[None]:
    """Gives blocks above 1 MiB back to the system as soon as they are freed, within the block.

    A start makes and frees one tensor after the other, in many sizes, and glibc would keep most of
    that for later: 2.5 bytes for each parameter of 200 M were seen. Afterwards blocks are kept as
    glibc does by itself, because the tensors of a step come back in the same sizes. Does nothing
    with another C library.
    """
    _keep_blocks_below(LARGE_BLOCK, LARGE_BLOCK)
    try:
        yield
    finally:
        _keep_blocks_below(_GROWN_MMAP_THRESHOLD, 2 * _GROWN_MMAP_THRESHOLD)


def _keep_blocks_below(size: int, trim: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, size)
        mallopt(_TRIM_THRESHOLD, trim)
