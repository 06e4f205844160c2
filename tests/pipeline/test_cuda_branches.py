"""What only CUDA takes, reached on a CPU by replacing one function.

Others of the kind are beside what they belong to: devices and ranks in parallel/test_bootstrap.py,
the checkpoint's readers and writers in checkpoint/test_files.py, kernels in train/test_kernels.py,
FlexAttention by its eager form in tests/gpu.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._C._distributed_c10d as c10d
from torch.profiler import ProfilerActivity

from esolm.model.attention import FLEX_BLOCK, AttentionPattern, MaskBuilder
from esolm.model.inputs import NetworkInput
from esolm.model.kernels import Kernels, use_kernels
from esolm.pipeline import generate
from esolm.pipeline.checkpoint.staging import Staging
from esolm.pipeline.data.batches import SKIP_MULTIPLE, skip_multiple
from esolm.pipeline.parallel.flight_recorder import dump_collectives, trace_prefix
from esolm.pipeline.parallel.fragments import Fragment
from esolm.pipeline.parallel.to_device import to_device
from esolm.pipeline.run.hardware import peak_flops
from esolm.pipeline.slurm import bandwidth
from esolm.pipeline.train import profiling
from esolm.pipeline.train.measures import Measures

CUDA = torch.device("cuda", 0)


class OnCuda(torch.Tensor):
    """A tensor of the CPU that says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize("flex", [True, False])
def test_masks_of_a_gpu_are_blocks_where_the_kernel_is_proved(flex: bool) -> None:
    tokens = torch.zeros(2, 256, dtype=torch.int64)
    rows = NetworkInput(
        tokens, tokens, AttentionPattern.TWO_STREAM, torch.zeros(2).long(), torch.zeros(2).long()
    ).rows()
    try:
        use_kernels(Kernels(flex_attention=flex, two_streams=True))
        mask = MaskBuilder()(rows.as_subclass(OnCuda), 256)
        # Each length is a kernel to compile: the noised stream loses whole blocks of it.
        assert skip_multiple() == (FLEX_BLOCK if flex else SKIP_MULTIPLE)
    finally:
        use_kernels(Kernels())
    assert (mask.block is not None) is flex
    assert (mask.dense is not None) is not flex


def test_saves_from_a_gpu_are_copied_into_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    empty = torch.empty

    def record(*shape: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", record)
    for source in (torch.ones(3), torch.ones(3).as_subclass(OnCuda)):
        fragment = Fragment("name", (3,), (3,), (0,), 0, {"weights": source}, True)
        copied = Staging().copy([fragment])[0].states["weights"]
        assert copied.tolist() == [1.0, 1.0, 1.0]
    assert pinned == [False, True]


def test_what_is_pinned_for_a_step_lies_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expanded tensors cannot be pinned; slices of rows would be copied while the host waits."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    for tensor in (torch.arange(6).expand(4, 6), torch.arange(24).view(4, 6)[:, 2:]):
        assert torch.equal(to_device(tensor, torch.device("cuda")), tensor)
    assert [tensor.is_contiguous() for tensor in pinned] == [True, True]


def test_the_record_of_a_hang_is_nccls_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c10d, "_dump_nccl_trace", lambda: b"of NCCL", raising=False)
    monkeypatch.setattr(c10d, "_dump_fr_trace", lambda: b"of gloo")
    for rank, device in enumerate((torch.device("cpu"), CUDA)):
        dump_collectives(tmp_path, rank, device)
    prefix = trace_prefix(tmp_path).name
    assert (tmp_path / f"{prefix}0").read_bytes() == b"of gloo"
    assert (tmp_path / f"{prefix}1").read_bytes() == b"of NCCL"


def test_the_peak_of_memory_is_that_since_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {CUDA: [7, 5]}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[device][0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks[device].pop(0))
    on_gpu: Any = SimpleNamespace(device=CUDA)
    assert [Measures._peak_memory(on_gpu), Measures._peak_memory(on_gpu)] == [7, 5]
    on_cpu: Any = SimpleNamespace(device=torch.device("cpu"))
    assert Measures._peak_memory(on_cpu) == "n/a"


def test_the_peak_of_operations_is_that_of_the_gpu_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(CUDA) == 989e12
    assert peak_flops(torch.device("cpu")) is None


def test_a_profile_has_the_kernels_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[ProfilerActivity]] = []

    def profile(activities: list[ProfilerActivity], record_shapes: bool) -> Any:
        asked.append(activities)
        return SimpleNamespace(start=lambda: None)

    monkeypatch.setattr(profiling, "profile", profile)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        profiling.StepProfiler(range(1, 2), tmp_path / "trace.json").before(1)
    assert asked == [[ProfilerActivity.CPU], [ProfilerActivity.CPU, ProfilerActivity.CUDA]]


def test_bandwidth_is_taken_when_the_gpu_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", finished.append)
    bandwidth._finish(torch.device("cpu"))
    bandwidth._finish(CUDA)
    assert finished == [CUDA]


def test_text_is_written_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert generate.decoding_device() == torch.device(device)
