"""Two-phase and left-to-right decoding through `generate`: cache, reproducibility, streaming."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.pipeline.export.bundle.generation_esolm import EsoLMGenerationConfig
from tests.pipeline.generate.conftest import network as random_network
from tests.pipeline.generate.systems import written_by


def test_cached_equals_uncached(esolm: Any) -> None:
    for seed, alpha_0 in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        for num_steps in (1, 4, 32):
            options = {
                "alpha_0": alpha_0, "num_steps": num_steps, "length": 20, "num_samples": 3,
                "seed": seed, "top_p": 0.95,
            }  # fmt: skip
            cached = written_by(esolm, **options)
            uncached = written_by(esolm, use_cache=False, **options)
            assert torch.equal(cached.sequences, uncached.sequences)
            assert torch.equal(cached.order, uncached.order)


def test_every_step_is_a_full_forward_of_what_is_written(esolm: Any) -> None:
    """Temperature 0 by hand: each pass of the plan from nothing but the tokens before it."""
    output = written_by(esolm, length=12, alpha_0=0.5, num_steps=3, temperature=0.0, seed=3)
    order, tokens = output.order, torch.full((1, 12), 29)
    written = 0
    for count in output.counts[:, 0].tolist():
        end = written + count
        with torch.no_grad():
            logits = esolm(tokens[:, :end], order[:, :end]).logits
        tokens[:, written:end] = logits[:, written:].argmax(-1)
        written = end
    assert torch.equal(output.sequences.gather(1, order), tokens)


def test_prompt_is_kept_and_comes_first(esolm: Any) -> None:
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    output = written_by(esolm, prompt, length=16, alpha_0=0.5, num_steps=4, seed=0)
    assert output.sequences.shape == (2, 16)
    assert torch.equal(output.sequences[:, :3], prompt)
    assert output.order[:, :3].tolist() == [[0, 1, 2]] * 2
    assert output.counts.sum(0).tolist() == [13, 13]
    full = written_by(esolm, output.sequences, length=16, seed=0)
    assert full.nfe == 0
    assert torch.equal(full.sequences, output.sequences)
    with pytest.raises(ValueError, match="prompt has 16 tokens, length is 4"):
        written_by(esolm, output.sequences, length=4)


def test_seeds_reproduce(esolm: Any) -> None:
    options = {"length": 16, "alpha_0": 0.5, "num_steps": 4, "num_samples": 2}
    first, second = (written_by(esolm, seed=1, **options) for _ in range(2))
    other = written_by(esolm, seed=2, **options)
    assert torch.equal(first.sequences, second.sequences)
    assert not torch.equal(first.sequences, other.sequences)
    assert not torch.equal(first.sequences[0], first.sequences[1])
    assert not torch.equal(first.order[0], first.order[1])
    unseeded = [written_by(esolm, **options).sequences for _ in range(2)]
    assert not torch.equal(*unseeded)


def test_never_writes_a_mask(esolm: Any) -> None:
    assert not (written_by(esolm, length=64, num_samples=4, seed=0).sequences == 29).any()


def test_nfe(esolm: Any) -> None:
    left_to_right = written_by(esolm, length=10, alpha_0=0.0, seed=0)
    assert left_to_right.nfe == 10
    assert left_to_right.order.tolist() == [list(range(10))]
    assert written_by(esolm, length=10, alpha_0=1.0, num_steps=1, seed=0).nfe == 1
    calls = []
    handle = esolm.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    output = written_by(esolm, length=30, alpha_0=0.5, num_steps=4, seed=0)
    handle.remove()
    assert output.nfe == len(output.counts) == len(calls)


def test_feeds_each_token_at_most_twice(esolm: Any) -> None:
    """Once as a mask and once clean: under 2 L token-forwards, whatever the number of steps."""
    fed = []
    embed = esolm.model.embed_tokens
    handle = embed.register_forward_pre_hook(lambda _, args: fed.append(len(args[0])))
    written_by(esolm, length=50, alpha_0=0.5, num_steps=10, seed=0)
    handle.remove()
    # A pass of two or three is filled up to four.
    assert sum(fed) < 2 * 50 + 2 * len(fed)


def test_ar_predicts_from_the_last_token(ar: Any) -> None:
    """Greedy, against a forward over everything so far for each token."""
    front = [] if ar.config.prepend_token_id is None else [1]
    prompt = torch.tensor([[4, 5]])
    output = written_by(ar, prompt, length=12, temperature=0.0)
    tokens = torch.cat([prompt.new_tensor([front]), prompt], dim=1)
    while tokens.shape[1] < 12 + len(front):
        with torch.no_grad():
            following = ar(tokens).logits[:, -1].argmax(-1)
        tokens = torch.cat([tokens, following[:, None]], dim=1)
    assert torch.equal(output.sequences, tokens[:, len(front) :])
    assert output.nfe == 10
    sampled = [
        written_by(ar, length=9, seed=4, num_samples=2, use_cache=c).sequences for c in (0, 1)
    ]
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
        output = written_by(network, prompt, length=10, alpha_0=0.5, seed=0, streamer=streamer)
        assert len(streamer.drafts) == output.nfe
        assert torch.equal(streamer.drafts[-1], output.sequences)
        assert torch.equal(torch.cat(streamer.put_values, dim=1), output.sequences)
        masks = [int((draft == 29).sum()) for draft in streamer.drafts]
        assert masks == (8 - output.counts[:, 0].cumsum(0)).tolist()
        assert streamer.ended


def test_configuration(esolm: Any, tmp_path: Path) -> None:
    config = EsoLMGenerationConfig(alpha_0=0.25, num_steps=3, length=8, seed=5)
    config.save_pretrained(tmp_path)
    again = EsoLMGenerationConfig.from_pretrained(tmp_path)
    assert (again.alpha_0, again.num_steps, again.length, again.seed) == (0.25, 3, 8, 5)
    output = written_by(esolm, generation_config=again, length=9)
    assert torch.equal(
        output.sequences, written_by(esolm, alpha_0=0.25, num_steps=3, length=9, seed=5).sequences
    )
    with pytest.raises(ValueError, match=r"alpha_0 is 2; .*top_p is 0"):
        EsoLMGenerationConfig(alpha_0=2, top_p=0)
    with pytest.raises(ValueError, match="unknown generation options: mew_tokens"):
        written_by(esolm, mew_tokens=3)
