"""The bundle's network: every pattern against the training network, masks, cache, reloading."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esolm.model.attention import AttentionPattern
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, SampleKeys
from esolm.pipeline.export.bundle import attention_esolm
from esolm.pipeline.export.bundle.attention_esolm import (
    BLOCK_CAUSAL,
    GUESSED,
    PATTERNS,
    CachedRows,
    Group,
    Sight,
    SlotCache,
    dense_mask,
)
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM, EsoLMModel
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.gate_network import (
    bundle_logits,
    parity_inputs,
    relative_difference,
    training_logits,
)
from esolm.pipeline.export.writer import bundle_config, load_model


def network_of(source: Any, dtype: torch.dtype = torch.float32) -> Any:
    folded = fold(source.tensors("ema"), source.model, dtype)
    return load_model(bundle_config(source, None), folded)


def test_logits_equal_training_network_in_every_pattern(source: Any) -> None:
    assert tuple(pattern.value for pattern in AttentionPattern) == PATTERNS
    inputs = [parity_inputs(source.model, 12, pattern) for pattern in AttentionPattern]
    expected = training_logits(source.model, source.tensors("ema"), inputs)
    bundle = network_of(source)
    for each, reference in zip(inputs, expected, strict=True):
        logits = bundle_logits(bundle, each)
        assert logits.shape == (2, 12, source.model.vocab_size)
        assert relative_difference(logits, reference) < 1e-5, each.pattern


def sees(pattern: str, i: int, j: int, length: int, prefix: int, block: int) -> bool:
    """Query i may see key j, case by case."""
    if pattern == "bidirectional":
        return True
    if pattern == "causal":
        return j <= i
    if pattern == "prefix":
        return j <= i or (i < prefix and j < prefix)
    if pattern == BLOCK_CAUSAL:
        return j // block <= i // block
    if pattern == GUESSED:
        seen = i + 1 if i < prefix else prefix - block + min(i - prefix, block)
        return j < seen or j == i
    if i >= length and j < length:
        return False
    if i < length and j < length:
        return i // block == j // block if pattern == "block_two_stream" else i == j
    if pattern == "block_two_stream":
        return j % length // block < i // block if i < length else j // block <= i // block
    if i < length:
        return j - length < i
    in_prefix = pattern == "two_stream_prefix" and max(i, j) - length < prefix
    return j <= i or in_prefix


@pytest.mark.parametrize("pattern", [*PATTERNS, BLOCK_CAUSAL, GUESSED])
@pytest.mark.parametrize(("length", "block"), [(1, 1), (6, 3), (7, 1)])
def test_masks_equal_loops(pattern: str, length: int, block: int) -> None:
    size = length * (2 if "two_stream" in pattern else 1)
    prefixes = [0, length // 2, length]
    mask = dense_mask(pattern, size, torch.tensor(prefixes), block)
    if pattern == "block_two_stream":
        assert length % block == 0  # so that blocks of x start with x
    for row, prefix in enumerate(prefixes):
        for i in range(size):
            for j in range(size):
                assert bool(mask[row, 0, i, j]) == sees(pattern, i, j, length, prefix, block)


@pytest.mark.parametrize("pattern", ["bidirectional", "causal", "prefix", BLOCK_CAUSAL, GUESSED])
def test_what_the_tokens_of_a_row_reach_is_what_they_see(pattern: str) -> None:
    """Up to the last slot that the row feeds; in front of the first one it has fed others."""
    for start, width, prefix, block in product((0, 3), (1, 5), (3, 7), (1, 2, 3)):
        sight, end = Sight(pattern, prefix, block), start + width
        if pattern == "prefix" and prefix > end:
            continue
        found = sight.reach(start, width)
        for i, most in zip(range(start, end), found.tolist(), strict=True):
            seen = [sees(pattern, i, j, 1, prefix, block) for j in range(end)]
            assert seen == [j < most or j == i for j in range(end)]
            assert most <= end


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 3, 1]])
def test_passes_in_pieces_equal_causal_rows(source: Any, pieces: list[int]) -> None:
    """Two rows of a cache of three, whose slots are filled piece by piece."""
    bundle = network_of(source, torch.float64)
    tokens = torch.randint(source.model.vocab_size, (2, 9))
    positions = torch.stack([torch.randperm(9), torch.randperm(9)])
    cache, start = SlotCache(bundle.config, 3, 12, bundle.dtype, bundle.device), 0
    with torch.no_grad():
        expected = bundle(tokens, positions).logits
        for size in pieces:
            span, wanted = slice(start, start + size), torch.arange(2 * size)
            groups = [Group(1, 2, 0, start, size, Sight("causal"), size)]
            fed = tokens[:, span].flatten(), positions[:, span].flatten()
            logits = bundle.logits_of(bundle.model.decode(*fed, CachedRows(cache, groups), wanted))
            torch.testing.assert_close(
                logits.view(2, size, -1), expected[:, span], rtol=0, atol=1e-12
            )
            start += size


@pytest.mark.parametrize("pattern", ["bidirectional", "causal", "prefix", "block_causal"])
@pytest.mark.parametrize("elements", [attention_esolm.MASK_ELEMENTS, 20])
def test_rows_that_see_differently_in_one_pass(
    paper_source: Any, pattern: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row under the pattern, the other causal; only some tokens are asked for.

    elements: of 20 there are masks for two of these tokens at a time.
    """
    monkeypatch.setattr(attention_esolm, "MASK_ELEMENTS", elements)
    bundle = network_of(paper_source, torch.float64)
    tokens = torch.randint(4, paper_source.model.vocab_size, (2, 8))
    cache = SlotCache(bundle.config, 2, 8, bundle.dtype, bundle.device)
    groups = [
        Group(0, 1, 0, 0, 8, Sight(pattern, prefix=5, block_size=4), None),
        Group(1, 1, 8, 0, 8, Sight("causal"), 3),
    ]
    wanted = torch.tensor([2, 7, 13, 14, 15])
    with torch.no_grad():
        fed = tokens.flatten(), torch.arange(8).repeat(2)
        found = bundle.logits_of(bundle.model.decode(*fed, CachedRows(cache, groups), wanted))
        if pattern == "block_causal":
            both = torch.cat([tokens[:1], tokens[:1]], dim=1)
            # In the two-stream pattern a block of the noised stream sees earlier clean ones.
            first = bundle(both, attention_pattern="block_two_stream", block_size=4).logits
        else:
            first = bundle(tokens[:1], attention_pattern=pattern, prefix_length=5).logits
        second = bundle(tokens[1:]).logits
    expected = torch.cat([first[0, [2, 7]], second[0, 5:]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_default_positions_and_kept_logits(paper_source: Any) -> None:
    bundle = network_of(paper_source)
    tokens = torch.randint(paper_source.model.vocab_size, (2, 8))
    natural = torch.arange(4).repeat(2).expand(2, 8)
    with torch.no_grad():
        logits = bundle(tokens, attention_pattern="two_stream").logits
        assert torch.equal(bundle(tokens, natural, attention_pattern="two_stream").logits, logits)
        kept = bundle(tokens, logits_to_keep=2).logits
        torch.testing.assert_close(kept, bundle(tokens).logits[:, -2:])
    assert (logits[..., paper_source.model.mask_id] == -torch.inf).all()


@pytest.mark.parametrize("block_size", [4, None])
def test_blocks_are_those_of_the_network(paper_source: Any, block_size: int | None) -> None:
    """None: a network without blocks of its own, where a block is one token."""
    if block_size is not None:
        paper_source.objective = {"name": "bd3lm", "block_size": block_size}
    bundle = network_of(paper_source)
    tokens = torch.randint(paper_source.model.vocab_size, (2, 16))
    with torch.no_grad():
        own, given, other = (
            bundle(tokens, attention_pattern="block_two_stream", **options).logits
            for options in ({}, {"block_size": block_size or 1}, {"block_size": 2})
        )
    assert torch.equal(own, given)
    assert not torch.equal(own, other)


def test_unknown_pattern_and_odd_streams_are_refused(modern_source: Any) -> None:
    bundle, tokens = network_of(modern_source), torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="'diagonal' is unknown"):
        bundle(tokens, attention_pattern="diagonal")
    with pytest.raises(ValueError, match="two streams, not 3 tokens"):
        bundle(tokens, attention_pattern="two_stream")


def test_saved_and_reloaded_by_transformers(source: Any, tmp_path: Path) -> None:
    bundle = network_of(source)
    bundle.save_pretrained(tmp_path)
    again = EsoLMForMaskedLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(source.model.vocab_size, (2, 8))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, bundle(tokens).logits)
        hidden = EsoLMModel.from_pretrained(tmp_path)(tokens).last_hidden_state
    assert hidden.shape == (2, 8, source.model.hidden_size)
    assert (tmp_path / "generation_config.json").is_file()


