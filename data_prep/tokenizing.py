"""The pass of a task that writes tokens."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain

import numpy as np

from esolm.data_prep.bad_documents import BadDocuments, JsonLinesFile
from esolm.data_prep.cleaning import Drop
from esolm.data_prep.cleaning.pipeline import Cleaner
from esolm.data_prep.cleaning.report import Reporter, num_bytes_of
from esolm.data_prep.cleaning.stages import build_stages
from esolm.data_prep.comparing import TOKENIZE, Chosen, chosen_of
from esolm.data_prep.documents import Document
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import remove_leftovers
from esolm.data_prep.heartbeat import Heartbeat
from esolm.data_prep.jobs import (
    COUNTS,
    FILTERED,
    NEAR_DUPLICATES,
    TokenizeJob,
    errors_path,
    examples_path,
    marker_path,
    task_fingerprint,
)
from esolm.data_prep.layout import token_dtype
from esolm.data_prep.manifest import SHARDS_DIRECTORY, SPLITS, TOKENIZER_DIRECTORY
from esolm.data_prep.metadata import line_of
from esolm.data_prep.reading import ShareRead, digest_of, documents_of
from esolm.data_prep.records import write_record
from esolm.data_prep.shards import ShardWriter, shard_prefix
from esolm.data_prep.tokenizers import Tokenizer, load_tokenizer

REPEATS, NEAR_REPEATS = "repeats in the corpus", "near-duplicates in the corpus"
REPEAT, NEAR_REPEAT = Drop("an earlier document is the same"), Drop("an earlier one is nearly so")


def is_validation(digest: bytes, valid_fraction: float) -> bool:
    """Return whether a document with this content hash belongs to the valid split."""
    return int.from_bytes(digest[:8], "little") < valid_fraction * 2.0**64


def run_task(job: TokenizeJob, task: int, on_bytes: Callable[[int], None]) -> dict[str, int]:
    """Tokenise the documents of one task, write its shards and marker, return its counts.

    `on_bytes` is called with the number of source bytes of each document. Raises DataError for bad
    input, when the passes before are not finished, and when another process has begun the same task
    since, which goes on with it.
    """
    tokenizer = _tokenizer_of(job)
    with Heartbeat(job, task, TOKENIZE) as heartbeat:
        writing = _Writing(job, task, heartbeat.counting(on_bytes), heartbeat)
        return writing.run(tokenizer)


class _Writing:
    """The pass of one task: documents in, shards, lists and marker out."""

    def __init__(
        self, job: TokenizeJob, task: int, on_bytes: Callable[[int], None], heartbeat: Heartbeat
    ) -> None:
        self._job, self._task, self._heartbeat = job, task, heartbeat
        self._on_bytes = on_bytes
        names = [*((NEAR_DUPLICATES,) if job.dedup == "near" else ())]
        names += [FILTERED] if job.clean else []
        self._counts = dict.fromkeys((*COUNTS, *names), 0)
        self._chosen = chosen_of(job, task) if job.compares else None
        _clean(job, task)
        self._errors = JsonLinesFile(errors_path(job.out, task, job.num_tasks))
        self._examples = JsonLinesFile(examples_path(job.out, task, job.num_tasks))
        stages = build_stages(job.clean)
        reported = [REPEATS, *([NEAR_REPEATS] if job.dedup == "near" else [])]
        if self._chosen is None:
            reported = [stage.name for stage in stages]
        self._reporter = Reporter(reported, self._examples)
        self._cleaner = Cleaner(stages, None if job.compares else self._reporter)

    def run(self, tokenizer: Tokenizer) -> dict[str, int]:
        job, task = self._job, self._task
        fingerprint = task_fingerprint(task, job.settings())
        dtype = token_dtype(job.tokenizer.vocab_size)
        writers = {
            split: ShardWriter(job.out, split, task, dtype, job.shard_tokens, fingerprint)
            for split in SPLITS
        }
        eos = np.array([tokenizer.info.eos_id], dtype=np.int32)
        try:
            for document, digest in self._kept():
                split = "valid" if is_validation(digest, job.valid_fraction) else "train"
                parts = chain(tokenizer.encode_parts(document.text), [eos])
                line = line_of(document) if job.metadata else None
                num_tokens = writers[split].add(parts, line)
                self._heartbeat.beat(0, num_tokens)
            for writer in writers.values():
                writer.close()
            self._errors.commit()
            self._examples.commit()
        except FileNotFoundError as error:
            raise DataError(
                f"{error.filename} was removed while task {task} wrote it: another process does "
                "the same task. Leave it to that one."
            ) from error
        finally:
            for writer in writers.values():
                writer.discard()
            self._errors.discard()
            self._examples.discard()
        self._write_marker(writers)
        return self._counts

    def _kept(self) -> Iterator[tuple[Document, bytes]]:
        bad = BadDocuments(self._job.on_bad_document, self._job.max_bad, self._errors)
        seen: set[bytes] = set()
        counts, reading = self._counts, ShareRead()
        for document in documents_of(self._job, self._task, bad, self._on_bytes):
            if self._chosen is not None:
                reading.add(document)
            if not document.text:
                counts["empty"] += 1
                continue
            if self._chosen is not None and self._chosen.is_filtered(document.number):
                counts[FILTERED] += 1
                continue
            cleaned = self._cleaner.apply(document)
            if cleaned is None:
                counts[FILTERED] += 1
                continue
            digest = digest_of(cleaned.text)
            if self._repeat(cleaned, digest, seen):
                continue
            counts["documents"] += 1
            yield cleaned, digest
        counts["bad"] = bad.count
        if self._chosen is not None and reading.to_record(bad) != self._chosen.read:
            raise DataError(
                f"task {self._task} read {reading.to_record(bad)} here and {self._chosen.read} in "
                "the pass that compares: its input has changed, or could not be read in one of "
                "them. Run the command with --overwrite."
            )

    def _repeat(self, document: Document, digest: bytes, seen: set[bytes]) -> bool:
        """Say whether a document is left out as a repeat, and count it then."""
        if self._chosen is None:
            is_repeat = digest in seen
            seen.add(digest)
            self._counts["duplicates"] += is_repeat
            return is_repeat
        return self._repeats_another(document, self._chosen)

    def _repeats_another(self, document: Document, chosen: Chosen) -> bool:
        num_bytes = num_bytes_of(document.text)
        if chosen.is_repeat(document.number):
            self._counts["duplicates"] += 1
            self._reporter.drop(REPEATS, document, REPEAT)
            return True
        self._reporter.keep(REPEATS, num_bytes, num_bytes)
        if self._job.dedup == "near":
            if chosen.is_near_repeat(document.number):
                self._counts[NEAR_DUPLICATES] += 1
                self._reporter.drop(NEAR_REPEATS, document, NEAR_REPEAT)
                return True
            self._reporter.keep(NEAR_REPEATS, num_bytes, num_bytes)
        return False

    def _write_marker(self, writers: dict[str, ShardWriter]) -> None:
        job, task = self._job, self._task
        names = {split: [shard.name for shard in w.shards] for split, w in writers.items()}
        reports = [stage.to_record() for stage in self._reporter.stages.values()]
        record = {
            "task": task,
            "num_tasks": job.num_tasks,
            "settings": job.settings(),
            "tokenizer": asdict(job.tokenizer),
            "counts": self._counts,
            "sidecars": {
                split: [name.removesuffix(".tar") + ".json" for name in found]
                for split, found in names.items()
            },
            **({"cleaning": reports} if reports else {}),
        }
        write_record(marker_path(job.out, task, job.num_tasks), record)


def _tokenizer_of(job: TokenizeJob) -> Tokenizer:
    tokenizer = load_tokenizer(job.out / TOKENIZER_DIRECTORY)
    if tokenizer.info != job.tokenizer:
        raise DataError(
            f"{tokenizer.path} was replaced by another tokenizer since this job began "
            f"({tokenizer.info.fingerprint} found, {job.tokenizer.fingerprint} expected). Give "
            "each dataset an --out of its own, and run the command again."
        )
    return tokenizer


def _clean(job: TokenizeJob, task: int) -> None:
    """Remove what an earlier run of the task has left, its marker first."""
    marker_path(job.out, task, job.num_tasks).unlink(missing_ok=True)
    errors_path(job.out, task, job.num_tasks).unlink(missing_ok=True)
    for left in (marker_path, errors_path, examples_path):
        remove_leftovers(left(job.out, task, job.num_tasks))
    for split in SPLITS:
        for path in (job.out / SHARDS_DIRECTORY).glob(shard_prefix(split, task) + "*"):
            path.unlink(missing_ok=True)
