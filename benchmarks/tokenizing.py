"""Speed of `esolm prep tokenize` beside a bare loop over SentencePiece, by format and by workers.

The corpus is JSON lines (`--corpus`, else the library of the running Python), written anew as
Parquet as well. All sides tokenise the same documents, in turns, and what is compared is CPU time
of the process, so that the ratios stand where the machine is shared; of two workers against one it
is wall-clock time, which takes two idle cores. Run it with `python -m benchmarks.tokenizing`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import pyarrow
from pyarrow import parquet
from sentencepiece import SentencePieceProcessor

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.jobs import TokenizeJob, prepare_output
from esolm.data_prep.progress import ProgressBar
from esolm.data_prep.sampling import sample_chunks
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizers import load_tokenizer, save_tokenizer, train_model
from esolm.data_prep.tokenizing import run_task
from esolm.data_prep.workers import run_tasks


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, in this process."""
    started = time.process_time()
    function()
    return time.process_time() - started


def wall_seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def write_corpus(texts: list[str], folder: Path) -> dict[str, Path]:
    """Write the same documents in every format."""
    lines = folder / "corpus.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = folder / "corpus.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), table, compression="zstd")
    return {"JSONL": lines, "Parquet": table}


def tokenize(source: Path, tokenizer: Path, tasks: int = 1, workers: int = 1) -> None:
    """Do what `esolm prep tokenize` does."""
    with tempfile.TemporaryDirectory() as name:
        info = load_tokenizer(tokenizer).info
        job = TokenizeJob(Path(name), tuple(find_files([source])), info, num_tasks=tasks)
        prepare_output(job, tokenizer, overwrite=False)
        if workers == 1:
            for task in range(tasks):
                run_task(job, task, lambda num_bytes: None)
            return
        with ProgressBar("tokenize", job.num_bytes, shown=False) as progress:
            run_tasks(job, range(tasks), workers, progress)


def compare(texts: list[str], sources: dict[str, Path], tokenizer: Path, num_rounds: int) -> None:
    """Print CPU seconds of the sides, and how fast some are beside others."""
    processor = SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))

    def bare() -> None:
        for text in texts:
            processor.encode(text)

    def reading() -> None:
        with open(sources["JSONL"], encoding="utf-8") as stream:
            for line in stream:
                processor.encode(json.loads(line)["text"])

    sides: list[Callable[[], object]] = [bare, reading]
    sides += [partial(tokenize, path, tokenizer) for path in sources.values()]
    names = ("a loop over texts in memory", "a loop that reads JSONL", *sources)
    rounds = [[cpu_seconds(side) for side in sides] for _ in range(num_rounds)]
    for name, times in zip(names, zip(*rounds, strict=True), strict=True):
        print(f"{name}: {median(times):.2f} s of CPU")
    for first, second in ((2, 0), (2, 1), (3, 2)):
        ratio = median(times[second] / times[first] for times in rounds)
        print(f"speed of {names[first]} / {names[second]}: {ratio:.2f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="JSON lines, or a folder of them")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers-tasks", type=int, default=8)
    args = parser.parse_args()
    files = find_files([args.corpus] if args.corpus else [], not args.corpus)
    documents = list(iterate_documents(files, BadDocuments("skip")))
    texts = list(dict.fromkeys(document.text for document in documents))
    print(f"{len(texts):,} documents, {sum(map(len, texts)) / 1e6:.1f} M characters", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_corpus(texts, folder)
        chunks = sample_chunks(documents, 3000)
        save_tokenizer(train_model(chunks, args.vocab_size), folder / "tokenizer")
        compare(texts, sources, folder / "tokenizer", args.rounds)
        work = partial(tokenize, sources["JSONL"], folder / "tokenizer", args.workers_tasks)
        pairs = [[wall_seconds(partial(work, count)) for count in (1, 2)] for _ in range(3)]
        print(f"speed of two workers / one: {median(one / two for one, two in pairs):.2f}")


if __name__ == "__main__":
    main()
