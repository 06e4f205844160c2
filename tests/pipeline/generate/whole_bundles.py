"""Bundles of random weights with their code and tokenizer, as transformers loads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.export.conftest import RandomSource, small_model, tokenizer_directory
from tests.pipeline.generate.systems import OBJECTIVES

__all__ = ["tokenizer_directory", "whole_bundle"]

Bundles = Callable[[str], Path]


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Bundles:
    """A bundle by the name of its system, without a gate."""
    from esolm.data_prep.tokenizers import load_tokenizer
    from esolm.pipeline.export.fold import fold
    from esolm.pipeline.export.manifest import write_manifest
    from esolm.pipeline.export.writer import bundle_config, load_model, write_bundle

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            source = RandomSource(small_model(), OBJECTIVES[name])
            tokenizer = load_tokenizer(tokenizer_directory)
            parameters = fold(source.tensors("ema"), source.model, torch.float32)
            made[name] = tmp_path_factory.mktemp(name)
            model = load_model(bundle_config(source, tokenizer), parameters)
            write_bundle(made[name], source, model, tokenizer)
            write_manifest(made[name], {"step": source.step, "seq_len": source.seq_len})
        return made[name]

    return make


def loaded(path: Path, auto: Any = None) -> tuple[Any, Any]:
    """The network and the tokenizer, as a user loads them."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
    model = (auto or AutoModelForMaskedLM).from_pretrained(path, **options)
    return model, AutoTokenizer.from_pretrained(path, **options)
