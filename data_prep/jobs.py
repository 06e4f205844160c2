"""A job of tokenising: its settings, its logical tasks, and which of them are finished.

A task owns a slice of the corpus (`esolm.data_prep.slices`). It writes shards of its own and leaves
a marker when all of them are durable. Tasks with a marker are skipped.
"""

import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from esolm.data_prep.bad_documents import BadDocuments, too_many
from esolm.data_prep.cleaning.report import StageReport
from esolm.data_prep.cleaning.stages import build_stages, fingerprints_of
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fingerprint_of, refuse_taken
from esolm.data_prep.formats import MOST_DOCUMENT_BYTES, ReadOptions
from esolm.data_prep.known_formats import format_of
from esolm.data_prep.layout import ShardInfo
from esolm.data_prep.manifest import (
    CLEANING_NAME,
    ENERGON_DIRECTORY,
    ERRORS_NAME,
    EXAMPLES_NAME,
    MANIFEST_NAME,
    ORIGIN_NAME,
    PACKING_DIRECTORY,
    SHARDS_DIRECTORY,
    TASKS_DIRECTORY,
    TOKENIZER_DIRECTORY,
    WORK_DIRECTORY,
    record_to,
    record_to_shard,
    shard_problems,
)
from esolm.data_prep.metadata import PLACE_ALONE, metadata_problems
from esolm.data_prep.records import read_record, write_record
from esolm.data_prep.slices import Stretch, slice_of
from esolm.data_prep.sources import SourceFile
from esolm.data_prep.tokenizers import TokenizerInfo, load_tokenizer

COUNTS = ("documents", "duplicates", "empty", "bad")
FILTERED, NEAR_DUPLICATES = "filtered", "near_duplicates"
"""Further counts of a job that cleans."""
DEDUPS = ("task", "corpus", "near")
DELETE_MARKER = "Delete it and run the same `esolm prep tokenize` command again."


