"""The plan's activations and logits against what a forward and backward pass leave behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import parallel_state

from esolm.model.config import RECOMPUTE, ModelConfig
from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from esolm.model.objectives import MDLM, AutoRegressive, Objective, SampleKeys
from esolm.model.recompute import set_recompute
from esolm.pipeline.parallel.bootstrap import initialize_groups
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.parallel.module import parallel_config
from esolm.pipeline.parallel.single import single_process
from esolm.pipeline.plan.activations import Activations, MicroBatchShape
from tests.dist import workers
from tests.dist.plan_worker import LiveBytes
from tests.dist.ranks import run_ranks
from tests.model.conftest import ARCHITECTURES

ROWS, LENGTH, VOCABULARY = 4, 128, 1000
OBJECTIVES: dict[str, Objective] = {"ar": AutoRegressive(0), "mdlm": MDLM(3)}
TOLERANCE = 0.15
ALONE, CP2 = Layout(1, 1, 1, 1), Layout(1, 1, 1, 1, cp=2)


def forward_and_backward(
    model: ModelConfig, objective: Objective, precision: str, mode: str, layout: Layout = ALONE
) -> int:
    """Most bytes beyond the weights and their gradients at any moment, on a rank of a layout."""
    if layout == ALONE:
        single_process()
    network = Network(model, parallel_config(layout)).to(
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
        held = type(targets)(targets.labels, everywhere).part(0, layout.cp)
        scored = held.sparse()
        weighted_loss(network.head, hidden, scored).backward()
    return live.peak


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_passes_memory_is_planned(
    name: str, architecture: str, precision: str, mode: str
) -> None:
    model, objective = model_of(architecture), OBJECTIVES[name]
    measured = forward_and_backward(model, objective, precision, mode)
    assert planned(model, objective, precision, mode) == pytest.approx(measured, rel=TOLERANCE)


def model_of(architecture: str) -> ModelConfig:
    sizes: dict[str, Any] = {"hidden_size": 96, "num_layers": 6, "num_heads": 4}
    return ModelConfig(
        vocab_size=VOCABULARY,
        mask_id=3,
        ffn_hidden_size=384,
        cond_dim=16,
        **{**sizes, **ARCHITECTURES[architecture]},
    )


def planned(
    model: ModelConfig, objective: Objective, precision: str, mode: str, layout: Layout = ALONE
) -> int:
    shape = MicroBatchShape.of(objective.work(LENGTH)[0], ROWS, layout.cp)
    plan = Activations(model, layout, precision, mode)
    kept = plan.kept(shape, (0, model.num_layers + 2), 0, 1)
    return kept + max(plan.working(shape), plan.logits(shape))


CONTEXT = [
    {"name": "ar", "architecture": architecture, "precision": precision, "mode": mode}
    for architecture in ARCHITECTURES
    for precision in ("fp32", "bf16")
    for mode in RECOMPUTE
]


def context_passes(cases: list[dict[str, str]]) -> Any:
    """Per case, on two context-parallel ranks, what `forward_and_backward` finds on the first."""
    parallel_state.destroy_model_parallel()
    initialize_groups(CP2)
    return [
        forward_and_backward(
            model_of(case["architecture"]), OBJECTIVES[case["name"]], case["precision"],
            case["mode"], CP2,
        )
        for case in cases
    ]  # fmt: skip


@pytest.mark.dist
@pytest.mark.check
def test_a_passes_memory_is_planned_where_ranks_share_the_tokens(tmp_path: Path) -> None:
    found = run_ranks("context_passes", 2, CONTEXT, tmp_path, 200, __name__)
    wrong = []
    for case, measured in zip(CONTEXT, found, strict=True):
        model, objective = model_of(case["architecture"]), OBJECTIVES[case["name"]]
        expected = planned(model, objective, case["precision"], case["mode"], CP2)
        if expected != pytest.approx(measured, rel=TOLERANCE):
            wrong.append(f"{case}: {expected} planned, {measured} measured")
    assert wrong == []


if __name__ == "__main__":
    workers.main(globals())
