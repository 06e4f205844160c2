"""The wheel, in an environment and a folder that have nothing of the checkout."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.data_prep.corpus import write_jsonl
from tests.e2e.test_readme import SMALL_MODEL
from tests.processes import ROOT
from tests.test_repository import files

pytestmark = [pytest.mark.check, pytest.mark.dist]

SHADOWS = ("pipeline", "model", "data_prep", "numpy", "tokenizers", "random", "platform")
"""Names that a user's own files may have: of our folders, of libraries, of Python's modules."""

DEMO = """
import json, pathlib, sys
from esolm.pipeline.demo import run_demo
print(json.dumps(run_demo(pathlib.Path("demo"), [pathlib.Path("text.jsonl")], sys.argv[1:])))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with this project's wheel and, linked, what the project requires."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for path in files():  # a build writes into its source
        (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (source / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    for link in (ROOT / "esolm").iterdir():
        if link.is_symlink():
            (source / "esolm" / link.name).symlink_to(link.readlink())
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
        "-w", folder, source)  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    assert sorted(path.name for path in site.iterdir()) == ["esolm", "esolm-0.1.0.dist-info"]
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    return python.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files that would be fatal to import."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the working directory')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def run(*words: str | Path) -> str:
    finished = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, (words, finished.stdout + finished.stderr)
    return finished.stdout


def test_shipped_configurations_and_templates_are_found(environment: Path, folder: Path) -> None:
    esolm = environment / "esolm"
    assert "(v0.1.0)" in run(esolm, "--version"), "no git revision of a folder around it"
    plan = ["plan", "configs/run/demo.yaml", "run.dir=r", "data.path=d", "--vocab-size", "4096"]
    for started in ([esolm], [environment / "python", "-m", "esolm"]):
        assert "parameters" in run(*started, *plan)
    text = write_jsonl(folder / "text.jsonl", 50)
    settings = [f"run.dir={folder / 'run'}", f"data.path={folder / 'data'}", "slurm.nodes=1"]
    settings += [f"prep.inputs=[{text}]", f"prep.tokenizer={folder / 'tokenizer'}"]
    said = run(esolm, "submit", "configs/run/demo.yaml", "--cluster", "cpu", "--dry-run", *settings)
    assert "#SBATCH" in said


@pytest.mark.timeout(900)
def test_the_demo_at_reduced_size(environment: Path, folder: Path) -> None:
    """The same commands, kill and resume as `make demo`, over generated text and a tiny network."""
    write_jsonl(folder / "text.jsonl", 400)
    settings = [*SMALL_MODEL, "train.seq_len=64", "train.steps=240", "checkpoint.every_steps=20"]
    settings += ["train.valid_every_steps=120", "train.global_batch_size=8"]
    python = environment / "python"
    summary = json.loads(run(python, "-P", "-c", DEMO, *settings).splitlines()[-1])
    assert summary["valid_loss_last"] < summary["valid_loss_first"]
    assert summary["gate"] == "passed"
    assert summary["tokens"] > 10_000
    assert summary["bundle_bytes"] > 100_000
    assert summary["cached_ratio"] > 0
    log = (folder / "demo" / "train" / "logs" / "rank_0.log").read_text()
    resumed = re.search(r"resumed from \S+ at step (\d+)", log)
    assert resumed is not None
    assert 0 < int(resumed[1]) < 240
    assert (folder / "demo" / "train" / "DONE").exists()
    (folder / "wiki.valid.raw").write_text("Some words of a text.\n" * 40)
    said = run(environment / "esolm", "evaluate", "demo/bundle", "--suite", "wikitext",
               "--files", folder, "--draws", "2")  # fmt: skip
    assert "nats" in said
