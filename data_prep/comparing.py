"""The passes before tokens are written where documents of the whole corpus are compared.

`compare`: a task cleans its documents and writes the keys of those that stay, and the numbers of
those that do not. `choose`: a task looks through its share of all keys and writes, for every task,
the documents that repeat an earlier one. Then each task knows what to leave out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from esolm.data_prep.bad_documents import BadDocuments, JsonLinesFile
from esolm.data_prep.cleaning.minhash import band_keys
from esolm.data_prep.cleaning.pipeline import Cleaner
from esolm.data_prep.cleaning.report import Reporter, StageReport
from esolm.data_prep.cleaning.runs import (
    KEYS_END,
    Later,
    Numbers,
    Run,
    RunWriter,
    later_documents,
    npy_bytes,
)
from esolm.data_prep.cleaning.stages import build_stages
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import write_atomic
from esolm.data_prep.heartbeat import Heartbeat
from esolm.data_prep.jobs import DELETE_MARKER, TokenizeJob, examples_path, task_name
from esolm.data_prep.manifest import WORK_DIRECTORY
from esolm.data_prep.reading import ShareRead, digest_of, documents_of
from esolm.data_prep.records import read_record, write_record

COMPARE, CHOOSE, TOKENIZE = PASSES = ("compare", "choose", "tokenize")
EXACT, NEAR = "exact", "near"


def pass_path(data: Path, name: str, task: int, num_tasks: int) -> Path:
    """Return the path of the marker of a pass before the last."""
    return data / WORK_DIRECTORY / f"{task_name(name, task, num_tasks)}.json"


def kinds_of(job: TokenizeJob) -> tuple[str, ...]:
    """Return the kinds of keys that a job compares."""
    return (EXACT, NEAR) if job.dedup == "near" else (EXACT,)


def is_pass_done(job: TokenizeJob, name: str, task: int) -> bool:
    """Return whether a pass before the last is finished, with these settings, and has its files."""
    path = pass_path(job.out, name, task, job.num_tasks)
    try:
        record = _read_pass(path)
        sizes = {name: (path.parent / name).stat().st_size for name in record["files"]}
    except (DataError, OSError):
        return False
    return bool(record["settings"] == job.settings() and sizes == record["files"])


def _read_pass(path: Path) -> dict[str, Any]:
    return read_record(path, DELETE_MARKER)


def cleaning_of(data: Path, task: int, num_tasks: int) -> list[StageReport]:
    """Return what the stages did in the pass that compares."""
    record = _read_pass(pass_path(data, COMPARE, task, num_tasks))
    return [StageReport(**stage) for stage in record["cleaning"]]


def compare_task(job: TokenizeJob, task: int, on_bytes: Callable[[int], None]) -> dict[str, int]:
    """Clean the documents of a task, write their keys, and return how many there are."""
    marker = pass_path(job.out, COMPARE, task, job.num_tasks)
    _remove(marker)
    examples = JsonLinesFile(examples_path(job.out, task, job.num_tasks, COMPARE))
    stages = build_stages(job.clean)
    reporter = Reporter([stage.name for stage in stages], examples)
    cleaner = Cleaner(stages, reporter)
    runs = {kind: RunWriter(marker.with_name(f"{marker.stem}.{kind}")) for kind in kinds_of(job)}
    dropped: list[int] = []
    reading = ShareRead()
    with Heartbeat(job, task, COMPARE) as heartbeat:
        try:
            bad = BadDocuments(job.on_bad_document, job.max_bad)
            for document in documents_of(job, task, bad, heartbeat.counting(on_bytes)):
                reading.add(document)
                cleaned = cleaner.apply(document) if document.text else None
                if cleaned is None:
                    dropped.append(document.number)
                    continue
                runs[EXACT].add(digest_of(cleaned.text), document.number)
                for key in band_keys(cleaned.text) if NEAR in runs else ():
                    runs[NEAR].add(key, document.number)
            for run in runs.values():
                run.close()
            examples.commit()
        finally:
            examples.discard()
        path = marker.with_suffix(".dropped.npy")
        write_atomic(path, npy_bytes(np.array(dropped, dtype="<u8")))
        files = [path, *(each for run in runs.values() for each in run.paths)]
        reports = [stage.to_record() for stage in reporter.stages.values()]
        read = reading.to_record(bad)
        _write_pass(job, marker, files, {"cleaning": reports, "read": read})
    return {"documents compared": reading.num_documents}


def choose_task(job: TokenizeJob, task: int, on_bytes: Callable[[int], None]) -> dict[str, int]:
    """Look through a task's share of the keys; return how many documents repeat an earlier one.

    Raises DataError unless every task has compared.
    """
    _require(job, COMPARE)
    marker = pass_path(job.out, CHOOSE, task, job.num_tasks)
    _remove(marker)
    start, stop = (KEYS_END * number // job.num_tasks for number in (task, task + 1))
    files, counts = [], {}
    with Heartbeat(job, task, CHOOSE) as heartbeat:
        tell = _Share(job.num_bytes_of(task), heartbeat.counting(on_bytes))
        kinds = kinds_of(job)
        for number, kind in enumerate(kinds):
            path = marker.with_suffix(f".{kind}.npy")
            later = []
            for window in later_documents(_runs(job, kind), start, stop):
                later.append(window)
                tell((number + (window.stop - start) / (stop - start)) / len(kinds))
            table = _by_task(later, job.num_tasks)
            write_atomic(path, npy_bytes(table))
            files.append(path)
            counts[f"{kind} repeats"] = len(table) - job.num_tasks - 1
            tell((number + 1) / len(kinds))
        _write_pass(job, marker, files, {})
    return counts


class _Share:
    """Tells how much of something is done, as bytes of the input, which bars are made of."""

    def __init__(self, num_bytes: int, on_bytes: Callable[[int], None]) -> None:
        self._num_bytes, self._on_bytes = num_bytes, on_bytes
        self._told = 0

    def __call__(self, share: float) -> None:
        done = round(share * self._num_bytes)
        self._on_bytes(done - self._told)
        self._told = done


def _runs(job: TokenizeJob, kind: str) -> list[Run]:
    found = []
    for task in range(job.num_tasks):
        marker = pass_path(job.out, COMPARE, task, job.num_tasks)
        names = sorted(_read_pass(marker)["files"])
        found += [Run(task, marker.parent / name) for name in names if f".{kind}-" in name]
    return found


def _by_task(later: list[Later], num_tasks: int) -> Numbers:
    """Return where the numbers of each task begin, [num_tasks + 1], and the numbers behind them."""
    tasks = np.concatenate([np.empty(0, np.uint32), *(each.tasks for each in later)])
    numbers = np.concatenate([np.empty(0, np.uint64), *(each.numbers for each in later)])
    order = np.lexsort((numbers, tasks))
    begins = np.searchsorted(tasks[order], np.arange(num_tasks + 1, dtype=np.uint32))
    return np.concatenate([begins.astype("<u8"), numbers[order].astype("<u8")])


class Chosen:
    """The documents of one task that are left out, by number. They are asked for in order.

    read: what the pass that compares had read of the task's share.
    """

    def __init__(
        self, read: dict[str, int], filtered: Numbers, repeats: Numbers, near: Numbers
    ) -> None:
        self.read = read
        self.is_filtered = _Among(filtered)
        self.is_repeat = _Among(repeats)
        self.is_near_repeat = _Among(near)


class _Among:
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = np.unique(numbers)
        self._place = 0

    def __call__(self, number: int) -> bool:
        numbers = self._numbers
        while self._place < len(numbers) and numbers[self._place] < number:
            self._place += 1
        return self._place < len(numbers) and bool(numbers[self._place] == number)


def chosen_of(job: TokenizeJob, task: int) -> Chosen:
    """Return what a task leaves out. Raises DataError unless the passes before are finished."""
    _require(job, COMPARE)
    _require(job, CHOOSE)
    compared = pass_path(job.out, COMPARE, task, job.num_tasks)
    filtered = np.load(compared.with_suffix(".dropped.npy"))
    found = {kind: [np.empty(0, np.uint64)] for kind in (EXACT, NEAR)}
    for chooser in range(job.num_tasks):
        marker = pass_path(job.out, CHOOSE, chooser, job.num_tasks)
        for kind in kinds_of(job):
            table = np.load(marker.with_suffix(f".{kind}.npy"), mmap_mode="r")
            begin, end = (job.num_tasks + 1 + int(table[number]) for number in (task, task + 1))
            found[kind].append(np.array(table[begin:end]))
    read = _read_pass(compared)["read"]
    return Chosen(read, filtered, *(np.concatenate(found[kind]) for kind in (EXACT, NEAR)))


def _require(job: TokenizeJob, name: str) -> None:
    missing = [task for task in range(job.num_tasks) if not is_pass_done(job, name, task)]
    if missing:
        raise DataError(
            f"{job.out}: pass {name} is not finished for {len(missing)} of {job.num_tasks} tasks: "
            f"{', '.join(map(str, missing[:20]))}. Run the same `esolm prep tokenize` command "
            f"without --task, or for each of them with --pass {name} --task K."
        )


def _remove(marker: Path) -> None:
    """Remove what an earlier run of the pass has left, its marker first."""
    marker.unlink(missing_ok=True)
    for path in marker.parent.glob(f"{marker.stem}.*"):
        path.unlink(missing_ok=True)


def _write_pass(job: TokenizeJob, marker: Path, files: list[Path], more: dict[str, Any]) -> None:
    sizes = {path.name: path.stat().st_size for path in files}
    write_record(marker, {"settings": job.settings(), "files": sizes, **more})
