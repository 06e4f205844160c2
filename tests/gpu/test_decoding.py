"""Texts that are written on a GPU, with CUDA graphs and without, are those of a CPU."""

from typing import Any

import numpy as np
import pytest
import torch

from esolm.pipeline.export.bundle import graphs_esolm
from esolm.pipeline.export.bundle.decoding_esolm import Batch
from tests.gpu.needs import gpus
from tests.pipeline.generate.recorded_graphs import RecordedGraphs
from tests.pipeline.generate.systems import OBJECTIVES, System
from tests.pipeline.generate.test_ragged import SLOTS, some_request, together

ROWS, TEXTS = 4, 12


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpus(1))])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """On a CPU recorded operations stand in for graphs."""
    found = torch.device(request.param)
    if found.type == "cpu":
        monkeypatch.setattr(graphs_esolm, "capture_on", lambda _: RecordedGraphs())
    return found


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_graphs_change_nothing(name: str, device: torch.device) -> None:
    """Token for token in fp32, the passes too. That no graph could be made is an error."""
    model, draws = System(name, torch.float32).model, np.random.default_rng(6)
    requests = [some_request(name, draws) for _ in range(TEXTS)]

    def written(where: Any, **options: Any) -> Any:
        batch = Batch(model.to(where), ROWS, SLOTS, **options)
        return together(batch, requests, np.random.default_rng(7))

    expected = written("cpu")
    assert written(device, rectangles=True, cuda_graphs=False) == expected
    assert written(device, rectangles=True, cuda_graphs=True) == expected


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpus(1))], indirect=True)
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_generate_on_a_gpu(cuda_graphs: bool, device: torch.device) -> None:
    """As `generate` chooses by itself there."""
    model = System("esolm_b", torch.float32).model
    options: dict[str, Any] = {"length": 60, "num_samples": 3, "num_steps": 6, "alpha_0": 0.4,
                               "seed": 5, "top_p": 0.9}  # fmt: skip
    expected = model.generate(**options)
    found = model.to(device).generate(**options, cuda_graphs=cuda_graphs)
    assert found.device.type == device.type
    assert torch.equal(found.cpu(), expected)
