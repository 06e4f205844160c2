"""The engine of one process: PyTorch alone, with nothing to share out.

DeepSpeed copies gradients into flat tensors and weights out of them, for collectives that one
process does not need.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from esolm.model.tensors import network_tensors
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.engine import (
    Engine,
    EngineConfig,
    Judge,
    Replica,
    StepResult,
    judged,
)
from esolm.pipeline.parallel.fragments import STATES, WEIGHTS, Fragment
from esolm.pipeline.parallel.losses import LossRecord
from esolm.pipeline.parallel.module import (
    LossModule,
    build_optimizer,
    empty_network,
    initialize_module,
)
from esolm.pipeline.parallel.names import canonical_parameters
from esolm.pipeline.parallel.to_device import on_device


class OneProcessEngine(Engine):
    """Runs the whole network; where it computes in bf16, fp32 copies of its weights are updated."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.module = LossModule(empty_network(config), config.logits_mb)
        initialize_module(self.module, config)
        self.optimizer = build_optimizer(self.module, config)
        self._losses = LossRecord(config.layout, config.device, config.micro_batch_size)
        self._masters = {parameter: _master_of(parameter) for _, parameter in self.parameters()}
        for group in self.optimizer.param_groups:
            group["params"] = [self._masters[parameter] for parameter in group["params"]]

    @staticmethod
    def runs(config: EngineConfig) -> bool:
        return not config.layout.needs_deepspeed(config.offload)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return canonical_parameters(self.module, self.config.model)

    def train_step(
        self, batches: Sequence[MicroBatch], learning_rate: float, judge: Judge | None = None
    ) -> StepResult:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.module.train()
        self._losses.begin(batches)
        for batch in batches:
            self._forward(batch).backward()  # type: ignore[no-untyped-call]
        norm = self._clipped()
        result = judged(self._losses.reduce(batches), norm, math.isfinite(norm), judge)
        if result.applied:
            self.optimizer.step()
            self.publish()
        self.optimizer.zero_grad()
        return result

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch]) -> dict[str, float]:
        self.module.eval()
        self._losses.begin(batches)
        for batch in batches:
            self._forward(batch)
        return self._losses.reduce(batches).terms

    def fragments(self) -> list[Fragment]:
        self.optimizer.create_state(self._masters.values())
        return [self._fragment(name, self._masters[held]) for name, held in self.parameters()]

    def publish(self) -> None:
        if self.config.dtype != torch.float32:
            weights = [parameter.data for parameter in self._masters]
            torch._foreach_copy_(weights, [master.data for master in self._masters.values()])

    def adopt(self, updates: int) -> None:
        self.optimizer.go_on_from(updates)
        self.publish()

    def replicas(self) -> Iterator[Replica]:
        return iter(())

    def _forward(self, batch: MicroBatch) -> Tensor:
        inputs, targets = on_device(batch, self.config.device)
        loss: Tensor = self.module(inputs, targets, self._losses.new_rows())
        self._losses.add(loss)
        return loss

    def _clipped(self) -> float:
        """Clips the step's gradients, none of which is missing then, and returns their norm."""
        masters = list(self._masters.values())
        for master in masters:
            if master.grad is None:  # its weight decays all the same
                master.grad = torch.zeros_like(master)
        most = self.config.gradient_clipping or math.inf
        return float(torch.nn.utils.clip_grad_norm_(masters, most))

    def _fragment(self, name: str, master: nn.Parameter) -> Fragment:
        held = {WEIGHTS: master.data, **self.optimizer.state[master]}
        return Fragment(
            name=name,
            full_shape=network_tensors(self.config.model)[name].shape,
            local_shape=tuple(master.shape),
            offsets=(0,) * master.dim(),
            start=0,
            states={state: held[state].view(-1) for state in STATES},
            writes=True,
        )


def _master_of(parameter: nn.Parameter) -> nn.Parameter:
    """Returns the fp32 weights that the optimizer updates: of an fp32 parameter itself.

    A gradient in bf16 is added to the sum in fp32 as soon as it is there.
    """
    if parameter.dtype == torch.float32:
        return parameter
    master = nn.Parameter(parameter.detach().float())

    def add(held: Tensor) -> None:
        assert held.grad is not None
        if master.grad is None:
            master.grad = held.grad.float()
        else:
            master.grad.add_(held.grad)
        held.grad = None

    parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
    return master
