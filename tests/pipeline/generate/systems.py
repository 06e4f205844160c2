"""Every system of the paper as a bundle's network, beside the slow reference of its weights."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.config import ModelConfig
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.writer import bundle_config, load_model
from tests.model.conftest import ARCHITECTURES
from tests.model.reference import ReferenceNetwork, sees
from tests.pipeline.export.conftest import RandomSource

VOCAB_SIZE, MASK_ID = 11, 10
OBJECTIVES: dict[str, dict[str, Any]] = {
    "esolm_a": {"name": "esolm", "variant": "A", "alpha_0": 0.5},
    "esolm_b": {"name": "esolm", "variant": "B", "alpha_0": 0.5},
    "mdlm": {"name": "mdlm"},
    "bd3lm": {"name": "bd3lm", "block_size": 4, "keep_first": False},
    "bd3lm_bos": {"name": "bd3lm", "block_size": 4, "keep_first": True},
    "bd3lm_ar": {"name": "bd3lm", "block_size": 1, "keep_first": False},
    "ar": {"name": "ar", "prepend": "mask"},
}


@dataclass
class System:
    """model: the bundle's network. pattern: of training, where the sequence is complete."""

    name: str
    dtype: torch.dtype = torch.float64
    architecture: str = "paper"
    model: Any = field(init=False)
    reference: ReferenceNetwork = field(init=False)

    def __post_init__(self) -> None:
        config = ModelConfig(
            vocab_size=VOCAB_SIZE, mask_id=MASK_ID, hidden_size=12, num_layers=2,
            ffn_hidden_size=20, cond_dim=6, **{"num_heads": 2, **ARCHITECTURES[self.architecture]},
        )  # fmt: skip
        source = RandomSource(config, objective=OBJECTIVES[self.name])
        tensors = source.tensors("ema")
        self.model = load_model(bundle_config(source, None), fold(tensors, config, self.dtype))
        state = {name: tensor.double() for name, tensor in tensors.items()}
        self.reference = ReferenceNetwork(config, state)

    def prompt(self, rows: int, tokens: int = 0) -> Tensor | None:
        """The shortest that the network needs, or so many tokens."""
        tokens = max(tokens, int(self.model.config.first_is_given))
        return (torch.arange(rows * tokens).reshape(rows, tokens) % 10) if tokens else None

    def logits_of_pass(
        self, row: Tensor, order: Tensor, written: int, count: int, num_diffusion: int
    ) -> Tensor:
        """[count, V]: what the pass that writes order[written : written + count] should draw from.

        row: the finished sequence at natural positions. num_diffusion: tokens of the diffusion
        phase, the prompt included. Everything is recomputed by the rule of training.
        """
        length, now = len(row), slice(written, written + count)
        if self.name == "ar":
            fed = torch.cat([torch.tensor([MASK_ID]), row])
            return self._logits(fed, torch.arange(length + 1), "causal")[order[now]]
        if self.name.startswith("esolm"):
            return self._two_phase(row[order], order, now, num_diffusion)
        z = torch.full_like(row, MASK_ID)
        z[order[:written]] = row[order[:written]]
        places = torch.arange(length)
        if self.name == "mdlm":
            return self._logits(z, places, "bidirectional")[order[now]]
        size = self.model.config.block_size
        both = torch.cat([z, row]), torch.cat([places, places])
        return self._logits(*both, "block_two_stream", block_size=size)[order[now]]

    def _two_phase(self, x: Tensor, order: Tensor, now: slice, num_diffusion: int) -> Tensor:
        """x: the finished sequence in the order of writing."""
        is_a = self.name == "esolm_a"
        if now.stop <= num_diffusion:
            z = x.clone()
            z[now.start :] = MASK_ID
            return self._logits(z, order, "prefix" if is_a else "causal", now.start)[now]
        z = torch.full_like(x, MASK_ID)
        both = torch.cat([z, x]), torch.cat([order, order])
        pattern = "two_stream_prefix" if is_a else "two_stream"
        return self._logits(*both, pattern, num_diffusion)[now]

    def _logits(
        self, tokens: Tensor, positions: Tensor, pattern: str, prefix: int = 0, block_size: int = 1
    ) -> Tensor:
        named = AttentionPattern(pattern)
        length = len(tokens) // named.num_streams
        return self.reference.logits(
            tokens, positions, lambda q, k: sees(named, q, k, length, prefix, block_size)
        )


def written_by(model: Any, *arguments: Any, **options: Any) -> Any:
    """What `generate` tells of itself beside the text."""
    return model.generate(*arguments, return_dict_in_generate=True, **options)
