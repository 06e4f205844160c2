"""A pass over a micro-batch launches work and waits for none of it.

On the meta device there are no values: what would read one of a GPU's, and so wait for it, raises.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esolm.model.columns import note_first_row
from esolm.model.inputs import without_idle
from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, Objective, SampleKeys
from esolm.model.recompute import set_recompute
from esolm.pipeline.parallel.single import single_process
from tests.model.conftest import ARCHITECTURES, MASK_ID, small_config

ROWS, LENGTH = 4, 12
OBJECTIVES: dict[str, Objective] = {
    "esolm_a": EsoLM(MASK_ID, alpha_0=0.5, kappa=0.5, variant="A"),
    "esolm_b": EsoLM(MASK_ID, alpha_0=0.5, kappa=0.5),
    "mdlm": MDLM(MASK_ID),
    "bd3lm": BD3LM(MASK_ID, block_size=4),
    "ar": AutoRegressive(0),
}


class CopiesToDevice(TorchDispatchMode):
    """Names what copies a tensor of the host to the device; numbers are no tensors there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        on_host = any(tensor.device.type == "cpu" and tensor.ndim for tensor in tensors)
        if on_host and isinstance(result, torch.Tensor) and result.is_meta:
            self.found.append(str(function))
        return result


@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_pass_waits_for_nothing(name: str, architecture: str, mode: str) -> None:
    config = small_config(dropout=0.1, **ARCHITECTURES[architecture])
    parallel = single_process()
    with torch.device("meta"):
        network = Network(config, parallel).train()
    set_recompute(network, mode)
    for first in (0, ROWS):
        slots = np.arange(first, first + ROWS)
        keys = SampleKeys(5, slots, slots, 2 * ROWS)
        tokens = torch.randint(4, 11, (ROWS, LENGTH))
        inputs, targets = without_idle(*OBJECTIVES[name].corrupt(tokens, keys), 1)
        on_host = (inputs.tokens, inputs.positions, inputs.rows())
        fed = tuple(tensor.to("meta") for tensor in on_host)
        scored = tuple(tensor.to("meta") for tensor in targets.sparse())
        note_first_row(fed[2], on_host[2][0].tolist())
        for _ in range(2):  # what is made once per run, as tables of frequencies, comes first
            with CopiesToDevice() as copies:
                weighted_loss(network.head, network(fed), scored).backward()  # type: ignore[arg-type]
        assert copies.found == []


def test_a_row_that_nobody_noted_is_read() -> None:
    """Which is what a stage does that gets its rows from another."""
    network = Network(small_config(), single_process())
    rows = torch.zeros(2, 6, dtype=torch.int64, device="meta")
    with pytest.raises(NotImplementedError):
        network.blocks[0].masks(rows, LENGTH)  # type: ignore[operator]
