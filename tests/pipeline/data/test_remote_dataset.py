"""Datasets at an address: the rows of the folder, whatever happens to server and cache."""

import gc
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.files import sha256_of_file
from esolm.data_prep.layout import MEMBER_TOKENS
from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.data import remote_dataset, remote_folder
from esolm.pipeline.data.block_cache import SMALLEST_BYTES, CachePlace
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.mixture import MixtureReader, MixtureSource
from esolm.pipeline.train.check_data import share_problems
from tests.ftp import FtpServer
from tests.http_ranges import RangeServer
from tests.pipeline.data.test_checked_reading import flip

LENGTH = 3000


@pytest.fixture
def server(copy_path: Path) -> RangeServer:
    """Serves a copy of the dataset, which the test may change."""
    return RangeServer(copy_path.parent)


@pytest.fixture
def url(server: RangeServer) -> Iterator[str]:
    with server.started() as url:
        yield f"{url}/data"


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    return CachePlace(str(tmp_path / "cache"), SMALLEST_BYTES)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "WAITS", (0.01, 0.01))


def rows_of(data: TokenDataset) -> np.ndarray:
    """Rows all over a split, at the ends of its members and shards as well."""
    starts = np.random.default_rng(0).integers(0, data.num_tokens - LENGTH, 60)
    ends = np.cumsum([shard.num_tokens for shard in data.shards])[:-1]
    starts = np.concatenate([starts, [0, MEMBER_TOKENS - 1], ends - 1, ends])
    return data.read_many(np.minimum(starts, data.num_tokens - LENGTH), LENGTH)


def counts(data: TokenDataset) -> remote_dataset.FetchCounts:
    assert data.remote is not None
    return data.remote.counts


def blocks(place: CachePlace) -> list[Path]:
    return sorted(place.folder.glob("blocks/*/*-*"))


def block_of(place: CachePlace, data: TokenDataset, shard: int) -> Path:
    (found,) = place.folder.glob(f"blocks/*/{data.shards[shard].sha256}-000000")
    return found


def test_rows_of_an_address_are_those_of_the_folder(
    server: RangeServer, url: str, copy_path: Path, place: CachePlace, tmp_path: Path
) -> None:
    ftp, memory = FtpServer(copy_path.parent), fsspec.filesystem("memory")
    memory.put(str(copy_path), "/remote-rows", recursive=True)
    ftp.start()
    try:
        for number, address in enumerate((url, f"{ftp.url}/data/", "memory://remote-rows")):
            own = CachePlace(f"{place.directory}-{number}", place.num_bytes)
            for split in ("train", "valid"):
                local, remote = (
                    TokenDataset(path, split, cache=own) for path in (copy_path, address)
                )
                assert remote.fingerprint == local.fingerprint
                assert (rows_of(remote) == rows_of(local)).all()
                assert (rows_of(remote) == rows_of(local)).all()
                found = counts(remote)
                assert found.hits == found.parts // 2, "the second time all are here"
                assert "s3cret" not in f"{remote.name} {remote.place}"
    finally:
        ftp.stop()
        memory.rm("/remote-rows", recursive=True)
    asked = len(server.paths)
    again = TokenDataset(url, "train", cache=CachePlace(f"{place.directory}-0"))
    rows_of(again)
    assert counts(again).fetched == 0
    assert server.paths[asked:] == [], "a later process of the node needs nothing but a HEAD"
    assert isinstance(TokenDataset(f"file://{copy_path}", "train").remote, type(None))


