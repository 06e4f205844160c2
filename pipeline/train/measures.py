"""The figures of a logged step."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from esolm.model.config import ModelConfig
from esolm.model.flops import flops_per_token
from esolm.model.objectives import Objective
from esolm.pipeline.data.batches import NUM_TIME_BUCKETS
from esolm.pipeline.parallel.engine import StepResult
from esolm.pipeline.run.hardware import peak_flops
from esolm.pipeline.run.sections import RunConfig


def bucket_name(bucket: int) -> str:
    """Returns a name such as loss_t_25_50: the loss at t between 25 and 50 % of its range."""
    width = 100 // NUM_TIME_BUCKETS
    return f"loss_t_{bucket * width:02}_{(bucket + 1) * width:02}"


@dataclass(frozen=True)
class Measures:
    """Turns a step's result and times into metrics; what is not known is "n/a"."""

    config: RunConfig
    model: ModelConfig
    objective: Objective
    device: torch.device
    world_size: int

    def of(self, result: StepResult, learning_rate: float, seconds: float) -> dict[str, Any]:
        train = self.config.train
        tokens_per_second = train.global_batch_size * train.seq_len / seconds
        # Low-variance weights or a clipped range of t do not bound the likelihood.
        is_bound = self.objective == self.objective.for_validation()
        return {
            "loss": result.loss,
            **{f"loss_{term}": value for term, value in result.losses.items()},
            **{bucket_name(bucket): value for bucket, value in result.buckets.items()},
            "perplexity_bound": math.exp(min(result.loss, 700.0)) if is_bound else "n/a",
            "grad_norm": result.grad_norm,
            "lr": learning_rate,
            "tokens_per_second": tokens_per_second,
            "mfu": self._mfu(tokens_per_second),
            "step_seconds": seconds,
            "memory_bytes": self._peak_memory(),
        }

    def _mfu(self, tokens_per_second: float) -> float | str:
        peak = peak_flops(self.device)
        if peak is None:
            return "n/a"
        seq_len = self.config.train.seq_len
        flops = flops_per_token(self.model, self.objective.work(seq_len), seq_len)
        return flops * tokens_per_second / (peak * self.world_size)

    def _peak_memory(self) -> int | str:
        """Returns the peak bytes on this rank's GPU since the last call."""
        if self.device.type != "cuda":
            return "n/a"
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak
