"""Decoding of every system: the cache, the logits of every pass, plans, refusals."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from esolm.pipeline.export.bundle.masked_diffusion_esolm import draw_block_plan, draw_passes, due
from tests.pipeline.generate.systems import MASK_ID, OBJECTIVES, System, counts_of_row

LENGTH = 8
with_a_cache = pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "mdlm"])
every = pytest.mark.parametrize("name", list(OBJECTIVES))
# (alpha_0, num_steps, prompt tokens); the third draws no token for the diffusion phase.
SCHEDULES = [
    (0.0, 1, 0), (0.0, 2, 3), (0.01, 1, 3), (0.5, 2, 0), (0.5, 4, 2), (1.0, 1, 0), (1.0, 3, 5),
]  # fmt: skip


@cache
def system(name: str, dtype: torch.dtype = torch.float64) -> System:
    return System(name, dtype)


@with_a_cache
def test_cached_equals_uncached(name: str) -> None:
    made = system(name)
    for seed, (alpha_0, num_steps, given) in enumerate(SCHEDULES):
        options = {
            "alpha_0": alpha_0, "num_steps": num_steps, "length": 24, "num_samples": 3,
            "seed": seed, "top_p": 0.95,
        }  # fmt: skip
        prompt = made.prompt(3, given)
        cached = made.model.generate(prompt, **options)
        uncached = made.model.generate(prompt, use_cache=False, **options)
        assert torch.equal(cached.sequences, uncached.sequences)
        assert torch.equal(cached.order, uncached.order)
        assert not (cached.sequences == MASK_ID).any()


def run_with_logits(
    made: System, prompt: Tensor | None, **options: Any
) -> tuple[Any, list[Tensor]]:
    """The output, and the logits that each pass handed to the sampler."""
    passes: list[Tensor] = []
    handle = made.model.register_forward_hook(lambda *args: passes.append(args[-1].logits))
    try:
        return made.model.generate(prompt, length=LENGTH, num_samples=2, **options), passes
    finally:
        handle.remove()


@every
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["fp32", "fp64"]
)
def test_logits_of_every_pass(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Against loops over dense rules of the training patterns, one row at a time, no cache."""
    made = system(name, dtype)
    for seed, (alpha_0, num_steps, given) in enumerate(SCHEDULES[1:6]):
        output, passes = run_with_logits(
            made, made.prompt(2, given), alpha_0=alpha_0, num_steps=num_steps, seed=seed
        )
        assert len(passes) == output.nfe == len(output.counts)
        for row in range(2):
            counts = counts_of_row(output, row)
            written = given = LENGTH - sum(counts)
            num_diffusion = given + sum(counts[: output.num_diffusion])
            if alpha_0 == 0:
                num_diffusion = 0
            for logits, count in zip(passes, counts, strict=True):
                expected = made.logits_of_pass(
                    output.sequences[row], output.order[row], written, count, num_diffusion
                )
                found = logits[row, :count].double()
                assert torch.equal(found.isfinite(), expected.isfinite())
                finite = expected.isfinite()
                assert count == 0 or float((found - expected)[finite].abs().max()) < tolerance
                written += count


@every
def test_prompt_seeds_and_streams(name: str) -> None:
    made = system(name)
    prompt = made.prompt(2, 3)
    assert prompt is not None
    drafts: list[Tensor] = []

    class Streamer:
        put = end = staticmethod(lambda *_: None)
        put_draft = staticmethod(drafts.append)

    options = {"length": 16, "alpha_0": 0.5, "num_steps": 4}
    output = made.model.generate(prompt, seed=1, streamer=Streamer(), **options)
    assert torch.equal(output.sequences[:, :3], prompt)
    assert torch.equal(output.order[:, :3], torch.arange(3).expand(2, 3))
    assert len(drafts) == output.nfe
    assert torch.equal(drafts[-1], output.sequences)
    for row in range(2):
        counts = torch.tensor(counts_of_row(output, row)).cumsum(0)
        assert [int((draft[row] == MASK_ID).sum()) for draft in drafts] == (13 - counts).tolist()
    again, other = (made.model.generate(prompt, seed=seed, **options) for seed in (1, 2))
    assert torch.equal(output.sequences, again.sequences)
    assert not torch.equal(output.sequences, other.sequences)
    full = made.model.generate(output.sequences, length=16, seed=0)
    assert full.nfe == 0
    assert torch.equal(full.sequences, output.sequences)


