"""What the two engines over DeepSpeed share."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.bootstrap import import_deepspeed
from esolm.pipeline.parallel.engine import (
    Engine,
    EngineConfig,
    Judge,
    Replica,
    StepResult,
    judged,
)
from esolm.pipeline.parallel.fragments import Fragment
from esolm.pipeline.parallel.layout import REDUCE_BUCKET
from esolm.pipeline.parallel.losses import LossRecord
from esolm.pipeline.parallel.module import build_optimizer
from esolm.pipeline.parallel.names import canonical_parameters
from esolm.pipeline.parallel.optimizer import EmaAdamW
from esolm.pipeline.parallel.zero import ZeroStates, zero_states


class DeepSpeedEngine(Engine):
    """Wraps an engine of DeepSpeed; a subclass makes the module and runs the batches."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._losses = LossRecord(config.layout, config.device, config.micro_batch_size)
        self._verdict: StepResult | None = None
        self.deepspeed: Any = None
        """DeepSpeed's engine; set by `_wrap`."""

    @abstractmethod
    def _run(self, batches: Sequence[MicroBatch]) -> None:
        """Runs forward, backward and update over one step's micro-batches of this replica."""

    @abstractmethod
    def _run_without_update(self, batches: Sequence[MicroBatch]) -> None:
        """Runs the forward pass only, in evaluation mode."""

    def _in_order(self, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
        """Returns the micro-batches in the order in which they are run."""
        return batches

    def _wrap(self, module: nn.Module, **arguments: Any) -> None:
        """Hands an initialised module to DeepSpeed."""
        self.deepspeed, *_ = import_deepspeed().initialize(
            model=module,
            optimizer=build_optimizer(module, self.config),
            config=deepspeed_config(self.config),
            dist_init_required=False,
            **arguments,
        )
        if self.layout.scatters(self.config.precision, self.config.offload):
            from esolm.pipeline.parallel.bf16_zero1 import scatter_gradients

            scatter_gradients(
                self.deepspeed.optimizer, self.config.num_micro_batches, self._late(module)
            )

    def _late(self, module: Any) -> list[nn.Parameter]:
        """Returns the parameters that need not be complete after a gradient per micro-batch."""
        return []

    @property
    def optimizer(self) -> EmaAdamW:
        """The optimizer itself, below DeepSpeed's wrapper."""
        wrapped: EmaAdamW = self.deepspeed.optimizer.optimizer
        return wrapped

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return canonical_parameters(self.deepspeed.module, self.config.model)

    def train_step(
        self, batches: Sequence[MicroBatch], learning_rate: float, judge: Judge | None = None
    ) -> StepResult:
        batches = self._in_order(batches)
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self._verdict = None
        self._losses.begin(batches)
        self.optimizer.veto = lambda: not self._judged(batches, judge).applied
        self._run(batches)
        return self._judged(batches, judge)

    def evaluate(self, batches: Sequence[MicroBatch]) -> dict[str, float]:
        self._losses.begin(batches)
        batches = self._in_order(batches)
        self._run_without_update(batches)
        return self._losses.reduce(batches).terms

    @cached_property
    def _states(self) -> ZeroStates:
        return zero_states(
            self.deepspeed.optimizer, self.parameters(), self.config.model, self.layout
        )

    def fragments(self) -> list[Fragment]:
        return self._states.fragments()

    def publish(self) -> None:
        self._states.publish()

    def adopt(self, updates: int) -> None:
        self.optimizer.go_on_from(updates)
        self.publish()

    def replicas(self) -> Iterator[Replica]:
        return self._states.replicas()

    def _judged(self, batches: Sequence[MicroBatch], judge: Judge | None) -> StepResult:
        """Returns the step's figures and the verdict on it.

        Both are found once; the first call is collective.
        """
        if self._verdict is None:
            wrapper = self.deepspeed.optimizer
            norm = float(wrapper._global_grad_norm)
            finite = math.isfinite(norm) and not wrapper.overflow
            self._verdict = judged(self._losses.reduce(batches), norm, finite, judge)
        return self._verdict

    def _record(self, loss: Tensor) -> Tensor:
        """Notes a micro-batch's loss and scales it for backward.

        DeepSpeed averages over micro-batches and copies of the weights; the weights of the loss
        already make the sum over all of them the loss of the step.
        """
        self._losses.add(loss)
        return loss * (self.config.num_micro_batches * self.layout.copies)


def deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    """Returns DeepSpeed's own configuration."""
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.num_micro_batches,
        "gradient_clipping": config.gradient_clipping,
        "steps_per_print": None,
        # Its timer waits for the device twice in every micro-batch.
        "timers": {"throughput": {"enabled": False}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.layout.zero,
            "reduce_bucket_size": REDUCE_BUCKET,
            **({"offload_optimizer": {"device": "cpu"}} if config.offload else {}),
        },
        "bf16": {
            "enabled": config.precision == "bf16",
            # Without it, BF16_Optimizer loses every gradient of a pipeline whose stages pass on two
            # floating tensors (seen: norm 0, no error).
            "immediate_grad_update": True,
            "check_grad_overflow": True,
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        # bf16 would round the sum over replicas, the more so the more replicas there are.
        "communication_data_type": "fp32",
        # DeepSpeed's partitioned pipes do not know that the lengths of micro-batches differ.
        "pipeline": {
            "pipe_partitioned": False,
            "grad_partitioned": False,
        },
    }
