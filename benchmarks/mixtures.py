"""Mixtures at the size of a corpus: reading five sources, and a run of 10^12 tokens resumed.

Reading: a mixture of five sources beside the same sequences, one after the other, out of a
memory-mapped flat file of the same tokens. Both make the same int64 batches, in turns and in CPU
seconds, so that the ratio stands where the machine is shared.

Resuming: a manifest of 10,000 shards of 10^8 tokens each, opened and read from sample 10^9 on by a
process of its own. The shards are links to one file without content, and so are their checksums:
all that reading touches is there. Run it with `python -m benchmarks.mixtures`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median

import numpy as np

from esolm.data_prep.layout import CHECKED_TOKENS, MEMBER_TOKENS, ShardInfo, member_stride
from esolm.data_prep.manifest import Manifest, write_manifest
from esolm.data_prep.packing_index import PackJob, pack_task, write_packing
from esolm.data_prep.shards import ShardWriter
from esolm.data_prep.tokenizers import TokenizerInfo
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.mixture import MixtureReader, MixtureSource

DTYPE = np.dtype("<u2")
TOKENIZER = TokenizerInfo(32000, 0, 1, 2, 3, "0" * 64)
WEIGHTS = {"web": 0.5, "code": 0.2, "papers": 0.15, "books": 0.1, "wiki": 0.05}
DOCUMENT_TOKENS = 1777
"""Of no common measure with a row or a checked part: rows begin anywhere, as in real datasets.
`best_fit` rows are of two or three pieces then, and of many more where documents are short."""
SEQ_LEN = 1024


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def write_source(directory: Path, num_tokens: int, seed: int, document: int) -> np.ndarray:
    """Write random tokens as a dataset of four shards and return them."""
    (directory / "shards").mkdir(parents=True)
    draws = np.random.default_rng(seed)
    tokens = draws.integers(4, TOKENIZER.vocab_size, num_tokens, dtype=DTYPE)
    writer = ShardWriter(directory, "train", 0, DTYPE.str, num_tokens // 4, "")
    for start in range(0, num_tokens, document):
        writer.add([tokens[start : start + document].tolist()])
    writer.close()
    write_manifest(directory, Manifest(DTYPE.str, TOKENIZER, {"train": writer.shards}, {}))
    job = PackJob.of(directory, (SEQ_LEN,))
    for task in range(job.num_tasks):
        pack_task(job, task, lambda _: None)
    write_packing(job, SEQ_LEN)
    return tokens


def compare_reading(folder: Path, args: argparse.Namespace) -> None:
    """Print the speeds of the mixture and of the flat file, and the median ratios."""
    num_rows, flat, firsts = args.samples // len(WEIGHTS), [], []
    for number, name in enumerate(WEIGHTS):
        tokens = write_source(folder / name, num_rows * SEQ_LEN, number, args.document_tokens)
        firsts.append(number * num_rows)
        flat.append(tokens)
    np.concatenate(flat).tofile(folder / "flat.bin")
    rows = np.memmap(folder / "flat.bin", dtype=DTYPE, mode="r").reshape(-1, SEQ_LEN)
    batches = np.arange(args.samples).reshape(-1, args.batch_size)
    readers = {}
    for label, checked, packing in (
        ("checksums looked at", True, "continuous"),
        ("without", False, "continuous"),
        ("best_fit, checksums looked at", True, "best_fit"),
        ("best_fit, without", False, "best_fit"),
    ):
        sources = [
            MixtureSource(name, TokenDataset(folder / name, "train", checked), weight)
            for name, weight in WEIGHTS.items()
        ]
        readers[label] = MixtureReader(sources, SEQ_LEN, seed=0, packing=packing)
    reader = readers["without"]
    sequences = [np.array(firsts)[s] + p for s, p in map(reader.locate, batches)]
    for batch, numbers in zip(batches[:4], sequences, strict=False):
        assert (reader.read(batch) == rows[numbers]).all()

    def mixture(reader: MixtureReader) -> None:
        for batch in batches:
            reader.read(batch)

    def one_by_one() -> None:
        for numbers in sequences:
            np.stack([rows[i] for i in numbers.tolist()]).astype(np.int64)

    sides: list[Callable[[], object]] = [
        one_by_one,
        *(partial(mixture, each) for each in readers.values()),
    ]
    rounds = [[cpu_seconds(side) for side in sides] for _ in range(args.rounds + 1)]
    speeds = [args.samples / median(times) / 1e3 for times in zip(*rounds[1:], strict=True)]
    print(f"flat file, one by one: {speeds[0]:.0f} k sequences per CPU second")
    for number, label in enumerate(readers, start=1):
        ratio = median(times[0] / times[number] for times in rounds[1:])
        print(
            f"mixture of {len(WEIGHTS)}, {label}: {speeds[number]:.0f} k sequences per CPU second, "
            f"{ratio:.2f} of the flat file"
        )


def write_large_manifest(folder: Path, num_shards: int, shard_tokens: int) -> None:
    """Write a dataset of links to one shard of zeros, which take up no space."""
    (folder / "shards").mkdir(parents=True)
    checked = np.full(-(-shard_tokens // CHECKED_TOKENS), zlib.crc32(bytes(2 * CHECKED_TOKENS)))
    if shard_tokens % CHECKED_TOKENS:
        checked[-1] = zlib.crc32(bytes(2 * (shard_tokens % CHECKED_TOKENS)))
    members, rest = divmod(shard_tokens, MEMBER_TOKENS)
    padded = -(-rest * 2 // 512) * 512 + 512 if rest else 0
    num_bytes = members * member_stride(2) + padded + 1024
    crc = checked.astype("<u4").tobytes()
    for name, content in (("tar", b""), ("crc32", crc), ("ends.npy", b"")):
        (folder / "shards" / f"one.{name}").write_bytes(content)
    os.truncate(folder / "shards" / "one.tar", num_bytes)
    shard = ShardInfo(
        "", num_bytes, "0" * 64, shard_tokens, 1, 512, member_stride(2), "", 0, "0" * 64, "",
        len(crc), sha256(crc).hexdigest(),
    )  # fmt: skip
    shards = []
    for number in range(num_shards):
        name = f"shards/train-{number:05d}-00000"
        for kind in ("tar", "crc32", "ends.npy"):
            os.link(folder / "shards" / f"one.{kind}", folder / f"{name}.{kind}")
        names = (f"{name}.{kind}" for kind in ("tar", "crc32", "ends.npy"))
        shards.append(replace(shard, name=next(names), crc_name=next(names), ends_name=next(names)))
    write_manifest(folder, Manifest(DTYPE.str, TOKENIZER, {"train": shards}, {}))


def peak_memory() -> int:
    """Return the most kilobytes that this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def resume(folder: Path, first_sample: int, batch_size: int) -> dict[str, float]:
    """Open a dataset, go on at a sample, read a batch; return what it took."""
    before = peak_memory()
    started, began = time.perf_counter(), time.process_time()
    dataset = TokenDataset(folder, "train")
    opened, done = time.perf_counter(), time.process_time()
    reader = MixtureReader([MixtureSource("all", dataset)], SEQ_LEN, seed=0)
    reader.adopt(reader.state(first_sample))
    reader.read(first_sample + np.arange(batch_size))
    read, end = time.perf_counter(), time.process_time()
    most = peak_memory()
    return {
        "open_seconds": opened - started,
        "open_cpu_seconds": done - began,
        "first_batch_seconds": read - opened,
        "first_batch_cpu_seconds": end - done,
        "megabytes": (most - before) / 1e3,
        "megabytes_in_all": most / 1e3,
    }


