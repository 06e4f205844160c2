"""What runs inside the ranks of a test. Many cases share one launch: starting costs most."""

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state

from esolm.model import fp8, output
from esolm.model.config import ModelConfig
from esolm.model.flops import layer_costs
from esolm.model.kernels import Kernels, use_kernels
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, Objective
from esolm.model.pieces import LOGITS_MB
from esolm.pipeline.checkpoint import store
from esolm.pipeline.checkpoint.checkpointer import Checkpointer
from esolm.pipeline.checkpoint.commit import Retention
from esolm.pipeline.data.batches import BatchSource
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.errors import ConfigError, EsolmError
from esolm.pipeline.parallel import build, module
from esolm.pipeline.parallel.bootstrap import (
    device_of,
    initialize_groups,
    initialize_processes,
    process_info,
    shutdown_processes,
)
from esolm.pipeline.parallel.deepspeed_engine import DeepSpeedEngine
from esolm.pipeline.parallel.engine import Engine, EngineConfig
from esolm.pipeline.parallel.first_rank import from_first_rank
from esolm.pipeline.parallel.flat import FlatEngine
from esolm.pipeline.parallel.fragments import WEIGHTS
from esolm.pipeline.parallel.layout import REDUCE_BUCKET, Layout
from esolm.pipeline.run.contexts import ContextSection, context_at
from esolm.pipeline.train.guards import check_replicas
from esolm.pipeline.train.kernels import Finding, choose_kernels

VOCAB_SIZE, MASK_ID, SEQ_LEN, GLOBAL_BATCH = 51, 50, 12, 8
LEARNING_RATE = 2e-3

MODELS = {
    "paper": ModelConfig(
        vocab_size=VOCAB_SIZE,
        mask_id=MASK_ID,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        ffn_hidden_size=64,
        cond_dim=16,
        dropout=0.1,
        init_std=0.1,
    ),
    "modern": ModelConfig(
        vocab_size=VOCAB_SIZE,
        mask_id=MASK_ID,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        ffn_hidden_size=64,
        norm="rmsnorm",
        activation="swiglu",
        mlp_bias=False,
        output_bias=False,
        adaln=False,
        init_std=0.1,
    ),
}
TODAY: dict[str, Any] = {
    "qk_norm": True,
    "logit_softcap": 5.0,
    "z_loss": 0.01,
    "rope_bases": (10000.0, 100.0),
    "rope_factor": 2.0,
    "rope_original_length": 8,
}
MODELS["grouped"] = replace(MODELS["modern"], num_kv_heads=2, **TODAY)
MODELS["one key"] = replace(MODELS["paper"], num_kv_heads=1, **TODAY)
MODELS["tied"] = replace(MODELS["paper"], tied_embeddings=True)
OBJECTIVES: dict[str, Objective] = {
    "esolm_b": EsoLM(MASK_ID, alpha_0=0.5, kappa=0.5),
    "esolm_a": EsoLM(MASK_ID, alpha_0=0.25, kappa=0.5, variant="A"),
    "mdlm": MDLM(MASK_ID),
    "bd3lm": BD3LM(MASK_ID, block_size=4, t_min=0.3, t_max=0.8),
    "ar": AutoRegressive(prepend_id=1),
}
# Every fifth row of random tokens has an id somewhere that here ends a document.
EOS_ID = 3
OBJECTIVES["documents"] = EsoLM(MASK_ID, alpha_0=0.5, kappa=0.5, eos_id=EOS_ID)
OBJECTIVES["documents, A"] = EsoLM(MASK_ID, 0.5, 0.5, variant="A", eos_id=EOS_ID)
OBJECTIVES["documents, bd3lm"] = BD3LM(MASK_ID, 4, keep_first=False, eos_id=EOS_ID)


class RandomTokens:
    """Stands where the sample reader stands; a sample's tokens depend on its index alone."""

    quarantine = None

    def read(self, indices: Any) -> Any:
        return np.stack(
            [np.random.default_rng(int(i)).integers(0, MASK_ID, SEQ_LEN) for i in indices]
        )


