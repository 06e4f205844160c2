"""The gate checks of this process: coverage, logit parity, cached against uncached decoding."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.config import ModelConfig
from esolm.model.documents import document_of, place_of
from esolm.model.inputs import NetworkInput
from esolm.pipeline.errors import ExportError
from esolm.pipeline.export.consolidate import Source
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.writer import bundle_config, load_model

# The largest difference of fp32 logits that is allowed, relative to max(1, largest logit).
TOLERANCE = 1e-5
MAX_LENGTH = 32
# (alpha_0, num_steps, prompt tokens, top_p): each phase alone, both together, and with a prompt.
SCHEDULES = (
    (0.0, 1, 0, 1.0), (0.25, 4, 0, 1.0), (0.5, 8, 3, 0.9), (1.0, 3, 0, 1.0), (1.0, 16, 2, 1.0),
)  # fmt: skip
BLOCK_SIZE = 4


def check_coverage(
    directory: Path, source: Source, tensors: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Any]:
    """Checks that every training tensor is used once, and every stored parameter is right.

    A stored parameter must equal the rounded fold bit for bit.
    """
    from safetensors import safe_open

    folded = fold(tensors, source.model, dtype)
    stored: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if stored.keys() != folded.keys():
        names = ", ".join(sorted(stored.keys() ^ folded.keys())[:5])
        raise ExportError(f"coverage: parameters stored and computed differ: {names}")
    for name, tensor in folded.items():
        if stored[name].dtype != dtype or not torch.equal(stored[name], tensor):
            raise ExportError(f"coverage: '{name}' was not stored as computed")
    parameters = sum(tensor.numel() for tensor in stored.values())
    return {"training_tensors": len(tensors), "bundle_tensors": len(stored), "values": parameters}


def parity_inputs(model: ModelConfig, length: int, pattern: AttentionPattern) -> NetworkInput:
    """Makes two rows with different orders and prefix lengths, and masks after the prefix."""
    generator = torch.Generator().manual_seed(pattern.index)
    order = torch.rand(2, length, generator=generator).argsort(dim=1)
    clean = torch.randint(model.vocab_size, (2, length), generator=generator)
    prefix = torch.tensor([length // 3, 2 * length // 3])
    masked = torch.arange(length) >= prefix[:, None]
    tokens = clean.masked_fill(masked, model.mask_id)
    if pattern.num_streams == 2:
        tokens, order = torch.cat([tokens, clean], dim=1), torch.cat([order, order], dim=1)
    return NetworkInput(
        tokens, order, pattern, prefix, dropout_keys=torch.zeros_like(prefix), block_size=BLOCK_SIZE
    )


def training_logits(
    model: ModelConfig, tensors: dict[str, Tensor], inputs: list[NetworkInput]
) -> list[Tensor]:
    """Returns the fp32 logits [B, L, V] of the training network, run in this process."""
    from esolm.pipeline.parallel.single import load_network, single_process

    network = load_network(model, tensors, single_process())
    with torch.no_grad():
        return [network.all_logits(each) for each in inputs]


@torch.no_grad()
def bundle_logits(bundle: Any, inputs: NetworkInput) -> Tensor:
    """Returns the logits [B, L, V] of a bundle's network for an input of the training network."""
    device = bundle.device
    logits: Tensor = bundle(
        inputs.tokens.to(device),
        place_of(inputs.positions).to(device),
        attention_pattern=inputs.pattern.value,
        prefix_length=inputs.prefix_length.to(device),
        block_size=inputs.block_size,
        document_ids=document_of(inputs.positions).to(device) if inputs.separate else None,
    ).logits
    return logits


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """Returns the largest difference over max(1, largest expected logit).

    It is infinite if the two have infinite logits at different places.
    """
    finite = expected.isfinite()
    if not torch.equal(finite, logits.isfinite()):
        return float("inf")
    scale = max(1.0, float(expected[finite].abs().max()))
    return float((logits - expected)[finite].abs().max()) / scale


def check_parity(
    source: Source, tensors: dict[str, Tensor], stored: Any, dtype: torch.dtype
) -> dict[str, Any]:
    """Checks the fp32 fold against the training network in every attention pattern.

    The effect of rounding the weights is reported apart. stored: the bundle's network as saved,
    upcast to fp32.
    """
    length = min(source.seq_len, MAX_LENGTH) // BLOCK_SIZE * BLOCK_SIZE or 1
    inputs = [parity_inputs(source.model, length, pattern) for pattern in AttentionPattern]
    expected = training_logits(source.model, tensors, inputs)
    exact = load_model(stored.config, fold(tensors, source.model))
    differences: dict[str, float] = {}
    rounding = 0.0
    for each, reference in zip(inputs, expected, strict=True):
        folded = bundle_logits(exact, each)
        differences[each.pattern.value] = relative_difference(folded, reference)
        rounding = max(rounding, relative_difference(bundle_logits(stored, each), folded))
    name, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= TOLERANCE:
        raise ExportError(
            f"logit parity: bundle and training network differ by {worst:.2e} of the largest logit "
            f"in pattern '{name}'; {TOLERANCE:.0e} is allowed"
        )
    if dtype is torch.float32 and rounding:
        raise ExportError(f"logit parity: stored fp32 weights change the logits by {rounding:.2e}")
    return {"largest_difference": differences, "rounding": rounding, "tolerance": TOLERANCE}


def some_tokens(model: ModelConfig, rows: int, count: int) -> Tensor:
    """Returns tokens, int64 [rows, count], which differ as far as possible; none is the mask."""
    tokens = torch.arange(rows * count).reshape(rows, count) % (model.vocab_size - 1)
    return tokens + (tokens >= model.mask_id)


def decoding_length(source: Source) -> int:
    """Returns a short length that the network can write, of whole blocks if it writes in blocks."""
    length = min(source.seq_len, MAX_LENGTH)
    size: int = bundle_config(source, None).block_size or 1
    return max(length // size * size, size)


def check_decoding(source: Source, stored: Any) -> dict[str, Any]:
    """Checks that cached decoding equals full recomputation, token for token, if there is a cache.

    It decodes in float64 with the stored weights: a tie within rounding error, which could fall
    either way in fp32, does not occur there.
    """
    if not stored.has_cache:
        return {"schedules": 0}
    length, tokens = decoding_length(source), 0
    bundle = stored.double()
    for seed, (alpha_0, num_steps, prompt_length, top_p) in enumerate(SCHEDULES):
        prompt_length = min(prompt_length, length - 1)  # a network may be trained on few tokens
        prompt_length = max(prompt_length, int(bundle.config.first_is_given))
        prompt = some_tokens(source.model, 3, prompt_length)
        options = {
            "alpha_0": alpha_0, "num_steps": num_steps, "length": length, "top_p": top_p,
            "temperature": 1.0, "seed": seed, "return_dict_in_generate": True, "eos_token_id": None,
        }  # fmt: skip
        cached = bundle.generate(prompt, **options)
        uncached = bundle.generate(prompt, use_cache=False, **options)
        wrong = int((cached.sequences != uncached.sequences).sum())
        if wrong or not torch.equal(cached.order, uncached.order):
            raise ExportError(
                f"decoding: {wrong} of {cached.sequences.numel()} tokens differ between cached and "
                f"uncached decoding (alpha_0 {alpha_0}, {num_steps} steps)"
            )
        tokens += cached.sequences.numel()
    stored.float()
    return {"schedules": len(SCHEDULES), "tokens": tokens, "batch": 3, "differing": 0}