def measure_resuming(folder: Path, args: argparse.Namespace) -> None:
    """Print what opening and the first batch take, of the median of a few fresh processes."""
    write_large_manifest(folder, args.shards, args.shard_tokens)
    command = [sys.executable, "-m", "benchmarks.mixtures", "--resume", str(folder)]
    command += ["--first-sample", str(args.first_sample), "--batch-size", str(args.first_rows)]
    found = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(args.rounds)
    ]
    figures = {name: median(each[name] for each in found) for name in found[0]}
    print(
        f"{args.shards} shards of {args.shard_tokens:,} tokens: opened in "
        f"{figures['open_seconds']:.2f} s ({figures['open_cpu_seconds']:.2f} s of CPU); first "
        f"{args.first_rows} rows from sample {args.first_sample:,} on in "
        f"{1e3 * figures['first_batch_seconds']:.0f} ms "
        f"({1e3 * figures['first_batch_cpu_seconds']:.0f} ms of CPU); "
        f"{figures['megabytes']:.0f} MB, {figures['megabytes_in_all']:.0f} MB with Python"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=40_960)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--document-tokens", type=int, default=DOCUMENT_TOKENS)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--shard-tokens", type=int, default=100_000_000)
    parser.add_argument("--first-rows", type=int, default=256)
    parser.add_argument("--first-sample", type=int, default=10**9)
    parser.add_argument("--resume", type=Path, help="Measure this dataset in this process.")
    args = parser.parse_args()
    if args.resume:
        print(json.dumps(resume(args.resume, args.first_sample, args.batch_size)))
        return
    with tempfile.TemporaryDirectory() as name:
        compare_reading(Path(name, "sources"), args)
        measure_resuming(Path(name, "large"), args)


if __name__ == "__main__":
    main()
