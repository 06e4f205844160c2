# mypy: ignore-errors
"""`generate` as users of transformers know it, over the decoder of `decoding_esolm`."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .decoding_esolm import Batch
from .habits_esolm import translated, with_plain
from .infilling_esolm import Infilled, infill
from .likelihood_esolm import log_likelihood
from .prompts_esolm import (
    Prompts,
    Streaming,
    places_before_the_last_given,
    repeated,
    stop_at,
)
from .requests_esolm import TextRequest, out_of_range, problems_of
from .writing_esolm import Writing, walk_of

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
    the so many likeliest; 0 keeps all. eos_token_id: what ends a text, not before min_new_tokens;
    None for nothing.
    guesses: tokens that a pass of the sequential phase guesses ahead; the distribution stays what
    it is. adaptive: fewer where they do not hold. seed: None draws a new one each time.
    cuda_graphs: whether passes that come often become CUDA graphs, where there is a GPU.
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
        self.cuda_graphs: bool = kwargs.pop("cuda_graphs", True)
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

    def request(self, tokens: Any, mask_id: int, seed: int, sample: int) -> TextRequest:
        """One text of the batch, int64 [L]; it ends behind all that is given."""
        eos = [] if self.eos_token_id is None else self.eos_token_id
        return TextRequest(
            tokens=tokens, alpha_0=self.alpha_0, num_steps=self.num_steps, schedule=self.schedule,
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=seed,
            sample=sample, eos=(eos,) if isinstance(eos, int) else tuple(eos),
            min_new=max(self.min_new_tokens, places_before_the_last_given(tokens, mask_id)),
            guesses=self.guesses, adaptive=self.adaptive,
        )  # fmt: skip

    def batch(self, network: Any, rows: int, longest: int, use_cache: bool = True) -> Batch:
        """For so many texts at a time, of so many tokens at most."""
        slots = longest + EXTRA_SLOTS + self.guesses
        return Batch(network, rows, slots, use_cache, cuda_graphs=self.cuda_graphs)


@dataclass
class EsoLMGenerationOutput(ModelOutput):
    """sequences: int64 [B, P + N], the prompt as it was given and what was written behind it.

    Texts that are done with fewer than N tokens are padded. lengths: int64 [B], tokens of each row
    up to there. nfe: forward passes taken.
    order: int64 [B, L], places of each text in the order of writing, what was given first; -1 where
    it has ended before. counts: int64 [nfe, B], tokens of each text that each pass has written.
    num_diffusion: int64 [B], passes of the diffusion phase, which are the first ones.
    num_written: tokens of all texts that the passes wrote.
    """

    sequences: Tensor | None = None
    lengths: Tensor | None = None
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

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """PEFT wants to wrap this step of transformers' own loop, which does not run here."""
        raise NotImplementedError("Eso-LM decoding makes its own passes")

    def _settings(self, given: GenerationConfig | None, options: Any) -> EsoLMGenerationConfig:
        """Those of a configuration of ours, the model's own without one, then single ones."""
        own = given if isinstance(given, EsoLMGenerationConfig) else self.generation_config
        return EsoLMGenerationConfig(**{**own.to_dict(), **translated(options)})

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
        options = _options_of(generation_config, options)
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
        options = _options_of(generation_config, options)
        tokenizer, stops = options.pop("tokenizer", None), options.pop("stop_strings", None)
        input_ids, attention_mask = repeated(
            options.pop("num_return_sequences", None) or 1, input_ids, attention_mask
        )
        settings = self._settings(generation_config, options)
        prompts = Prompts(self.config, self.device, input_ids, attention_mask, num_samples)
        seed = secrets.randbits(63) if settings.seed is None else settings.seed
        rows = prompts.rows(settings.length, settings.max_new_tokens)
        mask_id = self.config.mask_token_id
        requests = [
            replace(
                settings.request(row, mask_id, seed, sample), stop=stop_at(tokenizer, stops, size)
            )
            for sample, (row, size) in enumerate(zip(rows, prompts.sizes, strict=True))
        ]
        batch = settings.batch(self, len(rows), max(map(len, rows)), use_cache)
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
        return output_of(sequences, prompts.lengths(writings), writings, nfe)


def _options_of(given: GenerationConfig | None, options: dict[str, Any]) -> dict[str, Any]:
    """Single ones, and what a plain configuration asks for beside them."""
    is_plain = given is not None and not isinstance(given, EsoLMGenerationConfig)
    return with_plain(given, options) if is_plain else options


def output_of(
    sequences: Tensor, lengths: list[int], writings: list[Writing], nfe: int
) -> EsoLMGenerationOutput:
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
        lengths=torch.tensor(lengths),
        nfe=nfe,
        order=order.to(sequences.device),
        counts=counts,
        num_diffusion=torch.tensor([writing.walk.plan.num_diffusion for writing in writings]),
        num_written=int(counts.sum()),
    )
