"""Every file of a dataset, damaged in every way: what is wrong is never used, what is whole is."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_prep.errors import DataError, EsolmError
from data_prep.files import told_in_one_line
from data_prep.manifest import read_manifest
from data_prep.merge import merge_tasks
from data_prep.verify import verify_dataset
from pipeline.data.dataset import TokenDataset
from pipeline.run.config import load_config
from pipeline.run.experiment import open_dataset
from pipeline.run.sections import RunConfig
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, text_of

ROOT = Path(__file__).parents[2]
Facts = dict[str, Any]
Damage = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def originals(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets of the same documents in two orders, so that their files have the same sizes."""
    folder = tmp_path_factory.mktemp("originals")
    documents = [json.dumps({"text": text_of(i)}) + "\n" for i in range(31)]
    made = []
    for name, lines in (("one", documents), ("two", documents[::-1])):
        corpus = folder / f"{name}.jsonl"
        corpus.write_text("".join(lines))
        settings: dict[str, object] = {"num_tasks": 2, "valid_fraction": 0.3}
        job = make_job(corpus, tokenizer_directory, folder / name, **settings)
        run_job(job, tokenizer_directory)
        made.append(job.out)
    shutil.rmtree(made[1] / "tokenizer")
    make_tokenizer(made[1] / "tokenizer", 410)
    sizes = [{s.name: s.num_bytes for s in read_manifest(d).splits["train"]} for d in made]
    assert sizes[0] == sizes[1]
    return made


@pytest.fixture
def data(originals: list[Path], tmp_path: Path) -> Path:
    shutil.copytree(originals[0], tmp_path / "data")
    return tmp_path / "data"


def files_of(data: Path) -> list[str]:
    names = sorted(str(p.relative_to(data)) for p in data.rglob("*") if p.is_file())
    kinds = {name.partition(".")[2] for name in names}
    assert kinds == {"json", "tar", "ends.npy", "crc32", "model"}
    assert len(names) == 1 + 2 + 4 * 4 + 2, names
    return names


def opened(data: Path) -> Facts:
    """All that reading a dataset tells, of both splits."""
    facts: Facts = {}
    for name in ("train", "valid"):
        split = TokenDataset(data, name)
        facts[name] = split.read(0, split.num_tokens).tolist()
        facts["ids"] = (split.vocab_size, split.mask_id, split.bos_id, split.eos_id)
        facts["fingerprint"] = split.fingerprint
    return facts


def verified(data: Path) -> Facts:
    verify_dataset(data, read_manifest(data), lambda num_bytes: None)
    return opened(data)


@lru_cache
def demo() -> RunConfig:
    settings = ["data.path=unused", "run.dir=unused", "train.steps=1", "train.seq_len=64"]
    return load_config(ROOT / "configs/run/demo.yaml", [*settings, "train.valid_every_steps=1"])


def started(data: Path) -> Facts:
    """What a training reads, once its start has refused nothing."""
    config = demo()
    config.data.path = str(data)
    dataset, problems = open_dataset(config)
    if problems:
        raise DataError("\n".join(problems))
    assert dataset is not None
    ids = dataset.load_tokenizer().encode("the very same ids \u2581")
    return {**opened(data), "encoded": ids}


def merged(data: Path) -> Facts:
    merge_tasks(data)
    return opened(data)


USES = (opened, verified, started, merged)


def flipped(place: float) -> Damage:
    def flip(path: Path, other: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(place * len(content)), len(content) - 1)] ^= 1
        path.write_bytes(content)

    return flip


