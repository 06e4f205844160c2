"""Documents through the stages, one after the other."""

from collections.abc import Sequence

from esolm.data_prep.cleaning import Drop, Stage, Verdict
from esolm.data_prep.cleaning.report import Reporter, num_bytes_of
from esolm.data_prep.documents import Document
from esolm.data_prep.errors import DataError

NOTHING_LEFT = Drop("nothing left")


class Cleaner:
    """Applies stages to documents and reports what they do.

    reporter: None to do again, unreported, what the stages do to documents that stay.
    """

    def __init__(self, stages: Sequence[Stage], reporter: Reporter | None) -> None:
        self._stages = [s for s in stages if s.changes_text or reporter is not None]
        self._reporter = reporter

    def apply(self, document: Document) -> Document | None:
        """Return the document as it came out of the stages, or None if one left it out.

        Raises DataError, which names the document, if a function of the user's fails.
        """
        for stage in self._stages:
            verdict = _verdict(stage, document)
            if isinstance(verdict, Drop):
                if self._reporter is not None:
                    self._reporter.drop(stage.name, document, verdict)
                return None
            before = document
            if verdict is not None:
                document = document._replace(text=verdict)
            if self._reporter is not None:
                sizes = num_bytes_of(before.text), num_bytes_of(document.text)
                self._reporter.keep(stage.name, *sizes, changed=document.text != before.text)
        return document


def _verdict(stage: Stage, document: Document) -> Verdict:
    try:
        verdict = stage.judge(document)
        if isinstance(verdict, str):
            verdict.encode("utf-8")
    except Exception as error:
        raise DataError(
            f"--clean {stage.name} failed at {document.place} ({type(error).__name__}: {error}). "
            "Mend it, or leave the stage out."
        ) from error
    if verdict is not None and not isinstance(verdict, Drop | str):
        raise DataError(
            f"--clean {stage.name} returned {verdict!r} for {document.place}. It may return None, "
            "a text, or a Drop."
        )
    return NOTHING_LEFT if verdict == "" else verdict
