"""Writes and commits a training checkpoint of full tensors in one process."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.pipeline.checkpoint import commit, store
from esolm.pipeline.checkpoint.checkpointer import RunState
from esolm.pipeline.data.index import CONTINUOUS
from esolm.pipeline.importer.network import StoredNetwork
from esolm.pipeline.parallel.fragments import MOMENTS, STATES, Fragment
from esolm.pipeline.parallel.single import single_process


def write_checkpoint(directory: Path, network: StoredNetwork, tokenizer: str) -> Path:
    """Commits DIRECTORY/checkpoints/step_N and returns it.

    tokenizer: its fingerprint, or "" if the dataset to come decides. If the file has no moments of
    the optimizer, they are zero and no update is counted, so that Adam corrects their bias anew.
    """
    single_process()
    checkpoints = directory / "checkpoints"
    staging = commit.begin(checkpoints, network.step)
    store.write(staging, _fragments(network), None)
    files = commit.digests(sorted(staging.iterdir()))
    state = RunState(
        step=network.step,
        updates=network.step if network.moments else 0,
        consumed_samples=0,
        tokens=0,
        seq_len=network.seq_len,
        model=asdict(network.model),
        objective=asdict(network.objective),
        data={},
        data_path="",
        tokenizer=tokenizer,
    )
    return commit.commit(staging, commit.CheckpointManifest(network.step, files, asdict(state)))


def _fragments(network: StoredNetwork) -> list[Fragment]:
    averages = network.weights if network.ema is None else network.ema
    fragments = []
    for name, weight in network.weights.items():
        moments = network.moments or {key: {name: torch.zeros_like(weight)} for key in MOMENTS}
        tensors = [weight, moments["exp_avg"][name], moments["exp_avg_sq"][name], averages[name]]
        states = {key: t.flatten() for key, t in zip(STATES, tensors, strict=True)}
        shape = tuple(weight.shape)
        fragments.append(Fragment(name, shape, shape, (0,) * len(shape), 0, states, True))
    return fragments


@dataclass(frozen=True)
class ImportedSource:
    """The imported network as an export sees it."""

    network: StoredNetwork
    tokenizer_path: Path | None = None
    data_path: Path | None = None
    packing: str = CONTINUOUS

    @property
    def step(self) -> int:
        return self.network.step

    @property
    def model(self) -> ModelConfig:
        return self.network.model

    @property
    def objective(self) -> dict[str, Any]:
        return asdict(self.network.objective)

    @property
    def seq_len(self) -> int:
        return self.network.seq_len

    def tensors(self, state: str) -> dict[str, Tensor]:
        """Returns the tensors of the state `weights` or `ema`.

        If the file has no average, `ema` is the raw weights.
        """
        averages = self.network.ema if state == "ema" else None
        return averages if averages is not None else self.network.weights
