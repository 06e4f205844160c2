"""Merging finished tasks into one dataset by writing its `manifest.json`."""

from pathlib import Path

from esolm.data_prep.cleaning.report import StageReport, summed
from esolm.data_prep.comparing import COMPARE, cleaning_of
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import read_json, write_atomic, write_json
from esolm.data_prep.jobs import (
    DELETE_MARKER,
    TaskRecord,
    check_bad_of_all,
    errors_path,
    examples_path,
    read_marker,
)
from esolm.data_prep.layout import token_dtype
from esolm.data_prep.manifest import (
    CLEANING_NAME,
    ERRORS_NAME,
    EXAMPLES_NAME,
    SPLITS,
    TASKS_DIRECTORY,
    TOKENIZER_DIRECTORY,
    WORK_DIRECTORY,
    Manifest,
    repair_advice,
    shard_problems,
    write_manifest,
)
from esolm.data_prep.tokenizers import load_tokenizer


def merge_tasks(data: Path) -> Manifest:
    """Write the manifest over all tasks of a dataset and return it.

    Raises DataError, which names all missing tasks, or all missing or truncated shards, or the
    tasks and tokenizer that do not belong together, or more bad documents than are allowed.
    """
    records = _finished_tasks(data)
    check_bad_of_all(data, records)
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
    counts = {name: sum(record.counts[name] for record in records) for name in first.counts}
    manifest = Manifest(dtype, tokenizer, splits, counts)
    _merge_errors(data, records)
    _merge_cleaning(data, records)
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


def cleaning_report(data: Path, records: list[TaskRecord]) -> list[StageReport]:
    """Return what the stages of cleaning did to the corpus, in their order."""
    compared = [
        cleaning_of(data, record.task, record.num_tasks)
        for record in records
        if "dedup" in record.settings
    ]
    return summed([*compared, *(record.cleaning for record in records)])


def read_cleaning(data: Path) -> list[StageReport]:
    """Return what `merge` wrote of the stages of cleaning; nothing if there were none."""
    path = data / CLEANING_NAME
    if not path.exists():
        return []
    stages = read_json(path, f"Run `esolm prep merge {data}`.")["stages"]
    return [StageReport(**stage) for stage in stages]


def _merge_cleaning(data: Path, records: list[TaskRecord]) -> None:
    if (data / CLEANING_NAME).exists() and not any((data / WORK_DIRECTORY).glob("*")):
        return  # it was merged before, and what the passes left was taken away since
    stages = cleaning_report(data, records)
    paths = [
        path
        for name in (COMPARE, "task")
        for record in records
        if (path := examples_path(data, record.task, record.num_tasks, name)).exists()
    ]
    if not stages:
        for name in (CLEANING_NAME, EXAMPLES_NAME):
            (data / name).unlink(missing_ok=True)
        return
    write_json(data / CLEANING_NAME, {"stages": [stage.to_record() for stage in stages]})
    write_atomic(data / EXAMPLES_NAME, b"".join(path.read_bytes() for path in paths))


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
