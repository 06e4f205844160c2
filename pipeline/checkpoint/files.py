"""The files of a checkpoint: torch.distributed.checkpoint's, written and read by several threads.

Four things differ from torch's own reader and writer. Stored numbers are read straight into the
tensors that want them, which is as fast as the disk; `torch.load` copies each of them three times.
They are written straight from where they lie in host memory as well; torch clones every part of a
larger tensor, and keeps the clones until their file is complete. A rank writes a file for every
half gigabyte, so that writing, checksums and reading have something to share out. And the index, a
pickle, may name nothing but what an index is made of.
"""

import math
import os
import pickle
import shutil
from pathlib import Path
from queue import Queue
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from esolm.data_prep.files import probe_writing
from esolm.pipeline.checkpoint.threads import in_threads
from esolm.pipeline.errors import CheckpointError

FILE_BYTES = 512 << 20
PROBE_BYTES = 1 << 20
PIECE_BYTES = 64 << 20
"""How much is read at once where numbers cannot go straight to their place."""

_INDEX_IS_MADE_OF = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16"},
    "pathlib": {"PosixPath", "PurePosixPath"},
}


class Writer(FileSystemWriter):
    """Writes into a directory and syncs the files; on a full disk the write fails as a whole."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, single_file_per_rank=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[Any]]:
        size = sum(item.tensor_storage_size() or 0 for item in plan.items)
        self.thread_count = max(1, math.ceil(size / FILE_BYTES))
        return super().write_data(plan, planner)

    def _write_data(self, planner: SavePlanner, file_queue: "Queue[Any]") -> Future[list[Any]]:
        """Writes each file by one thread. Torch's own threads lose the errors that occur in one."""
        files = [file_queue.get_nowait() for _ in range(file_queue.qsize())]

        def write(file: tuple[Path, str, list[WriteItem]]) -> list[WriteResult]:
            path, name, items = file
            with path.open("wb") as stream:
                results = [_write_item(stream, name, item, planner) for item in items]
                stream.flush()
                os.fsync(stream.fileno())
            return results

        written: Future[list[Any]] = Future()
        written.set_result([result for part in in_threads(write, files) for result in part])
        return written


def _write_item(stream: BinaryIO, name: str, item: WriteItem, planner: SavePlanner) -> WriteResult:
    begin = stream.tell()
    part = planner.resolve_data(item)
    assert isinstance(part, Tensor)
    # `torch.save` writes all of a storage; by way of numpy a part has one of its own, not a copy.
    torch.save(torch.from_numpy(part.detach().cpu().numpy()), stream)
    length = stream.tell() - begin
    return WriteResult(item.index, length, _StorageInfo(name, begin, length))


def write_problem(directory: Path) -> str:
    """Says why nothing more can be written into a directory; empty if it can, or has gone."""
    try:
        probe_writing(directory, PROBE_BYTES)
        return ""
    except FileNotFoundError:  # another rank has removed it
        return ""
    except OSError as error:
        free = shutil.disk_usage(directory).free / 1e9
        return f"{error.strerror or error} ({directory}, {free:.2f} GB free)"


class Reader(FileSystemReader):
    """Reads a directory whose content nobody vouches for: only numbers are read, never code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Reads the index. Raises CheckpointError if it names what an index has no use for."""
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _IndexUnpickler(file, path).load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}") from error
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise CheckpointError(f"{path} is not the index of a checkpoint")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._stored = metadata.state_dict_metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            name = self.storage_data[item.storage_index].relative_path
            by_file.setdefault(name, []).append(item)

        def read(name: str) -> None:
            if Path(name).name != name:
                raise CheckpointError(f"the index of {self.path} names a file elsewhere: {name}")
            items = sorted(by_file[name], key=lambda i: self.storage_data[i.storage_index].offset)
            with (Path(self.path) / name).open("rb", buffering=0) as file:
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    self._read_item(file, item, target)

        for _ in in_threads(read, by_file):
            pass
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_item(self, file: BinaryIO, item: ReadItem, target: Tensor) -> None:
        """Fills the target with a box of a stored tensor, some of the stored rows at a time."""
        sizes, dtype = self._of_stored(item)
        begin = self._first_byte(file, item, sizes.numel() * dtype.itemsize)
        rows, row_bytes = item.lengths[0], math.prod(sizes[1:]) * dtype.itemsize
        direct = (
            item.lengths[1:] == sizes[1:]
            and target.dtype == dtype
            and target.device.type == "cpu"
            and target.is_contiguous()
        )
        step = max(1, rows if direct else PIECE_BYTES // row_bytes)
        for start in range(0, rows, step):
            into = target.narrow(0, start, min(step, rows - start))
            file.seek(begin + (item.storage_offsets[0] + start) * row_bytes)
            if direct:
                _fill(file, into)
                continue
            piece = torch.empty((len(into), *sizes[1:]), dtype=dtype)
            _fill(file, piece)
            for axis in range(1, len(sizes)):
                piece = piece.narrow(axis, item.storage_offsets[axis], item.lengths[axis])
            into.copy_(piece)

    def _of_stored(self, item: ReadItem) -> tuple[torch.Size, torch.dtype]:
        """Returns the shape and the type of the stored tensor that an item is a box of."""
        entry, index = self._stored[item.storage_index.fqn], item.storage_index
        assert isinstance(entry, TensorStorageMetadata)
        sizes = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset)
        return sizes, entry.properties.dtype

    def _first_byte(self, file: BinaryIO, item: ReadItem, size: int) -> int:
        """Returns the byte at which a stored tensor's numbers begin.

        The numbers are one record of an archive, as `torch.save` writes it. Raises CheckpointError
        if the archive is shorter than the tensor.
        """
        place = self.storage_data[item.storage_index]
        archive = torch._C.PyTorchFileReader(self._slice_file(file, place))
        begin = int(archive.get_record_offset("data/0"))  # type: ignore[attr-defined]
        if begin + size > place.length:
            raise CheckpointError(f"{file.name}: '{item.storage_index.fqn}' is cut short")
        return int(place.offset) + begin


def _fill(file: BinaryIO, tensor: Tensor) -> None:
    """Reads as many bytes as a contiguous tensor has."""
    numbers: Any = tensor.view(-1).view(torch.uint8).numpy()
    bytes_left = memoryview(numbers)
    while bytes_left:
        count = file.readinto(bytes_left)  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{file.name} is cut short")
        bytes_left = bytes_left[count:]


class _IndexUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if name not in _INDEX_IS_MADE_OF.get(module, ()):
            raise CheckpointError(
                f"{self._path} asks for {module}.{name}, which no index of a checkpoint does: it "
                "was tampered with, and nothing of it was run"
            )
        return super().find_class(module, name)
