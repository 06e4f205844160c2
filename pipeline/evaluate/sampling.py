"""Measures the quality of a bundle's samples, and the seconds they take, by decoding settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esolm.data_prep.progress import ProgressBar
from esolm.data_prep.tokenizers import Tokenizer, load_tokenizer
from esolm.model.objectives import objective_kind
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate import pareto
from esolm.pipeline.evaluate.judge import Judge
from esolm.pipeline.evaluate.mauve_score import check_available, mauve
from esolm.pipeline.evaluate.quality import distinct, unigram_entropy
from esolm.pipeline.generate import Bundle, Request, generate, load_bundle
from esolm.pipeline.parallel.bootstrap import process_info

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class SampleSettings:
    """The settings of a sweep: every one of alphas with every one of steps.

    Empty lists and None stand for the default of the bundle. num_samples: how many samples each
    setting takes. batch_size: how many of them are written at once.
    """

    alphas: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    num_samples: int = 16
    batch_size: int = 8
    length: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Tools:
    """What judges the texts; a part that is not asked for is None."""

    tokenizer: Tokenizer | None
    judge: Judge | None
    featuriser: Path | None
    references: list[str]


def measure_samples(
    path: Path,
    settings: SampleSettings,
    judge: Path | None = None,
    featuriser: Path | None = None,
    references: Path | str | None = None,
    split: str = "valid",
    out: Path | None = None,
) -> dict[str, Any]:
    """Makes the report of `esolm evaluate --samples`; everything in it is JSON.

    references: a dataset whose rows MAUVE compares the samples with. out: a folder for pareto.csv
    and pareto.png. Raises ConfigError, DataError or ExportError.
    """
    if process_info().world_size > 1:
        raise ConfigError("--samples is the work of one process: start it once, without ranks")
    bundle = load_bundle(path)
    if bundle.tokenizer is None and (judge or featuriser):
        raise ConfigError(f"{path} carries no tokenizer, so its samples are no text to be judged")
    texts: list[str] = []
    if featuriser is not None:
        check_available()
        if references is None:
            raise ConfigError("--featuriser needs a DATASET whose text the samples are compared to")
        texts = reference_texts(bundle, references, split, settings)
    device = bundle.model.device
    loaded = Judge(judge, device) if judge else None
    tools = Tools(bundle.tokenizer, loaded, featuriser, texts)
    grid = settings_of(bundle, settings)
    _warm_up(bundle)
    found = []
    judged = 1 if loaded is None else 2
    with ProgressBar("samples", len(grid) * settings.num_samples * judged) as progress:
        for alpha_0, steps in grid:
            progress.note(f"alpha_0 {alpha_0:g}, {steps} steps")
            found.append(_measure(bundle, settings, alpha_0, steps, tools, progress.advance))
    report: dict[str, Any] = {"bundle": str(path), "settings": found}
    if out is not None:
        report["files"] = [str(each) for each in pareto.write(found, out)]
    return report


def settings_of(bundle: Bundle, settings: SampleSettings) -> list[tuple[float, int]]:
    """Returns the sweep: every alpha_0 with every step count, but left-to-right decoding once.

    Only an Eso-LM has a choice of alpha_0: `ar` writes nothing by diffusion, and MDLM and BD3-LM
    write everything by it.
    """
    defaults, objective = bundle.model.generation_config, bundle.model.config.objective
    decoding = objective_kind(objective).decoding
    fixed = None if decoding is None else decoding.fixed_share
    alphas = [fixed] if fixed is not None else settings.alphas or [defaults.alpha_0]
    steps = settings.steps or [defaults.num_steps]
    grid = [(alpha, count) for alpha in alphas for count in (steps if alpha else steps[:1])]
    return list(dict.fromkeys(grid))


def _warm_up(bundle: Bundle) -> None:
    """Runs a short generation, because the first passes of a process set up memory and kernels."""
    length = 2 * (bundle.model.config.block_size or 4)
    generate(bundle, Request(length=length, num_samples=1, num_steps=2, alpha_0=0.5))


def reference_texts(
    bundle: Bundle, data: Path | str, split: str, settings: SampleSettings
) -> list[str]:
    """Returns as many rows of a dataset as there are samples, as text of the samples' length."""
    dataset = TokenDataset(data, split)
    length = settings.length or bundle.model.generation_config.length
    reader = SampleReader(dataset, length, seed=0, shuffle="none")
    count = min(settings.num_samples, reader.num_sequences)
    tokenizer = load_tokenizer(dataset.tokenizer_directory)
    return [tokenizer.decode(row) for row in reader.read(np.arange(count)).tolist()]


def _measure(
    bundle: Bundle, settings: SampleSettings, alpha_0: float, steps: int, tools: Tools,
    on_samples: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Makes the report of one setting; tells how many samples are written, and how many judged."""
    tokens, nfes, seconds = _write(bundle, settings, alpha_0, steps, on_samples)
    report: dict[str, Any] = {
        "alpha_0": alpha_0,
        "steps": steps if alpha_0 else None,
        "samples": len(tokens),
        "length": tokens.shape[1],
        "nfe": float(np.mean(nfes)),
        "seconds_per_sample": seconds / len(tokens),
        "tokens_per_second": tokens.size / seconds,
        "entropy": unigram_entropy(tokens),
        **{f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)},
        "generative_perplexity": None,
        "mauve": None,
    }
    if tools.tokenizer is not None and (tools.judge or tools.featuriser):
        texts = [tools.tokenizer.decode(row) for row in tokens.tolist()]
        if tools.judge is not None:
            report["generative_perplexity"] = tools.judge.perplexity(texts, on_samples)[
                "perplexity"
            ]
        if tools.featuriser is not None:
            device = bundle.model.device
            report["mauve"] = mauve(texts, tools.references, tools.featuriser, device)
    return report


def _write(
    bundle: Bundle,
    settings: SampleSettings,
    alpha_0: float,
    steps: int,
    on_samples: Callable[[int], None],
) -> tuple[Int64Array, list[int], float]:
    """Returns samples [N, L], the forward passes of each batch, and the seconds of all batches."""
    rows, nfes, seconds = [], [], 0.0
    for number, first in enumerate(range(0, settings.num_samples, settings.batch_size)):
        request = Request(
            alpha_0=alpha_0,
            num_steps=steps,
            length=settings.length,
            top_p=settings.top_p,
            temperature=settings.temperature,
            seed=settings.seed + number,
            num_samples=min(settings.batch_size, settings.num_samples - first),
            ignore_eos=True,  # all of one length, as the rows of training are
        )
        result = generate(bundle, request)
        rows.append(result.sequences.numpy())
        nfes.append(result.nfe)
        seconds += result.seconds
        on_samples(len(result.sequences))
    return np.concatenate(rows), nfes, seconds
