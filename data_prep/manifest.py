"""`manifest.json`, which describes a dataset directory (docs/data.md)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.files import fingerprint_of, write_sealed
from data_prep.layout import MEMBER_TOKENS, ShardInfo, token_dtype
from data_prep.records import (
    FORMAT_VERSION,
    UNSEALED_VERSION,
    read_record,
    record_to,
    record_to_shard,
)
from data_prep.tokenizers import TokenizerInfo

MANIFEST_NAME = "manifest.json"
SHARDS_DIRECTORY = "shards"
TASKS_DIRECTORY = "tasks"
TOKENIZER_DIRECTORY = "tokenizer"
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to know of a dataset before it opens a shard."""

    dtype: str
    tokenizer: TokenizerInfo
    splits: dict[str, list[ShardInfo]]
    counts: dict[str, int]
    """How many documents had each outcome: documents (kept), duplicates, empty, bad."""
    tokenizer_files: dict[str, str] = field(default_factory=dict)
    """The sha256 of each file of the tokenizer by its name; of format 1 none are known."""
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """A sha256 over all that decides which tokens are read, shards in order."""
        if self.format_version == UNSEALED_VERSION:
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
        """The fingerprint in format 1, over the hashes of all shards and the tokenizer's."""
        shards = {s: [shard.sha256 for shard in infos] for s, infos in self.splits.items()}
        return fingerprint_of({"shards": shards, "tokenizer": self.tokenizer.fingerprint})

    def num_tokens(self, split: str) -> int:
        """Return the number of tokens of a split, which is 0 if there is no such split."""
        return sum(shard.num_tokens for shard in self.splits.get(split, []))


def write_manifest(data: Path, manifest: Manifest) -> None:
    """Write the `manifest.json` of a dataset directory, atomically."""
    record = {
        "format_version": FORMAT_VERSION,
        "dtype": manifest.dtype,
        "member_tokens": MEMBER_TOKENS,
        "tokenizer": manifest.tokenizer.to_record(),
        "fingerprint": manifest.fingerprint,
        "num_tokens": {split: manifest.num_tokens(split) for split in manifest.splits},
        "counts": manifest.counts,
        "tokenizer_files": manifest.tokenizer_files,
        "splits": {
            split: [asdict(shard) for shard in shards] for split, shards in manifest.splits.items()
        },
    }
    write_sealed(data / MANIFEST_NAME, record)


def read_manifest(data: Path) -> Manifest:
    """Return the manifest of a dataset directory.

    Raises DataError when it is missing, damaged, has another format version or contradicts itself.
    """
    path = data / MANIFEST_NAME
    merge = f"Run `esolm prep merge {data}` (after `esolm prep tokenize ... --out {data}`)."
    record = read_record(path, merge)
    version = record["format_version"]
    try:
        splits = {
            str(split): [record_to_shard(shard, version, path, merge) for shard in shards]
            for split, shards in record["splits"].items()
        }
        manifest = Manifest(
            dtype=str(record["dtype"]),
            tokenizer=record_to(TokenizerInfo, record["tokenizer"], path, merge),
            splits=splits,
            counts={str(key): int(count) for key, count in record["counts"].items()},
            tokenizer_files=dict(record.get("tokenizer_files", {})),
            format_version=version,
        )
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
    """Name what a record states otherwise than it follows from its shards."""
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
    shards = [shard for infos in manifest.splits.values() for shard in infos]
    return problems or [each for shard in shards for each in shard.contradictions(manifest.dtype)]


def shard_problems(data: Path, shards: Sequence[ShardInfo]) -> list[str]:
    """Say which files of shards are missing or of the wrong size, one sentence per file."""
    problems = []
    for shard in shards:
        for name, num_bytes, _ in shard.files():
            path = data / name
            try:
                found = path.stat().st_size
            except OSError as error:
                problems.append(f"{path}: missing or unreadable ({error.strerror})")
                continue
            if found != num_bytes:
                kind = "cut short" if found < num_bytes else "too long"
                problems.append(f"{path}: {kind}, {num_bytes} bytes expected, {found} found")
    return problems


def repair_advice(data: Path) -> str:
    """Return the sentence that tells a user how damaged shards are made again."""
    return (
        f"Run `esolm prep verify {data}` to see all damage. To repair, run the same `esolm prep "
        f"tokenize` command again (it redoes tasks whose files are missing or of the wrong size; "
        f"first delete shards that verify names as changed), then `esolm prep merge {data}`."
    )
