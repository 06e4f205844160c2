"""`logprobs` of completions: of each token of a text given those to its left, by one forward pass.

That is the network's true likelihood from left to right, whatever the order in which the text was
written.
"""

from typing import Any

import torch

from esolm.data_prep.tokenizers import Tokenizer
from esolm.pipeline.export.bundle.likelihood_esolm import has_likelihood, left_to_right_log_p
from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.schemas import CompletionRequest

# The text of a token depends on those just before it: on a character's other bytes, on a space.
TOKENS_IN_FRONT = 16


def check_likelihood(config: Any, request: CompletionRequest, param: str) -> None:
    """Raises ApiError where a field asks for a likelihood that cannot be told."""
    if not has_likelihood(config):
        message = f"{param}: a network trained as '{config.trained_as}' has no exact likelihood"
        raise ApiError(400, message, param)
    if request.stream or request.suffix:
        raise ApiError(400, f"{param}: not of streams, nor with a suffix", param)


def logprobs_of(
    model: Any, tokenizer: Tokenizer, ids: list[int], first: int, most: int
) -> dict[str, list[Any]]:
    """As OpenAI has them, of the tokens from `first` on, with the `most` likeliest beside each."""
    log_p = left_to_right_log_p(model, torch.tensor([ids], device=model.device))[0].cpu()
    found: dict[str, list[Any]] = {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
    }  # fmt: skip
    offset = 0
    for place in range(first, len(ids)):
        row, front = log_p[place], ids[max(place - TOKENS_IN_FRONT, 0) : place]
        known = not bool(row.isnan().any())
        best = row.topk(most) if known and most else None
        found["tokens"].append(_behind(tokenizer, front, ids[place]))
        found["token_logprobs"].append(float(row[ids[place]]) if known else None)
        found["top_logprobs"].append(
            None
            if best is None
            else {
                _behind(tokenizer, front, token): value
                for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            }
        )
        found["text_offset"].append(offset)
        offset += len(found["tokens"][-1])
    return found


def _behind(tokenizer: Tokenizer, front: list[int], token: int) -> str:
    """Text that a token adds."""
    return tokenizer.decode([*front, token])[len(tokenizer.decode(front)) :]
