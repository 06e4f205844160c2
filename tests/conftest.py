"""Fixtures that more than one package of tests uses."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.data_prep.corpus import make_job, make_tokenizer, run_job, write_jsonl


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared dataset with a train and a valid split, 400 pieces."""
    folder = tmp_path_factory.mktemp("dataset")
    tokenizer = make_tokenizer(folder / "tokenizer")
    source = write_jsonl(folder / "text.jsonl", 60)
    run_job(make_job(source, tokenizer, folder / "data", valid_fraction=0.2), tokenizer)
    return folder / "data"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with options on a folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a small file system")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    """For tests that run `esolm train` in their own process.

    It ignores stop signals as it leaves, which processes that are started later would inherit.
    """
    from esolm.pipeline.launch.stop import STOP_SIGNALS

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
