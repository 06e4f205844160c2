"""The loss in pieces against PyTorch's cross entropy; of several ranks: `tests/dist`."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from esolm.model import output
from esolm.model.kernels import Kernels, use_kernels
from esolm.model.loss import weighted_loss
from esolm.model.network import Head, Network
from esolm.model.pieces import piece_rows
from esolm.pipeline.parallel.single import single_process
from tests.dist.plan_worker import LiveBytes
from tests.model.conftest import MASK_ID, small_config


@pytest.fixture(params=["", "aot_eager"], ids=["in place", "compiled"])
def compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    use_kernels(Kernels(compiled=request.param))
    yield
    use_kernels(Kernels())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize(("scale", "z_loss"), [(0.1, 0.0), (1.0, 0.0), (30.0, 0.0), (1.0, 0.3)])
def test_equals_cross_entropy(
    make_network: Callable[..., Network],
    monkeypatch: pytest.MonkeyPatch,
    scale: float,
    z_loss: float,
    cap: float,
    rows: int,
) -> None:
    monkeypatch.setattr(output, "piece_rows", lambda *_: rows)
    head = make_network(z_loss=z_loss, logit_softcap=cap).head.float()
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(20, 12, generator=generator)
    hidden.requires_grad_()
    index = torch.tensor([1, 4, 5, 19])
    labels = torch.tensor([0, 10, 4, 7])
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0])
    loss = weighted_loss(head, hidden, (index, labels, weights))
    differentiated = (hidden, head.output.weight, head.output.bias)
    gradients = torch.autograd.grad(3.0 * loss, differentiated)
    with torch.no_grad():
        assert weighted_loss(head, hidden, (index, labels, weights)) == loss

    logits = F.linear(hidden[index], head.output.weight, head.output.bias)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    logits = logits[:, torch.arange(11) != MASK_ID]
    shifted = labels - (labels > MASK_ID).long()
    expected = (F.cross_entropy(logits, shifted, reduction="none") * weights).sum()
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected = expected + z_loss * (logits.logsumexp(1).square() * weights).sum()
    for one, other in zip(
        gradients, torch.autograd.grad(3.0 * expected, differentiated), strict=True
    ):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.usefixtures("compiled")
def test_a_label_that_cannot_be_predicted_is_not_hidden(
    make_network: Callable[..., Network],
) -> None:
    head = make_network().head.float()
    targets = (torch.tensor([0]), torch.tensor([MASK_ID]), torch.tensor([1.0]))
    assert weighted_loss(head, torch.randn(1, 12), targets).isinf()


@pytest.mark.usefixtures("compiled")
def test_gradients_of_bf16_are_summed_over_pieces_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred pieces are as near to float64 as one."""
    config = small_config(hidden_size=16, vocab_size=64)
    head = Head(config, single_process()).bfloat16()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.output.weight.normal_(generator=generator)
    hidden = torch.randn(100, 16, generator=generator).bfloat16()
    targets = (torch.arange(100), torch.arange(100) % 60 + 4, torch.ones(100))
    exact = Head(config, single_process()).double()
    exact.output.load_state_dict(head.output.state_dict())
    parameters = (exact.output.weight, exact.output.bias)
    expected = torch.autograd.grad(weighted_loss(exact, hidden.double(), targets), parameters)
    errors = []
    for rows in (1, 100):
        monkeypatch.setattr(output, "piece_rows", lambda *_, rows=rows: rows)
        loss = weighted_loss(head, hidden, targets)
        found = torch.autograd.grad(loss, (head.output.weight, head.output.bias))
        assert {gradient.dtype for gradient in found} == {torch.bfloat16}
        pairs = zip(found, expected, strict=True)
        errors.append([float((one - other).norm() / other.norm()) for one, other in pairs])
    assert max(errors[1]) < 1e-2
    assert all(by_row < 1.5 * at_once for by_row, at_once in zip(*errors, strict=True))


@pytest.mark.parametrize("cap", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "rows"), [(1000, 3000), (20000, 50), (20000, 200)])
def test_logits_take_what_is_set_whatever_the_vocabulary_and_the_rows(
    vocabulary: int, rows: int, dtype: torch.dtype, cap: float
) -> None:
    config = small_config(hidden_size=8, vocab_size=vocabulary, logit_softcap=cap, z_loss=0.1)
    head = Head(config, single_process()).to(dtype)
    hidden = torch.randn(rows, 8).to(dtype).requires_grad_()
    targets = (torch.arange(rows), torch.full((rows,), 7), torch.ones(rows))
    with LiveBytes([hidden, *head.parameters(), *targets]) as live:
        weighted_loss(head, hidden, targets, logits_mb=2).backward()
    # The gradients, twice while fp32 becomes bf16, and some columns of numbers per row.
    others = 8 * (vocabulary * 9 + 2 * rows * 8) + 120 * rows
    assert live.peak < 2e6 + others
    whole = 4 * rows * vocabulary
    assert whole > 1.9e6
    assert piece_rows(config, 1, dtype.itemsize, 2) < rows
