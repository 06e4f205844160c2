"""The zip archive of torch.save: one pickle, and one record of raw bytes for each storage."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.importer.inert import LazyTensor
from esolm.pipeline.importer.unpickle import unpickle


class Archive:
    """A checkpoint file. `content` is its pickle, made inert; `read` reads a single tensor.

    Raises ImportCheckpointError for anything but an undamaged file of torch.save.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise self.problem(f"cannot be opened ({error.strerror})") from None
        except zipfile.BadZipFile:
            raise self.problem(
                "is no zip archive, or was cut short: download it again (files of torch.save "
                "before torch 1.6 must be saved again with a newer one)"
            ) from None
        try:
            self._prefix = self._find_prefix()
            self._swap = self._read_record("byteorder", b"little").decode() != sys.byteorder
            self.content: Any = unpickle(self._read_record("data.pkl"))
        except ImportCheckpointError as error:
            self.close()
            text = str(error)
            raise (
                error if str(path) in text else self.problem(f"is not imported: {text}")
            ) from None

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()

    def problem(self, text: str) -> ImportCheckpointError:
        """Returns the error that says what is wrong with this file."""
        return ImportCheckpointError(f"{self.path} {text}")

    def read(self, tensor: LazyTensor) -> Tensor:
        """Returns the values of a tensor, in memory of their own and in their stored dtype."""
        storage = tensor.storage
        raw = bytearray(self._read_record(f"data/{storage.key}"))
        itemsize = torch.empty((), dtype=storage.dtype).element_size()
        if len(raw) < storage.numel * itemsize:
            raise self.problem(
                f"is damaged: storage {storage.key} has {len(raw)} bytes instead of "
                f"{storage.numel * itemsize}; download it again"
            )
        if not storage.numel:
            return torch.empty(tensor.size, dtype=storage.dtype)
        flat = torch.frombuffer(raw, dtype=torch.uint8)[: storage.numel * itemsize]
        if self._swap:
            flat = flat.view(-1, itemsize).flip(1).flatten()
        flat = flat.view(storage.dtype)
        return flat.as_strided(tensor.size, tensor.stride, tensor.offset).clone()

    def _find_prefix(self) -> str:
        found = [name for name in self._zip.namelist() if name.endswith("/data.pkl")]
        if len(found) != 1:
            raise self.problem("is a zip archive, but not one of torch.save: it has no data.pkl")
        return found[0].removesuffix("data.pkl")

    def _read_record(self, name: str, default: bytes | None = None) -> bytes:
        try:
            entry = self._zip.getinfo(self._prefix + name)
        except KeyError:
            if default is not None:
                return default
            raise self.problem(f"is damaged: it has no record {name}; download it again") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            raise self.problem(f"is no file of torch.save: its record {name} is compressed")
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
            raise self.problem(
                f"is damaged in record {name} ({error}); download it again"
            ) from None
