"""Chooses the engine of a layout."""

from pipeline.parallel.engine import Engine, EngineConfig
from pipeline.parallel.flat import FlatEngine
from pipeline.parallel.pipe import PipeEngine


def build_engine(config: EngineConfig) -> Engine:
    """The engine of config.layout, with its initial weights."""
    return PipeEngine(config) if config.layout.pp > 1 else FlatEngine(config)
