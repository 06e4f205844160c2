"""Merging finished tasks into one dataset by writing its `manifest.json`."""

from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import write_atomic
from esolm.data_prep.jobs import COUNTS, DELETE_MARKER, TaskRecord, errors_path, read_marker
from esolm.data_prep.layout import token_dtype
from esolm.data_prep.manifest import (
    ERRORS_NAME,
    SPLITS,
    TASKS_DIRECTORY,
    TOKENIZER_DIRECTORY,
    Manifest,
    repair_advice,
    shard_problems,
    write_manifest,
)
from esolm.data_prep.tokenizers import load_tokenizer


def merge_tasks(data: Path) -> Manifest:
    """Write the manifest over all tasks of a dataset and return it.

    Raises DataError, which names all missing tasks, or all missing or truncated shards, or the
    tasks and tokenizer that do not belong together.
    """
    records = _finished_tasks(data)
    first = records[0]
    tokenizer = load_tokenizer(data / TOKENIZER_DIRECTORY).info
    if tokenizer != first.tokenizer:
        raise DataError(
            f"{data / TOKENIZER_DIRECTORY} is not the tokenizer that the shards were made with "
            f"({tokenizer.fingerprint} found, {first.tokenizer.fingerprint} expected). "
            "Restore it, or tokenize again with --overwrite."
        )
    splits = {
        split: [shard for record in records for shard in record.shards[split]] for split in SPLITS
    }
    dtype = token_dtype(tokenizer.vocab_size)
    shards = [shard for infos in splits.values() for shard in infos]
    if wrong := [each for shard in shards for each in shard.contradictions(dtype)]:
        raise DataError("\n".join([*wrong, DELETE_MARKER]))
    if problems := shard_problems(data, shards):
        raise DataError("\n".join([*problems, repair_advice(data)]))
    if not any(splits.values()):
        raise DataError(
            f"{data} holds no tokens: every document was empty or bad. Check the input."
        )
    counts = {name: sum(record.counts[name] for record in records) for name in COUNTS}
    manifest = Manifest(dtype, tokenizer, splits, counts)
    _merge_errors(data, records)
    write_manifest(data, manifest)
    return manifest


def _merge_errors(data: Path, records: list[TaskRecord]) -> None:
    """Put the lists of bad documents and files together, in the order of the tasks."""
    paths = [errors_path(data, r.task, r.num_tasks) for r in records if r.counts["bad"]]
    if lost := [str(path) for path in paths if not path.exists()]:
        raise DataError("\n".join([f"Missing: {', '.join(lost)}", repair_advice(data)]))
    if paths:
        write_atomic(data / ERRORS_NAME, b"".join(path.read_bytes() for path in paths))
    else:
        (data / ERRORS_NAME).unlink(missing_ok=True)


def _finished_tasks(data: Path) -> list[TaskRecord]:
    paths = sorted((data / TASKS_DIRECTORY).glob("task-*.json"))
    if not paths:
        raise DataError(
            f"{data} has no finished task. Run `esolm prep tokenize INPUT --tokenizer DIR "
            f"--out {data}` first."
        )
    records = [read_marker(data, path) for path in paths]
    first = records[0]
    other = [str(p) for p, r in zip(paths, records, strict=True) if r.settings != first.settings]
    if other:
        raise DataError(
            f"{paths[0]} and {', '.join(other)} were made with other settings or inputs. Tokenize "
            "again with --overwrite."
        )
    missing = sorted(set(range(first.num_tasks)) - {record.task for record in records})
    if missing:
        raise DataError(
            f"{data}: {len(missing)} of {first.num_tasks} tasks are not finished: "
            f"{', '.join(map(str, missing))}. Run the same `esolm prep tokenize` command again "
            f"(finished tasks are skipped), or for one task with --task {missing[0]}."
        )
    return records
