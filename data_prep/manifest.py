"""The dataset format: what is on disk, and `manifest.json`, which describes it (docs/data.md)."""

import logging
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fingerprint_of, size_problem
from esolm.data_prep.layout import MEMBER_TOKENS, ShardInfo, token_dtype
from esolm.data_prep.records import UNSEALED_VERSION, read_record, write_record
from esolm.data_prep.tokenizers import TokenizerInfo

MANIFEST_NAME = "manifest.json"
ERRORS_NAME = "errors.jsonl"
"""The bad documents and files that were left out, of which `merge` makes a list."""
CLEANING_NAME = "cleaning.json"
"""What every stage of cleaning did, of which `merge` makes the sum."""
EXAMPLES_NAME = "cleaning-examples.jsonl"
ORIGIN_NAME = "origin.json"
"""What it was made from, of a dataset that is made of another one's tokens."""
SHARDS_DIRECTORY = "shards"
WORK_DIRECTORY = "cleaning"
"""What tasks tell each other while they clean; nothing reads it once the dataset is merged."""
TASKS_DIRECTORY = "tasks"
PACKING_DIRECTORY = "packing"
"""The rows that `esolm prep pack` makes of the documents."""
TOKENIZER_DIRECTORY = "tokenizer"
ENERGON_DIRECTORY = ".nv-meta"
"""By which Megatron-Energon opens a dataset, if that was asked for."""
SPLITS = ("train", "valid")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to know of a dataset before it opens a shard."""

    dtype: str
    tokenizer: TokenizerInfo
    splits: dict[str, list[ShardInfo]]
    counts: dict[str, int]
    """How many documents had each outcome: documents (kept), duplicates, empty, bad; and, of a job
    that cleans, filtered and near_duplicates."""
    states_former: bool = False
    """Whether its record was written when the fingerprint did not cover the layout of tokens."""

    @property
    def fingerprint(self) -> str:
        """A sha256 over all that decides which tokens are read, shards in order."""
        if self.states_former:
            return self.former_fingerprint
        layout = ("sha256", "num_tokens", "member_offset", "member_stride")
        shards = {
            split: [[getattr(shard, name) for name in layout] for shard in infos]
            for split, infos in self.splits.items()
        }
        tokens = {"dtype": self.dtype, "member_tokens": MEMBER_TOKENS, "shards": shards}
        return fingerprint_of({**tokens, "tokenizer": self.tokenizer.fingerprint})

    @property
    def former_fingerprint(self) -> str:
        """The fingerprint of records before, over the hashes of shards and the tokenizer's."""
        shards = {s: [shard.sha256 for shard in infos] for s, infos in self.splits.items()}
        return fingerprint_of({"shards": shards, "tokenizer": self.tokenizer.fingerprint})

    @property
    def shards(self) -> list[ShardInfo]:
        """The shards of every split, in order."""
        return [shard for infos in self.splits.values() for shard in infos]

    def num_tokens(self, split: str) -> int:
        """Return the number of tokens of a split, which is 0 if there is no such split."""
        return sum(shard.num_tokens for shard in self.splits.get(split, []))


def record_to(kind: type[Any], record: Any, path: Path, remedy: str) -> Any:
    """Return the dataclass `kind` made from a JSON record.

    Raises DataError with the remedy unless the keys and plain types match exactly. A field with a
    default may be missing.
    """
    types = {field.name: field.type for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if not isinstance(record, dict) or not needed <= set(record) <= set(types):
        raise DataError(f"{path} does not hold the fields of {kind.__name__}. {remedy}")
    wrong = [name for name, value in record.items() if not isinstance(value, types[name])]  # type: ignore[arg-type]
    if wrong:
        raise DataError(f"{path}: wrong type of {', '.join(wrong)}. {remedy}")
    return kind(**record)


def record_to_shard(record: Any, path: Path, remedy: str) -> ShardInfo:
    """Return the shard that a JSON record describes.

    Raises DataError as `record_to` does, and when its files lie outside the dataset.
    """
    shard = record_to(ShardInfo, record, path, remedy)
    assert isinstance(shard, ShardInfo)
    for name, _, _ in shard.files():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path} names {name}, which is outside the dataset. {remedy}")
    return shard


