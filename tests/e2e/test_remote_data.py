"""Training on a dataset that lies behind a server."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from esolm.data_prep.manifest import read_manifest
from tests.e2e.runs import finish, last_step, losses, start, wait_until, write_config
from tests.http_ranges import RangeServer
from tests.pipeline.data.test_checked_reading import flip
from tests.processes import run_python

pytestmark = pytest.mark.dist


@pytest.mark.check
def test_a_run_over_http_is_the_run_of_the_folder(dataset: Path, tmp_path: Path) -> None:
    """It is killed, and goes on with the cache that it left."""
    one = ["parallel.tp=1", "train.steps=24", "train.valid_every_steps=12"]
    one.append("optimizer.schedule=constant")
    local = write_config(tmp_path / "local", dataset)
    finish(start("train", str(local), *one), 0)
    server = RangeServer(dataset.parent)
    with server.started() as url:
        address = f"{url}/{dataset.name}"
        config = write_config(tmp_path / "remote", Path("none"))
        options = [*one, f"data.path={address}", f"data.cache_dir={tmp_path}/cache"]
        killed = start("train", str(config), *options, "train.steps=4000")
        run = tmp_path / "remote" / "run"
        wait_until(lambda: last_step(run) >= 6)
        killed.send_signal(signal.SIGKILL)
        finish(killed, -signal.SIGKILL)
        reached = last_step(run)
        server.paths.clear()
        steps = max(24, reached)
        finish(start("train", str(config), *options, f"train.steps={steps}"), 0)
        assert [path for path in server.paths if path.endswith(".tar")] == [], "all is kept here"
        planned = run_python("-m", "esolm", "plan", str(config), *options, "--json")
        evaluate = ["-m", "esolm", "evaluate", str(run), "--samples-limit", "4", "--json"]
        evaluated = [run_python(*evaluate, data) for data in (address, str(dataset))]
    mine, theirs = dict(losses(run)), dict(losses(tmp_path / "local" / "run"))
    assert [mine[step] for step in range(1, 25)] == [theirs[step] for step in range(1, 25)]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [line for line in lines if "loss" in line]
    assert figures[0]["data_fetched_bytes"] >= 0
    assert figures[-1]["data_cache_hits"] == 1.0
    assert planned.returncode == 0, planned.stderr
    found, expected = (json.loads(each.stdout) for each in evaluated)
    assert found["data"].pop("name") == f"{address} (valid)"
    del expected["data"]["name"]
    assert found == expected


@pytest.mark.check
def test_a_run_goes_on_without_damaged_rows(dataset: Path, tmp_path: Path) -> None:
    """By default it ends. Two ranks replace the rows that one replaces."""
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    for shard in read_manifest(data).shards:
        flip(data / shard.name, 512 + 2 * 10)
    once = [
        "parallel.tp=1",
        "train.steps=20",
        "train.valid_every_steps=20",
        "train.log_every_steps=5",
    ]
    config = write_config(tmp_path, data)
    stopped = finish(start("train", str(config), *once), 64)
    assert "tokens are not what was written" in stopped
    once.append("data.on_corrupt=quarantine")
    for ranks in (1, 2):
        config = write_config(tmp_path / str(ranks), data)
        finish(start("train", str(config), *once, "--ranks", str(ranks)), 0)
        logs = (tmp_path / str(ranks) / "run" / "logs").glob("rank_*.log")
        told = "".join(log.read_text() for log in logs)
        assert told.count("rows that touch it are replaced") == 2
    runs = [tmp_path / "1" / "run", tmp_path / "2" / "run"]
    listed = [
        [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
        for run in runs
    ]
    assert [sorted(line["split"] for line in lines) for lines in listed] == [["train", "valid"]] * 2
    replaced = [
        [json.loads(line).get("quarantined_rows", 0) for line in lines.splitlines()]
        for lines in ((run / "metrics.jsonl").read_text() for run in runs)
    ]
    assert replaced[0] == replaced[1]
    assert sum(replaced[0]) > 0
    assert [loss for _, loss in losses(runs[0])] == pytest.approx(
        [loss for _, loss in losses(runs[1])], rel=1e-5
    )
