"""No process of these tests outlives its test."""

from collections.abc import Iterator

import pytest

from tests.e2e.runs import kill_started


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    kill_started()
