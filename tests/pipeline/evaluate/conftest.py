"""Runs and bundles of random weights over the test's dataset, and a judge made on the spot."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.pipeline.export import gate
from esolm.pipeline.export.export import export
from esolm.pipeline.importer.checkpoint import write_checkpoint
from esolm.pipeline.importer.network import StoredNetwork
from esolm.pipeline.run.sections import ObjectiveSection
from tests.pipeline.export.conftest import RandomSource, small_model

SEQ_LEN = 16

OBJECTIVES: dict[str, dict[str, Any]] = {
    "esolm_b": {"name": "esolm", "variant": "B", "alpha_0": 0.5, "kappa": 0.5},
    "esolm_a": {"name": "esolm", "variant": "A", "alpha_0": 0.25, "kappa": 0.5},
    "mdlm": {"name": "mdlm"},
    "bd3lm": {"name": "bd3lm", "block_size": 4},
    "bd3lm_bos": {"name": "bd3lm", "block_size": 8, "keep_first": True},
    "ar": {"name": "ar", "prepend": "none"},
    "ar_bos": {"name": "ar", "prepend": "bos"},
}


@pytest.fixture(scope="session")
def make_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run directory of random weights under one of OBJECTIVES, as training leaves it."""
    from esolm.data_prep.tokenizers import load_tokenizer

    info = load_tokenizer(dataset / "tokenizer").info
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            model = small_model(vocab_size=info.vocab_size, mask_id=info.mask_id)
            source = RandomSource(model)
            network = StoredNetwork(
                step=7,
                model=model,
                objective=ObjectiveSection(**OBJECTIVES[name]),
                seq_len=SEQ_LEN,
                weights=source.tensors("weights"),
                ema=source.tensors("ema"),
                moments=None,
                notes=[],
            )
            run = made[name] = tmp_path_factory.mktemp(name) / "run"
            write_checkpoint(run, network, info.fingerprint)
            shutil.copytree(dataset / "tokenizer", run / "tokenizer")
        return made[name]

    return make


@pytest.fixture(scope="session")
def make_bundle(
    make_run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The fp32 bundle of such a run; its gate without the fresh process, which takes seconds."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "bundle"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gate, "check_reload", lambda *_: ({}, {}))
                export(make_run(name), made[name], dtype="fp32")
        return made[name]

    return make


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of random weights with a byte-level tokenizer and a context of 24 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("judge")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(["ba be bi bo bu ca ce ci co cu " * 20], trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=24, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path)
    return path
