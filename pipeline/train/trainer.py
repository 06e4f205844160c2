"""The training loop."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from megatron.core import parallel_state

from pipeline.checkpoint.checkpointer import Checkpointer, RunState
from pipeline.data.prefetch import Prefetcher, prefetch
from pipeline.data.reader import SampleReader
from pipeline.errors import EXIT_DONE, EXIT_RESUME_ME, ConfigError, EsolmError
from pipeline.parallel.build import build_engine
from pipeline.parallel.engine import EngineConfig, MicroBatch, StepResult
from pipeline.train.batches import BatchSource
from pipeline.train.experiment import Experiment, optimizer_arguments
from pipeline.train.metrics import MetricsWriter
from pipeline.train.report import ProgressReport
from pipeline.train.run_directory import RunDirectory
from pipeline.train.schedule import learning_rate
from pipeline.train.signals import StopRequest
from pipeline.train.throughput import flops_per_token, peak_flops
from pipeline.train.validation import Validator

logger = logging.getLogger(__name__)


class Trainer:
    """One process of a run: engine, data, checkpoints and metrics, and the loop over them."""

    def __init__(
        self, experiment: Experiment, directory: RunDirectory, device: torch.device, rank: int
    ) -> None:
        self.experiment, self.config = experiment, experiment.config
        self.directory, self.device, self.rank = directory, device, rank
        train = self.config.train
        self.reader = SampleReader(
            experiment.dataset, train.seq_len, self.config.seed, self.config.data.shuffle
        )
        self.source = BatchSource(
            reader=self.reader,
            objective=experiment.objective,
            seed=self.config.seed,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=experiment.layout.dp,
        )
        self.checkpointer = Checkpointer(directory.checkpoints, self.config.checkpoint.keep)
        self.step, self.consumed_samples, self.tokens = 0, 0, 0
        resumable = self.checkpointer.newest()
        if resumable is not None:
            self._check_compatible(resumable[1])
        self.engine = build_engine(self._engine_config())
        if resumable is not None:
            self._resume(*resumable)
        self.validator = Validator.of(self.config, self.source, self.engine)
        self.stop = StopRequest(device)

    def run(self) -> int:
        """Trains to the last step or until asked to stop; returns the exit code."""
        with self._reporting() as (report, writer), self._batches() as batches:
            if self.step == 0:
                self._validate(report, writer)
            while self.step < self.config.train.steps:
                started = time.perf_counter()
                result = self.engine.train_step(next(batches), self._learning_rate())
                self._advance(result)
                report.advance(self.step)
                if self._due(self.config.train.log_every_steps):
                    seconds = time.perf_counter() - started
                    self._log(report, writer, self._metrics(result, seconds, batches.reset_wait()))
                if self._due(self.config.train.valid_every_steps):
                    self._validate(report, writer)
                stopping = self.stop.agreed()
                if stopping or self._due(self.config.checkpoint.every_steps):
                    self._save()
                if stopping and self.step < self.config.train.steps:
                    logger.warning("stopped on request at step %d; resumable", self.step)
                    return EXIT_RESUME_ME
        if self.rank == 0:
            self.directory.finish(self.step)
        return EXIT_DONE

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.train.steps)

    def _advance(self, result: StepResult) -> None:
        self.step += 1
        self.consumed_samples += self.config.train.global_batch_size
        self.tokens += self.config.train.global_batch_size * self.config.train.seq_len
        if not math.isfinite(sum(result.losses.values())) or not math.isfinite(result.grad_norm):
            raise EsolmError(
                f"step {self.step}: loss {result.losses}, gradient norm {result.grad_norm}. "
                "Nothing was saved after this; resume from the last checkpoint with a lower "
                "optimizer.lr or a tighter optimizer.clip."
            )

    def _learning_rate(self) -> float:
        section = self.config.optimizer
        return learning_rate(
            self.step,
            peak=section.lr,
            kind=section.schedule,
            warmup_steps=section.warmup_steps,
            total_steps=self.config.train.steps,
            decay_fraction=section.decay_fraction,
            min_ratio=section.min_lr_ratio,
        )

    def _metrics(self, result: StepResult, seconds: float, waited: float) -> dict[str, Any]:
        loss = sum(result.losses.values())
        tokens_per_second = (
            self.config.train.global_batch_size * self.config.train.seq_len / seconds
        )
        peak = peak_flops(self.device)
        mfu: float | str = "n/a"
        if peak is not None:
            flops = tokens_per_second * flops_per_token(self.config, self.experiment.model)
            mfu = flops / (peak * self.experiment.layout.world_size)
        # A low-variance training loss is not a bound on the likelihood.
        is_bound = "diffusion" not in result.losses or not self.config.objective.low_variance
        return {
            "loss": loss,
            **{f"loss_{term}": value for term, value in result.losses.items()},
            "perplexity_bound": math.exp(min(loss, 700.0)) if is_bound else "n/a",
            "grad_norm": result.grad_norm,
            "lr": self.engine.deepspeed.optimizer.param_groups[0]["lr"],
            "tokens": self.tokens,
            "tokens_per_second": tokens_per_second,
            "mfu": mfu,
            "step_seconds": seconds,
            "data_wait_seconds": waited,
        }

    def _validate(self, report: ProgressReport, writer: MetricsWriter | None) -> None:
        if self.validator is not None:
            self._log(report, writer, self.validator.measure())

    def _log(
        self, report: ProgressReport, writer: MetricsWriter | None, values: dict[str, Any]
    ) -> None:
        report.show(self.step, values)
        if writer is not None:
            writer.write(self.step, values)

    def _save(self) -> None:
        started = time.perf_counter()
        path = self.checkpointer.save(self.engine, self._state())
        logger.info("checkpoint %s in %.2f s", path, time.perf_counter() - started)

    def _state(self) -> RunState:
        return RunState(
            step=self.step,
            consumed_samples=self.consumed_samples,
            tokens=self.tokens,
            seq_len=self.config.train.seq_len,
            model=asdict(self.experiment.model),
            objective=asdict(self.config.objective),
            data=self.reader.state(self.consumed_samples),
            data_path=str(self.experiment.dataset.path.resolve()),
            tokenizer=self.experiment.dataset.tokenizer_fingerprint,
        )

    def _check_compatible(self, state: RunState) -> None:
        """Raises ConfigError with every way in which the checkpoint is of another network."""
        here = asdict(self.experiment.model)
        problems = [
            f"model.{name} is {state.model.get(name)} in the checkpoint, {value} here"
            for name, value in here.items()
            if state.model.get(name) != value and name != "dropout"
        ]
        if state.tokenizer != self.experiment.dataset.tokenizer_fingerprint:
            problems.append(
                f"the checkpoint's vocabulary ({state.model.get('vocab_size')} ids, tokenizer "
                f"{state.tokenizer[:12]}) is not that of {self.experiment.dataset.path} "
                f"({here['vocab_size']} ids, tokenizer "
                f"{self.experiment.dataset.tokenizer_fingerprint[:12]})"
            )
        if problems:
            where = (
                f"run.dir {self.directory.path} holds a checkpoint of another network; use another"
            )
            raise ConfigError([*problems, where])
        self.reader.check_state(state.data)

    def _resume(self, path: Any, state: RunState) -> None:
        self.checkpointer.load(self.engine, path, state)
        self.step, self.consumed_samples = state.step, state.consumed_samples
        self.tokens = state.tokens
        logger.info("resumed from %s at step %d", path, self.step)

    def _engine_config(self) -> EngineConfig:
        return EngineConfig(
            model=self.experiment.model,
            layout=self.experiment.layout,
            device=self.device,
            seed=self.config.seed,
            micro_batch_size=self.config.train.micro_batch_size,
            num_micro_batches=self.experiment.num_micro_batches,
            precision=self.config.train.precision,
            gradient_clipping=self.config.optimizer.clip,
            optimizer=optimizer_arguments(self.config),
            activation_checkpointing=self.config.parallel.activation_checkpointing,
        )

    def _batches(self) -> Prefetcher[list[MicroBatch]]:
        return prefetch(self.source.batches(self.consumed_samples), self.config.data.prefetch)

    @contextmanager
    def _reporting(self) -> Iterator[tuple[ProgressReport, MetricsWriter | None]]:
        """The progress report and, on rank 0, the metrics writer."""
        writer = None
        if self.rank == 0:
            writer = MetricsWriter(self.directory.metrics, self.directory.tensorboard, self.step)
        try:
            with ProgressReport(self.config.train.steps, self.step, self.rank == 0) as report:
                yield report, writer
        finally:
            if writer is not None:
                writer.close()
