"""MAUVE (Pillutla et al., arXiv 2102.01454) between samples and real text, an optional extra."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from esolm.data_prep.tokenizers import Tokenizer, load_tokenizer
from esolm.pipeline.errors import ConfigError

# The limit that the reference implementation of MAUVE has for long texts.
MAX_TOKENS = 1024


def check_available() -> None:
    """Raises ConfigError, which names what to install, if mauve-text is missing."""
    if find_spec("mauve") is None:
        raise ConfigError("--featuriser needs the package mauve-text: pip install 'esolm[mauve]'")


def mauve(
    samples: Sequence[str], references: Sequence[str], featuriser: Path, device: torch.device
) -> float:
    """Returns MAUVE in (0, 1]; a higher value means that the texts are more alike.

    It means little with fewer than some hundreds of texts on each side.
    """
    check_available()
    from mauve import compute_mauve

    model, tokenizer = _load(featuriser, device)
    result = compute_mauve(
        p_features=_features(model, tokenizer, references, device),
        q_features=_features(model, tokenizer, samples, device),
        verbose=False,
    )
    return float(result.mauve)


def _load(path: Path, device: torch.device) -> tuple[Any, Tokenizer]:
    from transformers import AutoModel

    from esolm.pipeline.export.writer import no_transformers_bars

    tokenizer = load_tokenizer(path)
    try:
        with no_transformers_bars():
            model: Any = AutoModel.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--featuriser {path} cannot be loaded: {reason}") from error
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def _features(
    model: Any, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device
) -> NDArray[np.float32]:
    """Returns the last hidden state of the last token of each text, [N, D]."""
    limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    rows = []
    for text in texts:
        ids = tokenizer.encode(text, recognise_specials=True)[:limit]
        hidden = model(torch.tensor([ids or [0]], device=device)).last_hidden_state
        rows.append(hidden[0, -1].float().cpu().numpy())
    return np.stack(rows)
