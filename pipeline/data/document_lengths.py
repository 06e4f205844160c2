"""How long the documents of a dataset are, and what rows of a length make of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.document_ends import ends_of
from esolm.data_prep.packing import PackedShard, pack
from esolm.data_prep.tokenizers import Tokenizer
from esolm.pipeline.data.dataset import TokenDataset

Int64Array = npt.NDArray[np.int64]
# Bytes are counted of so many pieces of so many tokens, evenly from the whole split.
PIECES, PIECE_TOKENS = 256, 1024


@dataclass(frozen=True)
class PackedCounts:
    """Of `best_fit` rows: how many there are, of how many pieces, and the documents they cut."""

    num_rows: int = 0
    num_pieces: int = 0
    num_cut: int = 0

    def with_shard(self, packed: PackedShard) -> "PackedCounts":
        return PackedCounts(
            self.num_rows + packed.num_rows,
            self.num_pieces + len(packed.starts),
            self.num_cut + packed.num_cut,
        )


@dataclass(frozen=True)
class DocumentLengths:
    """The documents of a split by their tokens, eos included.

    lengths, counts: int64 [N], each length that occurs, rising, and how many documents have it.
    num_cut: documents that lie in more than one row of seq_len tokens. num_parts: of all documents,
    in all rows. packed: what `best_fit` rows make of them. bytes_per_token: of text.
    """

    split: str
    seq_len: int
    lengths: Int64Array
    counts: Int64Array
    num_cut: int
    num_parts: int
    packed: PackedCounts
    bytes_per_token: float

    @property
    def num_documents(self) -> int:
        return int(self.counts.sum())

    @property
    def num_tokens(self) -> int:
        return int((self.lengths * self.counts).sum())

    def quantile(self, share: float) -> int:
        """The least length that this share of the documents does not exceed."""
        reached = int(np.searchsorted(self.counts.cumsum(), share * self.num_documents))
        return int(self.lengths[min(reached, len(self.lengths) - 1)])

    def by_octave(self) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Returns lengths 1, 2, 4, ..., [K], and the documents from each up to the next: how many
        they are, and their tokens."""
        octave = np.floor(np.log2(self.lengths)).astype(np.int64)
        size = int(octave.max()) + 1
        documents = np.bincount(octave, self.counts, size).astype(np.int64)
        tokens = np.bincount(octave, self.counts * self.lengths, size).astype(np.int64)
        return 1 << np.arange(size), documents, tokens


def document_lengths(
    dataset: TokenDataset,
    tokenizer: Tokenizer,
    seq_len: int,
    on_shard: Callable[[int], None] = lambda _: None,
) -> DocumentLengths:
    """Counts the documents of a split; memory does not grow with it.

    on_shard: is told the tokens of each shard that is done. Raises DataError naming a damaged file.
    """
    counts: dict[int, int] = {}
    start = num_cut = num_parts = 0
    packed = PackedCounts()
    for shard in dataset.shards:
        own_ends = ends_of(dataset.path, shard)
        packed, ends = packed.with_shard(pack(own_ends, seq_len)), start + own_ends
        starts = np.concatenate([[start], ends[:-1]])
        parts = (ends - 1) // seq_len - starts // seq_len + 1
        num_cut, num_parts = num_cut + int((parts > 1).sum()), num_parts + int(parts.sum())
        for length, count in zip(*np.unique(ends - starts, return_counts=True), strict=True):
            counts[int(length)] = counts.get(int(length), 0) + int(count)
        start += shard.num_tokens
        on_shard(shard.num_tokens)
    lengths = np.array(sorted(counts), dtype=np.int64)
    return DocumentLengths(
        dataset.split,
        seq_len,
        lengths,
        np.array([counts[int(each)] for each in lengths], dtype=np.int64),
        num_cut,
        num_parts,
        packed,
        _bytes_per_token(dataset, tokenizer),
    )


def _bytes_per_token(dataset: TokenDataset, tokenizer: Tokenizer) -> float:
    length = min(PIECE_TOKENS, dataset.num_tokens)
    places = np.linspace(0, dataset.num_tokens - length, PIECES).astype(np.int64)
    rows = dataset.read_many(np.unique(places), length)
    num_bytes = sum(len(tokenizer.decode(row).encode()) for row in rows.tolist())
    return num_bytes / rows.size


def summary(found: DocumentLengths) -> str:
    """Says it in a few lines."""
    documents, tokens = found.num_documents, found.num_tokens
    parts = [f"{name} {found.quantile(share):,}" for name, share in QUANTILES.items()]
    packed, in_a_row = found.packed, found.seq_len * found.num_parts / tokens
    left_over = tokens - packed.num_rows * found.seq_len
    in_a_packed_row = packed.num_pieces / max(1, packed.num_rows)
    return (
        f"{found.split}: {documents:,} documents, {tokens:,} tokens, "
        f"{found.bytes_per_token:.2f} bytes per token\n"
        f"  tokens of a document: mean {tokens / documents:,.1f}, {', '.join(parts)}, "
        f"longest {int(found.lengths[-1]):,}\n"
        f"  rows of {found.seq_len:,} tokens, none of it padding:\n"
        f"    continuous: {in_a_row:.1f} documents or parts in each, "
        f"{found.num_cut / documents:.1%} of the documents are cut, "
        f"{tokens % found.seq_len:,} tokens left over\n"
        f"    best_fit: {in_a_packed_row:.1f} documents or parts in each, "
        f"{packed.num_cut / documents:.1%} of the documents are cut, "
        f"{left_over:,} tokens left over"
    )


QUANTILES = {"1 in 10 up to": 0.1, "median": 0.5, "9 in 10 up to": 0.9, "99 in 100 up to": 0.99}


def draw(splits: list[DocumentLengths], path: Path) -> None:
    """Draws the shares of documents and of tokens by length, a panel for each split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.2 * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, found in zip(figure.subplots(len(splits), squeeze=False)[:, 0], splits, strict=True):
        lengths, documents, tokens = found.by_octave()
        place = np.arange(len(lengths))
        axes.bar(place - 0.2, documents / documents.sum(), 0.4, label="of documents")
        axes.bar(place + 0.2, tokens / tokens.sum(), 0.4, label="of tokens")
        axes.axvline(np.log2(found.seq_len) - 0.5, color="black", linestyle=":", label="a row")
        axes.set_xticks(place, [f"{length:,}" for length in lengths], rotation=45, ha="right")
        axes.set_xlabel("tokens of a document, from this up to the next")
        axes.set_ylabel("share")
        axes.set_title(f"{found.split}: {found.num_documents:,} documents", fontsize=11)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
