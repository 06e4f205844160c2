# mypy: ignore-errors
"""What `generate` is given and gives back: prompts with their padding, and streamers."""

from bisect import bisect_left
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .decoding_esolm import Batch
from .writing_esolm import Writing


def repeated(count: int, *rows: Tensor | None) -> list[Tensor | None]:
    """Each row so many times."""
    if count == 1:
        return list(rows)
    return [None if each is None else each.repeat_interleave(count, dim=0) for each in rows]


def stop_at(
    tokenizer: Any, stops: str | list[str] | None, first: int
) -> Callable[[list[int]], int | None] | None:
    """How the decoder sees a stop string in what is written from token `first` on.

    The token that completes it is the last one, though a pass may have written more.
    """
    if not stops:
        return None
    if tokenizer is None:
        raise ValueError("stop_strings needs the tokenizer: generate(..., tokenizer=tokenizer)")
    stops = [stops] if isinstance(stops, str) else list(stops)

    def has_stop(ids: list[int]) -> bool:
        text = tokenizer.decode(ids)[len(tokenizer.decode(ids[:first])) :]
        return any(stop in text for stop in stops)

    def look(ids: list[int]) -> int | None:
        if not has_stop(ids):
            return None
        return bisect_left(range(len(ids)), True, first, key=lambda end: has_stop(ids[:end]))

    return look


class Prompts:
    """The prompts of a batch, without their padding, and with what is written behind them."""

    def __init__(
        self, config: Any, device: Any, input_ids: Any, attention_mask: Any, num_samples: int
    ) -> None:
        """Raises ValueError if they are none."""
        if not isinstance(num_samples, Integral) or num_samples < 1:
            raise ValueError(f"num_samples is {num_samples!r}; it must be a whole number from 1 on")
        if input_ids is None:
            input_ids = torch.zeros(num_samples, 0, dtype=torch.int64)
        check_ids(input_ids)
        if config.first_is_given and not input_ids.shape[1]:
            if config.bos_token_id is None:
                raise ValueError("this network predicts no first token: give a prompt")
            input_ids = input_ids.new_full((len(input_ids), 1), config.bos_token_id)
        shown = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        shown = torch.as_tensor(shown).bool()
        if shown.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(shown.shape)}; {tuple(input_ids.shape)} is due"
            )
        if len(input_ids) == 1:
            input_ids, shown = input_ids.expand(num_samples, -1), shown.expand(num_samples, -1)
        elif num_samples not in (1, len(input_ids)):
            raise ValueError(
                f"the prompt has {len(input_ids)} rows and num_samples is {num_samples}; give one "
                "row, or as many rows as samples"
            )
        self._mask_id, self._device = config.mask_token_id, device
        self.ids, self.shown = input_ids.cpu(), shown.cpu()
        eos = config.eos_token_id
        self._pad_id = next(id for id in (config.pad_token_id, eos, 0) if id is not None)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each prompt."""
        return self.shown.sum(1).tolist()

    def rows(self, length: int, max_new_tokens: int | None) -> list[np.ndarray]:
        """The texts, int64 [L] each: the prompt, and masks for what is to be written."""
        found = []
        for ids, shown in zip(self.ids, self.shown, strict=True):
            prompt = ids[shown].numpy()
            total = length if max_new_tokens is None else len(prompt) + max_new_tokens
            if len(prompt) > total:
                raise ValueError(f"the prompt has {len(prompt)} tokens, length is {total}")
            found.append(np.pad(prompt, (0, total - len(prompt)), constant_values=self._mask_id))
        return found

    def lengths(self, writings: list[Writing]) -> list[int]:
        """P + N of each row: the prompt with its padding, and what is written up to the end."""
        ends = [w.request.length if w.ends_at is None else w.ends_at for w in writings]
        pairs = zip(ends, self.sizes, strict=True)
        return [self.ids.shape[1] + max(end - size, 0) for end, size in pairs]

    def joined(self, batch: Batch, writings: list[Writing]) -> Tensor:
        """int64 [B, P + N]: the prompts with their padding, then what was written, padded."""
        width, lengths = self.ids.shape[1], self.lengths(writings)
        found = torch.full((len(writings), max(lengths)), self._pad_id)
        found[:, :width] = self.ids
        for row, writing, length, shown in zip(found, writings, lengths, self.shown, strict=True):
            text, size = torch.from_numpy(batch.tokens(writing)), int(shown.sum())
            row[:width][shown] = text[:size]
            row[width:length] = text[size : size + length - width]
        return found.to(self._device)


def places_before_the_last_given(tokens: Any, mask_id: int) -> int:
    """From the first gap of a text, int64 [L], up to its last given token: no end may lie there."""
    is_free = np.asarray(tokens) == mask_id
    free, given = is_free.nonzero()[0], (~is_free).nonzero()[0]
    return max(int(given[-1]) + 1 - int(free[0]), 0) if len(free) and len(given) else 0


class Streaming:
    """Tells a streamer what `generate` promises it."""

    def __init__(
        self, streamer: Any, prompts: Prompts, batch: Batch, writings: list[Writing]
    ) -> None:
        self._streamer, self._prompts = streamer, prompts
        self._batch, self._writings = batch, writings
        self._put = prompts.ids.shape[1]
        if streamer is not None:
            streamer.put(prompts.ids)
        if hasattr(streamer, "put_plan"):
            streamer.put_plan(max(len(writing.walk.plan.counts) for writing in writings))

    def after_a_pass(self) -> None:
        if self._streamer is None:
            return
        is_single = len(self._writings) == 1
        if not is_single and not hasattr(self._streamer, "put_draft"):
            return
        draft = self._prompts.joined(self._batch, self._writings).cpu()
        if hasattr(self._streamer, "put_draft"):
            self._streamer.put_draft(draft)
        if is_single:
            gaps = (draft[0] == self._batch.mask_id).nonzero()
            self._tell(draft[:, : int(gaps[0]) if len(gaps) else draft.shape[1]])

    def _tell(self, whole: Tensor) -> None:
        if whole.shape[1] > self._put:
            self._streamer.put(whole[:, self._put :])
            self._put = whole.shape[1]

    def end(self, sequences: Tensor) -> None:
        if self._streamer is not None:
            self._tell(sequences.cpu())
            self._streamer.end()


def check_ids(input_ids: Any) -> None:
    """Raises ValueError unless it is int [B, P], B at least 1."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not len(input_ids):
        found = (
            tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        )
        raise ValueError(f"the prompt is {found}; give a tensor of shape [batch, tokens]")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"the prompt is of {input_ids.dtype}; give token ids as int64")
