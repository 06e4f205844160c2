# mypy: ignore-errors
"""Two-phase any-order decoding with an exact key/value cache (Eso-LM, arXiv 2506.01928, section 5).

Phase one writes a random subset of the tokens in a few parallel steps, phase two the rest from left
to right. Attention is causal along the generation order, so what a step has computed for written
tokens stays valid: each step feeds only [tokens written by the last step | masks of this step].
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

# alpha_1 = ALPHA_FLOOR * alpha_0, as in training.
ALPHA_FLOOR = 1e-3


class EsoLMGenerationConfig(GenerationConfig):
    """What `generate` can be told.

    alpha_0: share of tokens written by diffusion steps; 1 is pure diffusion, 0 left to right.
    num_steps: number of diffusion steps that the schedule is laid out for.
    length: tokens of a sequence, the prompt included. temperature: 0 takes the likeliest token.
    top_p: nucleus; 1 keeps the whole distribution. seed: None draws a new one each time.
    """

    def __init__(self, **kwargs: Any) -> None:
        # The parent's many attributes concern left-to-right decoding of other models, so its
        # __init__ is not called (transformers' own text-diffusion models do the same).
        self.alpha_0: float = kwargs.pop("alpha_0", 1.0)
        self.num_steps: int = kwargs.pop("num_steps", 64)
        self.length: int = kwargs.pop("length", 256)
        self.top_p: float = kwargs.pop("top_p", 1.0)
        self.temperature: float = kwargs.pop("temperature", 1.0)
        self.seed: int | None = kwargs.pop("seed", None)
        self._commit_hash = kwargs.pop("_commit_hash", None)
        self._from_model_config = kwargs.pop("_from_model_config", None)
        self.transformers_version = kwargs.pop("transformers_version", None)
        if kwargs:
            raise ValueError(f"unknown generation options: {', '.join(sorted(kwargs))}")
        self.validate()

    def validate(self, **_: Any) -> None:
        """Raises ValueError naming every option out of range."""
        wrong = []
        if not 0.0 <= self.alpha_0 <= 1.0:
            wrong.append(f"alpha_0 is {self.alpha_0}; it must lie in [0, 1]")
        if self.num_steps < 1:
            wrong.append(f"num_steps is {self.num_steps}; it must be at least 1")
        if self.length < 1:
            wrong.append(f"length is {self.length}; it must be at least 1")
        if not 0.0 < self.top_p <= 1.0:
            wrong.append(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.temperature < 0.0:
            wrong.append(f"temperature is {self.temperature}; it must not be negative")
        if wrong:
            raise ValueError("; ".join(wrong))

    def get_generation_mode(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("Eso-LM decoding has a single mode")

    def from_model_config(self, *_: Any, **__: Any) -> None:  # transformers then uses defaults
        raise NotImplementedError("generation options do not stand in the model's configuration")


@dataclass
class EsoLMGenerationOutput(ModelOutput):
    """sequences: int64 [B, L] in natural order, the prompt included. nfe: forward passes taken.

    order: int64 [B, L], natural positions in the order of writing, the prompt first.
    counts: int64 [nfe], tokens of each row written by each pass.
    """

    sequences: Tensor | None = None
    nfe: int | None = None
    order: Tensor | None = None
    counts: Tensor | None = None


@dataclass(frozen=True)
class DecodingPlan:
    """All that is known before the first pass. order: int64 [B, L]; counts sum to L - prompt."""

    order: Tensor
    counts: list[int]
    prompt_length: int


def diffusion_counts(
    length: int, alpha_0: float, num_steps: int, generator: torch.Generator
) -> list[int]:
    """Tokens written by each diffusion step, one draw for a whole batch; zero steps are dropped.

    From t to s < t each remaining token is written with probability
    (alpha_s - alpha_t) / (1 - alpha_t), where alpha_t = alpha_0 (1 - 0.999 t).
    With alpha_0 = 1 the last step has probability one and nothing is left over.
    """
    times = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    alphas = alpha_0 * (1.0 - (1.0 - ALPHA_FLOOR) * times)
    remaining, counts = length, []
    for alpha_t, alpha_s in pairwise(alphas):
        chance = (alpha_s - alpha_t) / (1.0 - alpha_t)
        trials = torch.tensor(float(remaining), dtype=torch.float64)
        count = int(torch.binomial(trials, chance, generator=generator))
        remaining -= count
        counts += [count] if count else []
    return counts


def draw_plan(
    batch: int, length: int, prompt_length: int, alpha_0: float, num_steps: int,
    generator: torch.Generator,
) -> DecodingPlan:  # fmt: skip
    """Steps shared by the batch, an order for each row.

    The prompt comes first, then the tokens of the diffusion steps in random order, then what is
    left, one token per pass from left to right.
    """
    free = length - prompt_length
    counts = diffusion_counts(free, alpha_0, num_steps, generator)
    scores = torch.rand(batch, free, dtype=torch.float64, generator=generator)
    order = scores.argsort(dim=1) + prompt_length
    order[:, sum(counts) :] = order[:, sum(counts) :].sort(dim=1).values
    prompt = torch.arange(prompt_length).expand(batch, prompt_length)
    counts += [1] * (free - sum(counts))
    return DecodingPlan(torch.cat([prompt, order], dim=1), counts, prompt_length)


class TokenSampler:
    """Draws tokens from logits with noise from a CPU generator, in float64.

    Lower precision would act as a lower temperature (arXiv 2409.02908).
    """

    def __init__(self, temperature: float, top_p: float, generator: torch.Generator) -> None:
        self.temperature, self.top_p, self.generator = temperature, top_p, generator

    def __call__(self, logits: Tensor) -> Tensor:
        """[B, M, V] -> int64 [B, M]."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        scores = logits.double() / self.temperature
        if self.top_p < 1.0:
            scores = keep_nucleus(scores, self.top_p)
        # -log of an exponential variable is a Gumbel variable.
        noise = torch.empty(scores.shape, dtype=torch.float64)
        noise.exponential_(generator=self.generator).clamp_(min=torch.finfo(torch.float64).tiny)
        return (scores - noise.log_().to(scores.device)).argmax(-1)


