"""Generative perplexity: what another language model makes of the samples."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.tokenizers import load_tokenizer
from pipeline.errors import ConfigError

# Configurations name the longest context differently.
_LIMITS = ("max_position_embeddings", "n_positions")


class Judge:
    """A causal language model of transformers in a local folder, with its own tokenizer.

    Raises DataError if the folder holds no tokenizer, ConfigError if it holds no such model.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        from pipeline.export.writer import no_transformers_bars

        self._tokenizer = load_tokenizer(path)
        try:
            with no_transformers_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--judge {path} cannot be loaded: {reason}") from error
        self._model, self._device = model.to(device).eval(), device
        limits = [getattr(model.config, name, None) for name in _LIMITS]
        self._context = next((limit for limit in limits if limit), 1024)

    def perplexity(self, texts: Sequence[str]) -> dict[str, Any]:
        """exp of the mean negative log-likelihood over all tokens of all texts.

        Tokens are the judge's. A text longer than its context is cut into windows; the first token
        of a window is given. Perplexity is None if nothing could be scored.
        """
        nats, count = 0.0, 0
        for text in texts:
            ids = self._tokenizer.encode(text, recognise_specials=True)
            for start in range(0, len(ids), self._context):
                window = ids[start : start + self._context]
                if len(window) > 1:
                    nats += self._nats(window)
                    count += len(window) - 1
        loss = nats / count if count else None
        return {
            "perplexity": None if loss is None else math.exp(min(loss, 700.0)),
            "nats_per_token": loss,
            "tokens": count,
        }

    @torch.no_grad()
    def _nats(self, ids: list[int]) -> float:
        row = torch.tensor([ids], device=self._device)
        log_p = self._model(row).logits[0, :-1].float().log_softmax(-1)
        return -float(log_p.gather(1, row[0, 1:, None]).double().sum())
