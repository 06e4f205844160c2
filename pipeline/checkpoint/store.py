"""Stores fragments by torch.distributed.checkpoint: every rank writes and reads its own boxes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from esolm.pipeline.checkpoint.files import Reader, Writer
from esolm.pipeline.errors import CheckpointError
from esolm.pipeline.parallel.fragments import Box, Fragment


def write(directory: Path, fragments: list[Fragment], group: dist.ProcessGroup | None) -> None:
    """Writes this rank's fragments; collective over the group (of all ranks)."""
    planner = _SavePlanner(_boxed([f for f in fragments if f.writes]))
    with _told_plainly(f"write {directory}"):
        save({}, storage_writer=Writer(directory), planner=planner, process_group=group)


def read(directory: Path, fragments: list[Fragment], group: dist.ProcessGroup | None) -> None:
    """Fills this rank's fragments in place; collective over the group (of all ranks)."""
    planner = _LoadPlanner(_boxed(fragments))
    with _told_plainly(f"read {directory}"):
        load({}, storage_reader=Reader(directory), planner=planner, process_group=group)


@contextmanager
def _told_plainly(attempt: str) -> Iterator[None]:
    """Turns what torch raises for a failure on any rank, a BaseException, into CheckpointError."""
    try:
        yield
    except CheckpointException as error:
        reasons = "; ".join(f"rank {rank}: {why[0]}" for rank, why in error.failures.items())
        raise CheckpointError(f"could not {attempt}: {reasons}") from error


def read_full(directory: Path, state: str) -> dict[str, Tensor]:
    """Reads every parameter's full tensor of one state, by name, in this process alone."""
    reader = Reader(directory)
    prefix = f"{state}/"
    tensors = {
        key: torch.empty(entry.size)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    with _told_plainly(f"read {directory}"):
        load(tensors, storage_reader=reader, no_dist=True)
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


_OTHER_NETWORK = "the model configuration is not the one it was trained with"

# By key: the full shape, the box, and its part of the fragment as a view of the box's shape
_Boxes = dict[MetadataIndex, tuple[tuple[int, ...], Box, Tensor]]


def _boxed(fragments: list[Fragment]) -> _Boxes:
    boxes: _Boxes = {}
    for fragment in fragments:
        for box in fragment.boxes():
            for state, flat in fragment.states.items():
                view = flat.narrow(0, box.start, box.numel).view(box.sizes)
                index = MetadataIndex(f"{state}/{fragment.name}", torch.Size(box.offsets))
                boxes[index] = (fragment.full_shape, box, view)
    return boxes


class _SavePlanner(DefaultSavePlanner):
    def __init__(self, boxes: _Boxes) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.boxes = boxes

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(
            [
                WriteItem(
                    index=index,
                    type=WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        chunk=ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)),
                        properties=TensorProperties(dtype=view.dtype),
                        size=torch.Size(full_shape),
                    ),
                )
                for index, (full_shape, box, view) in self.boxes.items()
            ]
        )
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.boxes[MetadataIndex(index.fqn, index.offset)][2]


class _LoadPlanner(DefaultLoadPlanner):
    def __init__(self, boxes: _Boxes) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.boxes = boxes

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        items = []
        for index, (full_shape, box, _) in self.boxes.items():
            entry = saved.get(index.fqn)
            if not isinstance(entry, TensorStorageMetadata):
                raise CheckpointError(f"the checkpoint holds no '{index.fqn}'; {_OTHER_NETWORK}")
            if tuple(entry.size) != full_shape:
                raise CheckpointError(
                    f"'{index.fqn}' has the shape {tuple(entry.size)} in the checkpoint, but the "
                    f"network needs {full_shape}; {_OTHER_NETWORK}"
                )
            chunk = ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))
            items += create_read_items_for_chunk_list(index.fqn, entry, [chunk])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.boxes[MetadataIndex(index.fqn, index.offset)][2]
