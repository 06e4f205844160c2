"""Losses, gradients and likelihoods of imported networks, against the published ones in float64.

Training network and bundle compute in fp32, as they do in use. All gradients are those of the
published tensors: the bundle's flow back through a fold of adaLN that is written down here again.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from esolm.model.inputs import NetworkInput
from esolm.model.likelihood import (
    left_to_right_log_likelihood,
    order_log_likelihood,
    prefix_order_log_likelihood,
)
from esolm.model.objectives import SampleKeys
from esolm.model.objectives.base import Objective
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.export.gate_network import bundle_logits, training_logits
from esolm.pipeline.export.writer import read_model
from esolm.pipeline.importer.importing import import_checkpoint
from esolm.pipeline.importer.recognise import Options
from tests.model.reference import stepwise_log_p
from tests.pipeline.importer import published
from tests.pipeline.importer.published import HEADS, SYSTEMS, PublishedNetwork
from tests.pipeline.importer.test_official import DATA, FILE
from tests.pipeline.importer.test_systems import objective_of

ROWS = 4
Tensors = dict[str, Tensor]
Logits = Callable[[NetworkInput], Tensor]


def published_averages(path: Path, name: str) -> tuple[Path, Tensors]:
    """A checkpoint file and its averaged weights by their published names."""
    if name != "official":
        _, ema = published.save(path / "a.ckpt", SYSTEMS[name])
        return path / "a.ckpt", ema
    values = json.loads((DATA / "official_tiny_expected.json").read_text())["values"]
    stored = torch.load(FILE, weights_only=False)["ema"]["shadow_params"]
    names = [f"backbone.{name}" for name in values["shadow_params_order"]]
    return FILE, dict(zip(names, stored, strict=True))


class Imported:
    """One import three times over: `reference` in float64, `trained` and `bundle` in fp32."""

    def __init__(self, path: Path, name: str) -> None:
        file, self.ema = published_averages(path, name)
        import_checkpoint(file, path / "out", Options(dtype="fp32"))
        reader = CheckpointReader(path / "out")
        self.objective: Objective = objective_of(reader)
        self.length, self.model = reader.seq_len, reader.model
        self.weights = reader.tensors("ema")
        self.bundle = read_model(path / "out" / "bundle", torch.float32)
        generator = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(
            self.model.vocab_size - 1, (ROWS, self.length), generator=generator
        )

    def batches(self, objective: Objective) -> list[tuple[NetworkInput, Any]]:
        """The micro-batches of one global batch, one per loss term."""
        index = np.arange(ROWS, dtype=np.int64)
        found = []
        for slots in objective.terms(ROWS).values():
            keys = SampleKeys(3, index[list(slots)], index[list(slots)], ROWS)
            found.append(objective.corrupt(self.tokens[list(slots)], keys))
        return found

    def by_reference(self, objective: Objective) -> tuple[float, Tensors]:
        leaves = {name: tensor.double().requires_grad_() for name, tensor in self.ema.items()}
        network = PublishedNetwork(leaves)
        loss = self._loss(network.all_logits, objective)
        loss.backward()
        return float(loss.detach()), gradients(leaves)

    def by_training_network(self, objective: Objective) -> tuple[float, Tensors]:
        from esolm.model.network import Network
        from esolm.pipeline.parallel.single import single_process

        network = Network(self.model, single_process()).float().eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self.weights[name])
        loss = self._loss(network.all_logits, objective)
        loss.backward()
        named = gradients(dict(network.named_parameters()))
        return float(loss.detach()), {name: as_published(named, name) for name in self.ema}

    def by_bundle(self, objective: Objective) -> tuple[float, Tensors]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.ema.items()}
        parameters = folded(leaves)
        assert parameters.keys() == dict(self.bundle.named_parameters()).keys()

        def logits(inputs: NetworkInput) -> Tensor:
            fed = (inputs.tokens, inputs.positions, inputs.pattern.value, inputs.prefix_length)
            options = {"block_size": inputs.block_size}
            found: Tensor = functional_call(self.bundle, parameters, fed, options).logits
            return found

        loss = self._loss(logits, objective)
        loss.backward()
        return float(loss.detach()), gradients(leaves)

    def _loss(self, logits: Logits, objective: Objective) -> Tensor:
        total = torch.zeros(())
        for inputs, targets in self.batches(objective):
            scored = targets.weights > 0
            log_p = logits(inputs).log_softmax(-1)[scored]
            chosen = log_p.gather(-1, targets.labels[scored][:, None])[:, 0]
            total = total - (chosen * targets.weights[scored]).sum()
        return total


def gradients(leaves: Tensors) -> Tensors:
    return {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }


def condition(w: Tensors) -> Tensor | None:
    """The published conditioning vector at sigma 0, as a function of its tensors."""
    if "backbone.sigma_map.mlp.0.weight" not in w:
        return None
    c = torch.cat([torch.ones(128), torch.zeros(128)])
    for layer in (0, 2):
        name = f"backbone.sigma_map.mlp.{layer}"
        c = torch.nn.functional.silu(w[f"{name}.weight"] @ c + w[f"{name}.bias"])
    return c


def folded(w: Tensors) -> Tensors:
    """The bundle's parameters as functions of the published tensors."""
    c = condition(w)
    size = w["backbone.vocab_embed.embedding"].shape[1]

    def modulation(name: str, parts: int) -> list[Tensor]:
        if c is None:
            zero, one = torch.zeros(size), torch.ones(size)
            return [zero, zero, one, zero, zero, one][:parts]
        changed = w[f"{name}.adaLN_modulation.weight"] @ c + w[f"{name}.adaLN_modulation.bias"]
        return list(changed.chunk(parts))

    found = {"model.embed_tokens.weight": w["backbone.vocab_embed.embedding"]}

    def norm(name: str, published_name: str, shift: Tensor, scale: Tensor) -> None:
        found[f"{name}.weight"] = w[published_name] * (1 + scale)
        if c is not None:
            found[f"{name}.bias"] = shift

    for i in range(sum(name.endswith("attn_out.weight") for name in w)):
        here, there = f"model.layers.{i}", f"backbone.blocks.{i}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(there, 6)
        norm(f"{here}.norm1", f"{there}.norm1.weight", shift_a, scale_a)
        norm(f"{here}.norm2", f"{there}.norm2.weight", shift_m, scale_m)
        found[f"{here}.attention.qkv.weight"] = heads_first(w[f"{there}.attn_qkv.weight"])
        found[f"{here}.attention.out.weight"] = gate_a[:, None] * w[f"{there}.attn_out.weight"]
        found |= {
            f"{here}.mlp.up.{part}": w[f"{there}.mlp.0.{part}"] for part in ("weight", "bias")
        }
        found[f"{here}.mlp.down.weight"] = gate_m[:, None] * w[f"{there}.mlp.2.weight"]
        found[f"{here}.mlp.down.bias"] = gate_m * w[f"{there}.mlp.2.bias"]
    shift, scale = modulation("backbone.output_layer", 2)
    norm("model.norm", "backbone.output_layer.norm_final.weight", shift, scale)
    for part in ("weight", "bias"):
        found[f"lm_head.{part}"] = w[f"backbone.output_layer.linear.{part}"]
    return found


