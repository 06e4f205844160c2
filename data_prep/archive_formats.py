"""The formats of archives that are shipped: webdataset tars of text, WARC files of web pages."""

import json
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from esolm.data_prep.compression import READ_BYTES, open_decompressed
from esolm.data_prep.errors import DataError, MissingPackageError
from esolm.data_prep.formats import (
    NO_FIELDS,
    Format,
    Passage,
    Place,
    RawDocument,
    ReadOptions,
    UnusableError,
)
from esolm.data_prep.pipes import is_piped
from esolm.data_prep.tar_ends import KeptStream, check_end, check_tar, damaged_archive
from esolm.data_prep.text_formats import JsonLines

TEXT, JSON = "txt", "json"
META = re.compile(r"__[^/]*__($|/)")
"""Members that webdataset keeps for itself."""
LACKS = "pip install 'esolm[warc]'"


class TextTar(Format):
    """One document for each sample of a webdataset tar: its `.txt`, or the text of its `.json`.

    The id is that of the `.json`, if it is asked for, and else the sample's key.
    """

    suffixes = (".tar",)

    def suits(self, path: Path) -> bool:
        return super().suits(path) and path.suffix.lower() != ".zst"  # which cannot be sought in

    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        from webdataset.tariterators import group_by_keys

        if not is_piped(path):
            check_tar(path)
        with open_decompressed(path) as stream:
            members = _members(path, KeptStream(stream), options)
            samples = group_by_keys(members, suffixes={TEXT, JSON})
            try:
                for sample in samples:
                    place = Place(str(path), member=sample["__key__"])
                    yield RawDocument(place, partial(_text_of_sample, sample, options))
            except ValueError as error:  # two members of one name
                raise DataError(f"{path}: {error.args[0]}. Write the tar again.") from error


def _members(path: Path, stream: KeptStream, options: ReadOptions) -> Iterator[dict[str, Any]]:
    """Yield the members as webdataset's own reader does, but hold none that is not asked for.

    The content of one that is too long is its size in bytes, and that of other kinds is nothing.
    Raises DataError if the tar is not whole, which that of a file is known to be.
    """
    try:
        yield from _read_members(path, stream, options)
    except tarfile.TarError as error:
        raise damaged_archive(path, str(error)) from error


def _read_members(path: Path, stream: KeptStream, options: ReadOptions) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import base_plus_ext

    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]
            if not member.isreg() or META.match(member.name):
                continue
            suffix = base_plus_ext(member.name)[1]
            content: bytes | int = b""
            if suffix is not None and suffix.lower() in (TEXT, JSON):
                fits = member.size <= options.most_bytes
                file = tar.extractfile(member) if fits else None
                content = member.size if file is None else file.read()
            yield {"fname": member.name, "data": content, "__url__": str(path)}
        check_end(path, tar.offset, stream.rest_from(tar.offset))


def _text_of_sample(sample: dict[str, Any], options: ReadOptions) -> Passage:
    text, record = sample.get(TEXT), sample.get(JSON)
    for content in (text, record):
        if isinstance(content, int):
            options.check_length(content)
    if text is None and record is None:
        found = ", ".join(key for key in sample if not key.startswith("__")) or "no member of them"
        raise UnusableError(f"neither .{TEXT} nor .{JSON} in the sample, but {found}")
    if text is None:
        assert record is not None
        passage = JsonLines().text_of(record, options)
        return passage if passage.id else passage._replace(id=sample["__key__"])
    try:
        content = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnusableError(f"invalid UTF-8 at byte {error.start} ({error.reason})") from error
    about = _about(record, options)
    return Passage(
        content,
        len(text),
        _id_in(about, options) or sample["__key__"],
        NO_FIELDS if about is None else options.fields_of(about),
    )


