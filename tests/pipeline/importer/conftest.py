"""Imports without the fresh process, which takes seconds and has tests of its own."""

import pytest

from esolm.pipeline.export import gate


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "check_reload", lambda *_: ({}, {}))