def heads_first(qkv: Tensor) -> Tensor:
    """Rows (q, k, v) x head x dim -> head x (q, k, v) x dim."""
    rows, size = qkv.shape
    return qkv.view(3, HEADS, -1, size).transpose(0, 1).reshape(rows, size)


RENAMED = {
    "vocab_embed.embedding": "embedding.tokens.weight",
    "sigma_map.mlp.0": "embedding.conditioning.linear_in",
    "sigma_map.mlp.2": "embedding.conditioning.linear_out",
    "attn_qkv": "attention.qkv",
    "attn_out": "attention.out",
    "mlp.0": "mlp.up",
    "mlp.2": "mlp.down",
    "adaLN_modulation": "modulation",
    "output_layer.norm_final": "head.norm",
    "output_layer.linear": "head.output",
    "output_layer.modulation": "head.modulation",
}


def as_published(named: Tensors, name: str) -> Tensor:
    """The training network's tensor of a published name, in the published layout."""
    here = name.removeprefix("backbone.")
    for there, ours in RENAMED.items():
        here = here.replace(there, ours)
    tensor = named[here]
    if "attn_qkv" not in name:
        return tensor
    rows, size = tensor.shape
    return tensor.view(HEADS, 3, -1, size).transpose(0, 1).reshape(rows, size)


