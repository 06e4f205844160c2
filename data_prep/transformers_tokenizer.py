"""A tokenizer directory of transformers, such as that of gpt2, in place of one of our own.

So that a published network can go on training on new text under the tokenizer that it knows.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.errors import DataError
from data_prep.files import write_atomic
from data_prep.tokenizer import MODEL_NAME, TokenizerInfo

CONFIG_NAME = "tokenizer_config.json"
# Any of these makes a directory one of transformers.
FILES = (CONFIG_NAME, "tokenizer.json", "vocab.json", "vocab.txt")


def is_foreign(directory: Path) -> bool:
    """Whether a directory is one of transformers; ours has a `tokenizer.model` and no config."""
    own = (directory / MODEL_NAME).is_file() and not (directory / CONFIG_NAME).is_file()
    return not own and any((directory / name).is_file() for name in FILES)


def load_foreign(directory: Path) -> Any:
    """Whatever transformers makes of the directory; no code of the directory is run.

    Raises DataError if transformers cannot load it.
    """
    # Tokenising has a process for each core already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it warns that it does not know the network of a bundle
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{directory} holds no tokenizer of transformers ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)


class TransformersTokenizer:
    """Text to token ids and back, as far as the tokenizer itself is lossless.

    No special token is added, or recognised in text.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._tokenizer = load_foreign(directory)
        self.info = _describe(self._tokenizer, directory)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return [int(i) for i in encoded["input_ids"]]

    def encode_parts(self, text: str) -> Iterator[list[int]]:
        """Yield the token ids of a text, in one part: where it may be cut is not known."""
        yield self.encode(text)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
        """Return the text of token ids; special tokens leave no trace."""
        return self._decode(ids, skip=True)

    def decode_with_specials(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
        """Return the text of token ids with special tokens written out, for people to read."""
        return self._decode(ids, skip=False)

    def _decode(self, ids: Sequence[int] | npt.NDArray[np.int64], skip: bool) -> str:
        # A mask that the tokenizer does not know has the row after its vocabulary.
        known = [int(i) for i in ids if i < self.info.vocab_size]
        return str(self._tokenizer.decode(known, skip_special_tokens=skip))


def _describe(tokenizer: Any, directory: Path) -> TokenizerInfo:
    """Raises DataError where nothing can end a document."""
    rows, mask_id = network_rows(tokenizer)
    bos_id, eos_id = boundary_ids(tokenizer)
    if eos_id is None:
        raise DataError(f"{directory}: the tokenizer has no eos or sep token to end documents with")
    return TokenizerInfo(
        vocab_size=rows,
        unk_id=-1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id),
        bos_id=eos_id if bos_id is None else bos_id,
        eos_id=eos_id,
        mask_id=mask_id,
        fingerprint=fingerprint_of_directory(directory),
    )


def network_rows(tokenizer: Any) -> tuple[int, int]:
    """Rows of a network, and the mask's; as published, one is added where there is no mask."""
    size, mask_id = int(tokenizer.vocab_size), tokenizer.mask_token_id
    return (size + 1, size) if mask_id is None else (size, int(mask_id))


def boundary_ids(tokenizer: Any) -> tuple[int | None, int | None]:
    """bos and eos; as published, [CLS] and [SEP] where there are none."""
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    return (
        tokenizer.cls_token_id if bos_id is None else bos_id,
        tokenizer.sep_token_id if eos_id is None else eos_id,
    )


def copy_foreign(source: Path, target: Path) -> None:
    """Write the files that make a tokenizer, each atomically."""
    target.mkdir(parents=True, exist_ok=True)
    for path in _files(source):
        write_atomic(target / path.name, path.read_bytes())


def fingerprint_of_directory(directory: Path) -> str:
    """Return a sha256 over what makes the tokens, whatever else lies beside it.

    That is tokenizer.json alone where there is one: vocabulary, merges and normaliser in one file.
    """
    whole = directory / "tokenizer.json"
    digest = hashlib.sha256()
    for path in [whole] if whole.is_file() else _files(directory):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    suffixes = (".json", ".txt", ".model", ".jinja")
    return sorted(p for p in directory.iterdir() if p.is_file() and p.suffix in suffixes)
