"""Two-phase decoding: the plan, the cache, the sampler, reproducibility."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esolm.model.objectives.noise import alpha
from esolm.pipeline.export.bundle.drawing_esolm import TokenSampler, keep_nucleus
from esolm.pipeline.export.bundle.generation_esolm import EsoLMGenerationConfig
from esolm.pipeline.export.bundle.two_phase_esolm import diffusion_counts, draw_plan
from tests.pipeline.generate.conftest import network as random_network


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cached_equals_uncached(esolm: Any) -> None:
    for seed, alpha_0 in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        for num_steps in (1, 4, 32):
            options = {
                "alpha_0": alpha_0, "num_steps": num_steps, "length": 20, "num_samples": 3,
                "seed": seed, "top_p": 0.95,
            }  # fmt: skip
            cached = esolm.generate(**options)
            uncached = esolm.generate(use_cache=False, **options)
            assert torch.equal(cached.sequences, uncached.sequences)
            assert torch.equal(cached.order, uncached.order)


def test_every_step_is_a_full_forward_of_what_is_written(esolm: Any) -> None:
    """Temperature 0 by hand: each pass of the plan from nothing but the tokens before it."""
    output = esolm.generate(length=12, alpha_0=0.5, num_steps=3, temperature=0.0, seed=3)
    order, tokens = output.order, torch.full((1, 12), 29)
    written = 0
    for count in output.counts.tolist():
        end = written + count
        with torch.no_grad():
            logits = esolm(tokens[:, :end], order[:, :end]).logits
        tokens[:, written:end] = logits[:, written:].argmax(-1)
        written = end
    assert torch.equal(output.sequences.gather(1, order), tokens)


def test_prompt_is_kept_and_comes_first(esolm: Any) -> None:
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    output = esolm.generate(prompt, length=16, alpha_0=0.5, num_steps=4, seed=0)
    assert output.sequences.shape == (2, 16)
    assert torch.equal(output.sequences[:, :3], prompt)
    assert output.order[:, :3].tolist() == [[0, 1, 2]] * 2
    assert int(output.counts.sum()) == 13
    full = esolm.generate(output.sequences, length=16, seed=0)
    assert full.nfe == 0
    assert torch.equal(full.sequences, output.sequences)
    with pytest.raises(ValueError, match="prompt has 16 tokens, length is 4"):
        esolm.generate(output.sequences, length=4)


def test_seeds_reproduce(esolm: Any) -> None:
    options = {"length": 16, "alpha_0": 0.5, "num_steps": 4, "num_samples": 2}
    first, second = (esolm.generate(seed=1, **options) for _ in range(2))
    other = esolm.generate(seed=2, **options)
    assert torch.equal(first.sequences, second.sequences)
    assert not torch.equal(first.sequences, other.sequences)
    assert not torch.equal(first.sequences[0], first.sequences[1])
    assert not torch.equal(first.order[0], first.order[1])
    unseeded = [esolm.generate(**options).sequences for _ in range(2)]
    assert not torch.equal(*unseeded)


def test_never_writes_a_mask(esolm: Any) -> None:
    assert not (esolm.generate(length=64, num_samples=4, seed=0).sequences == 29).any()


def test_counts() -> None:
    assert diffusion_counts(100, 0.0, 10, seeded()) == []
    for seed in range(20):
        counts = diffusion_counts(100, 1.0, 10, seeded(seed))
        assert sum(counts) == 100
        assert len(counts) <= 10
        assert min(counts) > 0
    assert diffusion_counts(100, 1.0, 1, seeded()) == [100]


def test_counts_follow_the_schedule() -> None:
    """The share written by time t is alpha_t: mean over draws within five standard errors."""
    alpha_0, num_steps, length, draws = 0.6, 1, 50, 2000
    generator = seeded()
    totals = [sum(diffusion_counts(length, alpha_0, num_steps, generator)) for _ in range(draws)]
    chance = (alpha_0 - 0.001 * alpha_0) / (1 - 0.001 * alpha_0)
    error = (length * chance * (1 - chance) / draws) ** 0.5
    assert abs(sum(totals) / draws - length * chance) < 5 * error


def test_the_schedule_is_the_one_of_training_down_to_its_floor() -> None:
    """Of 10^12 tokens a step takes its share to a millionth, and the floor is a thousandth.

    What is clean at time s and was not at t, of all that was not: from training's own alpha_t.
    """
    length, alpha_0, num_steps = 10**12, 0.5, 4
    times = np.linspace(1.0, 0.0, num_steps + 1)
    clean, left = alpha(times, alpha_0), float(length)
    counts = diffusion_counts(length, alpha_0, num_steps, seeded())
    for (before, after), count in zip(pairwise(clean), counts, strict=True):
        chance = (after - before) / (1.0 - before)
        error = math.sqrt(left * chance * (1.0 - chance))
        assert abs(count - left * chance) < 6 * error
        left -= count
    assert abs(left / length - (1 - alpha_0) / (1 - 0.001 * alpha_0)) < 1e-5


def test_nfe(esolm: Any) -> None:
    left_to_right = esolm.generate(length=10, alpha_0=0.0, seed=0)
    assert left_to_right.nfe == 10
    assert left_to_right.order.tolist() == [list(range(10))]
    assert esolm.generate(length=10, alpha_0=1.0, num_steps=1, seed=0).nfe == 1
    calls = []
    handle = esolm.register_forward_pre_hook(lambda *_: calls.append(1))
    output = esolm.generate(length=30, alpha_0=0.5, num_steps=4, seed=0)
    handle.remove()
    assert output.nfe == len(output.counts) == len(calls)


def test_plan() -> None:
    plan = draw_plan(3, 40, 5, 0.5, 4, seeded())
    diffusion = sum(count for count in plan.counts if count > 1) or 0
    assert sum(plan.counts) == 35
    assert plan.order.sort(dim=1).values.tolist() == [list(range(40))] * 3
    rest = plan.order[:, 5 + diffusion :]
    tail = rest[:, -10:]
    assert torch.equal(tail, tail.sort(dim=1).values)
    assert not torch.equal(plan.order[0], plan.order[1])


def test_feeds_each_token_at_most_twice(esolm: Any) -> None:
    """Once as a mask and once clean: under 2 L token-forwards, whatever the number of steps."""
    fed = []
    handle = esolm.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    esolm.generate(length=50, alpha_0=0.5, num_steps=10, seed=0)
    handle.remove()
    assert sum(fed) < 2 * 50


def test_nucleus_keeps_the_token_that_crosses() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()[[2, 0, 3, 1]]
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        assert int(keep_nucleus(scores, top_p).isfinite().sum()) == kept
    assert keep_nucleus(scores, 0.4).argmax() == 1


def test_temperature_zero_is_argmax_and_draws_nothing() -> None:
    generator = seeded()
    before = generator.get_state()
    logits = torch.randn(2, 3, 7)
    assert torch.equal(TokenSampler(0.0, 1.0, generator)(logits), logits.argmax(-1))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampler_draws_from_the_softmax(temperature: float) -> None:
    """Chi-square of 40,000 draws, 5 degrees of freedom; the bound is exceeded once in 100,000."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -0.5, -torch.inf])
    draws = TokenSampler(temperature, 1.0, seeded())(logits.expand(1, 40_000, 7)).flatten()
    expected = (logits.double() / temperature).softmax(-1)[:6] * 40_000
    counts = draws.bincount(minlength=7)
    assert counts[6] == 0
    assert float(((counts[:6] - expected) ** 2 / expected).sum()) < 32.0


