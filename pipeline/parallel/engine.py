"""One interface over DeepSpeed's two engines, so that the training loop never asks which it has."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor, nn

from model.config import ModelConfig
from model.initialize import initialize
from model.loss import SparseTargets
from model.recompute import set_recompute
from model.sequence_parallel import sum_partial_gradients
from pipeline.parallel.layout import REDUCE_BUCKET, Layout
from pipeline.parallel.names import canonical_parameters
from pipeline.train.optimizer import EmaAdamW


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one micro-batch and the name of its loss term.

    inputs: (tokens, positions, rows). targets: see `model.loss.SparseTargets`. bucket: the part of
    the range of t that all its rows lie in, None if there is no such.
    """

    inputs: tuple[Tensor, Tensor, Tensor]
    targets: SparseTargets
    term: str
    bucket: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know of a run."""

    model: ModelConfig
    layout: Layout
    device: torch.device
    seed: int
    micro_batch_size: int
    num_micro_batches: int
    """Micro-batches per step on each data-parallel rank."""
    precision: str
    gradient_clipping: float
    optimizer: dict[str, Any]
    """Arguments of EmaAdamW."""
    layer_costs: Sequence[float] = ()
    """Relative cost of the embedding, every block and the head: what stages are balanced by."""
    recompute: str = "none"
    """What the backward pass computes again instead of keeping it; see `model.recompute`."""
    offload: bool = False
    """Keep the optimizer's states and do its update in host memory."""

    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's own configuration."""
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.num_micro_batches,
            "gradient_clipping": self.gradient_clipping,
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": self.layout.zero,
                "reduce_bucket_size": REDUCE_BUCKET,
                **({"offload_optimizer": {"device": "cpu"}} if self.offload else {}),
            },
            "bf16": {
                "enabled": self.precision == "bf16",
                # Without it, BF16_Optimizer loses every gradient of a pipeline whose stages pass
                # on two floating tensors (seen: norm 0, no error).
                "immediate_grad_update": True,
                "check_grad_overflow": True,
            },
            "data_types": {"grad_accum_dtype": "fp32"},
            # bf16 would round the sum over replicas, and ever more so the more of them there are.
            "communication_data_type": "fp32",
            # Its partitioned pipes do not know that the lengths of micro-batches differ.
            "pipeline": {
                "pipe_partitioned": False,
                "grad_partitioned": False,
            },
        }


@dataclass(frozen=True)
class StepResult:
    """Loss of each term, summed over the global batch, and the gradient norm before clipping."""

    losses: dict[str, float]
    grad_norm: float
    applied: bool = True
    """False where the update was judged harmful and the weights are what they were."""
    buckets: dict[int, float] = field(default_factory=dict)
    """What the term's loss would be, were all its rows like those with t in this bucket."""

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


Judge = Callable[[StepResult], bool]
"""Whether a step may change the weights; asked with the same figures on every rank."""


