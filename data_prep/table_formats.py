"""The formats of tables that are shipped: Parquet and Arrow (Feather), by pyarrow.

Of a table the columns of the text, of the id and of what is kept are read, a few rows at a time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.formats import Format, Passage, Place, RawDocument, ReadOptions, UnusableError
from esolm.data_prep.remote import failed, is_of_the_machine, open_bytes

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

BATCH_BYTES = 1 << 24
"""About so many bytes of text are taken from a table at once."""
MOST_BATCH_ROWS = 4096
READ_BUFFER_BYTES = 1 << 20


class Parquet(Format):
    """One document for each row. A file is cut between its row groups."""

    suffixes = (".parquet", ".parq")

    def suits(self, path: Path) -> bool:
        return path.suffix.lower() in self.suffixes  # compressed inside, if at all

    def can_be_cut(self, path: Path) -> bool:
        with _opened(path) as file:  # a damaged one is an error
            return bool(file.num_row_groups > 1)

    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        with _opened(path) as file:
            yield from self._rows(file, path, options, range(file.num_row_groups))

    def pieces_between(
        self, path: Path, options: ReadOptions, start: int, stop: int
    ) -> Iterator[RawDocument]:
        with _opened(path) as file:
            begins = [_beginning(file, group) for group in range(file.num_row_groups)]
            groups = [group for group, place in enumerate(begins) if start <= place < stop]
            yield from self._rows(file, path, options, groups)

    @staticmethod
    def _rows(
        file: "parquet.ParquetFile", path: Path, options: ReadOptions, groups: "range | list[int]"
    ) -> Iterator[RawDocument]:
        columns = _checked_columns(file.schema_arrow, path, options)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        for group in groups:
            row = sum(sizes[:group])
            rows = _batch_rows(file, group, columns)
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                yield from _documents(batch, row, path, options)
                row += batch.num_rows


@contextmanager
def _opened(path: Path) -> Iterator["parquet.ParquetFile"]:
    """Open a Parquet file so that its columns are read page by page, never a row group at once."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with (
            open_bytes(path, at_random=True) as source,
            ParquetFile(source, buffer_size=READ_BUFFER_BYTES, pre_buffer=False) as file,
        ):
            yield file
    except (ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise _damaged_table(path, error) from error


def _beginning(file: "parquet.ParquetFile", group: int) -> int:
    """Return the byte at which a row group begins."""
    column = file.metadata.row_group(group).column(0)
    pages = (column.dictionary_page_offset, column.data_page_offset)
    return min(int(place) for place in pages if place is not None)


def _batch_rows(file: "parquet.ParquetFile", group: int, names: list[str]) -> int:
    record = file.metadata.row_group(group)
    columns = (record.column(number) for number in range(record.num_columns))
    parts = tuple(f"{name}." for name in names)  # of a column that holds structures
    num_bytes = sum(
        column.total_uncompressed_size
        for column in columns
        if f"{column.path_in_schema}.".startswith(parts)
    )
    return _rows_at_once(num_bytes, record.num_rows)


def _rows_at_once(num_bytes: int, num_rows: int) -> int:
    return max(1, min(MOST_BATCH_ROWS, BATCH_BYTES * num_rows // max(1, num_bytes)))


class ArrowTable(Format):
    """One document for each row of Arrow's IPC format, as a file (Feather) or as a stream."""

    suffixes = (".arrow", ".feather", ".ipc")

    def suits(self, path: Path) -> bool:
        return path.suffix.lower() in self.suffixes

    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        from pyarrow import ArrowException

        try:
            with open_bytes(path, at_random=True) as source:
                row = 0
                for batch in _record_batches(source):
                    columns = _checked_columns(batch.schema, path, options)
                    batch = batch.select(columns)
                    yield from _documents(batch, row, path, options)
                    row += batch.num_rows
        except (ArrowException, OSError, EOFError) as error:
            raise _damaged_table(path, error) from error


def _record_batches(source: Any) -> Iterator["pyarrow.RecordBatch"]:
    from pyarrow import ipc

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if not is_file:
        with ipc.open_stream(source) as stream:
            yield from stream
        return
    with ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


def _damaged_table(path: Path, error: Exception) -> EsolmError:
    if isinstance(error, OSError) and error.errno is not None:
        if is_of_the_machine(error):
            return failed(path, error)
        return DataError(f"{path} cannot be read ({error.strerror}).")
    problem = " ".join(str(error).split())
    return DataError(f"{path} is damaged or cut short ({problem}). Fetch or write it again.")


def _checked_columns(schema: "pyarrow.Schema", path: Path, options: ReadOptions) -> list[str]:
    """Return the names of the columns that are read; raises DataError if they are not there."""
    asked = [(options.text_key, "--text-key"), (options.id_key, "--id-key")]
    asked += [(name, "--metadata") for name in options.needed_fields]
    for key, option in asked:
        if key and key not in schema.names:
            raise DataError(
                f"{path} has no column '{key}' but {', '.join(schema.names)}. Choose another with "
                f"{option}."
            )
    found = schema.field(options.text_key).type
    if not _is_text(found):
        raise DataError(
            f"{path}: column '{options.text_key}' holds {found}, not text. Choose another with "
            "--text-key."
        )
    wanted = [options.text_key, options.id_key, *options.field_names]
    return [name for name in dict.fromkeys(wanted) if name in schema.names]


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)


def _documents(
    batch: "pyarrow.RecordBatch", first_row: int, path: Path, options: ReadOptions
) -> Iterator[RawDocument]:
    """Yield the rows of a batch, whose columns are the text and what else is wanted."""
    import pyarrow

    # As bytes, because one row of invalid UTF-8 would take all rows of the batch with it.
    texts = batch.column(options.text_key)
    if pyarrow.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    texts = texts.cast(pyarrow.large_binary())
    names = batch.column(options.id_key) if options.id_key else None
    kept = {
        name: _column_to_keep(batch.column(name))
        for name in options.field_names
        if name in batch.schema.names
    }
    for number in range(batch.num_rows):
        place = Place(str(path), row=first_row + number)
        name = None if names is None else names[number]
        fields = {field: column[number] for field, column in kept.items()}
        yield RawDocument(place, partial(_text_of, texts[number], name, fields, options))


def _column_to_keep(column: "pyarrow.Array") -> "pyarrow.Array":
    """Return a column, one of times as text: as objects of Python they would lose nanoseconds."""
    from pyarrow import string, types

    tests = (types.is_timestamp, types.is_date, types.is_time)
    return column.cast(string()) if any(test(column.type) for test in tests) else column


def _fields_of(values: dict[str, Any], options: ReadOptions) -> Mapping[str, Any]:
    try:
        return options.fields_of({name: value.as_py() for name, value in values.items()})
    except ValueError as error:  # also of text that is no UTF-8
        raise UnusableError(f"a column of --metadata cannot be kept ({error})") from error


def _text_of(value: Any, name: Any, fields: dict[str, Any], options: ReadOptions) -> Passage:
    content = value.as_py()
    if content is None:
        raise UnusableError(f"no text: '{options.text_key}' is null")
    options.check_length(len(content))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnusableError(f"invalid UTF-8 at byte {error.start} ({error.reason})") from error
    id = "" if name is None else str(name.as_py())
    return Passage(text, len(content), id, _fields_of(fields, options))
