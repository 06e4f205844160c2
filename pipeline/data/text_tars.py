"""Documents of a dataset written back as text, in tars that webdataset reads."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import webdataset

from esolm.data_prep.document_ends import ends_of
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fsync_directory, temporary_path
from esolm.data_prep.tokenizers import Tokenizer
from esolm.pipeline.data.dataset import TokenDataset


def texts_of(dataset: TokenDataset, tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """Yields the documents of a split in their order: the text, and its tokens with eos."""
    start = 0
    for shard in dataset.shards:
        first = start
        for end in ends_of(dataset.path, shard).tolist():
            tokens = dataset.read(first, start + end - first)
            yield tokenizer.decode(tokens[:-1].tolist()), len(tokens)
            first = start + end
        start += shard.num_tokens


def write_text_tars(
    dataset: TokenDataset,
    tokenizer: Tokenizer,
    out: Path,
    shard_bytes: int,
    on_document: Callable[[int], None] = lambda _: None,
) -> tuple[int, int]:
    """Writes SPLIT-000000.tar and so on into a new folder; returns the documents and the tars.

    A document is a member SPLIT-NUMBER.txt. The folder has its name once all are in it.
    on_document: is told the tokens of each. Raises DataError if the folder is there.
    """
    if out.exists():
        raise DataError(f"--out {out} exists: name a folder that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = temporary_path(out)
    work.mkdir()
    try:
        # Without an owner and a time the same documents make the same bytes.
        tars = webdataset.ShardWriter(
            str(work / f"{dataset.split}-%06d.tar"), maxcount=10**9, maxsize=shard_bytes,
            verbose=0, user="", group="", mtime=0.0,
        )  # fmt: skip
        count = 0
        with tars:
            for text, num_tokens in texts_of(dataset, tokenizer):
                tars.write({"__key__": f"{dataset.split}-{count:012d}", "txt": text})
                count += 1
                on_document(num_tokens)
        found = list(work.iterdir())
        for path in found:  # the writer leaves that to the system
            with open(path, "rb") as tar:
                os.fsync(tar.fileno())
        fsync_directory(work)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    fsync_directory(out.parent)
    return count, len(found)
