"""Requests of every kind in one batch, and networks in fp32 and bf16, against enumeration."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from esolm.pipeline.export.bundle.decoding_esolm import Batch
from esolm.pipeline.export.bundle.requests_esolm import TextRequest
from tests.model.enumeration import LENGTH, MASK_ID, SEQUENCES
from tests.pipeline.evaluate.test_sampler_statistics import (
    ROWS,
    distance,
    exact,
    is_plausible,
    log_p_of_plan,
    model,
)
from tests.pipeline.generate.systems import written_by

__all__ = ["model"]

OPEN, GAPS, PROMPT = [MASK_ID] * 4, [MASK_ID, MASK_ID, 1, MASK_ID], [2, MASK_ID, MASK_ID, MASK_ID]
# tokens, alpha_0, num_steps, schedule, guesses, seed
KINDS = [
    (OPEN, 0.0, 1, "binomial", 0, 1),
    (OPEN, 0.5, 3, "binomial", 0, 2),
    (OPEN, 1.0, 2, "fixed", 0, 3),
    (OPEN, 1.0, 2, "strided", 0, 4),
    (OPEN, 0.0, 1, "binomial", 3, 5),
    (OPEN, 0.5, 3, "binomial", 2, 6),
    (GAPS, 0.5, 2, "fixed", 0, 7),
    (GAPS, 0.5, 2, "strided", 2, 8),
    (PROMPT, 0.7, 3, "binomial", 0, 9),
    (PROMPT, 0.0, 1, "fixed", 1, 10),
]
ROWS_OF_A_KIND, NEIGHBOURS = 600, 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_follow_the_network_of_their_dtype(model: Any, dtype: torch.dtype) -> None:
    """Exact is what `forward` says of the same rounded weights in the same dtype.

    In bf16 the decoder multiplies by other kernels than `forward` and rounds elsewhere. So many
    rows cannot tell that, nor bf16 from the unrounded weights (chi-square differs by less than 1):
    what is shown is that nothing on the way from logits to text is biased in these dtypes.
    """
    rounded = copy.deepcopy(model).to(dtype)
    value, degrees = 0.0, 0
    for seed in (0, 1):
        output = written_by(
            rounded, num_samples=ROWS, length=LENGTH, alpha_0=0.5, num_steps=3, seed=seed
        )
        counts = tuple(output.counts[:, 0].tolist())
        p = exact(rounded, sum(counts[: output.num_diffusion[0]]), counts)
        found, freedom = distance(output.sequences, ROWS * p)
        value, degrees = value + found, degrees + freedom
    assert is_plausible(value, degrees), (value, degrees)


def exact_of(model: Any, tokens: list[int], plan: Any, is_strided: bool) -> Tensor:
    """[81]: p of all texts with what is given, the mean over the orders that are possible."""
    given = tuple(i for i in range(LENGTH) if tokens[i] != MASK_ID)
    free = [i for i in range(LENGTH) if i not in given]
    num_random = sum(plan.counts[: plan.num_diffusion])
    fronts = list(itertools.permutations(free, num_random))
    if is_strided:
        fronts = [tuple(plan.places[:num_random].tolist())]
    orders = [(*given, *front, *(i for i in free if i not in front)) for front in fronts]
    counts = tuple(plan.counts)
    p = torch.stack([log_p_of_plan(model, order, counts).exp() for order in orders]).mean(0)
    fits = (SEQUENCES[:, list(given)] == torch.tensor([tokens[i] for i in given])).all(1)
    return torch.where(fits, p, 0.0)


def test_every_kind_of_request_in_one_batch(model: Any) -> None:
    """Chi-square of each kind for itself; a few neighbours are of one kind, then others come."""
    batch = Batch(model, ROWS_OF_A_KIND * len(KINDS), LENGTH + 4)
    written: list[list[Any]] = [[] for _ in KINDS]
    for first in range(0, ROWS_OF_A_KIND, NEIGHBOURS):
        for kind, (tokens, alpha_0, num_steps, schedule, guesses, seed) in enumerate(KINDS):
            for sample in range(first, first + NEIGHBOURS):
                request = TextRequest(
                    tokens, alpha_0, num_steps, schedule,
                    seed=seed, sample=sample, guesses=guesses,
                )  # fmt: skip
                written[kind].append(batch.add(request))
    while batch.step():
        pass
    for (tokens, _, _, schedule, *_), writings in zip(KINDS, written, strict=True):
        plan = writings[0].walk.plan
        assert all(each.walk.plan.counts == plan.counts for each in writings)
        p = exact_of(model, tokens, plan, schedule == "strided")
        assert float(p.sum()) == pytest.approx(1.0)
        texts = torch.stack([torch.from_numpy(batch.tokens(each)) for each in writings])
        assert is_plausible(*distance(texts, len(texts) * p)), (tokens, schedule)
