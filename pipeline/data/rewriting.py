"""Datasets made of the documents of another one: of their tokens, and what is kept of them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import write_atomic
from esolm.data_prep.manifest import (
    CLEANING_NAME,
    ERRORS_NAME,
    EXAMPLES_NAME,
    SHARDS_DIRECTORY,
    SPLITS,
    TOKENIZER_DIRECTORY,
    Manifest,
    read_manifest,
    write_manifest,
)
from esolm.data_prep.new_folder import new_folder
from esolm.data_prep.origin import is_made, seeds_of, write_origin
from esolm.data_prep.shards import ShardWriter
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.data_prep.verify import tokenizer_problems
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.stored_documents import StoredDocument, stored_documents

REPORTS = (ERRORS_NAME, CLEANING_NAME, EXAMPLES_NAME)
Choice = tuple[int, str]
Choose = Callable[[str, StoredDocument], Choice]
"""Takes a document and its split; returns the number of the dataset that it goes to, -1 for none,
and its split there."""


@dataclass(frozen=True)
class NewDataset:
    """A dataset that is to be made. origin: what it is made from, and how."""

    out: Path
    origin: dict[str, Any]


def repack(
    data: Path, out: Path, shard_tokens: int, on_tokens: Callable[[int], None] = lambda _: None
) -> None:
    """Writes the same tokens and documents in the same order, in shards of another size.

    Returns at once if that was done before. Raises DataError if `out` is taken.
    """
    _check_shard_tokens(shard_tokens)
    manifest = read_manifest(data)
    origin = {
        "command": "repack",
        "dataset": manifest.fingerprint,
        "settings": {"shard_tokens": shard_tokens},
        "seeds": seeds_of(data),
    }
    rewrite(data, [NewDataset(out, origin)], _all_to_one, shard_tokens, on_tokens)


def _all_to_one(split: str, document: StoredDocument) -> Choice:
    return 0, split


def _check_shard_tokens(shard_tokens: int) -> None:
    if shard_tokens < 1:
        raise DataError(f"--shard-tokens is {shard_tokens}, must be at least 1.")


def rewrite(
    data: Path,
    new: Sequence[NewDataset],
    choose: Choose,
    shard_tokens: int,
    on_tokens: Callable[[int], None],
) -> None:
    """Writes the documents of a dataset into those for which they are chosen, in their order.

    Documents of the valid split come first. Datasets that are there already, made in the same way,
    stay as they are. Raises DataError if anything else is there, if a file of the dataset is
    damaged, or if a new one would have no tokens; then none is left.
    """
    _check_shard_tokens(shard_tokens)
    manifest = read_manifest(data)
    if problems := tokenizer_problems(data, manifest):
        raise DataError("\n".join(problems))
    made = [is_made(each.out, each.origin) for each in new]
    if all(made):
        return
    with ExitStack() as stack:
        writers: list[_Writer | None] = [
            None if done else stack.enter_context(_Writer(each, data, manifest, shard_tokens))
            for each, done in zip(new, made, strict=True)
        ]
        for split in reversed(SPLITS):
            if not manifest.num_tokens(split):
                continue
            for document in stored_documents(TokenDataset(data, split), on_tokens):
                number, split_there = choose(split, document)
                if number >= 0 and (writer := writers[number]) is not None:
                    writer.add(split_there, document)
        for writer in filter(None, writers):
            writer.finish()


class _Writer:
    """Writes one dataset; it has its name once the context ends without an error."""

    def __init__(self, new: NewDataset, data: Path, manifest: Manifest, shard_tokens: int) -> None:
        self._new, self._data, self._manifest = new, data, manifest
        self._shard_tokens = shard_tokens
        self._stack = ExitStack()

    def __enter__(self) -> "_Writer":
        self._folder = self._stack.enter_context(new_folder(self._new.out))
        (self._folder / SHARDS_DIRECTORY).mkdir()
        dtype = self._manifest.dtype
        self._writers = {
            split: ShardWriter(self._folder, split, 0, dtype, self._shard_tokens, None)
            for split in SPLITS
        }
        return self

    def add(self, split: str, document: StoredDocument) -> None:
        self._writers[split].add(document.parts(), document.kept)

    def finish(self) -> None:
        """Writes everything that a dataset has besides shards."""
        for writer in self._writers.values():
            writer.close()
        splits = {split: writer.shards for split, writer in self._writers.items()}
        if not any(splits.values()):
            raise DataError(
                f"--out {self._new.out} would hold no document of {self._data}: give it a larger "
                "share, or another --seed."
            )
        documents = sum(shard.num_documents for shards in splits.values() for shard in shards)
        counts = dict.fromkeys(self._manifest.counts, 0) | {"documents": documents}
        if documents == self._manifest.counts["documents"]:
            counts = self._manifest.counts
            for path in (self._data / name for name in REPORTS):
                if path.exists():
                    write_atomic(self._folder / path.name, path.read_bytes())
        tokenizer = load_tokenizer(self._data / TOKENIZER_DIRECTORY)
        tokenizer.save(self._folder / TOKENIZER_DIRECTORY)
        write_origin(self._folder, self._new.origin)
        manifest = Manifest(self._manifest.dtype, self._manifest.tokenizer, splits, counts)
        write_manifest(self._folder, manifest)

    def __exit__(self, *error: Any) -> None:
        for writer in self._writers.values():
            writer.discard()
        self._stack.__exit__(*error)
