"""No rank ever holds the whole network, nor much more than what its training holds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.model.tensors import network_tensors
from esolm.pipeline.export.architecture import bundle_name
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.host import PROCESS_BYTES, STAGED_STATES
from esolm.pipeline.plan.shapes import stage_size
from esolm.pipeline.plan.state import state_bytes
from tests.dist.memory_worker import network
from tests.dist.ranks import run_ranks

pytestmark = pytest.mark.dist

ALLOWED = 1.1
RANKS = 4
ZERO_3 = {"tp": 1, "pp": 1, "dp": RANKS, "zero": 3}
TIMEOUT = 1500
# Layers and precision; the parameters in words.
SIZES = [
    pytest.param(3, "fp32", marks=pytest.mark.check, id="0.1 B"),
    pytest.param(35, "fp32", marks=pytest.mark.slow, id="0.5 B"),
    pytest.param(75, "fp32", marks=pytest.mark.slow, id="1 B"),
    pytest.param(75, "bf16", marks=pytest.mark.slow, id="1 B, bf16"),
]


def needs_memory(layers: int, precision: str, asynchronous: bool) -> None:
    size = stage_size(network(layers), 0, layers + 2, 1)
    needed = RANKS * (allowed(layers, precision, asynchronous) + PROCESS_BYTES)
    free = Path("/proc/meminfo").read_text()
    available = 1024 * sum(
        int(free.split(f"{kind}:")[1].split()[0]) for kind in ("MemAvailable", "SwapFree")
    )
    if needed > available:
        pytest.skip(
            f"{size.parameters / 1e9:.2f} B parameters need {needed / 1e9:.0f} GB of memory, "
            f"{available / 1e9:.0f} GB are free, swap included"
        )


def allowed(layers: int, precision: str, asynchronous: bool) -> float:
    """What training holds, a tenth more, and one tensor."""
    size = stage_size(network(layers), 0, layers + 2, 1)
    held = state_bytes(size, Layout(**ZERO_3), precision).held
    staged = 4 * STAGED_STATES * size.parameters / RANKS if asynchronous else 0
    return ALLOWED * (held + staged) + 4 * size.largest


def run(
    layers: int, precision: str, folder: Path, begin: str, asynchronous: bool = False
) -> list[int]:
    arguments: dict[str, Any] = {
        "layers": layers,
        "case": {"layout": ZERO_3, "precision": precision},
        "folder": str(folder),
        "begin": begin,
        "asynchronous": asynchronous,
    }
    found: list[int] = run_ranks(
        "peaks", RANKS, arguments, folder.with_suffix(f".{begin}"), TIMEOUT,
        "tests.dist.memory_worker",
    )  # fmt: skip
    return found


@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["waits", "asynchronous"])
@pytest.mark.parametrize(("layers", "precision"), SIZES)
def test_start_save_and_resume_take_no_more_than_the_states(
    layers: int, precision: str, asynchronous: bool, tmp_path: Path
) -> None:
    needs_memory(layers, precision, asynchronous)
    folder = tmp_path / "checkpoints"
    found = {
        begin: max(run(layers, precision, folder, begin, asynchronous))
        for begin in ("anew", "resume")
    }
    print({begin: f"{peak / 1e9:.2f} GB" for begin, peak in found.items()})
    limit = allowed(layers, precision, asynchronous)
    assert all(peak < limit for peak in found.values()), (found, limit)


@pytest.mark.check
def test_a_start_from_a_bundle_takes_no_more_than_the_states(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, folder = network(3), tmp_path / "bundle"
    folder.mkdir()
    tensors = {bundle_name(t.name): torch.ones(t.shape) for t in network_tensors(model).values()}
    save_file(tensors, folder / "model.safetensors")
    found = max(run(3, "fp32", folder, "bundle"))
    print(f"{found / 1e9:.2f} GB")
    assert found < allowed(3, "fp32", False)
