"""Files of a checkpoint: any boxes out of any boxes, several files, hostile and damaged ones."""

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem

from esolm.pipeline.checkpoint import files, store
from esolm.pipeline.errors import CheckpointError
from esolm.pipeline.parallel.fragments import Fragment

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHAPES = {"matrix": (10, 6), "vector": (7,), "wide": (3, 50)}


def full_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def split(full: dict[str, Tensor], columns: int, parts: int) -> list[Fragment]:
    """Fragments as of tensor-parallel ranks that split columns, each split flat into parts."""
    fragments = []
    for name, tensor in full.items():
        width = tensor.shape[-1] // columns if tensor.dim() == 2 else tensor.shape[-1]
        for local in tensor.split(width, dim=-1):
            offset = (
                0,
                sum(f.local_shape[-1] for f in fragments if f.name == name and not f.start),
            )
            flat, start = local.flatten(), 0
            for piece in flat.tensor_split(parts):
                place = offset if tensor.dim() == 2 else (0,)
                states = {"weights": piece.clone()}
                shape = tuple(local.shape)
                fragments.append(
                    Fragment(name, tuple(tensor.shape), shape, place, start, states, True)
                )
                start += piece.numel()
    return fragments


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("read", [(1, 1), (2, 1), (1, 3), (2, 5)])
@pytest.mark.parametrize("written", [(1, 1), (2, 1), (1, 3), (2, 5)])
def test_any_boxes_are_read_from_any_boxes(
    written: tuple[int, int], read: tuple[int, int], small: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Small: in many files, and rows that do not fit in one piece."""
    if small:
        monkeypatch.setattr(files, "FILE_BYTES", 100)
        monkeypatch.setattr(files, "PIECE_BYTES", 48)
    store.write(tmp_path, split(full_tensors(), *written), None)
    assert (len(list(tmp_path.glob("__0_*"))) > 3) == small
    expected = split(full_tensors(), *read)
    found = split({name: torch.zeros(shape) for name, shape in SHAPES.items()}, *read)
    store.read(tmp_path, found, None)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.states["weights"], other.states["weights"]), one
    full = store.read_full(tmp_path, "weights")
    assert all(torch.equal(full[name], tensor) for name, tensor in full_tensors().items())


def test_what_goes_wrong_in_one_thread_fails_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def full_disk(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("__0_2.distcp"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(files, "FILE_BYTES", 100)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        store.write(tmp_path, split(full_tensors(), 2, 5), None)


class Exploit:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_an_index_that_would_run_a_program_runs_none(tmp_path: Path) -> None:
    folder, canary = tmp_path / "checkpoint", tmp_path / "canary"
    fragments = split(full_tensors(), 1, 1)
    store.write(folder, fragments, None)
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.planner_data = Exploit(canary)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    for attempt in (
        lambda: store.read(folder, fragments, None),
        lambda: store.read_full(folder, "weights"),
    ):
        with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system"):
            attempt()
    assert not canary.exists()


@pytest.mark.parametrize("damage", ["cut", "elsewhere", "no pickle", "no index"])
def test_a_damaged_index_or_file_is_named(damage: str, tmp_path: Path) -> None:
    fragments = split(full_tensors(), 1, 1)
    store.write(tmp_path / "checkpoint", fragments, None)
    index_file, file = tmp_path / "checkpoint/.metadata", tmp_path / "checkpoint/__0_0.distcp"
    index = pickle.loads(index_file.read_bytes())
    if damage == "cut":
        os.truncate(file, file.stat().st_size // 2)
        expected = "could not read"
    elif damage == "elsewhere":
        for place in index.storage_data.values():
            place.relative_path = "../outside"
        (tmp_path / "outside").write_bytes(file.read_bytes())
        index_file.write_bytes(pickle.dumps(index))
        expected = "names a file elsewhere: ../outside"
    elif damage == "no pickle":
        index_file.write_bytes(b"not a pickle")
        expected = "is damaged"
    else:
        index_file.write_bytes(pickle.dumps({}))
        expected = "is not the index of a checkpoint"
    with pytest.raises(CheckpointError, match=expected):
        store.read(tmp_path / "checkpoint", fragments, None)


def test_threads_that_write_need_no_device_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU torch reads ahead, by a thread's current device: 0, whatever the rank's is."""

    def reads_ahead(*_: Any, **__: Any) -> None:
        raise AssertionError("torch reads ahead")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(filesystem, "_get_available_device_type", lambda: "cuda")
    monkeypatch.setattr(filesystem._OverlappingCpuLoader, "__init__", reads_ahead)
    full = full_tensors()
    store.write(tmp_path, split(full, 2, 3), None)
    monkeypatch.undo()
    read = store.read_full(tmp_path, "weights")
    assert all(torch.equal(read[name], tensor) for name, tensor in full.items())


def test_what_keeps_a_file_from_being_written_is_named(tmp_path: Path) -> None:
    assert files.write_problem(tmp_path) == ""
    assert not list(tmp_path.iterdir())
    assert files.write_problem(tmp_path / "gone") == "", "which hides no other reason"