@contextmanager
def engine_of(case: dict[str, Any]) -> Iterator[tuple[Engine, BatchSource]]:
    """The engine of a case and its batches; process groups are made anew for each.

    deepspeed: in the case of one process, that DeepSpeed is to run it.
    """
    engines = [FlatEngine] if case.get("deepspeed") else build.ENGINES
    with patch.object(build, "ENGINES", engines):
        yield from _engine_and_source(case)


def _engine_and_source(case: dict[str, Any]) -> Iterator[tuple[Engine, BatchSource]]:
    layout = Layout(**case["layout"])
    parallel_state.destroy_model_parallel()
    initialize_groups(layout)
    micro_batch_size = case.get("micro_batch_size", 1)
    engine = build.build_engine(
        EngineConfig(
            model=MODELS[case.get("model", "paper")],
            layout=layout,
            device=device_of(process_info()),
            seed=1,
            micro_batch_size=micro_batch_size,
            num_micro_batches=GLOBAL_BATCH // (micro_batch_size * layout.dp),
            precision=case.get("precision", "fp32"),
            gradient_clipping=0.5,
            layer_costs=layer_costs(
                MODELS[case.get("model", "paper")],
                OBJECTIVES[case.get("objective", "esolm_b")].work(SEQ_LEN),
            ),
            recompute=case.get("recompute", "none"),
            fp8=case.get("fp8", "none"),
            offload=case.get("offload", False),
            optimizer={
                "lr": LEARNING_RATE,
                "betas": (0.9, 0.95),
                "eps": 1e-8,
                "weight_decay": 0.1,
                "ema_decay": 0.99,
            },
        )
    )
    source = BatchSource(
        reader=RandomTokens(),  # type: ignore[arg-type]
        objective=OBJECTIVES[case.get("objective", "esolm_b")],
        seed=7,
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=micro_batch_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=layout.dp,
        skip_multiple=case.get("skip_multiple", SEQ_LEN),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=layout.cp,
    )
    yield engine, source
    if isinstance(engine, DeepSpeedEngine):
        engine.deepspeed.destroy()


def train_steps(
    engine: Engine, source: BatchSource, first: int, last: int, contexts: Any = ()
) -> list[list[float]]:
    """[loss, gradient norm] of each step; a validation in the middle must change nothing."""
    rows, schedule = [], [ContextSection(*entry) for entry in contexts]
    for step in range(first, last):
        if step == 2:
            engine.evaluate(batch_of(source, 100))
        batch = source.batch(step * GLOBAL_BATCH, context_at(schedule, step + 1))
        result = engine.train_step(batch, LEARNING_RATE)
        rows.append([sum(result.losses.values()), result.grad_norm])
    return rows


def batch_of(source: BatchSource, step: int) -> list[MicroBatch]:
    return source.batch(step * GLOBAL_BATCH)


def losses(cases: list[dict[str, Any]]) -> Any:
    """[loss, gradient norm] over the steps of every case; the last weights go to its `out`."""
    answers = []
    for case in cases:
        rows = case.get("piece_rows", output.piece_rows(MODELS["paper"], 1, 4, LOGITS_MB))
        pieces = patch.object(output, "piece_rows", lambda *_, rows=rows: rows)
        use_kernels(Kernels(compiled=case.get("compiled", "")))
        bucket = patch.object(module, "REDUCE_BUCKET", case.get("bucket", REDUCE_BUCKET))
        with pieces, bucket, products_of(case), engine_of(case) as (engine, source):
            contexts = case.get("contexts", ())
            answers.append(train_steps(engine, source, 0, case["steps"], contexts))
            parts = engine.fragments()
            weights = [replace(part, states={WEIGHTS: part.states[WEIGHTS]}) for part in parts]
            store.write(Path(case["out"]), weights, None)
    return answers


def products_of(case: dict[str, Any]) -> AbstractContextManager[Any]:
    """Where a case asks for plain products in place of those in FP8, these."""
    if case.get("fp8") != "plain":
        return nullcontext()
    return patch.object(fp8, "fp8_product", lambda _: F.linear)


