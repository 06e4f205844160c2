"""Measures the bound on the validation split at intervals, with the same draws every time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from esolm.pipeline.data.batches import BatchSource
from esolm.pipeline.data.quotas import shares_of
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.parallel.engine import Engine
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.run.sources import open_split


@dataclass(frozen=True)
class ValidSplit:
    """The `valid` split of a source, and the share of the samples that the source has."""

    name: str
    share: float
    batches: BatchSource


@dataclass(frozen=True)
class Validator:
    """Measures the bound over a fixed number of global batches of the `valid` split.

    Of a mixture, over as many of every source's, and the whole is their mean by the sources'
    shares. by_source: whether those are reported too. moved: is called after every batch, so that a
    long validation is not taken for a hang.
    """

    splits: list[ValidSplit]
    by_source: bool
    engine: Engine
    num_batches: int
    with_average: bool
    moved: Callable[[], None]

    @classmethod
    def of(
        cls, config: RunConfig, source: BatchSource, engine: Engine, moved: Callable[[], None]
    ) -> Self | None:
        """Returns the validator of a run, or None if the configuration asks for no validation."""
        if config.train.valid_every_steps == 0:
            return None
        opened = open_split(config, "valid")
        shares = shares_of([split.weight for split in opened])
        splits = []
        for split, share in zip(opened, shares, strict=True):
            reader = SampleReader(
                split.dataset, config.train.seq_len, config.seed, "none", config.data.packing
            )
            splits.append(ValidSplit(split.name, float(share), source.for_validation(reader)))
        num_batches = max(1, config.train.valid_samples // config.train.global_batch_size)
        by_source = bool(config.data.sources)
        return cls(splits, by_source, engine, num_batches, config.train.valid_ema, moved)

    def measure(self) -> dict[str, float]:
        """Returns valid_loss (nats per token), its terms, and exp of it; collective over all ranks.

        valid_loss_ema is the same of the averaged weights, if it is asked for. Of a mixture there
        are valid_loss/SOURCE and valid_loss_ema/SOURCE as well.
        """
        terms, losses = self._losses()
        loss = sum(terms.values())
        figures = {
            "valid_loss": loss,
            **{f"valid_loss_{term}": value for term, value in terms.items()},
            "valid_perplexity_bound": math.exp(min(loss, 700.0)),
            **self._by_source("valid_loss", losses),
        }
        if self.with_average:
            with self.engine.averaged_weights():
                terms, losses = self._losses()
            figures["valid_loss_ema"] = sum(terms.values())
            figures |= self._by_source("valid_loss_ema", losses)
        return figures

    def _by_source(self, name: str, losses: list[float]) -> dict[str, float]:
        if not self.by_source:
            return {}
        named = zip(self.splits, losses, strict=True)
        return {f"{name}/{split.name}": loss for split, loss in named}

    def _losses(self) -> tuple[dict[str, float], list[float]]:
        """Returns the loss of each term over the mixture, and the whole loss of each source."""
        terms: dict[str, float] = {}
        losses = []
        for split in self.splits:
            own = self._terms(split.batches)
            losses.append(sum(own.values()))
            for term, loss in own.items():
                terms[term] = terms.get(term, 0.0) + split.share * loss
        return terms, losses

    def _terms(self, source: BatchSource) -> dict[str, float]:
        terms: dict[str, float] = {}
        for number in range(self.num_batches):
            batch = source.batch(number * source.global_batch_size)
            for term, loss in self.engine.evaluate(batch).items():
                terms[term] = terms.get(term, 0.0) + loss / self.num_batches
            self.moved()
        return terms
