"""Near-duplicates by MinHash: documents with most of their passages in common share a band.

The signature of a document is the least value, over its passages of 5 words, of each of 112 hash
functions; two signatures agree in one place with the probability of the Jaccard index J of the two
sets of passages. It is cut into 14 bands of 8 places, and two documents are near-duplicates if they
agree in a whole band: with the probability 1 - (1 - J^8)^14, which is 0.5 at J = 0.68. These are
the settings of FineWeb (arXiv 2406.17557, section 3.4).
"""

import hashlib

import numpy as np

from esolm.data_prep.cleaning.words import Hashes, hashes_of, rolling, words_of

PASSAGE_WORDS = 5
NUM_BANDS, BAND_PLACES = 14, 8
SEED = 20240617
CHUNK_PASSAGES = 4096

_random = np.random.Generator(np.random.PCG64(SEED))
_FACTORS, _TERMS = _random.integers(
    0, 1 << 64, (2, NUM_BANDS * BAND_PLACES, 1), dtype=np.uint64
) | np.uint64(1)


def signature(text: str) -> Hashes | None:
    """Return the signature of a text, [112]; None if it is shorter than a passage."""
    passages = rolling(hashes_of(words_of(text)), PASSAGE_WORDS)
    if not len(passages):
        return None
    passages = np.unique(passages)
    least = np.full(len(_FACTORS), np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(passages), CHUNK_PASSAGES):
        # Multiply-shift: the high half of a x + b modulo 2^64 depends on all of x.
        values = (passages[None, start : start + CHUNK_PASSAGES] * _FACTORS + _TERMS) >> np.uint64(
            32
        )
        np.minimum(least, values.min(axis=1), out=least)
    return least


def band_keys(text: str) -> list[bytes]:
    """Return a key of 16 bytes for each band of a text; near-duplicates share one."""
    found = signature(text)
    if found is None:
        return []
    bands = found.reshape(NUM_BANDS, BAND_PLACES)
    return [
        hashlib.blake2b(bytes([number]) + band.tobytes(), digest_size=16).digest()
        for number, band in enumerate(bands)
    ]
