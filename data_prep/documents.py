"""Documents from the files of a corpus.

The documents of a file come in the order of its format (`esolm.data_prep.formats`).
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esolm.data_prep.bad_documents import BadDocuments, RefusedError
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import NO_FIELDS, Place, RawDocument, ReadOptions, UnusableError
from esolm.data_prep.known_formats import formats
from esolm.data_prep.lines import num_lines_before
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
    metadata: Mapping[str, Any] = NO_FIELDS
    """The fields that are kept, by name."""
    source: str = ""
    """The file's name, which is the same under every mount point."""

    @property
    def place(self) -> Place:
        """The file and what is known of the place within it."""
        return place_of(self.raw)


def place_of(raw: RawDocument) -> Place:
    """Return the place of a document in the whole file, for which lines may have to be counted."""
    place = raw.place
    if place.line is None or place.from_byte is None:
        return place
    before = num_lines_before(Path(place.file), place.from_byte)
    return place._replace(line=before + place.line, from_byte=None)


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
                document = _read(piece, number, source.name, bad, options)
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
    piece: RawDocument, number: int, name: str, bad: BadDocuments, options: ReadOptions
) -> Document | None:
    try:
        passage = piece.read()
        options.check_length(passage.num_bytes)
        fields = passage.metadata or options.fields_of(NO_FIELDS)
    except UnusableError as error:
        place = place_of(piece)
        bad.report(place if error.line is None else place._replace(line=error.line), str(error))
        return None
    return Document(number, passage.text, piece, passage.num_bytes, passage.id, fields, name)
