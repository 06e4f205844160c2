import math

import pytest
import torch

from esolm.pipeline.parallel.optimizer import EmaAdamW
from esolm.pipeline.train.schedule import learning_rate


def test_equals_the_textbook_update_in_float64() -> None:
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(5, 3))
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = EmaAdamW([weight], ema_decay=0.5, **settings)  # type: ignore[arg-type]
    w, m, v, ema = weight.detach().double(), torch.zeros(5, 3), torch.zeros(5, 3), None
    for n in range(1, 13):
        gradient = torch.randn(5, 3)
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        ema = w.clone() if ema is None else ema
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w - 1e-2 * 0.1 * w
        w = w - 1e-2 * (m / (1 - 0.9**n)) / ((v / (1 - 0.95**n)).sqrt() + 1e-8)
        decay = min(0.5, (1 + n) / (10 + n))
        ema = decay * ema + (1 - decay) * w
    torch.testing.assert_close(weight.double(), w, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.state[weight]["ema"].double(), ema, rtol=1e-5, atol=1e-6)


def test_state_can_be_made_before_the_first_step() -> None:
    weight = torch.nn.Parameter(torch.randn(4))
    optimizer = EmaAdamW([weight], 1e-3, (0.9, 0.99), 1e-8, 0.0, 0.9)
    optimizer.create_state([weight])
    assert torch.equal(optimizer.state[weight]["ema"], weight)
    optimizer.state[weight]["ema"].zero_()
    optimizer.create_state([weight])
    assert not optimizer.state[weight]["ema"].any(), "state that is there is left alone"


def rate(step: int, kind: str) -> float:
    return learning_rate(
        step, peak=2.0, kind=kind, warmup_steps=4, total_steps=20, decay_fraction=0.2, min_ratio=0.1
    )


def test_schedules() -> None:
    for kind in ("constant", "cosine", "wsd"):
        assert [rate(step, kind) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(19, "constant") == 2.0
    assert rate(12, "cosine") == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rate(20, "cosine") == pytest.approx(0.2)
    assert rate(8, "cosine") == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(math.pi / 4))))
    assert rate(16, "wsd") == 2.0
    assert rate(18, "wsd") == pytest.approx(2.0 * 0.55)
    assert rate(20, "wsd") == pytest.approx(0.2)
