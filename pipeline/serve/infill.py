"""`/v1/infill`: text with gaps, which are filled in whatever order the network writes."""

import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from esolm.pipeline.export.bundle.likelihood_esolm import has_likelihood
from esolm.pipeline.serve.engine import Event, PassDone
from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.schemas import Gap, InfillRequest
from esolm.pipeline.serve.score import log_p_of, num_predicted
from esolm.pipeline.serve.service import Service, Text
from esolm.pipeline.serve.texts import Draft, piece


class Infill:
    """A request on its way to its answer. Raises ApiError if it cannot be answered."""

    def __init__(self, service: Service, request: InfillRequest) -> None:
        self.service, self.request = service, request
        service.check_model(request.model)
        self.id, self.created = f"infill-{uuid4().hex}", int(time.time())
        config = service.config
        pieces = [
            [config.mask_token_id] * each.gap if isinstance(each, Gap)
            else service.ids(each, "segments")
            for each in request.segments
        ]  # fmt: skip
        tokens = [token for piece in pieces for token in piece]
        if not tokens:
            raise ApiError(400, "segments: there is neither text nor a gap", "segments")
        service.check_length(len(tokens), "segments")
        if config.block_size is not None:
            tokens += [config.mask_token_id] * (-len(tokens) % config.block_size)
        self.given = [token != config.mask_token_id for token in tokens]
        self.writings = service.writings(request, [Text(tokens)], "segments")
        self.seed = self.writings[0].request.seed
        known = [token if given else None for token, given in zip(tokens, self.given, strict=True)]
        self.draft = Draft(service.tokenizer, known, [len(piece) for piece in pieces])
        self.wrote: dict[int, tuple[int, str]] = {}
        self._started = time.monotonic()

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        with self.service.begun(self.writings) as events:
            async for _, event in events:
                self._take(event)
        return await self._answer("infill")

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes about, by the mode of the stream."""
        mode = self.request.stream_mode
        with self.service.begun(self.writings) as events:
            if mode == "events":
                yield self._start()
            told = ""
            async for _, event in events:
                self._take(event)
                if not isinstance(event, PassDone):
                    continue
                if mode == "events":
                    yield self._passed(event)
                elif mode == "draft":
                    text = self.draft.text(0, len(self.draft.tokens))
                    yield {**self._head("infill.draft"), "text": text}
                else:
                    text = self.draft.text(0, self.draft.num_whole)
                    if len(text) > len(told):
                        yield {**self._head("infill.text"), "text": text[len(told) :]}
                        told = text
        yield await self._answer("infill.end")

    def _take(self, event: Event) -> None:
        if isinstance(event, PassDone):
            self.draft.put(event.places, event.ids)
            self.wrote |= dict.fromkeys(event.places, (event.number, event.phase))

    def _start(self) -> dict[str, Any]:
        given = [place for place, is_given in enumerate(self.given) if is_given]
        return {
            **self._head("infill.start"),
            "length": len(self.given),
            "passes": len(self.writings[0].walk.plan.counts),
            "seed": self.seed,
            "tokens": [self._token(place) for place in given],
        }

    def _passed(self, event: PassDone) -> dict[str, Any]:
        tokens = [self._token(place) for place in event.places]
        head = self._head("infill.pass")
        return {**head, "pass": event.number, "phase": event.phase, "tokens": tokens}

    def _token(self, place: int) -> dict[str, Any]:
        token = self.draft.tokens[place]
        assert token is not None, "only what is written is told"
        return {"position": place, "id": token, "text": piece(self.service.tokenizer, token)}

    async def _answer(self, kind: str) -> dict[str, Any]:
        seconds = time.monotonic() - self._started
        log_p = await self._log_p()
        tokens = []
        for place, given in enumerate(self.given):
            number, phase = self.wrote.get(place, (None, None))
            about = {"given": given, "pass": number, "phase": phase}
            tokens.append({**self._token(place), **about})
        segments = [
            {"text": text, "given": not isinstance(segment, Gap)}
            for text, segment in zip(self.draft.segments(), self.request.segments, strict=True)
        ]
        given, written = sum(self.given), len(self.wrote)
        return {
            **self._head(kind),
            "text": "".join(str(segment["text"]) for segment in segments),
            "segments": segments,
            "tokens": tokens,
            "passes": len(self.writings[0].history),
            "seed": self.seed,
            "seconds": seconds,
            "log_likelihood": log_p,
            "nats_per_token": None if log_p is None else -log_p / self._num_predicted,
            "usage": {
                "prompt_tokens": given,
                "completion_tokens": written,
                "total_tokens": given + written,
            },
        }

    async def _log_p(self) -> float | None:
        """Of the whole text from left to right, if it was asked for and the network has it."""
        if not (self.request.likelihood and has_likelihood(self.service.config)):
            return None
        return await self.service.likelihood(self._started, log_p_of, self.service, [], self._ids)

    @property
    def _ids(self) -> list[int]:
        return [token for token in self.draft.tokens if token is not None]

    @property
    def _num_predicted(self) -> int:
        return num_predicted(self.service, [], self._ids)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.service.name,
        }  # fmt: skip
