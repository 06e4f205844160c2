"""Where DeepSpeed's ZeRO optimizers keep the parts of the training state that this rank owns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from esolm.model.config import ModelConfig
from esolm.model.sharding import is_sharded
from esolm.model.tensors import network_tensors
from esolm.pipeline.parallel.bootstrap import import_deepspeed
from esolm.pipeline.parallel.copies import copies_rank
from esolm.pipeline.parallel.engine import Replica
from esolm.pipeline.parallel.fragments import STATES, WEIGHTS, Fragment
from esolm.pipeline.parallel.layout import Layout


@dataclass(frozen=True)
class Part:
    """This rank's contiguous part of a parameter.

    local_shape: the parameter's shape before ZeRO cut it.
    """

    local_shape: torch.Size
    start: int
    states: dict[str, Tensor]


def speaks_for(parameter: nn.Parameter) -> bool:
    """Whether this rank's part of a parameter is what checkpoints and the gradient norm take."""
    first = parallel_state.get_tensor_model_parallel_rank() == 0
    copy = getattr(parameter, "ds_pipe_replicated", False)
    return (is_sharded(parameter) or first) and not copy


class ZeroStates(ABC):
    """The training states of one rank under one stage of ZeRO.

    parameters: (canonical name, parameter) of all that the rank holds.
    """

    def __init__(
        self,
        wrapper: Any,
        parameters: Sequence[tuple[str, nn.Parameter]],
        model: ModelConfig,
    ) -> None:
        self._wrapper, self._optimizer = wrapper, wrapper.optimizer
        self._parameters, self._model = parameters, model

    def fragments(self) -> list[Fragment]:
        """Returns this rank's fragments of every parameter.

        Their states are views of the fp32 weights, the moments and the EMA.
        """
        self._optimizer.create_state(self._flat_partitions())
        found = []
        for name, parameter in self._parameters:
            part = self._part(parameter)
            if part is not None:
                found.append(self._fragment(name, parameter, part))
        return found

    @abstractmethod
    def publish(self) -> None:
        """Puts the fp32 weights into the precision and the places that the network reads."""

    @abstractmethod
    def replicas(self) -> Iterator[Replica]:
        """Yields what other ranks hold as well."""

    @abstractmethod
    def _flat_partitions(self) -> list[Tensor]:
        """Returns the flat fp32 tensors that the optimizer updates."""

    @abstractmethod
    def _part(self, parameter: Any) -> Part | None:
        """Returns what this rank owns of a parameter, or None if it owns nothing of it."""

    def _fragment(self, name: str, parameter: nn.Parameter, part: Part) -> Fragment:
        tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        sharded, shape = is_sharded(parameter), part.local_shape
        offsets = [0] * len(shape)
        if sharded:
            dim: int = parameter.partition_dim  # type: ignore[attr-defined]
            offsets[dim] = tensor_rank * shape[dim]
        return Fragment(
            name=name,
            full_shape=network_tensors(self._model)[name].shape,
            local_shape=tuple(shape),
            offsets=tuple(offsets),
            start=part.start,
            states=part.states,
            writes=speaks_for(parameter),
        )


