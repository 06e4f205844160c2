"""Likelihoods under drawn orders of variant A, as decoded and as published, by enumeration."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from esolm.model.network import Network
from esolm.model.objectives import EsoLM
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.likelihood import Settings, measure
from esolm.pipeline.evaluate.passes import Passes, Schedule
from esolm.pipeline.evaluate.rows import dataset_rows
from esolm.pipeline.evaluate.show import likelihood_text
from esolm.pipeline.evaluate.subject import Subject, open_subject
from esolm.pipeline.parallel.bootstrap import ProcessInfo
from tests.model.conftest import make_network
from tests.model.enumeration import LENGTH, MASK_ID, SEQUENCES
from tests.model.reference import ReferenceNetwork, stepwise_log_p

__all__ = ["make_network"]

ALPHA_0, CHOSEN, ROWS, ORDERS = 0.5, SEQUENCES[20], 100, 60
CPU, ALONE = torch.device("cpu"), ProcessInfo(0, 1, 0)


def exact_likelihood(network: ReferenceNetwork, orders_as: str) -> float:
    """p, summed over all prefixes of all sizes; the rest of an order is left to right."""
    p = 0.0
    for size in range(LENGTH + 1):
        for front in itertools.permutations(range(LENGTH), size):
            order = front + tuple(i for i in range(LENGTH) if i not in front)
            chance = ALPHA_0**size * (1 - ALPHA_0) ** (LENGTH - size) / math.factorial(size)
            prefix = size if orders_as == "decoder" else 0
            log_p = stepwise_log_p(network.logits, CHOSEN, order, prefix, MASK_ID)
            p += chance * math.exp(log_p.sum())
    return p


def test_both_kinds_reach_their_own_exact_likelihood(make_network: Callable[..., Network]) -> None:
    """The mean of p over orders is p; they are drawn and fed by the code of `esolm evaluate`."""
    network = make_network(scale=0.3, hidden_size=8, ffn_hidden_size=16, vocab_size=4)
    reference = ReferenceNetwork(network.config, dict(network.named_parameters()))
    objective = EsoLM(MASK_ID, ALPHA_0, kappa=0.5, variant="A", low_variance=False)
    subject = Subject(
        path=Path("none"), kind="checkpoint", step=0, weights="ema", logits=network.all_logits,
        objective=objective, seq_len=LENGTH, vocab_size=4, mask_id=MASK_ID, fingerprint=None,
        tokenizer=None,
    )  # fmt: skip
    schedule = Schedule(objective, ROWS, LENGTH, seed=2)
    tokens, index = CHOSEN.expand(ROWS, LENGTH).numpy(), np.arange(ROWS)
    exact, found = {}, {}
    for orders_as in ("decoder", "published"):
        passes = Passes(subject, objective, schedule, 1, ORDERS, orders_as)
        log_p = torch.from_numpy(passes.run(tokens, index, np.zeros(ROWS, np.int64)).orders)
        found[orders_as] = log_p.exp().flatten()
        exact[orders_as] = exact_likelihood(reference, orders_as)
    for orders_as, p in found.items():
        error = float(p.std()) / math.sqrt(len(p))
        assert float(p.mean()) == pytest.approx(exact[orders_as], abs=3 * error), orders_as
        assert abs(exact["decoder"] - exact["published"]) > 10 * error, "the two should differ"


def test_the_report_says_whose_likelihood_it_is(
    make_run: Callable[[str], Path], dataset: Path
) -> None:
    single = {}
    for name in ("esolm_a", "esolm_b"):
        subject = open_subject(make_run(name), None, CPU)
        rows = dataset_rows(dataset, "valid", subject, None, 4)
        for orders_as in ("decoder", "published"):
            settings = Settings(1, 3, orders_as=orders_as)
            report = measure(subject, subject.objective, rows, settings, ALONE)
            assert report is not None
            orders = report["orders"]
            assert orders["as"] == orders_as
            assert f"the likelihood of {orders['of']}" in likelihood_text(report)
            single[name, orders_as] = orders["single"]["nats_per_token"], orders["of"]
    assert single["esolm_b", "decoder"] == single["esolm_b", "published"]
    assert single["esolm_b", "decoder"][1].endswith("the published code alike")
    assert single["esolm_a", "decoder"][0] != single["esolm_a", "published"][0]
    assert single["esolm_a", "decoder"][1] == "the network's own decoder"
    assert single["esolm_a", "published"][1] == "the published code: causal, no prefix"
    with pytest.raises(ConfigError, match="choose decoder or published"):
        measure(subject, subject.objective, rows, replace(settings, orders_as="b"), ALONE)
