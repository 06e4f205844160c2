"""Our tokenizer: a SentencePiece unigram model that gives back every text exactly."""

import hashlib
import json
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import (
    fingerprint_of,
    read_json,
    sha256_of_file,
    write_atomic,
    write_json,
)
from esolm.data_prep.tokenizers.protocol import (
    Ids,
    Tokenizer,
    TokenizerInfo,
    Vocabulary,
    dataset_info,
)

MODEL_NAME = "tokenizer.model"
META_NAME = "tokenizer.json"
MODEL_SHA256 = "model_sha256"
# A folder with this file is one that transformers loads.
CONFIG_NAME = "tokenizer_config.json"
# The tokenizer class in pipeline/export/bundle/tokenization_esolm.py, which travels with bundles.
BUNDLE_MODULE, BUNDLE_CLASS = "tokenization_esolm", "EsoLMTokenizer"
MASK_PIECE = "[MASK]"
# SentencePiece writes spaces as U+2581 and decodes that character to a space. A U+2581 in a text is
# spelled with its three byte pieces instead, which decode to the character itself.
WHITESPACE_MARK = "\u2581"
MARK_PIECES = ("<0xE2>", "<0x96>", "<0x81>")
PART_CHARACTERS = 1 << 16
RESTORE = "Restore both files, or train again: `esolm prep tokenizer`."


