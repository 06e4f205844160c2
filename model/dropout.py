"""Dropout as a function of the sample, so that it is the same under every parallel layout.

The mask of an element is a hash of (row key, layer site, position in the row, feature). So there is
no generator state to save, and recomputation in the backward pass draws the same mask.
"""

import torch
from torch import Tensor

# Multiplicative constants of the splitmix64 finaliser, as signed 64-bit integers.
_GAMMA = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts int64 to the right without copying the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _salt(index: Tensor) -> Tensor:
    return (index + 1) * _GAMMA


def keyed_dropout(
    hidden_TD: Tensor,
    keys_B: Tensor,
    site: int,
    probability: float,
    seq_len: int,
    first_token: int = 0,
) -> Tensor:
    """Zeroes elements with the given probability and scales the others up to keep the mean.

    hidden_TD: T consecutive tokens out of the B * S of all rows. keys_B: int64, one key per row.
    site: the number of this dropout in the network. seq_len: S, the tokens of a row. first_token:
    the place of the first of the T tokens among the B * S.
    """
    (tokens, width), device = hidden_TD.shape, hidden_TD.device
    token = torch.arange(first_token, first_token + tokens, device=device)
    row_keys = _mix(keys_B + _salt(torch.tensor(site)))
    token_keys = _mix(row_keys[token // seq_len] + _salt(token % seq_len))
    bits = _mix(token_keys[:, None] + _salt(torch.arange(width, device=device)))
    keep = _shift_right(bits, 40) >= int(probability * (1 << 24))
    return hidden_TD * keep / (1.0 - probability)
