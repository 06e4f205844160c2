"""Mistakes of a tired person: what was typed, the exit code, and what the one message says.

Each row runs the real command. `{w}` is the workplace that all rows share and none may change,
`{t}` a folder of the row's own. A message says what is wrong, where, and what to do.
"""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.data_prep.corpus import make_job, make_tokenizer, run_job, write_jsonl
from tests.e2e.runs import finish, start, write_config
from tests.processes import run_python


@dataclass(frozen=True)
class Mistake:
    """typed: the command line. says: all of this stands in the message. files: written first."""

    typed: str
    says: tuple[str, ...]
    code: int = 64
    files: dict[str, bytes] = field(default_factory=dict)


TRAIN = "train {w}/config.yaml run.dir={t}/new "
EXPORT = "export {w}/run --out {t}/bundle "
TOKENIZE = "prep tokenize {w}/text.jsonl --tokenizer {w}/tok --out {t}/data "
HEAD = b"run: {dir: x}\ndata: {path: y}\n"

MISTAKES = {
    # a configuration
    "misspelt key": Mistake(TRAIN + "train.step=5", ("unknown key 'train.step'", "'train.steps'")),
    "number with an exponent": Mistake(TRAIN + "train.steps=1e4", ("train.steps", "write 10000")),
    "blank for =": Mistake(TRAIN + "train.steps 5", ("'train.steps' is not of the form",)),
    "tabs": Mistake(
        "train {t}/r.yaml", ("r.yaml", "line 2", "indent with spaces"),
        files={"r.yaml": b"run:\n\tdir: x\n"},
    ),
    "missing comma": Mistake(
        "train {t}/r.yaml", ("r.yaml", "line 3", "expected ',' or '}'"),
        files={"r.yaml": HEAD + b"model: {num_layers: 2 num_heads: 4}\n"},
    ),
    "a binary file as YAML": Mistake(
        "train {t}/r.yaml", ("r.yaml cannot be read", "utf-8"), files={"r.yaml": b"\xe2\x00\xff"}
    ),
    "a folder for the configuration": Mistake(
        "train {w}/run", ("run is a directory", "its config.yaml")
    ),
    "no run.dir": Mistake(
        "train {t}/r.yaml", ("'run.dir' is missing",),
        files={"r.yaml": b"data: {path: y}\ntrain: {steps: 3}\n"},
    ),
    "~ that no shell expands": Mistake(
        TRAIN + "run.dir=~/runs/first", ("'run.dir' = '~/runs/first'", "write ${oc.env:HOME}")
    ),
    # a run
    "a run for data": Mistake(
        TRAIN + "data.path={w}/run", ("run is no dataset", "esolm prep tokenize")
    ),
    "data for a run": Mistake(
        TRAIN + "run.dir={w}/data", ("data holds a dataset", "a directory of its own")
    ),
    "a file for run.dir": Mistake(
        TRAIN + "run.dir={w}/text.jsonl", ("text.jsonl is a file", "name a directory")
    ),
    "before the merge": Mistake(
        TRAIN + "data.path={w}/unmerged", ("manifest.json does not exist", "esolm prep merge")
    ),
    "rows that were not packed": Mistake(
        TRAIN + "data.packing=best_fit",
        ("data has no index of best_fit rows of 32 tokens", "esolm prep pack ", " --seq-len 32`"),
    ),
    "a packing that is none": Mistake(
        TRAIN + "data.packing=bestfit", ("data.packing is 'bestfit'", "best_fit")
    ),
    "rows of no tokens": Mistake("prep pack {w}/data --seq-len 0", ("--seq-len is '0'",)),
    "rows packed of a folder": Mistake("prep pack {w}/run", ("run is no dataset",)),
    "tp does not divide the heads": Mistake(
        TRAIN + "parallel.tp=3 --ranks 3", ("model.num_heads 4 does not divide by parallel.tp 3",)
    ),
    "more stages than layers": Mistake(
        TRAIN + "parallel.pp=9 --ranks 9", ("parallel.pp 9 has more stages", "2 blocks")
    ),
    "a batch that does not divide": Mistake(
        TRAIN + "train.global_batch_size=6 train.micro_batch_size=4",
        ("train.global_batch_size 6 does not divide by train.micro_batch_size 4",),
    ),
    "sequences longer than the text": Mistake(
        TRAIN + "train.seq_len=100000", ("split 'valid'", "make that smaller", "--valid-fraction")
    ),
    "zero=3 with stages": Mistake(
        TRAIN + "parallel.zero=3 parallel.pp=2 --ranks 2",
        ("parallel.zero=3", "use parallel.zero=1"),
    ),
    "ranks that do not divide": Mistake(
        TRAIN + "parallel.tp=2 --ranks 3", ("3 ranks do not divide by parallel.tp 2",)
    ),
    "no ranks": Mistake(TRAIN + "--ranks 0", ("'--ranks'", "1"), code=2),
    "fewer steps than are done": Mistake(
        "train {w}/config.yaml train.steps=5", ("has done 12 steps already", "use another run.dir")
    ),
    "a step that is not reached": Mistake(
        "replay {w}/run 4000", ("step 4000 is beyond the 12 steps",)
    ),
    "status of an empty folder": Mistake("status {t}", ("is no run directory", "Name the run.dir")),
    "list for ls": Mistake("checkpoint list {w}/run", ("'list'", "Did you mean 'ls'"), code=2),
    "verify a dataset as a checkpoint": Mistake(
        "checkpoint verify {w}/data", ("data is neither a run nor a checkpoint", "run.dir")
    ),
    # text and datasets
    "no vocabulary": Mistake(
        "prep tokenizer {w}/text.jsonl --vocab-size 0 --out {t}/tok",
        ("--vocab-size is 0, must be at least 261",),
    ),
    "a tokenizer into a dataset": Mistake(
        "prep tokenizer {w}/text.jsonl --vocab-size 400 --out {w}/data",
        ("data is no place for a tokenizer", "a directory of its own"),
    ),
    "an empty folder of text": Mistake(
        "prep tokenize {t} --tokenizer {w}/tok --out {t}/data", ("No input files in {t}", "Give")
    ),
    "a binary file as text": Mistake(
        "prep tokenize {t}/a.txt --tokenizer {w}/tok --out {t}/data",
        ("a.txt:1: invalid UTF-8 at byte 0", "--on-bad-document skip"),
        files={"a.txt": b"\xff\xfe"},
    ),
    "no such key": Mistake(TOKENIZE + "--text-key content", ("no key 'content'", "--text-key")),
    "no workers": Mistake(TOKENIZE + "--workers 0", ("'--workers'", "1"), code=2),
    "a percentage for a fraction": Mistake(
        TOKENIZE + "--valid-fraction 5", ("--valid-fraction is 5.0, must be in [0, 1)",)
    ),
    "a run for a tokenizer": Mistake(
        TOKENIZE + "--tokenizer {w}/run", ("run is no tokenizer directory", "run/tokenizer is one")
    ),
    "another tokenizer into a dataset": Mistake(
        TOKENIZE + "--tokenizer {w}/other_tok --out {w}/data",
        ("made with other settings (tokenizer:", "--overwrite"),
    ),
    "a dataset into a run": Mistake(
        TOKENIZE + "--out {w}/run --overwrite", ("run is no place for a dataset", "of its own")
    ),
    "a dataset where nothing may be written": Mistake(
        TOKENIZE + "--out /sys/data", ("/sys/data", "name another place"), code=1
    ),
    "merge before tokenize": Mistake(
        "prep merge {t}", ("has no finished task", "esolm prep tokenize")
    ),
    "verify a run as a dataset": Mistake("prep verify {w}/run", ("run is no dataset",)),
    # an export, and what comes after
    "a folder of checkpoints for a run": Mistake(
        EXPORT.replace("/run", "/run/checkpoints"),
        ("checkpoints is neither a run nor a checkpoint", "checkpoints/step_*"),
    ),
    "a run that has saved nothing": Mistake(
        EXPORT.replace("{w}/run", "{t}/begun"),
        ("begun holds no valid checkpoint", "esolm checkpoint ls"), code=1,
        files={"begun/checkpoints/.keep": b"", "begun/config.yaml": HEAD},
    ),
    "a bundle exported": Mistake(
        EXPORT.replace("/run", "/bundle"), ("bundle is neither a run nor a checkpoint",)
    ),
    "--out exists": Mistake(
        EXPORT + "--out {w}/bundle", ("bundle exists", "choose another --out"), code=1
    ),
    "--out is a file": Mistake(
        EXPORT + "--out {w}/text.jsonl --overwrite", ("is a file", "choose another --out"), code=1
    ),
    "export under another tokenizer": Mistake(
        EXPORT + "--tokenizer {w}/other_tok", ("450", "400"), code=1
    ),
    "alpha_0 above 1": Mistake(
        "generate {w}/bundle --alpha-0 1.5", ("alpha_0 is 1.5; it must lie in [0, 1]",)
    ),
    "a negative length": Mistake(
        "generate {w}/bundle --length -5", ("length is -5; it must be at least 1",)
    ),
    "a prompt longer than the length": Mistake(
        "generate {w}/bundle --length 2 --prompt 'ba de fin'", ("the prompt has", "length is 2")
    ),
    "--prompt-file": Mistake(
        "generate {w}/bundle --prompt-file a.txt", ("--prompt-file", "--prompt"), code=2
    ),
    "a run for a bundle": Mistake(
        "generate {w}/run", ("run is no bundle", "make one with esolm export")
    ),
    "evaluated on other tokens": Mistake(
        "evaluate {w}/run {w}/other_data", ("another vocabulary (450 ids", "(400 ids")
    ),
    "arguments in the wrong order": Mistake(
        "evaluate {w}/data {w}/run", ("data is neither a run nor a checkpoint",)
    ),
    "misspelt suite": Mistake(
        "evaluate {w}/run --suite wikitex", ("no suite 'wikitex'", "wikitext, or name")
    ),
    "an import of text": Mistake(
        "import {w}/text.jsonl --out {t}/imported", ("text.jsonl is no zip archive", "again")
    ),
    # Slurm
    "submit without Slurm": Mistake(
        "submit {w}/config.yaml --cluster cpu run.dir={t}/new", ("only --dry-run is possible",)
    ),
    "misspelt cluster": Mistake(
        "submit {w}/config.yaml --cluster cpuu", ("no cluster profile", "there are cpu, gpu")
    ),
    "misspelt stage": Mistake(
        "submit {w}/config.yaml --cluster cpu --stages tarin", ("'tarin' is no stage", "train")
    ),
    "cancel of what was never submitted": Mistake("cancel {w}/run", ("run was never submitted",)),
}  # fmt: skip

