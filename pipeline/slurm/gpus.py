"""Whether a rank's share of the run fits its GPU, as `esolm plan` knows it."""

from pathlib import Path

from esolm.data_prep.tokenizers import has_tokenizer, load_tokenizer
from esolm.pipeline.plan.cost import HEADROOM, Gpu, fits, fp8_misfit, gpu_named
from esolm.pipeline.plan.plan import find_subject, make_plan
from esolm.pipeline.run.hardware import PEAK_BF16_FLOPS
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.slurm.profile import ClusterProfile


def gpu_problems(config: RunConfig, profile: ClusterProfile, nodes: int) -> list[str]:
    """What GPUs of a known kind lack for FP8, and what does not fit the memory of so many nodes."""
    gpu = known_gpu(profile)
    problems = _memory_problems(config, profile, nodes)
    if gpu and (lacking := fp8_misfit(config.train, gpu)):
        problems.append(lacking)
    return problems


def _memory_problems(config: RunConfig, profile: ClusterProfile, nodes: int) -> list[str]:
    memory = gpu_memory(profile)
    if memory is None:
        return []
    ranks = nodes * profile.ranks_per_node
    need = make_plan(find_subject(config, ranks, _vocab_size(config)), ranks).memory
    if fits(need, memory):
        return []
    return [
        f"with slurm.nodes {nodes} a GPU needs {need / 1e9:.1f} GB, more than {HEADROOM:.0%} of "
        f"its {memory / 1e9:.0f} GB; `esolm plan --search` finds layouts that fit"
    ]


def gpu_memory(profile: ClusterProfile) -> float | None:
    """Bytes of one GPU."""
    if profile.gpus_per_node and profile.gpu_memory_gb:
        return profile.gpu_memory_gb * 1e9
    gpu = known_gpu(profile)
    return gpu.memory if gpu else None


def known_gpu(profile: ClusterProfile) -> Gpu | None:
    """The kind of GPU, if the profile names one of those known."""
    if not profile.gpus_per_node:
        return None
    kind = profile.gpu_type.upper()
    known = next((name for name in PEAK_BF16_FLOPS if name in kind), None)
    return gpu_named(known) if known else None


def _vocab_size(config: RunConfig) -> int:
    """In place of a dataset that is yet to be made."""
    tokenizer = Path(config.prep.tokenizer)
    if has_tokenizer(tokenizer):
        return load_tokenizer(tokenizer).info.vocab_size
    return config.prep.vocab_size
