# mypy: ignore-errors
"""The SentencePiece model of the training data, id for id."""

import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece
from transformers import PreTrainedTokenizer

# SentencePiece writes a space as this character and decodes it to a space; a literal one is spelled
# with its bytes, as in the training data.
WHITESPACE_MARK = "\u2581"
MARK_PIECES = ["<0xE2>", "<0x96>", "<0x81>"]
# Longer texts were cut in front of a space in training, and elsewhere where there is none. A cut
# can divide a piece in two, so the same ids need the same cuts.
PART_CHARACTERS = 1 << 16


class EsoLMTokenizer(PreTrainedTokenizer):
    """Lossless: `decode(encode(text)) == text`, with the ids of SentencePiece itself.

    The literal text of a special token, such as `<mask>`, is ordinary text unless
    `split_special_tokens=False` is passed.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, split_special_tokens: bool = True, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        # Padding is told from text by the attention mask alone, so the end of a text serves for it.
        if kwargs.get("pad_token") is None:
            kwargs["pad_token"] = kwargs.get("eos_token")
        super().__init__(split_special_tokens=split_special_tokens, **kwargs)

    @property
    def vocab_size(self) -> int:
        return self.sp.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.sp.id_to_piece(i): i for i in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [piece for part in self._parts(text) for piece in self._pieces(part)]

    def _parts(self, text: str) -> Iterator[str]:
        start = 0
        while len(text) - start > PART_CHARACTERS:
            part = text[start : start + PART_CHARACTERS]
            size = len(part.rpartition(" ")[0].rstrip(" ")) or PART_CHARACTERS
            yield part[:size]
            start += size
        yield text[start:]

    def _pieces(self, text: str) -> list[str]:
        first, *others = (self.sp.encode(s, out_type=str) for s in text.split(WHITESPACE_MARK))
        for pieces in others:
            first += MARK_PIECES + pieces
        return first

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens])

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        special = set(self.all_special_ids)
        if skip_special_tokens:
            return self.sp.decode([i for i in ids if i not in special])
        # SentencePiece drops the space in front of a text: only of the first run, not of a run
        # that follows a special token, hence the anchor.
        text, anchor = "", self.sp.encode("a")
        for is_special, group in groupby(ids, key=special.__contains__):
            run = list(group)
            if is_special:
                text += "".join(map(self.sp.id_to_piece, run))
            elif text:
                text += self.sp.decode(anchor + run)[1:]
            else:
                text = self.sp.decode(run)
        return text

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / f"{prefix}tokenizer.model"
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