SLOWER = {
    "run.dir where nothing may be written": Mistake(
        TRAIN + "run.dir=/sys/run", ("run.dir /sys/run cannot be written", "use another directory")
    ),
    "resumed with longer sequences": Mistake(
        "train {w}/config.yaml train.steps=20 train.seq_len=64",
        ("seq_len: 32 in the checkpoint, 64 here", "start a new run directory"),
    ),
    "resumed with another network": Mistake(
        "train {w}/config.yaml train.steps=20 model.hidden_size=128",
        ("model.hidden_size is 64 in the checkpoint, 128 here", "use another directory"),
    ),
    "resumed on another dataset": Mistake(
        "train {w}/config.yaml train.steps=20 data.path={w}/other_data",
        ("model.vocab_size is 400 in the checkpoint, 450 here", "use another directory"),
    ),
    "the same from the launcher": Mistake(
        "train {w}/config.yaml train.steps=20 train.seq_len=64 --ranks 2",
        ("seq_len: 32 in the checkpoint, 64 here", "start a new run directory"),
    ),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokenizers, their datasets, one without its manifest, a finished run and its bundle."""
    # Here, so that collecting these tests does not wait for torch.
    from esolm.pipeline.export import gate
    from esolm.pipeline.export.export import export

    folder = tmp_path_factory.mktemp("workplace")
    text = write_jsonl(folder / "text.jsonl", 60)
    for prefix, size in (("", 400), ("other_", 450)):
        tokenizer = make_tokenizer(folder / f"{prefix}tok", size)
        job = make_job(text, tokenizer, folder / f"{prefix}data", valid_fraction=0.2)
        run_job(job, tokenizer)
    shutil.copytree(folder / "data", folder / "unmerged")
    (folder / "unmerged" / "manifest.json").unlink()
    config = write_config(folder, folder / "data")
    small = config.read_text().replace("{tp: 2}", "{tp: 1}").replace("size: 1024", "size: 64")
    config.write_text(small)
    finish(start("train", str(config)), 0)
    with pytest.MonkeyPatch.context() as patch:  # a fresh process takes seconds
        patch.setattr(gate, "check_reload", lambda *_: ({}, {}))
        export(folder / "run", folder / "bundle", dtype="fp32")
    return folder


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Whatever a refused command does, it leaves everything as it was, a run's logs apart."""

    def files() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "logs" and path.name != ".lock"
        }

    before = files()
    yield
    assert files() == before


