"""Runs that compile: the same losses, and what becomes of a compiler that is not there."""

import json
from pathlib import Path

import pytest

from tests.e2e.runs import finish, losses, start, write_config

pytestmark = pytest.mark.dist


def config_of(folder: Path, dataset: Path) -> str:
    return str(write_config(folder, dataset, steps=3))


@pytest.mark.check
def test_compiled_pieces_leave_the_losses_as_they_are(dataset: Path, tmp_path: Path) -> None:
    """On two ranks that share the network, where collectives stand between the pieces."""
    backend = ("train.compile=always", "train.compile_backend=aot_eager")
    for name, settings in (("plain", ()), ("compiled", backend)):
        said = finish(
            start("train", config_of(tmp_path / name, dataset), *settings, "--ranks=2"), 0
        )
        assert ("graphs so far, in " in said) == (name == "compiled")
    assert losses(tmp_path / "plain" / "run") == losses(tmp_path / "compiled" / "run")
    found = json.loads((tmp_path / "compiled" / "run" / "env.json").read_text())
    assert found["kernels"]["compiled"] == "proved"


@pytest.mark.check
def test_a_missing_compiler_is_named_once_and_the_run_goes_on_or_ends(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = config_of(tmp_path, dataset)
    strict = finish(start("train", config, "parallel.tp=1", "train.compile=strict"), 64)
    assert "train.compile is strict, and compiled pieces were left out: " in strict
    assert "Traceback" not in strict
    said = finish(start("train", config, "parallel.tp=1", "train.compile=always"), 0)
    assert said.count("compiled: left out: ") == 1
    assert "no-such-compiler" in said
    assert not (tmp_path / "run" / "compiled").exists()


@pytest.mark.slow
def test_kernels_are_kept_for_restarts(dataset: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset)
    words = (config, "parallel.tp=1", "train.compile=strict", "model.num_layers=1")
    finish(start("train", *words, "train.steps=2"), 0)
    kept = {path for path in (tmp_path / "run" / "compiled").rglob("*") if path.is_file()}
    assert any(path.suffix == ".so" for path in kept)
    finish(start("train", *words, "train.steps=3"), 0)
    again = {path for path in (tmp_path / "run" / "compiled").rglob("*") if path.is_file()}
    assert {path for path in again - kept if path.suffix == ".so"} == set()
