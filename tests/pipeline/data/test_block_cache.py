"""The folder of fetched blocks: bounded, shared by processes, and whole whenever one is killed."""

import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from esolm.data_prep.errors import DataError
from esolm.pipeline.data import block_cache
from esolm.pipeline.data.block_cache import PARTS, BlockCache, CachePlace

SIZE = 1000
FORK = get_context("fork")


def content_of(name: str) -> bytes:
    return (name * SIZE).encode()[:SIZE]


def read(cache: BlockCache, name: str) -> bytes | None:
    descriptor = cache.open(name)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 2 * SIZE, 0)
    finally:
        os.close(descriptor)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("blocks/*/*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    """Room for ten blocks in each of its parts."""
    return CachePlace(str(tmp_path / "cache"), 10 * SIZE * PARTS)


def test_the_least_recently_used_go_first_and_the_bound_holds(
    place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_cache, "TOUCH_SECONDS", 0.0)
    cache = BlockCache(place)
    folder = cache._path("0").parent
    names = [n for n in map(str, range(4000)) if cache._path(n).parent == folder]
    for number, name in enumerate(names[:10]):
        cache.put(name, content_of(name))
        os.utime(cache._path(name), (number, number))
    assert read(cache, names[0]) == content_of(names[0]), "it is used now"
    cache.put(names[10], content_of(names[10]))
    here = {name for name in names if read(cache, name) is not None}
    assert here == {names[0], *names[3:11]}, "room was made down to nine tenths"
    for name in names:
        cache.put(name, content_of(name))
        assert len(list(folder.iterdir())) <= 10
    cache.put("large", bytes(10 * SIZE))
    assert read(cache, "large") is None, "it would take all of its part"


def test_what_killed_writers_left_goes_when_room_is_made(place: CachePlace) -> None:
    cache = BlockCache(place)
    folder = cache._path("0").parent
    left, written = folder / "x.0.tmp", folder / "y.1.tmp"
    for path in (left, written):
        path.write_bytes(bytes(4 * SIZE))
    os.utime(left, (1, 1))
    names = [n for n in map(str, range(4000)) if cache._path(n).parent == folder]
    for name in names[:11]:
        cache.put(name, content_of(name))
    assert not left.exists()
    assert written.exists(), "its writer may be alive"


def use(place: CachePlace, seed: int, seconds: float) -> None:
    """Reads and writes blocks at random; ends with 1 at the first that is not whole."""
    cache, draws = BlockCache(place), random.Random(seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        name = str(draws.randrange(1500))
        found = read(cache, name)
        if found is None:
            cache.put(name, content_of(name))
        elif found != content_of(name):
            os._exit(1)
    os._exit(0)


def test_processes_share_it_and_may_be_killed(place: CachePlace) -> None:
    cache = BlockCache(place)
    for round_of_kills in range(4):
        workers = [FORK.Process(target=use, args=(place, n, 60)) for n in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(0.02 * (1 + round_of_kills % 4))
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
    last = [FORK.Process(target=use, args=(place, n, 0.5)) for n in range(3)]
    for worker in last:
        worker.start()
    for worker in last:
        worker.join()
    assert [worker.exitcode for worker in last] == [0, 0, 0]
    whole = [path for path in files(place.folder) if path.suffix != ".tmp"]
    assert len(whole) > 5 * PARTS
    assert all(path.read_bytes() == content_of(path.name) for path in whole)
    assert sum(path.stat().st_size for path in whole) <= place.num_bytes
    with cache.fetching("x"), cache.locked("y"):  # nobody holds what a killed process held
        pass


def fetch_once(place: CachePlace) -> None:
    """As a reader does: who comes later waits, and finds the block."""
    cache = BlockCache(place)
    with cache.fetching("block"):
        if cache.open("block") is None:
            time.sleep(0.2)
            (place.folder / f"fetched-by-{os.getpid()}").touch()
            cache.put("block", bytes(SIZE))
    os._exit(0)


def test_a_block_is_fetched_by_one_process(place: CachePlace) -> None:
    workers = [FORK.Process(target=fetch_once, args=(place,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(list(place.folder.glob("fetched-by-*"))) == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache_dir .*/file/cache cannot be used .*name a f"):
        BlockCache(CachePlace(str(tmp_path / "file" / "cache")))
    others = tmp_path / "others"
    others.mkdir()
    if os.getuid() == 0:
        os.chown(others, 12345, 12345)
        with pytest.raises(DataError, match=r"others belongs to another user"):
            BlockCache(CachePlace(str(others)))
