"""The commands of `esolm prep` that take a dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from esolm.data_prep.manifest import Manifest

Data = Annotated[Path, typer.Argument(metavar="DATA", help="The dataset directory.")]


EnergonIndex = Annotated[
    bool,
    typer.Option(
        "--energon-index", help="Also write what Megatron-Energon opens the folder by (.nv-meta)."
    ),
]


def merge(data: Data, energon_index: EnergonIndex = False) -> None:
    """Check that every task is complete and write DATA/manifest.json.

    Example:

        esolm prep merge data/py
    """
    from esolm.data_prep.energon_index import has_energon_index, write_energon_index
    from esolm.data_prep.merge import merge_tasks
    from esolm.data_prep.progress import phase

    with phase(f"merge {data}"):
        manifest = merge_tasks(data)
        if energon_index or has_energon_index(data):  # which is of the tars as they were
            write_energon_index(data, manifest)
    echo_summary(data, manifest)
    _echo_cleaning(data)


def status(
    data: Data,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which tasks are done, running, failed or stopped, how fast they are, and the time left.

    Example:

        esolm prep status data/py
    """
    import json

    from esolm.data_prep.status import status_of

    passes = status_of(data)
    if as_json:
        typer.echo(json.dumps([one.to_record() for one in passes]))
        return
    for one in passes:
        for line in one.lines():
            typer.echo(line)


def verify(
    data: Data,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Files read at a time; by default one a core.")
    ] = None,
) -> None:
    """Compare every byte of a dataset with its checksums; damaged files are named (exit 64).

    Example:

        esolm prep verify data/py
    """
    import os

    from esolm.data_prep.manifest import PACKING_DIRECTORY, read_manifest
    from esolm.data_prep.progress import ProgressBar
    from esolm.data_prep.verify import files_of, verify_dataset

    manifest = read_manifest(data)
    num_bytes = sum(size for _, size, _ in files_of(manifest))
    num_bytes += sum(path.stat().st_size for path in (data / PACKING_DIRECTORY).glob("*/*.npy"))
    with ProgressBar("verify", num_bytes, in_bytes=True) as progress:
        workers = workers or os.cpu_count() or 1
        num_files = verify_dataset(data, manifest, progress.advance, workers)
    typer.echo(f"{data}: {num_files} files and the tokenizer are as they were written")


def inspect(
    data: Data,
    split: Annotated[str, typer.Option(help="train or valid.")] = "train",
    sample: Annotated[int, typer.Option(help="Global number of the sample, from 0.")] = 0,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sample.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the order of samples.")] = 0,
    packing: Annotated[
        str, typer.Option(metavar="continuous|wrapped|best_fit", help="As data.packing.")
    ] = "continuous",
) -> None:
    """Print what a dataset holds, and one sample as training would see it, with its documents.

    Example:

        esolm prep inspect data/py --sample 3 --seq-len 128
    """
    import numpy as np

    from esolm.data_prep.errors import DataError
    from esolm.data_prep.manifest import read_manifest
    from esolm.data_prep.tokenizers import load_tokenizer
    from esolm.pipeline.data.dataset import TokenDataset
    from esolm.pipeline.data.reader import SampleReader
    from esolm.pipeline.data.row_documents import lines_of_row

    if sample < 0:
        raise DataError(f"--sample is {sample}, must be at least 0.")
    dataset = TokenDataset(data, split)
    reader = SampleReader(dataset, seq_len, seed, packing=packing)
    numbers = np.array([sample], dtype=np.int64)
    epoch, sequence = (int(array[0]) for array in reader.index.locate(numbers))
    tokens = reader.read(numbers)[0]
    text = load_tokenizer(dataset.tokenizer_directory).decode_with_specials(tokens)
    echo_summary(data, read_manifest(data))
    typer.echo(
        f"sample {sample} of split {split}: epoch {epoch}, sequence {sequence} of "
        f"{reader.num_sequences:,}, {seq_len} tokens"
    )
    for line in lines_of_row(reader, sequence):
        typer.echo(line)
    typer.echo(f"\n{text}")