def save_at_three(arguments: dict[str, Any]) -> Any:
    """Three steps in each case's layout, then a checkpoint in its folder."""
    for case in arguments["cases"]:
        with engine_of(case) as (engine, source):
            train_steps(engine, source, 0, 3)
            store.write(Path(case["folder"]), engine.fragments(), None)
    return None


def resume_to_five(arguments: dict[str, Any]) -> Any:
    """Loads each case's checkpoint, saves it as `out`-again, takes two more steps, saves `out`."""
    answers = []
    for case in arguments["cases"]:
        with engine_of(case) as (engine, source):
            if "folder" in case:
                store.read(Path(case["folder"]), engine.fragments(), None)
                engine.adopt(3)
                store.write(Path(case["out"] + "-again"), engine.fragments(), None)
                answers.append(train_steps(engine, source, 3, 5))
            else:
                answers.append(train_steps(engine, source, 0, 5)[3:])
            store.write(Path(case["out"]), engine.fragments(), None)
    return answers


def guards(cases: list[dict[str, Any]]) -> Any:
    """Per case: what a vetoed step and one with an infinite loss change, and the replica check."""
    answers = []
    for case in cases:
        with engine_of(case) as (engine, source):
            train_steps(engine, source, 0, 1)
            before = _weights_and_moments(engine)
            vetoed = engine.train_step(batch_of(source, 1), LEARNING_RATE, lambda result: False)
            after_veto = _weights_and_moments(engine)
            infinite = engine.train_step(_infinite(batch_of(source, 2)), LEARNING_RATE)
            after_infinite = _weights_and_moments(engine)
            with _one_is_nan(engine):
                poisoned = engine.train_step(batch_of(source, 2), LEARNING_RATE)
            after_poisoned = _weights_and_moments(engine)
            sound = engine.train_step(batch_of(source, 3), LEARNING_RATE, lambda result: True)
            after_sound = _weights_and_moments(engine)
            check_replicas(engine)
            answers.append(
                {
                    "applied": [result.applied for result in (vetoed, infinite, poisoned, sound)],
                    "unchanged": [
                        _same(before, after)
                        for after in (after_veto, after_infinite, after_poisoned, after_sound)
                    ],
                    "flips": {name: _flip(engine, name) for name in case["flips"]},
                }
            )
    return answers


def averages(cases: list[dict[str, Any]]) -> Any:
    """Per case: losses with the weights, with their average, and again; whether all stayed."""
    answers = []
    for case in cases:
        with engine_of(case) as (engine, source):
            train_steps(engine, source, 0, 3)
            before, losses = _everything(engine), []
            losses.append(engine.evaluate(batch_of(source, 9)))
            with engine.averaged_weights():
                losses.append(engine.evaluate(batch_of(source, 9)))
            losses.append(engine.evaluate(batch_of(source, 9)))
            unchanged = _same(before, _everything(engine))
            result = engine.train_step(batch_of(source, 3), LEARNING_RATE)
            answers.append(
                {
                    "losses": [sum(loss.values()) for loss in losses],
                    "unchanged": unchanged,
                    "next": [result.loss, result.grad_norm],
                    "buckets": [result.buckets.get(bucket) for bucket in range(4)],
                }
            )
    return answers


def without_deepspeed(cases: list[dict[str, Any]]) -> Any:
    """Of each case's run and checkpoint in one process, by PyTorch alone and by DeepSpeed."""
    answers = []
    for case in cases:
        folder = {**case, "folder": case["out"] + "-three"}
        found, average = losses([case])[0], averages([case])[0]
        save_at_three({"cases": [folder]})
        through = resume_to_five({"cases": [case, folder]})
        expected = losses([{**case, "deepspeed": True}])[0]
        resumed = resume_to_five({"cases": [{**folder, "deepspeed": True}]})[0]
        answers.append(
            {
                "expected": expected, "found": found, "average": average,
                "through": through, "resumed": resumed,
            }
        )  # fmt: skip
    return answers


