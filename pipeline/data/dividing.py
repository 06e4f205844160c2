"""Datasets that share out the documents of another one, by hashes of their tokens."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import Manifest, read_manifest
from esolm.data_prep.origin import seeds_of
from esolm.pipeline.data.rewriting import Choice, NewDataset, rewrite
from esolm.pipeline.data.stored_documents import StoredDocument

HASH_END = 1 << 64
PART, VALID = b"part", b"valid"


@dataclass(frozen=True)
class Portion:
    """A dataset that gets a share of the documents."""

    out: Path
    share: Fraction


@dataclass(frozen=True)
class Division:
    """How documents are shared out.

    seed: another one deals them out anew. valid_fraction: the share of documents that are in the
    valid split of the new datasets, for which documents of train move there; None: as they are.
    """

    parts: tuple[Portion, ...]
    seed: int = 0
    valid_fraction: float | None = None

    def __post_init__(self) -> None:
        problems = []
        outs = [part.out.resolve() for part in self.parts]
        if not outs:
            problems.append("--out names no dataset to write")
        if len(set(outs)) < len(outs):
            problems.append("--out names a folder twice")
        if any(part.share <= 0 for part in self.parts):
            problems.append("--out: a share must be above 0")
        if sum(part.share for part in self.parts) > 1:
            problems.append("--out: the shares are more than 1 together")
        if not 0 <= self.seed < HASH_END:
            problems.append(f"--seed is {self.seed}, must be at least 0 and below 2^64")
        if self.valid_fraction is not None and not 0 < self.valid_fraction < 1:
            problems.append(f"--valid-fraction is {self.valid_fraction}, must be in (0, 1)")
        if problems:
            raise DataError("; ".join(problems) + ".")

    @property
    def bounds(self) -> list[int]:
        """Where the hashes of each part end, rising."""
        shares = [part.share for part in self.parts]
        return [int(sum(shares[: n + 1]) * HASH_END) for n in range(len(shares))]


def part_of(text: str) -> Portion:
    """Returns what `DIR=SHARE` says, or `DIR` for all. Raises DataError if it is neither."""
    name, mark, share = text.rpartition("=")
    try:
        return Portion(Path(name), Fraction(share)) if mark else Portion(Path(text), Fraction(1))
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"--out {text}: write DIR=SHARE, as in data/part=0.9.") from error


def divide(
    data: Path,
    division: Division,
    shard_tokens: int,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the datasets of a division; documents of equal tokens go the same way.

    Returns at once if that was done before. Raises DataError if a folder is taken, or if documents
    were dealt out by the same seed on the way to this dataset, for then a hash says nothing new.
    """
    manifest, seeds = read_manifest(data), seeds_of(data)
    if division.seed in seeds:
        unused = next(seed for seed in range(len(seeds) + 1) if seed not in seeds)
        raise DataError(
            f"{data} is itself what --seed {division.seed} left of another dataset, so its hashes "
            f"are no longer spread evenly: give another, as --seed {unused}."
        )
    origins = [
        {
            "command": "split",
            "dataset": manifest.fingerprint,
            "settings": {
                "hashes": [start, stop],
                "valid_fraction": division.valid_fraction,
                "shard_tokens": shard_tokens,
            },
            "seeds": [*seeds, division.seed],
        }
        for start, stop in zip([0, *division.bounds], division.bounds, strict=False)
    ]
    new = [NewDataset(p.out, origin) for p, origin in zip(division.parts, origins, strict=True)]
    rewrite(data, new, _Choose(division, manifest), shard_tokens, on_tokens)


class _Choose:
    def __init__(self, division: Division, manifest: Manifest) -> None:
        self._bounds = division.bounds
        self._seed = division.seed
        self._moved = _share_moved(division.valid_fraction, manifest) * HASH_END

    def __call__(self, split: str, document: StoredDocument) -> Choice:
        place = _hash_of(document, PART, self._seed)
        number = next((n for n, bound in enumerate(self._bounds) if place < bound), -1)
        if number >= 0 and split == "train" and self._moved:
            split = "valid" if _hash_of(document, VALID, self._seed) < self._moved else "train"
        return number, split


def _share_moved(wanted: float | None, manifest: Manifest) -> Fraction:
    """Returns which share of the documents of train goes to valid; DataError if valid has more."""
    if wanted is None:
        return Fraction(0)
    train, valid = (_num_documents(manifest, split) for split in ("train", "valid"))
    share = (Fraction(str(wanted)) * (train + valid) - valid) / max(1, train)
    if share < 0:
        raise DataError(
            f"--valid-fraction is {wanted}, and {valid:,} of {train + valid:,} documents "
            "are in valid already. Documents never move to train: give more."
        )
    return share


def _num_documents(manifest: Manifest, split: str) -> int:
    return sum(shard.num_documents for shard in manifest.splits[split])


def _hash_of(document: StoredDocument, purpose: bytes, seed: int) -> int:
    """Returns a hash, below 2^64, of a document's tokens as little-endian integers of 32 bits."""
    digest = hashlib.blake2b(digest_size=8, person=purpose, key=seed.to_bytes(8, "little"))
    for part in document.parts():
        digest.update(part.astype("<u4").tobytes())
    return int.from_bytes(digest.digest(), "little")


def left_out(parts: Sequence[Portion]) -> Fraction:
    """Returns the share of the documents that no part gets."""
    return 1 - sum((part.share for part in parts), Fraction(0))
