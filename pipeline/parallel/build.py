"""Chooses the engine of a run.

What an engine owes its callers stands in `esolm.pipeline.parallel.engine`. To add one of your own,
write it in a file beside this one and put it in front of ENGINES. The shortest to begin with is
`esolm.pipeline.parallel.one_process`, which needs PyTorch alone.
"""

from esolm.pipeline.parallel.engine import Engine, EngineConfig
from esolm.pipeline.parallel.flat import FlatEngine
from esolm.pipeline.parallel.host_memory import freed_blocks_go_back
from esolm.pipeline.parallel.one_process import OneProcessEngine
from esolm.pipeline.parallel.pipe import PipeEngine

ENGINES: list[type[Engine]] = [OneProcessEngine, PipeEngine, FlatEngine]
"""The first engine that is one for a run is taken."""


def build_engine(config: EngineConfig) -> Engine:
    """Returns the engine of a run, with its initial weights."""
    with freed_blocks_go_back():
        return next(engine for engine in ENGINES if engine.runs(config))(config)
