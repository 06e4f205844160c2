"""Text to token ids and back, under a dataset's or a network's tokenizer, and its size in bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.tokenizer import MODEL_NAME, WHITESPACE_MARK, Tokenizer
from pipeline.errors import ConfigError

Int64Array = NDArray[np.int64]


class TextCodec:
    """bos_id, eos_id: None where the tokenizer has none. `encode` adds no special tokens.

    num_rows, mask_id: of a network with this vocabulary. fingerprint: None for a tokenizer of
    transformers, which has none that survives being saved again.
    """

    bos_id: int | None
    eos_id: int | None
    num_rows: int
    mask_id: int
    fingerprint: str | None

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """The text; special tokens leave no trace."""
        raise NotImplementedError

    def num_bytes(self, tokens: Int64Array) -> Int64Array:
        """UTF-8 bytes of the text of each row: [N, L] -> [N]."""
        lengths = [len(self.decode(row).encode()) for row in tokens.tolist()]
        return np.array(lengths, dtype=np.int64)


class OwnCodec(TextCodec):
    """A SentencePiece tokenizer of `esolm prep`, also one inside a bundle."""

    def __init__(self, directory: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._tokenizer = Tokenizer(directory)
        self._pieces: Any = SentencePieceProcessor(model_file=str(directory / MODEL_NAME))
        info = self._tokenizer.info
        self.bos_id, self.eos_id = info.bos_id, info.eos_id
        self.num_rows, self.mask_id = info.vocab_size, info.mask_id
        self.fingerprint = info.fingerprint
        self._bytes_of_id = np.array([self._bytes(i) for i in range(info.vocab_size)], np.int64)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def num_bytes(self, tokens: Int64Array) -> Int64Array:
        """Exact also where a row begins or ends within a character spelled by its bytes."""
        rows: Int64Array = self._bytes_of_id[tokens].sum(axis=1)
        return rows

    def _bytes(self, token: int) -> int:
        if self._pieces.is_byte(token):
            return 1
        if self._pieces.is_control(token) or self._pieces.is_unknown(token):
            return 0
        return len(self._pieces.id_to_piece(token).replace(WHITESPACE_MARK, " ").encode())


class TransformersCodec(TextCodec):
    """A tokenizer directory of transformers, such as that of gpt2."""

    def __init__(self, directory: Path) -> None:
        from pipeline.export.foreign_tokenizer import ForeignTokenizer

        foreign = ForeignTokenizer(directory)
        self._tokenizer = foreign.tokenizer
        self.bos_id, self.eos_id = foreign.info.bos_id, foreign.info.eos_id
        self.num_rows, self.mask_id = foreign.network_rows, foreign.network_mask_id
        self.fingerprint = None

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(i) for i in ids]

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def load_codec(directory: Path) -> TextCodec:
    """The tokenizer of a dataset, a run, a bundle, or a directory of transformers.

    Raises ConfigError if there is none.
    """
    config, model = directory / "tokenizer_config.json", directory / MODEL_NAME
    named = json.loads(config.read_text()).get("tokenizer_class") if config.is_file() else None
    if model.is_file() and named in (None, "EsoLMTokenizer"):
        return OwnCodec(directory)
    if config.is_file() or (directory / "tokenizer.json").is_file():
        return TransformersCodec(directory)
    raise ConfigError(f"{directory} holds no tokenizer; name a directory with one by --tokenizer")
