"""A sample of a corpus to train the tokenizer on, which is the same in any order of its files."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import Document, iterate_documents
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.progress import ProgressBar
from esolm.data_prep.sources import SourceFile

CHUNK_CHARACTERS = 1024


def split_into_chunks(text: str, max_characters: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Yield consecutive pieces of a text, which are cut after newlines if lines are short enough.

    Newlines and indentation stay inside a chunk, so that pieces of whitespace are learnt.
    """
    chunk = ""
    for line in text.splitlines(keepends=True):
        if chunk and len(chunk) + len(line) > max_characters:
            yield chunk
            chunk = ""
        # The line is cut by index: cutting what remains again and again would take time quadratic
        # in the length of the line.
        whole = (len(line) - 1) // max_characters * max_characters
        for start in range(0, whole, max_characters):
            yield line[start : start + max_characters]
        chunk += line[whole:]
    if chunk:
        yield chunk


def sample_chunks(documents: Iterable[Document], max_chunks: int) -> list[str]:
    """Return at most `max_chunks` distinct chunks, namely those with the smallest hashes.

    Hashes order the chunks at random but reproducibly, so this is a uniform sample of the corpus.
    It takes one pass, and memory for `max_chunks` chunks.
    """
    kept: list[tuple[int, str]] = []
    hashes: set[int] = set()
    for document in documents:
        for chunk in split_into_chunks(document.text):
            digest = hashlib.blake2b(chunk.encode(), digest_size=16).digest()
            key = -int.from_bytes(digest, "little")
            if key in hashes or (len(kept) == max_chunks and key < kept[0][0]):
                continue
            hashes.add(key)
            if len(kept) < max_chunks:
                heapq.heappush(kept, (key, chunk))
            else:
                hashes.remove(heapq.heappushpop(kept, (key, chunk))[0])
    return [chunk for _, chunk in sorted(kept, reverse=True)]


def sample_files(
    files: Sequence[SourceFile], bad: BadDocuments, options: ReadOptions, max_chunks: int
) -> list[str]:
    """Return `sample_chunks` of the documents of files, and show how much of them is read."""
    total = sum(source.num_bytes for source in files)
    with ProgressBar("sample text", total, in_bytes=True) as progress:
        return sample_chunks(_counted(files, bad, options, progress), max_chunks)


def _counted(
    files: Sequence[SourceFile], bad: BadDocuments, options: ReadOptions, progress: ProgressBar
) -> Iterator[Document]:
    """Yield all documents. A file that is compressed counts for no more than it takes on disk."""
    before = 0
    for source in files:
        read = 0
        for document in iterate_documents([source], bad, options):
            yield document
            read += document.num_bytes
            progress.update(before + min(read, source.num_bytes))
        before += source.num_bytes
    progress.update(before)
