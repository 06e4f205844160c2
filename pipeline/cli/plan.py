"""`esolm plan`: what a run will take, before any GPU is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from esolm.pipeline.plan.cost import Machine
    from esolm.pipeline.run.sections import RunConfig

SHOWN_LAYOUTS = 10


def plan_command(
    config: Annotated[Path, typer.Argument(help="Run configuration, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, over what the file says.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks in all; without it and --nodes, one replica.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes, instead of --ranks.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
    vocab_size: Annotated[
        int | None, typer.Option(metavar="N", help="In place of a dataset that is not there yet.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="A100, H100, H200 or B200; without it an H100 is assumed.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Memory of a GPU; else the data sheet's.")
    ] = None,
    host_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Host memory of a node, to compare with.")
    ] = None,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the peak that is reached.")
    ] = 0.4,
    network: Annotated[
        float, typer.Option(metavar="GB/S", min=0.01, help="Of a GPU to another node, one way.")
    ] = 50.0,
    search: Annotated[
        bool, typer.Option("--search", help="Rank all valid layouts by an estimate.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print parameters, FLOPs, memory, batches, time and everything that is wrong, from the config.

    Takes no GPU and starts no process group. Exit code 64 for whatever `esolm train` would refuse,
    and for a layout that does not fit the GPU that --gpu or --gpu-memory names, or the nodes'
    --host-memory. Without the first two an H100 is assumed: what does not fit it is said, and the
    exit code is 0.

    Example:

        esolm plan configs/run/owt_esolm_b_0d5.yaml --nodes 1 --vocab-size 50257

        esolm plan configs/run/demo.yaml --vocab-size 4096 --nodes 2 --gpus-per-node 4 --search
    """
    from dataclasses import replace

    from esolm.pipeline.errors import ConfigError
    from esolm.pipeline.plan.cost import Machine, fp8_misfit, gpu_named
    from esolm.pipeline.run.config import load_config

    resolved = load_config(config, overrides or [])
    kind = gpu_named(gpu or "H100")
    if lacking := fp8_misfit(resolved.train, kind):
        raise ConfigError(lacking)
    if gpu_memory is not None:
        kind = replace(kind, memory=gpu_memory * 1e9)
    machine = Machine(
        kind,
        gpus_per_node,
        network * 1e9,
        mfu,
        None if host_memory is None else host_memory * 1e9,
    )
    if nodes is not None:
        ranks = nodes * gpus_per_node
    if search:
        _search(resolved, ranks or gpus_per_node, machine, vocab_size, as_json)
    else:
        alone = resolved.parallel.tp * resolved.parallel.cp * resolved.parallel.pp
        on_gpu, on_host = _plan(resolved, ranks or max(1, alone), machine, vocab_size, as_json)
        if on_gpu and gpu is None and gpu_memory is None:
            typer.echo(f"note: {on_gpu} (assumed; --gpu names another)", err=True)
            on_gpu = None
        if problems := [problem for problem in (on_gpu, on_host) if problem]:
            raise ConfigError(problems)


def _plan(
    config: "RunConfig", ranks: int, machine: "Machine", vocab_size: int | None, as_json: bool
) -> tuple[str | None, str | None]:
    """Prints the plan, and returns what there is to say if it does not fit the GPU, the host."""
    import json

    from esolm.pipeline.plan.plan import find_subject, make_plan
    from esolm.pipeline.plan.report import describe, host_misfit, misfit
    from esolm.pipeline.plan.tables import console, show

    plan = make_plan(find_subject(config, ranks, vocab_size), ranks)
    if as_json:
        typer.echo(json.dumps(describe(plan, machine), indent=2))
    else:
        show(console(), plan, machine)
    return misfit(plan, machine), host_misfit(plan, machine)


def _search(
    config: "RunConfig",
    ranks: int,
    machine: "Machine",
    vocab_size: int | None,
    as_json: bool,
) -> None:
    import json

    from esolm.pipeline.plan.plan import find_subject
    from esolm.pipeline.plan.report import SEARCH_CAVEAT, describe_search
    from esolm.pipeline.plan.search import search, sound_layouts
    from esolm.pipeline.plan.tables import console, show_search

    layouts = sound_layouts(config, ranks, machine.gpus_per_node)
    subject = find_subject(layouts[0], ranks, vocab_size)
    found = search(subject, layouts, machine, ranks)
    if as_json:
        rows = describe_search(found, SHOWN_LAYOUTS)
        answer = {"caveat": SEARCH_CAVEAT, "notes": subject.notes, "tried": found.tried}
        typer.echo(json.dumps({**answer, "too_large": found.too_large, "layouts": rows}, indent=2))
        return
    out = console()
    for note in subject.notes:
        out.print(f"note: {note}", style="yellow", highlight=False)
    show_search(out, found, SHOWN_LAYOUTS)
