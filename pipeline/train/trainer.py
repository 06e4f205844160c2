"""The training loop."""

import logging
import math
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from esolm.model.config import FP8_MULTIPLE
from esolm.model.flops import layer_costs
from esolm.pipeline.checkpoint.checkpointer import Checkpointer, RunState
from esolm.pipeline.checkpoint.commit import Retention
from esolm.pipeline.data.batches import BatchSource, skip_multiple
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.data.mixture import MixtureReader
from esolm.pipeline.data.prefetch import Prefetcher, prefetch
from esolm.pipeline.errors import EXIT_DONE, EXIT_RESUME_ME, CheckpointError, EsolmError
from esolm.pipeline.launch.startup import seconds_since_start
from esolm.pipeline.parallel.build import build_engine
from esolm.pipeline.parallel.engine import EngineConfig, StepResult
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.run.contexts import context_at
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.experiment import Experiment, optimizer_arguments
from esolm.pipeline.run.quarantine_file import QuarantineFile
from esolm.pipeline.run.sections import ObjectiveSection
from esolm.pipeline.run.sources import reader_of
from esolm.pipeline.run.step_range import parse_steps
from esolm.pipeline.train.compiled import GraphReport
from esolm.pipeline.train.data_figures import DataFigures
from esolm.pipeline.train.guards import SpikeGuard, Standstill, check_replicas
from esolm.pipeline.train.initial_weights import start_from
from esolm.pipeline.train.measures import Measures
from esolm.pipeline.train.profiling import StepProfiler
from esolm.pipeline.train.progress import Progress, follow
from esolm.pipeline.train.recorder import Recorder
from esolm.pipeline.train.requests import RequestPoll
from esolm.pipeline.train.schedule import learning_rate
from esolm.pipeline.train.validation import Validator
from esolm.pipeline.train.watchdog import Watchdog

logger = logging.getLogger(__name__)


