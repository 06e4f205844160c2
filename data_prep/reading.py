"""What a task reads, and how a text is known again."""

import hashlib
from collections.abc import Callable, Iterator

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import Document, iterate_documents
from esolm.data_prep.jobs import TokenizeJob


def digest_of(text: str) -> bytes:
    """Return the hash, of 16 bytes, by which a text is known."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


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
