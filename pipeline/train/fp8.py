"""Whether a run can multiply in FP8: what its configuration, its machine and its GPU say."""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.model.fp8 import fp8_product
from esolm.model.layers import Product
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.fp8 import capability_problem, refusal
from esolm.pipeline.run.sections import TrainSection
from esolm.pipeline.train.piece_probe import noise

TOLERANCE = 0.1
"""Of the norm of a product or gradient: rounding to 3 bits of mantissa takes 0.03 to 0.06 of it."""
TOKENS = (64, 96)


def check_fp8(train: TrainSection) -> None:
    """Raises ConfigError if a run asks for products in FP8 on a machine that cannot have them.

    What a GPU lacks its rank says: to ask would take memory of it.
    """
    if train.fp8 == "none":
        return
    if problem := _missing("cuda" if torch.cuda.device_count() else "cpu"):
        raise ConfigError(refusal(train.fp8, problem))


def prove_fp8(train: TrainSection, device: torch.device, model: ModelConfig) -> None:
    """Raises ConfigError if a run asks for products in FP8 and this rank cannot take them."""
    if train.fp8 == "none":
        return
    problem = _missing(device.type) or _lacks(train.fp8, device)
    if not problem:
        error = fp8_error(train.fp8, device, model)
        problem = "" if error <= TOLERANCE else f"its products are off by {error:.2g} of their norm"
    if problem:
        raise ConfigError(refusal(train.fp8, problem))


def fp8_error(recipe: str, device: torch.device, model: ModelConfig) -> float:
    """Returns how far a product and its gradients are from those in bf16, over their norms."""
    errors = []
    try:
        for tokens in TOKENS:
            shapes = (tokens, model.hidden_size), (model.ffn_hidden_size, model.hidden_size)
            given = [
                noise(shape, device, seed).bfloat16().requires_grad_()
                for seed, shape in enumerate(shapes)
            ]
            results = [_product(multiply, given) for multiply in (fp8_product(recipe), F.linear)]
            pairs = [
                [each.detach().float() for each in pair] for pair in zip(*results, strict=True)
            ]
            errors += [(found - expected).norm() / expected.norm() for found, expected in pairs]
    finally:
        torch._dynamo.reset()  # the graphs of a run are made for its own lengths first
    return float(torch.stack(errors).max())


def _product(multiply: Product, given: list[Tensor]) -> list[Tensor]:
    out = multiply(given[0], given[1], None)
    upstream = noise(tuple(out.shape), out.device, 2).to(out.dtype)
    return [out, *torch.autograd.grad(out, given, upstream)]


def _missing(device: str) -> str:
    """Says what there is not, of torchao and a GPU; "" if both are there."""
    if find_spec("torchao") is None:
        return "torchao is not installed: pip install 'esolm[fp8]'"
    return "" if device == "cuda" else "it needs a GPU, and there is none that this run may use"


def _lacks(recipe: str, device: torch.device) -> str:
    """Says what a GPU lacks for a recipe; "" if nothing."""
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return capability_problem(recipe, name, capability)
