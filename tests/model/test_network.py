"""The network against its loop-written reference, and what it must not depend on."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.dropout import site_salt, token_keys
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from tests.model.conftest import MASK_ID, small_config
from tests.model.reference import ReferenceNetwork

LENGTH = 6


def make_input(
    pattern: AttentionPattern, length: int = LENGTH, block_size: int = 2
) -> NetworkInput:
    """Three rows with random orders and different prefix lengths.

    The streams have different positions here, so that taking one for the other shows.
    """
    generator = torch.Generator().manual_seed(pattern.index)
    streams = pattern.num_streams
    order = torch.rand(3, streams, length, generator=generator).argsort(2).flatten(1)
    tokens = torch.randint(11, (3, length * streams), generator=generator)
    prefix = torch.tensor([0, length // 2, length])
    keys = torch.tensor([5, 6, 7])
    return NetworkInput(tokens, order, pattern, prefix, keys, block_size)


@pytest.mark.parametrize("pattern", AttentionPattern)
def test_logits_equal_the_loop_written_network(network: Network, pattern: AttentionPattern) -> None:
    inputs = make_input(pattern)
    expected = ReferenceNetwork(network.config, network.state_dict()).all_logits(inputs)
    logits = network.all_logits(inputs)
    assert logits.shape == (3, LENGTH, 11)
    assert logits.dtype is torch.float64
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "pattern", [pattern for pattern in AttentionPattern if pattern.num_streams == 2]
)
def test_outputs_nobody_reads_are_skipped_exactly(
    network: Network, pattern: AttentionPattern
) -> None:
    """The last block computes the noised stream alone; the logits are those of both streams."""
    inputs = make_input(pattern)
    flow = network.embedding((inputs.tokens, inputs.positions, inputs.rows()))
    last = network.blocks[-1]
    for block in network.blocks:
        before, flow = flow, block(flow)
    assert flow[0].shape == (3 * LENGTH, 12)
    assert torch.equal(flow[1], inputs.positions[:, :LENGTH])
    last.last = False  # type: ignore[assignment]
    both = last(before)
    assert both[0].shape == (3 * 2 * LENGTH, 12)
    noised = both[0].view(3, 2 * LENGTH, -1)[:, :LENGTH].flatten(0, 1)
    torch.testing.assert_close(flow[0], noised, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", AttentionPattern)
def test_every_parameter_gets_a_gradient(network: Network, pattern: AttentionPattern) -> None:
    network.all_logits(make_input(pattern)).nan_to_num(neginf=0.0).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def sparse_loss(network: Network, inputs: NetworkInput, targets: Targets) -> Tensor:
    hidden = network((inputs.tokens, inputs.positions, inputs.rows()))
    return weighted_loss(network.head, hidden, targets.sparse())


def test_loss_and_gradients_equal_those_of_all_positions(network: Network) -> None:
    """Only weighted positions pass the output layer; the vocabulary-parallel loss is float32."""
    inputs = make_input(AttentionPattern.CAUSAL)
    labels = torch.randint(4, 11, (3, LENGTH))
    weights = torch.rand(3, LENGTH) * (torch.rand(3, LENGTH) < 0.5)
    loss = sparse_loss(network, inputs, Targets(labels, weights))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    logits = network.all_logits(inputs)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    expected = (losses * weights.flatten()).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    penalty = (logits.flatten(0, 1).logsumexp(1).square() * weights.flatten()).sum()
    whole = expected + network.config.z_loss * penalty
    for mine, theirs in zip(
        gradients, torch.autograd.grad(whole, list(network.parameters())), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


def test_the_penalty_of_z_loss_is_in_the_gradients_alone(
    make_network: Callable[..., Network],
) -> None:
    inputs = make_input(AttentionPattern.CAUSAL)
    labels = torch.randint(4, 11, (3, LENGTH))
    weights = torch.rand(3, LENGTH) * (torch.rand(3, LENGTH) < 0.5)
    targets = Targets(labels, weights)
    network, without = make_network(z_loss=0.3), make_network()
    loss = sparse_loss(network, inputs, targets)
    assert loss == sparse_loss(without, inputs, targets)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    logits = network.all_logits(inputs).flatten(0, 1)
    losses = F.cross_entropy(logits, labels.flatten(), reduction="none")
    losses = losses + 0.3 * logits.exp().sum(1).log() ** 2
    expected = (losses * weights.flatten()).sum()
    for mine, theirs in zip(
        gradients, torch.autograd.grad(expected, list(network.parameters())), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
    with torch.no_grad():
        assert sparse_loss(network, inputs, targets) == loss


def test_a_micro_batch_without_loss_has_zero_loss_and_gradients(network: Network) -> None:
    inputs = make_input(AttentionPattern.CAUSAL)
    nothing = Targets(torch.zeros(3, LENGTH, dtype=torch.int64), torch.zeros(3, LENGTH))
    loss = sparse_loss(network, inputs, nothing)
    loss.backward()
    assert loss == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in network.parameters() if p.grad is not None)


def test_excluded_ids_have_no_probability(make_network: Callable[..., Network]) -> None:
    logits = make_network().all_logits(make_input(AttentionPattern.BIDIRECTIONAL))
    assert torch.isneginf(logits[..., MASK_ID]).all()
    assert (logits.softmax(-1)[..., MASK_ID] == 0).all()
    others = torch.arange(11) != MASK_ID
    assert logits[..., others].isfinite().all()


def test_rows_do_not_see_each_other(network: Network) -> None:
    inputs = make_input(AttentionPattern.TWO_STREAM_PREFIX)
    together = network.all_logits(inputs)
    for row in range(3):
        alone = NetworkInput(
            inputs.tokens[row : row + 1],
            inputs.positions[row : row + 1],
            inputs.pattern,
            inputs.prefix_length[row : row + 1],
            inputs.dropout_keys[row : row + 1],
        )
        torch.testing.assert_close(network.all_logits(alone)[0], together[row])


def test_dropout_depends_on_the_row_and_not_on_the_batch(
    make_network: Callable[..., Network],
) -> None:
    network = make_network(dropout=0.3).train()
    inputs = make_input(AttentionPattern.TWO_STREAM)
    together = network.all_logits(inputs)
    assert torch.equal(together, network.all_logits(inputs))
    swapped = NetworkInput(
        *(x.flip(0) for x in (inputs.tokens, inputs.positions)),
        inputs.pattern,
        inputs.prefix_length.flip(0),
        inputs.dropout_keys.flip(0),
    )
    torch.testing.assert_close(network.all_logits(swapped).flip(0), together)
    assert not torch.allclose(network.eval().all_logits(inputs), together)


def test_every_dropout_of_the_network_has_a_site_of_its_own(
    make_network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    salts = []

    def record(keys: Tensor, salt: int, tokens: int, *places: object) -> Tensor:
        assert keys.tolist() == [5, 6, 7]
        assert (tokens, *places) == (3 * LENGTH, LENGTH, 0, 0, None)
        salts.append(salt)
        return token_keys(keys, salt, tokens, *places)  # type: ignore[arg-type]

    monkeypatch.setattr("esolm.model.network.token_keys", record)
    make_network(dropout=0.3, num_layers=3).train().all_logits(make_input(AttentionPattern.CAUSAL))
    assert salts == [site_salt(site) for site in range(6)]


def test_bf16_stays_near_float32(make_network: Callable[..., Network]) -> None:
    network = make_network(scale=0.1)
    inputs = make_input(AttentionPattern.PREFIX)
    exact = network.all_logits(inputs)
    rounded = network.bfloat16().all_logits(inputs)
    assert rounded.dtype is torch.float32
    finite = exact.isfinite()
    assert (rounded[finite] - exact[finite]).abs().max() < 0.05


def test_config_names_every_problem() -> None:
    assert small_config().problems() == []
    found = small_config(num_heads=5, norm="batch", activation="relu", dropout=1.0).problems()
    assert len(found) == 4
    assert "hidden_size 12 does not divide by model.num_heads 5" in found[0]
    assert "must be even" in small_config(num_heads=4).problems()[0]
    shared = small_config(num_kv_heads=5, num_heads=6).problems()
    assert shared == ["model.num_heads 6 does not divide by model.num_kv_heads 5"]
    assert (
        "num_kv_heads is -1; it must be at least 0" in small_config(num_kv_heads=-1).problems()[0]
    )
    turned = small_config(rope_bases=(1.0, 2.0, -3.0), rope_factor=2.0).problems()
    assert turned == [
        "model.rope_bases is [1.0, 2.0, -3.0]; it must be above 0",
        "model.rope_bases has 3 bases for 2 layers",
        "model.rope_factor is 2: give model.rope_original_length, the train.seq_len of the network "
        "whose context is extended",
        "model.rope_factor needs bases of rotary frequencies above 1",
    ]
    assert (
        "rope_factor is 0.5; it must be at least 1" in small_config(rope_factor=0.5).problems()[0]
    )
    assert "mask id 11" in small_config(mask_id=11).problems()[0]
    assert "num_layers is 0" in small_config(num_layers=0).problems()[0]
