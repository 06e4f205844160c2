"""Translates the names of tensors and of the architecture between training and a bundle."""

from collections.abc import Mapping
from typing import Any

from esolm.model.config import ModelConfig
from esolm.pipeline.errors import ExportError

# Fields of EsoLMConfig, and the fields of ModelConfig that they are.
FIELDS = {
    "vocab_size": "vocab_size",
    "mask_token_id": "mask_id",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "ffn_hidden_size",
    "norm": "norm",
    "norm_eps": "norm_eps",
    "norm_bias": "adaln",
    "qk_norm": "qk_norm",
    "activation": "activation",
    "mlp_bias": "mlp_bias",
    "output_bias": "output_bias",
    "tie_word_embeddings": "tied_embeddings",
    "logit_softcap": "logit_softcap",
    "rope_base": "rope_base",
    "rope_bases": "rope_bases",
    "rope_factor": "rope_factor",
    "rope_original_length": "rope_original_length",
    "initializer_range": "init_std",
}
# transformers writes some fields only if they differ from the default, and old bundles lack others.
MAY_BE_MISSING = {
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "qk_norm": False,
    "logit_softcap": 0.0,
    "rope_bases": (),
    "rope_factor": 1.0,
    "rope_original_length": 0,
}

# What names begin with in training, and in a bundle.
PLACES = {
    "embedding.tokens.": "model.embed_tokens.",
    "blocks.": "model.layers.",
    "head.norm.": "model.norm.",
    "head.output.": "lm_head.",
}
# Names within an attention that differ.
IN_ATTENTION = {
    ".attention.qkv.q": ".attention.q.weight",
    ".attention.qkv.kv": ".attention.kv.weight",
}


def to_bundle(model: ModelConfig) -> dict[str, Any]:
    """Returns the fields of EsoLMConfig for an architecture."""
    fields = {theirs: getattr(model, ours) for theirs, ours in FIELDS.items()}
    return {**fields, "num_key_value_heads": model.kv_heads}


def from_bundle(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of ModelConfig that a bundle's config.json determines.

    Raises ExportError if one is missing there.
    """
    given = {**MAY_BE_MISSING, **config}
    missing = [name for name in FIELDS if name not in given]
    if missing:
        raise ExportError(f"the bundle's config.json lacks {', '.join(missing)}")
    found = {ours: given[theirs] for theirs, ours in FIELDS.items()}
    if found["num_kv_heads"] in (None, found["num_heads"]):
        found["num_kv_heads"] = 0  # as ModelConfig has it
    found["rope_bases"] = tuple(found["rope_bases"])
    return found


def bundle_name(name: str) -> str:
    """Returns what a bundle calls a tensor of the network.

    Raises ExportError for a tensor that has no place in a bundle.
    """
    for ours, theirs in IN_ATTENTION.items():
        if name.endswith(ours):
            name = name.removesuffix(ours) + theirs
    for ours, theirs in PLACES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ExportError(f"coverage: a bundle has no place for the tensor '{name}'")


def is_folded_away(name: str) -> bool:
    """Whether a tensor is part of adaLN, whose effect is in the other weights of a bundle."""
    return ".modulation." in name or ".conditioning." in name
