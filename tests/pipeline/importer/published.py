"""The published networks once more, in float64 and by their published names, from the facts alone.

Nothing here is shared with the importer: names, order, layouts and the arithmetic are written down
a second time. Everything is in the order in which tokens are fed.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.inputs import NetworkInput
from tests.model.reference import sees

VOCAB, HIDDEN, HEADS, BLOCKS, COND, INNER, LENGTH = 13, 32, 4, 2, 8, 128, 12


def shapes(adaln: bool, vocab: int = VOCAB) -> dict[str, tuple[int, ...]]:
    """Parameters in the order in which the published network registers them."""
    found: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (vocab, HIDDEN)}
    if adaln:
        found |= {"sigma_map.mlp.0.weight": (COND, 256), "sigma_map.mlp.0.bias": (COND,)}
        found |= {"sigma_map.mlp.2.weight": (COND, COND), "sigma_map.mlp.2.bias": (COND,)}
    for i in range(BLOCKS):
        block: dict[str, tuple[int, ...]] = {
            "norm1.weight": (HIDDEN,),
            "attn_qkv.weight": (3 * HIDDEN, HIDDEN),
            "attn_out.weight": (HIDDEN, HIDDEN),
            "norm2.weight": (HIDDEN,),
            "mlp.0.weight": (INNER, HIDDEN),
            "mlp.0.bias": (INNER,),
            "mlp.2.weight": (HIDDEN, INNER),
            "mlp.2.bias": (HIDDEN,),
        }
        if adaln:
            block["adaLN_modulation.weight"] = (6 * HIDDEN, COND)
            block["adaLN_modulation.bias"] = (6 * HIDDEN,)
        found |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    found["output_layer.norm_final.weight"] = (HIDDEN,)
    found |= {"output_layer.linear.weight": (vocab, HIDDEN), "output_layer.linear.bias": (vocab,)}
    if adaln:
        found["output_layer.adaLN_modulation.weight"] = (2 * HIDDEN, COND)
        found["output_layer.adaLN_modulation.bias"] = (2 * HIDDEN,)
    return {f"backbone.{name}": shape for name, shape in found.items()}


def random_weights(adaln: bool, seed: int, vocab: int = VOCAB) -> dict[str, Tensor]:
    """float32, every tensor random: no zero gate or unit scale hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: ("norm" in name) + 0.25 * torch.randn(shape, generator=generator)
        for name, shape in shapes(adaln, vocab).items()
    }


