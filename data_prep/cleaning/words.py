"""Texts as hashes of their words, for looking for the same passages."""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"\w+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes: TypeAlias = npt.NDArray[np.uint64]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, so that punctuation and spaces do not count."""
    return WORD.findall(text.lower())


def hashes_of(words: Sequence[str]) -> Hashes:
    """Return a hash of each word, [N], the same in every process."""
    return np.fromiter(map(_hash, words), dtype=np.uint64, count=len(words))


# A few words are most of every text.
@lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def rolling(hashes: Hashes, size: int) -> Hashes:
    """Return the hash of every `size` words in a row: [N] -> [N - size + 1], or nothing."""
    count = max(0, len(hashes) - size + 1)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        total = total * MULTIPLIER + hashes[place : place + count]
    return total
