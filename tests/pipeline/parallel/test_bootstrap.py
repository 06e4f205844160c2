"""Which device a rank takes."""

import os

import pytest
import torch

from pipeline.demo import use_cpu_without_enough_gpus
from pipeline.errors import ConfigError
from pipeline.parallel.bootstrap import check_gpus, device_of, process_info


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
