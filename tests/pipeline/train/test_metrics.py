import json
from pathlib import Path

from pipeline.train.metrics import MetricsWriter


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    first = MetricsWriter(metrics, tmp_path / "tensorboard", 0)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss": float(step), "mfu": "n/a"})
    first.close()
    with metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    resumed = MetricsWriter(metrics, tmp_path / "tensorboard", 2)
    resumed.write(3, {"loss": 30.0})
    resumed.close()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert lines[0]["mfu"] == "n/a"
