import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esolm.pipeline.errors import EsolmError
from esolm.pipeline.parallel.engine import StepResult
from esolm.pipeline.train import guards
from esolm.pipeline.train.guards import SpikeGuard, Standstill


def result(loss: float, norm: float = 1.0) -> StepResult:
    return StepResult({"diffusion": loss / 2, "sequential": loss / 2}, norm)


def settled(window: int = 8) -> SpikeGuard:
    """A guard that has seen losses of 3.0 +- 0.1 and norms of 1.0."""
    guard = SpikeGuard(window, 6.0)
    for step in range(window):
        assert guard.judge(result(3.0 + (-1) ** step * 0.1))
    return guard


def test_a_spike_in_the_loss_or_the_norm_is_refused_and_does_not_count() -> None:
    guard = settled()
    assert guard.judge(result(3.55))
    guard = settled()
    for _ in range(20):
        assert not guard.judge(result(3.7))
    assert "loss 3.7" in str(guard.reason(result(3.7)))
    assert "gradient norm" in str(guard.reason(result(3.0, 1.5)))
    assert guard.judge(result(2.0)), "a fall is no spike"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_from_the_first_step(bad: float) -> None:
    guard = SpikeGuard(8, 6.0)
    assert not guard.judge(result(bad))
    assert not guard.judge(result(1.0, bad))
    assert guard.judge(result(1e9)), "before the window is full nothing finite is a spike"


def test_zero_sigmas_turn_the_spikes_off() -> None:
    guard = SpikeGuard(2, 0.0)
    assert guard.judge(result(1.0))
    assert guard.judge(result(1.0))
    assert guard.judge(result(1e9))


def test_a_restart_does_not_change_the_verdict() -> None:
    guard, restarted = settled(), SpikeGuard(8, 6.0)
    restarted.restore(json.loads(json.dumps(guard.state())))
    assert not restarted.judge(result(3.7))
    assert restarted.state() == guard.state()
    assert restarted.judge(result(3.2)) == guard.judge(result(3.2))
    assert restarted.state() == guard.state()
    restarted.restore({})
    assert restarted.judge(result(1e9)), "an older checkpoint holds no such figures"


def test_a_resume_with_another_batch_size_learns_its_level_anew() -> None:
    """Smaller batches have larger gradients: by the old ones every step would be a spike."""
    guard = SpikeGuard(8, 6.0, {"global_batch_size": 32})
    for _ in range(8):
        assert guard.judge(result(3.0))
    state = json.loads(json.dumps(guard.state()))
    smaller = SpikeGuard(8, 6.0, {"global_batch_size": 4})
    smaller.restore(state)
    for _ in range(8):
        assert smaller.judge(result(3.0, 9.0))
    assert not smaller.judge(result(3.0, 90.0))
    same = SpikeGuard(8, 6.0, {"global_batch_size": 32})
    same.restore(state)
    assert not same.judge(result(3.0, 9.0))
    newer = SpikeGuard(8, 6.0, {"global_batch_size": 32, "new": False}, {"new": False})
    newer.restore(state)
    assert not newer.judge(result(3.0, 9.0)), "it was trained with the default"
    state.pop("measured")
    smaller.restore(state)
    assert not smaller.judge(result(3.0, 9.0)), "an older checkpoint is taken for the same"


def test_refusals_without_an_end_are_an_error() -> None:
    standstill = Standstill(3, step=10)
    for step, applied in ((11, False), (12, False), (13, True), (14, False), (15, False)):
        standstill.note(step, applied)
    with pytest.raises(EsolmError, match=r"3 steps were refused since step 13, .*optimizer\.lr"):
        standstill.note(16, False)


def test_what_is_trained_again_after_a_rollback_is_no_way_forward() -> None:
    standstill = Standstill(3, step=4)
    for _ in range(2):
        for step, applied in ((5, True), (6, True), (7, False)):
            standstill.note(step, applied)
    standstill.note(5, True)
    with pytest.raises(EsolmError, match="since step 6"):
        standstill.note(6, False)


def test_an_engine_without_replicas_has_nothing_to_compare() -> None:
    """As the example in parallel/build.py: its run would end here, before its last save."""
    guards.check_replicas(SimpleNamespace(replicas=lambda: iter(())))  # type: ignore[arg-type]


def test_replicas_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is the same however large the chunks are, and knows every element and its place."""
    weights = torch.randn(1001)
    bits = weights.view(torch.int32).tolist()
    plain = sum(value * (2 * place + 1) for place, value in enumerate(bits))
    wrapped = (plain + (1 << 63)) % (1 << 64) - (1 << 63)
    for chunk in (1, 64, 1001, 1 << 22):
        monkeypatch.setattr(guards, "CHUNK", chunk)
        assert guards._bit_sum(weights).item() == wrapped
        assert guards._bit_sum(weights.flip(0)).item() != wrapped


def test_replicas_are_compared_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No temporary is larger than a chunk, whatever the weight's size."""
    monkeypatch.setattr(guards, "CHUNK", 1 << 10)
    weights = torch.zeros(1 << 16, dtype=torch.bfloat16)
    with LargestTensor() as largest:
        guards._bit_sum(weights)
    assert largest.fresh == 1 << 10


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that is made anew."""

    fresh = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            self.fresh = max(self.fresh, out.numel())
        return out
