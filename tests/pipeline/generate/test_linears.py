"""Packed and int8 linear layers: what they compute, and that neither is ever out of date."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from esolm.pipeline.export.bundle.decoding_esolm import Batch
from esolm.pipeline.export.bundle.linears_esolm import Int8Linear, PackedLinear, in_int8, packed
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM
from esolm.pipeline.export.bundle.requests_esolm import TextRequest
from tests.pipeline.generate.systems import MASK_ID, System

ROWS = [1, 2, 3, 17, 64]


def linear(bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(48, 80, bias=bias).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)], ids=["fp32", "bf16"]
)
@torch.inference_mode()
def test_packed_is_the_product(bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    plain = linear(bias, dtype)
    exact = linear(bias, dtype).double()
    for rows in ROWS:
        x = torch.randn(rows, 48, dtype=dtype)
        found = PackedLinear(plain)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact(x.double()), rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("shape", [(768, 3072), (3072, 768), (192, 768), (48, 80)])
@torch.inference_mode()
def test_a_token_gives_the_same_bits_in_any_company(shape: tuple[int, int]) -> None:
    torch.manual_seed(4)
    layer, x = PackedLinear(nn.Linear(*shape)), torch.randn(130, shape[0])
    together = layer(x)
    for rows in (*range(1, 34), 64, 127):
        assert torch.equal(layer(x[:rows]), together[:rows]), rows


@torch.inference_mode()
def test_a_text_gives_the_same_bits_in_any_company() -> None:
    """Logits of every pass of a text, alone and in a batch of others.

    Sizes are multiples of 32, as they are in practice: torch computes what is left over of a vector
    otherwise than the rest.
    """
    torch.manual_seed(0)
    config = EsoLMConfig(
        vocab_size=300, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=512, mask_token_id=MASK_ID,
    )  # fmt: skip
    model = EsoLMForMaskedLM(config).eval()
    alone = logits_of_the_first(model, others=0)
    assert len(alone) > 20
    for number, logits in enumerate(logits_of_the_first(model, others=5)):
        assert torch.equal(logits, alone[number]), number


def logits_of_the_first(model: Any, others: int) -> list[Tensor]:
    """Of the first text in each pass; the others differ in length, phase and steps."""
    batch = Batch(model, 1 + others, 64)
    found: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda *args: found.append(args[-1]))
    texts = [
        batch.add(TextRequest([MASK_ID] * (40 + 3 * n), 0.5 / (1 + n), 8 + n, seed=n))
        for n in range(1 + others)
    ]
    kept: list[Tensor] = []
    while not texts[0].is_done:
        count = texts[0].walk.count
        batch.step()
        kept.append(found[-1][:count].clone())
    handle.remove()
    return kept


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_int8_is_the_product_of_whole_numbers(bias: bool) -> None:
    """Against the same rounding in int64, whose products are exact."""
    plain = linear(bias)
    for rows in ROWS:
        x = torch.randn(rows, 48) * torch.logspace(-3, 3, rows)[:, None]
        steps = [each.abs().amax(-1, keepdim=True) / 127 for each in (x, plain.weight)]
        x_int, w_int = ((each / step).round().long() for each, step in
                        zip((x, plain.weight), steps, strict=True))  # fmt: skip
        exact = (x_int @ w_int.T).double() * steps[0].double() * steps[1].double().T
        exact = exact if plain.bias is None else exact + plain.bias.double()
        torch.testing.assert_close(Int8Linear(plain)(x).double(), exact, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_int8_of_a_token_does_not_depend_on_the_others() -> None:
    layer, x = Int8Linear(linear(bias=True)), torch.randn(2, 9, 48)
    alone = torch.stack([torch.cat([layer(token[None]) for token in row]) for row in x])
    torch.testing.assert_close(layer(x), alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(layer(torch.zeros(3, 48)), layer.bias.expand(3, -1))


def test_a_decoder_has_the_weights_of_now() -> None:
    """Also where they were changed behind the back of autograd, as merged LoRA weights are."""
    model = System("esolm_b", torch.float32).model
    options: dict[str, Any] = {"length": 8, "num_steps": 3, "alpha_0": 0.5, "seed": 0}
    before = model.generate(**options)
    model.lm_head.weight.data.neg_()
    after = model.generate(**options)
    assert not torch.equal(before, after)
    assert torch.equal(after, model.generate(**options, use_cache=False))
    model.lm_head.weight.data.neg_()
    assert torch.equal(before, model.generate(**options))


def test_hooks_stay() -> None:
    model = System("esolm_b", torch.float32).model
    calls: list[int] = []
    handle = model.model.layers[0].mlp.up.register_forward_hook(lambda *_: calls.append(1))
    output = model.generate(length=8, num_steps=3, return_dict_in_generate=True)
    assert len(calls) == output.nfe
    handle.remove()
    model.generate(length=8, num_steps=3)
    assert len(calls) == output.nfe


def test_what_is_packed() -> None:
    """Nothing where it would not be known to be right, or would be of no use."""
    model = System("esolm_b", torch.float32).model
    twin = packed(model)
    assert type(model.lm_head) is nn.Linear
    assert isinstance(twin.lm_head, PackedLinear)
    assert twin.model.norm is not model.model.norm
    assert twin.model.norm.weight is model.model.norm.weight
    assert packed(model.double()) is model


def test_int8_of_a_network() -> None:
    model = System("esolm_b", torch.float32).model
    small = model.in_int8()
    ids = torch.arange(8)[None] % 10
    wrong = (small(ids).logits - model(ids).logits)[..., :-1].abs().max()
    assert 0 < wrong < 0.05 * model(ids).logits[..., :-1].abs().max()
    given = {"length": 8, "num_steps": 3, "seed": 5, "alpha_0": 0.5}
    assert torch.equal(small.generate(**given), small.generate(**given, use_cache=False))
    with pytest.raises(RuntimeError, match="load its bundle again without int8"):
        small.state_dict()
    assert model.state_dict()
    with pytest.raises(ValueError, match=r"this one is torch\.float64 on cpu"):
        in_int8(model.double())
