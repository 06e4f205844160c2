"""Chooses the engine of a layout."""

from pipeline.parallel.engine import Engine, EngineConfig
from pipeline.parallel.flat import FlatEngine
from pipeline.parallel.pipe import PipeEngine

ENGINES: tuple[type[Engine], ...] = (PipeEngine, FlatEngine)
"""The first that runs a layout is taken."""


def build_engine(config: EngineConfig) -> Engine:
    """The engine of config.layout, with its initial weights."""
    return next(engine for engine in ENGINES if engine.runs(config.layout))(config)
