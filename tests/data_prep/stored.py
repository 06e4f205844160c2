"""A dataset as another program reads it, without the code that wrote it."""

import io
import tarfile
from pathlib import Path

import numpy as np
import zstandard

from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.verify import verify_dataset

NUM_DOCUMENTS = 120
Stored = tuple[tuple[int, ...], str]


def stored(data: Path, split: str) -> list[Stored]:
    """The documents of a split as another program reads them: tokens, and what is kept."""
    manifest, found = read_manifest(data), []
    for shard in manifest.splits[split]:
        content = b""
        with tarfile.open(data / shard.name) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                content += file.read()
        tokens = np.frombuffer(content, manifest.dtype)
        ends = np.load(io.BytesIO((data / shard.ends_name).read_bytes())).tolist()
        with open(data / shard.metadata_name, "rb") as stream:
            lines = zstandard.ZstdDecompressor().stream_reader(stream).read().splitlines()
        begins = [0, *ends[:-1]]
        for begin, end, line in zip(begins, ends, lines, strict=True):
            found.append((tuple(tokens[begin:end].tolist()), line.decode()))
        assert ends[-1] == len(tokens)
    return found


def verify(data: Path) -> object:
    return verify_dataset(data, read_manifest(data), lambda num_bytes: None)
