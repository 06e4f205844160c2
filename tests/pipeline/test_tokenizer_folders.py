"""Every command that is given a tokenizer's folder refuses the same ones, in the same words."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esolm.data_prep.errors import DataError
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.cli.main import main
from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM
from esolm.pipeline.export.manifest import write_manifest
from tests.data_prep.corpus import make_tokenizer, write_jsonl
from tests.foreign_tokenizers import like_gpt2, saved
from tests.pipeline.conftest import RecordedRun
from tests.pipeline.importer import published


def missing(folder: Path) -> None:
    """Leaves nothing there."""


def empty(folder: Path) -> None:
    folder.mkdir()


def garbage(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"not a model")


def garbage_in_a_bundle(folder: Path) -> None:
    garbage(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "EsoLMTokenizer"}')


def without_its_record(folder: Path) -> None:
    make_tokenizer(folder)
    (folder / "tokenizer.json").unlink()


def without_its_model(folder: Path) -> None:
    make_tokenizer(folder)
    (folder / "tokenizer.model").unlink()


def of_another_record(folder: Path) -> None:
    make_tokenizer(folder)
    record = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(record.replace('"vocab_size": 400', '"vocab_size": 401'))


def damaged_configuration(folder: Path) -> None:
    garbage(folder)
    (folder / "tokenizer_config.json").write_text("{")


def only_a_configuration(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text("{}")


def garbage_of_transformers(folder: Path) -> None:
    saved(like_gpt2(), folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')


def a_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    make_tokenizer(folder / "tokenizer")


def a_bundle_without_one(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "esolm"}')


BAD: dict[Callable[[Path], None], str] = {
    missing: "does not exist, so there is no tokenizer in it",
    empty: "holds no tokenizer. Give a directory of `esolm prep tokenizer`, a bundle",
    garbage: "tokenizer.model is not a SentencePiece model",
    garbage_in_a_bundle: "tokenizer.model is not a SentencePiece model",
    without_its_record: "tokenizer.json does not exist. Restore both files",
    without_its_model: "tokenizer.model does not exist. Restore both files",
    of_another_record: "(vocab_size: 401 recorded, 400 found)",
    damaged_configuration: "tokenizer_config.json is not valid JSON",
    only_a_configuration: "looks like a tokenizer directory of transformers, which cannot load it",
    garbage_of_transformers: "directory of transformers, which cannot load it",
    a_run: "folder is no tokenizer directory; ",
    a_bundle_without_one: "folder holds no tokenizer. Give",
}


# To `submit` and `generate` these are no error: the chain trains a tokenizer where there is none,
# and a bundle may carry none.
OF_NO_KIND = (missing, empty, a_run, a_bundle_without_one)


@pytest.fixture(scope="module")
def bundle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights, without a gate."""
    path = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    config = EsoLMConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, mask_token_id=3, bos_token_id=1,
    )  # fmt: skip
    EsoLMForMaskedLM(config).save_pretrained(path)
    load_tokenizer(dataset / "tokenizer").save_for_bundle(path)
    write_manifest(path, {"step": 1})
    return path


def tokenize(folder: Path, work: Path, run: RecordedRun, bundle: Path) -> list[object]:
    text = write_jsonl(work / "text.jsonl", 2)
    return ["prep", "tokenize", text, "--tokenizer", folder, "--out", work / "data"]


def export(folder: Path, work: Path, run: RecordedRun, bundle: Path) -> list[object]:
    return ["export", run.path, "--tokenizer", folder, "--out", work / "bundle"]


def import_(folder: Path, work: Path, run: RecordedRun, bundle: Path) -> list[object]:
    published.save(work / "a.ckpt", published.SYSTEMS["esolm_b"])
    return ["import", work / "a.ckpt", "--tokenizer", folder, "--out", work / "imported"]


def evaluate(folder: Path, work: Path, run: RecordedRun, bundle: Path) -> list[object]:
    (work / "text.txt").write_text("the cat sat on the mat\n")
    suite = work / "suite.yaml"
    suite.write_text("title: text\nfile: text.txt\nsource: here\n")
    options = ["--suite", suite, "--files", work, "--tokenizer", folder]
    return ["evaluate", run.path, *options]


def judge(folder: Path, work: Path, run: RecordedRun, bundle: Path) -> list[object]:
    return ["evaluate", bundle, "--samples", "--num-samples", 1, "--judge", folder]


def submit(folder: Path, work: Path, run: RecordedRun, bundle: Path) -> list[object]:
    text = write_jsonl(work / "text.jsonl", 2)
    settings = [f"prep.inputs=[{text}]", f"prep.tokenizer={folder}", f"data.path={work / 'data'}"]
    options = ["--cluster", "cpu", "--stages", "prep", "--dry-run"]
    return ["submit", run.config, *settings, f"run.dir={work / 'run'}", *options]


def generate(folder: Path, work: Path, run: RecordedRun, bundle: Path) -> list[object]:
    """Of a bundle whose record vouches for the bad files."""
    for path in bundle.iterdir():
        if not path.name.startswith("tokenizer"):
            shutil.copy(path, folder)
    (folder / "export.json").unlink()
    write_manifest(folder, {"step": 1})
    return ["generate", folder, "--length", 4]


Command = Callable[[Path, Path, RecordedRun, Path], list[object]]
CASES = [
    pytest.param(command, make, id=f"{command.__name__.strip('_')}-{make.__name__}")
    for command in (tokenize, export, import_, evaluate, judge, submit, generate)
    for make in BAD
    if make not in OF_NO_KIND or command not in (submit, generate)
]


@pytest.mark.parametrize(("command", "make"), CASES)
def test_a_bad_folder_is_refused_in_the_same_words(
    command: Command,
    make: Callable[[Path], None],
    recorded_run: RecordedRun,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, work = tmp_path / "folder", tmp_path / "work"
    make(folder)
    with pytest.raises(DataError) as raised:
        load_tokenizer(folder)
    assert BAD[make] in str(raised.value)
    assert str(folder) in str(raised.value)
    work.mkdir()
    arguments = command(folder, work, recorded_run, bundle)
    monkeypatch.setattr(sys, "argv", ["esolm", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 64
    assert f"error: {raised.value}\n" in capfd.readouterr().err
    assert not {path.name for path in work.iterdir()} & {"data", "bundle", "imported", "run"}
