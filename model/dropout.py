"""Dropout as a function of the sample, so that it is the same under every parallel layout.

The mask of an element is a hash of (row key, layer site, position in the row, feature). So there is
no generator state to save, and recomputation in the backward pass draws the same mask.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esolm.model.compiling import piece

# Multiplicative constants of the splitmix64 finaliser, as signed 64-bit integers.
_GAMMA = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


_LOWEST = -(1 << 63)
# Elements that the CPU hashes at a time: their bits stay in its caches between operations.
CHUNK = 1 << 18


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts int64 to the right without copying the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _salt(index: Tensor) -> Tensor:
    return (index + 1) * _GAMMA


class Dropout(NamedTuple):
    """What decides which elements of hidden states [T, D] are dropped.

    keys_T: `token_keys`. salts_D: `feature_salts`.
    """

    keys_T: Tensor
    salts_D: Tensor
    probability: float


def site_salt(site: int) -> int:
    """Returns what a site adds to the key of a row, as a signed 64-bit integer."""
    return ((site + 1) * _GAMMA - _LOWEST) % (1 << 64) + _LOWEST


@piece
def token_keys(
    keys_B: Tensor,
    salt: int,
    tokens: int,
    seq_len: int,
    first_token: int,
    skipped: Tensor,
    places_S: Tensor | None = None,
) -> Tensor:
    """Returns the keys of T consecutive tokens out of the B * S of all rows, int64 [T].

    keys_B: int64, one key per row. salt: `site_salt` of the number of this dropout in the network.
    tokens: T. seq_len: S, the tokens of a row. first_token: the place of the first of the T among
    the B * S. skipped: how many tokens a whole row has in front of these S, of one number.
    places_S: where the S stand in the row, if they are not its first ones in their order, int64.
    """
    token = torch.arange(first_token, first_token + tokens, device=keys_B.device)
    row_keys = _mix(keys_B + salt)
    # A number of the device is added before the product: Triton takes no such number for an index.
    place = token % seq_len if places_S is None else places_S[token % seq_len]
    return _mix(row_keys[token // seq_len] + _salt(place + skipped))


@cache
def feature_salts(width: int, device: torch.device) -> Tensor:
    """Returns what the features add to the key of a token, int64 [D].

    They are made once, and read: in the C++ that inductor writes for CPUs, a product of a loop's
    counter must not overflow, or the loop may have no end.
    """
    return _salt(torch.arange(width, device=device))


def keyed_dropout(hidden_TD: Tensor, dropout: Dropout) -> Tensor:
    """Zeroes elements with the given probability and scales the others up to keep the mean."""
    keys_T, salts_D, probability = dropout
    if torch.compiler.is_compiling():  # which keeps no more than it has to by itself
        kept_TD = _mix(keys_T[:, None] + salts_D) + _LOWEST >= _limit(probability)
        return hidden_TD * kept_TD / (1.0 - probability)
    dropped: Tensor = _Dropout.apply(  # type: ignore[no-untyped-call]
        hidden_TD, keys_T, salts_D, probability
    )
    return dropped


def _limit(probability: float) -> int:
    """Returns below which hash an element is dropped, the hash without sign less 2^63."""
    # Compared are the highest 24 bits.
    return (int(probability * (1 << 24)) << 40) + _LOWEST


class _Dropout(torch.autograd.Function):
    """Keeps a byte of each element for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, token_keys: Tensor, salts_D: Tensor, probability: float
    ) -> Tensor:
        ctx.share = 1.0 - probability
        keep_TD = _kept(token_keys, salts_D, probability)
        ctx.save_for_backward(keep_TD)
        return (hidden_TD * keep_TD).div_(ctx.share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None, None, None]:
        (keep_TD,) = ctx.saved_tensors
        return (gradient_TD * keep_TD).div_(ctx.share), None, None, None


def _kept(token_keys: Tensor, salts_D: Tensor, probability: float) -> Tensor:
    """Says which elements are kept, bool [T, D], given a key for each token."""
    width = len(salts_D)
    keep_TD = torch.empty(len(token_keys), width, dtype=torch.bool, device=token_keys.device)
    limit = _limit(probability)
    at_once = max(1, CHUNK // width) if keep_TD.device.type == "cpu" else len(token_keys)
    for first in range(0, len(token_keys), at_once):
        part = slice(first, first + at_once)
        bits = token_keys[part, None] + salts_D
        _xor_with_shifted(bits, 30).mul_(_MIX_1)
        _xor_with_shifted(bits, 27).mul_(_MIX_2)
        # The last step of `_mix` leaves those bits as they are.
        torch.ge(bits.add_(_LOWEST), limit, out=keep_TD[part])
    return keep_TD


def _xor_with_shifted(x: Tensor, bits: int) -> Tensor:
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (64 - bits)) - 1))
