"""A tokenizer directory of transformers, such as that of gpt2, in place of one of our own.

With it a published network can go on training on new text under the tokenizer that it knows.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import write_atomic
from esolm.data_prep.tokenizers.own import CONFIG_NAME
from esolm.data_prep.tokenizers.protocol import Ids, Tokenizer, Vocabulary

# A directory that holds any of these files is one of transformers.
FILES = (CONFIG_NAME, "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")


class TransformersTokenizer(Tokenizer):
    """A tokenizer of transformers; it gives a text back exactly only if it is lossless itself."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._tokenizer = _load(directory)
        self.vocabulary = _describe(self._tokenizer, directory)
        known = self.vocabulary
        unknown = known.mask_is_added and known.mask_id >= len(self._tokenizer)
        self._unknown_id = known.mask_id if unknown else None

    @staticmethod
    def recognises(directory: Path) -> bool:
        return any((directory / name).is_file() for name in FILES)

    def encode(self, text: str, recognise_specials: bool = False) -> list[int]:
        # Where special tokens may be recognised, the tokenizer's own setting decides.
        plain = {} if recognise_specials else {"split_special_tokens": True}
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False, **plain)
        return [int(i) for i in encoded["input_ids"]]

    def encode_in_bundle(self, text: str) -> list[int]:
        return [int(i) for i in self._tokenizer(text, verbose=False)["input_ids"]]

    def decode(self, ids: Ids) -> str:
        return self._decode(ids, skip=True)

    def decode_with_specials(self, ids: Ids) -> str:
        return self._decode(ids, skip=False)

    def _decode(self, ids: Ids, skip: bool) -> str:
        known = [int(i) for i in ids if i != self._unknown_id]
        return str(self._tokenizer.decode(known, skip_special_tokens=skip))

    def save(self, directory: Path) -> None:
        """Copies the files as they are, so that the copy has the same fingerprint."""
        directory.mkdir(parents=True, exist_ok=True)
        for path in _files(self.path):
            write_atomic(directory / path.name, path.read_bytes())

    def save_for_bundle(self, directory: Path) -> None:
        # The files are not copied, so that what lies beside the tokenizer and belongs to another
        # network stays behind.
        self._tokenizer.save_pretrained(directory)


def _load(directory: Path) -> Any:
    """Return the tokenizer that transformers loads from the directory, running no code of it.

    Raises DataError if transformers cannot load it.
    """
    # Threads would not help, because tokenising has a process for each core already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers takes seconds to import, and our own tokenizer does without it.
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it warns that it does not know the network of a bundle
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    # The Rust library raises a plain Exception for a tokenizer.json that it cannot read.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{directory} looks like a tokenizer directory of transformers, which cannot load it "
            f"({reason}). Restore its files, or save the tokenizer again with save_pretrained."
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _describe(tokenizer: Any, directory: Path) -> Vocabulary:
    """Describe the vocabulary by the conventions of the published networks.

    A tokenizer without a mask gets a row for it, and [CLS] and [SEP] stand in for bos and eos.
    """
    size, mask_id = int(tokenizer.vocab_size), tokenizer.mask_token_id
    return Vocabulary(
        num_rows=size + (mask_id is None),
        mask_id=size if mask_id is None else int(mask_id),
        fingerprint=_fingerprint(directory),
        unk_id=tokenizer.unk_token_id,
        bos_id=_first(tokenizer.bos_token_id, tokenizer.cls_token_id),
        eos_id=_first(tokenizer.eos_token_id, tokenizer.sep_token_id),
        mask_is_added=mask_id is None,
        fingerprint_is_of_files=True,
    )


def _first(*ids: int | None) -> int | None:
    return next((int(each) for each in ids if each is not None), None)


def _fingerprint(directory: Path) -> str:
    """Return a sha256 over the files that determine the tokens, whatever else lies beside them.

    If there is a tokenizer.json, it is that file alone, which holds vocabulary, merges and
    normaliser.
    """
    whole = directory / "tokenizer.json"
    digest = hashlib.sha256()
    for path in [whole] if whole.is_file() else _files(directory):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    suffixes = (".json", ".txt", ".model", ".jinja")
    return sorted(p for p in directory.iterdir() if p.is_file() and p.suffix in suffixes)
