"""A tokenizer directory of transformers, such as that of gpt2, in place of one of our own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from pipeline.errors import DataError, ExportError

CONFIG_NAME = "tokenizer_config.json"
# Any of these makes a directory one of transformers.
FILES = (CONFIG_NAME, "tokenizer.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ForeignInfo:
    """What a bundle and a network must agree on. fingerprint: over the directory's files.

    bos_id, eos_id: by the published conventions [CLS] and [SEP] where there is no bos and eos.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    mask_id: int | None
    fingerprint: str


def load_foreign(directory: Path) -> Any:
    """Whatever transformers makes of the directory; no code of the directory is run.

    Raises DataError if transformers cannot load it.
    """
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


class ForeignTokenizer:
    """The tokenizer of a directory; raises DataError if transformers cannot load it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._tokenizer = load_foreign(directory)
        self.info = ForeignInfo(
            vocab_size=int(self._tokenizer.vocab_size),
            bos_id=_first(self._tokenizer.bos_token_id, self._tokenizer.cls_token_id),
            eos_id=_first(self._tokenizer.eos_token_id, self._tokenizer.sep_token_id),
            mask_id=self._tokenizer.mask_token_id,
            fingerprint=_fingerprint(directory),
        )

    @property
    def network_mask_id(self) -> int:
        """The mask's row: the tokenizer's own, or one after its vocabulary."""
        return self.info.vocab_size if self.info.mask_id is None else self.info.mask_id

    @property
    def network_rows(self) -> int:
        """Rows of a network with this vocabulary, the mask's included."""
        return self.info.vocab_size + (self.info.mask_id is None)

    def encode(self, text: str) -> list[int]:
        """The ids that the tokenizer gives a text by default, its special tokens included."""
        return [int(i) for i in self._tokenizer(text)["input_ids"]]

    def decode(self, ids: Sequence[int] | Any, skip_special: bool = False) -> str:
        """The text of token ids; not every tokenizer gives back the very text that it was given."""
        numbers = [int(i) for i in ids]
        return str(self._tokenizer.decode(numbers, skip_special_tokens=skip_special))

    def write(self, directory: Path, model: ModelConfig) -> None:
        """Saves it into a bundle; raises ExportError unless the network has its vocabulary."""
        if (self.network_rows, self.network_mask_id) != (model.vocab_size, model.mask_id):
            raise ExportError(
                f"{self.path} has {self.info.vocab_size} tokens, which makes "
                f"{self.network_rows} rows with the mask in row {self.network_mask_id}; the "
                f"network has {model.vocab_size} rows and the mask in row {model.mask_id}: it is "
                "not the tokenizer that the network was trained with"
            )
        self._tokenizer.save_pretrained(directory)


def is_foreign(directory: Path) -> bool:
    """Whether a directory is one of transformers; ours has a `tokenizer.model` and no config."""
    own = (directory / "tokenizer.model").is_file() and not (directory / CONFIG_NAME).is_file()
    return not own and any((directory / name).is_file() for name in FILES)


def _first(*candidates: int | None) -> int | None:
    return next((candidate for candidate in candidates if candidate is not None), None)


def _fingerprint(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".jinja"):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
