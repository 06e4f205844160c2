"""The index by which Megatron-Energon opens a dataset: where the members of each tar really lie."""

import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from esolm.data_prep.energon_index import write_energon_index
from esolm.data_prep.jobs import prepare_output
from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.cli.prep import app
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, text_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of one member and of several."""
    folder = tmp_path_factory.mktemp("energon")
    tokenizer = make_tokenizer(folder / "tokenizer")
    texts = [text_of(number, 20_000 if number % 8 == 3 else 200) for number in range(24)]
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    job = make_job(source, tokenizer, folder / "data", valid_fraction=0.3, shard_tokens=100_000)
    run_job(job, tokenizer)
    return folder


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "data", tmp_path / "data"))


def prep(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None, result.exception
    return result.output


def rows(data: Path) -> list[list[tuple[Any, ...]]]:
    database = sqlite3.connect(data / ".nv-meta" / "index.sqlite")
    names = ("samples", "sample_parts")
    found = [database.execute(f"SELECT * FROM {n} ORDER BY 1, 2, 3").fetchall() for n in names]
    database.close()
    return found


def test_it_says_where_tarfile_finds_the_members(data: Path) -> None:
    prep("merge", data, "--energon-index")
    manifest = read_manifest(data)
    samples, parts, counts = [], [], {}
    for number, shard in enumerate(manifest.shards):
        with tarfile.open(data / shard.name) as tar:
            members = tar.getmembers()
            end = tar.offset
        begins = [member.offset for member in members]
        index = np.fromfile(data / f"{shard.name}.idx", "<u8").tolist()
        assert index == [*begins, end]
        for place, (member, after) in enumerate(zip(members, index[1:], strict=True)):
            key, _, part = member.name.partition(".")
            samples.append((number, key, place, member.offset, after - member.offset))
            parts.append((number, place, part, member.offset_data, member.size))
        counts[shard.name] = len(members)
    assert rows(data) == [sorted(samples), sorted(parts)]
    assert sorted(counts.values())[-1] > 1
    meta = data / ".nv-meta"
    for name in (".info.json", ".info.yaml"):
        assert yaml.safe_load((meta / name).read_text())["shard_counts"] == counts
    names = {split: [s.name for s in shards] for split, shards in manifest.splits.items()}
    assert yaml.safe_load((meta / "split.yaml").read_text()) == {
        "split_parts": {"train": names["train"], "val": names["valid"]}, "exclude": [],
    }  # fmt: skip
    assert yaml.safe_load((meta / "dataset.yaml").read_text())["__class__"] == "CrudeWebdataset"


def test_it_is_made_anew_with_the_tars(folder: Path, data: Path) -> None:
    prep("merge", data, "--energon-index")
    meta = data / ".nv-meta"
    own = (meta / "dataset.yaml").read_text() + "subflavors: {kind: code}\n"
    (meta / "dataset.yaml").write_text(own)
    before = (meta / "index.uuid").read_text()
    (meta / "index.sqlite").unlink()
    prep("merge", data)
    assert len(rows(data)[0]) > 2
    assert (meta / "dataset.yaml").read_text() == own
    assert (meta / "index.uuid").read_text() == before
    job = make_job(folder / "text.jsonl", folder / "tokenizer", data)
    prepare_output(job, folder / "tokenizer", overwrite=True)
    assert not meta.exists()


def test_new_datasets_have_it_if_it_is_asked_for(data: Path, tmp_path: Path) -> None:
    for command, more in (("repack", []), ("split", ["--valid-fraction", "0.5"])):
        out = tmp_path / command
        arguments = [command, data, "--out", out, "--shard-tokens", 100_000, *more]
        prep(*arguments)
        assert not (out / ".nv-meta").exists()
        prep(*arguments, "--energon-index")  # of what is done already
        count = sum(1 for path in out.rglob("*.tar.idx"))
        assert count == len(read_manifest(out).shards) > 1
        prep("verify", out)


def test_a_full_disk_has_its_number(data: Path, mounted: Callable[[str], Path]) -> None:
    place = mounted("size=32k")
    (place / "shards").mkdir()
    manifest = read_manifest(data)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_energon_index(place, manifest)
    assert caught.value.filename.endswith("index.sqlite")
    assert [path.name for path in (place / ".nv-meta").iterdir()] == []


def test_energon_reads_the_tokens_and_would_write_the_same(data: Path, tmp_path: Path) -> None:
    energon = pytest.importorskip("megatron.energon", reason="needs pip install 'esolm[energon]'")
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    theirs = Path(shutil.copytree(data, tmp_path / "theirs"))
    prep("merge", data, "--energon-index")
    manifest = read_manifest(data)
    names = [shard.name for shard in manifest.shards]
    WebdatasetPreparator.prepare_dataset(
        theirs, names, workers=1,
        split_parts_patterns=[("train", "shards/train-.*"), ("val", "shards/valid-.*")],
    )  # fmt: skip
    assert rows(theirs) == rows(data)
    for name in names:
        assert (theirs / f"{name}.idx").read_bytes() == (data / f"{name}.idx").read_bytes()
    infos = [json.loads((d / ".nv-meta" / ".info.json").read_text()) for d in (theirs, data)]
    assert infos[0]["shard_counts"] == infos[1]["shard_counts"]

    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        tokens = np.frombuffer(sample["u16"], "<u2")
        return {**energon.basic_sample_keys(sample), "tokens": tokens}

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc, name-defined]
        cookers = [energon.Cooker(energon.stateless(cook))]  # noqa: RUF012

        @energon.stateless
        def encode_sample(self, sample: Any) -> Any:
            return sample

        @energon.stateless
        def batch(self, samples: list[Any]) -> list[Any]:
            return samples

        @energon.stateless
        def encode_batch(self, batch: Any) -> Any:
            return batch

    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    options = {"batch_size": 1, "worker_config": worker, "task_encoder": Encoder()}
    train = energon.get_train_dataset(
        data, shuffle_buffer_size=None, max_samples_per_sequence=None, repeat=False, **options
    )
    val = energon.get_val_dataset(data, **options)
    for split, dataset in (("train", train), ("valid", val)):
        found = {
            sample["__key__"]: sample["tokens"]
            for batch in energon.get_loader(dataset)
            for sample in batch
        }
        tokens = np.concatenate([found[key] for key in sorted(found)])
        expected = []
        for shard in manifest.splits[split]:
            with tarfile.open(data / shard.name) as tar:
                members = [tar.extractfile(member) for member in tar]
                expected += [np.frombuffer(m.read(), "<u2") for m in members if m is not None]
        assert tokens.tolist() == np.concatenate(expected).tolist()