def test_a_batch_is_fetched_at_once_and_a_member_only_once(
    server: RangeServer, url: str, place: CachePlace
) -> None:
    data = TokenDataset(url, "train", cache=place)
    server.paths.clear()
    server.delay, server.busiest = 0.05, 0
    rows_of(data)
    members = sum(-(-shard.num_tokens // MEMBER_TOKENS) for shard in data.shards)
    assert sorted(server.paths) == sorted(
        f"/data/{name}"
        for shard in data.shards
        for name in [shard.crc_name, *[shard.name] * -(-shard.num_tokens // MEMBER_TOKENS)]
    )
    assert len(blocks(place)) == members
    assert server.busiest >= 3, "requests wait for each other"


def test_damage_of_the_cache_is_fetched_again_and_counted(
    url: str, copy_path: Path, place: CachePlace
) -> None:
    expected = rows_of(TokenDataset(copy_path, "train"))
    data = TokenDataset(url, "train", cache=place)
    rows_of(data)
    flip(block_of(place, data, 0), 4096)
    os.truncate(block_of(place, data, 1), 50)
    (checksums,) = place.folder.glob(f"blocks/*/{data.shards[0].crc_sha256}")
    flip(checksums, 0)
    (manifest,) = place.folder.glob("datasets/*/*/manifest.json")
    flip(manifest, 10)
    data = TokenDataset(url, "train", cache=place)
    assert (rows_of(data) == expected).all()
    assert counts(data).damaged == 3
    assert (rows_of(data) == expected).all()
    assert counts(data).damaged == 3, "what was damaged has been put right"


def test_a_server_that_stumbles_is_asked_again(
    server: RangeServer, url: str, copy_path: Path, place: CachePlace
) -> None:
    server.statuses = [503, -1]
    data = TokenDataset(url, "train", cache=place)
    server.statuses = [500, -1, 0, 429, 0, -1]
    assert (rows_of(data) == rows_of(TokenDataset(copy_path, "train"))).all()


def test_a_server_that_is_gone_is_one_error_and_no_damage(
    server: RangeServer, copy_path: Path, place: CachePlace
) -> None:
    with server.started() as url:
        port = int(url.rpartition(":")[2])
        data = TokenDataset(f"{url}/data", "train", cache=place)
    gone = rf"^{url}/data/shards/.* could not be read in 3 tries .*run the same command again"
    with pytest.raises(EsolmError, match=gone) as caught:
        rows_of(data)
    assert not isinstance(caught.value, DataError)
    with pytest.raises(EsolmError, match=rf"^{url}/data/manifest\.json could not be read"):
        TokenDataset(f"{url}/data", "train", cache=place)
    with server.started(port):
        assert (rows_of(data) == rows_of(TokenDataset(copy_path, "train"))).all()


def test_what_is_missing_or_forbidden_is_said_at_once(
    server: RangeServer, url: str, copy_path: Path, place: CachePlace
) -> None:
    with pytest.raises(DataError, match=rf"{url}/no/manifest\.json does not exist"):
        TokenDataset(f"{url}/no", "train", cache=place)
    with pytest.raises(DataError, match="foo://bar cannot be opened"):
        TokenDataset("foo://bar", "train", cache=place)
    shard = read_manifest(copy_path).splits["train"][1]
    (copy_path / shard.name).rename(copy_path / "away")
    with pytest.raises(DataError, match=rf"{url}/{shard.name}: missing"):
        TokenDataset(url, "train", cache=place)
    (copy_path / "away").rename(copy_path / shard.name)
    os.truncate(copy_path / shard.name, 1000)
    with pytest.raises(DataError, match=rf"{url}/{shard.name}: cut short, .* 1000 found"):
        TokenDataset(url, "train", cache=place)
    data = TokenDataset(url, "train", cache=place, may_be_short=True)
    with pytest.raises(DataError, match=rf"{url}/{shard.name}, member 0, byte .* cut short"):
        data.read(data.shards[0].num_tokens + 3000, 10)
    server.statuses = [403] * 3
    asked = len(server.paths)
    with pytest.raises(DataError, match=r"may not be read .*403"):
        data.read(0, 10)
    assert len(server.paths) == asked + 1


def test_a_server_without_parts_of_files_is_refused(
    server: RangeServer, url: str, place: CachePlace
) -> None:
    server.gives_parts = False
    with pytest.raises(DataError, match="does not give parts of files"):
        TokenDataset(url, "train", cache=place)


def test_damage_at_the_address_is_named_and_looked_at_anew(
    server: RangeServer, url: str, copy_path: Path, place: CachePlace
) -> None:
    shard = read_manifest(copy_path).splits["train"][0]
    flip(copy_path / shard.name, 512 + 2 * 5000)
    data = TokenDataset(url, "train", cache=place)
    found = rf"^{url}/{shard.name}, member 0, byte {512 + 2 * 4096}: the next 1024"
    for _ in range(2):
        with pytest.raises(DataError, match=found):
            data.read(4500, 600)
    asked = len(server.paths)
    assert (data.read(0, 4096) == TokenDataset(copy_path, "train").read(0, 4096)).all()
    assert len(server.paths) == asked, "other rows of the member do not fetch it again"
    flip(copy_path / shard.name, 512 + 2 * 5000)
    assert len(data.read(4500, 600)) == 600, "it was put right there"
    assert counts(data).damaged == 1, "the copy of before"


def test_a_dataset_that_was_made_anew_is_seen(
    url: str, copy_path: Path, data_path: Path, place: CachePlace
) -> None:
    """Its manifest has another size or time; blocks are known by what they hold."""
    before = TokenDataset(url, "train", cache=place)
    rows_of(before)
    (copy_path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json does not exist"):
        TokenDataset(url, "train", cache=place)
    shutil.copy(data_path / "manifest.json", copy_path)
    again = TokenDataset(url, "train", cache=place)
    rows_of(again)
    assert again.fingerprint == before.fingerprint
    assert counts(again).fetched == 0


def test_format_1_is_refused(tmp_path: Path, place: CachePlace) -> None:
    old = Path(__file__).parents[2] / "data" / "dataset_format_1"
    (found,) = (path.parent for path in old.rglob("manifest.json"))
    with (
        RangeServer(found).started() as url,
        pytest.raises(DataError, match=r"is of format 1.*not used unchecked"),
    ):
        TokenDataset(url, "train", cache=place)


def test_a_full_disk_is_warned_of_once_and_read_past(
    url: str,
    copy_path: Path,
    mounted: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = mounted("size=1m,mode=777")
    data = TokenDataset(url, "train", cache=CachePlace(str(disk / "cache"), SMALLEST_BYTES))
    with pytest.raises(OSError, match="No space"):
        (disk / "filling").write_bytes(bytes(2 << 20))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (rows_of(data) == rows_of(TokenDataset(copy_path, "train"))).all()
    (warning,) = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert re.search("No space left on device.*is used and not kept", warning)
    full = CachePlace(str(disk / "other"))
    with pytest.raises(EsolmError, match=rf"data\.cache_dir {disk}/other cannot be .*[Nn]ame a f"):
        TokenDataset(url, "train", cache=full)


def test_a_forked_process_reads_on(url: str, copy_path: Path, place: CachePlace) -> None:
    data, local = (TokenDataset(p, "train", cache=place) for p in (url, copy_path))
    assert (data.read(0, 100) == local.read(0, 100)).all(), "connections and threads are there"
    gc.collect()  # connections that other tests have left
    child = os.fork()
    if child == 0:
        os._exit(0 if (rows_of(data) == rows_of(local)).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (rows_of(data) == rows_of(local)).all()


def test_a_mixture_of_a_folder_and_an_address(
    source_folders: dict[str, Path], place: CachePlace
) -> None:
    with RangeServer(source_folders["a"].parent).started() as url:
        local, remote = (
            MixtureReader(
                [
                    MixtureSource("a", TokenDataset(source_folders["a"], "train"), 2),
                    MixtureSource("b", TokenDataset(path, "train", False, place), 1),
                ],
                32,
                seed=3,
            )
            for path in (source_folders["b"], f"{url}/b")
        )
        samples = np.arange(400)
        assert (remote.read(samples) == local.read(samples)).all()
    assert remote.state(7)["segments"][0]["shares"][1]["path"] == f"{url}/b"
    assert local.adopt(remote.state(7)) == [], "it is the same source wherever it lies"


def test_what_a_start_may_look_at(url: str, copy_path: Path, place: CachePlace) -> None:
    def problems(verify: str) -> list[str]:
        data = TokenDataset(url, "train", cache=place)
        return share_problems(data, verify, 1, lambda num_bytes: None, 0, 1)

    assert problems("sampled") == problems("full") == []
    shard = read_manifest(copy_path).splits["train"][0]
    flip(copy_path / shard.name, 512)
    os.truncate(copy_path / shard.ends_name, 20)
    assert problems("full") == [
        f"{url}/{shard.name}: changed, sha256 {shard.sha256} expected, "
        f"{sha256_of_file(copy_path / shard.name)} found",
        f"{url}/{shard.ends_name}: cut short, {shard.ends_bytes} bytes expected, 20 found",
    ]