def keep_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """-inf outside the smallest set of likeliest tokens whose probability reaches top_p.

    The token that crosses top_p is kept.
    """
    probabilities, index = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    outside = probabilities.cumsum(-1) - probabilities >= top_p
    return scores.masked_fill(outside.scatter(-1, index, outside), float("-inf"))


class EsoLMGenerationMixin:
    """`generate` for networks trained by `esolm` (variant B) and `ar`."""

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

    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: EsoLMGenerationConfig | None = None,
        num_samples: int = 1,
        use_cache: bool = True,
        streamer: Any = None,
        **options: Any,
    ) -> EsoLMGenerationOutput:
        """Writes sequences of `length` tokens.

        input_ids: int64 [B, P], a prompt at the first positions; without one, `num_samples` rows.
        use_cache: False recomputes everything that is written in every pass: the same tokens.
        streamer: gets `put(prompt)`, after each pass `put_draft(sequences)` if it has that method
        (natural order, unwritten tokens are masks), in the end `put(rest)` and `end()`.
        options: fields of EsoLMGenerationConfig that override the model's.
        """
        settings = {**(generation_config or self.generation_config).to_dict(), **options}
        settings = EsoLMGenerationConfig(**settings)
        generator = torch.Generator()
        if settings.seed is None:
            generator.seed()
        else:
            generator.manual_seed(settings.seed)
        prompt = self._prompt(input_ids, num_samples, settings.length)
        plan = self._plan(prompt, settings, generator)
        sampler = TokenSampler(settings.temperature, settings.top_p, generator)
        if streamer is not None:
            streamer.put(prompt.cpu())
        decode = self._decode_ar if self.config.objective == "ar" else self._decode
        sequences = decode(prompt, plan, sampler, use_cache, streamer).clone()
        if streamer is not None:
            streamer.put(sequences[:, prompt.shape[1] :].cpu())
            streamer.end()
        return EsoLMGenerationOutput(
            sequences=sequences,
            nfe=len(plan.counts),
            order=plan.order,
            counts=torch.tensor(plan.counts, dtype=torch.int64),
        )

    def _prompt(self, input_ids: Tensor | None, num_samples: int, length: int) -> Tensor:
        """int64 [B, P]. An `ar` network that is fed nothing in front needs a first token: bos."""
        config = self.config
        if config.objective != "ar" and (config.objective, config.variant) != ("esolm", "B"):
            name = f"{config.objective} {config.variant or ''}".strip()
            raise ValueError(f"generate decodes 'esolm B' and 'ar' networks, not '{name}'")
        if input_ids is None:
            input_ids = torch.zeros(num_samples, 0, dtype=torch.int64, device=self.device)
            if config.objective == "ar" and config.prepend_token_id is None:
                if config.bos_token_id is None:
                    raise ValueError("this network predicts no first token: give a prompt")
                input_ids = input_ids.new_full((num_samples, 1), config.bos_token_id)
        if input_ids.shape[1] > length:
            raise ValueError(f"the prompt has {input_ids.shape[1]} tokens, length is {length}")
        return input_ids.to(self.device)

    def _plan(
        self, prompt: Tensor, settings: EsoLMGenerationConfig, generator: torch.Generator
    ) -> DecodingPlan:
        alpha_0 = 0.0 if self.config.objective == "ar" else settings.alpha_0
        batch, prompt_length = prompt.shape
        plan = draw_plan(
            batch, settings.length, prompt_length, alpha_0, settings.num_steps, generator
        )
        return DecodingPlan(plan.order.to(prompt.device), plan.counts, prompt_length)

    @torch.inference_mode()
    def _decode(
        self, prompt: Tensor, plan: DecodingPlan, sampler: TokenSampler, use_cache: bool,
        streamer: Any = None,
    ) -> Tensor:  # fmt: skip
        """Runs the plan; int64 [B, L] in natural order.

        `tokens` is in generation order and holds masks where nothing is written, so the slice
        from the first token that is not cached to the last of this step is what a pass needs.
        """
        (batch, length), written = plan.order.shape, plan.prompt_length
        tokens = prompt.new_full((batch, length), self.config.mask_token_id)
        tokens[:, :written] = prompt
        natural_order = plan.order.argsort(dim=1)
        cache = self.new_cache(batch, length) if use_cache else None
        start = 0
        for count in plan.counts:
            end = written + count
            logits = self(
                tokens[:, start:end], plan.order[:, start:end],
                cache=cache, start=start, logits_to_keep=count,
            ).logits  # fmt: skip
            tokens[:, written:end] = sampler(logits)
            if cache is not None:
                start = written
            written = end
            if hasattr(streamer, "put_draft"):
                streamer.put_draft(tokens.gather(1, natural_order).cpu())
        return tokens.gather(1, natural_order)

    @torch.inference_mode()
    def _decode_ar(
        self, prompt: Tensor, plan: DecodingPlan, sampler: TokenSampler, use_cache: bool,
        streamer: Any = None,
    ) -> Tensor:  # fmt: skip
        """Predicts each token from the one before it, left to right; int64 [B, L]."""
        batch, length = plan.order.shape
        front = [] if self.config.prepend_token_id is None else [self.config.prepend_token_id]
        tokens = prompt.new_full((batch, len(front) + length), self.config.mask_token_id)
        tokens[:, : len(front)] = prompt.new_tensor(front)
        written = len(front) + plan.prompt_length
        tokens[:, len(front) : written] = prompt
        cache = self.new_cache(batch, tokens.shape[1]) if use_cache else None
        start = 0
        while written < tokens.shape[1]:
            logits = self(
                tokens[:, start:written], cache=cache, start=start, logits_to_keep=1
            ).logits
            tokens[:, written] = sampler(logits)[:, 0]
            if cache is not None:
                start = written
            written += 1
            if hasattr(streamer, "put_draft"):
                streamer.put_draft(tokens[:, len(front) :].clone().cpu())
        return tokens[:, len(front) :]
