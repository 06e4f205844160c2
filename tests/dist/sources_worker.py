"""Losses by source, by an engine of any layout and row by row."""

from dataclasses import replace
from typing import Any

from esolm.pipeline.data.batches import BatchSource
from esolm.pipeline.data.micro_batch import MicroBatch
from tests.dist.workers import LEARNING_RATE, batch_of, engine_of, main


def by_source(cases: list[dict[str, Any]]) -> Any:
    """Of every case what two steps report of the sources; `sources` names those of the slots."""
    answers = []
    for case in cases:
        with engine_of(case) as (engine, source):
            rows = []
            for step in range(2):
                result = engine.train_step(_named(source, step, case["sources"]), LEARNING_RATE)
                losses = {str(number): loss for number, loss in result.sources.items()}
                rows.append({"loss": result.loss, "sources": losses})
            answers.append(rows)
    return answers


def by_row(case: dict[str, Any]) -> Any:
    """Those of a case of one process, and (term, loss) of every row alone before the first step.

    For a network without dropout.
    """
    with engine_of({**case, "micro_batch_size": 1}) as (engine, source):
        alone = [next(iter(engine.evaluate([batch]).items())) for batch in batch_of(source, 0)]
    return alone, by_source([case])[0]


def _named(source: BatchSource, step: int, of_slot: list[int]) -> list[MicroBatch]:
    size = source.micro_batch_size
    return [
        replace(batch, sources=tuple(of_slot[first : first + size]))
        for first, batch in zip(source.first_slots(), batch_of(source, step), strict=True)
    ]


if __name__ == "__main__":
    main(globals())