def test_passes_of_masked_diffusion() -> None:
    """Every token at one of the steps, each as likely; a row's passes are numbered without gaps."""
    passes = draw_passes(2000, 5, 3, torch.Generator().manual_seed(0))
    for row in passes.tolist():
        assert sorted(set(row)) == list(range(max(row) + 1))
    # With 3 steps 5 tokens are written at once with chance 3 / 3 ** 5.
    at_once = int((passes.max(1).values == 0).sum())
    assert abs(at_once - 2000 / 81) < 5 * (2000 / 81) ** 0.5
    assert draw_passes(4, 6, 1, torch.Generator()).tolist() == [[0] * 6] * 4


def test_nfe_of_masked_diffusion() -> None:
    """No pass for a step that writes nothing, in any row of a batch."""
    made = system("mdlm")
    assert made.model.generate(length=12, num_steps=1, seed=0).nfe == 1
    output = made.model.generate(length=12, num_steps=1000, num_samples=4, seed=0)
    assert output.nfe <= 12
    assert output.counts.sum(0).tolist() == [12] * 4
    assert output.num_diffusion == output.nfe
    blocks = system("bd3lm").model.generate(length=12, num_steps=1, seed=0)
    assert blocks.counts.tolist() == [[4]] * 3
    assert system("bd3lm").model.generate(length=12, num_steps=500, seed=0).nfe <= 12


def test_a_finished_block_is_fed_once_more_and_no_block_before_it() -> None:
    made, fed = system("bd3lm"), []
    handle = made.model.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    output = made.model.generate(length=24, num_steps=2, seed=0)
    handle.remove()
    assert max(fed) == 8
    assert sum(fed) == 4 * output.nfe + 4 * 5


def test_plan_of_blocks() -> None:
    prompt = torch.zeros(3, 6, dtype=torch.int64)
    plan = draw_block_plan(prompt, 12, 4, 8, torch.Generator().manual_seed(0))
    assert (plan.passes[:, :6] == -1).all()
    for number, end in enumerate(plan.ends):
        rows, places = (plan.passes == number).nonzero(as_tuple=True)
        assert len(rows)
        assert ((places >= end - 4) & (places < end)).all()
    assert sorted(plan.order[0].tolist()) == list(range(12))
    assert torch.tensor(plan.counts).sum(0).tolist() == [6] * 3


def test_due_places() -> None:
    chosen = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    places, is_due = due(chosen)
    assert places.tolist() == [[1, 3], [0, 1], [0, 1]]
    assert is_due.tolist() == [[True, True], [True, False], [False, False]]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="length is 10; it must be a multiple of the block size 4"):
        system("bd3lm").model.generate(length=10)
    with pytest.raises(ValueError, match="predicts no first token: give a prompt"):
        system("bd3lm_bos").model.generate(length=8)
    with pytest.raises(ValueError, match="predicts no first token: give a prompt"):
        system("bd3lm_bos").model.generate(torch.zeros(2, 0, dtype=torch.int64), length=8)
    unknown = System("bd3lm")
    unknown.model.config.block_size = None
    with pytest.raises(ValueError, match="does not say its block size: export the network again"):
        unknown.model.generate(length=8)
    unknown.model.config.bos_token_id, unknown.model.config.keep_first = 7, True
    unknown.model.config.block_size = 4
    sequences = unknown.model.generate(length=8, num_samples=2, seed=0).sequences
    assert sequences[:, 0].tolist() == [7, 7]
