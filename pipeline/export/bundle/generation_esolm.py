# mypy: ignore-errors
"""`generate` as users of transformers know it, over the decoder of `decoding_esolm`."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .decoding_esolm import Batch, Writing, walk_of
from .habits_esolm import of_plain, translated
from .infilling_esolm import Infilled, infill
from .likelihood_esolm import log_likelihood
from .requests_esolm import TextRequest, out_of_range, problems_of

# A text may need slots for tokens in front of it.
EXTRA_SLOTS = 1


class EsoLMGenerationConfig(GenerationConfig):
    """What `generate` can be told.

    alpha_0: share of tokens that an Eso-LM writes by diffusion steps; 1 is pure diffusion, 0 left
    to right. Other networks ignore it.
    num_steps: number of diffusion steps that the schedule is laid out for, under `bd3lm` in each
    block. An `ar` network ignores it. schedule: one of SCHEDULES, see `planning_esolm`.
    length: tokens of a text, the prompt included; max_new_tokens: without it, None for `length`.
    temperature: 0 takes the likeliest token. top_p: nucleus; 1 keeps the whole distribution. top_k:
    the so many likeliest; 0 keeps all. eos_token_id: what ends a text, not before min_new_tokens.
    guesses: tokens that a pass of the sequential phase guesses ahead; the distribution stays what
    it is. adaptive: fewer where they do not hold. seed: None draws a new one each time.
    """

    def __init__(self, **kwargs: Any) -> None:
        # The parent's many attributes concern left-to-right decoding of other models, so its
        # __init__ is not called (transformers' own text-diffusion models do the same).
        self.alpha_0: float = kwargs.pop("alpha_0", 1.0)
        self.num_steps: int = kwargs.pop("num_steps", 64)
        self.schedule: str = kwargs.pop("schedule", "binomial")
        self.length: int = kwargs.pop("length", 256)
        self.max_new_tokens: int | None = kwargs.pop("max_new_tokens", None)
        self.min_new_tokens: int = kwargs.pop("min_new_tokens", 0)
        self.top_p: float = kwargs.pop("top_p", 1.0)
        self.top_k: int = kwargs.pop("top_k", 0)
        self.temperature: float = kwargs.pop("temperature", 1.0)
        self.eos_token_id: int | list[int] | None = kwargs.pop("eos_token_id", None)
        self.guesses: int = kwargs.pop("guesses", 0)
        self.adaptive: bool = kwargs.pop("adaptive", False)
        self.seed: int | None = kwargs.pop("seed", None)
        self.pad_token_id: int | None = kwargs.pop("pad_token_id", None)
        self.return_dict_in_generate: bool = kwargs.pop("return_dict_in_generate", False)
        self._commit_hash = kwargs.pop("_commit_hash", None)
        self._from_model_config = kwargs.pop("_from_model_config", None)
        self.transformers_version = kwargs.pop("transformers_version", None)
        if kwargs:
            raise ValueError(f"unknown generation options: {', '.join(sorted(kwargs))}")
        self.validate()

    def validate(self, **_: Any) -> None:
        """Raises ValueError naming every option out of range."""
        wrong = problems_of(self)
        for name, least in {"length": 1, "max_new_tokens": 0, "min_new_tokens": 0}.items():
            value = getattr(self, name)
            if not (name == "max_new_tokens" and value is None):
                wrong += out_of_range(name, value, least)
        if wrong:
            raise ValueError("; ".join(wrong))

    def get_generation_mode(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("Eso-LM decoding has a single mode")

    def from_model_config(self, *_: Any, **__: Any) -> None:  # transformers then uses defaults
        raise NotImplementedError("generation options do not stand in the model's configuration")

    def request(self, tokens: Any, seed: int, sample: int) -> TextRequest:
        """One text of the batch. tokens: int64 [L]."""
        eos = [] if self.eos_token_id is None else self.eos_token_id
        return TextRequest(
            tokens=tokens, alpha_0=self.alpha_0, num_steps=self.num_steps, schedule=self.schedule,
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=seed,
            sample=sample, eos=(eos,) if isinstance(eos, int) else tuple(eos),
            min_new=self.min_new_tokens, guesses=self.guesses, adaptive=self.adaptive,
        )  # fmt: skip


@dataclass
class EsoLMGenerationOutput(ModelOutput):
    """sequences: int64 [B, P + N], the prompt as it was given and what was written behind it.

    Texts that are done with fewer than N tokens are padded. nfe: forward passes taken.
    order: int64 [B, L], places of each text in the order of writing, what was given first; -1 where
    it has ended before. counts: int64 [nfe, B], tokens of each text that each pass has written.
    num_diffusion: int64 [B], passes of the diffusion phase, which are the first ones.
    num_written: tokens of all texts that the passes wrote.
    """

    sequences: Tensor | None = None
    nfe: int | None = None
    order: Tensor | None = None
    counts: Tensor | None = None
    num_diffusion: Tensor | None = None
    num_written: int | None = None


class EsoLMGenerationMixin:
    """`generate` for every objective."""

    @property
    def has_cache(self) -> bool:
        """Whether decoding has anything to keep between passes."""
        return walk_of(self.config).has_cache

    def adjust_generation_fn(
        self, generation_config, from_auto_class, from_pipeline, path, *_, **loading
    ) -> None:
        """Called by `from_pretrained`: takes the defaults from generation_config.json."""
        if generation_config is not None:
            self.generation_config = EsoLMGenerationConfig(**generation_config.to_dict())
        elif path is not None:
            keys = ("cache_dir", "force_download", "proxies", "local_files_only", "token",
                    "revision", "subfolder")  # fmt: skip
            loading = {key: loading[key] for key in keys if key in loading}
            try:
                self.generation_config = EsoLMGenerationConfig.from_pretrained(path, **loading)
            except OSError:
                return  # the directory has none: the defaults stay

    def _settings(self, given: GenerationConfig | None, options: Any) -> EsoLMGenerationConfig:
        """The model's own, then those of a configuration, then single ones."""
        found = self.generation_config.to_dict()
        if isinstance(given, EsoLMGenerationConfig):
            found = given.to_dict()
        elif given is not None:
            found |= of_plain(given)
        if "eos_token_id" not in found and self.config.eos_token_id is not None:
            found["eos_token_id"] = self.config.eos_token_id
        return EsoLMGenerationConfig(**{**found, **translated(options)})

    def infill(
        self,
        segments: list[Any],
        tokenizer: Any = None,
        choose: str = "likeliest",
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Infilled:
        """Fills gaps; a given token is never changed.

        segments: texts or lists of ids, and gaps: a length, or a tuple (least, most). Of a range
        the likeliest length is taken, by log-likelihood per token of the whole text from left to
        right, all lengths being written in one batch; or, with choose="drawn", a random one.
        options: as of `generate`; nothing ends a text before its end.
        """
        settings = self._settings(generation_config, options)
        settings.eos_token_id = None
        seed = secrets.randbits(63) if settings.seed is None else settings.seed
        return infill(self, segments, tokenizer, choose, seed, settings)

    def log_likelihood(
        self,
        ids: Tensor,
        order: Tensor | None = None,
        given: Tensor | None = None,
        num_orders: int = 1,
        alpha_0: float | None = None,
        seed: int = 0,
    ) -> Tensor:
        """log p of texts in nats, float64 [B]: exact, for networks that have one.

        ids: int64 [B, L]. order: int64 [L] or [B, L], places in the order of writing; None: from
        left to right. given: bool [L] or [B, L], tokens that are not asked for. num_orders: above 1
        the mean of p over so many orders as the decoder draws them at alpha_0 (the network's own).
        Raises ValueError where the network has no such likelihood.
        """
        return log_likelihood(self, ids, order, given, num_orders, alpha_0, seed)

    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: EsoLMGenerationConfig | None = None,
        num_samples: int = 1,
        use_cache: bool = True,
        streamer: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Any = None,
        **options: Any,
    ) -> Tensor | EsoLMGenerationOutput:
        """Writes texts.

        input_ids: int64 [B, P], how each text begins; masks in it are gaps to be filled. A single
        row serves `num_samples` texts. Without it, `num_samples` texts from nothing.
        attention_mask: [B, P], 0 where a row is padded, on either side; the rest of the row is the
        prompt. token_type_ids: mean nothing; tokenizers return them beside the ids.
        use_cache: False recomputes everything that is written in every pass: the same tokens.
        It changes nothing where there is no cache (`has_cache`).
        streamer: gets `put(prompt)`, the text as far as it is whole from the left (of a single one;
        otherwise all in the end), `end()`, and where it has these methods `put_plan(passes)` before
        the first pass and `put_draft(sequences)` after each one (unwritten tokens are masks).
        options: fields of EsoLMGenerationConfig that override the model's, and what transformers
        calls so: max_length, do_sample, num_return_sequences, stop_strings with a tokenizer.
        Returns the sequences, or with return_dict_in_generate an EsoLMGenerationOutput.
        """
        tokenizer, stops = options.pop("tokenizer", None), options.pop("stop_strings", None)
        input_ids, attention_mask = repeated(
            options.pop("num_return_sequences", None) or 1, input_ids, attention_mask
        )
        settings = self._settings(generation_config, options)
        prompts = Prompts(self.config, self.device, input_ids, attention_mask, num_samples)
        seed = secrets.randbits(63) if settings.seed is None else settings.seed
        rows = prompts.rows(settings.length, settings.max_new_tokens)
        requests = [
            replace(settings.request(row, seed, sample), stop=stop_at(tokenizer, stops, size))
            for sample, (row, size) in enumerate(zip(rows, prompts.sizes, strict=True))
        ]
        slots = max(map(len, rows)) + EXTRA_SLOTS + settings.guesses
        batch = Batch(self, len(rows), slots, use_cache)
        writings = [batch.add(request) for request in requests]
        told = Streaming(streamer, prompts, batch, writings)
        nfe = 0
        while batch.step():
            nfe += 1
            told.after_a_pass()
        sequences = prompts.joined(batch, writings)
        told.end(sequences)
        if not settings.return_dict_in_generate:
            return sequences
        return output_of(sequences, writings, nfe)


