"""Memory and time of whole-corpus exact deduplication, of many short documents in one task.

The documents are made up, a fifth of them repeats, and are written as JSON lines. Each pass runs in
a process of its own, whose peak of memory is printed. Run it with
`python -m benchmarks.deduplication` (1 million documents); the figure in docs/data.md is of
`--documents 10000000`, for which 3 GB of disk are needed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from esolm.data_prep.jobs import TokenizeJob, prepare_output
from esolm.data_prep.passes import passes_of
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizers import load_tokenizer, save_tokenizer, train_model

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]
REPEATS = 5
"""One document of so many is that of another number again."""


def text_of(number: int) -> str:
    """Return a text of a dozen words; different numbers have different ones."""
    rest = (number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)
    words = []
    for _ in range(12):
        rest, place = divmod(rest, len(VOCABULARY))
        words.append(VOCABULARY[place])
    return " ".join([*words, str(number)])


def write_corpus(path: Path, num_documents: int) -> int:
    """Write the documents and return how many of them are distinct."""
    random = Random(0)
    seen = bytearray(num_documents)
    with open(path, "w") as stream:
        for number in range(num_documents):
            chosen = number if number % REPEATS else random.randrange(num_documents)
            seen[chosen] = 1
            stream.write(json.dumps({"text": text_of(chosen)}) + "\n")
    return sum(seen)


def make_job(folder: Path, num_tasks: int) -> TokenizeJob:
    """Return the job over the corpus in a folder."""
    files = tuple(find_files([folder / "corpus.jsonl"]))
    info = load_tokenizer(folder / "tokenizer").info
    return TokenizeJob(folder / "data", files, info, num_tasks=num_tasks, dedup="corpus")


def run_pass(folder: Path, name: str, task: int, num_tasks: int) -> None:
    """Do one pass of a task in this process and print what it took."""
    job = make_job(folder, num_tasks)
    (one,) = passes_of(job, name)
    began, cpu = time.perf_counter(), time.process_time()
    counts = one.run(job, task, lambda num_bytes: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}, task {task} of {num_tasks}: {peak:.0f} MB at most, "
        f"{time.process_time() - cpu:.1f} s of CPU, {time.perf_counter() - began:.1f} s; {counts}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--passes", default="compare,choose,tokenize")
    parser.add_argument("--of", nargs=3, metavar=("FOLDER", "PASS", "TASK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.of:
        run_pass(Path(args.of[0]), args.of[1], int(args.of[2]), args.tasks)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        some = (text_of(number) for number in range(5000))
        save_tokenizer(train_model(some, 400), folder / "tokenizer")
        distinct = write_corpus(folder / "corpus.jsonl", args.documents)
        size = os.path.getsize(folder / "corpus.jsonl")
        print(
            f"{args.documents:,} documents, {size / 1e6:.0f} MB, {distinct:,} distinct", flush=True
        )
        prepare_output(make_job(folder, args.tasks), folder / "tokenizer", overwrite=False)
        for step in args.passes.split(","):
            for task in range(args.tasks):
                command = [sys.executable, "-m", "benchmarks.deduplication", "--tasks", args.tasks]
                command += ["--of", folder, step, task]
                subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    main()
