"""Which device a rank takes."""

import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from esolm.pipeline.demo import use_cpu_without_enough_gpus
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel import bootstrap
from esolm.pipeline.parallel.bootstrap import check_gpus, device_of, process_info
from esolm.pipeline.parallel.layout import Layout


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def as_rank(monkeypatch: pytest.MonkeyPatch, **variables: int) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_ranks_of_a_launcher_share_no_gpu(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, RANK=1, LOCAL_RANK=1, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2)
    with pytest.raises(ConfigError, match="2 ranks on this machine but 1 GPU: give --ranks 1, or"):
        device_of(process_info())
    check_gpus(1)


def test_a_task_of_srun_may_see_its_own_gpu_alone(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank(monkeypatch, RANK=3, LOCAL_RANK=3, WORLD_SIZE=4)
    assert device_of(process_info()) == torch.device("cuda", 0)


def test_deepspeed_is_told_the_index_of_the_device(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look for GPU 3 of task 3, which has only number 0 in sight."""
    as_rank(monkeypatch, RANK=3, LOCAL_RANK=3, WORLD_SIZE=4)
    made: dict[str, object] = {}
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(bootstrap.c10d, name, getattr(bootstrap.c10d, name))
    monkeypatch.setattr(bootstrap, "join_job", lambda info, backend: made.update(backend=backend))
    monkeypatch.setattr(bootstrap, "initialize_groups", lambda layout: None)
    monkeypatch.setattr(bootstrap, "import_deepspeed", lambda: SimpleNamespace(
        init_distributed=lambda **_: made.update(local_rank=os.environ["LOCAL_RANK"])
    ))  # fmt: skip
    info = process_info()
    bootstrap.initialize_processes(info, Layout(1, 1, 4, 1), device_of(info), timedelta(minutes=1))
    assert made == {"backend": "nccl", "local_rank": "0"}


@pytest.mark.parametrize(("tp", "expected"), [(1, None), (2, "1")])
def test_one_connection_is_for_tensor_parallelism_alone(
    tp: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "to be restored")
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    bootstrap.prepare_for_cuda(Layout(tp, 1, 1, 1))
    assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == expected
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    bootstrap.prepare_for_cuda(Layout(tp, 1, 1, 1))
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8", "a user's own choice stays"


def test_gpus_that_torch_cannot_use_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(bootstrap, "DRIVER_GPUS", tmp_path / "gpus")
    bootstrap.check_build()
    for number in range(2):
        (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"has 2 GPUs, but .* torch .* is built for CPUs"):
        device_of(process_info())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    bootstrap.check_build()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    bootstrap.check_build()


def test_the_device_is_described(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=79 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    described = bootstrap.describe_device(torch.device("cuda", 0))
    assert described.startswith("cuda:0: NVIDIA H100 80GB HBM3, 79.0 GiB, torch ")
    assert bootstrap.describe_device(torch.device("cpu")).startswith("cpu: ")


def test_many_ranks_on_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_gpus(8)


def test_the_demo_leaves_a_single_gpu_alone(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    use_cpu_without_enough_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    use_cpu_without_enough_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