@dataclass(frozen=True)
class TokenizeJob:
    """What is tokenised and how: every field but `out` decides the bytes that are written."""

    out: Path
    files: tuple[SourceFile, ...]
    tokenizer: TokenizerInfo
    num_tasks: int = 1
    valid_fraction: float = 0.01
    shard_tokens: int = 100_000_000
    max_bytes: int | None = None
    """How many bytes of text are taken at most, shared out equally over the tasks."""
    text_key: str = "text"
    on_bad_document: str = "error"
    most_document_bytes: int = MOST_DOCUMENT_BYTES
    clean: tuple[str, ...] = ()
    """The stages that every document passes, as `esolm.data_prep.cleaning.stages` names them."""
    dedup: str = "task"
    """Where a repeat is looked for: `task`; `corpus`; `near`, also near-duplicates in it."""
    id_key: str = ""
    metadata: tuple[str, ...] = ()
    """The fields of a document that are kept beside its tokens, as `ReadOptions.metadata`."""
    max_bad: int | None = None
    """How many bad documents and files are left out at most. It decides no byte that is written."""

    def __post_init__(self) -> None:
        problems = []
        if self.num_tasks < 1:
            problems.append(f"--tasks is {self.num_tasks}, must be at least 1")
        if not 0 <= self.valid_fraction < 1:
            problems.append(f"--valid-fraction is {self.valid_fraction}, must be in [0, 1)")
        if self.shard_tokens < 1:
            problems.append(f"--shard-tokens is {self.shard_tokens}, must be at least 1")
        if self.max_bytes is not None and self.max_bytes < 1:
            problems.append(f"--max-bytes is {self.max_bytes}, must be at least 1")
        if self.most_document_bytes < 1:
            problems.append(f"--max-document-bytes is {self.most_document_bytes}, must be positive")
        if self.dedup not in DEDUPS:
            problems.append(f"--dedup is '{self.dedup}', must be {', '.join(DEDUPS)}")
        problems += metadata_problems(self.metadata)
        BadDocuments(self.on_bad_document, self.max_bad)
        build_stages(self.clean)
        if problems:
            raise DataError("; ".join(problems) + ".")

    def settings(self) -> dict[str, Any]:
        """Return the settings that must be unchanged for a finished task to count as done."""
        return dict(self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        # They are asked for with every task, and there may be as many files.
        files = [[f.name, f.num_bytes, f.modified_ns] for f in self.files]
        # What older datasets do not state is stated only where it could make a difference.
        stated = {
            each.format
            for each in self.files
            if each.format == "json" or each.format != format_of(each.path)
        }
        most = self.most_document_bytes
        return {
            **({"formats": sorted(stated)} if stated else {}),
            **({"slices": "bytes"} if self.num_tasks > 1 else {}),
            **({"most_document_bytes": most} if most != MOST_DOCUMENT_BYTES else {}),
            **({"clean": fingerprints_of(build_stages(self.clean))} if self.clean else {}),
            **({"dedup": self.dedup} if self.dedup != "task" else {}),
            **({"id_key": self.id_key} if self.id_key else {}),
            **({"metadata": list(self.metadata)} if self.metadata else {}),
            "inputs": fingerprint_of(files),
            "tokenizer": self.tokenizer.fingerprint,
            "tasks": self.num_tasks,
            "valid_fraction": self.valid_fraction,
            "shard_tokens": self.shard_tokens,
            "max_bytes": self.max_bytes,
            "text_key": self.text_key,
            "on_bad_document": self.on_bad_document,
        }

    @property
    def compares(self) -> bool:
        """Whether documents of different tasks are compared before any becomes tokens."""
        return self.dedup != "task"

    @property
    def options(self) -> ReadOptions:
        """What is taken from a file."""
        fields = tuple(name for name in self.metadata if name != PLACE_ALONE)
        return ReadOptions(self.text_key, self.id_key, self.most_document_bytes, fields)

    def slice(self, task: int) -> tuple[Stretch, ...]:
        """What a task reads."""
        return slice_of(self.files, task, self.num_tasks)

    def num_bytes_of(self, task: int) -> int:
        """The bytes on disk of what a task reads."""
        return sum(stretch.num_bytes for stretch in self.slice(task))

    @property
    def num_bytes(self) -> int:
        """The bytes of input as they lie on disk, at most `max_bytes`."""
        total = sum(source.num_bytes for source in self.files)
        return total if self.max_bytes is None else min(total, self.max_bytes)


@dataclass(frozen=True)
class TaskRecord:
    """The marker of a finished task."""

    task: int
    num_tasks: int
    settings: dict[str, Any]
    tokenizer: TokenizerInfo
    counts: dict[str, int]
    shards: dict[str, list[ShardInfo]] = field(default_factory=dict)
    cleaning: list[StageReport] = field(default_factory=list)


def task_name(name: str, task: int, num_tasks: int) -> str:
    """Return what the files of a pass of a task are called, without what stands behind a dot."""
    return f"{name}-{task:05d}-of-{num_tasks:05d}"


def marker_path(data: Path, task: int, num_tasks: int) -> Path:
    """Return the path of a task's marker."""
    return data / TASKS_DIRECTORY / f"{task_name('task', task, num_tasks)}.json"


def errors_path(data: Path, task: int, num_tasks: int) -> Path:
    """Return the path of the list of what a task left out as bad; without any there is none."""
    return marker_path(data, task, num_tasks).with_suffix(".errors.jsonl")


def examples_path(data: Path, task: int, num_tasks: int, name: str = "task") -> Path:
    """Return the path of the examples of what a pass of a task left out while it cleaned."""
    return data / WORK_DIRECTORY / f"{task_name(name, task, num_tasks)}.examples.jsonl"


def limit_path(data: Path) -> Path:
    """Return the path of how many bad documents the last command allowed, if it set a limit."""
    return data / TASKS_DIRECTORY / "max-bad.json"


def task_fingerprint(task: int, settings: dict[str, Any]) -> str:
    """Return the fingerprint that ties a shard's sidecar to a task and its settings."""
    return fingerprint_of({"task": task, "settings": settings})


def read_marker(data: Path, path: Path) -> TaskRecord:
    """Return the record of a finished task; its shards are read from their sidecars.

    Raises DataError when a file is missing, damaged, or belongs to other settings.
    """
    marker = read_record(path, DELETE_MARKER)
    try:
        if path.name != marker_path(data, marker["task"], marker["num_tasks"]).name:
            raise DataError(f"{path} is the marker of another task. {DELETE_MARKER}")
        expected = task_fingerprint(marker["task"], marker["settings"])
        shards = {
            split: [_read_sidecar(data, name, expected) for name in names]
            for split, names in marker["sidecars"].items()
        }
        tokenizer = record_to(TokenizerInfo, marker["tokenizer"], path, DELETE_MARKER)
        return TaskRecord(
            int(marker["task"]),
            int(marker["num_tasks"]),
            dict(marker["settings"]),
            tokenizer,
            {name: int(marker["counts"][name]) for name in (*COUNTS, *marker["counts"])},
            shards,
            [StageReport(**stage) for stage in marker.get("cleaning", [])],
        )
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}). {DELETE_MARKER}") from error


