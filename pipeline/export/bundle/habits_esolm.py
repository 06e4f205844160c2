# mypy: ignore-errors
"""Options of `generate` by the names that users of transformers know them."""

from typing import Any

from transformers import GenerationConfig

# Their values here are those that change nothing.
NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "length_penalty": 1.0, "early_stopping": False, "min_p": None,
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "bad_words_ids": None,
    "force_words_ids": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None,
    "guidance_scale": None, "logits_processor": None, "stopping_criteria": None,
    "prefix_allowed_tokens_fn": None, "assistant_model": None, "output_scores": False,
    "output_logits": False, "output_attentions": False, "output_hidden_states": False,
    "cache_implementation": None, "past_key_values": None, "diversity_penalty": 0.0,
    "synced_gpus": None, "max_time": None, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "remove_invalid_values": False, "renormalize_logits": False,
    "min_length": 0,
}  # fmt: skip
# They mean nothing here, whatever they are.
WITHOUT_MEANING = ("bos_token_id", "decoder_start_token_id", "use_model_defaults", "use_cache",
                   "transformers_version", "_from_model_config", "_commit_hash")  # fmt: skip

# Of these None says something: a new seed each time, and that nothing ends a text early.
NONE_SAYS = ("seed", "eos_token_id")


def translated(options: dict[str, Any]) -> dict[str, Any]:
    """The options by our own names. Raises ValueError naming what this decoder cannot do."""
    found, wrong = {}, []
    for name, value in options.items():
        if name in NEUTRAL:
            if value is not None and value != NEUTRAL[name]:
                wrong.append(name)
        elif name not in WITHOUT_MEANING:
            found[name] = value
    if wrong:
        raise ValueError(f"this decoder has no {', '.join(sorted(wrong))}")
    if (length := found.pop("max_length", None)) is not None:
        found["length"] = length
    if found.pop("do_sample", None) is False:
        found["temperature"] = 0.0
    return _said(found)


def with_plain(config: GenerationConfig, options: dict[str, Any]) -> dict[str, Any]:
    """What a GenerationConfig of transformers itself asks for, unless a single option differs."""
    return {**config.to_diff_dict(), **_said(options)}


def _said(options: dict[str, Any]) -> dict[str, Any]:
    """Without those that are None, unless that says something."""
    return {
        name: value for name, value in options.items() if value is not None or name in NONE_SAYS
    }
