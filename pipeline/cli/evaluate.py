"""`esolm evaluate`: likelihoods, sample quality, zero-shot suites."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esolm.pipeline.cli.evaluate_options import arguments_of, numbers, refuse_misplaced

if TYPE_CHECKING:
    from esolm.pipeline.evaluate.rows import Rows
    from esolm.pipeline.evaluate.subject import Subject


def evaluate_command(
    context: typer.Context,
    network: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint directory or a bundle.")
    ],
    dataset: Annotated[
        Path | None, typer.Argument(help="A dataset made by esolm prep merge.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="train|valid", help="Of the dataset.")] = "valid",
    draws: Annotated[int, typer.Option(help="Draws of the bound; its error needs two.")] = 4,
    orders: Annotated[
        int, typer.Option(help="K of the importance-weighted bound, Eso-LM; 0: none.")
    ] = 0,
    orders_as: Annotated[
        str,
        typer.Option(
            metavar="decoder|published",
            help="Whose likelihood --orders is. For Eso-LM (A): of its own decoder, whose tokens "
            "of the diffusion phase see each other, or of the published code, causal throughout. "
            "For (B) both are the same.",
        ),
    ] = "decoder",
    samples_limit: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="ema|raw", help="Of a checkpoint; ema by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    alpha_0: Annotated[
        str | None,
        typer.Option(help="Share of diffusion in place of the trained one; a list for --samples."),
    ] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a row, as in training.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A tokenizer in place of the network's.")
    ] = None,
    tokens_per_pass: Annotated[
        int, typer.Option(min=1, help="Most tokens fed to the network at once.")
    ] = 4096,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Share the rows among so many processes here.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="A zero-shot corpus: a name in configs/suite/ or a YAML file."),
    ] = None,
    files: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the corpora of --suite lie.")
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Measure what a bundle writes, not likelihoods.")
    ] = False,
    packing: Annotated[
        str | None,
        typer.Option(
            metavar="continuous|wrapped|best_fit",
            help="What a row is, as data.packing; by default as in training.",
        ),
    ] = None,
    clip_search: Annotated[
        bool, typer.Option("--clip-search", help="Find the range of t to train a BD3-LM on.")
    ] = False,
    num_samples: Annotated[int, typer.Option(min=1, help="Samples of each setting.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples written at once.")] = 8,
    steps: Annotated[
        str | None, typer.Option(help="Diffusion steps; several, as in 8,32,128, make a sweep.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a sample.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus; 1 keeps all tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the samples.")] = None,
    judge: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A causal LM of transformers: generative perplexity."),
    ] = None,
    featuriser: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A model of transformers: MAUVE against DATASET."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where a sweep's CSV and PNG are written.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a trained network on a dataset, on a zero-shot suite, or by what it writes.

    Example:

        esolm evaluate runs/demo/train data/py --draws 8 --orders 16 --ranks 2
    """
    import json

    from esolm.pipeline.evaluate import show

    refuse_misplaced(context)
    if ranks is not None:
        from esolm.pipeline.launch.ranks import launch

        raise typer.Exit(launch(["evaluate", *arguments_of(context, without="ranks")], ranks))
    if samples:
        from esolm.pipeline.evaluate.sampling import SampleSettings, measure_samples

        alphas = numbers("--alpha-0", alpha_0, float)
        settings = SampleSettings(
            alphas, numbers("--steps", steps, int), num_samples, batch_size, length, top_p,
            temperature, seed,
        )  # fmt: skip
        report: dict[str, Any] | None = measure_samples(
            network, settings, judge, featuriser, dataset, split, out
        )
        text = show.samples_text
    else:
        target = Target(
            network, dataset, split, packing, suite, files, tokenizer, weights, clip_search
        )
        amount = {
            "num_draws": draws, "num_orders": orders, "seed": seed,
            "tokens_per_pass": tokens_per_pass, "orders_as": orders_as,
        }  # fmt: skip
        report = _likelihoods(target, amount, samples_limit, seq_len, alpha_0)
        text = show.clip_search_text if clip_search else show.likelihood_text
    if report is not None:
        typer.echo(json.dumps(report, ensure_ascii=False) if as_json else text(report))


@dataclass(frozen=True)
class Target:
    """What to open: the network, and the rows of a dataset or of a suite's file.

    clip_search: whether a range of t is wanted in place of likelihoods.
    """

    network: Path
    dataset: Path | None
    split: str
    packing: str | None
    suite: str | None
    files: Path | None
    tokenizer: Path | None
    weights: str | None
    clip_search: bool


def _likelihoods(
    target: Target,
    amount: dict[str, Any],
    limit: int | None,
    seq_len: int | None,
    alpha_0: str | None,
) -> dict[str, Any] | None:
    """The report on rank 0, None on the others."""
    from esolm.data_prep.progress import phase
    from esolm.pipeline.errors import ConfigError, EsolmError
    from esolm.pipeline.evaluate import clip_search, likelihood, ranks, subject
    from esolm.pipeline.launch.ranks import die_with_launcher

    if (target.dataset is None) == (target.suite is None):
        raise ConfigError("name either a DATASET or a --suite")
    alphas = numbers("--alpha-0", alpha_0, float)
    if len(alphas) > 1:
        raise ConfigError("--alpha-0 takes a list only with --samples")
    if seq_len is not None and seq_len < 1:
        raise ConfigError(f"--seq-len is {seq_len}; it must be at least 1")
    die_with_launcher()
    info, device = ranks.join()
    try:
        with phase(f"read {target.network}", shown=info.rank == 0):
            found = subject.open_subject(target.network, target.weights, device, target.tokenizer)
        objective = subject.with_alpha_0(found.objective, alphas[0] if alphas else None)
        text = _rows(target, found, seq_len, limit, shown=info.rank == 0)
        settings = likelihood.Settings(**amount)
        measure = clip_search.search if target.clip_search else likelihood.measure
        return measure(found, objective, text, settings, info)
    except EsolmError as error:
        if info.rank:  # one message is enough
            raise typer.Exit(error.exit_code) from None
        raise
    finally:
        ranks.leave(info)


def _rows(
    target: Target, network: "Subject", seq_len: int | None, limit: int | None, shown: bool
) -> "Rows":
    """The rows of the suite or of the dataset that is named."""
    from esolm.data_prep.progress import phase
    from esolm.pipeline.evaluate import rows, suites

    if target.suite is None:
        assert target.dataset is not None
        place = (target.dataset, target.split)
        return rows.dataset_rows(*place, network, seq_len, limit, target.packing)
    with phase(f"tokenize {target.suite}", shown=shown):
        return suites.suite_rows(target.suite, target.files, network, seq_len, limit)
