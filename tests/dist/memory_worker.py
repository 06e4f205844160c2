"""Starts, saves, resumes and imports a large network, and says what each rank's memory came to."""

import time
from pathlib import Path
from threading import Thread
from typing import Any

import torch.distributed as dist

from esolm.model.config import ModelConfig
from esolm.pipeline.checkpoint.checkpointer import Checkpointer, RunState
from esolm.pipeline.checkpoint.commit import Retention
from esolm.pipeline.export.unfold import unfold
from esolm.pipeline.train.initial_weights import BundleTensors, fill
from tests.dist import workers


def network(layers: int) -> ModelConfig:
    """A network of 12.6 M parameters for each layer, and 65.5 M more."""
    return ModelConfig(
        vocab_size=32000,
        mask_id=workers.MASK_ID,
        hidden_size=1024,
        num_layers=layers,
        num_heads=8,
        ffn_hidden_size=4096,
        norm="rmsnorm",
        mlp_bias=False,
        output_bias=False,
        adaln=False,
    )


def peaks(arguments: dict[str, Any]) -> Any:
    """The most bytes of host memory that each rank of a new process came to take besides its own.

    begin: "anew" and a checkpoint is saved, "resume" from it, or "bundle" in another folder.
    """
    workers.MODELS["large"] = network(arguments["layers"])
    peak = Peak()
    before = peak.bytes  # the interpreter and the libraries
    case = {**arguments["case"], "model": "large"}
    folder, begin = Path(arguments["folder"]), arguments["begin"]
    with workers.engine_of(case) as (engine, _):
        saver = Checkpointer(
            folder, Retention(1), arguments.get("asynchronous", False), lambda: None
        )
        if begin == "resume":
            found = saver.newest()
            assert found is not None
            saver.load(engine, *found)
        elif begin == "bundle":
            fill(engine.fragments(), unfold(BundleTensors(folder), engine.config.model))
            engine.adopt(0)
        saver.reserve(engine)
        if begin == "anew":
            saver.save(engine, RunState(1, 1, 8, 96, 12, {}, {}, {}, "", ""))
            saver.wait()
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, peak.bytes - before)
    return everyone


class Peak:
    """The most bytes of host memory that this process ever had.

    Linux's own maximum leaves out what is swapped out, so from here on both are also sampled.
    """

    def __init__(self) -> None:
        self._most = 0
        Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, status_bytes("VmRSS") + status_bytes("VmSwap"))
            time.sleep(0.02)

    @property
    def bytes(self) -> int:
        return max(self._most, status_bytes("VmHWM"))


def status_bytes(name: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


if __name__ == "__main__":
    workers.main(globals())
