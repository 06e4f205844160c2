"""Every objective file under configs/ makes an objective; bad settings are named."""

from pathlib import Path

import pytest

from esolm.model.flops import flops_per_token
from esolm.model.objectives import VocabularyIds
from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.experiment import build_objective
from esolm.pipeline.run.sections import RunConfig
from tests.model.conftest import MASK_ID, small_config

CONFIGS = Path(__file__).parents[2] / "configs" / "objective"
IDS = VocabularyIds(MASK_ID + 1, MASK_ID, bos_id=1)
REQUIRED = ["run.dir=unused", "data.path=unused", "train.steps=1", "train.seq_len=32"]
NAMES = {
    "ar": "AutoRegressive",
    "bd3lm": "BD3LM",
    "esolm_a": "EsoLM",
    "esolm_b": "EsoLM",
    "mdlm": "MDLM",
}


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml", [*REQUIRED, *overrides])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_file_makes_an_objective(path: Path) -> None:
    config = load(path.stem)
    objective, problems = build_objective(config, IDS)
    assert problems == []
    assert type(objective).__name__ == NAMES[path.stem]
    assert objective is not None
    assert flops_per_token(small_config(), objective.work(32), 32) > 0


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("ar", "objective.name=gpt", "choose esolm, ar, mdlm or bd3lm"),
        ("ar", "objective.prepend=eos", "choose none, bos or mask"),
        ("bd3lm", "objective.block_size=5", "must divide train.seq_len 32"),
        ("bd3lm", "objective.t_max=1.5", "must be in order"),
        ("esolm_a", "objective.variant=C", "choose A or B"),
    ],
)
def test_bad_settings_are_named(name: str, override: str, message: str) -> None:
    _, problems = build_objective(load(name, override), IDS)
    assert any(message in problem for problem in problems)


def test_two_streams_cost_more_than_one() -> None:
    model = small_config(hidden_size=96, num_heads=4, ffn_hidden_size=384, num_layers=6)
    objectives = {name: build_objective(load(name), IDS)[0] for name in NAMES}
    costs = {
        name: flops_per_token(model, objective.work(32), 32)
        for name, objective in objectives.items()
        if objective is not None
    }
    assert costs.keys() == NAMES.keys()
    assert costs["ar"] < costs["mdlm"] < costs["bd3lm"]
    assert costs["ar"] < costs["esolm_b"] < costs["esolm_a"] < costs["bd3lm"]
