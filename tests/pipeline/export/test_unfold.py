"""A bundle's parameters as training tensors compute what the bundle computes."""

from dataclasses import fields, replace

import pytest
import torch

from esolm.model.inputs import NetworkInput
from esolm.model.network import Network
from esolm.pipeline.errors import ExportError
from esolm.pipeline.export.architecture import from_bundle
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.unfold import unfold
from esolm.pipeline.export.writer import bundle_config, load_model
from esolm.pipeline.parallel.single import single_process
from tests.pipeline.export.conftest import RandomSource


def bundle_of(source: RandomSource) -> EsoLMForMaskedLM:
    return load_model(bundle_config(source, None), fold(source.tensors("ema"), source.model))


def test_the_network_computes_what_the_bundle_computes(source: RandomSource) -> None:
    from esolm.model.attention import AttentionPattern

    bundle = bundle_of(source)
    torch.manual_seed(0)
    network = Network(source.model, single_process()).eval()
    missing, unexpected = network.load_state_dict(
        dict(unfold(dict(bundle.named_parameters()), source.model)), strict=False
    )
    assert not unexpected
    tied = {"head.output.weight"} if source.model.tied_embeddings else set()
    assert all("conditioning" in name for name in set(missing) - tied)
    network.double()
    bundle.double()
    tokens = torch.randint(4, source.model.vocab_size, (2, 16))
    positions = torch.stack([torch.randperm(16), torch.randperm(16)])
    nothing = torch.zeros(2, dtype=torch.int64)
    inputs = NetworkInput(tokens, positions, AttentionPattern.CAUSAL, nothing, nothing)
    with torch.no_grad():
        expected = bundle(tokens, positions, attention_pattern="causal").logits
        torch.testing.assert_close(network.all_logits(inputs), expected, rtol=1e-9, atol=1e-9)


def test_folding_again_gives_the_bundle_bit_by_bit(source: RandomSource) -> None:
    """Whatever the conditioning is: at first nothing depends on it."""
    parameters = dict(bundle_of(source).named_parameters())
    conditioning = {k: v for k, v in source.tensors("ema").items() if "conditioning" in k}
    again = fold({**dict(unfold(parameters, source.model)), **conditioning}, source.model)
    assert again.keys() == parameters.keys()
    assert not [name for name, value in again.items() if not torch.equal(value, parameters[name])]


def test_what_does_not_fit_is_refused(modern_source: RandomSource) -> None:
    parameters = dict(bundle_of(modern_source).named_parameters())
    with pytest.raises(ExportError, match="no tensor"):
        dict(unfold(parameters, replace(modern_source.model, adaln=True)))
    with pytest.raises(ExportError, match="have no place"):
        dict(unfold({**parameters, "extra": torch.zeros(1)}, modern_source.model))


def test_the_architecture_of_a_bundle_is_that_of_its_network(source: RandomSource) -> None:
    found = from_bundle(bundle_config(source, None).to_dict())
    assert found == {name: getattr(source.model, name) for name in found}
    of_training = {"cond_dim", "dropout", "z_loss"}
    assert found.keys() == {field.name for field in fields(source.model)} - of_training
    with pytest.raises(ExportError, match="norm_bias"):
        from_bundle({})


def test_an_old_bundle_has_the_defaults_of_what_it_does_not_name(
    modern_source: RandomSource,
) -> None:
    config = bundle_config(modern_source, None).to_dict()
    for name in (
        "num_key_value_heads", "qk_norm", "logit_softcap", "rope_bases", "rope_factor",
        "rope_original_length",
    ):  # fmt: skip
        del config[name]
    found = from_bundle(config)
    assert found == {name: getattr(modern_source.model, name) for name in found}