class Engine(ABC):
    """Runs the network of one layout. Built by `pipeline.parallel.build.build_engine`."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.layout = config.layout
        self.recorded: list[Tensor] = []
        self._verdict: StepResult | None = None
        self.deepspeed: Any = None
        """DeepSpeed's engine; set by the subclass."""

    @abstractmethod
    def _run(self, batches: Sequence[MicroBatch]) -> None:
        """Forward, backward and update over one step's micro-batches of this replica."""

    @abstractmethod
    def _run_without_update(self, batches: Sequence[MicroBatch]) -> None:
        """Forward only, in evaluation mode."""

    @property
    def optimizer(self) -> EmaAdamW:
        """The optimizer itself, below DeepSpeed's wrapper."""
        wrapped: EmaAdamW = self.deepspeed.optimizer.optimizer
        return wrapped

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(canonical name, parameter) of what this rank holds."""
        return canonical_parameters(self.deepspeed.module, self.config.model)

    def train_step(
        self, batches: Sequence[MicroBatch], learning_rate: float, judge: Judge | None = None
    ) -> StepResult:
        """One optimizer step over this replica's micro-batches of the global batch.

        The judge is asked when all gradients are there and before any weight changes. A gradient
        that is not finite is never applied, with a judge or without.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self._verdict = None
        self.optimizer.veto = lambda: not self._judged(batches, judge).applied
        self._run(batches)
        return self._judged(batches, judge)

    def _judged(self, batches: Sequence[MicroBatch], judge: Judge | None) -> StepResult:
        """The step's figures and the verdict on it, found once; collective the first time."""
        if self._verdict is None:
            wrapper = self.deepspeed.optimizer
            norm = float(wrapper._global_grad_norm)
            finite = math.isfinite(norm) and not wrapper.overflow
            losses, buckets = self._reduce_losses(batches)
            result = StepResult(losses, norm, finite, buckets)
            if finite and judge is not None:
                result = replace(result, applied=judge(result))
            self._verdict = result
        return self._verdict

    def evaluate(self, batches: Sequence[MicroBatch]) -> dict[str, float]:
        """Loss of each term, summed over all replicas; weights stay as they are."""
        self._run_without_update(batches)
        return self._reduce_losses(batches)[0]

    def _record(self, loss: Tensor) -> Tensor:
        """Notes a micro-batch's loss and scales it for backward.

        DeepSpeed averages over micro-batches and replicas; the weights of the loss already make
        the sum over all of them the loss of the step.
        """
        self.recorded.append(loss.detach())
        return loss * (self.config.num_micro_batches * self.layout.dp)

    def _reduce_losses(
        self, batches: Sequence[MicroBatch]
    ) -> tuple[dict[str, float], dict[int, float]]:
        """Sums the recorded losses over the replicas and tells every stage: by term, by bucket."""
        kinds = sorted({(batch.term, batch.bucket) for batch in batches}, key=str)
        if self.layout.dp > 1:
            gathered: list[list[tuple[str, int | None]]] = [[] for _ in range(self.layout.dp)]
            group = parallel_state.get_data_parallel_group()
            dist.all_gather_object(gathered, kinds, group=group)
            kinds = sorted(set().union(*gathered), key=str)
        # Of each kind the loss and the number of micro-batches.
        sums = torch.zeros(len(kinds), 2, dtype=torch.float64, device=self.config.device)
        if parallel_state.is_pipeline_last_stage():
            for batch, loss in zip(batches, self.recorded, strict=True):
                row = sums[kinds.index((batch.term, batch.bucket))]
                row += torch.stack([loss.double(), torch.ones_like(loss, dtype=torch.float64)])
            if self.layout.dp > 1:
                dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        if self.layout.pp > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(sums, source, group=parallel_state.get_pipeline_model_parallel_group())
        self.recorded.clear()
        return _by_term_and_bucket(kinds, sums)


def _by_term_and_bucket(
    kinds: list[tuple[str, int | None]], sums: Tensor
) -> tuple[dict[str, float], dict[int, float]]:
    """kinds: (term, bucket). sums: of each, its loss and number of equal micro-batches."""
    terms = {term: 0.0 for term, _ in kinds}
    counts = dict.fromkeys(terms, 0.0)
    for (term, _), (loss, count) in zip(kinds, sums.tolist(), strict=True):
        terms[term] += loss
        counts[term] += count
    buckets = {
        bucket: loss * counts[term] / count
        for (term, bucket), (loss, count) in zip(kinds, sums.tolist(), strict=True)
        if bucket is not None
    }
    return terms, buckets


def parallel_config(layout: Layout) -> ModelParallelConfig:
    """megatron-core's settings for layers that are initialised by us, on the CPU first."""
    return ModelParallelConfig(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        pipeline_dtype=torch.float32 if layout.pp > 1 else None,
        use_cpu_initialization=True,
        perform_initialization=False,
        sequence_parallel=layout.sequence,
    )


def initialize_module(module: nn.Module, config: EngineConfig) -> None:
    """Initial weights of the part of the network that this rank holds."""
    initialize(
        canonical_parameters(module, config.model),
        config.model,
        config.seed,
        parallel_state.get_tensor_model_parallel_rank(),
        config.layout.tp,
    )
    sum_partial_gradients(module, parallel_config(config.layout))
    set_recompute(module, config.recompute)


def build_optimizer(module: nn.Module, config: EngineConfig) -> EmaAdamW:
    """The optimizer over the module's parameters; only matrices decay."""
    arguments = dict(config.optimizer)
    weight_decay = arguments.pop("weight_decay")
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return EmaAdamW(groups, weight_decay=weight_decay, **arguments)


def iterate(batches: Sequence[MicroBatch]) -> Iterator[tuple[Any, Any]]:
    """The (inputs, labels) pairs that DeepSpeed's pipeline pulls."""
    for batch in batches:
        yield batch.inputs, batch.targets
