"""Products in FP8 beside rounding that is written out here, in fp64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from esolm.model.config import FP8_RECIPES
from esolm.model.fp8 import fp8_product, set_fp8
from esolm.model.kernels import Kernels, use_kernels
from esolm.model.network import Network
from tests.model.conftest import ARCHITECTURES

pytest.importorskip("torchao", reason="the optional extra fp8 is not installed")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    yield
    use_kernels(Kernels())
    torch._dynamo.reset()


def rounded(x: Tensor, dtype: torch.dtype, axis: int | None, powers: bool) -> Tensor:
    """x scaled so that its largest value is the type's, rounded to 8 bits, and scaled back.

    axis: along which values have a scale of their own; all have one if it is None. powers: whether
    scales are rounded down to powers of two.
    """
    largest = x.abs().amax() if axis is None else x.abs().amax(axis, keepdim=True)
    scale = torch.finfo(dtype).max / largest.double()
    if powers:
        scale = 2.0 ** scale.log2().floor()
    return (x.double() * scale).float().to(dtype).double() / scale


def written_out(recipe: str, x: Tensor, w: Tensor, upstream: Tensor) -> list[Tensor]:
    """x w^T and the gradients of x and w, as torchao describes the recipe."""
    if recipe == "tensorwise":
        x, w = rounded(x, E4M3, None, False), rounded(w, E4M3, None, False)
        g = rounded(upstream, E5M2, None, False)
        return [x @ w.T, g @ w, g.T @ x]
    rows, columns = (rounded(each, E4M3, 1, True) for each in (x, w))
    out, g = rows @ columns.T, rounded(upstream, E4M3, 1, True)
    if recipe == "rowwise":
        of_x = g @ rounded(w, E4M3, 0, True)
        return [out, of_x, rounded(upstream, E4M3, 0, True).T @ rounded(x, E4M3, 0, True)]
    return [out, g @ rounded(w, E4M3, None, True), upstream.double().T @ x.double()]


@pytest.mark.parametrize("recipe", FP8_RECIPES)
def test_products_and_gradients(recipe: str) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(48, 32).bfloat16(), (0.1 * torch.randn(64, 32)).bfloat16()
    upstream = (1e-3 * torch.randn(48, 64)).bfloat16()
    given = x.clone().requires_grad_(), w.clone().requires_grad_()
    out = fp8_product(recipe)(*given, None)
    found = [out, *torch.autograd.grad(out, given, upstream)]
    expected = written_out(recipe, x, w, upstream)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=8e-3, atol=4e-3 * theirs.std())
    apart = (found[0].double() - x.double() @ w.double().T).norm() / found[0].double().norm()
    assert apart > 0.01  # it is not the product in bf16


@pytest.mark.parametrize("recipe", FP8_RECIPES)
def test_compiled_products_have_the_same_bits_at_any_length(recipe: str) -> None:
    torch.manual_seed(0)
    w, bias = torch.randn(64, 32).bfloat16().requires_grad_(), torch.randn(64).bfloat16()
    for tokens in (48, 80, 112):
        x, results = torch.randn(tokens, 32).bfloat16().requires_grad_(), []
        for backend in ("", "aot_eager"):
            use_kernels(Kernels(compiled=backend))
            out = fp8_product(recipe)(x, w, bias)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), (x, w))])
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", ["paper", "today"])
def test_the_linear_layers_of_blocks_and_no_others(
    name: str, make_network: Callable[..., Network]
) -> None:
    """Each of them; the head and the modulation stay what they are."""
    network = make_network(num_layers=2, hidden_size=32, ffn_hidden_size=64, **ARCHITECTURES[name])
    set_fp8(network, "none")
    layers = {n: part for n, part in network.named_modules() if hasattr(part, "multiply")}
    assert {part.multiply for part in layers.values()} == {None}
    set_fp8(network, "rowwise")
    assert {part.multiply for part in layers.values()} == {fp8_product("rowwise")}
    kinds = {n.removeprefix("blocks.").split(".", 1)[1] for n in layers}
    assert kinds == {"attention.qkv", "attention.out", "mlp.up", "mlp.down"}
    assert len(layers) == 8
