"""`best_of`: more texts are written than are asked for, and the likeliest per token are kept."""

from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.logprobs import check_likelihood
from esolm.pipeline.serve.schemas import CompletionRequest
from esolm.pipeline.serve.score import log_p_of
from esolm.pipeline.serve.service import Service


def num_written(service: Service, request: CompletionRequest) -> int:
    """Texts to be written for each prompt. Raises ApiError if none can be chosen of them."""
    asked_for = request.n or 1
    count = asked_for if request.best_of is None else request.best_of
    if count < asked_for:
        raise ApiError(400, f"best_of: {count}, and n is {asked_for}", "best_of")
    if count > asked_for:
        check_likelihood(service.config, request, "best_of")
    return count


async def best(
    service: Service, began: float, prompt: list[int], texts: list[list[int]]
) -> list[int]:
    """Numbers of the texts that were written behind a prompt, the likeliest per token first.

    began: when the request came in, see `Likelihoods`.
    """
    found = [
        await service.likelihood(began, _log_p_per_token, service, prompt, text) for text in texts
    ]
    return sorted(range(len(texts)), key=lambda number: -found[number])


def _log_p_per_token(service: Service, prompt: list[int], text: list[int]) -> float:
    return log_p_of(service, prompt, text) / len(text) if text else 0.0