def _read_sidecar(data: Path, name: str, expected_fingerprint: str) -> ShardInfo:
    path = data / name
    sidecar = read_record(path, DELETE_MARKER)
    if sidecar.get("task_fingerprint") != expected_fingerprint:
        raise DataError(f"{path} belongs to a task with other settings. {DELETE_MARKER}")
    shard = record_to_shard(sidecar.get("shard"), path, DELETE_MARKER)
    if Path(shard.name).stem != path.stem:
        raise DataError(f"{path} describes another shard, {shard.name}. {DELETE_MARKER}")
    return shard


def check_settings(job: TokenizeJob) -> None:
    """Raise DataError, which names each change, if the output has tasks with other settings."""
    settings = job.settings()
    for path in sorted((job.out / TASKS_DIRECTORY).glob("task-*.json")):
        found = read_record(path, DELETE_MARKER).get("settings")
        if found == settings:
            continue
        before = found if isinstance(found, dict) else {}
        changes = [
            f"{key}: was {before.get(key)}, now {settings.get(key)}"
            for key in {**settings, **before}
            if before.get(key) != settings.get(key)
        ]
        raise DataError(
            f"{path} was made with other settings ({'; '.join(changes)}). Give another --out, or "
            "--overwrite to start this dataset anew."
        )


def is_finished(job: TokenizeJob, task: int) -> bool:
    """Return whether a task's marker, sidecars and shards are all there and of the right size."""
    path = marker_path(job.out, task, job.num_tasks)
    if not path.exists():
        return False
    try:
        record = read_marker(job.out, path)
    except DataError:
        # Redoing the task writes the same bytes again, which is the remedy for any damage.
        return False
    shards = [shard for infos in record.shards.values() for shard in infos]
    has_list = errors_path(job.out, task, job.num_tasks).exists() == (record.counts["bad"] > 0)
    return has_list and not shard_problems(job.out, shards)


MARKS_OF_OTHERS = ("checkpoints", "export.json")
"""What a run and a bundle have, and no dataset."""


def check_bad(job: TokenizeJob) -> None:
    """Raise DataError if the finished tasks together left out more than `max_bad`."""
    if job.max_bad is None:
        return
    paths = sorted((job.out / TASKS_DIRECTORY).glob("task-*.json"))
    count = sum(int(read_record(path, DELETE_MARKER)["counts"]["bad"]) for path in paths)
    _refuse_more(count, job.max_bad, job.out)


def check_bad_of_all(data: Path, records: list[TaskRecord]) -> None:
    """Raise DataError if tasks together left out more than the last command that ran any allowed.

    It is no part of their markers: to raise it, no task is to be done again.
    """
    path = limit_path(data)
    if not path.exists():
        return
    most = read_record(path, DELETE_MARKER).get("max_bad")
    count = sum(record.counts["bad"] for record in records)
    if isinstance(most, int):
        _refuse_more(count, most, data)


def _refuse_more(count: int, most: int, data: Path) -> None:
    if count > most:
        raise too_many(count, most, f"{data / TASKS_DIRECTORY} lists them. ")


OF_A_DATASET = (
    TASKS_DIRECTORY,
    SHARDS_DIRECTORY,
    TOKENIZER_DIRECTORY,
    WORK_DIRECTORY,
    PACKING_DIRECTORY,
    ENERGON_DIRECTORY,
)


def prepare_output(job: TokenizeJob, tokenizer_directory: Path, overwrite: bool) -> None:
    """Make the dataset directory ready: check the settings and copy the tokenizer into it.

    With `overwrite`, the tasks, shards, tokenizer and manifest of an earlier dataset are removed
    first. Raises DataError as `check_settings` does, or if the tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(tokenizer_directory)
    refuse_taken(job.out, (*MARKS_OF_OTHERS, ORIGIN_NAME), "dataset of text")
    if overwrite:
        for name in (MANIFEST_NAME, ERRORS_NAME, CLEANING_NAME, EXAMPLES_NAME):
            (job.out / name).unlink(missing_ok=True)
        for name in OF_A_DATASET:
            if (job.out / name).exists():
                shutil.rmtree(job.out / name)
    check_settings(job)
    work = [WORK_DIRECTORY] if job.clean or job.compares else []
    for name in (TASKS_DIRECTORY, SHARDS_DIRECTORY, *work):
        (job.out / name).mkdir(parents=True, exist_ok=True)
    if job.max_bad is None:
        limit_path(job.out).unlink(missing_ok=True)
    else:
        write_record(limit_path(job.out), {"max_bad": job.max_bad})
    tokenizer.save(job.out / TOKENIZER_DIRECTORY)