def prepared(mistake: Mistake, workplace: Path, folder: Path) -> list[str]:
    """Writes a row's files; returns its command line."""
    for name, content in mistake.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    places = {"{w}": str(workplace), "{t}": str(folder)}
    typed = mistake.typed
    for name, place in places.items():
        typed = typed.replace(name, place)
    return shlex.split(typed)


def check(mistake: Mistake, folder: Path, code: object, message: str) -> None:
    """One message with every part, and no trace."""
    assert code == mistake.code, message
    assert "Traceback" not in message
    assert message.lower().count("error: ") == 1, message
    for part in mistake.says:
        assert part.replace("{t}", str(folder)) in message, message


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_gets_one_message_that_helps(
    mistake: Mistake,
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from esolm.pipeline.cli.main import main

    line = prepared(mistake, workplace, tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # `main` sets it, and nothing else would take it back
    monkeypatch.setenv("COLUMNS", "1000")
    if line[0] in ("submit", "cancel"):
        monkeypatch.setenv("PATH", str(tmp_path))  # this machine may have a Slurm
    monkeypatch.setattr("sys.argv", ["esolm", *line])
    with unchanged(workplace), pytest.raises(SystemExit) as ended:
        main()
    check(mistake, tmp_path, ended.value.code, capsys.readouterr().err)


def test_a_length_beyond_training_is_noted(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be meant, so it is no error."""
    from esolm.pipeline.cli.main import main

    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    for length in (32, 33):
        line = ["generate", str(workplace / "bundle"), "--length", str(length), "--steps", "2"]
        monkeypatch.setattr("sys.argv", ["esolm", *line])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        noted = "note: --length 33 is beyond the 32 tokens of training" in capsys.readouterr().err
        assert noted == (length > 32)


@pytest.mark.check
@pytest.mark.dist
@pytest.mark.parametrize("mistake", SLOWER.values(), ids=list(SLOWER))
def test_a_mistake_that_only_a_start_finds(
    mistake: Mistake, workplace: Path, tmp_path: Path
) -> None:
    with unchanged(workplace / "run"), unchanged(workplace / "data"):
        done = run_python("-m", "esolm", *prepared(mistake, workplace, tmp_path))
    check(mistake, tmp_path, done.returncode, done.stderr)
