import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import read_lines
from esolm.pipeline.train.metrics import MetricsWriter, Reports
from esolm.pipeline.train.progress import Progress
from esolm.pipeline.train.recorder import Recorder
from tests.processes import ROOT

CONFIG = ROOT / "configs" / "run" / "demo.yaml"


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    first = MetricsWriter(metrics, tmp_path / "tensorboard", -1, Reports())
    for step in (1, 2, 3, 4):
        first.write(step, {"loss": float(step), "mfu": "n/a"})
    first.close()
    with metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    resumed = MetricsWriter(metrics, tmp_path / "tensorboard", 2, Reports())
    resumed.write(3, {"loss": 30.0})
    resumed.close()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert lines[0]["mfu"] == "n/a"


def test_a_run_that_begins_again_drops_the_validation_of_step_0(tmp_path: Path) -> None:
    config = load_config(CONFIG, [f"run.dir={tmp_path}", "data.path=unused"])
    for _ in range(2):
        recorder = Recorder(RunDirectory(tmp_path), config, 0, 0)
        with recorder:
            recorder.record(0, {"valid_loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text().count("valid_loss") == 1
    recorder = Recorder(RunDirectory(tmp_path), config, 4, 0)
    recorder.rewind(6, Progress(step=0))
    assert (tmp_path / "metrics.jsonl").read_text().count("valid_loss") == 1, "still that of step 0"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process can grow to 4 KiB, then writing to them fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The thread of tensorboard that writes its file dies of the full disk, as it is meant to here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_figures_and_not_the_run(
    full_disk: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorBoard's thread fails between two writes, or only when the writer is closed."""
    for name, values in (("many", [f"loss_{i}" for i in range(50)]), ("few", ["loss"])):
        caplog.clear()
        folder = tmp_path / name
        folder.mkdir()
        writer = MetricsWriter(folder / "metrics.jsonl", folder / "tensorboard", -1, Reports())
        with caplog.at_level(logging.WARNING):
            for step in range(400):
                writer.write(step, dict.fromkeys(values, float(step)))
            writer.close()
        failures = [message for message in caplog.messages if "training goes on" in message]
        assert sorted(message.split(" cannot")[0] for message in failures) == [
            "TensorBoard's events",
            "metrics.jsonl",
        ]
        (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:2000])
        writer.write(400, {"loss": 1.0})
        assert read_lines(folder / "metrics.jsonl")[-1] == {"step": 400, "loss": 1.0}