class PublishedNetwork:
    """What the published code computes from a state dict, in float64. mask_id: the last row."""

    def __init__(self, weights: dict[str, Tensor], mask_id: int | None = None) -> None:
        self.w = {name.removeprefix("backbone."): t.double() for name, t in weights.items()}
        rows = len(self.w["vocab_embed.embedding"])
        self.mask_id = rows - 1 if mask_id is None else mask_id
        self.num_blocks = sum(name.endswith("attn_out.weight") for name in self.w)

    def all_logits(self, inputs: NetworkInput) -> Tensor:
        """[B, L, V] for the same input as our networks take."""
        rows = []
        length = inputs.tokens.shape[1] // inputs.pattern.num_streams
        for row in range(len(inputs.tokens)):
            prefix = int(inputs.prefix_length[row])

            def rule(q: int, k: int, prefix: int = prefix) -> bool:
                return sees(inputs.pattern, q, k, length, prefix, inputs.block_size)

            rows.append(self.logits(inputs.tokens[row], inputs.positions[row], rule)[:length])
        return torch.stack(rows)

    def logits(self, tokens: Tensor, positions: Tensor, rule: Callable[[int, int], bool]) -> Tensor:
        """[S, V] of one row; the mask's column is -inf."""
        count = len(tokens)
        seen = torch.tensor([[rule(q, k) for k in range(count)] for q in range(count)])
        c = self._condition()
        x = self.w["vocab_embed.embedding"][tokens]
        for i in range(self.num_blocks):
            name = f"blocks.{i}"
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulation(name, c, 6)
            normal = self._norm(x, f"{name}.norm1") * (1 + scale_a) + shift_a
            x = x + gate_a * self._attention(name, normal, positions, seen)
            normal = self._norm(x, f"{name}.norm2") * (1 + scale_m) + shift_m
            inner = F.gelu(self._linear(f"{name}.mlp.0", normal), approximate="tanh")
            x = x + gate_m * self._linear(f"{name}.mlp.2", inner)
        shift, scale = self._modulation("output_layer", c, 2)
        x = self._norm(x, "output_layer.norm_final") * (1 + scale) + shift
        logits = self._linear("output_layer.linear", x)
        return logits.index_fill(1, torch.tensor(self.mask_id), -math.inf)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"]

    def _condition(self) -> Tensor | None:
        """SiLU of the timestep MLP at sigma 0: 128 cosines of 0, then 128 sines of 0."""
        if "sigma_map.mlp.0.weight" not in self.w:
            return None
        features = torch.cat([torch.ones(128), torch.zeros(128)]).double()
        return F.silu(
            self._linear("sigma_map.mlp.2", F.silu(self._linear("sigma_map.mlp.0", features)))
        )

    def _modulation(self, name: str, c: Tensor | None, parts: int) -> list[Any]:
        """shift, scale and, in a block, gate; twice in a block. Without adaLN they do nothing."""
        if c is None:
            return [0.0, 0.0, 1.0, 0.0, 0.0, 1.0][:parts]
        return list(self._linear(f"{name}.adaLN_modulation", c).chunk(parts))

    def _attention(self, name: str, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        width = x.shape[1] // HEADS
        q, k, v = self._linear(f"{name}.attn_qkv", x).chunk(3, dim=-1)
        heads = []
        for h in range(HEADS):
            part = slice(h * width, (h + 1) * width)
            scores = rotated(q[:, part], positions) @ rotated(k[:, part], positions).T
            scores = (scores / math.sqrt(width)).masked_fill(~seen, -math.inf)
            heads.append(scores.softmax(-1) @ v[:, part])
        return self._linear(f"{name}.attn_out", torch.cat(heads, dim=-1))


def inv_freq(width: int = HIDDEN // HEADS) -> Tensor:
    return 1.0 / 10000.0 ** (torch.arange(0, width, 2).float() / width)


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding on halves of x [S, K]."""
    angles = positions.double()[:, None] * inv_freq(x.shape[1]).double()
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@dataclass(frozen=True)
class System:
    """A system of the paper as its configuration describes it. clips: of BD3-LM."""

    name: str
    algo: dict[str, Any]
    adaln: bool = True
    clips: tuple[float, float] | None = None
    block_size: int | None = None
    compiled: bool = False


def _esolm(alpha_0: float, modes: tuple[str, str], kappa: float) -> dict[str, Any]:
    return {
        "name": "esolm", "alpha_0": alpha_0, "batch_split": kappa, "diffusion_attn_mode": modes[0],
        "sequential_attn_mode": modes[1], "diffusion_shuffle": True,
        "sequential_shuffle": modes[0] == "causal", "loss_type": "low_var",
    }  # fmt: skip


SYSTEMS = {
    system.name: system
    for system in (
        System("esolm_b", _esolm(0.25, ("causal", "causal"), 0.5)),
        System("esolm_b_diffusion", _esolm(1.0, ("causal", "causal"), 1.0)),
        System("esolm_a", _esolm(0.5, ("mixed2", "mixed"), 0.25)),
        System("esolm_a_diffusion", _esolm(1.0, ("mixed2", "causal"), 1.0)),
        System("mdlm", {"name": "mdlm", "loss_type": "elbo"}),
        System("ar", {"name": "ar", "prepend_token": "none"}, adaln=False),
        System("ar_mask", {"name": "ar", "prepend_token": "mask"}, adaln=False),
        System(
            "bd3lm", {"name": "bd3lm", "ignore_bos": True}, clips=(0.001, 1.0), block_size=4,
            compiled=True,
        ),
        System(
            "bd3lm_clipped", {"name": "bd3lm", "ignore_bos": False}, clips=(0.3, 0.8), block_size=2,
        ),
    )
}  # fmt: skip


def configuration(system: System) -> dict[str, Any]:
    """hyper_parameters.config, with the interpolations that hydra leaves in it."""
    config: dict[str, Any] = {
        "algo": {"backbone": "dit", "time_conditioning": False, **system.algo},
        "model": {
            "hidden_size": HIDDEN, "n_heads": HEADS, "n_blocks": BLOCKS, "cond_dim": COND,
            "length": LENGTH, "dropout": 0.1,
        },
        "data": {"train": "openwebtext", "tokenizer_name_or_path": "gpt2"},
        "training": {"ema": 0.9999, "sampling_eps": 1e-3, "resample": False},
        "loader": {"eval_batch_size": "${div_up:${.batch}, 2}"},
        "wandb": {"tags": ["${data.train}"], "name": None},
    }  # fmt: skip
    if system.block_size is not None:
        config["block_size"] = "${model.block}"
        config["model"]["block"] = system.block_size
    return config


def checkpoint(
    system: System,
    raw: dict[str, Tensor],
    ema: dict[str, Tensor] | None,
    config: Any,
    tokenizer: Any = "a tokenizer",
) -> dict[str, Any]:
    """A Lightning checkpoint as the published code saves it."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    if system.clips is not None:
        state["sampling_eps_min"] = torch.tensor(system.clips[0])
        state["sampling_eps_max"] = torch.tensor(system.clips[1])
    for name, value in raw.items():
        key = name.replace("backbone.", "backbone._orig_mod.") if system.compiled else name
        state[key] = value
    state["backbone.rotary_emb.inv_freq"] = inv_freq()
    content: dict[str, Any] = {
        "epoch": 3, "global_step": 1234, "pytorch-lightning_version": "2.2.1", "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {}, "optimizer_states": [],
        "lr_schedulers": [], "hparams_name": "kwargs", "sampler": {"random_state": None},
    }  # fmt: skip
    if config is not None:
        content["hyper_parameters"] = {"config": config, "tokenizer": tokenizer}
    if ema is not None:
        content["ema"] = {"decay": 0.9999, "num_updates": 9, "shadow_params": list(ema.values())}
    return content


def save(
    path: Path, system: System, vocab: int = VOCAB, **changes: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Writes a checkpoint with random weights; returns the raw and the averaged ones."""
    raw, ema = (random_weights(system.adaln, seed, vocab) for seed in (1, 2))
    config = changes.pop("config", configuration(system))
    tokenizer = changes.pop("tokenizer", "a tokenizer")
    content = checkpoint(system, raw, ema, config, tokenizer) | changes
    torch.save(content, path)
    return raw, ema
