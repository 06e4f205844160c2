"""What a submit can know of the run and the dataset that are there already."""

import os
from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import MANIFEST_NAME, read_manifest
from esolm.data_prep.packing_index import read_packing
from esolm.pipeline.checkpoint.commit import newest_valid
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.index import BEST_FIT
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.errors import CheckpointError, ConfigError
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.experiment import Experiment
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.run.sources import reader_of, source_paths


def is_merged(config: RunConfig) -> bool:
    """Whether every dataset has its manifest."""
    return all((Path(path) / MANIFEST_NAME).is_file() for path in source_paths(config.data))


def is_prepared(config: RunConfig) -> bool:
    """Whether every dataset is merged, and packed if need be, so that training could read it."""
    packs = config.data.packing == BEST_FIT
    paths = [Path(path) for path in source_paths(config.data)]
    return is_merged(config) and not (
        packs and any(_packing_problem(path, config.train.seq_len) for path in paths)
    )


def _packing_problem(data: Path, seq_len: int) -> str | None:
    try:
        read_packing(data, read_manifest(data), seq_len)
    except DataError as error:
        return str(error)
    return None


def access_problems(run: Path) -> list[str]:
    """Why nothing can be written into a run directory that is there, or where it is to be made."""
    there = next(path for path in (run, *run.parents) if os.path.lexists(path))
    for path in (there, *there.glob("slurm"), *there.glob("checkpoints")):
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            return [
                f"run.dir {run}: you may not write to {path}, which belongs to {_owner(path)}; "
                "choose another run.dir"
            ]
    return []


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user that this machine does not know
        return f"user {path.stat().st_uid}"


def evaluation_problems(config: RunConfig) -> list[str]:
    """Why stage evaluate would find nothing to measure in the dataset that is there."""
    if config.data.sources:
        return [
            "stage evaluate measures one dataset, and the run has data.sources: leave it out; "
            "training reports valid_loss/SOURCE, and `esolm evaluate RUN DATASET` measures each"
        ]
    try:
        dataset = TokenDataset(config.data.path, "valid")
        SampleReader(dataset, config.train.seq_len, 0, "none", config.data.packing)
    except DataError as error:
        return [f"stage evaluate: {error}"]
    return []


def resume_problems(experiment: Experiment) -> list[str]:
    """Why the training would refuse the newest checkpoint of its run."""
    # Imported here because they import the whole of training.
    from esolm.pipeline.checkpoint.checkpointer import RunState
    from esolm.pipeline.train.progress import check_same_run

    config = experiment.config
    reader = reader_of(config, experiment.sources)
    try:
        found = newest_valid(RunDirectory(config.run.dir).checkpoints)
        if found is None:
            return []
        check_same_run(RunState.from_manifest(found[1]), experiment, reader)
    except ConfigError as error:
        return error.problems
    except (DataError, CheckpointError) as error:
        return [str(error)]
    return []
