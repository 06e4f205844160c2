"""A run that is stopped and resumed, in the same or in another layout, is the uninterrupted run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.pipeline.checkpoint.store import read_full
from esolm.pipeline.parallel.fragments import STATES
from esolm.pipeline.parallel.layout import Layout
from tests.dist.ranks import run_ranks

LAYOUTS = {
    "single": {"tp": 1, "pp": 1, "dp": 1, "zero": 1},
    "tp2": {"tp": 2, "pp": 1, "dp": 1, "zero": 1},
    "pp2": {"tp": 1, "pp": 2, "dp": 1, "zero": 1},
    "dp2z1": {"tp": 1, "pp": 1, "dp": 2, "zero": 1},
    "dp2z2": {"tp": 1, "pp": 1, "dp": 2, "zero": 2},
    "dp2z3": {"tp": 1, "pp": 1, "dp": 2, "zero": 3},
    "cp2": {"tp": 1, "pp": 1, "dp": 1, "zero": 1, "cp": 2},
    "cp2z3": {"tp": 1, "pp": 1, "dp": 1, "zero": 3, "cp": 2},
    "tp2pp2": {"tp": 2, "pp": 2, "dp": 1, "zero": 1},
    "tp2dp2z3": {"tp": 2, "pp": 1, "dp": 2, "zero": 3},
    "cp2pp2": {"tp": 1, "pp": 2, "dp": 1, "zero": 1, "cp": 2},
    "cp4": {"tp": 1, "pp": 1, "dp": 1, "zero": 1, "cp": 4},
}
LAYOUTS |= {f"tied {name}": LAYOUTS[name] for name in ("single", "pp2", "tp2pp2", "dp2z3")}
# (saved in, resumed in); the same layout twice is compared bit by bit.
PAIRS = [
    ("single", "single"),
    ("tp2", "single"),
    ("dp2z3", "single"),
    ("tp2pp2", "single"),
    ("tp2", "tp2"),
    ("pp2", "pp2"),
    ("dp2z1", "dp2z1"),
    ("dp2z2", "dp2z2"),
    ("dp2z3", "dp2z3"),
    ("single", "dp2z3"),
    ("dp2z3", "dp2z1"),
    ("dp2z1", "dp2z3"),
    ("tp2pp2", "dp2z2"),
    ("tp2dp2z3", "pp2"),
    ("pp2", "tp2"),
    ("tp2pp2", "tp2pp2"),
    ("dp2z3", "tp2dp2z3"),
    ("cp2z3", "single"),
    ("single", "cp2"),
    ("cp2", "cp2"),
    ("cp2pp2", "dp2z1"),
    ("cp2z3", "cp4"),
    ("tied pp2", "tied pp2"),
    ("tied pp2", "tied single"),
    ("tied dp2z3", "tied tp2pp2"),
    ("tied tp2pp2", "tied dp2z3"),
]
# What `make test` takes: from each sort of two ranks into another.
FEW = [("tp2", "single"), ("pp2", "tp2"), ("dp2z3", "dp2z1"), ("cp2z3", "single")]
EACH_PAIR = [pytest.param(*pair, marks=[] if pair in FEW else pytest.mark.check) for pair in PAIRS]


def case(name: str) -> dict[str, Any]:
    return {"layout": LAYOUTS[name], "model": "tied" if "tied" in name else "paper"}


def world_size(layout: str) -> int:
    return Layout(**LAYOUTS[layout]).world_size


def pairs_asked_for(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """The pairs whose tests this session runs; all, if it runs the one that looks at no pair."""
    mine = [item for item in request.session.items if item.path == request.path]
    if not all(hasattr(item, "callspec") for item in mine):
        return PAIRS
    asked = {(item.callspec.params["source"], item.callspec.params["to"]) for item in mine}
    return [pair for pair in PAIRS if pair in asked]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per layout: `L/three`, a checkpoint at step 3, and `L/five`, the uninterrupted run's end.

    Per pair: `A-B`, the end of the run that was saved in A and resumed in B. Only what the tests
    of this session look at is run.
    """
    folder = tmp_path_factory.mktemp("resume")
    pairs = pairs_asked_for(request)
    used = {name for pair in pairs for name in pair}
    references = {"tied single" if "tied" in name else "single" for name in used}
    names = [name for name in LAYOUTS if name in used | references]
    for size in (1, 2, 4):
        mine = [name for name in names if world_size(name) == size]
        cases = [{**case(name), "folder": str(folder / name / "three")} for name in mine]
        if cases:
            run_ranks("save_at_three", size, {"cases": cases}, folder / f"save{size}", 240)
    for size in (1, 2, 4):
        cases = [
            {**case(name), "out": str(folder / name / "five")}
            for name in names
            if world_size(name) == size
        ]
        cases += [
            {
                **case(to),
                "folder": str(folder / source / "three"),
                "out": str(folder / f"{source}-{to}"),
            }
            for source, to in pairs
            if world_size(to) == size
        ]
        if cases:
            run_ranks("resume_to_five", size, {"cases": cases}, folder / f"resume{size}", 240)
    return folder


def states(path: Path) -> dict[str, torch.Tensor]:
    return {
        f"{state}/{name}": tensor
        for state in STATES
        for name, tensor in read_full(path, state).items()
    }


@pytest.mark.dist
@pytest.mark.parametrize(("source", "to"), EACH_PAIR)
def test_resumed_equals_uninterrupted(source: str, to: str, runs: Path) -> None:
    single = "tied single" if "tied" in to else "single"
    resumed, reference = states(runs / f"{source}-{to}"), states(runs / single / "five")
    assert resumed.keys() == reference.keys()
    for name, tensor in resumed.items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-5, atol=1e-5, msg=name)
    if source == to:
        uninterrupted = states(runs / to / "five")
        different = [n for n in resumed if not torch.equal(resumed[n], uninterrupted[n])]
        assert not different


@pytest.mark.dist
@pytest.mark.parametrize(("source", "to"), EACH_PAIR)
def test_a_checkpoint_is_the_same_whichever_layout_wrote_it(
    source: str, to: str, runs: Path
) -> None:
    """Loaded into another layout and saved from there: bit by bit the same full tensors."""
    original, again = states(runs / source / "three"), states(runs / f"{source}-{to}-again")
    assert original.keys() == again.keys()
    assert not [name for name in original if not torch.equal(original[name], again[name])]


@pytest.mark.dist
@pytest.mark.check
def test_states_moved_between_the_checkpoints(runs: Path) -> None:
    """The comparison above would be empty if nothing were trained between steps 3 and 5."""
    three, five = states(runs / "single" / "three"), states(runs / "single" / "five")
    unchanged = [name for name in five if torch.equal(three[name], five[name])]
    assert not unchanged, unchanged
    assert three["weights/embedding.tokens.weight"].shape == (51, 32)
    tied = states(runs / "tied tp2pp2" / "three")
    assert three.keys() - tied.keys() == {f"{state}/head.output.weight" for state in STATES}