def write_manifest(data: Path, manifest: Manifest) -> None:
    """Write the `manifest.json` of a dataset directory, atomically."""
    record = {
        "dtype": manifest.dtype,
        "member_tokens": MEMBER_TOKENS,
        "tokenizer": manifest.tokenizer.to_record(),
        "fingerprint": manifest.fingerprint,
        "num_tokens": {split: manifest.num_tokens(split) for split in manifest.splits},
        "counts": manifest.counts,
        "splits": {
            split: [shard.to_record() for shard in shards]
            for split, shards in manifest.splits.items()
        },
    }
    write_record(data / MANIFEST_NAME, record)


def read_manifest(data: Path) -> Manifest:
    """Return the manifest of a dataset directory.

    Raises DataError when it is missing, damaged, has another format version or contradicts itself.
    """
    path = data / MANIFEST_NAME
    merge = f"Run `esolm prep merge {data}` (after `esolm prep tokenize ... --out {data}`)."
    names = {entry.name for entry in data.iterdir()} if data.is_dir() else set[str]()
    if names and not names & {MANIFEST_NAME, TASKS_DIRECTORY}:
        raise DataError(
            f"{data} is no dataset: it has neither {MANIFEST_NAME} nor {TASKS_DIRECTORY}/. Name "
            "the directory that `esolm prep tokenize` and `esolm prep merge` wrote."
        )
    record = read_record(path, merge)
    if record["format_version"] == UNSEALED_VERSION:
        logger.warning(
            "%s is of format %d, from before changes were noticed: neither itself nor tokens are "
            "checked while they are read; tokenize again to have that",
            path,
            UNSEALED_VERSION,
        )
    try:
        splits = {
            str(split): [record_to_shard(shard, path, merge) for shard in shards]
            for split, shards in record["splits"].items()
        }
        manifest = Manifest(
            dtype=str(record["dtype"]),
            tokenizer=record_to(TokenizerInfo, record["tokenizer"], path, merge),
            splits=splits,
            counts={str(key): int(count) for key, count in record["counts"].items()},
        )
        if record["fingerprint"] == manifest.former_fingerprint:
            manifest = replace(manifest, states_former=True)
        problems = _contradictions(manifest, record)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}). {merge}") from error
    if problems:
        raise DataError(
            f"{path} contradicts itself ({'; '.join(problems)}): it was changed by hand or "
            f"damaged. {merge}"
        )
    return manifest


def _contradictions(manifest: Manifest, record: dict[str, Any]) -> list[str]:
    """Name what a record states otherwise than it follows from its shards and tokenizer."""
    follows = {
        "fingerprint": manifest.fingerprint,
        "dtype": token_dtype(manifest.tokenizer.vocab_size),
        "member_tokens": MEMBER_TOKENS,
        "num_tokens": {split: manifest.num_tokens(split) for split in manifest.splits},
    }
    problems = [
        f"{key}: {record[key]} stated, {value} by its shards and tokenizer"
        for key, value in follows.items()
        if record[key] != value
    ]
    return problems or [
        each for shard in manifest.shards for each in shard.contradictions(manifest.dtype)
    ]


def shard_problems(
    data: Path, shards: Sequence[ShardInfo], may_be_short: bool = False
) -> list[str]:
    """Say which files of shards are missing or of the wrong size, one sentence per file.

    may_be_short: whether tokens that were cut short are no problem.
    """
    problems = []
    for shard in shards:
        for name, num_bytes, _ in shard.files():
            path = data / name
            try:
                found = path.stat().st_size
            except OSError as error:
                problems.append(f"{path}: missing or unreadable ({error.strerror})")
                continue
            if may_be_short and name == shard.name and found < num_bytes:
                continue
            if problem := size_problem(path, num_bytes, found):
                problems.append(problem)
    return problems


def repair_advice(data: Path) -> str:
    """Return the sentence that tells a user how damaged shards are made again."""
    if (data / ORIGIN_NAME).exists():
        return (
            f"Run `esolm prep verify {data}` to see all damage. To repair, remove {data} and run "
            "the same `esolm prep split` or `esolm prep repack` command again."
        )
    return (
        f"Run `esolm prep verify {data}` to see all damage. To repair, run the same `esolm prep "
        f"tokenize` command again (it redoes tasks whose files are missing or of the wrong size; "
        f"first delete shards that verify names as changed), then `esolm prep merge {data}`."
    )
