"""How far compiled pieces are from the same, one operation after the other.

Each is called as a block and a loss call it, at two lengths and two sites, so that the graphs of
any length and site are proved, too, and once without gradients, as validation calls them.
"""

import torch
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.model.dropout import Dropout, feature_salts, site_salt, token_keys
from esolm.model.kernels import Kernels, use_kernels
from esolm.model.layers import Norm, activate
from esolm.model.network import add_branch
from esolm.model.rotary import rotary_angles, rotate
from esolm.model.scoring import (
    Differentiated,
    LogitRules,
    bias_gradient_of,
    gradient_of,
    largest_of,
    sums_of,
)

ROWS, LENGTHS, SCORED = 2, (64, 96), (24, 40)


def compiled_and_plain(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, backend: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what pieces compute, forward and backward: compiled, and as they stand.

    The graphs are forgotten then: those of a run are made for its own lengths first.
    """
    results: dict[str, list[Tensor]] = {backend: [], "": []}
    try:
        for chosen, found in results.items():
            use_kernels(Kernels(compiled=chosen))
            for site, (length, scored) in enumerate(zip(LENGTHS, SCORED, strict=True)):
                found += _block(model, device, dtype, length, site)
                with torch.no_grad():
                    found += _block(model, device, dtype, length, site)
                found += _loss(model, device, dtype, scored)
    finally:
        torch._dynamo.reset()
    return results[backend], results[""]


def _block(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, length: int, site: int
) -> list[Tensor]:
    """What the pieces of a block make of tokens [ROWS * length, D], and their gradients."""
    tokens = ROWS * length
    hidden = noise((tokens, model.hidden_size), device, 0).to(dtype).requires_grad_()
    shift, scale, gate = (
        noise((model.hidden_size,), device, seed).to(dtype).requires_grad_() for seed in (1, 2, 3)
    )
    dropout = None
    if model.dropout and torch.is_grad_enabled():
        rows, skipped = torch.arange(ROWS, device=device), torch.ones((), device=device).long()
        keys = token_keys(rows, site_salt(site), tokens, length, 0, skipped)
        # As a context-parallel rank calls it, which has every other token of a longer row.
        places = torch.arange(1, 2 * length, 2, device=device)
        keys = keys ^ token_keys(rows, site_salt(site), tokens, length, 0, skipped, places)
        dropout = Dropout(keys, feature_salts(model.hidden_size, device), model.dropout)
    positions = torch.arange(length, device=device).expand(ROWS, -1)
    angles = rotary_angles(positions, model.rotation(0))
    norm, head_norm = (Norm(model, size).to(device, dtype) for size in (None, model.head_dim))
    modulation = (shift, scale) if model.adaln else ()
    added = add_branch(hidden, norm(hidden, *modulation), gate if model.adaln else None, dropout)
    heads = added.view(ROWS, length, -1, model.head_dim)
    turned = rotate(head_norm(heads) if model.qk_norm else heads, *angles).view(tokens, -1)
    width = model.ffn_hidden_size * (2 if model.activation == "swiglu" else 1)
    wide = turned.repeat(1, -(-width // turned.shape[1]))[:, :width]
    out = activate(wide, model.activation == "swiglu")
    if not torch.is_grad_enabled():
        return [out]
    given = [hidden, norm.weight, *((shift, scale, gate) if model.adaln else ())]
    return [out, *torch.autograd.grad(out, given, noise(out.shape, device, 4).to(dtype))]


def _loss(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, scored: int
) -> list[Tensor]:
    """What the pieces of a loss make of logits [scored, V], without what ranks say in between."""
    logits = noise((scored, model.padded_vocab_size(1)), device, 5).to(dtype)
    rules = LogitRules.of(model, 0)
    ids = [i for i in range(3) if i not in rules.never][:1] * scored
    labels = torch.tensor(ids, device=device)
    largest = largest_of(logits, rules)
    sums = sums_of(logits, largest, labels, rules)
    given = Differentiated(logits, largest, 1 / sums[1], labels, torch.ones_like(sums[1]))
    bias = bias_gradient_of(given, rules)
    return [largest, sums, gradient_of(given, rules), *([] if bias is None else [bias])]


def noise(shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    """Returns normal noise that is the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
