"""`esolm prep`: text becomes token tars."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esolm.pipeline.cli.prep_dataset import export, inspect, merge, stats, status, verify
from esolm.pipeline.cli.prep_pack import pack
from esolm.pipeline.cli.prep_rewrite import repack, split
from esolm.pipeline.run.data_sections import PrepSection

if TYPE_CHECKING:
    from esolm.data_prep.jobs import TokenizeJob
    from esolm.data_prep.passes import CorpusPass
    from esolm.data_prep.sources import SourceFile

app = typer.Typer(
    help="Text becomes token tars: train a tokenizer, tokenize, status, merge, pack, verify, "
    "inspect, stats, export, repack, split.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="Files (text, JSONL, Parquet, Arrow, tars, WARC), directories, patterns "
        "('a/**/*.gz'), 'pipe:CMD' (a tar that CMD prints), or @LIST, a file with an input on each "
        "line. Text and JSONL also as .gz, .zst, .xz, .bz2.",
    ),
]
FromStdlib = Annotated[
    bool,
    typer.Option("--from-python-stdlib", help="Also take the library of the running Python."),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="auto|text|lines|jsonl|json|parquet|arrow|tar|warc",
        help="What INPUT holds; auto: by its names. lines: a document on each line.",
    ),
]
TextKey = Annotated[
    str, typer.Option(help="The key of JSON objects, or the column of tables, with the text.")
]
MaxBad = Annotated[
    int | None,
    typer.Option(help="Most bad documents and files to skip in all; more are an error."),
]
MaxDocumentBytes = Annotated[
    int, typer.Option(help="A document that is longer is a bad one; a task holds one in memory.")
]
OnBadDocument = Annotated[
    str, typer.Option(metavar="error|skip", help="What to do with a damaged document or file.")
]


def _find(inputs: list[str] | None, from_python_stdlib: bool, told: str) -> "list[SourceFile]":
    from esolm.data_prep.sources import find_files

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    return find_files(inputs or [], from_python_stdlib, told, commands=True)


@app.command()
def tokenizer(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the tokenizer is written.")],
    inputs: Inputs = None,
    from_python_stdlib: FromStdlib = False,
    vocab_size: Annotated[
        int, typer.Option(help="Pieces, special symbols included.")
    ] = PrepSection.vocab_size,
    format: Format = "auto",
    text_key: TextKey = "text",
    on_bad_document: OnBadDocument = "error",
    max_bad: MaxBad = None,
    max_document_bytes: MaxDocumentBytes = PrepSection.max_document_bytes,
    max_sentences: Annotated[
        int, typer.Option(help="Most pieces of text (about 1,000 characters each) to train on.")
    ] = PrepSection.max_sentences,
) -> None:
    """Train a lossless SentencePiece tokenizer.

    Example:

        esolm prep tokenizer --from-python-stdlib --vocab-size 4096 --out data/tok
    """
    from esolm.data_prep.bad_documents import BadDocuments
    from esolm.data_prep.errors import DataError
    from esolm.data_prep.files import refuse_taken
    from esolm.data_prep.formats import ReadOptions
    from esolm.data_prep.jobs import MARKS_OF_OTHERS
    from esolm.data_prep.manifest import MANIFEST_NAME, TASKS_DIRECTORY
    from esolm.data_prep.progress import phase
    from esolm.data_prep.sampling import sample_files
    from esolm.data_prep.tokenizers import save_tokenizer, train_model

    if max_sentences < 1:
        raise DataError(f"--max-sentences is {max_sentences}, must be at least 1.")
    refuse_taken(out, (*MARKS_OF_OTHERS, MANIFEST_NAME, TASKS_DIRECTORY), "tokenizer")
    bad = BadDocuments(on_bad_document, max_bad)
    options = ReadOptions(text_key, most_bytes=max_document_bytes)
    files = _find(inputs, from_python_stdlib, format)
    chunks = sample_files(files, bad, options, max_sentences)
    num_characters = sum(map(len, chunks))
    typer.echo(f"training on {num_characters:,} characters of {len(files):,} files", err=True)
    # Fewer than asked for are all there are.
    is_sample = len(chunks) == max_sentences
    more_text = "Raise --max-sentences (prep.max_sentences)" if is_sample else "Give more text"
    with phase(f"train {vocab_size:,} pieces"):
        model = train_model(chunks, vocab_size, more_text)
    info = save_tokenizer(model, out)
    typer.echo(f"{out}: {info.vocab_size:,} pieces, fingerprint {info.fingerprint[:16]}")


@app.command()
def tokenize(
    tokenizer: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="One of esolm prep tokenizer, of a bundle, or of transformers."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DATA", help="The dataset directory to write.")],
    inputs: Inputs = None,
    from_python_stdlib: FromStdlib = False,
    tasks: Annotated[
        int, typer.Option(help="Logical tasks, each of an equal share of the bytes.")
    ] = 1,
    task: Annotated[
        int | None, typer.Option(help="Do this task only (for array jobs), from 0.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that work on the tasks.")] = 1,
    valid_fraction: Annotated[
        float, typer.Option(help="Share of documents to validate on.")
    ] = PrepSection.valid_fraction,
    shard_tokens: Annotated[
        int, typer.Option(help="Tokens after which a shard ends.")
    ] = PrepSection.shard_tokens,
    max_bytes: Annotated[int | None, typer.Option(help="Most bytes of text to take.")] = None,
    format: Format = "auto",
    text_key: TextKey = "text",
    on_bad_document: OnBadDocument = "error",
    max_bad: MaxBad = None,
    max_document_bytes: MaxDocumentBytes = PrepSection.max_document_bytes,
    id_key: Annotated[str, typer.Option(help="The key or column with a document's name.")] = "",
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY,...",
            help="Fields that are kept of each document, with its id and place; KEY? may be "
            "missing, . is none.",
        ),
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="A stage that documents pass, in the order given: see docs/data.md, Cleaning.",
        ),
    ] = None,
    dedup: Annotated[
        str,
        typer.Option(
            metavar="task|corpus|near",
            help="Where repeats are dropped: in a task; in the corpus; near-duplicates, too.",
        ),
    ] = "task",
    only_pass: Annotated[
        str,
        typer.Option(
            "--pass",
            metavar="compare|choose|tokenize",
            help="Do this pass only (for array jobs); all by default, with --task the last.",
        ),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start DATA anew.")] = False,
) -> None:
    """Write webdataset tars of tokens. Finished tasks are skipped, so run it again to continue.

    Example:

        esolm prep tokenize --from-python-stdlib --tokenizer data/tok --out data/py
    """
    from esolm.data_prep.errors import DataError
    from esolm.data_prep.jobs import TokenizeJob, check_bad, prepare_output
    from esolm.data_prep.metadata import metadata_keys
    from esolm.data_prep.passes import passes_of
    from esolm.data_prep.tokenizers import load_tokenizer

    if task is not None and not 0 <= task < tasks:
        raise DataError(f"--task is {task}, must be at least 0 and below --tasks ({tasks}).")
    if task is not None and overwrite:
        raise DataError("--overwrite with --task would remove the work of other tasks: drop one.")
    job = TokenizeJob(
        out=out,
        files=tuple(_find(inputs, from_python_stdlib, format)),
        tokenizer=load_tokenizer(tokenizer).info,
        num_tasks=tasks,
        valid_fraction=valid_fraction,
        shard_tokens=shard_tokens,
        max_bytes=max_bytes,
        text_key=text_key,
        on_bad_document=on_bad_document,
        most_document_bytes=max_document_bytes,
        max_bad=max_bad,
        id_key=id_key,
        metadata=metadata_keys(metadata or ()),
        clean=tuple(clean or ()),
        dedup=dedup,
    )
    wanted = passes_of(job, only_pass, task)
    prepare_output(job, tokenizer, overwrite)
    if task is None and not only_pass and wanted[-1].is_done_for_all(job):
        wanted = wanted[-1:]  # what the passes before left may be gone
    for each in wanted:
        _run_pass(job, each, range(tasks) if task is None else [task], workers)
    check_bad(job)


def _run_pass(job: "TokenizeJob", one: "CorpusPass", tasks: Sequence[int], workers: int) -> None:
    from esolm.data_prep.progress import ProgressBar
    from esolm.data_prep.workers import run_tasks

    to_do = [number for number in tasks if not one.is_done(job, number)]
    num_bytes = job.num_bytes * len(to_do) // job.num_tasks
    with ProgressBar(one.name, num_bytes, in_bytes=True) as progress:
        counts = run_tasks(job, to_do, workers, progress, one.run)
    total = {key: sum(count[key] for count in counts) for key in (counts[0] if counts else {})}
    found = "".join(f", {total[key]:,} {key.replace('_', ' ')}" for key in total)
    name = "" if one.is_last else f"{one.name}: "
    typer.echo(
        f"{name}{len(to_do)} tasks done, {len(tasks) - len(to_do)} skipped as finished{found}"
    )


for command in (status, merge, pack, verify, inspect, stats, export, repack, split):
    app.command()(command)
