"""A split of a prepared dataset as one stream of tokens, read at any place.

The dataset lies in a folder of this machine or at an address that fsspec reads.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import ShardInfo
from esolm.data_prep.manifest import (
    TOKENIZER_DIRECTORY,
    read_manifest,
    shard_problems,
)
from esolm.data_prep.remote import is_url, local_path
from esolm.model.objectives import VocabularyIds
from esolm.pipeline.data.block_cache import CachePlace
from esolm.pipeline.data.checked_tokens import advice_for
from esolm.pipeline.data.remote_dataset import RemoteDataset
from esolm.pipeline.data.token_stream import TokenStream

Int64Array = npt.NDArray[np.int64]


class TokenDataset:
    """The tokens of one split, its shards end to end; each document is followed by eos.

    Reading is by position (pread), so threads and forked processes may share an instance.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        checked: bool = True,
        cache: CachePlace | None = None,
        may_be_short: bool = False,
    ) -> None:
        """Open a dataset directory, or one at an address.

        checked: whether the files' sizes are looked at now, and the checksums of tokens whenever
        they are read; at an address these are looked at in any case. cache: where tokens from an
        address are kept. may_be_short: whether a shard that was cut short is opened, too.

        Raises DataError when the manifest is missing or damaged, when a shard is missing or has not
        its exact size, or when the split holds no tokens, and EsolmError when a server fails.
        """
        path = local_path(path)
        self._given, self.cache, self._may_be_short = path, cache, may_be_short
        self.remote = RemoteDataset(str(path), cache or CachePlace()) if is_url(path) else None
        self.path = Path(path) if self.remote is None else self.remote.records
        """The folder of its records on this machine."""
        self.split = split
        self.manifest = manifest = (
            read_manifest(self.path) if self.remote is None else self.remote.manifest
        )
        self.num_tokens = manifest.num_tokens(split)
        if not self.num_tokens:
            sizes = ", ".join(f"{s}: {manifest.num_tokens(s)}" for s in manifest.splits)
            raise DataError(
                f"{self.name} holds no tokens of split '{split}' (tokens by split: {sizes}). "
                "Name another split, or tokenize again with a larger --valid-fraction; a document "
                "is never divided between splits, so cut a corpus of one or few into more."
            )
        shards = manifest.splits[split]
        if checked and (problems := self._size_problems(shards)):
            raise DataError("\n".join(problems))
        self.fingerprint = manifest.fingerprint
        self.former_fingerprint = manifest.former_fingerprint
        self.vocab_size = manifest.tokenizer.vocab_size
        self.mask_id = manifest.tokenizer.mask_id
        self.bos_id = manifest.tokenizer.bos_id
        self.eos_id = manifest.tokenizer.eos_id
        self.tokenizer_fingerprint = manifest.tokenizer.fingerprint
        self.tokenizer_directory = self.path / TOKENIZER_DIRECTORY
        self.shards = shards
        self._sized, self.checked = checked, checked or self.remote is not None
        self._stream = stream_of([self])

    @property
    def name(self) -> str:
        """What messages call it: its folder, or its address without a user's name and password."""
        return str(self.path if self.remote is None else self.remote)

    @property
    def place(self) -> str:
        """Where it is found again from any folder."""
        return str(self.path.resolve()) if self.remote is None else self.name

    @property
    def advice(self) -> str:
        """What a user does about damage."""
        return advice_for(self.remote or self.path)

    def other_split(self, split: str) -> "TokenDataset":
        """Return another split, opened as this one was. Raises what opening raises."""
        return TokenDataset(self._given, split, self._sized, self.cache, self._may_be_short)

    def _size_problems(self, shards: list[ShardInfo]) -> list[str]:
        if self.remote is not None:
            problems = self.remote.size_problems(shards, self._may_be_short)
        else:
            problems = shard_problems(self.path, shards, self._may_be_short)
        return [*problems, self.advice] if problems else []

    @property
    def ids(self) -> VocabularyIds:
        """The ids that objectives put into sequences, and the size of the vocabulary."""
        return VocabularyIds(self.vocab_size, self.mask_id, self.bos_id, self.eos_id)

    def read(self, start: int, length: int) -> Int64Array:
        """Return tokens [length] of the stream from position `start`."""
        rows = self.read_many(np.array([start], dtype=np.int64), length)
        return rows.reshape(length)

    def read_many(self, starts: Int64Array, length: int) -> Int64Array:
        """Return tokens [N, length] of the stream from each start [N].

        Raises DataError when a shard is shorter than it was when the dataset was opened, or holds a
        token that is not of the vocabulary.
        """
        if (starts < 0).any() or (starts + length > self.num_tokens).any():
            raise IndexError(f"tokens outside [0, {self.num_tokens}) of {self.name} were asked for")
        return self._stream.read_many(starts, length)

    def read_into(
        self, rows: Int64Array, places: Int64Array, starts: Int64Array, sizes: Int64Array
    ) -> None:
        """Fill rows [N, L] with pieces of the stream; see `TokenStream.read_into`."""
        self._stream.read_into(rows, places, starts, sizes)


def stream_of(datasets: "Sequence[TokenDataset]") -> TokenStream:
    """Returns the tokens of datasets of one tokenizer, one after the other."""
    manifest = datasets[0].manifest
    shards = [(each.remote or each.path, shard) for each in datasets for shard in each.shards]
    # What comes over a network is never used unchecked.
    checked = all(each.checked for each in datasets) or any(each.remote for each in datasets)
    return TokenStream(shards, manifest.dtype, manifest.tokenizer.vocab_size, checked)