def cut_short(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def grown(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def deleted(path: Path, other: Path) -> None:
    path.unlink()


def unreadable(path: Path, other: Path) -> None:
    """A folder in its place, as root may read every file."""
    path.unlink()
    path.mkdir()


def swapped(path: Path, other: Path) -> None:
    shutil.copy(other, path)


DAMAGES: dict[str, Damage] = {
    **{f"flipped at {place}": flipped(place) for place in (0.0, 0.31, 0.5, 0.77, 1.0)},
    "cut short": cut_short,
    "grown": grown,
    "emptied": emptied,
    "deleted": deleted,
    "unreadable": unreadable,
    "swapped": swapped,
}


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Puts a file, and the manifest, which a merge writes anew, back as they are now."""
    kept = {each: each.read_bytes() for each in (path, path.parents[1] / "manifest.json")
            if each.is_file()}  # fmt: skip
    yield
    for each, content in kept.items():
        if each.is_dir():
            each.rmdir()
        each.write_bytes(content)


def result(use: Callable[[Path], Facts], data: Path) -> Facts | None:
    """What a use gives; None if it refuses the dataset in words that say where."""
    try:
        with told_in_one_line():
            return use(data)
    except EsolmError as error:
        return None if str(data) in str(error) else {"said": str(error)}


def may_pass(use: Callable[[Path], Facts], name: str, damage: str) -> bool:
    """Whether a use does not look at a file, or not in this way."""
    folder, kind = name.partition("/")[0], name.partition(".")[2]
    if use is merged:
        # It compares sizes; contents are for verify. The manifest it writes anew.
        return kind in ("tar", "ends.npy", "crc32") or name == "manifest.json"
    if use is verified:
        # Without the record of a task the dataset is still whole.
        return folder == "tasks" and damage == "deleted"
    unread = folder == "tasks" or (kind in ("json", "ends.npy") and folder == "shards")
    if use is opened:
        return unread or folder == "tokenizer" or kind == "tar"
    return unread or kind == "tar"  # a changed byte of a tar may lie between its tokens


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_in_every_way(originals: list[Path], data: Path, damage: str) -> None:
    golden = {use: use(data) for use in USES}
    wrong, refusals = [], 0
    for name in files_of(data):
        others = [originals[1] / name]
        if damage == "swapped":  # also with others of the same folder and kind
            others += [
                each
                for each in originals[0].joinpath(name).parent.glob(f"*.{name.partition('.')[2]}")
                if each.name != Path(name).name
            ]
        for other in others:
            for use in USES:
                with restored(data / name):
                    DAMAGES[damage](data / name, other)
                    found = result(use, data)
                refusals += found is None
                if found not in (None, golden[use]):
                    wrong.append((use.__name__, name, "used as if it were whole", found.keys()))
                if found is not None and not may_pass(use, name, damage):
                    wrong.append((use.__name__, name, "not refused"))
    assert wrong == []
    assert refusals >= 30
    assert {use: use(data) for use in USES} == golden


@pytest.mark.slow
def test_bytes_of_every_file_changed_at_random(originals: list[Path], data: Path) -> None:
    random = Random(0)
    golden, names = {use: use(data) for use in USES}, files_of(data)
    wrong = []
    for _ in range(600):
        name, place = random.choice(names), random.random()
        for use in USES:
            with restored(data / name):
                flipped(place)(data / name, data / name)
                found = result(use, data)
            if found not in (None, golden[use]):
                wrong.append((use.__name__, name, place, "used as if it were whole"))
            if found is not None and not may_pass(use, name, "flipped"):
                wrong.append((use.__name__, name, place, "not refused"))
    assert wrong == []


@pytest.mark.parametrize("kinds", ["tar", "tar crc32", "tar crc32 json", "tar crc32 json ends.npy"])
def test_a_whole_shard_of_another_dataset_is_no_shard_of_this(
    originals: list[Path], data: Path, kinds: str
) -> None:
    """Files that belong together, of the right sizes, under the right names."""
    for kind in kinds.split():
        shutil.copy(originals[1] / f"shards/train-00000-00000.{kind}", data / "shards")
    for use in (opened, verified, started):
        assert result(use, data) is None, use.__name__


def test_what_is_whole_is_not_refused(data: Path, tmp_path: Path) -> None:
    golden = {use: use(data) for use in USES}
    (data / "tokenizer" / "tokenizer.model.0123.tmp").write_bytes(b"left by a killed process")
    (data / "shards" / "train-00000-00000.tar.0123.tmp").write_bytes(b"the same")
    (data / "notes.txt").write_text("of a person\n")
    assert {use: use(data) for use in USES} == golden
    moved = data.rename(tmp_path / "moved")
    assert {use: use(moved) for use in USES} == golden
    shutil.rmtree(moved / "tasks")
    for sidecar in moved.glob("shards/*.json"):
        sidecar.unlink()
    assert all(use(moved) == golden[use] for use in (opened, verified, started))
