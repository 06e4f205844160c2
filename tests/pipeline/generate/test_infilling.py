"""`infill`: what is given stays, ranges of lengths, refusals."""

from typing import Any

import numpy as np
import pytest
import torch

from esolm.pipeline.export.bundle.decoding_esolm import Batch
from tests.pipeline.generate.systems import MASK_ID, System


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "mdlm"])
def test_what_is_given_never_changes(name: str) -> None:
    model, draws = System(name).model, np.random.default_rng(0)
    for seed in range(20):
        segments: list[Any] = []
        for _ in range(int(draws.integers(1, 4))):
            segments += [draws.integers(MASK_ID, size=draws.integers(5)).tolist()]
            segments += [int(draws.integers(1, 5))]
        found = model.infill(segments, seed=seed, alpha_0=float(draws.random()), num_steps=3)
        assert found.lengths == [each for each in segments if isinstance(each, int)]
        for segment, written in zip(segments, found.segments, strict=True):
            assert segment == (len(written) if isinstance(segment, int) else written)
        assert MASK_ID not in found.tokens.tolist()
        given = [not isinstance(s, int) for s in segments for _ in range(_size(s))]
        assert found.given.tolist() == given
        assert [token for each in found.segments for token in each] == found.tokens.tolist()


def _size(segment: Any) -> int:
    return segment if isinstance(segment, int) else len(segment)


def test_the_likeliest_length_is_taken() -> None:
    model = System("esolm_b").model
    options = {"seed": 5, "alpha_0": 0.5, "num_steps": 3}
    single = [model.infill([[1, 2], size, [3]], **options) for size in (2, 3, 4, 5)]
    scores = [float(model.log_likelihood(each.tokens[None])) / len(each.tokens) for each in single]
    found = model.infill([[1, 2], (2, 5), [3]], **options)
    best = single[int(np.argmax(scores))]
    assert torch.equal(found.tokens, best.tokens)
    assert found.lengths == best.lengths


def test_a_drawn_length() -> None:
    model = System("esolm_b").model
    lengths = [
        model.infill([[1], (1, 4), [2]], choose="drawn", seed=seed).lengths[0]
        for seed in range(200)
    ]
    counts = np.bincount(lengths, minlength=5)[1:]
    assert (abs(counts - 50) < 30).all()
    again = [model.infill([[1], (1, 4)], choose="drawn", seed=3).tokens.tolist() for _ in (0, 1)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    ("segments", "options", "message"),
    [
        ([[1, 2]], {}, "no gap among the segments"),
        (["text", 3], {}, "give the tokenizer"),
        ([[1], 0], {}, "a gap of 0 to 0 tokens"),
        ([[1], (3, 2)], {}, "a gap of 3 to 2 tokens"),
        ([[1], 2.5], {}, r"not 2\.5"),
        ([[1, MASK_ID], 2], {}, "has the mask id 10: make it a gap"),
        ([[1, 99], 2], {}, "outside of the vocabulary"),
        ([(1, 20), (1, 20)], {}, "400 lengths together, 64 at most"),
        ([[1], 2], {"choose": "best"}, "choose is 'best'"),
        ([[1], 2], {"alpha_0": 2}, "alpha_0 is 2"),
    ],
)
def test_refused(segments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        System("esolm_b").model.infill(segments, **options)


@pytest.mark.parametrize("name", ["mdlm", "bd3lm"])
def test_a_range_without_a_likelihood_is_refused_before_anything_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = System(name).model
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", lambda _: pytest.fail("a pass was made"))
        with pytest.raises(ValueError, match=r"no exact likelihood.*one length, or choose='drawn'"):
            model.infill([[1], (3, 7)], seed=0)
    assert len(model.infill([[1], (3, 3)], seed=0).tokens) == 4
    assert model.infill([[1], (3, 3)], choose="drawn", seed=0).lengths == [3]


def test_networks_from_left_to_right_do_not_fill_gaps() -> None:
    with pytest.raises(ValueError, match="would not know of what is given at 3"):
        System("ar").model.infill([[1], 2, [3]])
    assert System("ar").model.infill([[1], 2], seed=0).lengths == [2]
