"""One cluster for all tests of this folder, and the figures that they measure."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import MiniCluster, why_not

FIGURES: dict[str, str] = {}


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    """The cluster, which this process and those it starts talk to."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    cluster = MiniCluster(tmp_path_factory.mktemp("cluster"))
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(cluster.environment(), OMP_NUM_THREADS="1")
    try:
        yield cluster
    finally:
        os.environ.clear()
        os.environ.update(before)
        cluster.stop()


@pytest.fixture
def cluster(slurm: MiniCluster) -> Iterator[MiniCluster]:
    """The cluster with an empty queue, left with an empty queue."""
    slurm.empty()
    yield slurm
    slurm.empty()


@pytest.fixture(scope="session")
def figures() -> dict[str, str]:
    """What was measured on the way; shown at the end of the test run."""
    return FIGURES


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents in a file."""
    from tests.data_prep.corpus import write_jsonl

    return write_jsonl(tmp_path_factory.mktemp("corpus") / "text.jsonl", 60)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("Slurm figures")
        for name, value in FIGURES.items():
            terminalreporter.line(f"{name}: {value}")
