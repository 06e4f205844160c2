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


@pytest.fixture(scope="session")
def source_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five small datasets of one tokenizer, and of other texts each, by the names a to e."""
    folder = tmp_path_factory.mktemp("sources")
    tokenizer = make_tokenizer(folder / "tokenizer")
    for number, name in enumerate("abcde"):
        text = write_jsonl(folder / f"{name}.jsonl", 8 + 4 * number, first=1000 * number)
        run_job(make_job(text, tokenizer, folder / name, valid_fraction=0.2), tokenizer)
    return {name: folder / name for name in "abcde"}


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


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="session")
def signals_of_the_session() -> tuple[dict[int, object], set[int]]:
    """What stop signals do in this process, and which are held back, before any test."""
    handlers = {int(number): signal.getsignal(number) for number in STOP_SIGNALS}
    return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.fixture(autouse=True)
def signals_as_before(signals_of_the_session: tuple[dict[int, object], set[int]]) -> Iterator[None]:
    """`esolm train` ignores stop signals as it leaves; processes started later would inherit that.

    Fixtures of a wider scope run it, too, so what counts is what was before all of them.
    """
    handlers, held = signals_of_the_session
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