def process_groups(cases: list[dict[str, Any]]) -> Any:
    """Of every case's groups the timeouts; what every rank hears of rank 0's finds and failures."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, _heard())
    return {"timeouts": _timeouts(cases), "heard_by_all": everyone}


def _heard() -> list[str]:
    def refuse() -> None:
        raise ConfigError(["one", "two"])

    heard = [from_first_rank(lambda: f"found by {dist.get_rank()}")]
    try:
        from_first_rank(refuse)
    except ConfigError as error:
        heard += [f"ConfigError: {error}", f"{len(error.problems)} problems"]
    try:
        from_first_rank(Path("/nowhere").stat)
    except FileNotFoundError as error:
        heard.append(f"FileNotFoundError: {error}")
    only_here = Finding("" if dist.get_rank() == 0 else "the second rank's")
    heard.append(choose_kernels({"fused_adamw": only_here})["fused_adamw"])
    return heard


def _timeouts(cases: list[dict[str, Any]]) -> list[list[float]]:
    """Per case: the seconds that each group gives a collective, DeepSpeed's and a save's too."""
    answers = []
    for case in cases:
        with engine_of(case):
            Checkpointer(Path(case["out"]), Retention(1), True, lambda: None)
            groups = list(dist.distributed_c10d._world.pg_map)
            backends = [group._get_backend(torch.device("cpu")) for group in groups]
            answers.append([backend.options._timeout.total_seconds() for backend in backends])
    return answers


def _everything(engine: Engine) -> list[torch.Tensor]:
    """States, what the network computes with, and the optimizer's count of its updates."""
    counts = [state["step"].clone() for state in engine.optimizer.state.values()]
    held = [parameter.data.clone() for _, parameter in engine.parameters()]
    return [*_weights_and_moments(engine), *held, *counts]


def _infinite(batches: list[MicroBatch]) -> list[MicroBatch]:
    index, labels, weights = batches[0].targets
    first = MicroBatch(batches[0].inputs, (index, labels, weights * torch.inf), batches[0].term)
    return [first, *batches[1:]]


@contextmanager
def _one_is_nan(engine: Engine) -> Iterator[None]:
    """One element of one gradient is not a number, on the first rank alone."""

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        poisoned = gradient.clone()
        poisoned.view(-1)[0] = torch.nan
        return poisoned

    _, parameter = engine.parameters()[0]
    handle = parameter.register_hook(poison) if dist.get_rank() == 0 else None
    yield
    if handle is not None:
        handle.remove()


def _weights_and_moments(engine: Engine) -> list[torch.Tensor]:
    return [tensor.clone() for part in engine.fragments() for tensor in part.states.values()]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """On every rank, bit by bit."""
    mine = all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    everywhere = torch.tensor([int(mine)])
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return bool(everywhere.item())


def _flip(engine: Engine, name: str) -> str:
    """What the replica check says while a weight is another on the last rank."""
    held = torch.empty(0)
    if dist.get_rank() == dist.get_world_size() - 1:
        # Of a weight that ZeRO-3 has cut the part comes first, then what is gathered of it.
        copies = [replica.held for replica in engine.replicas() if replica.name == name]
        cut = engine.layout.zero == 3 and engine.layout.dp == 1
        held = copies[0 if cut else -1].view(-1)
    right = held.clone()
    held[3:4] += 0.1
    try:
        check_replicas(engine)
    except EsolmError as error:
        return str(error)
    finally:
        held.copy_(right)
    return ""


def main(workers: dict[str, Any]) -> None:
    """Runs one of the workers, as `tests.dist.ranks.run_ranks` asks for it."""
    worker, arguments, answer = sys.argv[1:]
    info = process_info()
    layout = Layout(1, 1, info.world_size, 1)
    initialize_processes(info, layout, device_of(info), timedelta(seconds=60))
    result = workers[worker](json.loads(arguments))
    if info.rank == 0:
        Path(answer).write_text(json.dumps(result))
    dist.barrier()
    shutdown_processes()


if __name__ == "__main__":
    main(globals())