def repeated(count: int, *rows: Tensor | None) -> list[Tensor | None]:
    """Each row so many times."""
    if count == 1:
        return list(rows)
    return [None if each is None else each.repeat_interleave(count, dim=0) for each in rows]


def stop_at(
    tokenizer: Any, stops: str | list[str] | None, first: int
) -> Callable[[list[int]], int | None] | None:
    """How the decoder sees a stop string in what is written from token `first` on."""
    if not stops:
        return None
    if tokenizer is None:
        raise ValueError("stop_strings needs the tokenizer: generate(..., tokenizer=tokenizer)")
    stops = [stops] if isinstance(stops, str) else list(stops)

    def look(ids: list[int]) -> int | None:
        text = tokenizer.decode(ids)[len(tokenizer.decode(ids[:first])) :]
        return len(ids) if any(stop in text for stop in stops) else None

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

    def joined(self, batch: Batch, writings: list[Writing]) -> Tensor:
        """int64 [B, P + N]: the prompts with their padding, then what was written, padded."""
        texts = [torch.from_numpy(batch.tokens(writing)) for writing in writings]
        sizes = self.sizes
        ends = [len(text) if w.ends_at is None else w.ends_at
                for w, text in zip(writings, texts, strict=True)]  # fmt: skip
        most = max(max(end - size for end, size in zip(ends, sizes, strict=True)), 0)
        found = torch.full((len(texts), self.ids.shape[1] + most), self._pad_id)
        found[:, : self.ids.shape[1]] = self.ids
        for row, text, size, end, shown in zip(found, texts, sizes, ends, self.shown, strict=True):
            row[: self.ids.shape[1]][shown] = text[:size]
            row[self.ids.shape[1] :][: max(end - size, 0)] = text[size:end]
        return found.to(self._device)


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


