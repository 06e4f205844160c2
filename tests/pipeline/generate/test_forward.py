"""`forward` of a bundle: how an unfinished text is read, padding, labels, what it tells."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import pipeline

from tests.pipeline.generate.conftest import network
from tests.pipeline.generate.systems import MASK_ID, System
from tests.pipeline.generate.whole_bundles import (
    Bundles,
    loaded,
    tokenizer_directory,
    whole_bundle,
)

__all__ = ["tokenizer_directory", "whole_bundle"]

TEXT = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
NAMES = ["esolm_a", "esolm_b", "mdlm", "bd3lm", "ar"]


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "mdlm", "bd3lm"])
def test_masks_are_read_as_the_decoder_reads_them(name: str) -> None:
    """Against the reference of training: the pass that writes all gaps at once."""
    system = System(name)
    gaps = torch.tensor([5, 7] if name == "bd3lm" else [1, 4, 6])
    given = torch.tensor([place for place in range(8) if place not in gaps])
    order = torch.cat([given, gaps])
    expected = system.logits_of_pass(TEXT, order, len(given), len(gaps), num_diffusion=8)
    found = system.model(TEXT.index_fill(0, gaps, MASK_ID)[None]).logits[0, gaps]
    kept = [token for token in range(11) if token != MASK_ID]
    torch.testing.assert_close(found[:, kept], expected[:, kept], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen_and_not_counted(name: str, side: str) -> None:
    model = System(name).model
    rows = [TEXT, TEXT[:5].index_fill(0, torch.tensor([2]), MASK_ID), TEXT[3:6]]
    padded, shown = torch.full((3, 8), 7), torch.zeros(3, 8, dtype=torch.int64)
    places = []
    for number, row in enumerate(rows):
        places.append(slice(len(row)) if side == "right" else slice(8 - len(row), 8))
        padded[number, places[-1]], shown[number, places[-1]] = row, 1
    for pattern in (None, "causal", "bidirectional", "prefix"):
        options: dict[str, Any] = {"attention_pattern": pattern}
        if pattern == "prefix":
            options["prefix_length"] = 2
        found = model(padded, attention_mask=shown, **options).logits
        assert not found.isnan().any()
        for number, row in enumerate(rows):
            alone = model(row[None], **options).logits[0]
            torch.testing.assert_close(found[number, places[number]], alone, rtol=0, atol=1e-12)


def test_padding_has_no_part_in_gradients() -> None:
    model = network()
    shown = torch.tensor([[0, 0, 1, 1, 1]])
    ids = torch.tensor([[5, 6, 3, 29, 4]])
    model(ids, attention_mask=shown, labels=ids.clone().fill_(8)).loss.backward()
    gradient = model.model.embed_tokens.weight.grad
    assert gradient.isfinite().all()
    assert not gradient[[5, 6]].any()
    assert gradient[[3, 4, 29]].any()


def by_hand(logits: Tensor, labels: list[int], places: list[int]) -> float:
    log_p = logits[0].log_softmax(-1)
    chosen = [log_p[p, label].item() for p, label in zip(places, labels, strict=True)]
    return -sum(chosen) / len(chosen)


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "mdlm", "bd3lm"])
def test_labels_of_masked_places(name: str) -> None:
    model = System(name).model
    ids = TEXT.index_fill(0, torch.tensor([1, 4, 6]), MASK_ID)[None]
    labels = TEXT[None].clone()
    labels[0, 4] = -100
    found = model(ids, labels=labels)
    assert found.loss.item() == pytest.approx(by_hand(found.logits, [1, 2], [1, 6]), abs=1e-12)
    assert torch.equal(found.logits, model(ids).logits)
    assert model(TEXT[None], labels=TEXT[None]).loss.item() == 0.0


def test_labels_of_a_noised_stream() -> None:
    model = System("esolm_b").model
    both = torch.cat([torch.full_like(TEXT, MASK_ID), TEXT])[None]
    found = model(both, attention_pattern="two_stream", labels=TEXT[None])
    expected = -float(model.log_likelihood(TEXT[None])) / 8
    assert found.loss.item() == pytest.approx(expected, abs=1e-12)


def test_labels_of_ar_are_shifted() -> None:
    model = network(objective="ar", prepend_token_id=None)
    labels = TEXT[None].clone()
    labels[0, 3] = -100
    found = model(TEXT[None], labels=labels)
    places = [0, 1, 3, 4, 5, 6]
    expected = by_hand(found.logits, [int(TEXT[place + 1]) for place in places], places)
    assert found.loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "mdlm"])
def test_hidden_states(name: str) -> None:
    """In the order of the text, though masks are fed behind what is written."""
    model = System(name).model
    ids = TEXT.index_fill(0, torch.tensor([1, 4, 6]), MASK_ID)[None]
    found = model(ids, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    assert torch.equal(found.hidden_states[0], model.model.embed_tokens(ids))
    logits = model.lm_head(found.hidden_states[-1])
    assert torch.equal(logits[..., :MASK_ID], found.logits[..., :MASK_ID])
    assert model(ids).hidden_states is None
    as_tuple = model(ids, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], found.logits)


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for is_checkpointed in (False, True):
        model = network().train()
        calls: list[int] = []
        model.model.layers[0].norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if is_checkpointed:
            model.activation_checkpointing_enable()
        ids = torch.tensor([[5, 29, 3, 29, 4]])
        model(ids, labels=torch.full_like(ids, 8)).loss.backward()
        assert len(calls) == 1 + is_checkpointed
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "mdlm", "bd3lm"])
def test_the_pipeline_that_fills_masks(whole_bundle: Bundles, name: str) -> None:
    path = whole_bundle(name)
    fill = pipeline("fill-mask", model=str(path), trust_remote_code=True)
    model, tokenizer = loaded(path)
    text = f"def {tokenizer.mask_token}(self): pass"
    read: dict[str, Any] = {"split_special_tokens": False}
    found = fill(text, top_k=3, tokenizer_kwargs=read)
    ids = tokenizer(text, return_tensors="pt", **read)["input_ids"]
    place = int((ids[0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        chances = model(ids).logits[0, place].softmax(-1).topk(3)
    assert [each["token"] for each in found] == chances.indices.tolist()
    assert [each["score"] for each in found] == pytest.approx(chances.values.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask has shape \(1, 3\); \(1, 8\)"),
        (
            {"attention_mask": torch.tensor([[0] + [1] * 7]), "attention_pattern": "two_stream"},
            "'two_stream' takes rows without padding",
        ),
        ({"labels": TEXT[None, :3]}, r"labels have shape \(1, 3\); \(1, 8\) is due"),
        ({"labels": TEXT[None], "logits_to_keep": 2}, "leave logits_to_keep out"),
        ({"output_attentions": True}, "output_attentions are not known"),
        ({"attention_pattern": "diagonal"}, "'diagonal' is unknown"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        System("esolm_b").model(TEXT[None], **options)
