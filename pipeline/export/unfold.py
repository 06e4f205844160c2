"""Bundle parameters -> training tensors: the inverse of `pipeline.export.fold`.

The folded shift, scale and gates of adaLN go back into the network as norm weights and as
modulations that are constant at first: a zero matrix, whose bias is the shift, a scale of 0 and a
gate of 1. That computes exactly what the bundle computes, and every part of it can be trained. The
conditioning itself is not in a bundle; the zero matrix makes its values indifferent at the start.
"""

import torch
from torch import Tensor

from model.config import ModelConfig
from pipeline.errors import ExportError
from pipeline.export.fold import Ledger


def unfold(parameters: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Training tensors in fp32 by canonical name; all but the conditioning's.

    config.adaln tells whether the bundle's norms have biases. Raises ExportError unless every
    parameter has its place and its shape.
    """
    ledger = Ledger(parameters)
    size, vocab = config.hidden_size, config.vocab_size
    found = {"embedding.tokens.weight": ledger.take("model.embed_tokens.weight", vocab, size)}
    for layer in range(config.num_layers):
        found |= _unfold_block(ledger, f"model.layers.{layer}", f"blocks.{layer}", config)
    shift = _unfold_norm(ledger, "model.norm", "head.norm", config, found)
    if shift is not None:
        found |= _modulation("head.modulation", [shift, torch.zeros_like(shift)], config)
    if not config.tied_embeddings:
        found["head.output.weight"] = ledger.take("lm_head.weight", vocab, size)
    if config.output_bias:
        found["head.output.bias"] = ledger.take("lm_head.bias", vocab)
    ledger.close()
    return {name: tensor.float() for name, tensor in found.items()}


def _unfold_block(ledger: Ledger, source: str, name: str, config: ModelConfig) -> dict[str, Tensor]:
    size, inner = config.hidden_size, config.ffn_hidden_size
    up = inner * (2 if config.activation == "swiglu" else 1)
    shapes = {
        "attention.qkv.weight": (3 * size, size),
        "attention.out.weight": (size, size),
        "mlp.up.weight": (up, size),
        "mlp.down.weight": (size, inner),
    }
    if config.mlp_bias:
        shapes |= {"mlp.up.bias": (up,), "mlp.down.bias": (size,)}  # type: ignore[dict-item]
    found = {
        f"{name}.{key}": ledger.take(f"{source}.{key}", *shape) for key, shape in shapes.items()
    }
    shift_1 = _unfold_norm(ledger, f"{source}.norm1", f"{name}.norm1", config, found)
    shift_2 = _unfold_norm(ledger, f"{source}.norm2", f"{name}.norm2", config, found)
    if shift_1 is not None and shift_2 is not None:
        zero, one = torch.zeros_like(shift_1), torch.ones_like(shift_1)
        found |= _modulation(f"{name}.modulation", [shift_1, zero, one, shift_2, zero, one], config)
    return found


def _unfold_norm(
    ledger: Ledger, source: str, name: str, config: ModelConfig, found: dict[str, Tensor]
) -> Tensor | None:
    """Adds the norm's weight to what was found; returns the shift that follows it, if any."""
    found[f"{name}.weight"] = ledger.take(f"{source}.weight", config.hidden_size)
    return ledger.take(f"{source}.bias", config.hidden_size) if config.adaln else None


def _modulation(name: str, parts: list[Tensor], config: ModelConfig) -> dict[str, Tensor]:
    bias = torch.cat(parts)
    weight = torch.zeros(len(bias), config.cond_dim, dtype=bias.dtype)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def bundle_architecture(config: dict[str, object]) -> dict[str, object]:
    """ModelConfig's fields as far as a bundle's config.json fixes them."""
    names = {
        "vocab_size": "vocab_size",
        "mask_token_id": "mask_id",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "ffn_hidden_size",
        "norm": "norm",
        "norm_eps": "norm_eps",
        "norm_bias": "adaln",
        "activation": "activation",
        "mlp_bias": "mlp_bias",
        "output_bias": "output_bias",
        "rope_base": "rope_base",
    }
    missing = [name for name in names if name not in config]
    if missing:
        raise ExportError(f"the bundle's config.json lacks {', '.join(missing)}")
    found = {ours: config[theirs] for theirs, ours in names.items()}
    # transformers writes some fields only where they are not the default.
    return {**found, "tied_embeddings": config.get("tie_word_embeddings", False)}
