"""What `generate` and `forward` of a bundle refuse, and the forms that their input may have."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pipeline.generate.conftest import network

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
        (torch.tensor([[4, 29, 5]]), {}, "has the mask id 29"),
        (torch.tensor([[4, 30]]), {}, "outside of the vocabulary, 0 to 29"),
        (torch.tensor([[-1]]), {}, "outside of the vocabulary"),
        (
            PROMPT,
            {"attention_mask": torch.tensor([[0, 1, 1]])},
            "attention_mask has zeros.*one prompt",
        ),
        (None, {"temperature": float("nan")}, "temperature is nan"),
        (None, {"temperature": float("inf")}, "temperature is inf"),
        (None, {"top_p": float("nan")}, "top_p is nan"),
        (None, {"alpha_0": float("nan")}, "alpha_0 is nan"),
        (None, {"num_steps": 2.5}, r"num_steps is 2\.5; it must be a whole number"),
        (None, {"length": 8.0}, r"length is 8\.0"),
        (None, {"seed": 0.5}, r"seed is 0\.5"),
        (None, {"max_new_tokens": 5}, "unknown generation options: max_new_tokens"),
    ],
)
def test_refused(esolm: Any, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        esolm.generate(prompt, **{**SHORT, **options})


def test_forward_refuses_padding() -> None:
    with pytest.raises(ValueError, match=r"attention_mask has zeros.*one prompt"):
        logits(PROMPT, attention_mask=torch.tensor([[0, 1, 1]]))
    assert torch.equal(logits(PROMPT, attention_mask=torch.ones_like(PROMPT)), logits(PROMPT))


def test_one_row_serves_all_samples(esolm: Any) -> None:
    output = esolm.generate(PROMPT, num_samples=3, **SHORT)
    assert torch.equal(output.sequences[:, :3], PROMPT.repeat(3, 1))
    repeated = esolm.generate(PROMPT.repeat(3, 1), **SHORT)
    assert torch.equal(output.sequences, repeated.sequences)
    assert output.num_written == 15


def test_what_a_tokenizer_returns(esolm: Any) -> None:
    returned = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    returned["token_type_ids"] = torch.zeros_like(PROMPT)
    output = esolm.generate(**returned, **SHORT)
    assert torch.equal(output.sequences, esolm.generate(PROMPT, **SHORT).sequences)


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
