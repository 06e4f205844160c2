"""A split of a prepared dataset as one stream of tokens, read at any place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import (
    TOKENIZER_DIRECTORY,
    read_manifest,
    repair_advice,
    shard_problems,
)
from esolm.model.objectives import VocabularyIds
from esolm.pipeline.data.token_stream import TokenStream

Int64Array = npt.NDArray[np.int64]


class TokenDataset:
    """The tokens of one split, its shards end to end; each document is followed by eos.

    Reading is by position (pread), so threads and forked processes may share an instance.
    """

    def __init__(self, path: str | Path, split: str, checked: bool = True) -> None:
        """Open a dataset directory.

        checked: whether the files' sizes are looked at now, and the checksums of tokens whenever
        they are read. Raises DataError when the manifest is missing or damaged, when a shard is
        missing or has not its exact size, or when the split holds no tokens.
        """
        self.path = Path(path)
        self.split = split
        self.manifest = manifest = read_manifest(self.path)
        self.num_tokens = manifest.num_tokens(split)
        if not self.num_tokens:
            sizes = ", ".join(f"{s}: {manifest.num_tokens(s)}" for s in manifest.splits)
            raise DataError(
                f"{self.path} holds no tokens of split '{split}' (tokens by split: {sizes}). "
                "Name another split, or tokenize again with a larger --valid-fraction; a document "
                "is never divided between splits, so cut a corpus of one or few into more."
            )
        shards = manifest.splits[split]
        if checked and (problems := shard_problems(self.path, shards)):
            raise DataError("\n".join([*problems, repair_advice(self.path)]))
        self.fingerprint = manifest.fingerprint
        self.former_fingerprint = manifest.former_fingerprint
        self.vocab_size = manifest.tokenizer.vocab_size
        self.mask_id = manifest.tokenizer.mask_id
        self.bos_id = manifest.tokenizer.bos_id
        self.eos_id = manifest.tokenizer.eos_id
        self.tokenizer_fingerprint = manifest.tokenizer.fingerprint
        self.tokenizer_directory = self.path / TOKENIZER_DIRECTORY
        self.shards = shards
        self.checked = checked
        self._stream = stream_of([self])

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
            raise IndexError(f"tokens outside [0, {self.num_tokens}) of {self.path} were asked for")
        return self._stream.read_many(starts, length)

    def read_into(
        self, rows: Int64Array, places: Int64Array, starts: Int64Array, sizes: Int64Array
    ) -> None:
        """Fill rows [N, L] with pieces of the stream; see `TokenStream.read_into`."""
        self._stream.read_into(rows, places, starts, sizes)


def stream_of(datasets: "Sequence[TokenDataset]") -> TokenStream:
    """Returns the tokens of datasets of one tokenizer, one after the other."""
    manifest = datasets[0].manifest
    shards = [(dataset.path, shard) for dataset in datasets for shard in dataset.shards]
    checked = all(dataset.checked for dataset in datasets)
    return TokenStream(shards, manifest.dtype, manifest.tokenizer.vocab_size, checked)
