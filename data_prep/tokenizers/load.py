"""The one loader: it finds the kind of a folder, or says in one set of words why there is none."""

from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.tokenizers.of_transformers import TransformersTokenizer
from esolm.data_prep.tokenizers.own import SentencePieceTokenizer
from esolm.data_prep.tokenizers.protocol import Tokenizer

# The first kind that recognises a folder reads it. Add a kind of your own to this list.
KINDS: list[type[Tokenizer]] = [SentencePieceTokenizer, TransformersTokenizer]
ADVICE = (
    "Give a directory of `esolm prep tokenizer`, a bundle of `esolm export` that carries one, or a "
    "tokenizer directory of transformers."
)
# A run and a dataset keep their copy in a folder of this name.
INNER_DIRECTORY = "tokenizer"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a directory, or of the directory that a file lies in.

    Raises DataError when there is none, when it is damaged, or when it is not what its record says.
    """
    path = Path(path)
    directory = path.parent if path.is_file() else path
    kind = _kind_of(directory)
    if kind is None:
        raise DataError(f"{_why_none(directory)} {ADVICE}")
    return kind(directory)


def has_tokenizer(directory: Path) -> bool:
    """Return whether some kind recognises a directory; loading may still find it damaged."""
    return _kind_of(directory) is not None


def _kind_of(directory: Path) -> type[Tokenizer] | None:
    return next((kind for kind in KINDS if kind.recognises(directory)), None)


def _why_none(directory: Path) -> str:
    if not directory.exists():
        return f"{directory} does not exist, so there is no tokenizer in it."
    inner = directory / INNER_DIRECTORY
    if has_tokenizer(inner):
        return f"{directory} is no tokenizer directory; {inner} is one."
    return f"{directory} holds no tokenizer."
