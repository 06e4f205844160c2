"""How the tokens of a shard lie in its tar, and what is recorded of a shard (docs/data.md)."""

from dataclasses import asdict, dataclass
from typing import Any

MEMBER_TOKENS = 65_536
"""The tokens in every member of a tar but its last, which may be shorter."""
TAR_BLOCK_BYTES = 512
CHECKED_TOKENS = 1024
"""The tokens of a member that have a checksum of their own; the last ones may be fewer."""
CHECKSUM_BYTES = 4


def token_dtype(vocab_size: int) -> str:
    """Return the numpy type of stored tokens: little-endian, of 16 bits if every id fits."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def member_stride(itemsize: int) -> int:
    """Return how many bytes lie from the start of one member's tokens to that of the next one's."""
    return MEMBER_TOKENS * itemsize + TAR_BLOCK_BYTES


@dataclass(frozen=True)
class ShardInfo:
    """One tar of tokens and what lies beside it, by names within the dataset.

    Member m holds the tokens from m * 65,536 on; they start at byte
    `member_offset + m * member_stride` of the tar. The files beside it hold the ends of documents,
    the crc32 of every 1,024 tokens, which a dataset of format 1 has not, and what was kept of each
    document, if that was asked for.
    """

    name: str
    num_bytes: int
    sha256: str
    num_tokens: int
    num_documents: int
    member_offset: int
    member_stride: int
    ends_name: str
    ends_bytes: int
    ends_sha256: str
    crc_name: str = ""
    crc_bytes: int = 0
    crc_sha256: str = ""
    metadata_name: str = ""
    metadata_bytes: int = 0
    metadata_sha256: str = ""

    def to_record(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable record, without those of a file it has not."""
        fields = asdict(self)
        if self.metadata_name:
            return fields
        return {name: fields[name] for name in fields if not name.startswith("metadata_")}

    def files(self) -> list[tuple[str, int, str]]:
        """Return (name, bytes, sha256) of every file of the shard."""
        files = [
            (self.name, self.num_bytes, self.sha256),
            (self.ends_name, self.ends_bytes, self.ends_sha256),
        ]
        if self.crc_name:
            files.append((self.crc_name, self.crc_bytes, self.crc_sha256))
        if self.metadata_name:
            files.append((self.metadata_name, self.metadata_bytes, self.metadata_sha256))
        return files

    def contradictions(self, dtype: str) -> list[str]:
        """Name the figures that cannot belong to one tar of tokens of this type."""
        itemsize = int(dtype[-1])
        members, rest = divmod(self.num_tokens, MEMBER_TOKENS)
        padded = -(-rest * itemsize // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
        last = padded + TAR_BLOCK_BYTES if rest else 0
        checksums = -(-self.num_tokens // CHECKED_TOKENS) if self.crc_name else 0
        expected = {
            "member_offset": TAR_BLOCK_BYTES,
            "member_stride": member_stride(itemsize),
            "num_bytes": members * member_stride(itemsize) + last + 2 * TAR_BLOCK_BYTES,
            "crc_bytes": CHECKSUM_BYTES * checksums,
        }
        return [
            f"{self.name}: {name} {getattr(self, name)} stated, {value} by num_tokens and dtype"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
