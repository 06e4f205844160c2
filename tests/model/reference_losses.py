"""Every objective's loss once more: token by token, from the raw draws, over the plain network."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, Objective, SampleKeys
from esolm.model.objectives.draws import Purpose
from tests.model.reference import ReferenceNetwork, sees

# Sum of weighted losses, and tokens that they are averaged over.
Sums = tuple[Tensor, int]


def reference_loss(
    objective: Objective, network: ReferenceNetwork, tokens: Tensor, keys: SampleKeys
) -> dict[str, Tensor]:
    """Loss by term of a whole global batch [B, L]: sum of weighted losses / number of tokens."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    counts: dict[str, int] = defaultdict(int)
    rule = RULES[type(objective)]
    for row in range(len(tokens)):
        slot, of_row = int(keys.slot[row]), slice(row, row + 1)
        one = SampleKeys(
            keys.seed, keys.sample_index[of_row], keys.slot[of_row], keys.global_batch_size
        )
        term, (total, count) = rule(objective, network, tokens[row].tolist(), slot, one)
        sums[term] = sums[term] + total
        counts[term] += count
    return {term: sums[term] / counts[term] for term in sums}


def _nll(
    network: ReferenceNetwork,
    fed: list[int],
    positions: list[int],
    pattern: AttentionPattern,
    prefix: int = 0,
    block_size: int = 1,
) -> Callable[[int, int], Tensor]:
    """(index, label) -> -log p."""
    length = len(fed) // pattern.num_streams
    logits = network.logits(
        torch.tensor(fed),
        torch.tensor(positions),
        lambda q, k: sees(pattern, q, k, length, prefix, block_size),
    )
    return lambda index, label: -logits[index].log_softmax(0)[label]


def _esolm(
    objective: EsoLM, network: ReferenceNetwork, x: list[int], slot: int, keys: SampleKeys
) -> tuple[str, Sums]:
    diffusion_rows = int(objective.kappa * keys.global_batch_size)
    length = len(x)
    u_mask = keys.uniforms(Purpose.MASK, length)[0]
    u_order = keys.uniforms(Purpose.ORDER, length)[0]
    diffusion = slot < diffusion_rows
    weight, alpha = 1.0, objective.alpha_0
    if diffusion:
        u = keys.uniforms(Purpose.TIME, 1)[0, 0]
        t = 0.001 + 0.999 * (u + slot) / diffusion_rows
        alpha = objective.alpha_0 * (1 - 0.999 * t)
        if not objective.low_variance:
            weight = 0.999 * objective.alpha_0 / (1 - alpha)
    clean = [i for i in range(length) if u_mask[i] >= 1 - alpha]
    masked = [i for i in range(length) if u_mask[i] < 1 - alpha]
    clean.sort(key=lambda i: u_order[i])
    if diffusion:
        masked.sort(key=lambda i: u_order[i])
    order = clean + masked
    z = [x[i] for i in clean] + [objective.mask_id for _ in masked]
    if diffusion:
        pattern = AttentionPattern.PREFIX if objective.variant == "A" else AttentionPattern.CAUSAL
        nll = _nll(network, z, order, pattern, len(clean))
    else:
        pattern = {
            "A": AttentionPattern.TWO_STREAM_PREFIX,
            "B": AttentionPattern.TWO_STREAM,
        }[objective.variant]
        nll = _nll(network, z + [x[i] for i in order], order + order, pattern, len(clean))
    total = torch.zeros((), dtype=torch.float64)
    for index in range(len(clean), length):
        total = total + weight * nll(index, x[order[index]])
    return ("diffusion" if diffusion else "sequential"), (total, length)


def _mdlm(
    objective: MDLM, network: ReferenceNetwork, x: list[int], slot: int, keys: SampleKeys
) -> tuple[str, Sums]:
    length = len(x)
    u_mask = keys.uniforms(Purpose.MASK, length)[0]
    t = 0.001 + 0.999 * (keys.uniforms(Purpose.TIME, 1)[0, 0] + slot) / keys.global_batch_size
    alpha = 1 - 0.999 * t
    weight = 1.0 if objective.low_variance else 0.999 / (1 - alpha)
    z = [objective.mask_id if u_mask[i] < 1 - alpha else x[i] for i in range(length)]
    nll = _nll(network, z, list(range(length)), AttentionPattern.BIDIRECTIONAL)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(length):
        if u_mask[i] < 1 - alpha:
            total = total + weight * nll(i, x[i])
    return "diffusion", (total, length)


def _ar(
    objective: AutoRegressive, network: ReferenceNetwork, x: list[int], slot: int, keys: SampleKeys
) -> tuple[str, Sums]:
    fed = x if objective.prepend_id is None else [objective.prepend_id, *x]
    nll = _nll(network, fed[:-1], list(range(len(fed) - 1)), AttentionPattern.CAUSAL)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(fed) - 1):
        total = total + nll(i, fed[i + 1])
    return "sequential", (total, len(fed) - 1)


def _bd3lm(
    objective: BD3LM, network: ReferenceNetwork, x: list[int], slot: int, keys: SampleKeys
) -> tuple[str, Sums]:
    length, size, rows = len(x), objective.block_size, keys.global_batch_size
    blocks = length // size
    u_time = keys.uniforms(Purpose.TIME, blocks)[0]
    u_mask = keys.uniforms(Purpose.MASK, 1000 * length)[0]
    z, weights = list(x), [0.0] * length
    low = 0.0 if objective.t_min == 0.001 else objective.t_min
    for b in range(blocks):
        stratum = (slot + b * rows // blocks) % rows
        t = objective.t_min + (objective.t_max - objective.t_min) * (u_time[b] + stratum) / rows
        inside = range(b * size, (b + 1) * size)
        attempt = 0
        while True:
            masked = [i for i in inside if u_mask[attempt * length + i] < t]
            in_range = low <= len(masked) / size <= objective.t_max
            if in_range or not objective.resample:
                break
            attempt += 1
        for i in masked:
            if i > 0 or not objective.keep_first:
                z[i] = objective.mask_id
                weights[i] = 1.0 if objective.low_variance else 1 / t
    positions = list(range(length))
    nll = _nll(network, z + x, positions + positions, AttentionPattern.BLOCK_TWO_STREAM, 0, size)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(length):
        if weights[i]:
            total = total + weights[i] * nll(i, x[i])
    return "diffusion", (total, length - (1 if objective.keep_first else 0))


RULES: dict[type, Callable[..., tuple[str, Sums]]] = {
    EsoLM: _esolm,
    MDLM: _mdlm,
    AutoRegressive: _ar,
    BD3LM: _bd3lm,
}
