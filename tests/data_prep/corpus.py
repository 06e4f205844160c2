"""Small corpora, tokenizers and datasets for the tests of data preparation and reading."""

import json
from pathlib import Path
from random import Random

from esolm.data_prep.jobs import TokenizeJob, is_finished, prepare_output
from esolm.data_prep.merge import merge_tasks
from esolm.data_prep.sampling import split_into_chunks
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizers import load_tokenizer, save_tokenizer, train_model
from esolm.data_prep.tokenizing import run_task

SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in ("a", "e", "in", "or", "us")]


def text_of(number: int, num_words: int = 200) -> str:
    """Return a document of its own for each number, with lines and indentation."""
    random = Random(number)
    parts = []
    for i in range(num_words):
        # Squaring makes some syllables, and so some words, much more common than others.
        draws = [int(len(SYLLABLES) * random.random() ** 2) for _ in range(1 + i % 3)]
        parts.append("".join(SYLLABLES[draw] for draw in draws))
        parts.append("\n    " if i % 11 == 10 else " ")
    return "".join(parts)


def write_jsonl(path: Path, num_documents: int, first: int = 0) -> Path:
    """Write documents numbered from `first` on as JSONL."""
    lines = [json.dumps({"text": text_of(first + i)}) for i in range(num_documents)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_tokenizer(directory: Path, vocab_size: int = 400) -> Path:
    """Train a small tokenizer into a directory."""
    chunks = [chunk for i in range(40) for chunk in split_into_chunks(text_of(i))]
    save_tokenizer(train_model(chunks, vocab_size), directory)
    return directory


def make_job(source: Path, tokenizer: Path, out: Path, **settings: object) -> TokenizeJob:
    """Return a job over one input."""
    info = load_tokenizer(tokenizer).info
    return TokenizeJob(out, tuple(find_files([source])), info, **settings)  # type: ignore[arg-type]


def run_job(job: TokenizeJob, tokenizer: Path) -> list[int]:
    """Run the unfinished tasks of a job, merge, and return which tasks ran."""
    prepare_output(job, tokenizer, overwrite=False)
    to_do = [task for task in range(job.num_tasks) if not is_finished(job, task)]
    for task in to_do:
        run_task(job, task, lambda num_bytes: None)
    merge_tasks(job.out)
    return to_do