def output_of(sequences: Tensor, writings: list[Writing], nfe: int) -> EsoLMGenerationOutput:
    """What the passes did."""
    counts = torch.zeros(nfe, len(writings), dtype=torch.int64)
    order = torch.full((len(writings), max(w.request.length for w in writings)), -1)
    for row, writing in enumerate(writings):
        sizes = [len(places) for places in writing.history]
        counts[: len(sizes), row] = torch.tensor(sizes, dtype=torch.int64)
        places = np.concatenate([writing.given_places, *writing.history])
        order[row, : len(places)] = torch.from_numpy(places)
    return EsoLMGenerationOutput(
        sequences=sequences,
        nfe=nfe,
        order=order.to(sequences.device),
        counts=counts,
        num_diffusion=torch.tensor([writing.walk.plan.num_diffusion for writing in writings]),
        num_written=int(counts.sum()),
    )


def check_unpadded(attention_mask: Any) -> None:
    """Raises ValueError if the mask has zeros: the network has seen no padding in training."""
    if attention_mask is not None and not torch.as_tensor(attention_mask).bool().all():
        raise ValueError(
            "attention_mask has zeros, so rows are padded; pad nothing: give one prompt at a time, "
            "or rows of equal lengths"
        )


def check_ids(input_ids: Any) -> None:
    """Raises ValueError unless it is int [B, P], B at least 1."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not len(input_ids):
        found = (
            tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        )
        raise ValueError(f"the prompt is {found}; give a tensor of shape [batch, tokens]")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"the prompt is of {input_ids.dtype}; give token ids as int64")
