"""Where DeepSpeed's ZeRO optimizers keep the parts of the training state that this rank owns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from model.sharding import full_shape, is_sharded
from pipeline.checkpoint.fragments import AVERAGE, STATES, WEIGHTS, Fragment
from pipeline.parallel.engine import Engine


def fragments(engine: Engine) -> list[Fragment]:
    """This rank's fragments of every parameter, with views of fp32 weights, moments and EMA."""
    engine.optimizer.create_state(_flat_partitions(engine))
    owned = _stage_3 if engine.layout.zero == 3 else _stage_1_or_2
    found = []
    for name, parameter in engine.parameters():
        part = owned(engine, parameter)
        if part is not None:
            found.append(_fragment(engine, name, parameter, *part))
    return found


def publish_weights(engine: Engine, step: int) -> None:
    """Makes freshly loaded fp32 weights the ones that the network computes with.

    step: optimizer updates so far, set in every parameter's state.
    """
    for state in engine.optimizer.state.values():
        state["step"].fill_(step)
    _publish(engine)


@contextmanager
def averaged_weights(engine: Engine) -> Iterator[None]:
    """Within the block the network computes with the average of the weights; collective.

    Afterwards everything is bit by bit what it was.
    """
    _exchange_weights_and_average(engine)
    try:
        yield
    finally:
        _exchange_weights_and_average(engine)


def _exchange_weights_and_average(engine: Engine) -> None:
    for fragment in fragments(engine):
        weights, average = fragment.states[WEIGHTS], fragment.states[AVERAGE]
        held = weights.clone()
        weights.copy_(average)
        average.copy_(held)
    _publish(engine)


def _publish(engine: Engine) -> None:
    """The fp32 weights, in the precision and the places that the network computes with."""
    if engine.layout.zero == 3:
        _publish_stage_3(engine)
    else:
        _publish_stage_1_or_2(engine)


def _flat_partitions(engine: Engine) -> list[Tensor]:
    """The flat fp32 tensors that the optimizer updates."""
    if engine.layout.zero == 3:
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    return [flat for group in engine.optimizer.param_groups for flat in group["params"]]


def _fragment(
    engine: Engine,
    name: str,
    parameter: nn.Parameter,
    local_shape: torch.Size,
    start: int,
    states: dict[str, Tensor],
) -> Fragment:
    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    sharded = is_sharded(parameter)
    offsets = [0] * len(local_shape)
    if sharded:
        dim: int = parameter.partition_dim  # type: ignore[attr-defined]
        offsets[dim] = tensor_rank * local_shape[dim]
    return Fragment(
        name=name,
        full_shape=full_shape(name, parameter, engine.config.model, engine.layout.tp, local_shape),
        local_shape=tuple(local_shape),
        offsets=tuple(offsets),
        start=start,
        states=states,
        writes=(sharded or tensor_rank == 0)
        and not getattr(parameter, "ds_pipe_replicated", False),
    )


def _stage_1_or_2(
    engine: Engine, parameter: Any
) -> tuple[torch.Size, int, dict[str, Tensor]] | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    optimizer = engine.optimizer
    flat = optimizer.param_groups[mapping.param_group_index]["params"][0]
    where = mapping.get_hp_fragment_address()
    states = {
        name: (flat.data if name == WEIGHTS else optimizer.state[flat][name]).narrow(
            0, where.start, where.numel
        )
        for name in STATES
    }
    return parameter.shape, mapping.lp_fragment_address.start, states


def _stage_3(engine: Engine, parameter: Any) -> tuple[torch.Size, int, dict[str, Tensor]] | None:
    start, numel = _bounds_of_stage_3(parameter)
    if numel == 0:
        return None
    # Its public reader copies to the device what is offloaded; these are the states themselves.
    read = parameter._z3_optimizer._get_fp32_opt_state_partition
    states = {
        name: read(parameter, True, None if name == WEIGHTS else name)[0].data.narrow(0, 0, numel)
        for name in STATES
    }
    return parameter.ds_shape, start, states


def stage_3_part(parameter: Any) -> Tensor:
    """What this rank holds of a weight that ZeRO-3 has cut, in the network's precision."""
    part: Tensor = parameter.ds_tensor.data.view(-1).narrow(0, 0, _bounds_of_stage_3(parameter)[1])
    return part


def _bounds_of_stage_3(parameter: Any) -> tuple[int, int]:
    """(start, number) of the elements that this rank holds, without the last one's padding."""
    size = parameter.ds_tensor.ds_numel
    start = size * parallel_state.get_data_parallel_rank()
    return start, max(0, min(size, parameter.ds_numel - start))


def _publish_stage_1_or_2(engine: Engine) -> None:
    wrapper = engine.deepspeed.optimizer
    if hasattr(wrapper, "update_lp_params"):  # BF16_Optimizer
        wrapper.update_lp_params()
        return
    from deepspeed.runtime.utils import all_gather_dp_groups

    for _, parameter in engine.parameters():
        if parameter._hp_mapping is not None:  # type: ignore[attr-defined]
            parameter._hp_mapping.update_lp()  # type: ignore[attr-defined]
    all_gather_dp_groups(
        groups_flat=wrapper.bit16_groups_flat,
        partitioned_param_groups=wrapper.parallel_partitioned_bit16_groups,
        dp_process_group=wrapper.real_dp_process_group,
        start_alignment_factor=wrapper.nccl_start_alignment_factor,
        allgather_bucket_size=wrapper.allgather_bucket_size,
    )


def _publish_stage_3(engine: Engine) -> None:
    wrapper = engine.deepspeed.optimizer
    for _, parameter in engine.parameters():
        held: Any = parameter
        local = wrapper.get_local_fp32_param(held).data
        held.ds_tensor.data[: local.numel()].copy_(local)
        if held.ds_persist:
            # Small parameters stay gathered: their full copy must be made anew.
            held.partition([held], has_been_updated=False)
            held.all_gather([held])
