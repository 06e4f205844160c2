"""Documents of a row that are kept apart: each has the losses that it has alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from esolm.model.attention import AttentionMask, AttentionPattern, attend, dense_mask, flex_mask
from esolm.model.documents import document_of, place_of, standing
from esolm.model.inputs import NetworkInput
from esolm.model.likelihood import (
    left_to_right_log_likelihood,
    order_log_likelihood,
    prefix_order_log_likelihood,
)
from esolm.model.network import Network
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, Objective, SampleKeys
from tests.model.conftest import MASK_ID

EOS, LENGTH, ROWS = 2, 12, 4
OBJECTIVES: dict[str, Objective] = {
    "esolm_b": EsoLM(MASK_ID, 0.5, 0.5, eos_id=EOS),
    "esolm_a": EsoLM(MASK_ID, 0.5, 0.5, variant="A", low_variance=False, eos_id=EOS),
    "esolm_a_alpha_1": EsoLM(MASK_ID, 1.0, 1.0, variant="A", eos_id=EOS),
    "esolm_b_alpha_0": EsoLM(MASK_ID, 0.0, 0.0, eos_id=EOS),
    "mdlm": MDLM(MASK_ID, eos_id=EOS),
    "ar": AutoRegressive(prepend_id=1, eos_id=EOS),
    "bd3lm_1": BD3LM(MASK_ID, 1, keep_first=False, eos_id=EOS),
    "bd3lm_3": BD3LM(MASK_ID, 3, keep_first=False, eos_id=EOS),
    "bd3lm_4_resampled": BD3LM(
        MASK_ID, 4, t_min=0.3, t_max=0.8, resample=True, keep_first=False, eos_id=EOS
    ),
}


def rows_of_documents() -> Tensor:
    """A document alone, one that ends with the row, two of one token, and a row without an end."""
    tokens = torch.randint(4, 11, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    for row, ends in enumerate([[11], [4, 11], [0, 1, 6], []]):
        tokens[row, ends] = EOS
    return tokens


def keys_of(slots: range) -> SampleKeys:
    slot = np.arange(slots.start, slots.stop)
    return SampleKeys(seed=3, sample_index=40 + slot, slot=slot, global_batch_size=ROWS)


@pytest.mark.parametrize(("eos_id", "context"), [(EOS, 0), (EOS, 4), (None, 3), (None, 0)])
def test_where_tokens_stand(eos_id: int | None, context: int) -> None:
    tokens = rows_of_documents()
    found = standing(tokens, eos_id, context)
    for row, places, documents in zip(tokens, place_of(found), document_of(found), strict=True):
        place = document = 0
        for index, token in enumerate(row.tolist()):
            assert (int(places[index]), int(documents[index])) == (place, document)
            place += 1
            if token == eos_id or (context and (index + 1) % context == 0):
                place, document = 0, document + 1


def of_document(inputs: NetworkInput, number: int) -> tuple[NetworkInput, Tensor]:
    """One document of a single row by itself, and which outputs are its."""
    streams = inputs.pattern.num_streams
    length = inputs.tokens.shape[1] // streams
    chosen = [
        stream * length + (document_of(each)[0] == number).nonzero()[:, 0]
        for stream, each in enumerate(inputs.positions.chunk(streams, dim=1))
    ]
    index = torch.cat(chosen)
    clean = (chosen[0] < int(inputs.prefix_length)).sum()[None]
    alone = replace(
        inputs,
        tokens=inputs.tokens[:, index],
        positions=place_of(inputs.positions[:, index]),
        prefix_length=clean if inputs.pattern.has_prefix else torch.zeros(1).long(),
        separate=False,
    )
    return alone, chosen[0]


def bounded(objective: Objective, context: int) -> Objective:
    """With rows of chunks of so many tokens, and no other documents."""
    found = replace(objective, eos_id=None).with_context(context)  # type: ignore[type-var]
    assert found is not None
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("context", [0, 4, 6])
def test_a_document_has_the_losses_that_it_has_alone(
    name: str, context: int, make_network: Callable[..., Network]
) -> None:
    """Whether eos ends it, or every so many tokens, or the one and the other."""
    network, objective = make_network(), OBJECTIVES[name]
    chosen = {objective, objective.for_validation()}
    if context:
        both = objective.with_context(context)
        assert both is not None
        chosen = {both, bounded(objective, context)}
    for each in chosen:
        for slot in range(ROWS):
            tokens = rows_of_documents()[slot : slot + 1]
            inputs, targets = each.corrupt(tokens, keys_of(range(slot, slot + 1)))
            together = network.all_logits(inputs)[0]
            assert inputs.separate
            outputs = 0
            for number in range(int(document_of(inputs.positions).max()) + 1):
                alone, index = of_document(inputs, number)
                torch.testing.assert_close(
                    together[index], network.all_logits(alone)[0], rtol=1e-10, atol=1e-10
                )
                outputs += len(index)
            assert outputs == targets.labels.shape[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_documents_see_nothing_of_each_other(
    name: str, make_network: Callable[..., Network]
) -> None:
    """Not what they hold, nor that they are there: the input has the masks and times it has."""
    network, objective = make_network(), OBJECTIVES[name]
    first = rows_of_documents()[1:2].clone()
    second = first.clone()
    second[:, :4] = 10
    inputs, _ = objective.corrupt(first, keys_of(range(1, 2)))
    others, _ = objective.corrupt(second, keys_of(range(1, 2)))
    logits, changed = (network.all_logits(each)[0] for each in (inputs, others))
    outputs = inputs.positions[0, : logits.shape[0]]
    unchanged = document_of(outputs) == 1
    assert torch.equal(logits[unchanged], changed[unchanged])
    joined = replace(objective, eos_id=None)  # type: ignore[type-var]
    far, _ = joined.corrupt(first, keys_of(range(1, 2)))
    assert not torch.equal(network.all_logits(far)[0], logits)


def test_a_document_alone_is_fed_to_ar_as_a_row_is(make_network: Callable[..., Network]) -> None:
    objective = OBJECTIVES["ar"]
    [row] = rows_of_documents()[1:2]
    inputs, _ = objective.corrupt(row[None], keys_of(range(1)))
    for number, document in enumerate((row[:5], row[5:])):
        alone, _ = of_document(inputs, number)
        expected, _ = AutoRegressive(prepend_id=1).corrupt(document[None], keys_of(range(1)))
        assert torch.equal(alone.tokens, expected.tokens)
        assert torch.equal(alone.positions, expected.positions)


def test_joined_rows_keep_the_draws_of_their_blocks() -> None:
    """Rows of one document each are the same with and without documents kept apart."""
    tokens = rows_of_documents()[3:].expand(ROWS, -1)
    for objective in (OBJECTIVES["bd3lm_3"], OBJECTIVES["bd3lm_4_resampled"]):
        apart = objective.corrupt(tokens, keys_of(range(ROWS)))
        joined = replace(objective, eos_id=None).corrupt(  # type: ignore[type-var]
            tokens, keys_of(range(ROWS))
        )
        assert torch.equal(apart[0].tokens, joined[0].tokens)
        assert torch.equal(apart[1].weights, joined[1].weights)


def test_likelihoods_of_documents_add_up(make_network: Callable[..., Network]) -> None:
    """Under orders, with a prefix and without, and from left to right."""
    network = make_network()
    logits, tokens = network.all_logits, rows_of_documents()[1:2]
    order = torch.rand(1, LENGTH, generator=torch.Generator().manual_seed(1)).argsort(1)
    parts = [(0, 5), (5, LENGTH)]
    by_order = order_log_likelihood(logits, tokens, order.numpy(), MASK_ID, EOS)
    behind = prefix_order_log_likelihood(logits, tokens, order.numpy(), np.array([6]), MASK_ID, EOS)
    straight = left_to_right_log_likelihood(logits, OBJECTIVES["ar"], tokens)
    alone = np.zeros(3)
    for first, end in parts:
        inside = (order[0] >= first) & (order[0] < end)
        own, prefix = order[:, inside].numpy() - first, int(inside[:6].sum())
        part = tokens[:, first:end]
        alone += [
            float(order_log_likelihood(logits, part, own, MASK_ID).sum()),
            float(
                prefix_order_log_likelihood(logits, part, own, np.array([prefix]), MASK_ID).sum()
            ),
            float(left_to_right_log_likelihood(logits, AutoRegressive(1), part).sum()),
        ]
    found = [float(each.sum()) for each in (by_order, behind, straight)]
    assert found == pytest.approx(alone.tolist(), rel=1e-10)


@pytest.mark.parametrize("pattern", AttentionPattern)
def test_the_block_mask_is_the_dense_one(pattern: AttentionPattern) -> None:
    streams, block_size = pattern.num_streams, 3
    positions = standing(rows_of_documents(), EOS).repeat(1, streams)
    size, prefix = positions.shape[1], torch.tensor([0, 3, 6, LENGTH])
    if not pattern.has_prefix:
        prefix = torch.zeros_like(prefix)
    given = (pattern, size, prefix, block_size, None, 0, positions)
    q, k, v = (torch.randn(ROWS, 2, size, 8) for _ in range(3))
    by_flex = flex_attention(q, k, v, block_mask=flex_mask(*given))
    by_mask = attend(q, k, v, AttentionMask(pattern, size, dense=dense_mask(*given)))
    torch.testing.assert_close(by_flex, by_mask, rtol=1e-5, atol=1e-6)


def test_chunks_of_a_row_see_nothing_of_each_other(make_network: Callable[..., Network]) -> None:
    """The input has the masks, times and orders of whole rows."""
    network, keys = make_network(), keys_of(range(1, 2))
    first = rows_of_documents()[3:]
    second = first.clone()
    second[:, :4] = 10
    for whole in (OBJECTIVES["esolm_b"], OBJECTIVES["mdlm"]):
        objective = bounded(whole, 4)
        inputs, targets = objective.corrupt(first, keys)
        others, _ = objective.corrupt(second, keys)
        plain, expected = replace(whole, eos_id=None).corrupt(first, keys)  # type: ignore[type-var]
        assert torch.equal(inputs.tokens, plain.tokens)
        assert torch.equal(targets.weights, expected.weights)
        logits, changed = (network.all_logits(each)[0] for each in (inputs, others))
        outputs = document_of(inputs.positions[0, : logits.shape[0]])
        assert torch.equal(logits[outputs > 0], changed[outputs > 0])
        assert not torch.equal(logits[outputs == 0], changed[outputs == 0])


def test_what_does_not_go_with_documents() -> None:
    for asked, ar, bd3lm in (
        ("separate_documents", AutoRegressive(eos_id=EOS), BD3LM(MASK_ID, 4, eos_id=EOS)),
        ("context_schedule", AutoRegressive(context=4), BD3LM(MASK_ID, 4, context=4)),
    ):
        assert "objective.prepend" in ar.problems(LENGTH)[0]
        assert "objective.keep_first" in bd3lm.problems(LENGTH)[0]
        assert all(asked in each.problems(LENGTH)[0] for each in (ar, bd3lm))
    for objective in OBJECTIVES.values():
        assert not objective.problems(LENGTH)
