"""A tokenizer of transformers, such as that of gpt2, beside a network and in its bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.transformers_tokenizer import (
    boundary_ids,
    fingerprint_of_directory,
    load_foreign,
    network_rows,
)
from model.config import ModelConfig
from pipeline.errors import ExportError


@dataclass(frozen=True)
class ForeignInfo:
    """What a bundle and a network must agree on."""

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    mask_id: int | None
    fingerprint: str


class ForeignTokenizer:
    """The tokenizer of a directory; raises DataError if transformers cannot load it.

    tokenizer: what transformers makes of it. network_rows, network_mask_id: of a network with this
    vocabulary, the mask's row included.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.tokenizer = load_foreign(directory)
        self.network_rows, self.network_mask_id = network_rows(self.tokenizer)
        bos_id, eos_id = boundary_ids(self.tokenizer)
        self.info = ForeignInfo(
            vocab_size=int(self.tokenizer.vocab_size),
            bos_id=bos_id,
            eos_id=eos_id,
            mask_id=self.tokenizer.mask_token_id,
            fingerprint=fingerprint_of_directory(directory),
        )

    def encode(self, text: str) -> list[int]:
        """The ids that the tokenizer gives a text by default, its special tokens included."""
        return [int(i) for i in self.tokenizer(text)["input_ids"]]

    def decode(self, ids: Sequence[int] | Any, skip_special: bool = False) -> str:
        """The text of token ids; not every tokenizer gives back the very text that it was given."""
        numbers = [int(i) for i in ids]
        return str(self.tokenizer.decode(numbers, skip_special_tokens=skip_special))

    def write(self, directory: Path, model: ModelConfig) -> None:
        """Saves it into a bundle; raises ExportError unless the network has its vocabulary."""
        if (self.network_rows, self.network_mask_id) != (model.vocab_size, model.mask_id):
            raise ExportError(
                f"{self.path} has {self.info.vocab_size} tokens, which makes "
                f"{self.network_rows} rows with the mask in row {self.network_mask_id}; the "
                f"network has {model.vocab_size} rows and the mask in row {model.mask_id}: it is "
                "not the tokenizer that the network was trained with"
            )
        self.tokenizer.save_pretrained(directory)
