"""Which passes over the corpus a job takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from esolm.data_prep.comparing import (
    CHOOSE,
    COMPARE,
    PASSES,
    TOKENIZE,
    choose_task,
    compare_task,
    is_pass_done,
)
from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import TokenizeJob, is_finished
from esolm.data_prep.tokenizing import run_task
from esolm.data_prep.workers import RunTask


@dataclass(frozen=True)
class CorpusPass:
    """A pass: what it does for a task, and whether that is done."""

    name: str
    run: RunTask
    is_done: Callable[[TokenizeJob, int], bool]

    def is_done_for_all(self, job: TokenizeJob) -> bool:
        """Whether every task is finished."""
        return all(self.is_done(job, task) for task in range(job.num_tasks))

    @property
    def is_last(self) -> bool:
        """Whether it writes the tokens."""
        return self.name == TOKENIZE


def _done(name: str, job: TokenizeJob, task: int) -> bool:
    return is_pass_done(job, name, task)


ALL = {
    COMPARE: CorpusPass(COMPARE, compare_task, partial(_done, COMPARE)),
    CHOOSE: CorpusPass(CHOOSE, choose_task, partial(_done, CHOOSE)),
    TOKENIZE: CorpusPass(TOKENIZE, run_task, is_finished),
}


def passes_of(job: TokenizeJob, only: str = "", task: int | None = None) -> list[CorpusPass]:
    """Return the passes that are to be done, in order.

    only: one of them. task: with one task and no pass, the last is meant, for those before need all
    tasks. Raises DataError if the job has no such pass.
    """
    names = PASSES if job.compares else (TOKENIZE,)
    if only and only not in names:
        raise DataError(f"--pass is '{only}', must be {' or '.join(names)} with these settings.")
    if only:
        return [ALL[only]]
    return [ALL[TOKENIZE]] if task is not None else [ALL[name] for name in names]