class SentencePieceTokenizer(Tokenizer):
    """The model in a directory of `esolm prep tokenizer`, or in a bundle.

    A directory of the command has a record of the ids, which must be those of the model; a bundle
    has a configuration for transformers instead. Special tokens are never recognised in text.
    """

    is_lossless = True

    def __init__(self, directory: Path) -> None:
        self.path = directory / MODEL_NAME
        in_bundle = (directory / CONFIG_NAME).is_file()
        if not in_bundle:
            _check_bytes(self.path, directory / META_NAME)
        self._processor, self.vocabulary = _load_model(self.path)
        if not in_bundle:
            _check_record(self.info, directory / META_NAME)
        self._mark_ids = [int(self._processor.piece_to_id(piece)) for piece in MARK_PIECES]

    @staticmethod
    def recognises(directory: Path) -> bool:
        has_model, meta = (directory / MODEL_NAME).is_file(), directory / META_NAME
        if not (directory / CONFIG_NAME).is_file():
            # A record that has lost its model is ours as well, so that loading says what is
            # missing.
            return has_model or (meta.is_file() and "fingerprint" in read_json(meta, RESTORE))
        # Tokenizers of transformers may keep a SentencePiece model under the same name.
        config = read_json(directory / CONFIG_NAME, "Restore it, or save the tokenizer again.")
        return has_model and config.get("tokenizer_class") == BUNDLE_CLASS

    def encode(self, text: str, recognise_specials: bool = False) -> list[int]:
        """Return the token ids of a text; `decode` gives the same text back."""
        return [token for part in _parts(text) for token in self._encode_part(part)]

    def encode_parts(self, text: str) -> Iterator[Ids]:
        """Yield the token ids of a text in parts; beside the text it takes memory for one part.

        SentencePiece takes about 20 bytes of memory for each character that it is given at once.
        Arrays are what it makes fastest.
        """
        for part in _parts(text):
            if WHITESPACE_MARK in part:
                yield self._encode_part(part)
            else:
                yield self._processor.encode(part, return_type="numpy")

    def _encode_part(self, text: str) -> list[int]:
        if WHITESPACE_MARK not in text:
            return list(self._processor.encode(text))
        first, *others = (list(self._processor.encode(s)) for s in text.split(WHITESPACE_MARK))
        for ids in others:
            first += self._mark_ids + ids
        return first

    def decode(self, ids: Ids) -> str:
        """Return the text of token ids; control symbols (mask, bos, eos) leave no trace."""
        return str(self._processor.decode([int(i) for i in ids]))

    def decode_with_specials(self, ids: Ids) -> str:
        """Return the text of token ids with control symbols written out, for people to read."""
        parts: list[str] = []
        run: list[int] = []
        for token in (int(i) for i in ids):
            if self._processor.is_control(token):
                parts += [self.decode(run), self._processor.id_to_piece(token)]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self.decode(run)])

    def num_bytes(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the UTF-8 bytes of the text of each row, [N, L] -> [N].

        The count is exact even if a row begins or ends within a character spelled by its bytes.
        """
        rows: npt.NDArray[np.int64] = self._bytes_of_id[tokens].sum(axis=1)
        return rows

    @cached_property
    def _bytes_of_id(self) -> npt.NDArray[np.int64]:
        return np.array([self._bytes(i) for i in range(self.vocabulary.num_rows)], dtype=np.int64)

    def _bytes(self, token: int) -> int:
        if self._processor.is_byte(token):
            return 1
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return 0
        return len(self._processor.id_to_piece(token).replace(WHITESPACE_MARK, " ").encode())

    def save(self, directory: Path) -> None:
        save_tokenizer(self.path.read_bytes(), directory)

    def save_for_bundle(self, directory: Path) -> None:
        """Write the model and its special tokens, for the tokenizer class that a bundle carries.

        No file is named tokenizer.json: transformers would take it for a tokenizer of its own
        format.
        """
        info = self.info
        special = {
            f"{name}_token": self._processor.id_to_piece(getattr(info, f"{name}_id"))
            for name in ("unk", "bos", "eos", "mask")
        }
        record = {
            "tokenizer_class": BUNDLE_CLASS,
            "auto_map": {"AutoTokenizer": [f"{BUNDLE_MODULE}.{BUNDLE_CLASS}", None]},
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            **special,
        }
        write_atomic(directory / MODEL_NAME, self.path.read_bytes())
        write_atomic(directory / CONFIG_NAME, (json.dumps(record, indent=2) + "\n").encode())


def save_tokenizer(model: bytes, directory: Path) -> TokenizerInfo:
    """Write a model and its record into a directory, each atomically; return the record."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / MODEL_NAME
    write_atomic(path, model)
    info = dataset_info(_load_model(path)[1], path)
    digest = hashlib.sha256(model).hexdigest()
    write_json(directory / META_NAME, {**info.to_record(), MODEL_SHA256: digest})
    return info


def _parts(text: str) -> Iterator[str]:
    """Yield parts of a text, cut in front of a space if there is one, as no token spans the cut.

    The tokenizer of a bundle, which cannot import this one, cuts at the same places.
    """
    start = 0
    while len(text) - start > PART_CHARACTERS:
        part = text[start : start + PART_CHARACTERS]
        size = len(part.rpartition(" ")[0].rstrip(" ")) or PART_CHARACTERS
        yield part[:size]
        start += size
    yield text[start:]


def _load_model(path: Path) -> tuple[Any, Vocabulary]:
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor

    if not path.is_file():
        raise DataError(f"{path} does not exist. {RESTORE}")
    processor = SentencePieceProcessor()
    try:
        processor.load(str(path))
        return processor, _describe(processor, path)
    # What the library says of a damaged model may itself be no valid text: a UnicodeDecodeError.
    except (RuntimeError, OSError, ValueError, DecodeError) as error:
        raise DataError(f"{path} is not a SentencePiece model ({error}). {RESTORE}") from error


def _check_bytes(path: Path, record: Path) -> None:
    """Raise DataError if the model is not byte for byte the one that was recorded.

    This comes before the library sees the model, which does not take every damage for one. Older
    records do not state the checksum.
    """
    if not path.is_file() or not record.is_file():
        return
    expected = read_json(record, RESTORE).get(MODEL_SHA256)
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {RESTORE}") from error
    if expected not in (None, found):
        _refuse(record, [f"{MODEL_SHA256}: {expected} recorded, {found} found"])


def _check_record(info: TokenizerInfo, path: Path) -> None:
    meta, found = read_json(path, RESTORE), info.to_record()
    differences = [
        f"{key}: {meta.get(key)} recorded, {found.get(key)} found"
        for key in {**found, **meta}
        if key != MODEL_SHA256 and meta.get(key) != found.get(key)
    ]
    _refuse(path, differences)


def _refuse(path: Path, differences: list[str]) -> None:
    if differences:
        raise DataError(
            f"{path.parent / MODEL_NAME} is not the model that {META_NAME} describes "
            f"({'; '.join(differences)}). {RESTORE}"
        )


def _describe(processor: Any, path: Path) -> Vocabulary:
    mask_id = int(processor.piece_to_id(MASK_PIECE))
    if not processor.is_control(mask_id):
        raise DataError(
            f"{path} has no control symbol {MASK_PIECE}: the text {MASK_PIECE} would become the "
            "mask. Train the tokenizer with `esolm prep tokenizer`."
        )
    return Vocabulary(
        num_rows=int(processor.vocab_size()),
        mask_id=mask_id,
        fingerprint=_fingerprint(processor),
        unk_id=int(processor.unk_id()),
        bos_id=int(processor.bos_id()),
        eos_id=int(processor.eos_id()),
    )


def _fingerprint(processor: Any) -> str:
    """Return a sha256 over the pieces, their types and scores, and the normaliser.

    It is not taken over the bytes of the file.
    """
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    model = messages.ModelProto()
    model.ParseFromString(processor.serialized_model_proto())
    pieces = hashlib.sha256()
    for piece in model.pieces:
        # The library gives bytes where a damaged model has a piece that is no text.
        text = piece.piece.encode() if isinstance(piece.piece, str) else piece.piece
        pieces.update(struct.pack("<IBf", len(text), piece.type, piece.score) + text)
    normalizer = model.normalizer_spec
    return fingerprint_of(
        {
            "pieces": pieces.hexdigest(),
            "charsmap": hashlib.sha256(normalizer.precompiled_charsmap).hexdigest(),
            "add_dummy_prefix": normalizer.add_dummy_prefix,
            "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
            "escape_whitespaces": normalizer.escape_whitespaces,
        }
    )
