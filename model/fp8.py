"""Matrix products of the blocks in FP8, by torchao's recipes for training.

Inputs, weights and gradients are scaled and rounded to 8 bits just before they are multiplied;
sums, outputs, weights, the head and all else are what they are without. See docs/training.md.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from esolm.model.compiling import piece
from esolm.model.config import FP8_MULTIPLE
from esolm.model.layers import (
    ColumnLinear,
    GroupedProjection,
    Product,
    RowLinear,
    WholeLinear,
)
from esolm.model.network import Block


def set_fp8(module: nn.Module, recipe: str) -> None:
    """Has the linear layers of the blocks in a module multiply in FP8; `none`: not.

    Raises ImportError without torchao.
    """
    if recipe == "none":
        return
    multiply = fp8_product(recipe)
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    for part in (part for block in blocks for part in block.modules()):
        if isinstance(part, (ColumnLinear, GroupedProjection, RowLinear, WholeLinear)):
            part.multiply = multiply


@cache
def fp8_product(recipe: str) -> Product:
    """Returns what takes the place of `F.linear`: (inputs [T, D], weight [F, D], bias) -> [T, F].

    recipe: of `FP8_RECIPES`. There is one product for each, so its graphs serve all layers.
    """
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args

    config = Float8LinearConfig.from_recipe_name(recipe)
    # Only a layer of torchao's knows what its products are called with.
    layer = Float8Linear(FP8_MULTIPLE, FP8_MULTIPLE, bias=False, device="meta", config=config)
    settings = layer.linear_mm_config, config

    @torch._dynamo.allow_in_graph
    class ByRecipe(torch.autograd.Function):
        """torchao's product, but that it keeps the weight itself for the backward pass.

        That one keeps a view, which under ZeRO-3 would hold on to what was gathered.
        """

        @staticmethod
        def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(inputs, weight)
            out: Tensor = matmul_with_hp_or_float8_args.forward(
                _Kept(), inputs, weight.t(), *settings
            )
            return out

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            inputs, weight = ctx.saved_tensors
            kept = _Kept((inputs, weight.t()), *settings)
            of_inputs, of_weight, *_ = matmul_with_hp_or_float8_args.backward(kept, gradient)
            return of_inputs, of_weight.t()

    @piece
    def multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = ByRecipe.apply(inputs, weight)  # type: ignore[no-untyped-call]
        return out if bias is None else out + bias.to(out.dtype)

    return multiply


@dataclass
class _Kept:
    """What a product of torchao's finds in its context."""

    saved_tensors: tuple[Tensor, ...] = ()
    linear_mm_config: Any = None
    config: Any = None

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors
