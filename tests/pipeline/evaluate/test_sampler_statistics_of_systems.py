"""Eso-LM (A), MDLM and BD3-LM write what their networks say: empirical against exact, enumerated.

Under MDLM and BD3-LM rows are independent: each token has a step of its own. Under Eso-LM (A), as
under (B), rows are independent given the number of tokens per step.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM
from tests.model.enumeration import LENGTH, MASK_ID, SEQUENCES
from tests.pipeline.evaluate.test_sampler_statistics import is_plausible
from tests.pipeline.generate.systems import written_by

# The distribution of the decoder's own tests stays in `make test`; these take minutes.
pytestmark = pytest.mark.check
ROWS, FEWER = 10_000, 3000


def random_network(**objective: Any) -> Any:
    """Random weights whose every sequence has some probability, but far from the same."""
    config = EsoLMConfig(
        vocab_size=4, mask_token_id=MASK_ID, hidden_size=16, intermediate_size=24,
        num_hidden_layers=2, num_attention_heads=2, **objective,
    )  # fmt: skip
    network = EsoLMForMaskedLM(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm_weight = "norm" in name and name.endswith("weight")
            scale = {"lm_head": 0.15, "model": 1.5 if "attention" in name else 0.7}
            parameter.copy_(scale[name.split(".")[0]] * noise + is_norm_weight)
    return network


@torch.no_grad()
def log_p_of_places(logits: Tensor, places: list[int]) -> Tensor:
    """[81]: summed over the places of the enumerated sequences."""
    log_p = logits.log_softmax(-1).gather(-1, SEQUENCES[..., None])[..., 0]
    return log_p[:, places].sum(1)


def chi_square(sequences: Tensor, p: Tensor) -> tuple[float, int]:
    """Over all 81 sequences and its degrees of freedom; rare ones are one cell together."""
    expected = len(sequences) * p
    assert float(p.sum()) == pytest.approx(1.0)
    cells = (sequences * 3 ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    found = cells.bincount(minlength=len(SEQUENCES)).double()
    rare = expected < 5
    observed = torch.cat([found[~rare], found[rare].sum()[None]])
    mean = torch.cat([expected[~rare], expected[rare].sum()[None]])
    possible = mean > 0
    value = float(((observed - mean)[possible] ** 2 / mean[possible]).sum())
    return value, int(possible.sum()) - 1


def exact_in_blocks(network: Any, size: int, num_steps: int, given: int = 0) -> Tensor:
    """[81]: p(x), each token of a block at any step; what is given has chance 1."""
    steps = itertools.product(range(num_steps), repeat=LENGTH - given)
    return exact_of_steps(network, size, list(steps), given)


@torch.no_grad()
def exact_of_steps(
    network: Any, size: int, possible: list[tuple[int, ...]], given: int = 0
) -> Tensor:
    """[81]: p(x). possible: at which step of its block each free token may be written."""
    total = torch.zeros(len(SEQUENCES), dtype=torch.float64)
    for steps in possible:
        times = [(-1, -1)] * given + [(i // size, steps[i - given]) for i in range(given, LENGTH)]
        log_p = torch.zeros(len(SEQUENCES), dtype=torch.float64)
        for moment in sorted(set(times[given:])):
            z = SEQUENCES.clone()
            z[:, [i for i in range(LENGTH) if times[i] >= moment]] = MASK_ID
            now = [i for i in range(LENGTH) if times[i] == moment]
            if size == LENGTH:
                logits = network(z, attention_pattern="bidirectional").logits
            else:
                both = torch.cat([z, SEQUENCES], dim=1)
                logits = network(both, attention_pattern="block_two_stream", block_size=size).logits
            log_p += log_p_of_places(logits, now)
        total += log_p.exp() / len(possible)
    return total


def block_network(size: int) -> Any:
    """MDLM, if all is one block, else BD3-LM."""
    name = "mdlm" if size == LENGTH else "bd3lm"
    return random_network(objective=name, variant=None, block_size=size)


@pytest.mark.parametrize("size", [LENGTH, 2, 1])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_masked_diffusion(size: int, num_steps: int) -> None:
    network = block_network(size)
    output = written_by(network, num_samples=ROWS, length=LENGTH, num_steps=num_steps, seed=1)
    assert is_plausible(*chi_square(output.sequences, exact_in_blocks(network, size, num_steps)))


@pytest.mark.parametrize(
    ("size", "num_steps", "counts"), [(LENGTH, 2, (2, 2)), (LENGTH, 3, (1, 1, 2)), (2, 2, (1, 1))]
)
def test_as_many_tokens_in_each_step(size: int, num_steps: int, counts: tuple[int, ...]) -> None:
    """`fixed`: each block has these counts, and which tokens they are is random."""
    network = block_network(size)
    steps_of_block = [step for step, count in enumerate(counts) for _ in range(count)]
    of_block = sorted(set(itertools.permutations(steps_of_block)))
    possible = [sum(parts, ()) for parts in itertools.product(of_block, repeat=LENGTH // size)]
    output = written_by(
        network, num_samples=FEWER, length=LENGTH, num_steps=num_steps, schedule="fixed", seed=1
    )
    exact = exact_of_steps(network, size, possible)
    assert is_plausible(*chi_square(output.sequences, exact))


@pytest.mark.parametrize(
    ("size", "num_steps", "steps"),
    [(LENGTH, 2, (0, 1, 0, 1)), (LENGTH, 1, (0, 0, 0, 0)), (2, 2, (0, 1, 0, 1))],
)
def test_sub_contexts_side_by_side(size: int, num_steps: int, steps: tuple[int, ...]) -> None:
    """`strided`: nothing about the order is random. steps: of each token within its block."""
    network = block_network(size)
    output = written_by(
        network, num_samples=FEWER, length=LENGTH, num_steps=num_steps, schedule="strided", seed=1
    )
    exact = exact_of_steps(network, size, [steps])
    assert is_plausible(*chi_square(output.sequences, exact))


def test_first_token_given() -> None:
    """Blocks of 2 with bos in front: its block sees it."""
    network = random_network(
        objective="bd3lm", variant=None, block_size=2, keep_first=True, bos_token_id=2
    )
    output = written_by(network, num_samples=ROWS, length=LENGTH, num_steps=3, seed=1)
    exact = exact_in_blocks(network, 2, 3, given=1)
    starts = SEQUENCES[:, 0] == 2
    p = torch.where(starts, exact, 0.0)
    assert is_plausible(*chi_square(output.sequences, p))


def exact_of_a(network: Any, num_random: int, counts: tuple[int, ...]) -> Tensor:
    """[81]: p(x | counts) of Eso-LM (A): mean over orders of the first num_random tokens."""
    orders = [
        front + tuple(i for i in range(LENGTH) if i not in front)
        for front in itertools.permutations(range(LENGTH), num_random)
    ]
    total = torch.stack([log_p_of_order(network, o, num_random, counts).exp() for o in orders])
    return total.mean(0)


@torch.no_grad()
def log_p_of_order(
    network: Any, order: tuple[int, ...], num_random: int, counts: tuple[int, ...]
) -> Tensor:
    """[81], by the patterns of training over whole rows: all masks are fed in every pass."""
    x, places = SEQUENCES[:, list(order)], torch.tensor(order).expand_as(SEQUENCES)
    total, written = torch.zeros(len(x), dtype=torch.float64), 0
    for count in counts:
        z = x.clone()
        z[:, written:] = MASK_ID
        prefix = torch.full((len(x),), min(written, num_random))
        if written < num_random:
            logits = network(z, places, "prefix", prefix).logits
        else:
            both = torch.cat([z, x], dim=1), torch.cat([places, places], dim=1)
            logits = network(*both, "two_stream_prefix", prefix).logits
        log_p = logits.log_softmax(-1).gather(-1, x[..., None])[..., 0]
        total += log_p[:, written : written + count].sum(1)
        written += count
    return total


@pytest.mark.parametrize(("alpha_0", "num_steps"), [(0.0, 1), (0.25, 3), (0.5, 2), (1.0, 3)])
def test_eso_lm_a(alpha_0: float, num_steps: int) -> None:
    """Chi-square over all sequences, summed over several draws of the counts."""
    network = random_network(objective="esolm", variant="A")
    value, degrees, seen = 0.0, 0, set()
    for seed in range(5 if alpha_0 > 0 else 2):
        output = written_by(
            network,
            num_samples=ROWS,
            length=LENGTH,
            alpha_0=alpha_0,
            num_steps=num_steps,
            seed=seed,
        )
        counts = tuple(output.counts[:, 0].tolist())
        seen.add((counts, int(output.num_diffusion[0])))
        num_random = sum(counts[: output.num_diffusion[0]])
        found, freedom = chi_square(output.sequences, exact_of_a(network, num_random, counts))
        value, degrees = value + found, degrees + freedom
    assert is_plausible(value, degrees), (value, degrees)
    assert len(seen) > (alpha_0 > 0)


def test_the_systems_differ() -> None:
    """So a decoder that mixed up attention or blocks would be found."""
    network = random_network(objective="esolm", variant="A")

    def causal(tokens: Tensor, places: Tensor, pattern: str, prefix: Tensor) -> Any:
        return network(tokens, places, pattern, torch.zeros_like(prefix))

    distributions = [
        exact_in_blocks(network, LENGTH, 2),
        exact_in_blocks(network, 2, 2),
        exact_in_blocks(network, 1, 1),
        exact_of_a(network, 4, (2, 2)),
        exact_of_a(causal, 4, (2, 2)),
    ]
    for one, other in itertools.combinations(distributions, 2):
        difference = float(((one - other) ** 2 / other).sum())
        assert ROWS * difference > 100
