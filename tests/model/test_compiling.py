"""Compiled pieces compute the same bits, in few graphs whatever the layers and lengths."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from esolm.model.attention import AttentionPattern
from esolm.model.compiling import compile_seconds, num_graphs
from esolm.model.dropout import Dropout, feature_salts, site_salt, token_keys
from esolm.model.inputs import NetworkInput
from esolm.model.kernels import Kernels, use_kernels
from esolm.model.layers import Norm, activate
from esolm.model.network import Network, add_branch
from esolm.model.recompute import set_recompute
from esolm.model.rotary import rotary_angles, rotate
from tests.model.conftest import ARCHITECTURES, small_config

MakeNetwork = Callable[..., Network]


@pytest.fixture
def chosen() -> Iterator[Callable[[str], None]]:
    """Chooses a backend, and none afterwards; what was compiled before is forgotten."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda backend: use_kernels(Kernels(compiled=backend))
    use_kernels(Kernels())


def step(network: Network, lengths: tuple[int, ...] = (6,)) -> list[Tensor]:
    """Logits and gradients of rows of each length, one after the other."""
    network.zero_grad()
    found = []
    for length in lengths:
        pattern = AttentionPattern.TWO_STREAM
        generator = torch.Generator().manual_seed(length)
        tokens = torch.randint(0, 11, (3, 2 * length), generator=generator)
        positions = torch.arange(length).repeat(2).expand(3, -1).contiguous()
        keys = torch.tensor([5, -6, 1 << 62])
        prefix = torch.zeros(3, dtype=torch.int64)
        logits = network.all_logits(NetworkInput(tokens, positions, pattern, prefix, keys))
        logits.nan_to_num(neginf=0.0).square().sum().backward()
        found.append(logits.detach())
    return found + [each.grad.clone() for each in network.parameters() if each.grad is not None]


@pytest.mark.parametrize(
    ("name", "recompute"),
    [("paper", "none"), ("paper", "selective"), ("paper", "full"), ("modern", "none"),
     ("normed", "none"), ("today", "none")],
)  # fmt: skip
def test_the_same_bits(
    name: str, recompute: str, make_network: MakeNetwork, chosen: Callable[[str], None]
) -> None:
    """Of RMSNorm the gradients are summed in another order."""
    network = make_network(num_layers=3, dropout=0.3, **ARCHITECTURES[name]).train()
    set_recompute(network, recompute)
    plain = step(network)
    assert num_graphs() == 0
    before = compile_seconds()
    chosen("aot_eager")
    compiled = step(network)
    assert num_graphs() > 0
    assert compile_seconds() > before
    assert torch.equal(plain[0], compiled[0])
    tolerance = 1e-14 if network.config.norm == "rmsnorm" else 0.0
    for one, other in zip(plain[1:], compiled[1:], strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max()


def test_graphs_do_not_grow_with_layers_and_lengths(
    make_network: MakeNetwork, chosen: Callable[[str], None]
) -> None:
    chosen("aot_eager")
    network = make_network(num_layers=4, dropout=0.3).train()
    step(network, (4, 6))
    before = num_graphs()
    compiled = step(network, (8, 9, 10, 12))
    assert num_graphs() == before <= 16
    chosen("")
    for one, other in zip(step(network, (8, 9, 10, 12)), compiled, strict=True):
        assert torch.equal(one, other)


def test_keys_of_a_context_parallel_ranks_tokens_take_no_more_graphs(
    chosen: Callable[[str], None],
) -> None:
    def keys(length: int) -> Tensor:
        places = torch.arange(1, 2 * length, 2)
        rows = torch.tensor([5, -6])
        return token_keys(rows, site_salt(1), 2 * length, length, 0, torch.tensor(3), places)

    chosen("aot_eager")
    found = {length: keys(length) for length in (4, 6)}
    before = num_graphs()
    found |= {length: keys(length) for length in (8, 9, 10, 12)}
    assert num_graphs() == before
    chosen("")
    for length, compiled in found.items():
        assert torch.equal(compiled, keys(length))


@pytest.mark.check
def test_compiled_kernels_compute_the_same(
    make_network: MakeNetwork, chosen: Callable[[str], None]
) -> None:
    """By inductor's C++, in loops wide enough for vectors. Angles are of fp32 in any case."""
    sizes = {"hidden_size": 64, "num_heads": 4, "ffn_hidden_size": 96}
    network = make_network(0.05, num_layers=2, dropout=0.3, **sizes).train()
    plain = step(network, (16, 40))
    chosen("inductor")
    compiled = step(network, (16, 40))
    for one, other in zip(plain[2:], compiled[2:], strict=True):
        assert (one - other).abs().max() <= 1e-7 * one.abs().max()


@pytest.mark.check
def test_a_block_takes_few_kernels(chosen: Callable[[str], None]) -> None:
    """With a C compiler: inductor makes one function of each piece, so a block calls as many."""
    chosen("inductor")
    config = small_config(hidden_size=64)
    hidden, wide, vector = torch.randn(48, 64), torch.randn(48, 256), torch.randn(64)
    heads, angle = torch.randn(2, 24, 4, 16), torch.randn(2, 24, 8)
    keys = token_keys(torch.tensor([5, -6]), site_salt(1), 48, 24, 0, torch.tensor(0))
    dropout = Dropout(keys, feature_salts(64, keys.device), 0.1)
    norm = Norm(config)
    kernels = [
        2 * kernels_of(lambda: norm(hidden, vector, vector)),
        2 * kernels_of(lambda: rotate(heads, angle, angle)),
        2 * kernels_of(lambda: add_branch(hidden, hidden, vector, dropout)),
        kernels_of(lambda: activate(wide, False)),
        kernels_of(lambda: rotary_angles(torch.arange(24).expand(2, -1), config.rotation(0))[0]),
    ]
    assert kernels == [2, 2, 2, 1, 1]
    linears, attention = 4 + config.adaln, 1
    assert sum(kernels) + linears + attention == 14


def kernels_of(call: Callable[[], Tensor]) -> int:
    """How many functions the code calls that is compiled for the call."""
    with torch.no_grad():
        _, (code,) = run_and_get_code(call)
    return len(re.findall(r"^ +cpp_fused\w*\(", code, re.MULTILINE))
