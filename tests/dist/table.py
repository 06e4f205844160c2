"""The table of docs/parallelism.md: `python -m tests.dist.table` measures and prints it."""

import tempfile
from pathlib import Path

from tests.dist import layouts
from tests.dist.layouts import FOUR_RANKS, TWO_RANKS, Distance, distance

STEPS = 10
OBJECTIVES = {
    "Eso-LM A": {"objective": "esolm_a"},
    "Eso-LM B": {"objective": "esolm_b"},
    "AR": {"objective": "ar", "model": "modern"},
    "MDLM": {"objective": "mdlm", "model": "modern"},
    "BD3-LM": {"objective": "bd3lm"},
    "Eso-LM B, GQA": {"objective": "esolm_b", "model": "grouped"},
}
# (losses, gradient norms, weights). bf16 rounds each activation to 3 significant digits, in
# another order in another layout.
TOLERANCES = {"fp32": (1e-5, 1e-5, 1e-5), "bf16": (1e-2, 2e-2, 2e-2)}


def measure(precision: str, folder: Path) -> dict[tuple[str, str], Distance]:
    """(layout, objective) -> distance from a single process; three launches."""
    settings = {name: {**each, "precision": precision} for name, each in OBJECTIVES.items()}
    single = {name: ("one", each) for name, each in settings.items()}
    expected = layouts.run(single, folder / f"{precision}_1", STEPS, 600)
    found = {}
    for size, names in ((2, TWO_RANKS), (4, FOUR_RANKS)):
        pairs = [(layout, objective) for layout in names for objective in OBJECTIVES]
        cases = {f"{layout}, {name}": (layout, settings[name]) for layout, name in pairs}
        outcomes = layouts.run(cases, folder / f"{precision}_{size}", STEPS, 1700)
        for pair, outcome in zip(pairs, outcomes.values(), strict=True):
            found[pair] = distance(outcome, expected[pair[1]])
    return found


def problems(name: str, found: Distance, precision: str) -> list[str]:
    """What lies beyond the tolerance."""
    values = (found.loss, found.norm, found.weights)
    return [
        f"{name}: {what} differ by {value:.1e}, {allowed:.0e} is allowed"
        for what, value, allowed in zip(
            ("losses", "norms", "weights"), values, TOLERANCES[precision], strict=True
        )
        if not value <= allowed
    ]


def markdown(found: dict[tuple[str, str], Distance]) -> str:
    rows = [
        f"| {layout} | " + " | ".join(str(found[layout, name]) for name in OBJECTIVES) + " |"
        for layout in dict.fromkeys(layout for layout, _ in found)
    ]
    head = ["| layout | " + " | ".join(OBJECTIVES) + " |", "|---" * (len(OBJECTIVES) + 1) + "|"]
    return "\n".join([*head, *rows])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for precision in TOLERANCES:
            found = measure(precision, Path(folder))
            print(f"{precision}, {STEPS} steps:\n\n{markdown(found)}\n", flush=True)


if __name__ == "__main__":
    main()