def test_can_be_trained_on(paper_source: Any) -> None:
    """Gradients reach every parameter, so a bundle can be fine-tuned by a user."""
    bundle = network_of(paper_source)
    logits = bundle(torch.randint(4, paper_source.model.vocab_size, (2, 8))).logits
    logits.log_softmax(-1)[..., 5].sum().backward()
    assert all(parameter.grad is not None for parameter in bundle.parameters())


@pytest.mark.parametrize(
    "objective",
    [
        EsoLM(3, 0.5, 0.5, variant="A", eos_id=2),
        EsoLM(3, 0.0, 0.0, eos_id=2),
        MDLM(3, eos_id=2),
        BD3LM(3, 4, keep_first=False, eos_id=2),
        AutoRegressive(1, eos_id=2),
    ],
)
def test_documents_kept_apart(paper_source: Any, objective: Any) -> None:
    """The bundle's logits of a row of documents are those of the training network."""
    bundle, rows, joined = network_of(paper_source), np.arange(2), []
    tokens = torch.randint(4, paper_source.model.vocab_size, (2, 12))
    tokens[0, [4, 9]] = tokens[1, 5] = 2
    for slot in rows:
        keys = SampleKeys(0, rows[slot : slot + 1], rows[slot : slot + 1], 2)
        inputs, _ = objective.corrupt(tokens[slot : slot + 1], keys)
        [expected] = training_logits(paper_source.model, paper_source.tensors("ema"), [inputs])
        with torch.no_grad():
            found = bundle_logits(bundle, inputs)
            other = bundle_logits(bundle, replace(inputs, separate=False))
        assert relative_difference(found, expected) < 1e-5
        joined.append(relative_difference(other, expected))
    assert max(joined) > 1e-3
    with pytest.raises(ValueError, match="document_ids go with position_ids"):
        bundle(tokens, document_ids=torch.zeros_like(tokens))
