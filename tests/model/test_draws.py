"""The draws are part of every result: these values must never change."""

import numpy as np
import pytest

from esolm.model.objectives import SampleKeys
from esolm.model.objectives.draws import Purpose

KEYS = SampleKeys(7, np.array([0, 5, 2**40]), np.array([0, 1, 2]), 3)

GOLDEN = {
    Purpose.MASK: [
        [0.8720734548204873, 0.29536538151378355, 0.4200976785072422],
        [0.7191169370788352, 0.2079073730061275, 0.7148627944244397],
        [0.5188368605496356, 0.23336708530418393, 0.9107892721165937],
    ],
    Purpose.ORDER: [
        [0.8824668302545412, 0.3690383346754841, 0.5170696944527113],
        [0.09388298046415022, 0.7016538897746144, 0.5738509490839041],
        [0.17415337176346413, 0.28338064693130294, 0.4075012438049369],
    ],
    Purpose.TIME: [
        [0.36654848046680033, 0.39989196903035706, 0.8479983815736046],
        [0.8563856844682307, 0.8173825625393666, 0.9443493262859304],
        [0.9847129653193508, 0.8438556294907589, 0.8847480107480725],
    ],
    Purpose.DROPOUT: [
        [0.4821286018761155, 0.7241355726248441, 0.05025403948627161],
        [0.8654059198697934, 0.2891518023255981, 0.4827342754459758],
        [0.4861834306971585, 0.9628071731947808, 0.8854130241784414],
    ],
}


@pytest.mark.parametrize("purpose", Purpose)
def test_values_are_frozen(purpose: Purpose) -> None:
    assert KEYS.uniforms(purpose, 3).tolist() == GOLDEN[purpose]


def test_dropout_keys_are_frozen() -> None:
    expected = [8893702929424106994, -2482822549998276282, 8968501318948588953]
    assert KEYS.dropout_keys().tolist() == expected


def test_draws_belong_to_the_sample_alone() -> None:
    """Not to its place in a micro-batch, nor to how many were drawn for whom."""
    alone = SampleKeys(7, np.array([5]), np.array([0]), 99)
    assert (alone.uniforms(Purpose.MASK, 100)[0, :3] == GOLDEN[Purpose.MASK][1]).all()


def test_seeds_samples_and_purposes_differ() -> None:
    draws = [
        SampleKeys(seed, np.array([sample]), np.array([0]), 1).uniforms(purpose, 4)[0].tolist()
        for seed in (0, 1, 2**64 - 1)
        for sample in (0, 1, 2**63 - 1)
        for purpose in Purpose
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_draws_are_uniform() -> None:
    index = np.arange(100)
    draws = SampleKeys(1, index, index, 100).uniforms(Purpose.MASK, 1000).ravel()
    counts = np.histogram(draws, bins=20, range=(0.0, 1.0))[0]
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 45  # 19 degrees of freedom; the chance of more is 0.0007
    # Neighbouring samples are not correlated.
    table = draws.reshape(100, 1000)
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.015
