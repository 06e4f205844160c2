"""The checkpoint that the published code wrote, against the logits that it computed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.inputs import NetworkInput
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.export.gate_network import bundle_logits, training_logits
from esolm.pipeline.export.manifest import verify_bundle
from esolm.pipeline.export.writer import read_model
from esolm.pipeline.importer.importing import import_checkpoint
from esolm.pipeline.importer.recognise import Options
from tests.processes import run_python

DATA = Path(__file__).parents[2] / "data"
FILE = DATA / "official_tiny.ckpt"
# Largest difference in the logits, which reach 9.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(DATA / "official_tiny_expected.safetensors")


@pytest.fixture(scope="module")
def inputs(expected: dict[str, Tensor]) -> NetworkInput:
    zeros = torch.zeros(len(expected["sort_idx"]), dtype=torch.int64)
    return NetworkInput(
        expected["zt_sorted"], expected["sort_idx"], AttentionPattern.CAUSAL, zeros, zeros
    )


def difference(logits: Tensor, expected: Tensor) -> float:
    """Over all columns but the mask's, which the published backbone leaves as it is."""
    assert (logits[..., 50] == -torch.inf).all()
    return float((logits - expected)[..., :50].abs().max())


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_logits_of_checkpoint_and_bundle(
    tmp_path: Path,
    quick: None,
    expected: dict[str, Tensor],
    inputs: NetworkInput,
    weights: str,
) -> None:
    out = tmp_path / "imported"
    import_checkpoint(FILE, out, Options(weights=weights, dtype="fp32"))
    reader = CheckpointReader(out)
    for state, name in (("weights", "raw"), ("ema", "ema")):
        (logits,) = training_logits(reader.model, reader.tensors(state), [inputs])
        assert difference(logits, expected[f"logits_{name}"]) < TOLERANCE
    bundle = read_model(out / "bundle", torch.float32)
    assert difference(bundle_logits(bundle, inputs), expected[f"logits_{weights}"]) < TOLERANCE


def test_ema_list_is_in_the_order_of_registration(tmp_path: Path, quick: None) -> None:
    """The state dict of this file is sorted by name: its order says nothing."""
    values = json.loads((DATA / "official_tiny_expected.json").read_text())["values"]
    from esolm.pipeline.importer.published import parameters

    import_checkpoint(FILE, tmp_path / "imported", Options())
    model = CheckpointReader(tmp_path / "imported").model
    order = [p.published.removeprefix("backbone.") for p in parameters(model)]
    assert order == values["shadow_params_order"]


@pytest.mark.check
def test_command_with_the_whole_gate(tmp_path: Path) -> None:
    out = tmp_path / "imported"
    command = ["-m", "esolm", "import", str(FILE)]
    done = run_python(*command, "--out", str(out), "--variant", "B")
    assert done.returncode == 0, done.stderr
    assert "Eso-LM (B), alpha_0 0.25, step 250000" in done.stdout
    files = ["bundle", "checkpoints", "config.yaml", "import.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    record = verify_bundle(out / "bundle")
    assert set(record["gate"]) == {"coverage", "logit_parity", "decoding", "reload", "tokenizer"}
    assert record["gate"]["decoding"]["schedules"] == 5
    assert record["tokenizer"] is None
    again = run_python(*command, "--out", str(out))
    assert again.returncode == 64
    assert "not empty" in again.stderr
    wrong = run_python(*command, "--out", str(tmp_path / "other"), "--variant", "A")
    assert wrong.returncode == 64
    assert "was trained as Eso-LM (B), not as (A)" in wrong.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["imported"]
