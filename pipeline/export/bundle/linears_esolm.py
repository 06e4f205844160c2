# mypy: ignore-errors
"""Linear layers as a processor multiplies fastest, for decoding: nothing here has gradients.

A pass of few tokens reads every weight once, so their layout and their size are its time. oneDNN
multiplies by weights that were laid out for it beforehand, in fp32 and bf16; or they are int8, each
row with a scale of its own, and so is each token that they are multiplied by.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

# The number of tokens that the layout is made for; it is as good for any other.
TOKENS = 32
INT8_MAX = 127
# A row of zeros has this scale, whose reciprocal is still a number.
SMALLEST = 1e-30


class PackedLinear(nn.Linear):
    """A linear layer with a copy of its weights in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        become(self, linear)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        # oneDNN may round a token that comes alone otherwise than in company, and then a text could
        # depend on its batch. From two on, a token's bits do not depend on how many there are.
        rows = x.expand(2, -1) if len(x) == 1 else x
        out = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return out[: len(x)]


class Int8Linear(nn.Linear):
    """A linear layer whose weights were rounded to int8; it rounds each token as it comes.

    Scales are symmetric, and each row of either has its own, so what a token gives does not depend
    on what else is in the batch.
    """

    def __init__(self, linear: nn.Linear) -> None:
        become(self, linear)
        weight = linear.weight.detach()
        self._parameters = {"weight": None, "bias": linear.bias}
        self.scales = scale_of(weight)[:, 0]
        rounded = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        scale = scale_of(rows)
        # As uint8 around 128, since the kernel is slow with signed tokens; what `to` cuts off is
        # made up for by a half.
        rounded = (rows * scale.reciprocal()).add_(INT8_MAX + 1.5).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, INT8_MAX + 1, self.packed, self.scales, self.zeros, None, 1.0, 0,
            torch.float32, "none", [], "",
        ).mul_(scale)  # fmt: skip
        out = out if self.bias is None else out.add_(self.bias)
        return out.unflatten(0, x.shape[:-1])

    def _save_to_state_dict(self, *_: object) -> None:
        raise RuntimeError("a network in int8 cannot be saved: load its bundle again without int8")


def become(module: nn.Module, other: nn.Module) -> None:
    """The one gets all that the other has, hooks included."""
    nn.Module.__init__(module)
    vars(module).update(vars(other))


def scale_of(rows: Tensor) -> Tensor:
    """[N, 1]: what one step of int8 stands for, so that the largest number of a row fits."""
    return rows.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST).div_(INT8_MAX)


def packed(network: nn.Module) -> nn.Module:
    """The network for decoding: on a CPU in fp32 or bf16 with packed linears, else itself.

    The given one stays as it is and shares everything else, so nothing can become stale: a decoder
    packs for itself what the weights are when it begins.
    """
    weight = next(network.parameters())
    by_onednn = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    if not (weight.device.type == "cpu" and by_onednn and has_onednn()):
        return network
    return with_linears(network, PackedLinear)


def in_int8(network: nn.Module) -> nn.Module:
    """The network with all linear layers in int8. Raises ValueError where that cannot be."""
    weight = next(network.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not has_onednn():
        raise ValueError(
            f"int8 is for networks in float32 on a CPU with oneDNN; this one is {weight.dtype} on "
            f"{weight.device.type}"
        )
    return with_linears(network, Int8Linear)


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


def with_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A twin with other linear layers; all else is shared."""
    if type(module) is nn.Linear:
        return make(module)
    twin = copy.copy(module)
    twin._modules = {
        name: None if child is None else with_linears(child, make)
        for name, child in module._modules.items()
    }
    return twin
