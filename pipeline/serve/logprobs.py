"""`logprobs` of completions: of each token of a text given those to its left, by one forward pass.

That is the network's true likelihood from left to right, whatever the order in which the text was
written.
"""

from typing import Any

import torch
from torch import Tensor

from esolm.data_prep.tokenizers import Tokenizer

# The text of a token depends on those just before it: on a character's other bytes, on a space.
TOKENS_IN_FRONT = 16


def refuses(trained_as: str) -> bool:
    """Whether networks trained so have no such likelihood."""
    return not trained_as.startswith(("esolm", "ar"))


@torch.inference_mode()
def left_to_right(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities float32 [L, V]; NaN of a first token that the network never predicts."""
    config, tokens = model.config, torch.tensor([ids], device=model.device)
    if config.trained_as == "ar":
        front = config.prepend_token_id
        fed = tokens[:, :-1]
        if front is not None:
            fed = torch.cat([tokens.new_full((1, 1), front), fed], dim=1)
        logits = model(fed, attention_pattern="causal").logits[0] if fed.shape[1] else None
        missing = torch.full((len(ids), config.vocab_size), torch.nan, device=model.device)
        if logits is None:
            return missing
        found = logits.float().log_softmax(-1)
        return found if front is not None else torch.cat([missing[:1], found])
    masks = torch.full_like(tokens, config.mask_token_id)
    logits = model(torch.cat([masks, tokens], dim=1), attention_pattern="two_stream").logits[0]
    return logits.float().log_softmax(-1)  # type: ignore[no-any-return]  # the bundle has no types


def logprobs_of(
    model: Any, tokenizer: Tokenizer, ids: list[int], first: int, most: int
) -> dict[str, list[Any]]:
    """As OpenAI has them, of the tokens from `first` on, with the `most` likeliest beside each."""
    log_p = left_to_right(model, ids).cpu()
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
