"""The full check of a dataset, of every byte against the checksums of the manifest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import file_problem
from esolm.data_prep.jobs import read_marker
from esolm.data_prep.manifest import (
    TASKS_DIRECTORY,
    TOKENIZER_DIRECTORY,
    Manifest,
    repair_advice,
)
from esolm.data_prep.packing_index import lengths_of, pack_command, packed_files
from esolm.data_prep.tokenizers import load_tokenizer


def files_of(manifest: Manifest) -> list[tuple[str, int, str]]:
    """Return (name, bytes, sha256) of every file of the shards that the manifest lists."""
    return [file for shard in manifest.shards for file in shard.files()]


def verify_dataset(
    data: Path, manifest: Manifest, on_bytes: Callable[[int], None], workers: int = 1
) -> int:
    """Check every file of a dataset and return how many there are.

    on_bytes: called with the number of bytes of each read. workers: files read at a time. Raises
    DataError, which names every damaged file with what was expected and what was found.
    """
    files, num_files = files_of(manifest), 0
    problems = _file_problems(data, files, on_bytes, workers) + _task_problems(data, manifest)
    if problems:
        problems.append(repair_advice(data))
    for length in lengths_of(data):
        found, packed = _packing_problems(data, manifest, length, on_bytes, workers)
        problems, num_files = problems + found, num_files + packed
    problems += tokenizer_problems(data, manifest)
    if problems:
        raise DataError("\n".join(problems))
    return len(files) + num_files


def _packing_problems(
    data: Path, manifest: Manifest, length: int, on_bytes: Callable[[int], None], workers: int
) -> tuple[list[str], int]:
    """Say what is wrong with the rows of a length, and how many files they have."""
    try:
        files = packed_files(data, manifest, length)
    except DataError as error:
        return [str(error)], 0
    problems = _file_problems(data, files, on_bytes, workers)
    if problems:
        problems.append(f"Delete what is named, and run {pack_command(data, length)}.")
    return problems, len(files)


def _file_problems(
    data: Path, files: list[tuple[str, int, str]], on_bytes: Callable[[int], None], workers: int
) -> list[str]:
    one_at_a_time = Lock()

    def count(num_bytes: int) -> None:
        with one_at_a_time:
            on_bytes(num_bytes)

    pool = ThreadPoolExecutor(workers)  # hashing and reading let other threads run
    try:
        waiting = [
            pool.submit(file_problem, data / name, num_bytes, sha256, count)
            for name, num_bytes, sha256 in files
        ]
        return [problem for each in waiting if (problem := each.result())]
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the files at hand alone


def _task_problems(data: Path, manifest: Manifest) -> list[str]:
    """Say what is wrong with the markers and sidecars, if they still lie in the dataset.

    Reading does not need them, but the next `tokenize` and `merge` rely on them.
    """
    problems = []
    listed = {file for file in files_of(manifest) if file[0].endswith(".tar")}
    for path in sorted((data / TASKS_DIRECTORY).glob("task-*.json")):
        try:
            record = read_marker(data, path)
        except DataError as error:
            problems.append(str(error))
            continue
        shards = [shard for infos in record.shards.values() for shard in infos]
        others = [s.name for s in shards if (s.name, s.num_bytes, s.sha256) not in listed]
        if others:
            problems.append(
                f"{path}: the manifest was not made from its {', '.join(others)}. Run `esolm prep "
                f"merge {data}`."
            )
    return problems


def tokenizer_problems(data: Path, manifest: Manifest) -> list[str]:
    """Say what is wrong with the tokenizer of a dataset."""
    directory = data / TOKENIZER_DIRECTORY
    try:
        found = load_tokenizer(directory).info
    except DataError as error:
        return [str(error)]
    if found != manifest.tokenizer:
        expected = manifest.tokenizer.fingerprint
        return [
            f"{directory} is not the tokenizer that the tokens were made with: fingerprint "
            f"{expected} expected, {found.fingerprint} found. Restore it from a copy, or from the "
            "tokenizer that `esolm prep tokenize` was given."
        ]
    return []
