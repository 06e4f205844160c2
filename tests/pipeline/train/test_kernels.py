"""Kernels are proved before they are used, and left out by name where off or unable to run."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module

from esolm.model import attention
from esolm.model.attention import AttentionPattern, MaskBuilder
from esolm.model.config import ModelConfig
from esolm.model.inputs import NetworkInput
from esolm.model.kernels import Kernels, kernels_in_use, use_kernels
from esolm.model.layers import norm_kernel
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.optimizer import EmaAdamW
from esolm.pipeline.run.sections import TrainSection
from esolm.pipeline.slurm.health import kernel_problems
from esolm.pipeline.train.compiled import refuse_if_strict
from esolm.pipeline.train.kernels import Finding, choose_kernels, kernels_of, prove_kernels

CPU = torch.device("cpu")
MODEL = ModelConfig(vocab_size=8, mask_id=7, hidden_size=64, num_heads=2)

APEX = """
import torch.nn.functional as F

def fused_layer_norm(input, normalized_shape, eps):
    return {factor} * F.layer_norm(input, normalized_shape, eps=eps)

def fused_rms_norm(input, normalized_shape, eps):
    return {factor} * F.rms_norm(input, normalized_shape, eps=eps)
"""


@pytest.fixture(autouse=True)
def _the_usual_choice_afterwards() -> Iterator[None]:
    yield
    use_kernels(Kernels())


def prove(*names: str) -> dict[str, Finding]:
    return prove_kernels(list(names), CPU, MODEL, torch.float32)


def test_what_a_cpu_has_is_proved_and_what_it_has_not_is_said() -> None:
    assert kernels_of(CPU) == ["fused_adamw", "two_streams"]
    words = choose_kernels(prove(*kernels_of(CPU)))
    assert words["fused_adamw"] == "proved"
    assert words["two_streams"] == "proved"
    assert words["flex_attention"] == "needs CUDA; dense masks serve"
    assert kernels_in_use() == Kernels(flex_attention=False, apex_norm=False)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_pieces_are_proved_where_they_are_asked_for(norm: str, dtype: torch.dtype) -> None:
    model = replace(MODEL, norm=norm, dropout=0.3, activation="swiglu")
    names = kernels_of(CPU, "aot_eager")
    assert names == ["fused_adamw", "two_streams", "compiled"]
    words = choose_kernels(prove_kernels(names, CPU, model, dtype, "aot_eager"), "aot_eager")
    assert words["compiled"] == "proved"
    assert kernels_in_use().compiled == "aot_eager"
    assert choose_kernels(prove("fused_adamw"), "")["compiled"] == "not asked for"
    assert kernels_in_use().compiled == ""


def test_a_backend_that_computes_wrongly_is_left_out_and_strict_runs_end() -> None:
    def twice(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        return lambda *tensors: [2 * out for out in graph(*tensors)]

    torch._dynamo.register_backend(twice, name="twice")
    found = prove_kernels(["compiled"], CPU, MODEL, torch.float32, "twice")
    assert found["compiled"].off
    words = choose_kernels(found, "twice")
    assert kernels_in_use().compiled == ""
    refuse_if_strict(TrainSection(compile="always"), words)
    with pytest.raises(ConfigError, match="strict, and compiled pieces were left out: off by"):
        refuse_if_strict(TrainSection(compile="strict"), words)


def test_a_kernel_that_is_off_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch._fused_adamw_

    def twice_the_rate(*tensors: Any, lr: float, **options: Any) -> None:
        right(*tensors, lr=2 * lr, **options)

    monkeypatch.setattr(torch, "_fused_adamw_", twice_the_rate)
    (finding,) = prove("fused_adamw").values()
    assert finding.off
    assert kernel_problems(CPU, 32), "a node that computes so is unfit"
    words = choose_kernels({"fused_adamw": finding})
    assert words["fused_adamw"].startswith("left out: off by ")
    assert not kernels_in_use().fused_adamw
    weights = torch.nn.Parameter(torch.ones(4))
    optimizer = EmaAdamW([weights], 0.1, (0.9, 0.99), 1e-8, 0.0, 0.9)
    weights.grad = torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.full((4,), 0.9))


def test_not_a_number_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch._fused_adamw_

    def spoil(parameters: list[torch.Tensor], *tensors: Any, **options: Any) -> None:
        right(parameters, *tensors, **options)
        parameters[0].data[0] = float("nan")

    monkeypatch.setattr(torch, "_fused_adamw_", spoil)
    assert prove("fused_adamw")["fused_adamw"].off


def test_a_kernel_that_cannot_run_is_left_out_and_is_no_fault_of_the_node() -> None:
    """FlexAttention has no gradients on a CPU, as it has none for heads below 16 on a GPU."""
    (finding,) = prove("flex_attention").values()
    assert "FlexAttention" in finding.problem
    assert not finding.off
    words = choose_kernels({"flex_attention": finding})
    assert words["flex_attention"] == f"left out: {finding.problem}"
    assert not kernels_in_use().flex_attention


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_held_against_the_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its eager form, which has gradients on a CPU if it is let."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    monkeypatch.setattr(attention, "compiled_flex", lambda: flex_module.flex_attention)
    assert prove("flex_attention") == {"flex_attention": Finding()}

    def off(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        out: torch.Tensor = flex_module.flex_attention(*tensors, **options)
        return 0.9 * out

    monkeypatch.setattr(attention, "compiled_flex", lambda: off)
    assert prove("flex_attention")["flex_attention"].off


def test_passes_of_two_streams_are_held_against_the_dense_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "attend_noised", lambda q, noised, clean: noised[1])
    (finding,) = prove("two_streams").values()
    assert finding.off
    choose_kernels({"two_streams": finding})
    prefix = torch.zeros(2, dtype=torch.int64)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    rows = NetworkInput(tokens, tokens, AttentionPattern.TWO_STREAM, prefix, prefix).rows()
    assert MaskBuilder()(rows, 8).dense is not None


@pytest.mark.parametrize(("factor", "used"), [(1.0, True), (1.1, False)])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_apex_is_used_where_it_is_right(
    factor: float, used: bool, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a package with the two functions of apex that are called, over PyTorch's own."""
    for folder in ("multi_tensor_apply", "normalization"):
        (tmp_path / "apex" / folder).mkdir(parents=True)
        (tmp_path / "apex" / folder / "__init__.py").touch()
    (tmp_path / "apex" / "__init__.py").touch()
    functions = tmp_path / "apex" / "normalization" / "fused_layer_norm.py"
    functions.write_text(APEX.format(factor=factor))
    monkeypatch.syspath_prepend(tmp_path)
    model = ModelConfig(vocab_size=8, mask_id=7, hidden_size=64, num_heads=2, norm=norm)
    try:
        assert "apex_norm" in kernels_of(torch.device("cuda"))
        choose_kernels(prove_kernels(["apex_norm"], CPU, model, torch.float32))
        assert kernels_in_use().apex_norm is used
        kernel = norm_kernel(norm)
        assert (kernel.__module__ == "apex.normalization.fused_layer_norm") is used
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
            del sys.modules[name]
