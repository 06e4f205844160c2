"""`esolm checkpoint ls | verify | diff`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from esolm.pipeline.checkpoint.commit import set_aside
from esolm.pipeline.checkpoint.compare import compare_tensors
from esolm.pipeline.cli.main import app
from tests.pipeline.conftest import RecordedRun


@pytest.fixture
def damaged(recorded_run: RecordedRun, tmp_path: Path) -> Path:
    """A copy of the run with a flipped bit in its newest checkpoint and half a file before it."""
    run = tmp_path / "run"
    shutil.copytree(recorded_run.path / "checkpoints", run / "checkpoints")
    (newest,) = (run / "checkpoints" / "step_00000012").glob("*.distcp")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 8
    newest.write_bytes(content)
    (older,) = (run / "checkpoints" / "step_00000008").glob("*.distcp")
    older.write_bytes(older.read_bytes()[:1000])
    return run


def invoke(*arguments: object) -> tuple[int, str]:
    finished = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    return finished.exit_code, finished.output


def test_ls_names_what_is_cut_short(damaged: Path) -> None:
    code, output = invoke("ls", damaged, "--json")
    found = json.loads(output)
    assert code == 0
    assert [(info["step"], info["valid"]) for info in found] == [(4, True), (8, False), (12, True)]
    assert "1000 bytes" in found[1]["damage"]
    assert found[0]["bytes"] > 5_000_000
    assert "no: " in invoke("ls", damaged)[1]
    set_aside(damaged / "checkpoints" / "step_00000012")
    last = json.loads(invoke("ls", damaged, "--json")[1])[-1]
    assert (last["name"], last["valid"]) == ("step_00000012.damaged", False)
    assert "found it damaged" in last["damage"]


def test_verify_reads_every_byte(damaged: Path) -> None:
    checkpoints = damaged / "checkpoints"
    assert invoke("verify", checkpoints / "step_00000004")[0] == 0
    code, output = invoke("verify", damaged)
    assert code == 64
    assert ".distcp: checksum differs" in output
    code, output = invoke("verify", checkpoints / "step_00000008")
    assert code == 64
    assert "1000 bytes" in output
    (checkpoints / "step_00000004" / "manifest.json").unlink()
    assert invoke("verify", checkpoints / "step_00000004")[0] == 64


def test_diff_tells_equal_from_unequal(recorded_run: RecordedRun, tmp_path: Path) -> None:
    newest = recorded_run.path / "checkpoints" / "step_00000012"
    copied = shutil.copytree(newest, tmp_path / "step_00000012")
    code, output = invoke("diff", recorded_run.path, copied)
    assert (code, output.splitlines()[-1]) == (0, "equal bit by bit")
    code, output = invoke("diff", recorded_run.path, newest.with_name("step_00000008"))
    assert code == 1
    assert "... and 20 more" in output


def test_differences_are_sorted_and_what_cannot_be_compared_is_named() -> None:
    nan = torch.tensor([float("nan")])
    a = {"x": torch.zeros(2), "y": torch.ones(3), "z": nan, "only": nan, "shape": torch.ones(2)}
    b = {"x": torch.ones(2), "y": torch.ones(3) * 3, "z": nan.clone(), "shape": torch.ones(1, 2)}
    found = compare_tensors("ema", a, b)
    assert found.largest == [("y", 2.0), ("x", 1.0)]
    assert (found.only_a, found.only_b) == (["only"], [])
    assert found.shapes == [("shape", (2,), (1, 2))]
    assert not found.equal
    assert found.lines(1)[-1] == "... and 1 more"
    assert compare_tensors("ema", a, a).equal
    assert not compare_tensors("ema", {"x": torch.tensor([0.0])}, {"x": torch.tensor([-0.0])}).equal
