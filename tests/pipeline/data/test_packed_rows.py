"""`data.packing: best_fit`: what the index says, and what a run reads by it."""

import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import typer
from typer.testing import CliRunner

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.packing import pack
from esolm.data_prep.packing_index import PackJob, is_packed, record_path
from esolm.model.documents import document_of, place_of, standing
from esolm.pipeline.cli import prep
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.mixture import MixtureReader, MixtureSource
from esolm.pipeline.data.reader import SampleReader
from tests.damages import emptied, flipped, removed, truncated
from tests.pipeline.data.test_reader import whole_stream

Int64Array = npt.NDArray[np.int64]
LENGTHS = (64, 1500)


def run_pack(data: Path, *options: str, lengths: str = "64,1500") -> str:
    app = typer.Typer()
    app.add_typer(prep.app, name="prep")
    found = CliRunner().invoke(app, ["prep", "pack", str(data), "--seq-len", lengths, *options])
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture(scope="module")
def packed_path(data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "data"
    shutil.copytree(data_path, folder)
    run_pack(folder)
    return folder


@pytest.fixture
def damaged_path(packed_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed_path, tmp_path / "data")
    return tmp_path / "data"


def rows_of(dataset: TokenDataset, length: int) -> list[list[Int64Array]]:
    """The pieces of every row, of the tokens that webdataset reads and of where documents end."""
    stream = whole_stream(dataset.path, dataset.split)
    rows, first = [], 0
    for shard in dataset.shards:
        packed = pack(np.load(dataset.path / shard.ends_name).astype(np.int64), length)
        places = zip(packed.starts + first, packed.sizes, strict=True)
        pieces = [stream[start : start + size].astype(np.int64) for start, size in places]
        rows += [pieces[a:b] for a, b in pairwise(packed.firsts)]
        first += shard.num_tokens
    return rows


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_epoch_has_every_row_once(packed_path: Path, split: str, length: int) -> None:
    dataset = TokenDataset(packed_path, split)
    expected = [np.concatenate(row).tolist() for row in rows_of(dataset, length)]
    reader = SampleReader(dataset, length, 3, packing="best_fit")
    assert reader.num_sequences == len(expected) > 3
    assert 0 <= dataset.num_tokens - len(expected) * length < length * len(dataset.shards)
    numbers = np.arange(reader.num_sequences)
    assert sorted(reader.read(numbers + 7 * len(numbers)).tolist()) == sorted(expected)
    in_order = SampleReader(dataset, length, 3, "none", "best_fit")
    assert in_order.read(numbers).tolist() == expected


def test_separate_documents_are_the_pieces(packed_path: Path) -> None:
    """What the rows' eos tell apart never crosses from one document into another."""
    dataset = TokenDataset(packed_path, "train")
    reader = SampleReader(dataset, 1500, 3, "none", "best_fit")
    tokens = torch.from_numpy(reader.read(np.arange(reader.num_sequences)))
    where = standing(tokens, dataset.eos_id)
    for row, places, documents in zip(
        rows_of(dataset, 1500), place_of(where), document_of(where), strict=True
    ):
        assert places.tolist() == [place for piece in row for place in range(len(piece))]
        numbers = [number for number, piece in enumerate(row) for _ in piece]
        assert documents.tolist() == numbers


def test_batches_are_the_same_for_every_number_of_ranks_and_after_restarts(
    packed_path: Path,
) -> None:
    reader = SampleReader(TokenDataset(packed_path, "train"), 1500, 3, packing="best_fit")
    start = 3 * reader.num_sequences // 2
    whole = reader.read(start + np.arange(48))
    for ranks in (2, 4):
        parts = []
        for part in np.split(start + np.arange(48), ranks):
            again = SampleReader(TokenDataset(packed_path, "train"), 1500, 3, packing="best_fit")
            again.check_state(reader.state(start))
            parts.append(again.read(part))
        assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert reader.state(5)["packing"] == "best_fit"
    plain = SampleReader(TokenDataset(packed_path, "train"), 1500, 3)
    with pytest.raises(DataError, match="packing: best_fit in the checkpoint, continuous here"):
        plain.check_state(reader.state(start))


@pytest.mark.parametrize("shuffle", ["global", "none"])
def test_rows_of_a_mixture_are_those_of_its_sources(
    shuffle: str, source_folders: dict[str, Path], tmp_path: Path
) -> None:
    for name in "ace":
        shutil.copytree(source_folders[name], tmp_path / name)
        run_pack(tmp_path / name, lengths="64")
    datasets = {name: TokenDataset(tmp_path / name, "train") for name in "ace"}
    mixed = [MixtureSource(name, datasets[name], 1 + number) for number, name in enumerate("ace")]
    reader = MixtureReader(mixed, 64, 3, shuffle, "best_fit")
    own = [SampleReader(datasets[name], 64, 3, shuffle, "best_fit") for name in "ace"]
    numbers = np.array([*range(1500), *range(10**9, 10**9 + 50)])
    np.random.default_rng(0).shuffle(numbers)
    found, occurrences = reader.index.locate(numbers)
    expected = np.stack(
        [own[s].read(np.array([n]))[0] for s, n in zip(found, occurrences, strict=True)]
    )
    assert (reader.read(numbers) == expected).all()
    assert [use.num_sequences for use in reader.uses(9)] == [each.num_sequences for each in own]
    alone = MixtureReader(mixed[:1], 64, 3, shuffle, "best_fit")
    assert (alone.read(numbers[:9]) == own[0].read(numbers[:9])).all()
    assert reader.state(3)["packing"] == "best_fit"


def test_the_bytes_do_not_depend_on_workers_and_what_is_done_is_skipped(
    data_path: Path, packed_path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(data_path, data)
    job = PackJob.of(data, LENGTHS)
    assert "0 skipped" in run_pack(data, "--workers", "2")
    for path in sorted(packed_path.rglob("packing/**/*")):
        again = data / path.relative_to(packed_path)
        assert path.is_dir() or path.read_bytes() == again.read_bytes()
    left = job.data / "packing" / "best_fit-64"
    arrays = sorted(left.glob("*.npy"))
    truncated(arrays[0])
    arrays[1].with_suffix(".json").write_text("{")
    removed(arrays[2])
    record_path(data, 64).unlink()
    assert [n for n in range(job.num_tasks) if not is_packed(job, n)] == [0, 1, 2]
    assert "3 shards packed" in run_pack(data)
    for path in sorted(packed_path.rglob("packing/**/*")):
        again = data / path.relative_to(packed_path)
        assert path.is_dir() or path.read_bytes() == again.read_bytes()


def test_the_command_says_what_it_made(packed_path: Path) -> None:
    said = run_pack(packed_path)
    assert f"0 shards packed, {2 * len(read_manifest(packed_path).shards)} skipped" in said
    assert "rows of 1,500 tokens without padding" in said
    line = next(
        each for each in said.splitlines() if each.startswith("train: ") and "1,500" in each
    )
    cut, straight = (float(part.split("%")[0].split()[-1]) for part in line.split(", ")[-2:])
    assert cut < straight


def test_opening_reads_no_array(damaged_path: Path) -> None:
    for path in (damaged_path / "packing").rglob("*.npy"):
        content = bytes(path.stat().st_size)
        path.write_bytes(content)
    dataset = TokenDataset(damaged_path, "train")
    reader = SampleReader(dataset, 64, 3, packing="best_fit")
    with pytest.raises(DataError, match=r"train-0000.*\.npy: changed, sha256"):
        reader.read(np.arange(4))


@pytest.mark.parametrize("damage", [flipped, truncated, emptied, removed])
def test_damage_of_an_array_is_named(damage: Callable[[Path], None], damaged_path: Path) -> None:
    dataset = TokenDataset(damaged_path, "train")
    path = sorted((damaged_path / "packing" / "best_fit-64").glob("train*.npy"))[0]
    damage(path)
    with pytest.raises(DataError, match=rf"{path.name}: .*expected"):
        SampleReader(dataset, 64, 3, "none", "best_fit").read(np.arange(4))
    app = typer.Typer()
    app.add_typer(prep.app, name="prep")
    found = CliRunner().invoke(app, ["prep", "verify", str(damaged_path)])
    assert isinstance(found.exception, DataError)
    assert path.name in str(found.exception)
    assert f"esolm prep pack {damaged_path} --seq-len 64" in str(found.exception)


def test_an_array_cut_short_in_use_is_an_error(damaged_path: Path) -> None:
    dataset = TokenDataset(damaged_path, "train")
    reader = SampleReader(dataset, 64, 3, "none", "best_fit")
    reader.read(np.arange(4))
    os.truncate(sorted((damaged_path / "packing" / "best_fit-64").glob("train*.npy"))[0], 600)
    with pytest.raises(DataError, match="cut short while in use"):
        reader.read(np.arange(8, 200))


def test_an_index_of_other_tokens_or_none_names_the_command(
    data_path: Path, damaged_path: Path, source_folders: dict[str, Path]
) -> None:
    command = f"esolm prep pack {damaged_path} --seq-len"
    dataset = TokenDataset(damaged_path, "train")
    with pytest.raises(DataError, match=f"no index of best_fit rows of 128 tokens.*{command} 128"):
        SampleReader(dataset, 128, 3, packing="best_fit")
    record = record_path(damaged_path, 64)
    record.write_text(record.read_text().replace('"num_cut": ', '"num_cut": 1'))
    with pytest.raises(DataError, match=f"is not what was written.*{command} 64"):
        SampleReader(dataset, 64, 3, packing="best_fit")
    other = source_folders["a"]
    shutil.copytree(damaged_path / "packing", other / "packing")
    try:
        with pytest.raises(DataError, match="is of other tokens or rows than"):
            SampleReader(TokenDataset(other, "train"), 1500, 3, packing="best_fit")
    finally:
        shutil.rmtree(other / "packing")
