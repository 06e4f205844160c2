"""Training the SentencePiece model of a tokenizer of ours."""

import io
from collections.abc import Iterable

from esolm.data_prep.errors import DataError
from esolm.data_prep.tokenizers.own import MASK_PIECE

SMALLEST_VOCAB_SIZE = 261


def train_model(chunks: Iterable[str], vocab_size: int, more_text: str = "Give more text") -> bytes:
    """Train a unigram model; the same chunks and size give the same pieces and scores.

    Returns the model's file. Raises DataError when the text is too little or too uniform for the
    vocabulary; `more_text` says in its message how to train on more text.
    """
    from sentencepiece import SentencePieceTrainer

    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise DataError(
            f"--vocab-size is {vocab_size}, must be at least {SMALLEST_VOCAB_SIZE}: 256 bytes, 4 "
            "special symbols and a character of text."
        )
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
            # One thread, because the outcome of unigram training depends on their number.
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