def test_ar_predicts_from_the_last_token(ar: Any) -> None:
    """Greedy, against a forward over everything so far for each token."""
    front = [] if ar.config.prepend_token_id is None else [1]
    prompt = torch.tensor([[4, 5]])
    output = ar.generate(prompt, length=12, temperature=0.0)
    tokens = torch.cat([prompt.new_tensor([front]), prompt], dim=1)
    while tokens.shape[1] < 12 + len(front):
        with torch.no_grad():
            following = ar(tokens).logits[:, -1].argmax(-1)
        tokens = torch.cat([tokens, following[:, None]], dim=1)
    assert torch.equal(output.sequences, tokens[:, len(front) :])
    assert output.nfe == 10
    sampled = [ar.generate(length=9, seed=4, num_samples=2, use_cache=c).sequences for c in (0, 1)]
    assert torch.equal(*sampled)
    assert sampled[0].shape == (2, 9)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="no decoder for networks trained as 'sedd'"):
        random_network(objective="sedd").generate()


class Drafts:
    def __init__(self) -> None:
        self.put_values: list[Any] = []
        self.drafts: list[Any] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.put_values.append(value)

    def put_draft(self, value: Any) -> None:
        self.drafts.append(value)

    def end(self) -> None:
        self.ended = True


def test_streamer_sees_every_pass(esolm: Any, ar: Any) -> None:
    for network in (esolm, ar):
        streamer, prompt = Drafts(), torch.tensor([[3, 4]])
        output = network.generate(prompt, length=10, alpha_0=0.5, seed=0, streamer=streamer)
        assert len(streamer.drafts) == output.nfe
        assert torch.equal(streamer.drafts[-1], output.sequences)
        assert torch.equal(torch.cat(streamer.put_values, dim=1), output.sequences)
        masks = [int((draft == 29).sum()) for draft in streamer.drafts]
        assert masks == (8 - output.counts.cumsum(0)).tolist()
        assert streamer.ended


def test_configuration(esolm: Any, tmp_path: Path) -> None:
    config = EsoLMGenerationConfig(alpha_0=0.25, num_steps=3, length=8, seed=5)
    config.save_pretrained(tmp_path)
    again = EsoLMGenerationConfig.from_pretrained(tmp_path)
    assert (again.alpha_0, again.num_steps, again.length, again.seed) == (0.25, 3, 8, 5)
    output = esolm.generate(generation_config=again, length=9)
    assert torch.equal(
        output.sequences, esolm.generate(alpha_0=0.25, num_steps=3, length=9, seed=5).sequences
    )
    with pytest.raises(ValueError, match=r"alpha_0 is 2; .*top_p is 0"):
        EsoLMGenerationConfig(alpha_0=2, top_p=0)
    with pytest.raises(ValueError, match="unknown generation options: max_new_tokens"):
        esolm.generate(max_new_tokens=3)