class Trainer:
    """One process of a run: engine, data, checkpoints and guards, and the loop over them."""

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        device: torch.device,
        rank: int,
        watchdog: Watchdog,
    ) -> None:
        self.experiment, self.config = experiment, experiment.config
        train, saving = self.config.train, self.config.checkpoint
        self.directory, self.device, self.rank = directory, device, rank
        self.watchdog = watchdog
        damage = QuarantineFile(directory.quarantine, rank)
        self.reader = reader_of(self.config, experiment.sources, damage.add)
        self.data_figures = DataFigures(self.reader, device)
        self.source = batch_source(experiment, self.reader)
        self.checkpointer = Checkpointer(
            directory.checkpoints,
            Retention(saving.keep, saving.permanent_every_steps),
            saving.asynchronous,
            self.watchdog.progress,
            saving.mirror,
        )
        self.checkpointer.clean()
        self.progress = Progress()
        self.guard = SpikeGuard(
            train.spike_window,
            train.spike_sigmas,
            {"global_batch_size": train.global_batch_size, **asdict(self.config.objective)},
            asdict(ObjectiveSection()),
        )
        found = self.checkpointer.resume_point()
        if found is not None:
            follow(found[1], experiment, self.reader)
        self.watchdog.progress()
        self.engine = build_engine(engine_config(experiment, device))
        self.watchdog.progress()
        if found is not None:
            self._restore(*found)
        elif train.init_from:
            start_from(experiment, self.engine, self.checkpointer.group)
        self.checkpointer.reserve(self.engine)
        self.checkpointer.start_mirror()
        self.validator = Validator.of(self.config, self.source, self.engine, self.watchdog.progress)
        self.measures = Measures(
            self.config,
            experiment.model,
            experiment.objective,
            device,
            experiment.layout.world_size,
        )
        self.profiler = StepProfiler(parse_steps(train.profile_steps), directory.profile(rank))
        self.requests = RequestPoll(device, saving.every_minutes)
        self.standstill = Standstill(train.max_refused_steps, self.progress.step)
        self.recorder = Recorder(directory, self.config, self.progress.step, rank)
        self.graphs = GraphReport()
        self.batches = self._read_ahead()

    def run(self) -> int:
        """Trains to the last step or until asked to stop; returns the exit code."""
        steps = self.config.train.steps
        with self.recorder:
            if self.progress.step == 0:
                self._validate()
            first = self.progress.step + 1
            while self.progress.step < steps:
                self._step()
                if self.progress.step == first:
                    self.recorder.record(first, {"start_seconds": seconds_since_start()})
                if self._due(self.config.train.valid_every_steps):
                    self._validate()
                if self._due(self.config.train.check_replicas_every_steps):
                    check_replicas(self.engine)
                requests = self.requests.agree()
                last = requests.stop or self.progress.step == steps
                if last or requests.save or self._due(self.config.checkpoint.every_steps):
                    self._save(last)
                if requests.stop and self.progress.step < steps:
                    logger.warning("stopped on request at step %d", self.progress.step)
                    return EXIT_RESUME_ME
        if self.rank == 0:
            self.directory.finish(self.progress.step)
        return EXIT_DONE

    def close(self, failed: bool) -> None:
        """Stops the threads of this process; the mirror may take half of the watchdog's time.

        failed: an error ends the run; see `Checkpointer.close`.
        """
        self.profiler.close()
        self.batches.close()
        self.watchdog.progress()
        self.checkpointer.close(0.5 * self.config.train.timeout_minutes * 60.0, failed)
        self.watchdog.progress()

    def _step(self) -> None:
        """Trains on one global batch, records its figures and heeds the guard's verdict."""
        self.profiler.before(self.progress.step + 1)
        self._tell_guard()
        started, rate = time.perf_counter(), self._learning_rate()
        batch = next(self.batches)
        self.data_figures.note(batch)
        result = self.engine.train_step(batch, rate, self.guard.judge)
        self._advance(result)
        self.watchdog.progress()
        self.graphs.tell()
        self.recorder.advance(self.progress.step)
        if self._due(self.config.train.log_every_steps):
            figures = self.measures.of(result, rate, time.perf_counter() - started)
            figures["tokens"] = self.progress.tokens
            figures["data_wait_seconds"] = self.batches.reset_wait()
            figures["skipped_steps"] = self.progress.step - self.progress.updates
            figures |= self._by_source(result) | self._context() | self.data_figures.figures()
            self.recorder.record(self.progress.step, figures)
        if not result.applied:
            self._note_incident(result)
        self.standstill.note(self.progress.step, result.applied)
        if not result.applied and self.config.train.spike_policy == "rollback":
            self._roll_back()

    def _advance(self, result: StepResult) -> None:
        train = self.config.train
        self.progress.step += 1
        self.progress.updates += int(result.applied)
        self.progress.consumed_samples += train.global_batch_size
        self.progress.tokens += train.global_batch_size * train.seq_len

    def _by_source(self, result: StepResult) -> dict[str, float]:
        """Returns how often the data has been read; of a mixture by source, and their losses."""
        uses = self.reader.uses(self.progress.consumed_samples)
        if not self.config.data.sources:
            return {"epochs": uses[0].epochs}
        names = self.reader.names()
        losses = {f"loss/{names[source]}": loss for source, loss in result.sources.items()}
        return losses | {f"epochs/{use.name}": use.epochs for use in uses}

    def _context(self) -> dict[str, int]:
        """Returns how many tokens of a row saw each other in the last step, if that changes."""
        train = self.config.train
        if not train.context_schedule:
            return {}
        context = context_at(train.context_schedule, self.progress.step)
        return {"context_length": context or train.seq_len}

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return every > 0 and (step % every == 0 or step == self.config.train.steps)

    def _learning_rate(self) -> float:
        section = self.config.optimizer
        return learning_rate(
            self.progress.step,
            peak=section.lr,
            kind=section.schedule,
            warmup_steps=section.warmup_steps,
            total_steps=self.config.train.steps,
            decay_fraction=section.decay_fraction,
            min_ratio=section.min_lr_ratio,
        )

    def _validate(self) -> None:
        if self.validator is not None:
            self.recorder.record(self.progress.step, self.validator.measure())
            self.watchdog.progress()

    def _save(self, last: bool) -> None:
        """Saves a checkpoint; a failure is an error only if the process is about to leave."""
        state = self.progress.to_state(self.experiment, self.reader, self.guard)
        try:
            blocked = self.checkpointer.save(self.engine, state)
            if last:
                self.checkpointer.wait()
        except CheckpointError as error:
            if last:
                raise
            logger.error("%s; training goes on, the checkpoints before it stand", error)
            return
        self.requests.saved()
        self.watchdog.progress()
        figures: dict[str, Any] = {"checkpoint_blocked_seconds": blocked}
        if self.checkpointer.durable_seconds is not None:
            figures["checkpoint_durable_seconds"] = self.checkpointer.durable_seconds
        if self.checkpointer.mirrored_step is not None:
            figures["checkpoint_mirrored_step"] = self.checkpointer.mirrored_step
        self.recorder.record(self.progress.step, figures)

    def _note_incident(self, result: StepResult) -> None:
        """Writes down the step that was not applied."""
        reason = self.guard.reason(result) or "the gradient is not finite"
        first_sample = self.progress.consumed_samples - self.config.train.global_batch_size
        self.recorder.incident(self.progress.step, first_sample, reason, result)

    def _roll_back(self) -> None:
        """Goes back to the last checkpoint's weights, and on to data that no step has seen."""
        from_step, consumed = self.progress.step, self.progress.consumed_samples
        self.checkpointer.wait()
        found = self.checkpointer.newest()
        if found is None:
            raise EsolmError(
                f"step {self.progress.step} is to be rolled back, but there is no checkpoint yet; "
                "use train.spike_policy=skip or a smaller checkpoint.every_steps"
            )
        self._restore(*found)
        self.progress.consumed_samples = consumed
        self.recorder.rewind(from_step, self.progress)
        self.batches.close()
        self.batches = self._read_ahead()

    def _restore(self, path: Path, state: RunState) -> None:
        self.checkpointer.load(self.engine, path, state)
        self.progress = Progress.of(state)
        self._tell_guard()
        self.guard.restore(state.guard)
        self.watchdog.progress()
        logger.info("resumed from %s at step %d", path, state.step)

    def _tell_guard(self) -> None:
        """Says under which context the next step's loss is measured, if contexts change."""
        if schedule := self.config.train.context_schedule:
            self.guard.measure_under(context=context_at(schedule, self.progress.step + 1))

    def _read_ahead(self) -> Prefetcher[list[MicroBatch]]:
        schedule = self.config.train.context_schedule
        contexts = (context_at(schedule, step) for step in count(self.progress.step + 1))
        source = self.source.batches(self.progress.consumed_samples, contexts)
        return prefetch(source, self.config.data.prefetch)


