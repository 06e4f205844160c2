"""Speed of reading samples from token tars, beside a memory-mapped flat file of the same tokens.

The flat file is read in two ways: one sequence at a time, as indexed datasets do, and with one
vectorised gather per batch, which is the most that the memory gives. All sides make the same
int64 batches, in turns, so that the ratios stand where the machine is shared; the index is timed
with the tars only. Also measured: the index alone, prefetching, writing and tokenising. Run it with
`python -m benchmarks.data_reader`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.jobs import TokenizeJob, prepare_output
from esolm.data_prep.manifest import Manifest, write_manifest
from esolm.data_prep.sampling import sample_chunks
from esolm.data_prep.shards import ShardWriter
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizers import TokenizerInfo, load_tokenizer, save_tokenizer, train_model
from esolm.data_prep.tokenizing import run_task
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.index import SampleIndex
from esolm.pipeline.data.prefetch import prefetch
from esolm.pipeline.data.reader import SampleReader

DTYPE = np.dtype("<u2")
DOCUMENT_TOKENS = 2048


def seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure_tokenizing(directory: Path) -> TokenizerInfo:
    """Tokenise the Python library with a small tokenizer, print the speed, return its record."""
    files = tuple(find_files([], from_python_stdlib=True))
    documents = list(iterate_documents(files, BadDocuments()))
    save_tokenizer(train_model(sample_chunks(documents, 1000), 4096), directory / "tokenizer")
    tokenizer = load_tokenizer(directory / "tokenizer")
    job = TokenizeJob(directory / "library", files, tokenizer.info)
    prepare_output(job, directory / "tokenizer", overwrite=False)
    written = seconds(lambda: run_task(job, 0, lambda num_bytes: None))
    num_tokens = 0

    def encode() -> None:
        nonlocal num_tokens
        num_tokens = sum(len(tokenizer.encode(document.text)) for document in documents)

    encoded = seconds(encode)
    print(
        f"tokenize: {num_tokens / 1e6:.1f} M tokens, {num_tokens / written / 1e6:.2f} Mtok/s in "
        f"one process from files to shards; encoding alone {num_tokens / encoded / 1e6:.2f} Mtok/s"
    )
    return tokenizer.info


def write_dataset(directory: Path, info: TokenizerInfo, num_tokens: int) -> TokenDataset:
    """Write random tokens as a dataset, print the speed (hashing and fsync included), open it."""
    (directory / "shards").mkdir(parents=True)
    tokens = np.random.default_rng(0).integers(4, info.vocab_size, num_tokens, dtype=DTYPE)
    writer = ShardWriter(directory, "train", 0, DTYPE.str, num_tokens // 4, "")

    def write() -> None:
        for start in range(0, num_tokens, DOCUMENT_TOKENS):
            writer.add([tokens[start : start + DOCUMENT_TOKENS].tolist()])
        writer.close()

    print(f"write shards: {num_tokens / seconds(write) / 1e6:.0f} Mtok/s")
    write_manifest(directory, Manifest(DTYPE.str, info, {"train": writer.shards}, {}))
    tokens.tofile(directory / "flat.bin")
    return TokenDataset(directory, "train")


def compare_reading(dataset: TokenDataset, args: argparse.Namespace, shuffle: str) -> None:
    """Print tokens/s of the three sides, and the median ratios over the rounds."""
    reader = SampleReader(dataset, args.seq_len, 0, shuffle)
    trusting = SampleReader(
        TokenDataset(dataset.path, "train", checked=False), args.seq_len, 0, shuffle
    )
    rows = np.memmap(dataset.path / "flat.bin", dtype=DTYPE, mode="r").reshape(-1, args.seq_len)
    batches = np.arange(args.samples).reshape(-1, args.batch_size)
    sequences = [reader.index.locate(batch)[1] for batch in batches]

    def tars() -> None:
        for batch in batches:
            reader.read(batch)

    def unchecked() -> None:
        for batch in batches:
            trusting.read(batch)

    def one_by_one() -> None:
        for numbers in sequences:
            np.stack([rows[i] for i in numbers.tolist()]).astype(np.int64)

    def gather() -> None:
        for numbers in sequences:
            rows[numbers].astype(np.int64)

    sides = (tars, unchecked, one_by_one, gather)
    rounds = [[seconds(side) for side in sides] for _ in range(args.rounds + 1)][1:]
    speeds = [
        args.samples * args.seq_len / median(times) / 1e6 for times in zip(*rounds, strict=True)
    ]
    ratios = [median(times[i] / times[0] for times in rounds) for i in (1, 2, 3)]
    print(
        f"read, shuffle={shuffle}: index + tars {speeds[0]:.0f} Mtok/s; without checksums "
        f"{speeds[1]:.0f} Mtok/s (ratio {ratios[0]:.2f}); flat file one by one {speeds[2]:.0f} "
        f"Mtok/s (ratio {ratios[1]:.2f}), gathered {speeds[3]:.0f} Mtok/s (ratio {ratios[2]:.2f})"
    )


def measure_index(batch_sizes: tuple[int, ...]) -> None:
    """Print indices/s of the global shuffle."""
    index = SampleIndex(10**9 + 7, 0)
    for size in batch_sizes:
        numbers = 10**12 + np.arange(size)
        elapsed = median(seconds(partial(index.locate, numbers)) for _ in range(51))
        print(f"index, batches of {size}: {size / elapsed / 1e6:.2f} M indices/s")


def measure_prefetch(dataset: TokenDataset, args: argparse.Namespace) -> None:
    """Print sequences/s through one prefetch thread."""
    reader = SampleReader(dataset, args.seq_len, 0)
    batches = np.arange(args.samples).reshape(-1, args.batch_size)
    with prefetch((reader.read(batch) for batch in batches), 4) as items:
        elapsed = seconds(lambda: sum(1 for _ in items))
    print(f"read through prefetch: {args.samples / elapsed / 1e3:.0f} k sequences/s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--samples", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        info = measure_tokenizing(Path(name))
        dataset = write_dataset(Path(name, "data"), info, args.samples * args.seq_len)
        for shuffle in ("global", "none"):
            compare_reading(dataset, args, shuffle)
        measure_index((8, 256, 1024, 65_536))
        measure_prefetch(dataset, args)


if __name__ == "__main__":
    main()
