"""Reports a plan as dictionaries for scripts."""

from dataclasses import asdict
from typing import Any

from esolm.model.flops import visible_pairs
from esolm.pipeline.plan.cost import HEADROOM, Machine, fits
from esolm.pipeline.plan.decoding import decoding_bytes
from esolm.pipeline.plan.plan import CHECKPOINT_BYTES, Plan
from esolm.pipeline.plan.search import Search
from esolm.pipeline.plan.shapes import parameters_by_part

FLOPS_DEFINITION = (
    "training FLOPs per token of the data: 2 per multiply-add, backward = 2 x forward; counted are "
    "the matrices of the blocks, attention scores at the pattern's true density and the output "
    "layer where there is loss; not norms, activations, the embedding, nor recomputation"
)
SEARCH_CAVEAT = (
    "The ranking is an estimate by a simple cost model (docs/plan.md), not a measurement: "
    "try the first few."
)


def describe(plan: Plan, machine: Machine) -> dict[str, Any]:
    """Returns everything that `esolm plan` says, in bytes, seconds and plain counts."""
    config, model = plan.subject.config, plan.subject.model
    train, layout = config.train, plan.layout
    by_part = parameters_by_part(model)
    total = sum(by_part.values())
    tokens = plan.tokens_per_step * train.steps
    decoding = decoding_bytes(model, train.seq_len)
    return {
        "notes": list(plan.subject.notes),
        "layout": {
            "ranks": layout.world_size,
            "tp": layout.tp,
            "cp": layout.cp,
            "pp": layout.pp,
            "dp": layout.dp,
            "zero": layout.zero,
            "sequence": layout.sequence,
        },
        "vocab_size": model.vocab_size,
        "parameters": {"total": total, **by_part},
        "flops_per_token": plan.flops_per_token,
        "flops_definition": FLOPS_DEFINITION,
        "attention": _attention(plan),
        "batch": {
            "rows_per_step": train.global_batch_size,
            "micro_batches": plan.micro_batches,
            "micro_batch_size": train.micro_batch_size,
            "replicas": layout.dp,
            "tokens_per_step": plan.tokens_per_step,
            "steps": train.steps,
            "tokens": tokens,
        },
        "sources": [{**asdict(use), "epochs": use.epochs} for use in plan.subject.uses],
        "bubble_share": plan.bubble,
        "activation_checkpointing": config.parallel.activation_checkpointing,
        "stages": _stages(plan),
        "memory_bytes": plan.memory,
        "gpu_memory_bytes": machine.gpu.memory,
        "gpu_allowance_bytes": round((1 - HEADROOM) * machine.gpu.memory),
        "host_memory_bytes": plan.host_memory,
        "node_memory_bytes": plan.node_memory(machine),
        "fits": not (misfit(plan, machine) or host_misfit(plan, machine)),
        "checkpoint_bytes": CHECKPOINT_BYTES * total,
        "checkpoints_kept": config.checkpoint.keep,
        "decoding": {**asdict(decoding), "total": decoding.total},
        "time": {
            "gpu": machine.gpu.name,
            "mfu": machine.mfu,
            "seconds": plan.seconds(machine),
            "flops": plan.flops_per_token * tokens,
        },
    }


def misfit(plan: Plan, machine: Machine) -> str | None:
    """Says that a plan needs more memory than the machine's GPUs have, if it does."""
    gpu = machine.gpu
    if fits(plan.memory, gpu.memory):
        return None
    return (
        f"does not fit: needs {plan.memory / 1e9:.1f} GB of {gpu.memory / 1e9:.0f} GB on "
        f"{gpu.name}, of which it may fill {HEADROOM:.0%}; --search finds layouts that fit"
    )


def host_misfit(plan: Plan, machine: Machine) -> str | None:
    """Says that the ranks of a node need more host memory than it has, if that is known."""
    available, need = machine.host_memory, plan.node_memory(machine)
    if available is None or need <= available:
        return None
    host = max((stage.host for stage in plan.stages), key=lambda host: host.peak)
    ways = ["fewer ranks on a node"]
    if host.offloaded:
        ways.append("parallel.offload=false")
    if host.staging > host.starting:
        ways.append("checkpoint.asynchronous=false")
    return (
        f"does not fit: the ranks of a node need {need / 1e9:.1f} GB of host memory, "
        f"{plan.host_memory / 1e9:.1f} GB each, of {available / 1e9:.0f} GB; what helps: "
        f"{', '.join(ways)}"
    )


def _attention(plan: Plan) -> list[dict[str, Any]]:
    """Returns, for each kind of row, its share of the batch and the share of pairs that attend."""
    rows = []
    for work in plan.subject.objective.work(plan.subject.config.train.seq_len):
        fed = work.fed
        rows.append(
            {
                "pattern": work.pattern.value,
                "share_of_rows": work.share,
                "tokens_fed": round(fed),
                "density": visible_pairs(work)[0] / fed**2,
                "scored": work.scored,
            }
        )
    return rows


def _stages(plan: Plan) -> list[dict[str, Any]]:
    mode = plan.subject.config.parallel.activation_checkpointing
    rows = []
    for stage in plan.stages:
        state = stage.state
        rows.append(
            {
                "layers": list(stage.layers),
                "parameters_per_rank": stage.parameters,
                "micro_batches_in_flight": stage.in_flight,
                "weights": state.weights,
                "gradients": state.gradients,
                "optimizer_master": state.master,
                "optimizer_moments": state.moments,
                "ema": state.ema,
                "reduce_bucket": state.bucket,
                "while_computing": state.computing,
                "while_reducing": state.reducing,
                "activations": stage.activations,
                "working": stage.working,
                "logits": stage.logits,
                "peak": stage.total(mode),
                "host": {**asdict(stage.host), "peak": stage.host.peak},
            }
        )
    return rows


def describe_search(found: Search, count: int) -> list[dict[str, Any]]:
    """Returns the best `count` layouts, the best one first."""
    return [
        {
            "layout": str(candidate.plan.layout),
            "settings": candidate.settings,
            "step_seconds": candidate.seconds.total,
            "compute": candidate.seconds.compute,
            "bubble": candidate.seconds.bubble,
            "tensor_communication": candidate.seconds.tensor,
            "context_communication": candidate.seconds.context,
            "data_communication": candidate.seconds.data,
            "data_communication_hidden": candidate.seconds.hidden,
            "stage_messages": candidate.seconds.messages,
            "memory_bytes": candidate.memory,
        }
        for candidate in found.ranked[:count]
    ]
