"""`logprobs` of completions: of each token of a text given those to its left, by one forward pass.

That is the network's true likelihood from left to right, whatever the order in which the text was
written.
"""

from typing import Any

import torch

from esolm.data_prep.tokenizers import Tokenizer
from esolm.pipeline.export.bundle.likelihood_esolm import left_to_right_log_p


def logprobs_of(
    model: Any, tokenizer: Tokenizer, ids: list[int], first: int, most: int
) -> dict[str, list[Any]]:
    """As OpenAI has them, of the tokens from `first` on, with the `most` likeliest beside each."""
    log_p = left_to_right_log_p(model, torch.tensor([ids], device=model.device))[0].cpu()
    found: dict[str, list[Any]] = {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
    }  # fmt: skip
    start = len(tokenizer.decode(ids[:first]))
    for place in range(first, len(ids)):
        row, before = log_p[place], len(tokenizer.decode(ids[:place]))
        text = tokenizer.decode(ids[: place + 1])[before:]
        known = not bool(row.isnan().any())
        best = row.topk(most) if known and most else None
        found["tokens"].append(text)
        found["token_logprobs"].append(float(row[ids[place]]) if known else None)
        found["top_logprobs"].append(
            None
            if best is None
            else {
                tokenizer.decode([*ids[:place], token])[before:]: value
                for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            }
        )
        found["text_offset"].append(before - start)
    return found
