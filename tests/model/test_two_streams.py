"""Two streams as merged causal passes, and without the noised tokens that nobody needs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from esolm.model.attention import (
    AttentionMask,
    AttentionPattern,
    MaskBuilder,
    attend,
    dense_mask,
    flex_mask,
)
from esolm.model.inputs import NetworkInput, Targets, without_idle
from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from esolm.model.objectives import BD3LM, EsoLM, Objective, SampleKeys
from tests.model.conftest import MASK_ID

APART = [pattern for pattern in AttentionPattern if pattern.noised_are_apart]
# The length of a stream and the tokens that the noised one lacks.
SHAPES = [(1, 0), (2, 1), (7, 0), (7, 3), (64, 32), (70, 69), (600, 0), (600, 300)]
ROWS, LENGTH = 4, 12


def rows_of(pattern: AttentionPattern, length: int, skipped: int) -> NetworkInput:
    tokens = torch.zeros(2, 2 * length - skipped, dtype=torch.int64)
    zeros = torch.zeros(2, dtype=torch.int64)
    return NetworkInput(
        tokens, tokens, pattern, torch.tensor([skipped, length]), zeros, skipped=skipped
    )


def with_gradients(tensors: list[Tensor], upstream: Tensor, mask: AttentionMask) -> list[Tensor]:
    out = attend(*tensors, mask)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("outputs_only", [False, True])
@pytest.mark.parametrize("pattern", APART)
def test_merged_passes_are_the_dense_mask(
    pattern: AttentionPattern, outputs_only: bool, groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(groups)
    for length, skipped in SHAPES:
        inputs, seq_len = rows_of(pattern, length, skipped), 2 * length - skipped
        mask = MaskBuilder()(inputs.rows(), seq_len, outputs_only)
        queries = length - skipped if outputs_only else seq_len
        assert mask.clean is not None
        assert mask.num_queries == queries
        dense = dense_mask(pattern, seq_len, inputs.prefix_length, 1, queries, skipped)
        tensors = [
            torch.randn(2, tokens, heads, 8, generator=generator, dtype=torch.float64)
            .to(dtype)
            .transpose(1, 2)
            .requires_grad_()
            for tokens, heads in ((queries, 4), (seq_len, groups), (seq_len, groups))
        ]
        upstream = torch.randn(2, 4, queries, 8, generator=generator).to(dtype)
        found = with_gradients(tensors, upstream, mask)
        expected = with_gradients(tensors, upstream, AttentionMask(pattern, queries, dense=dense))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("pattern", APART)
def test_masks_lack_the_rows_and_columns_of_the_tokens_left_out(
    pattern: AttentionPattern,
) -> None:
    length, skipped = 9, 4
    inputs, seq_len = rows_of(pattern, length, skipped), 2 * length - skipped
    whole = dense_mask(pattern, 2 * length, inputs.prefix_length)
    dense = dense_mask(pattern, seq_len, inputs.prefix_length, skipped=skipped)
    assert torch.equal(dense, whole[:, :, skipped:, skipped:])
    q, k, v = (torch.randn(2, 1, seq_len, 8) for _ in range(3))
    block = flex_mask(pattern, seq_len, inputs.prefix_length, skipped=skipped)
    by_dense = attend(q, k, v, AttentionMask(pattern, seq_len, dense=dense))
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=block), by_dense)


def batch_of(objective: Objective) -> tuple[NetworkInput, Targets]:
    """The rows of the last term, which is the one of two streams."""
    slots = np.arange(ROWS, 2 * ROWS)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 11, (ROWS, LENGTH), generator=generator)
    return objective.corrupt(tokens, SampleKeys(5, slots, slots, 2 * ROWS))


def loss_of(network: Network, inputs: NetworkInput, targets: Targets) -> Tensor:
    hidden = network((inputs.tokens, inputs.positions, inputs.rows()))
    return weighted_loss(network.head, hidden, targets.sparse())


@pytest.mark.parametrize("multiple", [1, 2, 5])
@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_tokens_without_loss_change_nothing(
    make_network: Callable[..., Network], variant: str, multiple: int, dropout: float
) -> None:
    network = make_network(dropout=dropout, num_layers=3).train()
    whole = batch_of(EsoLM(MASK_ID, alpha_0=0.7, kappa=0.5, variant=variant))
    fewer = without_idle(*whole, multiple)
    idle = int((whole[1].weights.cumsum(1) == 0).sum(1).min())
    assert fewer[0].skipped == idle // multiple * multiple
    assert fewer[0].tokens.shape == (ROWS, 2 * LENGTH - fewer[0].skipped)
    assert fewer[0].skipped > 0
    parameters = list(network.parameters())
    losses = [loss_of(network, *batch) for batch in (whole, fewer)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        scale = float(one.abs().max())
        assert float((one - other).abs().max()) <= 1e-6 * scale


def test_what_others_see_stays() -> None:
    """In BD3-LM a noised token sees those of its block, whether they carry loss or not."""
    inputs, targets = batch_of(BD3LM(MASK_ID, block_size=4))
    assert without_idle(inputs, targets, 1) == (inputs, targets)
    causal = replace(inputs, pattern=AttentionPattern.CAUSAL)
    assert without_idle(causal, targets, 1)[0] is causal


def test_rows_without_any_loss_keep_a_token() -> None:
    inputs, targets = batch_of(EsoLM(MASK_ID, alpha_0=0.7, kappa=0.5))
    nothing = replace(targets, weights=torch.zeros_like(targets.weights))
    fewer, kept = without_idle(inputs, nothing, 1)
    assert fewer.tokens.shape == (ROWS, LENGTH + 1)
    assert kept.weights.shape == (ROWS, 1)
