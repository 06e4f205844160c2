"""One rank of a training run, from configuration to exit code."""

import gc
import logging
import sys
from contextlib import ExitStack
from datetime import timedelta

import torch

from esolm.model.flops import flops_per_token
from esolm.pipeline.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from esolm.pipeline.parallel.bootstrap import (
    ProcessInfo,
    describe_device,
    device_of,
    initialize_processes,
    prepare_for_cuda,
    process_info,
    shutdown_processes,
)
from esolm.pipeline.parallel.first_rank import from_first_rank
from esolm.pipeline.parallel.flight_recorder import dump_collectives, record_collectives
from esolm.pipeline.run.beats import Beat
from esolm.pipeline.run.completion import changed_settings, complete_message, is_complete
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.experiment import Experiment, resolve
from esolm.pipeline.run.history import History
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.train.check_data import check_data
from esolm.pipeline.train.compiled import backend_of, keep_compiled, refuse_if_strict
from esolm.pipeline.train.fp8 import prove_fp8
from esolm.pipeline.train.kernels import DTYPES, LEFT_OUT, choose_kernels, kernels_of, prove_kernels
from esolm.pipeline.train.trainer import Trainer
from esolm.pipeline.train.watchdog import Watchdog

logger = logging.getLogger(__name__)

# Of its collector of garbage; `esolm` starts with a slower one.
PYTHONS_OWN_PACE = (700, 10, 10)


def train(config: RunConfig) -> int:
    """Trains or resumes the run in config.run.dir; returns the exit code of this rank.

    Raises ConfigError, DataError or CheckpointError for what a user can mend.
    """
    info = process_info()
    experiment = resolve(config, info.world_size)
    directory = RunDirectory(config.run.dir)
    if is_complete(directory, config):
        if info.rank == 0:
            print(complete_message(directory), file=sys.stderr)
        return EXIT_DONE
    prepare_for_cuda(experiment.layout)
    device = device_of(info)
    # Twice the watchdog's time, so that it comes first: a collective that times out ends the
    # process without any stack on disk.
    timeout = timedelta(minutes=2 * config.train.timeout_minutes)
    record_collectives(directory.logs)
    initialize_processes(info, experiment.layout, device, timeout)
    with ExitStack() as guards:
        try:
            watchdog = _begin(directory, info, device, config, guards)
            trainer = _prepare(experiment, directory, device, info, watchdog)
            return _run(trainer, History(directory))
        finally:
            shutdown_processes()  # this may hang as well, if another rank is gone


def _begin(
    directory: RunDirectory,
    info: ProcessInfo,
    device: torch.device,
    config: RunConfig,
    guards: ExitStack,
) -> Watchdog:
    """Takes the run for this job and begins to show that this rank is alive, until guards ends."""
    from_first_rank(directory.lock)
    directory.log_to_files(info.rank)
    guards.callback(Beat(directory, info.rank).close)
    watchdog = Watchdog(
        directory.stacks(info.rank),
        60.0 * config.train.timeout_minutes,
        lambda: dump_collectives(directory.logs, info.rank, device),
    )
    guards.callback(watchdog.close)
    watchdog.progress()
    return watchdog


def _prepare(
    experiment: Experiment,
    directory: RunDirectory,
    device: torch.device,
    info: ProcessInfo,
    watchdog: Watchdog,
) -> Trainer:
    """Proves data and kernels, builds the trainer, and writes down what the run is."""
    config = experiment.config
    check_data(
        [source.dataset for source in experiment.sources], config.data.verify, config.seed,
        lambda _: watchdog.progress(),
    )  # fmt: skip
    dtype = DTYPES[config.train.precision]
    backend = backend_of(config.train, device)
    if backend:
        keep_compiled(directory)
    found = prove_kernels(kernels_of(device, backend), device, experiment.model, dtype, backend)
    kernels = choose_kernels(found, backend)
    refuse_if_strict(config.train, kernels)
    prove_fp8(config.train, device, experiment.model)
    if info.rank == 0:
        logger.info("%s", describe_device(device))
        _announce(experiment, kernels)
    trainer = Trainer(experiment, directory, device, info.rank, watchdog)
    if info.rank == 0:
        _announce_sources(trainer)
    gc.freeze()  # all that is there now stays to the end
    gc.set_threshold(*PYTHONS_OWN_PACE)
    from_first_rank(lambda: _tell_changes(directory, config))
    tokenizer = experiment.dataset.tokenizer_directory
    from_first_rank(lambda: directory.describe(config, tokenizer, kernels))
    return trainer


def _announce_sources(trainer: Trainer) -> None:
    """Logs what the whole run takes of each dataset, for a person to check."""
    train, progress = trainer.config.train, trainer.progress
    to_come = max(0, train.steps - progress.step) * train.global_batch_size
    uses = trainer.reader.uses(progress.consumed_samples + to_come)
    for source, use in zip(trainer.reader.sources, uses, strict=True):
        logger.info(
            "dataset %s: %d tokens, %.4g of the samples to come, read %.3g times by the last step",
            source.dataset.name,
            source.dataset.num_tokens,
            use.share,
            use.epochs,
        )


def _run(trainer: Trainer, history: History) -> int:
    """Trains and returns the exit code; rank 0 writes down the start and how the run ended."""
    progress, config, layout = trainer.progress, trainer.config, trainer.experiment.layout
    if trainer.rank == 0:
        history.start(
            progress.step,
            progress.consumed_samples,
            config.train.global_batch_size,
            str(layout),
            layout.world_size,
        )
    code, reason = EXIT_FAILED, ""
    try:
        code = trainer.run()
    except BaseException as error:
        code, reason = getattr(error, "exit_code", code), f"{type(error).__name__}: {error}"
        raise
    finally:
        trainer.close(failed=bool(reason))
        if trainer.rank == 0:
            _note_end(history, trainer.progress.step, code, reason)
    return code


def _tell_changes(directory: RunDirectory, config: RunConfig) -> None:
    try:
        with_effect, without = changed_settings(directory, config)
    except ConfigError as error:  # the settings of this start count, and are written down now
        logger.warning("what has changed since the last start cannot be told: %s", error)
        return
    for change in with_effect:
        logger.warning("changed since the last start: %s", change)
    for change in without:
        logger.info("changed since the last start: %s", change)


def _note_end(history: History, step: int, code: int, reason: str) -> None:
    try:
        history.end(step, code, reason)
    except OSError as error:  # a full disk must not hide why the run ended
        logger.error("the end of the run could not be written down: %s", error)


def _announce(experiment: Experiment, kernels: dict[str, str]) -> None:
    """Logs the arithmetic of the run, for a person to check."""
    train = experiment.config.train
    tokens = train.global_batch_size * train.seq_len
    logger.info("layout %s, %s", experiment.layout, train.precision)
    logger.info(
        "%d rows per step = %d micro-batches x %d rows x %d replicas; "
        "%d tokens per step, %d in all",
        train.global_batch_size,
        experiment.num_micro_batches,
        train.micro_batch_size,
        experiment.layout.dp,
        tokens,
        tokens * train.steps,
    )
    work = experiment.objective.work(train.seq_len)
    flops = flops_per_token(experiment.model, work, train.seq_len)
    logger.info("%.3g training FLOPs per token", flops)
    if experiment.model.tied_embeddings and experiment.layout.pp > 1:
        logger.info("the two copies of the tied embeddings are not among the replicas compared")
    for name, choice in kernels.items():
        level = logging.WARNING if choice.startswith(LEFT_OUT) else logging.INFO
        logger.log(level, "%s: %s", name, choice)