class _Stage1Or2(ZeroStates):
    """Every rank computes with whole weights and updates a flat part of them."""

    def publish(self) -> None:
        wrapper = self._wrapper
        if hasattr(wrapper, "update_lp_params"):  # BF16_Optimizer
            wrapper.update_lp_params()
            return
        from deepspeed.runtime.utils import all_gather_dp_groups

        for _, parameter in self._parameters:
            if parameter._hp_mapping is not None:  # type: ignore[attr-defined]
                parameter._hp_mapping.update_lp()  # type: ignore[attr-defined]
        all_gather_dp_groups(
            groups_flat=wrapper.bit16_groups_flat,
            partitioned_param_groups=wrapper.parallel_partitioned_bit16_groups,
            dp_process_group=wrapper.real_dp_process_group,
            start_alignment_factor=wrapper.nccl_start_alignment_factor,
            allgather_bucket_size=wrapper.allgather_bucket_size,
        )

    def replicas(self) -> Iterator[Replica]:
        for name, parameter in self._parameters:
            yield Replica(name, parameter.data, True, not is_sharded(parameter))

    def _flat_partitions(self) -> list[Tensor]:
        return [flat for group in self._optimizer.param_groups for flat in group["params"]]

    def _part(self, parameter: Any) -> Part | None:
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat = self._optimizer.param_groups[mapping.param_group_index]["params"][0]
        where = mapping.get_hp_fragment_address()
        states = {
            name: (flat.data if name == WEIGHTS else self._optimizer.state[flat][name]).narrow(
                0, where.start, where.numel
            )
            for name in STATES
        }
        return Part(parameter.shape, mapping.lp_fragment_address.start, states)


class _Stage3(ZeroStates):
    """Every rank holds a part of the weights, and gathers the others' when it computes."""

    def publish(self) -> None:
        for _, parameter in self._parameters:
            held: Any = parameter
            local = self._wrapper.get_local_fp32_param(held).data
            held.ds_tensor.data[: local.numel()].copy_(local)
            if held.ds_persist:
                # Small parameters stay gathered: their full copy must be made anew.
                held.partition([held], has_been_updated=False)
                held.all_gather([held])

    def replicas(self) -> Iterator[Replica]:
        """Yields the parts, which differ over data-parallel ranks, and the small whole weights."""
        for name, parameter in self._parameters:
            whole = not is_sharded(parameter)
            yield Replica(name, _held_part(parameter), False, whole)
            if parameter.ds_persist:  # type: ignore[attr-defined]
                yield Replica(name, parameter.data, True, whole)

    def _flat_partitions(self) -> list[Tensor]:
        return list(self._wrapper.fp32_partitioned_groups_flat)

    def _part(self, parameter: Any) -> Part | None:
        start, numel = _bounds(parameter)
        if numel == 0:
            return None
        # DeepSpeed's public reader copies offloaded states to the device; this reads the originals.
        read: Callable[..., Any] = parameter._z3_optimizer._get_fp32_opt_state_partition
        states = {
            name: read(parameter, True, None if name == WEIGHTS else name)[0].data.narrow(
                0, 0, numel
            )
            for name in STATES
        }
        return Part(parameter.ds_shape, start, states)


class _OneByOne(nn.Module):
    """Stands for a module whose parameters come into being as they are asked for."""

    def __init__(self, coming: Iterator[nn.Parameter]) -> None:
        super().__init__()
        self._coming = coming

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self._coming


def cut_one_by_one(coming: Iterator[nn.Parameter], settings: dict[str, Any], mpu: Any) -> None:
    """Keeps this rank's part of each parameter for ZeRO-3, before the next one has any memory."""
    import_deepspeed().zero.Init(
        _OneByOne(coming),
        data_parallel_group=mpu.get_data_parallel_group(),
        config_dict_or_path=settings,
        mpu=mpu,
    )


def zero_states(
    wrapper: Any, parameters: Sequence[tuple[str, nn.Parameter]], model: ModelConfig, layout: Layout
) -> ZeroStates:
    """Returns the states below DeepSpeed's wrapper of the optimizer."""
    stage = _Stage3 if layout.zero == 3 else _Stage1Or2
    return stage(wrapper, parameters, model)


def _held_part(parameter: Any) -> Tensor:
    """Returns what this rank holds of a weight that ZeRO-3 has cut, in the network's precision."""
    part: Tensor = parameter.ds_tensor.data.view(-1).narrow(0, 0, _bounds(parameter)[1])
    return part


def _bounds(parameter: Any) -> tuple[int, int]:
    """Returns (start, number) of the elements that this rank holds, without padding at the end."""
    size = parameter.ds_tensor.ds_numel
    start = size * copies_rank()
    return start, max(0, min(size, parameter.ds_numel - start))
