"""Generative perplexity: the perplexity of the samples under another language model."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from esolm.data_prep.tokenizers import load_tokenizer
from esolm.model.objectives import Orders, objective_kind
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.export.manifest import NAME
from esolm.pipeline.generate import load_bundle

# The names under which configurations hold the longest context.
_LIMITS = ("max_position_embeddings", "n_positions")


class Judge:
    """A causal language model of transformers in a local folder, with its own tokenizer.

    Raises DataError if the folder holds no tokenizer, ConfigError if it holds no such model.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._tokenizer = load_tokenizer(path)
        model = _own_bundle(path) if (path / NAME).is_file() else _of_transformers(path)
        # An `ar` network of ours reads the same token in front of each row as in training.
        prepended = getattr(model.config, "prepend_token_id", None)
        self._front = [] if prepended is None else [prepended]
        self._model, self._device = model.to(device).eval(), device
        limits = [getattr(model.config, name, None) for name in _LIMITS]
        self._context = next((limit for limit in limits if limit), 1024)

    def perplexity(
        self, texts: Sequence[str], on_texts: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """Returns exp of the mean negative log-likelihood over all tokens of all texts.

        The tokens are those of the judge. A text longer than its context is cut into windows, and
        the first token of a window is given. The perplexity is None if nothing could be scored.
        on_texts: told how many more texts are scored.
        """
        nats, count = 0.0, 0
        for text in texts:
            ids = self._tokenizer.encode(text, recognise_specials=True)
            for start in range(0, len(ids), self._context):
                window = ids[start : start + self._context]
                if len(window) > 1:
                    nats += self._nats(window)
                    count += len(window) - 1
            on_texts(1)
        loss = nats / count if count else None
        return {
            "perplexity": None if loss is None else math.exp(min(loss, 700.0)),
            "nats_per_token": loss,
            "tokens": count,
        }

    @torch.no_grad()
    def _nats(self, ids: list[int]) -> float:
        front = len(self._front)
        row = torch.tensor([self._front + ids], device=self._device)
        log_p = self._model(row).logits[0, front:-1].float().log_softmax(-1)
        return -float(log_p.gather(1, row[0, front + 1 :, None]).double().sum())


def _own_bundle(path: Path) -> Any:
    """Loads the network of an `ar` bundle, the only kind that predicts the next token.

    The code that runs is this repository's. Raises ConfigError for bundles of other kinds.
    """
    model = load_bundle(path).model
    if objective_kind(model.config.objective).orders is not Orders.LEFT_TO_RIGHT:
        raise ConfigError(
            f"--judge {path} is a bundle trained as '{model.config.objective}', which does not "
            "predict the next token; give an 'ar' bundle or a causal language model"
        )
    return model


def _of_transformers(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    from esolm.pipeline.export.writer import no_transformers_bars

    try:
        with no_transformers_bars():
            # Without the last option transformers would ask at the terminal about foreign code.
            return AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is not run; give a model of transformers"
        raise ConfigError(f"--judge {path} cannot be loaded: {reason}") from error
