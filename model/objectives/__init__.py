"""The training objectives: pure functions from (tokens, keys) to (NetworkInput, Targets)."""

from esolm.model.objectives.ar import AutoRegressive
from esolm.model.objectives.base import (
    Objective,
    ObjectiveKind,
    Orders,
    VocabularyIds,
)
from esolm.model.objectives.bd3lm import BD3LM
from esolm.model.objectives.draws import SampleKeys
from esolm.model.objectives.esolm import EsoLM
from esolm.model.objectives.mdlm import MDLM
from esolm.model.objectives.registry import objective_kind, objective_names

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
