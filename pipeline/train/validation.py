"""Measures the bound on the validation split at intervals, with the same draws every time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from esolm.pipeline.data.batches import BatchSource
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.parallel.engine import Engine
from esolm.pipeline.run.sections import RunConfig


@dataclass(frozen=True)
class Validator:
    """Measures the bound over a fixed number of global batches of the `valid` split.

    moved: is called after every batch, so that a long validation is not taken for a hang.
    """

    source: BatchSource
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
        dataset = TokenDataset(config.data.path, "valid", config.data.verify != "none")
        reader = SampleReader(dataset, config.train.seq_len, config.seed, "none")
        num_batches = max(1, config.train.valid_samples // config.train.global_batch_size)
        validation = source.for_validation(reader)
        return cls(validation, engine, num_batches, config.train.valid_ema, moved)

    def measure(self) -> dict[str, float]:
        """Returns valid_loss (nats per token), its terms, and exp of it; collective over all ranks.

        valid_loss_ema is the same of the averaged weights, if it is asked for.
        """
        terms = self._terms()
        loss = sum(terms.values())
        figures = {
            "valid_loss": loss,
            **{f"valid_loss_{term}": value for term, value in terms.items()},
            "valid_perplexity_bound": math.exp(min(loss, 700.0)),
        }
        if self.with_average:
            with self.engine.averaged_weights():
                figures["valid_loss_ema"] = sum(self._terms().values())
        return figures

    def _terms(self) -> dict[str, float]:
        terms: dict[str, float] = {}
        for number in range(self.num_batches):
            batch = self.source.batch(number * self.source.global_batch_size)
            for term, loss in self.engine.evaluate(batch).items():
                terms[term] = terms.get(term, 0.0) + loss / self.num_batches
            self.moved()
        return terms
