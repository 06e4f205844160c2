"""The full check of a dataset, of every byte against the checksums of the manifest."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from data_prep.errors import DataError
from data_prep.files import HASH_BLOCK_BYTES, sha256_of_file
from data_prep.jobs import read_marker
from data_prep.manifest import TASKS_DIRECTORY, TOKENIZER_DIRECTORY, Manifest, repair_advice
from data_prep.tokenizers import Tokenizer, load_tokenizer

RESTORE_TOKENIZER = (
    "Restore the folder from a copy, or from the tokenizer that `esolm prep tokenize` was given."
)


def files_of(manifest: Manifest) -> list[tuple[str, int, str]]:
    """Return (name, bytes, sha256) of every file of the shards that the manifest lists."""
    shards = [shard for infos in manifest.splits.values() for shard in infos]
    return [file for shard in shards for file in shard.files()]


def verify_dataset(data: Path, manifest: Manifest, on_bytes: Callable[[int], None]) -> int:
    """Check every file of a dataset and return how many there are.

    on_bytes: called with the number of bytes of each read. Raises DataError, which names every
    damaged file with what was expected and what was found.
    """
    files = files_of(manifest)
    damaged = damaged_files(data, files, on_bytes)
    problems = [*damaged, *_task_problems(data, manifest)]
    if problems:
        problems.append(repair_advice(data))
    try:
        checked_tokenizer(data, manifest)
    except DataError as error:
        problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return len(files)


def damaged_files(
    data: Path, files: list[tuple[str, int, str]], on_bytes: Callable[[int], None]
) -> list[str]:
    """Say which of these files are not what was written, one sentence for each."""
    found = (_problem(data / name, size, sha256, on_bytes) for name, size, sha256 in files)
    return [problem for problem in found if problem]


def _problem(
    path: Path, num_bytes: int, sha256: str, on_bytes: Callable[[int], None]
) -> str | None:
    digest = hashlib.sha256()
    found_bytes = 0
    try:
        with open(path, "rb", buffering=0) as stream:
            while block := stream.read(HASH_BLOCK_BYTES):
                digest.update(block)
                found_bytes += len(block)
                on_bytes(len(block))
    except OSError as error:
        return f"{path}: missing or unreadable ({error.strerror})"
    if found_bytes != num_bytes:
        kind = "cut short" if found_bytes < num_bytes else "too long"
        return f"{path}: {kind}, {num_bytes} bytes expected, {found_bytes} found"
    if digest.hexdigest() != sha256:
        return f"{path}: changed, sha256 {sha256} expected, {digest.hexdigest()} found"
    return None


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


def checked_tokenizer(data: Path, manifest: Manifest) -> Tokenizer:
    """Return the tokenizer of a dataset, which is the one that its tokens were made with.

    Raises DataError when a file of it is missing or changed, or when it is another tokenizer.
    """
    directory = data / TOKENIZER_DIRECTORY
    problems = [
        problem
        for name, sha256 in manifest.tokenizer_files.items()
        if (problem := _tokenizer_problem(directory / name, sha256))
    ]
    if problems:
        raise DataError(f"{'; '.join(problems)}. {RESTORE_TOKENIZER}")
    tokenizer = load_tokenizer(directory)
    if tokenizer.info != manifest.tokenizer:
        raise DataError(
            f"{directory} is not the tokenizer that the tokens were made with: fingerprint "
            f"{manifest.tokenizer.fingerprint} expected, {tokenizer.info.fingerprint} found. "
            f"{RESTORE_TOKENIZER}"
        )
    return tokenizer


def _tokenizer_problem(path: Path, sha256: str) -> str | None:
    try:
        found = sha256_of_file(path)
    except OSError as error:
        return f"{path}: missing or unreadable ({error.strerror})"
    return None if found == sha256 else f"{path}: changed, sha256 {sha256} expected, {found} found"
