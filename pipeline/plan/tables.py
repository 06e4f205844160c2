"""Shows a plan as tables for people."""

import sys
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from esolm.model.config import RECOMPUTE
from esolm.pipeline.plan.cost import Machine
from esolm.pipeline.plan.plan import Plan
from esolm.pipeline.plan.report import FLOPS_DEFINITION, SEARCH_CAVEAT, describe
from esolm.pipeline.plan.search import Search


def show(console: Console, plan: Plan, machine: Machine) -> None:
    """Prints the tables of a plan."""
    facts = describe(plan, machine)
    for note in facts["notes"]:
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.print(_summary(plan, facts))
    console.print(_memory(facts))
    console.print(_host_memory(facts))
    console.print(f"FLOPs: {FLOPS_DEFINITION}.", style="dim", highlight=False)


def _summary(plan: Plan, facts: dict[str, Any]) -> Table:
    table = Table(title=f"{plan.layout} on {plan.layout.world_size} ranks", show_header=False)
    batch, time = facts["batch"], facts["time"]
    parameters = dict(facts["parameters"])
    table.add_row("parameters", f"{parameters.pop('total'):,}")
    for part, count in parameters.items():
        table.add_row(f"  {part}", f"{count:,}")
    table.add_row("FLOPs per token", f"{facts['flops_per_token']:.4g}")
    for row in facts["attention"]:
        table.add_row(
            f"  {row['pattern']}",
            f"{row['share_of_rows']:.0%} of rows, {row['tokens_fed']:,} tokens fed, attention "
            f"density {row['density']:.4f}, {row['scored']:.0f} scored",
        )
    table.add_row(
        "rows per step",
        f"{batch['rows_per_step']:,} = {batch['micro_batches']} micro-batches x "
        f"{batch['micro_batch_size']} rows x {batch['replicas']} replicas",
    )
    table.add_row("tokens per step", f"{batch['tokens_per_step']:,}")
    table.add_row("tokens in all", f"{batch['tokens']:,} in {batch['steps']:,} steps")
    for use in facts["sources"]:
        bound = f" of {use['epochs_max']:g}" if use["epochs_max"] else ""
        table.add_row(
            f"  of {use['name']}",
            f"{use['share']:.4g} of the samples, {use['samples']:,} rows of "
            f"{use['num_sequences']:,}: {use['epochs']:.3g}{bound} epochs",
        )
    table.add_row("pipeline bubble", f"{facts['bubble_share']:.1%}")
    table.add_row(
        "checkpoint", f"{size(facts['checkpoint_bytes'])}, {facts['checkpoints_kept']} kept"
    )
    decoding = facts["decoding"]
    table.add_row(
        "a text, decoded on a CPU",
        f"{size(decoding['total'])} of host memory, of which its keys and values "
        f"{size(decoding['cache'])}",
    )
    table.add_row(
        "expected time",
        f"{duration(time['seconds'])} at {time['mfu']:.0%} MFU of {time['gpu']}, "
        f"{time['flops']:.3g} FLOPs",
    )
    return table


_ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer_master": "optimizer: fp32 weights",
    "optimizer_moments": "optimizer: two moments",
    "ema": "EMA",
    "reduce_bucket": "reduction buckets",
    "while_computing": "while computing",
    "while_reducing": "while reducing",
}


def _memory(facts: dict[str, Any]) -> Table:
    mode, stages = facts["activation_checkpointing"], facts["stages"]
    table = Table(title=f"Memory per GPU by stage; activation checkpointing: {mode}")
    table.add_column("part")
    for number in range(len(stages)):
        table.add_column(f"stage {number}" if len(stages) > 1 else "bytes", justify="right")
    table.add_row("layers", *[f"{s['layers'][0]}-{s['layers'][1] - 1}" for s in stages])
    table.add_row("parameters", *[f"{s['parameters_per_rank']:,}" for s in stages])
    table.add_row("micro-batches in flight", *[str(s["micro_batches_in_flight"]) for s in stages])
    for key, label in _ROWS.items():
        table.add_row(label, *[size(s[key]) for s in stages])
    for kind in RECOMPUTE:
        label = f"activations, {kind}" + (" (chosen)" if kind == mode else "")
        table.add_row(label, *[size(s["activations"][kind]) for s in stages])
    table.add_row("one block's backward pass", *[size(s["working"][mode]) for s in stages])
    table.add_row("logits", *[size(s["logits"]) for s in stages])
    table.add_row("peak", *[size(s["peak"]) for s in stages], style="bold")
    allowance = size(facts["gpu_allowance_bytes"])
    table.add_row("CUDA, NCCL, fragmentation (allowance)", *[allowance for _ in stages])
    return table


_HOST_ROWS = {
    "process": "interpreter, libraries, CUDA, NCCL (allowance)",
    "offloaded": "offloaded optimizer",
    "staging": "copies of asynchronous saves, pinned",
    "starting": "until then: while starting",
}


def _host_memory(facts: dict[str, Any]) -> Table:
    node, stages = size(facts["node_memory_bytes"]), facts["stages"]
    table = Table(title=f"Host memory per rank by stage; {node} on a node")
    table.add_column("part")
    for number in range(len(stages)):
        table.add_column(f"stage {number}" if len(stages) > 1 else "bytes", justify="right")
    for key, label in _HOST_ROWS.items():
        table.add_row(label, *[size(s["host"][key]) for s in stages])
    table.add_row("peak", *[size(s["host"]["peak"]) for s in stages], style="bold")
    return table


def show_search(console: Console, found: Search, count: int) -> None:
    """Prints the ranking of a search, with times in milliseconds."""
    title = f"{found.tried} layouts tried, {found.too_large} too large; ms per step, estimated"
    table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
    for name in (
        "layout",
        "rows",
        "recompute",
        "step",
        "compute",
        "bubble",
        "tp",
        "cp",
        "pp",
        "dp",
        "memory",
    ):
        table.add_column(name, justify="left" if name == "layout" else "right", no_wrap=True)
    for candidate in found.ranked[:count]:
        layout, seconds = candidate.plan.layout, candidate.seconds
        times = (
            seconds.total, seconds.compute, seconds.bubble, seconds.tensor, seconds.context,
            seconds.messages, seconds.data,
        )  # fmt: skip
        table.add_row(
            f"TP{layout.tp}{'+SP' if layout.sequence else ''} "
            f"{f'CP{layout.cp} ' if layout.cp > 1 else ''}"
            f"PP{layout.pp} DP{layout.dp} Z{layout.zero}",
            str(candidate.plan.subject.config.train.micro_batch_size),
            candidate.checkpointing,
            *[f"{1000 * value:.3g}" for value in times],
            size(candidate.memory),
        )
    console.print(table)
    settings = " ".join(found.ranked[0].settings)
    console.print(f"first: {settings}", highlight=False, soft_wrap=True)
    console.print(SEARCH_CAVEAT, style="yellow", highlight=False)


def console() -> Console:
    """Returns a console on standard output, wide enough for the tables if that is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 100)


def size(number: float) -> str:
    """Writes a number of bytes in decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Writes seconds in the unit that a person would choose."""
    for unit, scale in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1f} seconds"
