"""`esolm prep export`: what webdataset reads are the texts that were tokenized."""

from pathlib import Path

import pytest
import typer
import webdataset
from typer.testing import CliRunner

from esolm.data_prep.errors import DataError
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.cli import prep
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.text_tars import write_text_tars
from tests.data_prep.corpus import text_of


def texts_in(folder: Path) -> list[str]:
    urls = sorted(map(str, folder.glob("*.tar")))
    return [sample["txt"].decode() for sample in webdataset.WebDataset(urls, shardshuffle=False)]


def test_every_document_comes_back(data_path: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(prep.app, name="prep")
    found = []
    for split in ("train", "valid"):
        out = tmp_path / split
        options = ["--out", str(out), "--split", split, "--shard-bytes", "200000"]
        shown = CliRunner().invoke(app, ["prep", "export", str(data_path), *options])
        assert shown.exit_code == 0, shown.output
        texts = texts_in(out)
        assert f"{len(texts):,} documents of split {split}" in shown.stdout
        found += texts
    assert len(list((tmp_path / "train").iterdir())) > 1
    assert sorted(found) == sorted(text_of(number) for number in range(400))


def test_the_same_bytes_or_nothing(copy_path: Path, tmp_path: Path) -> None:
    dataset = TokenDataset(copy_path, "valid")
    tokenizer = load_tokenizer(dataset.tokenizer_directory)
    one, other = tmp_path / "one", tmp_path / "other"
    for out in (one, other):
        write_text_tars(dataset, tokenizer, out, 1 << 20)
    assert [p.read_bytes() for p in one.iterdir()] == [p.read_bytes() for p in other.iterdir()]
    with pytest.raises(DataError, match=r"one exists: name a folder that does not"):
        write_text_tars(dataset, tokenizer, one, 1 << 20)
    shard = copy_path / dataset.shards[0].name
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=dataset.shards[0].name):
        write_text_tars(dataset, tokenizer, tmp_path / "third", 1 << 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "one", "other"]
