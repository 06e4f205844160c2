"""The vocabulary-parallel cross entropy of one rank against PyTorch's."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from tests.model.conftest import MASK_ID


@pytest.mark.parametrize(("scale", "z_loss"), [(0.1, 0.0), (1.0, 0.0), (30.0, 0.0), (1.0, 0.3)])
def test_equals_cross_entropy(
    make_network: Callable[..., Network], scale: float, z_loss: float
) -> None:
    head = make_network(z_loss=z_loss).head.float()
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(20, 12, generator=generator)
    hidden.requires_grad_()
    index = torch.tensor([1, 4, 5, 19])
    labels = torch.tensor([0, 10, 4, 7])
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0])
    loss = weighted_loss(head, hidden, (index, labels, weights))
    gradient = torch.autograd.grad(loss, hidden)[0]

    logits = F.linear(hidden[index], head.output.weight, head.output.bias)
    logits = logits[:, torch.arange(11) != MASK_ID]
    shifted = labels - (labels > MASK_ID).long()
    expected = (F.cross_entropy(logits, shifted, reduction="none") * weights).sum()
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected = expected + z_loss * (logits.logsumexp(1).square() * weights).sum()
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, hidden)[0], rtol=1e-4, atol=1e-6
    )


def test_a_label_that_cannot_be_predicted_is_not_hidden(
    make_network: Callable[..., Network],
) -> None:
    head = make_network().head.float()
    targets = (torch.tensor([0]), torch.tensor([MASK_ID]), torch.tensor([1.0]))
    assert weighted_loss(head, torch.randn(1, 12), targets).isinf()