def stats(
    data: Data,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens of a row of training.")] = 1024,
    plot: Annotated[Path | None, typer.Option(help="Draw the lengths into this PNG.")] = None,
) -> None:
    """Say how long the documents are, how many share a row, and how many bytes a token has.

    Example:

        esolm prep stats data/py --seq-len 1024 --plot lengths.png
    """
    from esolm.data_prep.manifest import read_manifest
    from esolm.data_prep.progress import ProgressBar
    from esolm.data_prep.tokenizers import load_tokenizer
    from esolm.pipeline.data.dataset import TokenDataset
    from esolm.pipeline.data.document_lengths import document_lengths, draw, summary

    manifest = read_manifest(data)
    splits = [split for split in manifest.splits if manifest.num_tokens(split)]
    found = []
    with ProgressBar("count", sum(map(manifest.num_tokens, splits))) as progress:
        for split in splits:
            dataset = TokenDataset(data, split)
            tokenizer = load_tokenizer(dataset.tokenizer_directory)
            found.append(document_lengths(dataset, tokenizer, seq_len, progress.advance))
    for each in found:
        typer.echo(summary(each))
    if plot is not None:
        draw(found, plot)
        typer.echo(f"wrote {plot}")


def export(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder that does not exist yet.")],
    split: Annotated[str, typer.Option(help="train or valid.")] = "train",
    shard_bytes: Annotated[int, typer.Option(min=1, help="Bytes after which a tar ends.")] = 1
    << 30,
) -> None:
    """Write the documents of a split back as text, in tars that webdataset reads.

    Example:

        esolm prep export data/py --out data/py-text
    """
    from esolm.data_prep.progress import ProgressBar
    from esolm.data_prep.tokenizers import load_tokenizer
    from esolm.pipeline.data.dataset import TokenDataset
    from esolm.pipeline.data.text_tars import write_text_tars

    dataset = TokenDataset(data, split)
    tokenizer = load_tokenizer(dataset.tokenizer_directory)
    with ProgressBar("write", dataset.num_tokens) as progress:
        documents, tars = write_text_tars(dataset, tokenizer, out, shard_bytes, progress.advance)
    typer.echo(f"{out}: {documents:,} documents of split {split} in {tars:,} tars")


def _echo_cleaning(data: Path) -> None:
    from esolm.data_prep.merge import read_cleaning

    for stage in read_cleaning(data):
        typer.echo(
            f"{stage.name}: {stage.documents_in:,} documents ({stage.bytes_in:,} bytes) in, "
            f"{stage.documents_out:,} ({stage.bytes_out:,} bytes) out, {stage.changed:,} changed"
        )
        for reason, count in sorted(stage.reasons.items(), key=lambda item: -item[1]):
            typer.echo(f"  {count:,} left out: {reason}")


def echo_summary(data: Path, manifest: "Manifest") -> None:
    """Prints what a dataset holds."""
    from esolm.data_prep.jobs import FILTERED, NEAR_DUPLICATES

    counts: dict[str, Any] = manifest.counts
    info = manifest.tokenizer
    for split, shards in manifest.splits.items():
        documents = sum(shard.num_documents for shard in shards)
        typer.echo(
            f"{split}: {manifest.num_tokens(split):,} tokens, {documents:,} documents, "
            f"{len(shards)} shards, {sum(shard.num_bytes for shard in shards):,} bytes"
        )
    cleaned = {key: counts[key] for key in (FILTERED, NEAR_DUPLICATES) if key in counts}
    more = "".join(f", {count:,} {key.replace('_', ' ')}" for key, count in cleaned.items())
    typer.echo(
        f"left out: {counts['duplicates']:,} duplicate, {counts['empty']:,} empty, "
        f"{counts['bad']:,} bad documents{more}"
    )
    typer.echo(
        f"vocabulary {info.vocab_size:,} (mask {info.mask_id}, bos {info.bos_id}, eos "
        f"{info.eos_id}), {manifest.dtype}, fingerprint {manifest.fingerprint[:16]}, {data}"
    )
