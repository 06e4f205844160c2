"""The tokenizer: a SentencePiece unigram model that gives back every text exactly."""

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from data_prep.errors import DataError
from data_prep.files import fingerprint_of, read_json, write_atomic, write_json

if TYPE_CHECKING:
    from data_prep.transformers_tokenizer import TransformersTokenizer

MODEL_NAME = "tokenizer.model"
META_NAME = "tokenizer.json"
MASK_PIECE = "[MASK]"
# SentencePiece writes spaces as U+2581 and decodes that character to a space. A literal one is
# spelled with its three byte pieces instead, which decode to the character itself.
WHITESPACE_MARK = "\u2581"
MARK_PIECES = ("<0xE2>", "<0x96>", "<0x81>")
PART_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class TokenizerInfo:
    """The numbers that a dataset, a network and a checkpoint must agree on."""

    vocab_size: int
    unk_id: int
    bos_id: int
    eos_id: int
    mask_id: int
    fingerprint: str
    """sha256 over pieces, their types and scores, and the normaliser: not over the file's bytes."""

    def to_record(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable record."""
        return asdict(self)


class Tokenizer:
    """Text to token ids and back, without loss; no special token is added or recognised in text."""

    def __init__(self, directory: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.path = directory / MODEL_NAME
        if not self.path.is_file():
            raise DataError(
                f"{self.path} does not exist. Train one with `esolm prep tokenizer --out "
                f"{directory}`."
            )
        self._processor = SentencePieceProcessor()
        try:
            self._processor.load(str(self.path))
        except (RuntimeError, OSError) as error:
            raise DataError(f"{self.path} is not a SentencePiece model ({error}).") from error
        self.info = _describe(self._processor, self.path)
        self._mark_ids = [int(self._processor.piece_to_id(piece)) for piece in MARK_PIECES]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; `decode` gives the same text back."""
        return [token for part in self.encode_parts(text) for token in part]

    def encode_parts(self, text: str) -> Iterator[list[int]]:
        """Yield the token ids of a text in parts, in memory for one part beside the text.

        SentencePiece takes about 20 bytes of memory for each character it is given at once.
        """
        return map(self._encode_part, _parts(text))

    def _encode_part(self, text: str) -> list[int]:
        if WHITESPACE_MARK not in text:
            return list(self._processor.encode(text))
        first, *others = (list(self._processor.encode(s)) for s in text.split(WHITESPACE_MARK))
        for ids in others:
            first += self._mark_ids + ids
        return first

    def decode(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
        """Return the text of token ids; control symbols (mask, bos, eos) leave no trace."""
        return str(self._processor.decode([int(i) for i in ids]))

    def decode_with_specials(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
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


def _parts(text: str) -> Iterator[str]:
    """Yield pieces of a text, cut in front of a space where there is one: no piece runs over it."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        part = text[start : start + PART_CHARACTERS]
        size = len(part.rpartition(" ")[0].rstrip(" ")) or PART_CHARACTERS
        yield part[:size]
        start += size
    yield text[start:]


AnyTokenizer: TypeAlias = "Tokenizer | TransformersTokenizer"


def _describe(processor: Any, path: Path) -> TokenizerInfo:
    mask_id = int(processor.piece_to_id(MASK_PIECE))
    if not processor.is_control(mask_id):
        raise DataError(
            f"{path} has no control symbol {MASK_PIECE}: the text {MASK_PIECE} would become the "
            "mask. Train the tokenizer with `esolm prep tokenizer`."
        )
    return TokenizerInfo(
        vocab_size=int(processor.vocab_size()),
        unk_id=int(processor.unk_id()),
        bos_id=int(processor.bos_id()),
        eos_id=int(processor.eos_id()),
        mask_id=mask_id,
        fingerprint=_fingerprint(processor),
    )


def _fingerprint(processor: Any) -> str:
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    model = messages.ModelProto()
    model.ParseFromString(processor.serialized_model_proto())
    pieces = hashlib.sha256()
    for piece in model.pieces:
        text = piece.piece.encode()
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


def load_tokenizer(directory: str | Path) -> AnyTokenizer:
    """Return the tokenizer of a directory, ours or one of transformers.

    Raises DataError when a file is missing, unreadable, or is not what its meta record describes.
    """
    # Imported where it is needed: transformers takes seconds, and ours does without.
    from data_prep.transformers_tokenizer import TransformersTokenizer, is_foreign

    directory = Path(directory)
    return (
        TransformersTokenizer(directory) if is_foreign(directory) else load_own_tokenizer(directory)
    )


def has_tokenizer(directory: Path) -> bool:
    """Return whether there is one, ours or one of transformers."""
    from data_prep.transformers_tokenizer import is_foreign

    return (directory / MODEL_NAME).is_file() or is_foreign(directory)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Write a directory's tokenizer into another, each file atomically."""
    from data_prep.transformers_tokenizer import copy_foreign, is_foreign

    if is_foreign(source):
        copy_foreign(source, target)
    else:
        save_tokenizer((source / MODEL_NAME).read_bytes(), target)


def load_own_tokenizer(directory: Path) -> Tokenizer:
    tokenizer = Tokenizer(directory)
    meta = read_json(directory / META_NAME, "Train the tokenizer again: `esolm prep tokenizer`.")
    found = tokenizer.info.to_record()
    differences = [
        f"{key}: {meta.get(key)} recorded, {value} found"
        for key, value in found.items()
        if meta.get(key) != value
    ]
    if differences:
        raise DataError(
            f"{tokenizer.path} is not the model that {META_NAME} describes "
            f"({'; '.join(differences)}). Restore both files, or train again."
        )
    return tokenizer


def save_tokenizer(model: bytes, directory: Path) -> TokenizerInfo:
    """Write a model and its meta record into a directory, each atomically; return the record."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / MODEL_NAME, model)
    info = Tokenizer(directory).info
    write_json(directory / META_NAME, info.to_record())
    return info


def train_model(chunks: Iterable[str], vocab_size: int, more_text: str = "Give more text") -> bytes:
    """Return a trained unigram model; the same chunks and size give the same pieces and scores.

    Raises DataError when the text is too little or too uniform for the vocabulary; `more_text` says
    in the message how to train on more.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=[MASK_PIECE],
            # The outcome of unigram training depends on the number of threads.
            num_threads=1,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
        advice = (
            f"{more_text}, or a smaller --vocab-size."
            if "too high" in reason
            else f"{more_text}, or another --vocab-size (at least about 400: 256 bytes, 4 special "
            "symbols and the characters of the text)."
        )
        raise DataError(
            f"No tokenizer of {vocab_size} pieces could be trained on this text: {reason} {advice}"
        ) from error
    return model.getvalue()
