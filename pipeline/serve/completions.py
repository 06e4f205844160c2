"""`/v1/completions`: what clients of OpenAI's interface ask for."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from esolm.pipeline.export.bundle.prompts_esolm import stop_at
from esolm.pipeline.serve.best import best, num_written
from esolm.pipeline.serve.engine import Event, Finished, PassDone
from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.logprobs import check_likelihood, logprobs_of
from esolm.pipeline.serve.schemas import CompletionRequest
from esolm.pipeline.serve.service import Service, Text
from esolm.pipeline.serve.texts import Draft, cut, piece, safe


@dataclass
class Choice:
    """One text of the answer. start, end: its written tokens. told: characters streamed so far."""

    index: int
    draft: Draft
    start: int
    end: int
    stops: list[str]
    told: str = ""
    reason: str | None = None

    def take(self, event: Event) -> None:
        """What a pass has written, or how it ended."""
        if isinstance(event, PassDone):
            self.draft.put(event.places, event.ids)
        if isinstance(event, Finished):
            # What ends in the suffix, or in the rest of a block, is as long as it was to be.
            is_stopped = event.reason == "stop" and len(event.ids) <= self.end
            self.reason = "stop" if is_stopped else "length"
            self.end = min(self.end, len(event.ids))

    @property
    def ids(self) -> list[int]:
        """The prompt and what is written behind it, from the left."""
        return [token for token in self.draft.tokens[: self.end] if token is not None]

    @property
    def text(self) -> str:
        """All of it, as far as it is written."""
        return cut(self.draft.text(self.start, self.end), self.stops)

    @property
    def whole(self) -> str:
        """What will not change any more."""
        if self.reason is not None:
            return self.text
        end = min(self.end, max(self.draft.num_whole, self.start))
        return safe(self.draft.text(self.start, end), self.stops)

    def news(self) -> str:
        """What is whole and was not told yet."""
        whole = self.whole
        found, self.told = whole[len(self.told) :], whole
        return found


class Completion:
    """A request on its way to its answer. Raises ApiError if it cannot be answered."""

    def __init__(self, service: Service, request: CompletionRequest) -> None:
        self.service, self.request = service, request
        service.check_model(request.model)
        self.id, self.created = f"cmpl-{uuid4().hex}", int(time.time())
        self._began = time.monotonic()
        if request.logprobs is not None:
            check_likelihood(service.config, request, "logprobs")
        given = _prompts(request)
        count = self._count = num_written(service, request)
        many = "n" if request.best_of is None else "best_of"
        service.check_count(len(given) * count, many if count > 1 else "prompt")
        prompts = [self._ids(prompt) for prompt in given]
        suffix = service.ids(request.suffix, "suffix") if request.suffix else []
        texts, self.choices = [], []
        for number, prompt in enumerate(prompts):
            for index in range(number * count, (number + 1) * count):
                text, choice = self._text(prompt, suffix, index)
                texts.append(text)
                self.choices.append(choice)
        self.writings = service.writings(request, texts, "prompt")
        self._prompt_tokens = sum(map(len, prompts))

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = self.service.ids(prompt, "prompt")
        else:
            ids = list(prompt)
            self.service.check_ids(ids, "prompt")
        config = self.service.config
        if config.first_is_given and not ids:
            if config.bos_token_id is None:
                raise ApiError(400, "prompt: this network predicts no first token", "prompt")
            ids = [config.bos_token_id]
        return ids

    def _text(self, prompt: list[int], suffix: list[int], index: int) -> tuple[Text, Choice]:
        service, request = self.service, self.request
        new = 16 if request.max_tokens is None else request.max_tokens
        service.check_length(len(prompt), "prompt")
        size, config = len(prompt) + new + len(suffix), service.config
        service.check_length(size, "max_tokens")
        rest = 0 if suffix or config.block_size is None else -size % config.block_size
        tokens = [*prompt, *[config.mask_token_id] * new, *suffix]
        eos = () if request.ignore_eos or config.eos_token_id is None else (config.eos_token_id,)
        text = Text(
            tokens + [config.mask_token_id] * rest,
            sample=index,
            eos=eos,
            min_new=request.min_tokens or 0,
            stop=self._stop(len(prompt), len(prompt) + new),
        )
        known = [None if token == config.mask_token_id else token for token in text.tokens]
        draft = Draft(service.tokenizer, known)
        return text, Choice(index, draft, len(prompt), len(prompt) + new, request.stops)

    def _stop(self, first: int, end: int) -> Callable[[list[int]], int | None] | None:
        """Looks for stop strings in what is written; those of the suffix are given."""
        look = stop_at(self.service.tokenizer, self.request.stops, first)
        return None if look is None else lambda ids: look(ids[:end])

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        with self.service.begun(self.writings) as events:
            async for number, event in events:
                self.choices[number].take(event)
        choices = []
        for choice in await self._chosen():
            front = choice.draft.text(0, choice.start) if self.request.echo else ""
            choices.append(self._choice(choice, front + choice.text))
            if self.request.logprobs is not None:
                choices[-1]["logprobs"] = await self.service.likelihood(
                    self._began, self._logprobs, choice
                )
        return {**self._head("text_completion"), "choices": choices, "usage": self._usage()}

    async def _chosen(self) -> list[Choice]:
        """Of each prompt the n best, where more are written."""
        n, found = self.request.n or 1, self.choices
        if self._count > n:
            found = []
            for first in range(0, len(self.choices), self._count):
                written = self.choices[first : first + self._count]
                prompt = written[0].ids[: written[0].start]
                texts = [choice.ids[choice.start :] for choice in written]
                order = await best(self.service, self._began, prompt, texts)
                found += [written[number] for number in order[:n]]
        return [replace(choice, index=index) for index, choice in enumerate(found)]

    def _logprobs(self, choice: Choice) -> dict[str, list[Any]]:
        first = 0 if self.request.echo else choice.start
        service = self.service
        most = self.request.logprobs or 0
        return logprobs_of(service.bundle.model, service.tokenizer, choice.ids, first, most)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes about, by the mode of the stream."""
        with self.service.begun(self.writings) as events:
            if self.request.echo:
                for choice in self.choices:
                    yield self._chunk(choice, choice.draft.text(0, choice.start))
            async for number, event in events:
                choice = self.choices[number]
                choice.take(event)
                if (chunk := self._told(choice, event)) is not None:
                    yield chunk
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield {**self._head("text_completion"), "choices": [], "usage": self._usage()}

    def _told(self, choice: Choice, event: Event) -> dict[str, Any] | None:
        mode = self.request.stream_mode
        if isinstance(event, Finished):
            return self._chunk(choice, choice.news() if mode == "prefix" else choice.text)
        if not isinstance(event, PassDone):
            return None
        if mode == "prefix":
            text = choice.news()
            return self._chunk(choice, text) if text else None
        head = self._head(f"text_completion.{'draft' if mode == 'draft' else 'pass'}")
        if mode == "draft":
            return {**head, "choices": [self._choice(choice, choice.text)]}
        tokens = [
            {"position": place, "id": token, "text": piece(self.service.tokenizer, token)}
            for place, token in zip(event.places, event.ids, strict=True)
        ]
        passed = {"index": choice.index, "pass": event.number, "phase": event.phase}
        return {**head, "choices": [{**passed, "tokens": tokens}]}

    def _chunk(self, choice: Choice, text: str) -> dict[str, Any]:
        return {**self._head("text_completion"), "choices": [self._choice(choice, text)]}

    def _choice(self, choice: Choice, text: str) -> dict[str, Any]:
        return {
            "index": choice.index, "text": text, "logprobs": None, "finish_reason": choice.reason,
        }  # fmt: skip

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.service.name,
        }  # fmt: skip

    def _usage(self) -> dict[str, int]:
        written = sum(
            sum(token is not None for token in choice.draft.tokens[choice.start : choice.end])
            for choice in self.choices
        )
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
        }


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    """A prompt by itself is one of a list."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    if not prompt:
        return [[]]
    return list(prompt)  # type: ignore[arg-type]  # likewise
