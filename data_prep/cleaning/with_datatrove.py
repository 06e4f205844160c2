"""The standard filters of web corpora, language identification and scrubbing, by datatrove.

They come with the extra `clean`. The filters are those of English with the library's thresholds;
words and sentences are cut by expressions here, because the library's own way, spaCy, is a large
package that nothing else needs.
"""

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esolm.data_prep.cleaning import Drop, Stage, Verdict
from esolm.data_prep.documents import Document
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fingerprint_of, sha256_of_file

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+")
EMAIL, ADDRESS = "email@example.com", "192.0.2.1"
"""One for all, where the library takes turns: what a document becomes must depend on it alone. Both
are set apart for documentation."""


def _words_and_sentences() -> Any:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Expressions(WordTokenizer):  # type: ignore[misc]
        """Cuts texts of languages that put spaces between words."""

        def word_tokenize(self, text: str) -> list[str]:
            return WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[start:end] for start, end in self.span_tokenize(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [found.end() for found in SENTENCE_END.finditer(text)]
            spans = pairwise([0, *ends, len(text)])
            return [(start, end) for start, end in spans if text[start:end].strip()]

    return Expressions()


def _gopher_quality() -> "BaseFilter":
    from datatrove.pipeline.filters import GopherQualityFilter

    return GopherQualityFilter(language=_words_and_sentences())


def _gopher_repetition() -> "BaseFilter":
    from datatrove.pipeline.filters import GopherRepetitionFilter

    return GopherRepetitionFilter(language=_words_and_sentences())


def _c4() -> "BaseFilter":
    from datatrove.pipeline.filters import C4QualityFilter

    return C4QualityFilter(language=_words_and_sentences())


def _fineweb() -> "BaseFilter":
    from datatrove.pipeline.filters import FineWebQualityFilter

    return FineWebQualityFilter(language=_words_and_sentences())


FILTERS: dict[str, Callable[[], "BaseFilter"]] = {
    "gopher": _gopher_quality,
    "gopher-repetition": _gopher_repetition,
    "c4": _c4,
    "fineweb": _fineweb,
}


def filter_stage(words: str, argument: str) -> Stage:
    """Return the stage of one of `FILTERS`. That of C4 takes lines out as well."""
    if argument:
        raise DataError(f"--clean {words}: {words.partition('=')[0]} takes no value.")
    judge = _Filter(_built(words, FILTERS[words]))
    return Stage(words, judge, words == "c4", fingerprint_of(_versions()))


def language_stage(words: str, argument: str) -> Stage:
    """Return the stage that keeps documents in some languages.

    argument: LANGUAGES[:SCORE][@MODEL], as in `en,de:0.8@models/lid.176.ftz`, a fastText model;
    else the library fetches lid.176.bin.
    """
    named, _, model = argument.partition("@")
    languages, _, score = named.partition(":")
    try:
        threshold = float(score or 0.65)
    except ValueError:
        threshold = -1.0
    if not languages or not 0 <= threshold <= 1:
        raise DataError(
            f"--clean {words}: give languages and a least score from 0 to 1: language=en,de:0.65"
        )
    if model and not Path(model).is_file():
        raise DataError(f"--clean {words}: {model} does not exist. Name a model of fastText.")
    filter_ = _built(words, lambda: _language_filter(languages.split(","), threshold, model))
    content = sha256_of_file(Path(model)) if model else "lid.176.bin"
    judge = _Filter(filter_, "another language, or not surely this")
    return Stage(words, judge, False, fingerprint_of([*_versions(), content]))


def _language_filter(languages: list[str], threshold: float, model: str) -> "BaseFilter":
    from datatrove.pipeline.filters import LanguageFilter
    from datatrove.utils.lid import FastTextLID
    from fasttext.FastText import _FastText

    found = LanguageFilter(languages, threshold)
    if model:
        found.model = FastTextLID(languages)
        found.model._model = _FastText(model)
    return found


def scrubbing_stage(words: str, argument: str) -> Stage:
    """Return the stage that replaces e-mail addresses and public IP addresses."""
    if argument:
        raise DataError(f"--clean {words}: pii takes no value.")
    return Stage(words, _Scrubber(_built(words, _scrubber)), True, fingerprint_of(_versions()))


def _scrubber() -> Any:
    from datatrove.pipeline.formatters import PIIFormatter

    return PIIFormatter(email_replacement=EMAIL, ip_replacement=ADDRESS)


class _Scrubber:
    def __init__(self, formatter: Any) -> None:
        self._formatter = formatter

    def __call__(self, document: Document) -> Verdict:
        text = str(self._formatter.format(document.text))
        return None if text == document.text else text


class _Filter:
    """A filter of datatrove as a stage."""

    def __init__(self, filter_: Any, reason: str = "") -> None:
        self._filter, self._reason = filter_, reason

    def __call__(self, document: Document) -> Verdict:
        from datatrove.data import Document as Theirs

        theirs = Theirs(text=document.text, id=document.id)
        outcome = self._filter.filter(theirs)
        kept, reason = outcome if isinstance(outcome, tuple) else (outcome, self._reason)
        if not kept:
            return Drop(str(reason))
        return None if theirs.text == document.text else str(theirs.text)


def _built(words: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ImportError as error:
        raise DataError(
            f"--clean {words} needs a package that is not installed ({error}): "
            "pip install 'esolm[clean]'"
        ) from error


def _versions() -> list[str]:
    try:
        return [version("datatrove"), WORD.pattern, SENTENCE_END.pattern, EMAIL, ADDRESS]
    except PackageNotFoundError as error:
        raise DataError(f"{error}: pip install 'esolm[clean]'") from error
