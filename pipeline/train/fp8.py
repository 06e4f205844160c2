"""Whether a run can multiply in FP8: what its configuration, its machine and its GPU say."""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.model.fp8 import fp8_product
from esolm.model.layers import Product
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.sections import TrainSection
from esolm.pipeline.train.piece_probe import noise

TOLERANCE = 0.1
"""Of the norm of a product or gradient: rounding to 3 bits of mantissa takes 0.03 to 0.06 of it."""
TOKENS = (64, 96)


def prove_fp8(train: TrainSection, device: torch.device, model: ModelConfig) -> None:
    """Raises ConfigError if a run asks for products in FP8 and this rank cannot take them."""
    if train.fp8 == "none":
        return
    problem = _lacks(train.fp8, device)
    if not problem:
        error = fp8_error(train.fp8, device, model)
        problem = "" if error <= TOLERANCE else f"its products are off by {error:.2g} of their norm"
    if problem:
        raise ConfigError(f"train.fp8={train.fp8}: {problem}. Set train.fp8=none to train in bf16")


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


def _lacks(recipe: str, device: torch.device) -> str:
    """Says what a machine lacks for a recipe; "" if it has everything."""
    if find_spec("torchao") is None:
        return "torchao is not installed: pip install 'esolm[fp8]'"
    major, minor = needed = (8, 9) if recipe == "tensorwise" else (9, 0)
    if device.type != "cuda":
        return f"it needs a GPU of compute capability {major}.{minor}, and this rank has a CPU"
    found = torch.cuda.get_device_capability(device)
    if found < needed:
        name = torch.cuda.get_device_name(device)
        return f"it needs compute capability {major}.{minor}, and {name} has {found[0]}.{found[1]}"
    return ""
