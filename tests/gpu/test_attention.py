"""FlexAttention against the dense mask, forward and backward, for every pattern that takes it."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module

from esolm.model import attention
from esolm.model.attention import AttentionMask, AttentionPattern, MaskBuilder, attend, dense_mask
from esolm.model.inputs import NetworkInput
from tests.gpu.needs import gpus

PATTERNS = [
    pattern
    for pattern in AttentionPattern
    if pattern not in (AttentionPattern.BIDIRECTIONAL, AttentionPattern.CAUSAL)
]
ROWS, HEADS, HEAD_DIM, BLOCK_SIZE = 3, 2, 16, 4
# Both sum in fp32, but a GPU's kernel in another order.
TOLERANCES = {"cpu": 1e-5, "cuda": 1e-4}


def input_of(pattern: AttentionPattern, length: int) -> NetworkInput:
    """Rows whose prefixes are empty, half and whole."""
    tokens = torch.zeros(ROWS, length * pattern.num_streams, dtype=torch.int64)
    prefix = torch.tensor([0, length // 2, length])
    block_size = BLOCK_SIZE if pattern is AttentionPattern.BLOCK_TWO_STREAM else 1
    return NetworkInput(tokens, tokens, pattern, prefix, torch.zeros(ROWS).long(), block_size)


def output_and_gradients(
    tensors: list[Tensor], upstream: Tensor, mask: AttentionMask
) -> list[Tensor]:
    """Of `attend` by q, k and v."""
    q, k, v = (tensor.detach().clone().requires_grad_() for tensor in tensors)
    out = attend(q[:, :, : mask.num_queries], k, v, mask)
    return [out, *torch.autograd.grad(out, (q, k, v), upstream)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpus(1))])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a CPU FlexAttention is not chosen and not compiled, and its gradients are forbidden.

    Its eager form has them all the same, which stands in here, so that all but the kernel is run.
    """
    name: str = request.param
    if name == "cpu":
        monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
        monkeypatch.setattr(attention, "compiled_flex", lambda: flex_module.flex_attention)
    return name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("length", [128, 200])
@pytest.mark.parametrize("outputs_only", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_is_the_dense_mask(
    pattern: AttentionPattern, outputs_only: bool, length: int, device: str
) -> None:
    inputs, seq_len = input_of(pattern, length), length * pattern.num_streams
    queries = length if outputs_only else seq_len
    rows = inputs.rows().to(device)
    prefix, block_size = inputs.prefix_length.to(device), inputs.block_size
    chosen = MaskBuilder()(rows, seq_len, outputs_only)
    if device == "cuda":
        assert chosen.block is not None, "FlexAttention is what a GPU takes"
    else:
        block = attention.flex_mask(pattern, seq_len, prefix, block_size, queries)
        chosen = AttentionMask(pattern, queries, block=block)
    dense = dense_mask(pattern, seq_len, prefix, block_size, queries)
    generator = torch.Generator().manual_seed(length)
    shape = (ROWS, HEADS, seq_len, HEAD_DIM)
    q, k, v, upstream = (torch.randn(shape, generator=generator).to(device) for _ in range(4))
    upstream = upstream[:, :, :queries]
    by_flex = output_and_gradients([q, k, v], upstream, chosen)
    by_dense = output_and_gradients([q, k, v], upstream, AttentionMask(pattern, queries, dense))
    for one, other in zip(by_flex, by_dense, strict=True):
        tolerance = TOLERANCES[device]
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
