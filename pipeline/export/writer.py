"""Writes the files of a bundle: configuration, weights, code, tokenizer."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from esolm.data_prep.tokenizers import Tokenizer
from esolm.model.config import ModelConfig
from esolm.model.objectives import VocabularyIds, objective_kind
from esolm.pipeline.errors import ExportError
from esolm.pipeline.export.architecture import to_bundle
from esolm.pipeline.export.card import card_of
from esolm.pipeline.export.consolidate import Source

if TYPE_CHECKING:
    from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig

CODE = Path(__file__).parent / "bundle"
CODE_FILES = (
    "configuration_esolm.py",
    "modeling_esolm.py",
    "attention_esolm.py",
    "layers_esolm.py",
    "linears_esolm.py",
    "reading_esolm.py",
    "generation_esolm.py",
    "decoding_esolm.py",
    "passes_esolm.py",
    "rectangle_esolm.py",
    "cells_esolm.py",
    "graphs_esolm.py",
    "writing_esolm.py",
    "prompts_esolm.py",
    "guessing_esolm.py",
    "requests_esolm.py",
    "walks_esolm.py",
    "walk_esolm.py",
    "two_phases_esolm.py",
    "blocks_esolm.py",
    "planning_esolm.py",
    "sampling_esolm.py",
    "copies_esolm.py",
    "habits_esolm.py",
    "infilling_esolm.py",
    "likelihood_esolm.py",
    "tokenization_esolm.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_esolm.EsoLMConfig",
    "AutoModel": "modeling_esolm.EsoLMModel",
    "AutoModelForMaskedLM": "modeling_esolm.EsoLMForMaskedLM",
    "AutoModelForCausalLM": "modeling_esolm.EsoLMForMaskedLM",
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# The diffusion steps that `generate` takes by default.
DEFAULT_STEPS = 64


def bundle_config(
    source: Source, tokenizer: Tokenizer | None, bos_id: int | None = None
) -> "EsoLMConfig":
    """Makes the configuration of a bundle for a trained network.

    bos_id: the id of bos if there is no tokenizer. Raises ExportError if no decoder writes text
    from networks of this objective.
    """
    from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig

    model, objective = source.model, source.objective
    eos_id = None
    if tokenizer is not None:
        bos_id, eos_id = tokenizer.vocabulary.bos_id, tokenizer.vocabulary.eos_id
    kind = objective_kind(objective["name"])
    ids = VocabularyIds(model.vocab_size, model.mask_id, bos_id, eos_id)
    if kind.decoding is None:
        raise ExportError(
            f"the objective '{kind.name}' names no decoder, so nothing could write text from a "
            "bundle of this network; its ObjectiveKind says how in `decoding`"
        )
    config = EsoLMConfig(
        **to_bundle(model),
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        objective=kind.name,
        **{"variant": None, **kind.bundle_fields(objective, ids)},
        seq_len=source.seq_len,
    )
    config.auto_map = dict(AUTO_MAP)
    return config


def load_model(config: "EsoLMConfig", parameters: dict[str, Tensor]) -> Any:
    """Makes the bundle's network with these parameters, in their dtype.

    Raises ExportError unless every parameter is filled and none is left over.
    """
    from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM

    dtype = next(iter(parameters.values())).dtype
    model = EsoLMForMaskedLM(config).to(dtype).eval()
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    given = {name: tuple(value.shape) for name, value in parameters.items()}
    if wrong := sorted(dict(expected.items() ^ given.items())):
        names = ", ".join(wrong[:5])
        raise ExportError(f"coverage: bundle parameters missing or misshapen: {names}")
    if config.tie_word_embeddings:  # one parameter, but two names in the state
        parameters = {**parameters, "lm_head.weight": parameters["model.embed_tokens.weight"]}
    model.load_state_dict(parameters)
    return model


def read_model(directory: Path, dtype: torch.dtype | None = None) -> Any:
    """Loads the network of a bundle, which runs by this repository's copy of its code.

    dtype: that of the weights; None keeps the one they are stored in.
    """
    from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM

    with no_transformers_bars():
        return EsoLMForMaskedLM.from_pretrained(directory, dtype=dtype or "auto").eval()


@contextmanager
def no_transformers_bars() -> Iterator[None]:
    """Hides the progress bars of transformers, which last milliseconds here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_bundle(directory: Path, source: Source, model: Any, tokenizer: Tokenizer | None) -> None:
    """Writes everything but `export.json` into an existing empty directory.

    Raises ExportError unless the network has the tokenizer's vocabulary, and DataError if
    transformers cannot load a tokenizer of this kind.
    """
    model.generation_config = _generation_config(model.config)
    with no_transformers_bars():
        model.save_pretrained(directory)
    for path in directory.glob("*.safetensors"):  # safetensors lets only their owner read them
        path.chmod((directory / "config.json").stat().st_mode)
    for name in CODE_FILES:
        shutil.copyfile(CODE / name, directory / name)
    if tokenizer is not None:
        _check_vocabulary(tokenizer, source.model)
        tokenizer.save_for_bundle(directory)
    (directory / "README.md").write_text(card_of(model, source))


def _generation_config(config: "EsoLMConfig") -> Any:
    from esolm.pipeline.export.bundle.generation_esolm import EsoLMGenerationConfig

    given = {} if config.alpha_0 is None else {"alpha_0": config.alpha_0}
    return EsoLMGenerationConfig(
        **given,
        num_steps=DEFAULT_STEPS,
        length=config.seq_len,
        eos_token_id=config.eos_token_id,
    )


def _check_vocabulary(tokenizer: Tokenizer, model: ModelConfig) -> None:
    known = tokenizer.vocabulary
    if (known.num_rows, known.mask_id) != (model.vocab_size, model.mask_id):
        raise ExportError(
            f"{tokenizer.path} has {known.num_tokens} tokens, which makes {known.num_rows} rows "
            f"with the mask in row {known.mask_id}; the network has {model.vocab_size} rows and "
            f"the mask in row {model.mask_id}: it is not the tokenizer that the network was "
            "trained with"
        )
