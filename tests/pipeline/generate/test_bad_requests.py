"""What `generate` and `forward` of a bundle refuse, and the forms that their input may have."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pipeline.generate.conftest import network
from tests.pipeline.generate.systems import written_by

PROMPT = torch.tensor([[4, 5, 6]])
SHORT: dict[str, Any] = {"length": 8, "num_steps": 3, "alpha_0": 0.5, "seed": 1}


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (PROMPT.repeat(2, 1), {"num_samples": 3}, "has 2 rows and num_samples is 3"),
        (None, {"num_samples": 0}, "num_samples is 0"),
        (None, {"num_samples": -1}, "num_samples is -1"),
        (None, {"num_samples": 1.5}, r"num_samples is 1\.5"),
        (PROMPT[0], {}, r"the prompt is \(3,\)"),
        (PROMPT[:0], {}, r"the prompt is \(0, 3\)"),
        ([[4, 5]], {}, "the prompt is list"),
        (PROMPT.float(), {}, "as int64"),
        (torch.tensor([[4, 30]]), {}, "outside of the vocabulary, 0 to 29"),
        (torch.tensor([[-1]]), {}, "outside of the vocabulary"),
        (
            PROMPT,
            {"attention_mask": torch.tensor([[0, 1]])},
            r"has shape \(1, 2\); \(1, 3\) is due",
        ),
        (None, {"schedule": "backwards"}, "schedule is 'backwards'; choose of binomial, fixed"),
        (None, {"top_k": -1}, "top_k is -1"),
        (None, {"temperature": float("nan")}, "temperature is nan"),
        (None, {"temperature": float("inf")}, "temperature is inf"),
        (None, {"top_p": float("nan")}, "top_p is nan"),
        (None, {"alpha_0": float("nan")}, "alpha_0 is nan"),
        (None, {"num_steps": 2.5}, r"num_steps is 2\.5; it must be a whole number"),
        (None, {"length": 8.0}, r"length is 8\.0"),
        (None, {"seed": 0.5}, r"seed is 0\.5"),
        (None, {"mew_tokens": 5}, "unknown generation options: mew_tokens"),
    ],
)
def test_refused(esolm: Any, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        esolm.generate(prompt, **{**SHORT, **options})


def test_one_row_serves_all_samples(esolm: Any) -> None:
    output = written_by(esolm, PROMPT, num_samples=3, **SHORT)
    assert torch.equal(output.sequences[:, :3], PROMPT.repeat(3, 1))
    assert torch.equal(output.sequences, esolm.generate(PROMPT.repeat(3, 1), **SHORT))
    assert output.num_written == 15


def test_what_a_tokenizer_returns(esolm: Any) -> None:
    returned = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    returned["token_type_ids"] = torch.zeros_like(PROMPT)
    assert torch.equal(esolm.generate(**returned, **SHORT), esolm.generate(PROMPT, **SHORT))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts(esolm: Any, side: str) -> None:
    """Each row is written as if it were alone, behind the prompts as they were given."""
    prompts = [[4, 5, 6], [7], [8, 9]]
    padded = torch.full((3, 3), 1)
    shown = torch.zeros(3, 3, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        places = slice(len(prompt)) if side == "right" else slice(3 - len(prompt), 3)
        padded[row, places], shown[row, places] = torch.tensor(prompt), 1
    options = {"num_steps": 3, "alpha_0": 0.5, "seed": 1, "max_new_tokens": 5}
    written = esolm.generate(padded, attention_mask=shown, **options)
    assert written.shape == (3, 8)
    assert torch.equal(written[:, :3], padded)
    first = esolm.generate(torch.tensor([prompts[0]]), **options)
    assert torch.equal(written[0], first[0])


def test_masks_in_a_prompt_are_gaps(esolm: Any) -> None:
    prompt = torch.tensor([[4, 29, 29, 7, 8, 29]])
    output = written_by(esolm, prompt, max_new_tokens=0, num_steps=2, alpha_0=0.5, seed=1)
    found = output.sequences
    assert found.shape == (1, 6)
    assert found[0, [0, 3, 4]].tolist() == [4, 7, 8]
    assert not (found == 29).any()
    assert output.order[0, :3].tolist() == [0, 3, 4]


def test_a_text_that_ends(esolm: Any) -> None:
    """Behind the first eos whose front is written nothing counts; not before min_new_tokens."""
    free = esolm.generate(PROMPT, length=40, alpha_0=0.5, num_steps=8, seed=3)[0]
    eos = int(free[12])
    options = {"length": 40, "alpha_0": 0.5, "num_steps": 8, "seed": 3, "eos_token_id": eos}
    ended = esolm.generate(PROMPT, **options)[0]
    first = 3 + free[3:].tolist().index(eos)
    assert torch.equal(ended[: first + 1], free[: first + 1])
    assert len(ended) == first + 1
    late = esolm.generate(PROMPT, **options, min_new_tokens=20)[0]
    assert eos not in late[3:23].tolist()


def test_a_gap_in_front_of_something_given_is_filled_whatever_ends_a_text(esolm: Any) -> None:
    """An end is not written there, so no later gap is left open."""
    prompt = torch.tensor([[1, 29, 29, 29, 29, 29, 29, 5, 6, 7]])
    ended = 0
    for seed in range(20):
        options = {"length": 24, "alpha_0": 0.5, "num_steps": 6, "seed": seed}
        free = esolm.generate(prompt, **options)[0]
        eos = int(free[12])
        found = esolm.generate(prompt, **options, eos_token_id=eos)[0]
        assert not (found == 29).any()
        assert found[7:10].tolist() == [5, 6, 7]
        assert eos not in found[1:7].tolist()
        ended += len(found) < 24
    assert ended > 10


@pytest.mark.parametrize("prefix", [2, [2, 2, 2], torch.tensor(2), torch.tensor([2])])
def test_forms_of_a_prefix_length(prefix: Any) -> None:
    tokens = torch.randint(29, (3, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        logits(tokens, attention_pattern="prefix", prefix_length=prefix),
        logits(tokens, attention_pattern="prefix", prefix_length=torch.tensor([2, 2, 2])),
    )
    with pytest.raises(ValueError, match=r"prefix_length has shape \(2,\); \(3,\) is due"):
        logits(tokens, attention_pattern="prefix", prefix_length=[2, 2])


def test_forms_of_positions() -> None:
    """As many rows as tokens: positions of one row must not be taken for those of the batch."""
    tokens = torch.randint(29, (4, 4), generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(logits(tokens, order), logits(tokens, order.expand(4, 4)))
    with pytest.raises(ValueError, match=r"position_ids has shape \(3,\); \(4, 4\) is due"):
        logits(tokens, torch.arange(3))


@torch.no_grad()
def logits(*arguments: Any, **options: Any) -> Tensor:
    found: Tensor = network()(*arguments, **options).logits
    return found
