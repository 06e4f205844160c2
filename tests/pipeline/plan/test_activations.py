"""The plan's activations and logits against what a forward and backward pass leave behind."""

from typing import Any

import pytest
import torch

from esolm.model.config import ModelConfig
from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from esolm.model.objectives import MDLM, AutoRegressive, Objective, SampleKeys
from esolm.model.recompute import set_recompute
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.parallel.single import single_process
from esolm.pipeline.plan.activations import Activations, MicroBatchShape
from tests.dist.plan_worker import LiveBytes
from tests.model.conftest import ARCHITECTURES

ROWS, LENGTH, VOCABULARY = 4, 128, 1000
OBJECTIVES: dict[str, Objective] = {"ar": AutoRegressive(0), "mdlm": MDLM(3)}
TOLERANCE = 0.15


def forward_and_backward(
    model: ModelConfig, objective: Objective, precision: str, mode: str
) -> int:
    """Most bytes beyond the weights and their gradients at any moment."""
    network = Network(model, single_process()).to(
        torch.bfloat16 if precision == "bf16" else torch.float32
    )
    set_recompute(network, mode)
    gradients = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient
    index = torch.arange(ROWS).numpy()
    keys = SampleKeys(1, index, index, ROWS)
    tokens = torch.randint(4, VOCABULARY, (ROWS, LENGTH))
    inputs, targets = objective.corrupt(tokens, keys)
    everywhere = torch.ones_like(targets.weights)  # the plan counts rows that are masked whole
    with LiveBytes([*network.parameters(), *gradients]) as live:
        hidden = network((inputs.tokens, inputs.positions, inputs.rows()))
        scored = type(targets)(targets.labels, everywhere).sparse()
        weighted_loss(network.head, hidden, scored).backward()
    return live.peak


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_passes_memory_is_planned(
    name: str, architecture: str, precision: str, mode: str
) -> None:
    sizes: dict[str, Any] = {"hidden_size": 96, "num_layers": 6, "num_heads": 4}
    model = ModelConfig(
        vocab_size=VOCABULARY,
        mask_id=3,
        ffn_hidden_size=384,
        cond_dim=16,
        **{**sizes, **ARCHITECTURES[architecture]},
    )
    objective = OBJECTIVES[name]
    shape = MicroBatchShape.of(objective.work(LENGTH)[0], ROWS)
    layout = Layout(1, 1, 1, 1)
    plan = Activations(model, layout, precision, mode)
    kept = plan.kept(shape, (0, model.num_layers + 2), 0, 1)
    planned = kept + max(plan.working(shape), plan.logits(shape))
    measured = forward_and_backward(model, objective, precision, mode)
    assert planned == pytest.approx(measured, rel=TOLERANCE)
