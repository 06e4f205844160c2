"""What every tokenizer offers, and the numbers that a dataset or a network must agree on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TokenizerInfo:
    """The numbers of a tokenizer that a dataset records.

    Every id but `unk_id` is set; eos ends documents.
    """

    vocab_size: int
    """The rows of a network, with the mask's."""
    unk_id: int
    """-1 if the tokenizer has none."""
    bos_id: int
    """The id of eos if the tokenizer has no bos."""
    eos_id: int
    mask_id: int
    fingerprint: str

    def to_record(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable record."""
        return asdict(self)


@dataclass(frozen=True)
class Vocabulary:
    """The rows and special ids of a tokenizer. An id is None if it has no such token."""

    num_rows: int
    """The rows of a network with this vocabulary, with the mask's."""
    mask_id: int
    fingerprint: str
    """What the tokenizer is known by; another vocabulary has another fingerprint."""
    unk_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    mask_is_added: bool = False
    """Whether the tokenizer itself has no mask, so that a network has a last row for it."""
    fingerprint_is_of_files: bool = False
    """Whether the same tokenizer, saved again by its library, may get another fingerprint."""

    @property
    def num_tokens(self) -> int:
        """The number of tokens that the tokenizer itself knows, without a mask that was added."""
        return self.num_rows - self.mask_is_added

    @property
    def identity(self) -> str | None:
        """The fingerprint, if every copy of the tokenizer has the same one, and else None."""
        return None if self.fingerprint_is_of_files else self.fingerprint


class Tokenizer(ABC):
    """The tokenizer of one folder. path: the path that messages name."""

    is_lossless: ClassVar[bool] = False
    """Whether `decode` gives back the very text that `encode` was given."""

    path: Path
    vocabulary: Vocabulary

    @abstractmethod
    def __init__(self, directory: Path) -> None:
        """Read a directory that is of this kind, or raise DataError."""

    @staticmethod
    @abstractmethod
    def recognises(directory: Path) -> bool:
        """Return whether a directory is of this kind, by its files' names and what they say of it.

        It may still be damaged. Raises DataError if a file that says so cannot be read.
        """

    @abstractmethod
    def encode(self, text: str, recognise_specials: bool = False) -> list[int]:
        """Return the token ids of a text, without special tokens around it.

        recognise_specials: whether the name of a special token in the text becomes that token, if
        the tokenizer can do so. A corpus is encoded without it, or the name of eos within a
        document would end the document there.
        """

    @abstractmethod
    def decode(self, ids: Ids) -> str:
        """Return the text of token ids; special tokens, the mask among them, leave no trace."""

    @abstractmethod
    def decode_with_specials(self, ids: Ids) -> str:
        """Return the text of token ids with special tokens written out, for people to read."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Make a directory and write a copy into it, each file atomically."""

    def save_for_bundle(self, directory: Path) -> None:
        """Write the files from which transformers loads this tokenizer into an existing directory.

        Raises DataError if transformers cannot load this kind, which is the default.
        """
        raise DataError(
            f"{self.path}: transformers has no tokenizer of this kind ({type(self).__name__}), so "
            "a bundle cannot carry it."
        )

    def encode_in_bundle(self, text: str) -> list[int]:
        """Return the ids that the copy in a bundle gives a text when it is called without options.

        Special tokens may stand around them, and may be recognised in the text.
        """
        return self.encode(text)

    def encode_parts(self, text: str) -> Iterator[Ids]:
        """Yield the ids of `encode` in parts that need little memory; by default, in one part."""
        yield self.encode(text)

    def num_bytes(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the UTF-8 bytes of the text of each row: [N, L] -> [N]."""
        return np.array([len(self.decode(row).encode()) for row in tokens], dtype=np.int64)

    @property
    def info(self) -> TokenizerInfo:
        """The numbers that a dataset records; raises DataError as `dataset_info` does."""
        return dataset_info(self.vocabulary, self.path)


def dataset_info(vocabulary: Vocabulary, path: Path) -> TokenizerInfo:
    """Return what a dataset records of a vocabulary.

    path: the path that messages name. Raises DataError if the vocabulary has no token to end a
    document with.
    """
    if vocabulary.eos_id is None:
        raise DataError(
            f"{path} has no eos or sep token to end documents with, so no dataset can be made with "
            "it. Give a tokenizer that has one."
        )
    return TokenizerInfo(
        vocab_size=vocabulary.num_rows,
        unk_id=-1 if vocabulary.unk_id is None else vocabulary.unk_id,
        bos_id=vocabulary.eos_id if vocabulary.bos_id is None else vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        mask_id=vocabulary.mask_id,
        fingerprint=vocabulary.fingerprint,
    )
