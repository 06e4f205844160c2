"""Chooses the engine of a layout.

What an engine owes its callers stands in `esolm.pipeline.parallel.engine`. To add one of your own,
write it in a file beside this one and put it in front of ENGINES. The one below trains in one
process by PyTorch alone, and its losses are FlatEngine's:

```python
import math
from dataclasses import replace

import torch

from esolm.pipeline.parallel.engine import Engine, StepResult
from esolm.pipeline.parallel.fragments import STATES, WEIGHTS, Fragment
from esolm.pipeline.parallel.losses import reduce_losses
from esolm.pipeline.parallel.module import (
    LossModule, build_optimizer, empty_network, initialize_module
)
from esolm.pipeline.parallel.names import canonical_parameters


class PlainEngine(Engine):
    def __init__(self, config):
        super().__init__(config)
        self.module = LossModule(empty_network(config))
        initialize_module(self.module, config)
        self.optimizer = build_optimizer(self.module, config)

    @staticmethod
    def runs(layout):
        return layout.world_size == 1

    def parameters(self):
        return canonical_parameters(self.module, self.config.model)

    def train_step(self, batches, learning_rate, judge=None):
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        losses = [self.module(batch.inputs, batch.targets) for batch in batches]
        sum(losses).backward()
        clip = self.config.gradient_clipping or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), clip))
        found = self._reduced(batches, losses)
        result = StepResult(found.terms, norm, math.isfinite(norm), found.buckets)
        applied = result.applied and (judge is None or judge(result))
        if applied:
            self.optimizer.step()
        return replace(result, applied=applied)

    @torch.no_grad()
    def evaluate(self, batches):
        return self._reduced(batches, [self.module(b.inputs, b.targets) for b in batches]).terms

    def _reduced(self, batches, losses):
        recorded = [loss.detach() for loss in losses]
        return reduce_losses(batches, recorded, self.layout, self.config.device)

    def fragments(self):
        self.optimizer.create_state(self.module.parameters())
        return [self._fragment(name, p, tuple(p.shape)) for name, p in self.parameters()]

    def _fragment(self, name, parameter, shape):
        held = {WEIGHTS: parameter.data, **self.optimizer.state[parameter]}
        states = {state: held[state].view(-1) for state in STATES}
        return Fragment(name, shape, shape, (0,) * len(shape), 0, states, writes=True)

    def publish(self):
        pass  # its fragments are the weights that it computes with

    def adopt(self, updates):
        for state in self.optimizer.state.values():
            state["step"].fill_(updates)

    def replicas(self):
        return iter(())
```
"""

from esolm.pipeline.parallel.engine import Engine, EngineConfig
from esolm.pipeline.parallel.flat import FlatEngine
from esolm.pipeline.parallel.host_memory import freed_blocks_go_back
from esolm.pipeline.parallel.pipe import PipeEngine

ENGINES: list[type[Engine]] = [PipeEngine, FlatEngine]
"""The first engine that runs a layout is taken."""


def build_engine(config: EngineConfig) -> Engine:
    """Returns the engine of config.layout, with its initial weights."""
    with freed_blocks_go_back():
        return next(engine for engine in ENGINES if engine.runs(config.layout))(config)
