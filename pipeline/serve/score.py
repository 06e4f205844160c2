"""`/v1/score`: the likelihood of given texts."""

import math
import time
from typing import Any

import torch

from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.schemas import ScoreRequest
from esolm.pipeline.serve.service import Service


async def score(service: Service, request: ScoreRequest) -> dict[str, Any]:
    """The answer; the network works in a thread of its own. Raises ApiError."""
    began = time.monotonic()
    service.check_model(request.model)
    if request.alpha_0 is not None and request.num_orders == 1:
        message = "alpha_0: is of drawn orders only: set num_orders above 1, or leave it out"
        raise ApiError(400, message, "alpha_0")
    texts = [request.text] if isinstance(request.text, str) else request.text
    given = await service.aside(service.ids, request.given, "given") if request.given else []
    ids_of_texts = [await service.aside(service.ids, text, "text") for text in texts]
    for ids in ids_of_texts:
        if not ids:
            raise ApiError(400, "text: it has no tokens", "text")
        service.check_length(len(given) + len(ids), "text")
    scores = []
    how = {"num_orders": request.num_orders, "alpha_0": request.alpha_0, "seed": request.seed}
    for text, ids in zip(texts, ids_of_texts, strict=True):
        try:
            log_p = await service.likelihood(began, log_p_of, service, given, ids, how)
        except ValueError as error:
            raise ApiError(400, str(error), "num_orders") from None
        num_bytes = len(text.encode())
        scores.append({
            "log_likelihood": log_p,
            "tokens": len(ids),
            "nats_per_token": -log_p / num_predicted(service, given, ids),
            "bits_per_byte": -log_p / math.log(2) / num_bytes,
        })  # fmt: skip
    return {"object": "score", "model": service.name, "scores": scores}


def log_p_of(
    service: Service, given: list[int], ids: list[int], how: dict[str, Any] | None = None
) -> float:
    """log p of the ids behind what is given, in nats; from left to right, unless `how` says more.

    Raises ValueError for what the network cannot tell.
    """
    tokens = torch.tensor([given + ids])
    front = torch.arange(tokens.shape[1]) < len(given)
    model = service.bundle.model
    return float(model.log_likelihood(tokens.to(model.device), given=front, **(how or {})))


def num_predicted(service: Service, given: list[int], ids: list[int]) -> int:
    """Tokens that have a share in log p; 1 where there is none, for the mean is 0 then."""
    return max(len(ids) - (service.config.first_is_given and not given), 1)
