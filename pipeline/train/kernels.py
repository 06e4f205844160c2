"""Proves the kernels of a run on its device, before anything is trained with them.

Each is compared with the plain computation, forward and backward, on small tensors. One that is off
or cannot run is left out by name; what was chosen stands in the log and in the run's env.json.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from esolm.model.attention import AttentionMask, AttentionPattern, attend, dense_mask, flex_mask
from esolm.model.config import ModelConfig
from esolm.model.kernels import Kernels, kernels_in_use, use_kernels
from esolm.model.layers import Norm
from esolm.pipeline.parallel.optimizer import EmaAdamW
from esolm.pipeline.train.piece_probe import compiled_and_plain, noise

ATTENTION_TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 3e-2}
"""Of the largest value: TF32 and other orders of summation are within it, a wrong kernel is not."""
PIECE_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""What is compiled into one kernel rounds to bf16 less often."""
FP32_TOLERANCE = 1e-4
"""Of what has no matrix products and is computed in fp32 in any case."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEFT_OUT = "left out: "
ABSENT = {
    "fused_adamw": "not proved",
    "two_streams": "needs the CPU; FlexAttention or dense masks serve",
    "flex_attention": "needs CUDA; dense masks serve",
    "apex_norm": "needs CUDA and NVIDIA apex; PyTorch's own serves",
    "compiled": "not asked for",
}
ROWS, HEADS, LENGTH, STEPS = 2, 2, 128, 3


@dataclass(frozen=True)
class Finding:
    """What a probe found: "" if the kernel is right. off: whether it ran and computed wrongly."""

    problem: str = ""
    off: bool = False


def kernels_of(device: torch.device, backend: str = "") -> list[str]:
    """Returns the fields of `Kernels` that name what could run on a device.

    backend: of torch.compile, if something is to be compiled.
    """
    on_cuda = ["flex_attention", *(["apex_norm"] if has_apex() else [])]
    compiled = ["compiled"] if backend else []
    return ["fused_adamw", *(on_cuda if device.type == "cuda" else ["two_streams"]), *compiled]


def prove_kernels(
    names: list[str],
    device: torch.device,
    model: ModelConfig,
    dtype: torch.dtype,
    backend: str = "",
) -> dict[str, Finding]:
    """Returns a finding for each of the kernels."""
    probes: dict[str, tuple[Callable[[], float], float]] = {
        "fused_adamw": (lambda: _adamw_error(device), FP32_TOLERANCE),
        "flex_attention": (
            lambda: _attention_error(device, model, dtype, _block_mask),
            ATTENTION_TOLERANCES[dtype],
        ),
        "two_streams": (
            lambda: _attention_error(device, model, dtype, _mask_of_passes),
            ATTENTION_TOLERANCES[dtype],
        ),
        "apex_norm": (lambda: _norm_error(device, model), FP32_TOLERANCE),
        "compiled": (
            lambda: _pieces_error(device, model, dtype, backend),
            PIECE_TOLERANCES[dtype],
        ),
    }
    return {name: _finding(*probes[name]) for name in names}


def choose_kernels(found: dict[str, Finding], backend: str = "") -> dict[str, str]:
    """Makes the choice that follows from the findings hold, and returns it in words.

    backend: of torch.compile, for what is to be compiled.

    It is collective where there are several ranks: a kernel that fails on one is used by none.
    """
    everywhere = [found]
    if dist.is_initialized():
        everywhere = [found] * dist.get_world_size()
        dist.all_gather_object(everywhere, found)
    words, chosen = {}, dict[str, Any]()
    for name in (field.name for field in fields(Kernels)):
        problems = [each[name].problem for each in everywhere if name in each]
        failed = next(filter(None, problems), "")
        chosen[name] = bool(problems) and not failed
        words[name] = f"{LEFT_OUT}{failed}" if failed else "proved" if problems else ABSENT[name]
    if chosen["compiled"] and chosen["apex_norm"]:
        chosen["apex_norm"], words["apex_norm"] = False, "not used: compiled norms serve"
    chosen["compiled"] = backend if chosen["compiled"] else ""
    use_kernels(Kernels(**chosen))
    return words


def has_apex() -> bool:
    """Whether NVIDIA apex is installed; the package of that name on the public index is another."""
    return (
        importlib.util.find_spec("apex") is not None
        and importlib.util.find_spec("apex.multi_tensor_apply") is not None
    )


def _finding(error: Callable[[], float], tolerance: float) -> Finding:
    before = kernels_in_use()
    try:
        found = error()
    except Exception as problem:  # whatever a compiler or a driver raises is the finding
        # A compiler says in the first line where it was, and in the last what was wrong.
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [""]
        told = dict.fromkeys((lines[0][:200], lines[-1][:200]))
        return Finding(f"{type(problem).__name__}: {' ... '.join(told)}")
    finally:
        use_kernels(before)
    if not found <= tolerance:  # NaN, too
        return Finding(
            f"off by {found:.1e} of the largest value, {tolerance:.0e} allowed", off=True
        )
    return Finding()


def _block_mask(pattern: AttentionPattern, prefix: Tensor) -> AttentionMask:
    return AttentionMask(pattern, 2 * LENGTH, block=flex_mask(pattern, 2 * LENGTH, prefix))


def _mask_of_passes(pattern: AttentionPattern, prefix: Tensor) -> AttentionMask:
    clean = AttentionMask(AttentionPattern.CAUSAL, LENGTH)
    return AttentionMask(pattern, 2 * LENGTH, clean=clean)


def _attention_error(
    device: torch.device,
    model: ModelConfig,
    dtype: torch.dtype,
    make: Callable[[AttentionPattern, Tensor], AttentionMask],
) -> float:
    pattern, seq_len = AttentionPattern.TWO_STREAM, 2 * LENGTH
    prefix = torch.zeros(ROWS, dtype=torch.int64, device=device)
    dense = AttentionMask(pattern, seq_len, dense=dense_mask(pattern, seq_len, prefix))
    heads = (HEADS * model.num_heads // model.kv_heads, HEADS, HEADS)
    q, k, v = (
        noise((ROWS, number, seq_len, model.head_dim), device, seed).to(dtype).requires_grad_()
        for seed, number in enumerate(heads)
    )
    outputs = [attend(q, k, v, mask) for mask in (make(pattern, prefix), dense)]
    upstream = noise(tuple(q.shape), device, 3).to(dtype)
    found, expected = ([out, *torch.autograd.grad(out, (q, k, v), upstream)] for out in outputs)
    return _largest_error(found, expected)


def _adamw_error(device: torch.device) -> float:
    updated = []
    for fused in (True, False):
        use_kernels(Kernels(fused_adamw=fused))
        weights = torch.nn.Parameter(noise((LENGTH,), device, 0))
        optimizer = EmaAdamW([weights], 1e-2, (0.9, 0.99), 1e-8, 0.1, 0.9)
        for step in range(STEPS):
            weights.grad = noise((LENGTH,), device, 1 + step)
            optimizer.step()
        updated.append([weights.detach(), optimizer.state[weights]["ema"]])
    return _largest_error(*updated)


def _norm_error(device: torch.device, model: ModelConfig) -> float:
    results = []
    for apex in (True, False):
        use_kernels(Kernels(apex_norm=apex))
        norm = Norm(model).to(device)
        hidden = noise((LENGTH, model.hidden_size), device, 0).requires_grad_()
        out = norm(hidden)
        gradients = torch.autograd.grad(out, (hidden, norm.weight), noise(out.shape, device, 1))
        results.append([out, *gradients])
    return _largest_error(*results)


def _pieces_error(
    device: torch.device, model: ModelConfig, dtype: torch.dtype, backend: str
) -> float:
    return _largest_error(*compiled_and_plain(model, device, dtype, backend))


def _largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, each over its largest value."""
    errors = []
    for one, other in zip(found, expected, strict=True):
        apart = (one.detach().float() - other.detach().float()).abs().max()
        errors.append(apart / other.detach().float().abs().max())
    return float(torch.stack(errors).max())  # which is NaN if one of them is
