"""Samples of a run with the order in which they were written."""

import re

import pytest
from typer.testing import CliRunner

from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.cli.main import app
from esolm.pipeline.cli.sample import coloured
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.generate import Request
from esolm.pipeline.watch.samples import PROMPT, Piece, marked, pieces, sample_run
from tests.pipeline.conftest import RecordedRun


def test_samples_of_a_run(recorded_run: RecordedRun) -> None:
    request = Request(alpha_0=0.5, num_steps=4, num_samples=2, prompt="ka", seed=3)
    samples = sample_run(recorded_run.path, "ema", request)
    assert (samples.step, len(samples.texts)) == (12, 2)
    for text in samples.texts:
        assert text[0].number == PROMPT
        assert {piece.number for piece in text if not piece.parallel} != {PROMPT}
        assert any(piece.parallel for piece in text)
    again = sample_run(recorded_run.path, "ema", request)
    assert again == samples


def test_pieces_make_up_the_text(recorded_run: RecordedRun) -> None:
    tokenizer = load_tokenizer(recorded_run.path / "tokenizer")
    ids = tokenizer.encode("for the whole of it")
    positions = list(range(len(ids)))
    order = [*positions[:1], *positions[2::2], *positions[1::2]]
    half = len(positions[2::2])
    found = pieces(tokenizer, ids, order, [half, *[1] * (len(ids) - 1 - half)], 1)
    assert "".join(piece.text for piece in found) == tokenizer.decode(ids)
    assert found[0].number == PROMPT
    assert [piece.parallel for piece in found] == [i > 0 and i % 2 == 0 for i in range(len(found))]


def test_phases_are_marked_and_coloured() -> None:
    text = [Piece("def ", PROMPT, False), Piece("f", 0, True), Piece("(", 7, False)]
    assert marked(text) == "def ⟨0|f⟩("
    styles = [str(span.style) for span in coloured(text).spans]
    assert styles[0] == "bold"
    assert styles[1].startswith("rgb(")


def test_the_command_prints_and_tells_tensorboard(recorded_run: RecordedRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["--num-samples", "1", "--steps", "4", "--length", "16", "--alpha-0", "1"]
    shown = CliRunner().invoke(app, ["sample", str(recorded_run.path), *arguments])
    assert shown.exit_code == 0, shown.output
    assert "--- sample 1 of 1, step 12" in shown.output
    assert re.search(r"⟨\d\|", shown.output)
    events = EventAccumulator(str(recorded_run.path / "tensorboard" / "samples"))
    events.Reload()
    assert events.Tensors("sample_0/text_summary")[0].step == 12


def test_what_cannot_be_decoded_is_told(recorded_run: RecordedRun) -> None:
    with pytest.raises(ConfigError, match="top_p"):
        sample_run(recorded_run.path, "ema", Request(top_p=2.0))
