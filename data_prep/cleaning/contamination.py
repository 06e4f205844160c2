"""Documents that hold a passage of an evaluation's text are left out, by n-grams of words.

A passage is 13 words in a row, as in GPT-3 (arXiv 2005.14165, appendix C); a word is what `\\w+`
finds in the text in lower case, so that punctuation and line breaks make no difference. A text with
fewer words is looked for as a whole, if it has at least 8 of them.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.bad_documents import BadDocuments, RefusedError
from esolm.data_prep.cleaning import Drop, Stage, Verdict
from esolm.data_prep.cleaning.words import Hashes, hashes_of, rolling, words_of
from esolm.data_prep.documents import Document, iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fingerprint_of
from esolm.data_prep.formats import Place
from esolm.data_prep.known_formats import ANY
from esolm.data_prep.remote import open_bytes
from esolm.data_prep.sources import SourceFile, find_files

NUM_WORDS = 13
FEWEST_WORDS = 8
ADVICE = re.compile(r" \([^()]*--[^()]*\)$")
"""What a problem of a document says of options."""


def decontamination(words: str, argument: str) -> Stage:
    """Return the stage against the texts of files, which `argument` names, separated by commas."""
    if not argument:
        raise DataError(f"--clean {words}: name the files of the evaluations, decontaminate=FILES.")
    files = find_files(argument.split(","), told=ANY)
    passages = Passages()
    for source in files:
        texts = iterate_documents([source], _BadEvaluations(words))
        passages.add((document.text for document in texts), source.name)
    if not passages.num_texts:
        raise DataError(
            f"--clean {words}: no text in it has {FEWEST_WORDS} words, so nothing would be found."
        )
    content = [[source.name, _sha256_of(source)] for source in files]
    judge = _Judge(passages)
    return Stage(words, judge, False, fingerprint_of([NUM_WORDS, FEWEST_WORDS, content]))


class _BadEvaluations(BadDocuments):
    """Refuses them, without the advice for a corpus, whose options do not reach an evaluation."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def report(self, place: Place, problem: str) -> None:
        problem = ADVICE.sub("", problem)
        raise RefusedError(
            f"--clean {self._words}: {place} of the evaluation: {problem}. Repair it, or write its "
            "text as a text file or under the key 'text'; options for INPUT do not count here."
        )

    def report_file(self, path: Path, error: DataError) -> None:
        raise RefusedError(f"--clean {self._words}: {error}") from error


def _sha256_of(source: SourceFile) -> str:
    with open_bytes(source.path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


class Passages:
    """The passages of evaluations, by the number of their words."""

    def __init__(self) -> None:
        self.num_texts = 0
        self._names: dict[int, dict[tuple[str, ...], str]] = {}
        self._hashes: dict[int, Hashes] | None = None

    def add(self, texts: Iterable[str], name: str) -> None:
        """Add the passages of texts. name: what messages call the evaluation."""
        self._hashes = None
        for text in texts:
            words = words_of(text)
            size = min(len(words), NUM_WORDS)
            if size < FEWEST_WORDS:
                continue
            self.num_texts += 1
            known = self._names.setdefault(size, {})
            for start in range(len(words) - size + 1):
                known.setdefault(tuple(words[start : start + size]), name)

    def _built(self) -> dict[int, Hashes]:
        """Return the hashes of all passages, made once all are there."""
        if self._hashes is None:
            self._hashes = {
                size: np.unique([rolling(hashes_of(passage), size)[0] for passage in known])
                for size, known in self._names.items()
            }
        return self._hashes

    def find(self, text: str) -> tuple[str, str] | None:
        """Return the first shared passage and the evaluation that it is of, or None."""
        words = words_of(text)
        hashed = hashes_of(words)
        for size, known in self._built().items():
            for start in np.flatnonzero(_among(rolling(hashed, size), known)).tolist():
                passage = tuple(words[start : start + size])
                name = self._names[size].get(passage)
                if name is not None:  # and no chance meeting of two hashes
                    return " ".join(passage), name
        return None


class _Judge:
    def __init__(self, passages: Passages) -> None:
        self._passages = passages

    def __call__(self, document: Document) -> Verdict:
        found = self._passages.find(document.text)
        return None if found is None else Drop(f"shares words with {found[1]}", found[0])


def _among(values: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    places = np.searchsorted(known, values)
    places[places == len(known)] = 0
    found: npt.NDArray[np.bool_] = known[places] == values
    return found
