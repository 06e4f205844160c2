"""Every attention pattern: one rule, three ways to apply it, and loops that say what is right."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from esolm.model.attention import (
    MOST_MASKS,
    AttentionMask,
    AttentionPattern,
    MaskBuilder,
    attend,
    compiled_flex,
    dense_mask,
    flex_mask,
    suits_flex,
)
from esolm.model.columns import Column
from esolm.model.flops import RowWork, visible_pairs
from esolm.model.inputs import NetworkInput

BLOCK = AttentionPattern.BLOCK_TWO_STREAM
CASES = [
    *((pattern, length, 1) for pattern in AttentionPattern for length in (1, 7, 128, 129, 512)),
    *(
        (BLOCK, length, size)
        for length, size in ((7, 7), (128, 4), (128, 128), (129, 3), (512, 16))
    ),
]


def prefixes(length: int) -> Tensor:
    return torch.tensor([0, length // 2, length])


def loop_mask(pattern: AttentionPattern, length: int, prefix: int, block_size: int) -> Tensor:
    """Bool [S, S], written query by query as ranges of keys."""
    seq_len = length * (2 if "two_stream" in pattern.value else 1)
    mask = torch.zeros(seq_len, seq_len, dtype=torch.bool)
    for i in range(length):
        start = i // block_size * block_size
        noised, clean = mask[i], mask[length + i] if seq_len > length else None
        if pattern is AttentionPattern.BIDIRECTIONAL:
            noised[:] = True
        elif clean is None:
            noised[: i + 1] = True
            if pattern is AttentionPattern.PREFIX and i < prefix:
                noised[:prefix] = True
        else:
            noised[start : start + block_size] = True
            noised[length : length + start] = True
            clean[length : length + start + block_size] = True
            if pattern is AttentionPattern.TWO_STREAM_PREFIX and i < prefix:
                clean[length : length + prefix] = True
    return mask


def loop_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """[B, 1, Q, K], one query at a time."""
    out = torch.empty_like(q)
    for row in range(len(q)):
        for i in range(q.shape[2]):
            seen = mask[row, i].nonzero().squeeze(1)
            scores = (k[row, 0, seen] @ q[row, 0, i]) / math.sqrt(q.shape[-1])
            out[row, 0, i] = scores.softmax(0) @ v[row, 0, seen]
    return out


@pytest.mark.parametrize(("pattern", "length", "block_size"), CASES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_dense_flex_and_loops_agree(
    pattern: AttentionPattern, length: int, block_size: int
) -> None:
    """Rows of one batch have different prefix lengths. FlexAttention runs eagerly on the CPU."""
    prefix = prefixes(length)
    seq_len = length * pattern.num_streams
    expected = torch.stack([loop_mask(pattern, length, int(p), block_size) for p in prefix])
    dense = dense_mask(pattern, seq_len, prefix, block_size)
    assert torch.equal(dense[:, 0], expected)

    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(3, 1, seq_len, 8, generator=generator) for _ in range(3))
    by_loop = loop_attention(q, k, v, expected)
    by_dense = attend(q, k, v, AttentionMask(pattern, seq_len, dense=dense))
    by_flex = flex_attention(q, k, v, block_mask=flex_mask(pattern, seq_len, prefix, block_size))
    torch.testing.assert_close(by_dense, by_loop, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_flex, by_loop, rtol=1e-5, atol=1e-6)

    half = dense_mask(pattern, seq_len, prefix, block_size, num_queries=length)
    assert torch.equal(half, dense[:, :, :length])
    half_flex = flex_mask(pattern, seq_len, prefix, block_size, num_queries=length)
    by_half = flex_attention(q[:, :, :length], k, v, block_mask=half_flex)
    torch.testing.assert_close(by_half, by_loop[:, :, :length], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", AttentionPattern)
@pytest.mark.parametrize("outputs_only", [False, True])
def test_the_mask_builder_chooses_what_gives_the_same(
    pattern: AttentionPattern, outputs_only: bool
) -> None:
    """Plain kernels, and passes of them, where the pattern allows; else the dense mask."""
    length, block_size = 12, 4
    seq_len = length * pattern.num_streams
    inputs = input_of(pattern, length, block_size)
    mask = MaskBuilder()(inputs.rows(), seq_len, outputs_only)
    queries = length if outputs_only else seq_len
    assert mask.num_queries == queries
    plain = pattern in (AttentionPattern.BIDIRECTIONAL, AttentionPattern.CAUSAL)
    assert (mask.clean is not None) == pattern.noised_are_apart
    assert (mask.dense is None) == (plain or pattern.noised_are_apart)
    q, k, v = (torch.randn(3, 1, seq_len, 4) for _ in range(3))
    size = block_size if pattern is BLOCK else 1
    expected = torch.stack([loop_mask(pattern, length, int(p), size) for p in prefixes(length)])
    by_loop = loop_attention(q, k, v, expected)[:, :, :queries]
    torch.testing.assert_close(attend(q[:, :, :queries], k, v, mask), by_loop, rtol=1e-5, atol=1e-6)


def input_of(pattern: AttentionPattern, length: int, block_size: int) -> NetworkInput:
    tokens = torch.zeros(3, length * pattern.num_streams, dtype=torch.int64)
    size = block_size if pattern is BLOCK else 1
    return NetworkInput(tokens, tokens, pattern, prefixes(length), torch.zeros(3).long(), size)


def test_masks_of_a_prefix_last_for_one_micro_batch() -> None:
    build = MaskBuilder()
    first = input_of(AttentionPattern.PREFIX, 6, 1).rows()
    mask = build(first, 6)
    assert build(first, 6) is mask
    assert build(first, 6, outputs_only=True) is mask
    other = first.clone()
    other[:, Column.PREFIX_LENGTH] = 0
    changed = build(other, 6)
    assert changed.dense is not None
    assert mask.dense is not None
    assert not torch.equal(changed.dense, mask.dense)


def test_masks_of_shapes_outlive_the_micro_batch() -> None:
    build, seq_len = MaskBuilder(), 24
    blocks, pairs = (input_of(p, 12, 4).rows() for p in (BLOCK, AttentionPattern.TWO_STREAM))
    kept = build(blocks, seq_len)
    of_pairs = build(pairs, seq_len)
    fewer = pairs.clone()
    fewer[:, Column.SKIPPED] = 4
    assert build(fewer, seq_len).skipped == 4
    assert build(pairs.clone(), seq_len) is of_pairs
    assert kept is build(blocks.clone(), seq_len)
    other_size = blocks.clone()
    other_size[:, Column.BLOCK_SIZE] = 6
    for rows, mask in ((other_size, build(other_size, seq_len)), (blocks, kept)):
        size = int(rows[0, Column.BLOCK_SIZE])
        expected = loop_mask(BLOCK, 12, 0, size)
        assert mask.dense is not None
        assert torch.equal(mask.dense[0, 0], expected), size
    assert build(blocks[:2], seq_len).dense.shape[0] == 2  # type: ignore[union-attr]


def test_the_mask_builder_forgets_lengths_that_pass_by() -> None:
    build = MaskBuilder()
    for length in range(4, 4 + 3 * MOST_MASKS):
        build(input_of(AttentionPattern.TWO_STREAM, length, 1).rows(), 2 * length)
    assert 0 < len(build._of_shapes) <= MOST_MASKS


@pytest.mark.parametrize(("pattern", "length", "block_size"), CASES)
def test_counted_pairs_are_the_visible_ones(
    pattern: AttentionPattern, length: int, block_size: int
) -> None:
    for prefix in prefixes(length):
        pairs = int(prefix) * (int(prefix) - 1) / 2
        work = RowWork(1.0, pattern, length, 0.0, block_size=block_size, prefix_pairs=pairs)
        mask = dense_mask(pattern, length * pattern.num_streams, prefix[None], block_size)[0, 0]
        assert visible_pairs(work) == (int(mask.sum()), int(mask[:length].sum()))


def test_lengths_without_a_kernel_of_their_own() -> None:
    """Likelihoods under an order feed every length up to L, without gradients."""
    with torch.no_grad():
        assert [n for n in range(1, 400) if suits_flex(n)] == [128, 256, 384]
    assert all(suits_flex(n) for n in (1, 127, 1023))


def test_no_kernel_is_given_up() -> None:
    """torch compiles 8 forms of a function by default and then runs it eagerly, with a warning."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    flex, prefix = compiled_flex(counter), torch.tensor([3, 5])
    lengths = range(16, 28)
    with torch.no_grad():
        for length in lengths:
            q, k, v = (torch.randn(2, 2, length, 16) for _ in range(3))
            block = flex_mask(AttentionPattern.PREFIX, length, prefix)
            dense = dense_mask(AttentionPattern.PREFIX, length, prefix)
            expected = attend(q, k, v, AttentionMask(AttentionPattern.PREFIX, length, dense=dense))
            torch.testing.assert_close(flex(q, k, v, block_mask=block), expected)
    assert counter.frame_count == len(lengths)
