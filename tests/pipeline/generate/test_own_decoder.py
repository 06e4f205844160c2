"""The example of the bundle's `walks_esolm` writes text through `generate`."""

import pytest
import torch

from esolm.pipeline.export.bundle import walks_esolm
from tests.examples import example_of
from tests.pipeline.generate.systems import MASK_ID, System, written_by


def test_a_decoder_in_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(walks_esolm.WALKS, "at_once", None)  # so that it is gone afterwards
    example_of(walks_esolm)
    network = System("mdlm").model
    monkeypatch.setattr(network.config, "objective", "at_once")
    prompt = torch.tensor([[3, 1]])
    written = written_by(network, prompt, length=12, temperature=0.0)
    assert written.nfe == int(written.num_diffusion) == 1
    assert written.num_written == 10
    fed = torch.full((1, 12), MASK_ID)
    fed[:, :2] = prompt
    likeliest = network(fed, attention_pattern="bidirectional").logits.argmax(-1)
    assert torch.equal(written.sequences[:, :2], prompt)
    assert torch.equal(written.sequences[:, 2:], likeliest[:, 2:])
    drawn = [network.generate(prompt, length=12, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not network.has_cache
