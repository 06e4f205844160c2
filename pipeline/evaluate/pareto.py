"""The quality of samples against the seconds that they take, as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What the height of a point may show, in order of preference: the column, its name, and whether a
# smaller value is better.
QUALITIES = (
    ("generative_perplexity", "generative perplexity", True),
    ("mauve", "MAUVE", False),
    ("entropy", "sample entropy (nats)", False),
)


def write(settings: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Writes pareto.csv and pareto.png into a folder and returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    key, _, smaller = quality_of(settings)
    front = frontier([(each["seconds_per_sample"], each[key]) for each in settings], smaller)
    table, picture = out / "pareto.csv", out / "pareto.png"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*settings[0], "on_front"])
        writer.writeheader()
        for number, each in enumerate(settings):
            writer.writerow({**each, "on_front": number in front})
    draw(settings, front, picture)
    return [table, picture]


def quality_of(settings: Sequence[dict[str, Any]]) -> tuple[str, str, bool]:
    """Returns the first of QUALITIES that every setting has."""
    return next(q for q in QUALITIES if all(each[q[0]] is not None for each in settings))


def frontier(points: Sequence[tuple[float, float]], smaller: bool) -> list[int]:
    """Returns the indices of the (seconds, quality) points that no other point beats in both.

    They are sorted by rising seconds.
    """
    front: list[int] = []
    for number in sorted(range(len(points)), key=lambda i: (points[i][0], i)):
        value = points[number][1]
        best = points[front[-1]][1] if front else None
        if best is None or (value < best if smaller else value > best):
            front.append(number)
    return front


def draw(settings: Sequence[dict[str, Any]], front: Sequence[int], path: Path) -> None:
    """Draws one line for each alpha_0, with a point for each number of steps.

    The Pareto front is marked, and the labels of the points are the numbers of forward passes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key, name, smaller = quality_of(settings)
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    alphas = sorted({each["alpha_0"] for each in settings})
    for number, alpha_0 in enumerate(alphas):
        points = [each for each in settings if each["alpha_0"] == alpha_0]
        _draw_line(axes, points, key, COLORS[number % len(COLORS)])
    axes.plot(
        [settings[i]["seconds_per_sample"] for i in front],
        [settings[i][key] for i in front],
        "o", markersize=13, markerfacecolor="none", markeredgecolor="black", label="Pareto front",
    )  # fmt: skip
    _scale(axes.set_xscale, axes.xaxis, [each["seconds_per_sample"] for each in settings])
    if key == "generative_perplexity":
        _scale(axes.set_yscale, axes.yaxis, [each[key] for each in settings])
    axes.margins(0.08, 0.12)
    axes.set_xlabel("seconds per sample")
    axes.set_ylabel(f"{name} ({'lower' if smaller else 'higher'} is better)")
    axes.set_title("Quality against time; numbers are forward passes (NFE)", fontsize=11)
    axes.grid(True, alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _draw_line(axes: Any, points: Sequence[dict[str, Any]], key: str, color: str) -> None:
    from matplotlib.patheffects import withStroke

    points = sorted(points, key=lambda each: each["nfe"])
    alpha_0 = points[0]["alpha_0"]
    label = f"alpha_0 = {alpha_0:g}" + (" (left to right)" if alpha_0 == 0 else "")
    seconds = [each["seconds_per_sample"] for each in points]
    heights = [each[key] for each in points]
    axes.plot(seconds, heights, "o-", color=color, label=label, linewidth=1.5, markersize=6)
    for x, y, each in zip(seconds, heights, points, strict=True):
        axes.annotate(
            f"{each['nfe']:.0f}", (x, y), (0, 9), textcoords="offset points", ha="center",
            fontsize=9, color=color, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip


def _scale(set_scale: Any, axis: Any, values: Sequence[float]) -> None:
    """Makes an axis logarithmic, with plain numbers at the ticks, however narrow its range."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    set_scale("log")
    wide = max(values) > 10 * min(values)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(6))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


# These can be told apart under the common forms of colour blindness (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
