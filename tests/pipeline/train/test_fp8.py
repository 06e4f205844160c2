"""A run that cannot multiply in FP8 says so at its start."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from esolm.model.config import FP8_RECIPES
from esolm.model.objectives import EsoLM
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.fp8 import capability_problem, fp8_problems
from esolm.pipeline.run.sections import ParallelSection, TrainSection
from esolm.pipeline.train import fp8
from tests.dist.workers import MASK_ID, MODELS

OBJECTIVE = EsoLM(MASK_ID, alpha_0=0.5, kappa=0.5)
TRAIN = TrainSection(steps=1, seq_len=16, micro_batch_size=2, fp8="rowwise")


def test_everything_that_does_not_go_with_it_at_once() -> None:
    model = replace(MODELS["modern"], hidden_size=48, num_heads=4, ffn_hidden_size=112)
    train = replace(TRAIN, precision="fp32", seq_len=12, micro_batch_size=1)
    problems = fp8_problems(train, ParallelSection(tp=2), model, OBJECTIVE)
    told = (
        "train.precision=bf16",
        "model.hidden_size / parallel.tp 2 must divide by 16 and is 24",
        "model.ffn_hidden_size / parallel.tp 2 must divide by 16 and is 56",
        "the width of the keys of a rank",
        "x 12",
    )
    for words in told:
        assert sum(words in problem for problem in problems) == 1, problems
    for whole in (ParallelSection(pp=2), ParallelSection(cp=2), ParallelSection(tp=2)):
        assert not fp8_problems(TRAIN, whole, MODELS["modern"], OBJECTIVE)
    assert not fp8_problems(TRAIN, ParallelSection(tp=3), MODELS["modern"], OBJECTIVE)
    (too_few, *_) = fp8_problems(TRAIN, ParallelSection(cp=4), MODELS["modern"], OBJECTIVE)
    assert "x 16 / parallel.cp 4, must divide by 16 and is 8" in too_few
    assert not fp8_problems(replace(train, fp8="none"), ParallelSection(tp=2), model, OBJECTIVE)


def test_a_gpu_that_lacks_it_is_named() -> None:
    lacking = "it needs compute capability 9.0, and an L4 has 8.9"
    assert capability_problem("rowwise", "an L4", (8, 9)) == lacking
    assert not capability_problem("tensorwise", "an L4", (8, 9))
    assert not capability_problem("none", "an A100", (8, 0))


def test_a_machine_without_gpus_is_refused_before_ranks_start() -> None:
    fp8.check_fp8(replace(TRAIN, fp8="none"))
    if not torch.cuda.device_count():
        with pytest.raises(ConfigError, match=r"train\.fp8=rowwise: .*Set train\.fp8=none"):
            fp8.check_fp8(TRAIN)


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed")
def test_without_torchao() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'esolm\[fp8\]'"):
        fp8.prove_fp8(TRAIN, torch.device("cpu"), MODELS["paper"])


@pytest.mark.parametrize("recipe", FP8_RECIPES)
def test_a_cpu_is_refused_though_its_products_are_right(recipe: str) -> None:
    pytest.importorskip("torchao", reason="the optional extra fp8 is not installed")
    device = torch.device("cpu")
    assert 0.01 < fp8.fp8_error(recipe, device, MODELS["paper"]) < fp8.TOLERANCE
    with pytest.raises(ConfigError, match=rf"{recipe}: it needs a GPU, and there is none"):
        fp8.prove_fp8(replace(TRAIN, fp8=recipe), device, MODELS["paper"])
    fp8.prove_fp8(replace(TRAIN, fp8="none"), device, MODELS["paper"])
