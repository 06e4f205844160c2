"""The table of tensors against the parameters that a tensor-parallel rank holds."""

from pathlib import Path

import pytest

from esolm.model.tensors import TensorSpec, network_tensors
from tests.dist.ranks import run_ranks
from tests.model.conftest import every_architecture


@pytest.mark.check
@pytest.mark.dist
def test_every_architecture_is_split_as_the_table_says(tmp_path: Path) -> None:
    """11 ids are padded to 12; both ranks have the one head of keys and values."""
    layout = {"tp": 2, "pp": 1, "dp": 1, "zero": 1}
    found = run_ranks("parameters", 2, layout, tmp_path, 120, module="tests.dist.tensors_worker")
    for config, parameters in zip(every_architecture(), found, strict=True):
        assert parameters == [
            [tensor.name, local_shape(tensor), tensor.split_over(2)]
            for tensor in network_tensors(config).values()
        ], config


def local_shape(tensor: TensorSpec) -> list[int]:
    return [
        -(-size // 2) if dimension == tensor.split_over(2) else size
        for dimension, size in enumerate(tensor.shape)
    ]
