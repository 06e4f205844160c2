"""What a task reads, and how a text is known again."""

import hashlib
import zlib
from collections.abc import Callable, Iterator

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import Document, iterate_documents
from esolm.data_prep.jobs import TokenizeJob


def digest_of(text: str) -> bytes:
    """Return the hash, of 16 bytes, by which a text is known."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class ShareRead:
    """What a pass has read of its share, so that the passes of a task can be held together.

    They speak of documents by number: where one of them read another corpus, the wrong ones would
    be left out.
    """

    def __init__(self) -> None:
        self.num_documents = self._crc32 = 0

    def add(self, document: Document) -> None:
        """Count a document, by its number, its length and how it begins."""
        told = f"{document.number} {len(document.text)} {document.text[:64]}"
        self._crc32 = zlib.crc32(told.encode("utf-8", "surrogatepass"), self._crc32)
        self.num_documents += 1

    def to_record(self, bad: BadDocuments) -> dict[str, int]:
        """Return what two equal readings have in common."""
        return {"documents": self.num_documents, "bad": bad.count, "crc32": self._crc32}


def documents_of(
    job: TokenizeJob, task: int, bad: BadDocuments, on_bytes: Callable[[int], None]
) -> Iterator[Document]:
    """Yield what a task reads, until it has its share of `max_bytes`."""
    budget = None if job.max_bytes is None else -(-job.max_bytes // job.num_tasks)
    used = 0
    for document in iterate_documents(job.slice(task), bad, job.options):
        used += document.num_bytes
        on_bytes(document.num_bytes)
        yield document
        if budget is not None and used >= budget:
            break
