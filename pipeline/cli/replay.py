"""`esolm replay`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from esolm.pipeline.watch.replay import Replay


def replay_command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    step: Annotated[int, typer.Argument(help="A step, counted from 1 as in metrics.jsonl.")],
    text: Annotated[bool, typer.Option("--text", help="Also decode the tokens.")] = False,
    loss: Annotated[
        bool,
        typer.Option("--loss", help="Also each row's loss under the checkpoint before the step."),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The dataset, where it has moved.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make the rows of a step again, exactly as they were fed: a skipped one, or any other.

    Example:

        esolm replay runs/demo/train 41 --loss
    """
    import json
    from dataclasses import asdict

    from esolm.data_prep.progress import phase
    from esolm.pipeline.watch.replay import replay, row_losses

    with phase(f"replay step {step}"):
        replayed = replay(run, step, data)
        from_step, losses = row_losses(run, replayed) if loss else (None, [])
    texts = _texts(run, replayed) if text else []
    if as_json:
        record = {
            "step": step,
            "seed": replayed.seed,
            **asdict(replayed.place),
            "draws": {"key": ["seed", "purpose"], "counter": "sample", **replayed.purposes},
            "weights_of_step": from_step,
            "rows": [asdict(row) for row in replayed.rows],
        }
        for name, values in (("loss", losses), ("text", texts)):
            for row, value in zip(record["rows"], values, strict=False):  # none if not asked for
                row[name] = value
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    _show(replayed, from_step, losses, texts)


def _texts(run: Path, replayed: "Replay") -> list[str]:
    from esolm.data_prep.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(run / "tokenizer")
    return [tokenizer.decode(row.tokens) for row in replayed.rows]


def _show(replayed: "Replay", from_step: int | None, losses: list[float], texts: list[str]) -> None:
    place = replayed.place
    last = place.first_sample + place.global_batch_size - 1
    purposes = ", ".join(f"{name} {value}" for name, value in replayed.purposes.items())
    typer.echo(
        f"step {replayed.step}: samples {place.first_sample} to {last}, known by {place.known_by}\n"
        f"draws: Philox, key (seed {replayed.seed}, purpose), counter (0, 0, 0, sample); "
        f"purposes: {purposes}"
    )
    if losses:
        typer.echo(f"loss {sum(losses):.6f} with the weights of step {from_step}, its share by row")
    typer.echo(f"{'slot':>5} {'sample':>12} {'term':<11} {'predicted':>9} {'loss':>10}  t")
    for number, row in enumerate(replayed.rows):
        share = f"{losses[number]:.6f}" if losses else ""
        times = " ".join(f"{t:.4f}" for t in row.t[:8]) + (" ..." if len(row.t) > 8 else "")
        typer.echo(
            f"{row.slot:>5} {row.sample:>12} {row.term:<11} {row.predicted:>9} {share:>10}  {times}"
        )
        if texts:
            typer.echo(texts[number])
