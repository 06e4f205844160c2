"""Every objective against its loop-written reference, and the arithmetic of its batches."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.flops import flops_per_token
from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, Objective, SampleKeys
from esolm.model.objectives.base import term_of
from tests.model.conftest import MASK_ID, small_config
from tests.model.reference import ReferenceNetwork
from tests.model.reference_losses import reference_loss

LENGTH, ROWS = 6, 4

OBJECTIVES: dict[str, Objective] = {
    "esolm_b": EsoLM(MASK_ID, alpha_0=0.5, kappa=0.5),
    "esolm_b_elbo": EsoLM(MASK_ID, alpha_0=0.25, kappa=0.75, low_variance=False),
    "esolm_b_alpha_1": EsoLM(MASK_ID, alpha_0=1.0, kappa=1.0, low_variance=False),
    "esolm_b_alpha_0": EsoLM(MASK_ID, alpha_0=0.0, kappa=0.0),
    "esolm_a": EsoLM(MASK_ID, alpha_0=0.5, kappa=0.5, variant="A"),
    "esolm_a_elbo": EsoLM(MASK_ID, alpha_0=0.75, kappa=0.25, variant="A", low_variance=False),
    "esolm_a_alpha_1": EsoLM(MASK_ID, alpha_0=1.0, kappa=1.0, variant="A"),
    "esolm_a_alpha_0": EsoLM(MASK_ID, alpha_0=0.0, kappa=0.0, variant="A"),
    "mdlm": MDLM(MASK_ID),
    "mdlm_low_variance": MDLM(MASK_ID, low_variance=True),
    "ar": AutoRegressive(),
    "ar_bos": AutoRegressive(prepend_id=1),
    "ar_mask": AutoRegressive(prepend_id=MASK_ID),
    "bd3lm_1": BD3LM(MASK_ID, block_size=1, keep_first=False),
    "bd3lm_2": BD3LM(MASK_ID, block_size=2),
    "bd3lm_3_clipped": BD3LM(MASK_ID, 3, t_min=0.3, t_max=0.8, low_variance=True),
    "bd3lm_3_resampled": BD3LM(MASK_ID, 3, t_min=0.3, t_max=0.8, resample=True),
    "bd3lm_6_resampled": BD3LM(MASK_ID, 6, t_max=0.4, resample=True, keep_first=False),
}


@pytest.fixture(params=list(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param]


def make_tokens(rows: int = ROWS, length: int = LENGTH) -> Tensor:
    return torch.randint(4, 11, (rows, length), generator=torch.Generator().manual_seed(2))


def keys_of(slots: range, rows: int = ROWS, first_sample: int = 40) -> SampleKeys:
    slot = np.arange(slots.start, slots.stop)
    return SampleKeys(seed=3, sample_index=first_sample + slot, slot=slot, global_batch_size=rows)


def losses(
    objective: Objective, network: Network, tokens: Tensor, micro_batch_size: int
) -> dict[str, Tensor]:
    """Sum over micro-batches of the float64 loss, by term."""
    sums: dict[str, Tensor] = {}
    for start in range(0, len(tokens), micro_batch_size):
        slots = range(start, start + micro_batch_size)
        keys = keys_of(slots, len(tokens))
        inputs, targets = objective.corrupt(tokens[slots.start : slots.stop], keys)
        log_p = network.all_logits(inputs).log_softmax(-1)
        nll = -log_p.gather(-1, targets.labels[..., None])[..., 0]
        nll = torch.where(targets.weights > 0, nll, 0.0)
        term = term_of(objective, keys)
        sums[term] = sums.get(term, torch.zeros((), dtype=torch.float64))
        sums[term] = sums[term] + (nll * targets.weights).sum()
    return sums


def test_loss_equals_the_loop_written_one(
    objective: Objective, make_network: Callable[..., Network]
) -> None:
    """Over a whole global batch: sum of each term / tokens of the term. Weights are float32."""
    network = make_network()
    reference = ReferenceNetwork(network.config, network.state_dict())
    for each in {objective, objective.for_validation()}:
        expected = reference_loss(each, reference, make_tokens(), keys_of(range(ROWS)))
        found = losses(each, network, make_tokens(), micro_batch_size=1)
        assert found.keys() == expected.keys() == each.terms(ROWS).keys()
        for term, loss in expected.items():
            torch.testing.assert_close(found[term], loss, rtol=2e-7, atol=1e-12)


def test_gradients_equal_the_loop_written_ones(
    objective: Objective, make_network: Callable[..., Network]
) -> None:
    """Through the sparse path of training: only weighted positions, vocabulary-parallel loss."""
    network = make_network()
    names, parameters = zip(*network.named_parameters(), strict=True)
    total = torch.zeros(())
    for row in range(ROWS):
        keys = keys_of(range(row, row + 1))
        inputs, targets = objective.corrupt(make_tokens()[row : row + 1], keys)
        hidden = network((inputs.tokens, inputs.positions, inputs.rows()))
        total = total + weighted_loss(network.head, hidden, targets.sparse())
    copies = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    reference = ReferenceNetwork(network.config, copies)
    terms = reference_loss(objective, reference, make_tokens(), keys_of(range(ROWS)))
    expected = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    mine = torch.autograd.grad(total, parameters)
    theirs = torch.autograd.grad(expected, list(copies.values()))
    for name, one, other in zip(names, mine, theirs, strict=True):
        scale = float(other.abs().max())
        assert scale > 0, name
        assert float((one - other).abs().max()) < 1e-5 * scale, name


def test_micro_batches_do_not_change_the_loss(
    objective: Objective, make_network: Callable[..., Network]
) -> None:
    network = make_network()
    found = losses(objective, network, make_tokens(), micro_batch_size=1)
    for term, slots in objective.terms(ROWS).items():
        inputs, targets = objective.corrupt(make_tokens()[slots.start : slots.stop], keys_of(slots))
        logits = network.all_logits(inputs).flatten(0, 1)
        weights = targets.weights.flatten()
        nll = F.cross_entropy(logits, targets.labels.flatten(), reduction="none")
        whole = torch.where(weights > 0, nll * weights, 0.0).sum()
        torch.testing.assert_close(found[term], whole)


def test_weights_of_the_bound_sum_to_one(objective: Objective) -> None:
    """A network that gives every token the same probability has exactly that loss, on average.

    The published schedule stops short of its ends and loses a thousandth of the diffusion term.
    """
    rows, length = 2048, 48
    objective = objective.for_validation()
    tokens = make_tokens(rows, length)
    total = 0.0
    for slots in objective.terms(rows).values():
        keys = keys_of(slots, rows)
        _, targets = objective.corrupt(tokens[slots.start : slots.stop], keys)
        total += float(targets.weights.double().sum())
    # The variance of a token's weight is E[1 / t] - 1 < 6 at most.
    assert total == pytest.approx(1.0, abs=4 * (6 / (rows * length)) ** 0.5)


def test_validation_has_the_weights_of_the_bound(objective: Objective) -> None:
    bound = objective.for_validation()
    assert bound == bound.for_validation()
    assert not getattr(bound, "low_variance", False)


def test_masked_tokens_are_the_only_ones_scored(objective: Objective) -> None:
    for slots in objective.terms(ROWS).values():
        tokens = make_tokens()[slots.start : slots.stop]
        inputs, targets = objective.corrupt(tokens, keys_of(slots))
        length = inputs.tokens.shape[1] // inputs.pattern.num_streams
        assert inputs.tokens.shape == inputs.positions.shape
        assert targets.labels.shape == targets.weights.shape == (len(tokens), length)
        assert targets.weights.dtype is torch.float32
        noised = inputs.tokens[:, :length]
        if isinstance(objective, AutoRegressive):
            assert (targets.weights > 0).all()
            continue
        assert torch.equal(targets.weights > 0, noised == MASK_ID)
        assert torch.equal(noised[noised != MASK_ID], targets.labels[noised != MASK_ID])
        assert torch.equal(tokens.gather(1, inputs.positions[:, :length]), targets.labels)
        if inputs.pattern.num_streams == 2:
            assert torch.equal(inputs.tokens[:, length:], targets.labels)
            assert torch.equal(inputs.positions[:, length:], inputs.positions[:, :length])


def test_a_micro_batch_lies_within_one_term() -> None:
    with pytest.raises(ValueError, match="more than one loss term"):
        OBJECTIVES["esolm_b"].corrupt(make_tokens(2), keys_of(range(1, 3)))


def test_esolm_shares_the_global_batch_by_kappa() -> None:
    objective = EsoLM(MASK_ID, alpha_0=0.5, kappa=0.3)
    assert objective.terms(10) == {"diffusion": range(3), "sequential": range(3, 10)}
    # Truncated, not rounded: 3.5 and 2.8 rows are 3 and 2, and less than one row is no term.
    assert EsoLM(MASK_ID, 0.5, 0.5).terms(7) == {"diffusion": range(3), "sequential": range(3, 7)}
    assert EsoLM(MASK_ID, 0.5, 0.7).terms(4) == {"diffusion": range(2), "sequential": range(2, 4)}
    assert EsoLM(MASK_ID, 0.5, 0.9).terms(1) == {"sequential": range(1)}
    assert EsoLM(MASK_ID, 1.0, 1.0).terms(10) == {"diffusion": range(10)}
    assert EsoLM(MASK_ID, 0.0, 0.0).terms(10) == {"sequential": range(10)}


def test_esolm_without_diffusion_is_left_to_right() -> None:
    """alpha_0 = 0: everything masked in natural order, in both variants."""
    for variant in "AB":
        objective = EsoLM(MASK_ID, 0.0, 0.0, variant)
        inputs, targets = objective.corrupt(make_tokens(), keys_of(range(ROWS)))
        assert (inputs.positions == torch.arange(LENGTH).repeat(2)).all()
        assert not inputs.prefix_length.any()
        assert torch.equal(targets.labels, make_tokens())


def test_esolm_sequential_term_reads_masked_tokens_left_to_right() -> None:
    objective = EsoLM(MASK_ID, 0.5, 0.5, "B")
    keys = replace(keys_of(range(16)), slot=np.arange(16, 32), global_batch_size=32)
    inputs, targets = objective.corrupt(make_tokens(16), keys)
    assert inputs.pattern is AttentionPattern.TWO_STREAM
    in_prefix = 0
    for row in range(16):
        prefix = int(inputs.prefix_length[row])
        masked = inputs.positions[row, prefix:LENGTH]
        assert (masked.diff() > 0).all()
        assert (targets.weights[row, :prefix] == 0).all()
        in_prefix += int((inputs.positions[row, :prefix].diff() < 0).any())
    assert in_prefix > 0


def test_bd3lm_blocks_are_stratified_each_by_itself() -> None:
    objective = BD3LM(MASK_ID, block_size=4, keep_first=False)
    rows, length = 32, 32
    _, targets = objective.corrupt(make_tokens(rows, length), keys_of(range(rows), rows))
    weights = targets.weights.view(rows, length // 4, 4)
    t = 1.0 / (weights.amax(2) * rows * length)  # infinite where nothing is masked
    for block in range(length // 4):
        drawn = t[:, block][t[:, block].isfinite()]
        strata = ((drawn - 0.001) / 0.999 * rows).long()
        assert len(strata.unique()) == len(strata)


def test_bd3lm_resampled_blocks_keep_to_the_range() -> None:
    objective = BD3LM(MASK_ID, 4, t_min=0.5, t_max=0.75, resample=True, keep_first=False)
    rows, length = 32, 32
    inputs, _ = objective.corrupt(make_tokens(rows, length), keys_of(range(rows), rows))
    masks = (inputs.tokens[:, :length] == MASK_ID).view(rows, -1, 4).sum(2)
    assert set(masks.unique().tolist()) == {2, 3}
    alone, _ = objective.corrupt(make_tokens(rows, length)[5:6], keys_of(range(5, 6), rows))
    assert torch.equal(alone.tokens[0], inputs.tokens[5])


def test_bd3lm_validation_of_single_tokens_is_exact() -> None:
    objective = BD3LM(MASK_ID, 1, keep_first=False).for_validation()
    inputs, targets = objective.corrupt(make_tokens(), keys_of(range(ROWS)))
    assert (inputs.tokens[:, :LENGTH] == MASK_ID).all()
    torch.testing.assert_close(targets.weights, torch.full((ROWS, LENGTH), 1 / (ROWS * LENGTH)))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (EsoLM(MASK_ID, 1.5, 0.5), "alpha_0 is 1.5"),
        (EsoLM(MASK_ID, 0.5, -1.0), "kappa is -1.0"),
        (EsoLM(MASK_ID, 1.0, 0.5), "kappa = 1 goes with"),
        (EsoLM(MASK_ID, 0.0, 0.5), "kappa = 0 goes with"),
        (EsoLM(MASK_ID, 0.5, 0.5, "C"), "choose A or B"),
        (BD3LM(MASK_ID, 4), "must divide train.seq_len 6"),
        (BD3LM(MASK_ID, 0), "must divide"),
        (BD3LM(MASK_ID, 3, t_min=0.9, t_max=0.3), "must be in order"),
        (BD3LM(MASK_ID, 3, t_min=0.0), "lie in"),
        (BD3LM(MASK_ID, 2, t_min=0.6, t_max=0.9, resample=True), "no number of masks"),
    ],
)
def test_problems_are_named(broken: Objective, message: str) -> None:
    assert any(message in problem for problem in broken.problems(LENGTH))


def test_shipped_objectives_have_no_problems(objective: Objective) -> None:
    assert objective.problems(LENGTH) == []


def test_work_is_what_the_batches_hold(objective: Objective) -> None:
    """Share, pattern, scored positions and prefix pairs, against the mean of real batches."""
    rows, length = 256, 48
    works = objective.work(length)
    assert sum(work.share for work in works) == pytest.approx(1.0)
    for work, slots in zip(works, objective.terms(rows).values(), strict=True):
        tokens = make_tokens(rows, length)[slots.start : slots.stop]
        inputs, targets = objective.corrupt(tokens, keys_of(slots, rows))
        assert work.pattern is inputs.pattern
        assert work.length == targets.labels.shape[1]
        assert work.block_size == inputs.block_size
        assert work.share == pytest.approx(len(slots) / rows)
        scored = float((targets.weights > 0).sum(1).float().mean())
        if not getattr(objective, "resample", False):  # which the count leaves out
            assert scored == pytest.approx(work.scored, rel=0.06, abs=1.0)
        prefix = inputs.prefix_length.double()
        if "prefix" in work.pattern.value:
            pairs = float((prefix * (prefix - 1) / 2).mean())
            assert work.prefix_pairs == pytest.approx(pairs, rel=0.15, abs=1.0)
    assert flops_per_token(small_config(), works, length) > 0
