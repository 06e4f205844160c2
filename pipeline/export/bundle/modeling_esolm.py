# mypy: ignore-errors
"""The Eso-LM network: every attention pattern by name, and the ragged passes of decoding.

Shape letters: B batch, S tokens fed, L output positions (S, or S/2 in a two-stream pattern),
D hidden, V vocabulary; in a ragged pass T tokens of all texts, M wanted ones.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .attention_esolm import WholeRows
from .configuration_esolm import EsoLMConfig
from .generation_esolm import EsoLMGenerationConfig, EsoLMGenerationMixin
from .layers_esolm import EsoLMBlock, EsoLMNorm, at_least_float32, rotary_angles
from .linears_esolm import in_int8
from .reading_esolm import reading_of

# The label of what does not count.
IGNORED = -100


class EsoLMPreTrainedModel(PreTrainedModel):
    config_class = EsoLMConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _no_split_modules = ("EsoLMBlock",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EsoLMNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)


class EsoLMModel(EsoLMPreTrainedModel):
    """Embedding, blocks and final norm."""

    def __init__(self, config: EsoLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            EsoLMBlock(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = EsoLMNorm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_pattern: str | None = None,
        prefix_length: Tensor | int | None = None,
        block_size: int | None = None,
        logits_to_keep: int | Tensor = 0,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        document_ids: Tensor | None = None,
    ) -> BaseModelOutput:
        """Normalised hidden states [B, L, D] of the output positions; see EsoLMForMaskedLM."""
        reading = reading_of(
            self.config, input_ids, position_ids, attention_pattern, prefix_length, block_size,
            attention_mask, document_ids,
        )  # fmt: skip
        attend = WholeRows(reading.mask, is_causal=reading.is_causal)
        angles = rotary_angles(reading.positions, self.config)
        hidden = self.embed_tokens(reading.ids)
        states = [hidden]
        for block, turned in zip(self.layers, angles, strict=True):
            hidden = block(hidden, turned, attend)
            states.append(hidden)
        hidden = self.norm(kept(reading.in_place(hidden), logits_to_keep))
        told = None
        if output_hidden_states:
            told = (*map(reading.in_place, states[:-1]), hidden)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=told)

    def decode(
        self, input_ids: Tensor, position_ids: Tensor, attend: Callable[..., Tensor], wanted: Tensor
    ) -> Tensor:
        """A pass of `decoding_esolm`: normalised hidden states [M, D] of the wanted tokens.

        input_ids, position_ids: int64 [T], of all texts one after the other. attend: who sees what.
        wanted: int64 [M], which of the T tokens.
        """
        angles = rotary_angles(position_ids, self.config)
        hidden = self.embed_tokens(input_ids)
        for block, turned in zip(self.layers[:-1], angles[:-1], strict=True):
            hidden = block(hidden, turned, attend)
        return self.norm(self.layers[-1](hidden, angles[-1], attend, wanted))


def kept(hidden_BSD: Tensor, positions: int | Tensor) -> Tensor:
    """The last so many positions (0: all), or those of int64 [B, L]."""
    if isinstance(positions, Tensor):
        return hidden_BSD.gather(1, positions[..., None].expand(-1, -1, hidden_BSD.shape[2]))
    return hidden_BSD[:, -positions:]


class EsoLMForMaskedLM(EsoLMPreTrainedModel, EsoLMGenerationMixin):
    """The network with its output layer: logits in every attention pattern, and `generate`."""

    generation_config_class = EsoLMGenerationConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: EsoLMConfig) -> None:
        super().__init__(config)
        self.model = EsoLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_pattern: str | None = None,
        prefix_length: Tensor | int | None = None,
        block_size: int | None = None,
        logits_to_keep: int | Tensor = 0,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        token_type_ids: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        document_ids: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits, at least float32, [B, L, V]; the mask id's is -inf.

        input_ids, position_ids: int64 [B, S]. Positions are natural ones, gathered by the order
        in which the tokens are fed, [S] if all rows share them; by default 0, 1, 2, ... in each
        stream.
        attention_pattern: one of PATTERNS. In two-stream patterns the noised stream comes first,
        the clean one second, and only the noised one has logits (L = S / 2). None: tokens are read
        as the network reads an unfinished text, see `reading_esolm`; with positions, `causal`.
        prefix_length: int64 [B], number of clean tokens in front (prefix patterns), or one number.
        block_size: tokens of a block (block patterns); None: the network's own, 1 if it has none.
        logits_to_keep: only the last so many positions, 0 means all; or int64 [B, L], which ones.
        attention_mask: [B, S], 0 where a row is padded: nothing sees that, and positions and
        prefixes do not count it. Not in two-stream patterns.
        document_ids: int64 [B, S]: tokens see only those of their own document; positions, which
        must be given, count from its first token.
        labels: int64 [B, L]; then there is a loss, in nats per token. `ar`: logits at a place are
        for the label behind it. Others: of the places that hold the mask. -100 is left out.
        output_hidden_states: what enters each block, and the last state behind the final norm,
        all [B, L, D]. token_type_ids: mean nothing. inputs_embeds, output_attentions are refused.
        """
        if input_ids is None or inputs_embeds is not None or output_attentions:
            raise ValueError("give input_ids; inputs_embeds and output_attentions are not known")
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("labels go with all logits: leave logits_to_keep out")
        found = self.model(
            input_ids, position_ids, attention_pattern, prefix_length, block_size, logits_to_keep,
            attention_mask, bool(output_hidden_states), document_ids,
        )  # fmt: skip
        logits = self.logits_of(found.last_hidden_state)
        loss = None if labels is None else self._loss(input_ids, logits, labels)
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)
        return output.to_tuple() if return_dict is False else output

    def _loss(self, input_ids: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over labels that count, 0 if none does. Raises ValueError if they do not fit."""
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; {tuple(logits.shape[:2])} is due"
            )
        if self.config.predicts_the_next:
            logits, labels = logits[:, :-1], labels[:, 1:]
        else:
            is_masked = input_ids[:, : labels.shape[1]] == self.config.mask_token_id
            labels = labels.where(is_masked, IGNORED)
        total = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / (labels != IGNORED).sum().clamp(min=1)

    def in_int8(self) -> "EsoLMForMaskedLM":
        """A twin for decoding on a CPU: its linear layers are int8, and it shares the rest.

        Raises ValueError if this one is not in float32 on a CPU.
        """
        return in_int8(self)

    def logits_of(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], at least float32, the mask id's at -inf."""
        logits = at_least_float32(self.lm_head(hidden))
        if self.config.logit_softcap:
            logits = (logits / self.config.logit_softcap).tanh() * self.config.logit_softcap
        logits[..., self.config.mask_token_id] = float("-inf")
        return logits