def _about(record: bytes | None, options: ReadOptions) -> dict[str, Any] | None:
    """Return the object in the .json beside a text, if something is wanted of it."""
    if record is None or not (options.id_key or options.metadata):
        return None
    try:
        about = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"invalid JSON in its .json ({error})") from error
    if not isinstance(about, dict):
        raise UnusableError("its .json holds no object")
    return about


def _id_in(about: dict[str, Any] | None, options: ReadOptions) -> str:
    if about is None or not options.id_key:
        return ""
    try:
        return str(about[options.id_key])
    except KeyError as error:
        raise UnusableError(f"no key '{options.id_key}' in its .json (--id-key)") from error


class Warc(Format):
    """One document for each page of a WARC file: the text of HTML by trafilatura, or plain text.

    That of WET files, which hold text, is taken as it is. The id is the address of the page. The
    fields are the record's headers, and those of the server's answer.
    """

    suffixes = (".warc", ".wet")
    _pages = ("text/html", "application/xhtml+xml")

    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        try:
            from warcio.archiveiterator import ArchiveIterator
            from warcio.exceptions import ArchiveLoadFailed
        except ImportError as error:
            raise MissingPackageError(f"{path} needs warcio: {LACKS} ({error})") from error
        with open_decompressed(path) as stream:
            try:
                for number, record in enumerate(ArchiveIterator(stream)):
                    kind = self._kind(record)
                    content = record.content_stream().read(options.most_bytes + 1)
                    _check_record(record, path, number)
                    if kind:
                        address = record.rec_headers.get_header("WARC-Target-URI") or ""
                        place = Place(str(path), row=number)
                        headers = _headers_of(record, options)
                        read = partial(_text_of_page, content, kind, address, headers, options)
                        yield RawDocument(place, read)
                # warcio takes the error of a stream that was cut short for the end of the file.
                while stream.read(READ_BYTES):
                    pass
            except (ArchiveLoadFailed, ValueError) as error:
                raise damaged_archive(path, str(error)) from error

    def _kind(self, record: Any) -> str:
        """Return the type of a record's content, if it is one of text."""
        headers = record.http_headers if record.rec_type == "response" else record.rec_headers
        if record.rec_type not in ("response", "conversion") or headers is None:
            return ""
        kind = str(headers.get_header("Content-Type") or "").partition(";")[0].strip().lower()
        return kind if kind in (*self._pages, "text/plain") else ""


def _check_record(record: Any, path: Path, number: int) -> None:
    """Raise DataError if a record is shorter than its header says, which warcio passes over."""
    rest: IO[bytes] = record.raw_stream
    while rest.read(READ_BYTES):
        pass
    if not record.rec_headers.get_header("Content-Length"):
        raise damaged_archive(path, f"record {number} lacks its header")
    if missing := record.raw_stream.limit:
        raise damaged_archive(path, f"record {number} lacks {missing} bytes")


def _headers_of(record: Any, options: ReadOptions) -> dict[str, str]:
    """Return the headers that are kept, by the names that they are asked for by, in any case."""
    found = {}
    for headers in (record.http_headers, record.rec_headers):
        for name in options.field_names if headers is not None else ():
            if (value := headers.get_header(name)) is not None:
                found[name] = str(value)
    return found


def _text_of_page(
    content: bytes, kind: str, address: str, headers: dict[str, str], options: ReadOptions
) -> Passage:
    options.check_length(len(content))
    fields = options.fields_of(headers)
    if kind == "text/plain":
        try:
            return Passage(content.decode("utf-8"), len(content), address, fields)
        except UnicodeDecodeError as error:
            raise UnusableError(f"invalid UTF-8 at byte {error.start} ({error.reason})") from error
    try:
        from trafilatura import extract
    except ImportError as error:
        raise MissingPackageError(f"HTML needs trafilatura: {LACKS} ({error})") from error
    # A page without an article has no text: an empty document, which is counted as such.
    text = extract(content, url=address or None) or ""
    return Passage(text, len(content), address, fields)
