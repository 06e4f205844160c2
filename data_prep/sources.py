"""The files of a corpus: by name, in folders, by patterns, in lists; and Python's own library.

The order depends on the inputs alone: files come in the order given, those of a directory or of a
pattern in the sorted order of their relative paths, those of a list in its order.
"""

import glob
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.known_formats import ANY, AUTO, format_of, formats
from esolm.data_prep.pipes import NOMINAL_BYTES, commands_of, is_piped
from esolm.data_prep.remote import failed, is_absent, is_url, names_below, path_of

# The library's test suites hold files in deliberately wrong encodings, and little prose.
STDLIB_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}
LIST_MARK = "@"


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus, with the figures by which a changed input is noticed."""

    path: Path
    name: str
    """The path relative to the input that named it, which is the same under every mount point."""
    num_bytes: int
    modified_ns: int
    format: str
    """The name of what it holds; see `esolm.data_prep.formats`."""


def find_files(
    inputs: Sequence[str | Path],
    from_python_stdlib: bool = False,
    told: str = AUTO,
    commands: bool = False,
) -> list[SourceFile]:
    """Return the files behind a list of inputs (hidden ones in folders are left out).

    inputs: each a file, a directory, a pattern (`*`, `?`, `[...]`, `**`), `@LIST`, a file with an
    input on each line, or an address that fsspec opens (that of a folder ends with /; also with
    `*`). told: the format of the inputs, as for `format_of`. commands: whether an input may be
    `pipe:CMD`, the output of a command, which no line of a list may be. Links are followed.
    Raises DataError when an input does not exist (all missing ones are named), when something is
    no readable regular file or its name says nothing of its format, or when nothing is found.
    """
    missing: list[str] = []
    files: list[SourceFile] = []
    for given in map(str, inputs):
        if is_piped(given) and commands:
            files += _found_piped(given, told)
        else:
            files += _found(given, told, missing)
    if missing:
        raise DataError(f"No such file or directory: {', '.join(missing)}. Check the INPUT paths.")
    _refuse_unknown([source for source in files if not source.format])
    if from_python_stdlib:
        files += python_stdlib_files()
    if not files:
        where = f" in {', '.join(map(str, inputs))}" if inputs else ""
        raise DataError(
            f"No input files{where}. Give text, JSONL or Parquet files, or --from-python-stdlib."
        )
    return files


def _found(
    given: str, told: str, missing: list[str], lists: tuple[Path, ...] = ()
) -> Iterator[SourceFile]:
    """Yield the files behind an input. lists: those that it stands in, the outermost first."""
    if is_piped(given):
        raise DataError(
            f"{f'The list {lists[-1]} names a command: ' if lists else ''}{given} is not run. Only "
            "INPUT of `esolm prep` and prep.inputs may name a command: write it there."
        )
    if is_url(given):
        yield from _found_at(given, told, missing)
        return
    path = Path(given)
    if path.is_dir():
        yield from _walk(path, frozenset(), "", told)
    elif os.path.lexists(path):
        yield _source_file(path, path.name, told)
    elif given.startswith(LIST_MARK):
        path = Path(given[len(LIST_MARK) :])
        for line in _lines_of_list(path, lists):
            yield from _found(line, told, missing, (*lists, path.resolve()))
    elif glob.has_magic(given):
        yield from _matching(given, told, missing)
    else:
        missing.append(given)


def _found_piped(given: str, told: str) -> Iterator[SourceFile]:
    """Yield what stands for the outputs of commands."""
    if told not in (AUTO, ANY, "tar"):
        raise DataError(
            f"{given}: the output of a command is a webdataset tar (--format tar), not {told}. "
            "Write it to a file."
        )
    for command in commands_of(given):
        yield SourceFile(cast(Path, command), command.given, NOMINAL_BYTES, 0, "tar")


def _found_at(url: str, told: str, missing: list[str]) -> Iterator[SourceFile]:
    """Yield the file at an address, those of a folder, which ends with /, or those of a pattern."""
    start, last = url, ""
    while "*" in start:
        start, _, part = start.rpartition("/")
        last = f"{part}/{last}" if last else part
    path = path_of(f"{start}/" if last else start)
    try:
        if not last and not url.endswith("/"):
            yield _source_file(path, path.name, told)
            return
        names = names_below(path, last)
        for name in names:
            yield _source_file(path / name, name, told)
        if not names:
            missing.append(f"{path}{last} (nothing is there)")
    except FileNotFoundError as error:
        if not is_absent(error):
            raise failed(path, error.__cause__) from error
        missing.append(str(path))
    except (EsolmError, OSError):
        raise
    except Exception as error:  # each protocol has its own
        raise failed(path, error) from error


def absolute(given: str) -> str:
    """Return an input as it is called from any folder."""
    if is_piped(given) or is_url(given):
        return given
    if given.startswith(LIST_MARK) and not os.path.lexists(given):
        return f"{LIST_MARK}{Path(given[len(LIST_MARK) :]).resolve()}"
    return str(Path(given).resolve())


def folders_of(inputs: Sequence[str], lists: tuple[Path, ...] = ()) -> list[str]:
    """Return the files and folders behind which all of the inputs lie, the lists' own as well.

    lists: those that the inputs stand in.
    """
    found = []
    for given in (each for each in inputs if not (is_piped(each) or is_url(each))):
        if os.path.lexists(given):
            found.append(given)
        elif given.startswith(LIST_MARK):
            path = Path(given[len(LIST_MARK) :])
            lines = list(_lines_of_list(path, lists))
            found += [str(path.parent), *folders_of(lines, (*lists, path.resolve()))]
        elif glob.has_magic(given):
            found.append(str(_fixed_part(given)))
        else:
            found.append(given)
    return list(dict.fromkeys(found))


def _fixed_part(pattern: str) -> Path:
    parts = Path(pattern).parts
    return Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])


def _lines_of_list(path: Path, lists: tuple[Path, ...]) -> Iterator[str]:
    """Yield the inputs that a list names; relative ones are relative to its folder.

    lists: those that it is named in itself, which it must not be one of.
    """
    if path.resolve() in lists:
        raise DataError(
            f"The list {path} names itself"
            f"{f' by way of {lists[-1]}' if lists[-1] != path.resolve() else ''}. Take one of "
            "these lines out."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(
            f"The list {path} cannot be read ({problem}). Give a text file with an input on each "
            "line."
        ) from error
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            mark = LIST_MARK if line.startswith(LIST_MARK) else ""
            yield (
                line
                if is_piped(line) or is_url(line)
                else mark + os.path.join(path.parent, line[len(mark) :])
            )


def _matching(pattern: str, told: str, missing: list[str]) -> Iterator[SourceFile]:
    start = _fixed_part(pattern)
    below = str(Path(pattern).relative_to(start))
    names = sorted(glob.glob(below, root_dir=start, recursive=True))
    files = [name for name in names if not (start / name).is_dir()]
    if not files:
        missing.append(f"{pattern} (a pattern that nothing matches)")
    for name in files:
        yield _source_file(start / name, Path(name).as_posix(), told)


def _source_file(path: Path, name: str, told: str) -> SourceFile:
    try:
        found = path.stat()
    except OSError as error:
        if is_url(path):
            raise
        raise _unreadable(error) from error
    if not stat.S_ISREG(found.st_mode) and not is_url(path):
        raise DataError(
            f"{path} is no regular file. Every step reads the corpus anew, so text must lie in "
            "files: write it to one, or take this out of the INPUT."
        )
    changed = int(found.st_mtime * 1e9) if is_url(path) else found.st_mtime_ns
    return SourceFile(path, name, found.st_size, changed, format_of(path, told) or "")


def _unreadable(error: OSError) -> DataError:
    return DataError(
        f"{error.filename} cannot be read ({error.strerror}). Repair it, or take it out of the "
        "INPUT."
    )


def _raise(error: OSError) -> None:
    raise _unreadable(error) from error


def _is_new(path: Path, seen: set[Path]) -> bool:
    is_new = path not in seen
    seen.add(path)
    return is_new


def _walk(directory: Path, excluded: frozenset[str], suffix: str, told: str) -> list[SourceFile]:
    found = []
    seen = {directory.resolve()}
    for folder, subfolders, names in os.walk(directory, onerror=_raise, followlinks=True):
        wanted = sorted(s for s in subfolders if s not in excluded and not s.startswith("."))
        # A folder is entered only the first time it is met, because links may lead in a circle.
        subfolders[:] = [s for s in wanted if _is_new(Path(folder, s).resolve(), seen)]
        for name in names:
            if name.endswith(suffix) and not name.startswith("."):
                path = Path(folder, name)
                found.append(_source_file(path, path.relative_to(directory).as_posix(), told))
    return sorted(found, key=lambda source: source.name)


def python_stdlib_files() -> list[SourceFile]:
    """Return the source files of the running interpreter's library, without its test suites."""
    directory = Path(sysconfig.get_paths()["stdlib"])
    files = (
        _walk(directory, frozenset(STDLIB_EXCLUDED), ".py", "text") if directory.is_dir() else []
    )
    if not files:
        raise DataError(
            f"The running Python keeps no library sources in {directory}. Pass text files instead."
        )
    return files


def _refuse_unknown(files: Sequence[SourceFile]) -> None:
    if files:
        some = ", ".join(str(source.path) for source in files[:5])
        more = f" and {len(files) - 5:,} more" if len(files) > 5 else ""
        raise DataError(
            f"What do these files hold? Their names do not say: {some}{more}. Take them out of the "
            f"INPUT, or say it for all of it with --format {', '.join(formats())} (prep.format)."
        )
