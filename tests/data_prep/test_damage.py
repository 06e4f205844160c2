"""Damage to any file of a dataset is found before a wrong token is used, and what is whole is not
taken for damaged.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import read_marker
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.merge import merge_tasks
from esolm.data_prep.verify import verify_dataset
from esolm.pipeline.data.dataset import TokenDataset
from tests.damages import DAMAGES
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, text_of, write_jsonl

FLIPS = 150


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = make_tokenizer(folder / "tokenizer")
    source = write_jsonl(folder / "text.jsonl", 40)
    settings = {"num_tasks": 2, "valid_fraction": 0.2, "metadata": (".",)}
    job = make_job(source, tokenizer, folder / "data", **settings)
    run_job(job, tokenizer)
    return folder / "data"


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def tokens(data: Path) -> list[list[int]]:
    """Every token of both splits."""
    splits = [TokenDataset(data, split) for split in ("train", "valid")]
    return [split.read(0, split.num_tokens).tolist() for split in splits]


def verify(data: Path) -> object:
    return verify_dataset(data, read_manifest(data), lambda num_bytes: None)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("manifest.json", read_manifest),
        ("shards/train-00001-00000.json", merge_tasks),
        ("tasks/task-00001-of-00002.json", merge_tasks),
        (
            "tasks/task-00000-of-00002.json",
            lambda data: read_marker(data, data / "tasks" / "task-00000-of-00002.json"),
        ),
    ],
)
def test_no_changed_byte_of_a_record_is_read(
    name: str, read: Callable[[Path], object], data: Path
) -> None:
    path, random = data / name, Random(name)
    content, before = path.read_bytes(), read(data)
    for place in random.sample(range(len(content)), min(FLIPS, len(content))):
        changed = bytearray(content)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DataError):
            read(data)
    path.write_bytes(content)
    assert read(data) == before


def test_a_dataset_of_the_format_before_is_read_with_a_note(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, path = tokens(data), data / "manifest.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["format_version"] = 1
    for shards in record["splits"].values():
        for shard in shards:
            os.remove(data / shard.pop("crc_name"))
            del shard["crc_bytes"], shard["crc_sha256"]
    path.write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING):
        assert tokens(data) == expected
    assert "is of format 1" in caplog.text
    verify(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found(
    damage: Callable[[Path], None], whole: Path, tmp_path: Path
) -> None:
    """By `verify`, and in the records of tasks by `merge` as well. What is read is right."""
    expected = tokens(whole)
    names = [p.relative_to(whole) for p in sorted(whole.rglob("*")) if p.is_file()]
    assert {name.suffix for name in names} == {".json", ".tar", ".npy", ".crc32", ".zst", ".model"}
    for number, name in enumerate(names):
        data = tmp_path / str(number)
        shutil.copytree(whole, data)
        damage(data / name)
        is_of_task = name.suffix == ".json" and name.parts[0] in ("tasks", "shards")
        with pytest.raises(DataError, match=f"{name.name}|{name.parts[0]}|not finished"):
            (merge_tasks if is_of_task else verify)(data)
        if (
            data.joinpath(name).exists() or name.parts[0] != "tasks"
        ):  # whole without a task's marker
            with pytest.raises(DataError, match=name.name.partition(".")[0]):
                verify(data)
        try:
            found = tokens(data)
        except DataError:
            continue
        assert found == expected, name


@pytest.mark.parametrize("kinds", ["tar", "tar crc32", "tar crc32 json", "tar crc32 json ends.npy"])
def test_a_shard_of_another_dataset_is_not_read(kinds: str, tmp_path: Path) -> None:
    """Files that belong together, of the right sizes, under the right names."""
    tokenizer, documents = make_tokenizer(tmp_path / "tokenizer"), range(31)
    made = []
    for name, order in (("one", documents), ("two", reversed(documents))):
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text_of(i)}) + "\n" for i in order))
        settings = {"num_tasks": 2, "valid_fraction": 0.3}
        run_job(make_job(source, tokenizer, tmp_path / name, **settings), tokenizer)
        made.append(tmp_path / name)
    one, two = ({p.name: p.stat().st_size for p in d.glob("shards/*.tar")} for d in made)
    assert one == two
    for kind in kinds.split():
        shutil.copy(made[1] / f"shards/train-00000-00000.{kind}", made[0] / "shards")
    for use in (tokens, verify):
        with pytest.raises(DataError, match="train-00000-00000"):
            use(made[0])


def test_what_a_killed_process_left_is_no_damage(data: Path) -> None:
    expected = tokens(data)
    (data / "tokenizer" / "tokenizer.model.0123.tmp").write_bytes(b"part of it")
    (data / "shards" / "train-00000-00000.tar.0123.tmp").write_bytes(b"the same")
    merge_tasks(data)
    assert verify(data)
    assert tokens(data) == expected


def test_what_is_whole_passes_everywhere(data: Path) -> None:
    before = (data / "manifest.json").read_bytes()
    merge_tasks(data)
    assert (data / "manifest.json").read_bytes() == before, "the same bytes again"
    assert verify(data) == 16
    assert np.array(tokens(data)[0]).size == read_manifest(data).num_tokens("train")
