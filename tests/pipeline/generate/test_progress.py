"""Progress of decoding: beside the output, and counted in the passes that are really made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from esolm.data_prep import progress
from esolm.pipeline.cli.generate import generate_command
from esolm.pipeline.generate import DecodingProgress
from tests.pipeline.generate.systems import OBJECTIVES, System, written_by
from tests.pipeline.generate.test_generate_command import make_bundle
from tests.terminal import run_at_terminal

__all__ = ["make_bundle"]


@pytest.fixture
def every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line whenever a pass is done."""
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize(("alpha_0", "given"), [(0.5, 0), (0.0, 3), (1.0, 5)])
def test_every_pass_of_every_decoder_is_counted(
    name: str, alpha_0: float, given: int, every_pass: None, capsys: pytest.CaptureFixture[str]
) -> None:
    made = System(name)
    with DecodingProgress() as shown:
        output = written_by(
            made.model, made.prompt(2, given), alpha_0=alpha_0, num_steps=3, length=16,
            num_samples=2, streamer=shown,
        )  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    counted = [line.split(", ")[0] for line in lines]
    assert counted == [f"forward passes: {n}/{output.nfe}" for n in range(1, output.nfe + 1)]
    assert lines[-1].endswith(", 0:00:00 left")


def test_lines_where_there_is_no_terminal(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each to stderr: of the passes, then of the generations that --compare times."""
    bundle = make_bundle()
    app = typer.Typer()
    app.command()(generate_command)
    arguments = [str(bundle), "--length", "24", "--alpha-0", "0", "--compare", "--json"]
    # Reading is a phase, whose thread would print as fast as it can at an interval of zero.
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0005)
    shown = CliRunner().invoke(app, arguments)
    assert json.loads(shown.stdout)["nfe"] == 24
    labels = {line.split(": ")[0] for line in shown.stderr.splitlines()}
    assert labels >= {"forward passes", "timed generations"}
    assert any(label.startswith("read ") for label in labels)


@pytest.mark.check
def test_bars_on_a_terminal_stay_out_of_the_json(make_bundle: Callable[..., Path]) -> None:
    arguments = ["--length", "24", "--alpha-0", "0.5", "--steps", "4", "--compare", "--json"]
    code, output, errors = run_at_terminal(
        "-m", "esolm", "generate", str(make_bundle()), *arguments
    )
    assert code == 0, errors
    assert json.loads(output)["compare"]["repeats"] == 3
    assert "forward passes" in errors
    assert "timed generations" in errors
