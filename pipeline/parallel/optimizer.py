"""AdamW that keeps an exponential moving average of the weights as one more optimizer state.

As a state it is sharded by ZeRO and resharded by the checkpoint like the two moments.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from esolm.model.kernels import kernels_in_use


class EmaAdamW(torch.optim.AdamW):
    """torch's AdamW, fused where that is proved, which also keeps `state[p]["ema"]`.

    The decay is min(ema_decay, (1 + n) / (10 + n)) at update n = 1, 2, ..., so that a young average
    follows the weights; the average starts at the weights before the first update.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        ema_decay: float,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=kernels_in_use().fused_adamw,
        )
        self._ema_decay = ema_decay
        self.veto: Callable[[], bool] | None = None
        """Is asked before each update; if it says yes, nothing is changed."""

    def create_state(self, parameters: Iterable[Tensor]) -> None:
        """Makes the state of parameters that have none; needed before a checkpoint is loaded."""
        for parameter in parameters:
            if "ema" not in self.state[parameter]:
                self.state[parameter].update(_fresh_state(parameter))

    def go_on_from(self, updates: int) -> None:
        """Counts on as if after so many updates."""
        for state in self.state.values():
            state["step"].fill_(updates)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        if self.veto is not None and self.veto():
            return None
        for group in self.param_groups:
            self.create_state(group["params"])
        loss: float | None = super().step(closure)
        updated = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        updated = [p for p in updated if p.numel()]
        if updated:
            averages = [self.state[p]["ema"] for p in updated]
            count = self.state[updated[0]]["step"].item()
            decay = min(self._ema_decay, (1.0 + count) / (10.0 + count))
            torch._foreach_lerp_(averages, [p.data for p in updated], 1.0 - decay)
        return loss


def _fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    # A fused step counts on the device of the parameter.
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
        "ema": parameter.detach().clone(),
    }
