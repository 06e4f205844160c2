import json
import math

import pytest

from pipeline.parallel.engine import StepResult
from pipeline.train.guards import SpikeGuard


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
