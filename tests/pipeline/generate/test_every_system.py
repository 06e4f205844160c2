"""Decoding of every system: the cache, the logits of every pass, plans, refusals."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pipeline.generate.systems import MASK_ID, OBJECTIVES, System, written_by

LENGTH = 8
# The architecture of today beside the paper's, for one system of each kind of pass.
TODAY = [f"{name}, today" for name in ("esolm_a", "esolm_b", "bd3lm", "ar")]
CACHED = [*(name for name in OBJECTIVES if name != "mdlm"), *TODAY]
with_a_cache = pytest.mark.parametrize("name", CACHED)
every = pytest.mark.parametrize("name", [*OBJECTIVES, *TODAY])
# (alpha_0, num_steps, prompt tokens); the third draws no token for the diffusion phase.
SCHEDULES = [
    (0.0, 1, 0), (0.0, 2, 3), (0.01, 1, 3), (0.5, 2, 0), (0.5, 4, 2), (1.0, 1, 0), (1.0, 3, 5),
]  # fmt: skip


@cache
def system(name: str, dtype: torch.dtype = torch.float64) -> System:
    objective, _, architecture = name.partition(", ")
    return System(objective, dtype, architecture or "paper")


@with_a_cache
def test_cached_equals_uncached(name: str) -> None:
    made = system(name)
    for seed, (alpha_0, num_steps, given) in enumerate(SCHEDULES):
        options = {
            "alpha_0": alpha_0, "num_steps": num_steps, "length": 24, "num_samples": 3,
            "seed": seed, "top_p": 0.95,
        }  # fmt: skip
        prompt = made.prompt(3, given)
        cached = written_by(made.model, prompt, **options)
        uncached = written_by(made.model, prompt, use_cache=False, **options)
        assert torch.equal(cached.sequences, uncached.sequences)
        assert torch.equal(cached.order, uncached.order)
        assert not (cached.sequences == MASK_ID).any()


def run_with_logits(
    made: System, prompt: Tensor | None, **options: Any
) -> tuple[Any, list[Tensor]]:
    """The output, and the logits that each pass handed to the sampler."""
    passes: list[Tensor] = []
    logits_of = made.model.logits_of

    def recorded(hidden: Tensor) -> Tensor:
        logits: Tensor = logits_of(hidden)
        passes.append(logits.clone())
        return logits

    made.model.logits_of = recorded
    try:
        return written_by(made.model, prompt, length=LENGTH, num_samples=2, **options), passes
    finally:
        del made.model.logits_of


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float64, 1e-9) for name in (*OBJECTIVES, *TODAY)),
        *((name, torch.float32, 1e-4) for name in ("esolm_b", "bd3lm_ar", "esolm_a, today")),
    ],
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
            counts = output.counts[:, row].tolist()
            written = given = LENGTH - sum(counts)
            num_diffusion = given + sum(counts[: output.num_diffusion[row]])
            if alpha_0 == 0:
                num_diffusion = 0
            fronts = (output.counts[:, :row].sum(1)).tolist()
            for logits, front, count in zip(passes, fronts, counts, strict=True):
                expected = made.logits_of_pass(
                    output.sequences[row], output.order[row], written, count, num_diffusion
                )
                found = logits[front : front + count].double()
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
    output = written_by(made.model, prompt, seed=1, streamer=Streamer(), **options)
    assert torch.equal(output.sequences[:, :3], prompt)
    assert torch.equal(output.order[:, :3], torch.arange(3).expand(2, 3))
    assert len(drafts) == output.nfe
    assert torch.equal(drafts[-1], output.sequences)
    for row in range(2):
        counts = output.counts[:, row].cumsum(0)
        assert [int((draft[row] == MASK_ID).sum()) for draft in drafts] == (13 - counts).tolist()
    again, other = (written_by(made.model, prompt, seed=seed, **options) for seed in (1, 2))
    assert torch.equal(output.sequences, again.sequences)
    assert not torch.equal(output.sequences, other.sequences)
    full = written_by(made.model, output.sequences, length=16, seed=0)
    assert full.nfe == 0
    assert torch.equal(full.sequences, output.sequences)


def test_nfe_of_masked_diffusion() -> None:
    """No pass for a step that writes nothing, in any row of a batch."""
    made = system("mdlm")
    assert written_by(made.model, length=12, num_steps=1, seed=0).nfe == 1
    output = written_by(made.model, length=12, num_steps=1000, num_samples=4, seed=0)
    assert output.nfe <= 12
    assert output.counts.sum(0).tolist() == [12] * 4
    assert (output.num_diffusion == (output.counts > 0).sum(0)).all()
    blocks = written_by(system("bd3lm").model, length=12, num_steps=1, seed=0)
    assert blocks.counts.tolist() == [[4]] * 3
    assert written_by(system("bd3lm").model, length=12, num_steps=500, seed=0).nfe <= 12


def test_a_finished_block_is_fed_once_more_and_no_block_before_it() -> None:
    made, fed = system("bd3lm"), []
    embed = made.model.model.embed_tokens
    handle = embed.register_forward_pre_hook(lambda _, args: fed.append(len(args[0])))
    output = written_by(made.model, length=24, num_steps=2, seed=0)
    handle.remove()
    assert max(fed) == 8
    assert sum(fed) == 4 * output.nfe + 4 * 5


def test_refusals() -> None:
    with pytest.raises(ValueError, match="length is 10; it must be a multiple of the block size 4"):
        written_by(system("bd3lm").model, length=10)
    with pytest.raises(ValueError, match="predicts no first token: give a prompt"):
        written_by(system("bd3lm_bos").model, length=8)
    with pytest.raises(ValueError, match="predicts no first token: give a prompt"):
        written_by(system("bd3lm_bos").model, torch.zeros(2, 0, dtype=torch.int64), length=8)
    unknown = System("bd3lm")
    unknown.model.config.block_size = None
    with pytest.raises(ValueError, match="does not say its block size: export the network again"):
        written_by(unknown.model, length=8)
    unknown.model.config.bos_token_id, unknown.model.config.keep_first = 7, True
    unknown.model.config.block_size = 4
    sequences = written_by(unknown.model, length=8, num_samples=2, seed=0).sequences
    assert sequences[:, 0].tolist() == [7, 7]
