"""Bundles and runs of random weights over the test's dataset, and a judge from the same machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.export.export import export_source
from tests.pipeline.export.conftest import RandomSource, small_model

SEQ_LEN = 16


class DatasetSource(RandomSource):
    """A random network over the vocabulary of a dataset."""


@pytest.fixture(scope="session")
def make_bundle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A verified fp32 bundle of random weights for an objective's settings."""
    from data_prep.tokenizer import load_tokenizer

    info = load_tokenizer(dataset / "tokenizer").info
    made: dict[str, Path] = {}

    def make(**objective: Any) -> Path:
        key = repr(sorted(objective.items()))
        if key not in made:
            source = RandomSource(
                small_model(vocab_size=info.vocab_size, mask_id=info.mask_id),
                objective=objective,
                seq_len=SEQ_LEN,
                tokenizer_path=dataset / "tokenizer",
            )
            made[key] = tmp_path_factory.mktemp("bundle") / "bundle"
            export_source(source, made[key], dtype="fp32")
        return made[key]

    return make
