"""The training objectives: pure functions from (tokens, keys) to (NetworkInput, Targets)."""

from model.objectives.ar import AutoRegressive
from model.objectives.base import (
    Objective,
    ObjectiveKind,
    Orders,
    VocabularyIds,
)
from model.objectives.bd3lm import BD3LM
from model.objectives.draws import SampleKeys
from model.objectives.esolm import EsoLM
from model.objectives.mdlm import MDLM
from model.objectives.registry import objective_kind, objective_names

__all__ = [
    "BD3LM",
    "MDLM",
    "AutoRegressive",
    "EsoLM",
    "Objective",
    "ObjectiveKind",
    "Orders",
    "SampleKeys",
    "VocabularyIds",
    "objective_kind",
    "objective_names",
]
