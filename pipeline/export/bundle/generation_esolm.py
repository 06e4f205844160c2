# mypy: ignore-errors
"""`generate`: which options there are, and which decoder an objective has.

The contract of a decoder: `plan` lays down, before the first pass, what is written when, as an
object with `order` [B, L], `counts` of each pass, `num_diffusion`, `prompt_length`; `write` makes
the passes and returns int64 [B, L]. With a cache or without it writes the same tokens.

To add one of your own, write it in a file of this folder and of `CODE_FILES` in `export/writer.py`;
put it into DECODERS under what `EsoLMConfig.trained_as` says of its networks; and name it so in
`decoding` of its objective's entry in the registry. This one writes all tokens in a single pass:

```python
from dataclasses import dataclass

import torch
from torch import Tensor

from .generation_esolm import DECODERS, Decoder


@dataclass
class AtOnce:
    order: Tensor
    prompt_length: int
    num_diffusion: int = 1

    @property
    def counts(self):
        return [self.order.shape[1] - self.prompt_length]


def plan_at_once(config, prompt, settings, generator):
    return AtOnce(torch.arange(settings.length).expand(len(prompt), -1), prompt.shape[1])


@torch.inference_mode()
def write_at_once(network, prompt, plan, sampler, use_cache, show=None):
    tokens = prompt.new_full(plan.order.shape, network.config.mask_token_id)
    tokens[:, : plan.prompt_length] = prompt
    drawn = sampler(network(tokens, attention_pattern="bidirectional").logits)
    tokens[:, plan.prompt_length :] = drawn[:, plan.prompt_length :]
    return tokens


DECODERS["at_once"] = Decoder(plan_at_once, write_at_once, has_cache=False)
```
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .drawing_esolm import TokenSampler
from .left_to_right_esolm import decode_left_to_right
from .masked_diffusion_esolm import BlockPlan, decode_blocks, draw_block_plan
from .two_phase_esolm import DecodingPlan, decode_causal, decode_prefix, draw_plan


def plan_two_phases(
    config: Any, prompt: Tensor, settings: Any, generator: torch.Generator
) -> DecodingPlan:
    """A share alpha_0 by diffusion, the rest from left to right."""
    return _plan(prompt, settings.length, settings.alpha_0, settings.num_steps, generator)


def plan_left_to_right(
    config: Any, prompt: Tensor, settings: Any, generator: torch.Generator
) -> DecodingPlan:
    """One token a pass."""
    return _plan(prompt, settings.length, 0.0, settings.num_steps, generator)


def plan_whole(config: Any, prompt: Tensor, settings: Any, generator: torch.Generator) -> BlockPlan:
    """Diffusion over all of the sequence at once."""
    length = settings.length
    return draw_block_plan(prompt, length, length, settings.num_steps, generator)


def plan_blocks(
    config: Any, prompt: Tensor, settings: Any, generator: torch.Generator
) -> BlockPlan:
    """Diffusion within blocks of the size that the network was trained with."""
    if config.block_size is None:
        raise ValueError("this bundle does not say its block size: export the network again")
    size = config.block_size
    return draw_block_plan(prompt, settings.length, size, settings.num_steps, generator)


def _plan(
    prompt: Tensor, length: int, alpha_0: float, num_steps: int, generator: torch.Generator
) -> DecodingPlan:
    plan = draw_plan(len(prompt), length, prompt.shape[1], alpha_0, num_steps, generator)
    return replace(plan, order=plan.order.to(prompt.device))


@dataclass(frozen=True)
class Decoder:
    """plan: what is written when, drawn before the first pass. write: the passes themselves.

    has_cache: whether there is anything to keep between passes.
    """

    plan: Callable[..., DecodingPlan | BlockPlan]
    write: Callable[..., Tensor]
    has_cache: bool = True


DECODERS = {
    "esolm A": Decoder(plan_two_phases, decode_prefix),
    "esolm B": Decoder(plan_two_phases, decode_causal),
    "ar": Decoder(plan_left_to_right, decode_left_to_right),
    # It reads in both directions throughout.
    "mdlm": Decoder(plan_whole, decode_blocks, has_cache=False),
    "bd3lm": Decoder(plan_blocks, decode_blocks),
}
"""By `EsoLMConfig.trained_as`."""


class EsoLMGenerationConfig(GenerationConfig):
    """What `generate` can be told.

    alpha_0: share of tokens that an Eso-LM writes by diffusion steps; 1 is pure diffusion, 0 left
    to right. Other networks ignore it.
    num_steps: number of diffusion steps that the schedule is laid out for, under `bd3lm` in each
    block. An `ar` network ignores it.
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
        wrong = [
            f"{name} is {value!r}; it must be a whole number"
            for name in ("num_steps", "length", "seed")
            if not isinstance(value := getattr(self, name), Integral)
            and not (name == "seed" and value is None)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        if not 0.0 <= self.alpha_0 <= 1.0:
            wrong.append(f"alpha_0 is {self.alpha_0}; it must lie in [0, 1]")
        if self.num_steps < 1:
            wrong.append(f"num_steps is {self.num_steps}; it must be at least 1")
        if self.length < 1:
            wrong.append(f"length is {self.length}; it must be at least 1")
        if not 0.0 < self.top_p <= 1.0:
            wrong.append(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if not 0.0 <= self.temperature < math.inf:
            wrong.append(f"temperature is {self.temperature}; it must be finite and not negative")
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
    counts: int64 [nfe], tokens of each row written by each pass; [nfe, B] under `mdlm` and `bd3lm`,
    whose rows differ. num_diffusion: passes of the diffusion phase, which are the first ones.
    num_written: tokens of all rows that the passes wrote.
    """

    sequences: Tensor | None = None
    nfe: int | None = None
    order: Tensor | None = None
    counts: Tensor | None = None
    num_diffusion: int | None = None
    num_written: int | None = None


class EsoLMGenerationMixin:
    """`generate` for every objective."""

    @property
    def has_cache(self) -> bool:
        """Whether decoding has anything to keep between passes."""
        return self._decoder.has_cache

    @property
    def _decoder(self) -> Decoder:
        trained_as = self.config.trained_as
        if trained_as not in DECODERS:
            raise ValueError(f"there is no decoder for networks trained as '{trained_as}'")
        return DECODERS[trained_as]

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
        attention_mask: Tensor | None = None,
        token_type_ids: Any = None,
        **options: Any,
    ) -> EsoLMGenerationOutput:
        """Writes sequences of `length` tokens.

        input_ids: int64 [B, P], a prompt at the first positions of each row; a single row serves
        `num_samples` rows. Without one, `num_samples` rows.
        attention_mask, token_type_ids: what tokenizers return beside the ids. All of a prompt is
        seen, so a mask must be all ones: rows have equal lengths. Types of tokens mean nothing.
        use_cache: False recomputes everything that is written in every pass: the same tokens.
        It changes nothing where there is no cache (`has_cache`).
        streamer: gets `put(prompt)`, in the end `put(rest)` and `end()`, and where it has these
        methods `put_plan(passes)` before the first pass and `put_draft(sequences)` after each one
        (natural order, unwritten tokens are masks).
        options: fields of EsoLMGenerationConfig that override the model's.
        """
        settings = {**(generation_config or self.generation_config).to_dict(), **options}
        settings = EsoLMGenerationConfig(**settings)
        generator = torch.Generator()
        if settings.seed is None:
            generator.seed()
        else:
            generator.manual_seed(settings.seed)
        check_unpadded(attention_mask)
        prompt = self._prompt(input_ids, num_samples, settings.length)
        plan = self._decoder.plan(self.config, prompt, settings, generator)
        sampler = TokenSampler(settings.temperature, settings.top_p, generator)
        show = None
        if streamer is not None:
            streamer.put(prompt.cpu())
            if hasattr(streamer, "put_plan"):
                streamer.put_plan(len(plan.counts))
            if hasattr(streamer, "put_draft"):
                show = lambda draft: streamer.put_draft(draft.cpu())  # noqa: E731
        sequences = self._decoder.write(self, prompt, plan, sampler, use_cache, show).clone()
        if streamer is not None:
            streamer.put(sequences[:, prompt.shape[1] :].cpu())
            streamer.end()
        counts = torch.tensor(plan.counts, dtype=torch.int64)
        return EsoLMGenerationOutput(
            sequences=sequences,
            nfe=len(counts),
            order=plan.order,
            counts=counts,
            num_diffusion=plan.num_diffusion,
            num_written=sequences.numel() - prompt.numel(),
        )

    def _prompt(self, input_ids: Tensor | None, num_samples: int, length: int) -> Tensor:
        """int64 [B, P]. A network that predicts no first token needs one: bos, without a prompt."""
        config = self.config
        if not isinstance(num_samples, Integral) or num_samples < 1:
            raise ValueError(f"num_samples is {num_samples!r}; it must be a whole number from 1 on")
        if input_ids is None:
            input_ids = torch.zeros(num_samples, 0, dtype=torch.int64, device=self.device)
        check_prompt(input_ids, config.vocab_size, config.mask_token_id)
        if len(input_ids) == 1:
            input_ids = input_ids.expand(num_samples, -1)
        elif num_samples not in (1, len(input_ids)):
            raise ValueError(
                f"the prompt has {len(input_ids)} rows and num_samples is {num_samples}; give one "
                "row, or as many rows as samples"
            )
        if config.first_is_given and not input_ids.shape[1]:
            if config.bos_token_id is None:
                raise ValueError("this network predicts no first token: give a prompt")
            input_ids = input_ids.new_full((len(input_ids), 1), config.bos_token_id)
        if input_ids.shape[1] > length:
            raise ValueError(f"the prompt has {input_ids.shape[1]} tokens, length is {length}")
        return input_ids.to(self.device)


def check_unpadded(attention_mask: Any) -> None:
    """Raises ValueError if the mask has zeros: the network has seen no padding in training."""
    if attention_mask is not None and not torch.as_tensor(attention_mask).bool().all():
        raise ValueError(
            "attention_mask has zeros, so rows are padded; pad nothing: give one prompt at a time, "
            "or rows of equal lengths"
        )


def check_prompt(input_ids: Any, vocab_size: int, mask_id: int) -> None:
    """Raises ValueError unless it is int [B, P] of written tokens, B at least 1."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not len(input_ids):
        found = (
            tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        )
        raise ValueError(f"the prompt is {found}; give a tensor of shape [batch, tokens]")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"the prompt is of {input_ids.dtype}; give token ids as int64")
    if ((input_ids < 0) | (input_ids >= vocab_size)).any():
        raise ValueError(f"the prompt has ids outside of the vocabulary, 0 to {vocab_size - 1}")
    if (input_ids == mask_id).any():
        raise ValueError(
            f"the prompt has the mask id {mask_id}: a prompt is written text at the first positions"
        )
