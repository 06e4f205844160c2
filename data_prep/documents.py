"""Documents from the files of a corpus.

The documents of a file come in the order of its format (`esolm.data_prep.formats`).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from esolm.data_prep.bad_documents import BadDocuments, RefusedError
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import Place, RawDocument, ReadOptions, UnusableError
from esolm.data_prep.known_formats import formats
from esolm.data_prep.slices import Stretch
from esolm.data_prep.sources import SourceFile


class Document(NamedTuple):
    """A text with its place in the corpus."""

    number: int
    """Among the documents of the files, bad ones counted too."""
    text: str
    raw: RawDocument
    num_bytes: int
    """The bytes that the document takes in the uncompressed source."""
    id: str = ""

    @property
    def place(self) -> Place:
        """The file and what is known of the place within it."""
        return place_of(self.raw)


def place_of(raw: RawDocument) -> Place:
    """Return the place of a document, which may have to be counted out."""
    return raw.place if isinstance(raw.place, Place) else raw.place()


def iterate_documents(
    files: Iterable[SourceFile | Stretch],
    bad: BadDocuments,
    options: ReadOptions | None = None,
) -> Iterator[Document]:
    """Yield the documents of files, or of stretches of files, in their order.

    A bad document keeps its number, so leaving it out changes that of no other. Raises DataError
    for damaged files and bad documents by the policy of `bad`.
    """
    options = options or ReadOptions()
    number = 0
    for file in files:
        source = file.source if isinstance(file, Stretch) else file
        try:
            for piece in _pieces(file, options):
                document = _read(piece, number, bad, options)
                number += 1
                if document is not None:
                    yield document
        except RefusedError:
            raise
        except DataError as error:
            bad.report_file(source.path, error)


def _pieces(file: SourceFile | Stretch, options: ReadOptions) -> Iterator[RawDocument]:
    if isinstance(file, SourceFile):
        return formats()[file.format].pieces(file.path, options)
    source = file.source
    reader = formats()[source.format]
    if file.is_whole:
        return reader.pieces(source.path, options)
    return reader.pieces_between(source.path, options, file.start, file.stop)


def _read(
    piece: RawDocument, number: int, bad: BadDocuments, options: ReadOptions
) -> Document | None:
    try:
        passage = piece.read()
        options.check_length(passage.num_bytes)
    except UnusableError as error:
        place = place_of(piece)
        bad.report(place if error.line is None else place._replace(line=error.line), str(error))
        return None
    return Document(number, passage.text, piece, passage.num_bytes, passage.id)