def batch_source(experiment: Experiment, reader: MixtureReader) -> BatchSource:
    """Returns the source of the micro-batches of this rank's replica."""
    train = experiment.config.train
    return BatchSource(
        reader=reader,
        objective=experiment.objective,
        seed=experiment.config.seed,
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=experiment.layout.dp,
        with_sources=bool(experiment.config.data.sources),
        skip_multiple=_skip_multiple(experiment.layout),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=experiment.layout.cp,
    )


def _skip_multiple(layout: Layout) -> int:
    """Context and sequence parallelism share out the tokens that are left, for FP8 too."""
    return math.lcm(skip_multiple(), layout.cp * layout.tp, layout.cp * FP8_MULTIPLE)


def engine_config(experiment: Experiment, device: torch.device) -> EngineConfig:
    """Returns what the engine needs to know of the run."""
    config = experiment.config
    return EngineConfig(
        model=experiment.model,
        layout=experiment.layout,
        device=device,
        seed=config.seed,
        micro_batch_size=config.train.micro_batch_size,
        num_micro_batches=experiment.num_micro_batches,
        precision=config.train.precision,
        gradient_clipping=config.optimizer.clip,
        optimizer=optimizer_arguments(config),
        layer_costs=layer_costs(experiment.model, experiment.objective.work(config.train.seq_len)),
        fp8=config.train.fp8,
        logits_mb=config.train.logits_mb,
        recompute=config.parallel.activation_checkpointing,
        offload=config.parallel.offload,
    )
