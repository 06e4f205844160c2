"""Training objectives: pure functions (tokens, keys) -> (NetworkInput, Targets)."""

from model.objectives.ar import AutoRegressive
from model.objectives.base import Objective
from model.objectives.draws import SampleKeys
from model.objectives.esolm import EsoLM

__all__ = ["AutoRegressive", "EsoLM", "Objective", "SampleKeys"]