@pytest.mark.parametrize("name", ["official", *SYSTEMS])
def test_losses_and_gradients(tmp_path: Path, quick: None, name: str) -> None:
    """Loss to 1e-5 and the gradient of every tensor to 1e-3 of it; here fp32 reaches far less."""
    made = Imported(tmp_path, name)
    for objective in {made.objective, made.objective.for_validation()}:
        expected, reference = made.by_reference(objective)
        assert all(float(gradient.norm()) > 0 for gradient in reference.values())
        for loss, found in (made.by_training_network(objective), made.by_bundle(objective)):
            assert loss == pytest.approx(expected, rel=1e-5)
            assert found.keys() == reference.keys()
            for key, gradient in reference.items():
                difference = float((found[key].double() - gradient).norm())
                assert difference < 1e-4 * float(gradient.norm()), key


@pytest.mark.parametrize(
    ("name", "as_decoded"),
    [
        ("official", False),
        ("esolm_b", False),
        ("esolm_b_diffusion", False),
        ("esolm_a", True),
        ("esolm_a", False),
    ],
)
def test_likelihood_under_orders(tmp_path: Path, quick: None, name: str, as_decoded: bool) -> None:
    """The published one has no prefix: its input is nothing but masks, none of which is clean."""
    made = Imported(tmp_path, name)
    reference, rng = PublishedNetwork(made.ema), np.random.default_rng(0)
    orders = np.stack([np.arange(made.length), *(rng.permutation(made.length) for _ in range(3))])
    prefixes = np.array([0, 3, 6, made.length]) if as_decoded else np.zeros(4, np.int64)
    expected = [
        float(
            stepwise_log_p(
                reference.logits, row, order.tolist(), int(prefix), reference.mask_id
            ).sum()
        )
        for row, order, prefix in zip(made.tokens, orders, prefixes, strict=True)
    ]
    for logits in networks(made):
        if as_decoded:
            log_p = prefix_order_log_likelihood(
                logits, made.tokens, orders, prefixes, made.model.mask_id
            )
        else:
            log_p = order_log_likelihood(logits, made.tokens, orders, made.model.mask_id)
        assert log_p.sum(1).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ar", "ar_mask"])
def test_likelihood_left_to_right(tmp_path: Path, quick: None, name: str) -> None:
    made = Imported(tmp_path, name)
    reference, expected = PublishedNetwork(made.ema), []
    front = torch.tensor([made.model.mask_id] if name == "ar_mask" else [], dtype=torch.int64)
    for row in made.tokens:
        fed = torch.cat([front, row])
        logits = reference.logits(fed, torch.arange(len(fed)), lambda q, k: k <= q)
        log_p = logits.log_softmax(1)
        expected.append(sum(float(log_p[i, fed[i + 1]]) for i in range(len(fed) - 1)))
    for logits_of in networks(made):
        assert made.objective.predicted_tokens(made.length) == len(fed) - 1
        log_p = left_to_right_log_likelihood(logits_of, made.objective, made.tokens)  # type: ignore[arg-type]
        assert log_p.sum(1).tolist() == pytest.approx(expected, rel=1e-5)


def networks(made: Imported) -> list[Logits]:
    def trained(inputs: NetworkInput) -> Tensor:
        return training_logits(made.model, made.weights, [inputs])[0]

    return [trained, partial(bundle_logits, made.bundle)]
