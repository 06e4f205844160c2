"""Every command of the README and the documents is real, and those of the README are run."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from esolm.pipeline import demo
from esolm.pipeline.cli.main import app
from tests.processes import ROOT, run_python

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Appended to the README's commands so that they take seconds; nothing else of them is changed.
SMALL_MODEL = [
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.ffn_hidden_size=64",
    "model.cond_dim=8",
]
SMALL_RUN = [
    *SMALL_MODEL,
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
    "train.seq_len=64",
    "train.valid_samples=4",
]
SMALLER = {
    "prep tokenizer": ["--max-sentences", "400"],
    "prep tokenize": ["--max-bytes", "1000000"],
    "export": [],
    "generate": [],
}


def blocks(document: Path) -> Iterator[str]:
    """Every fenced block that is a shell's: marked bash, or unmarked with a command in front."""
    text = document.read_text()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "bash" or (not language and block.startswith(("esolm ", "make "))):
            yield block


def commands(document: Path) -> list[list[str]]:
    """The command lines of a document in words, comments dropped."""
    lines = "".join(blocks(document)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def esolm_arguments(words: list[str]) -> list[str] | None:
    """What comes after `esolm` or `python -m esolm`, also behind torchrun or srun."""
    for start in (["esolm"], ["-m", "esolm"]):
        for place in range(len(words)):
            if words[place : place + len(start)] == start:
                return words[place + len(start) :]
    return None


def subcommands() -> dict[str, Any]:
    """Every command by its words, as in "prep merge"."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        for word, leaf in (inner or {"": command}).items():
            found[f"{name} {word}".strip()] = leaf
    return found


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """The words that name the command, and the rest."""
    known = subcommands()
    words = 2 if " ".join(arguments[:2]) in known else 1
    name = " ".join(arguments[:words])
    assert name in known, f"there is no command 'esolm {name}'"
    return name, arguments[words:]


def assert_parses(arguments: list[str]) -> None:
    """The command exists and takes these arguments; nothing is run."""
    name, rest = split(arguments)
    subcommands()[name].make_context(name, list(rest))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_the_documents_exist(document: Path) -> None:
    for words in commands(document):
        arguments = esolm_arguments(words)
        if arguments is not None:
            assert_parses(arguments)
        elif words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("name", sorted(subcommands()))
def test_help_has_an_example_that_parses(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert "Example:" in shown.output
    # From the text itself: what is shown is broken at the width of the terminal.
    example = re.search(r"Example:\s+esolm (.+)", subcommands()[name].help)
    assert example is not None
    assert_parses(shlex.split(example[1]))


@pytest.mark.parametrize("arguments", [[], ["prep"]], ids=["esolm", "esolm prep"])
def test_help_of_groups(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, [*arguments, "--help"])
    assert shown.exit_code == 0


def test_an_unknown_option_is_no_success() -> None:
    assert CliRunner().invoke(app, ["prep", "merge", "--nonsense", "x"]).exit_code != 0


def smaller(arguments: list[str], num_trained: int) -> list[str]:
    """The command with what makes it small added; the nth training takes n times 2 steps."""
    name, _ = split(arguments)
    if name != "train":
        return [*arguments, *SMALLER.get(name, [])]
    return [*arguments, *SMALL_RUN, f"train.steps={2 * num_trained}", "checkpoint.every_steps=2"]


def runnable(words: list[str]) -> bool:
    """Commands of this project that need neither Slurm nor an installation."""
    return esolm_arguments(words) is not None and words[0] in ("esolm", "torchrun")


@pytest.mark.dist
@pytest.mark.timeout(900)
def test_the_readmes_commands_run_one_after_the_other(tmp_path: Path) -> None:
    """In a folder with nothing but configs/, as in a fresh clone."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    ran = set()
    num_trained = 0
    for words in commands(ROOT / "README.md"):
        if not runnable(words):
            continue
        arguments = esolm_arguments(words)
        assert arguments is not None
        name, _ = split(arguments)
        num_trained += name == "train"
        arguments = smaller(arguments, num_trained)
        if words[0] == "torchrun":
            launcher = words[1 : words.index("-m")]
            command = ["-m", "torch.distributed.run", *launcher, "-m", "esolm"]
        else:
            command = ["-m", "esolm"]
        finished = run_python(*command, *arguments, folder=tmp_path)
        assert finished.returncode == 0, (shlex.join(words), finished.stdout + finished.stderr)
        ran.add(name)
        if name == "train" and num_trained > 1:
            assert "resumed from" in finished.stderr, "the README resumes one run"
    assert ran >= {"prep tokenizer", "prep tokenize", "prep merge", "train", "export", "generate"}
    named = set(re.findall(r"^RUN/([\w.]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    (run_directory,) = (tmp_path / "runs").iterdir()
    missing = {name for name in named if not (run_directory / name).exists()}
    assert named >= {"config.yaml", "metrics.jsonl", "checkpoints", "DONE"}
    assert not missing, f"the README names {missing} in a run directory"


QUICK_RUN = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
(run / "checkpoints" / "step_00000040.tmp").mkdir(parents=True)
with (run / "metrics.jsonl").open("w") as metrics:
    for step in (40, 50):
        print(json.dumps({"step": step}), file=metrics, flush=True)
(run / "checkpoints" / "step_00000040.tmp").rename(run / "checkpoints" / "step_00000040")
time.sleep(1.5)
(run / "DONE").touch()
"""


def test_the_demo_kills_a_run_that_is_soon_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "announce", lambda words: [sys.executable, "-c", QUICK_RUN, *words])
    demo.kill_after_a_checkpoint([str(tmp_path)], tmp_path)
    assert (tmp_path / "checkpoints" / "step_00000040").exists()
    assert not (tmp_path / "DONE").exists()
