"""What a cluster is like: `configs/cluster/NAME.yaml`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.config import load_structured

PROFILES = Path(__file__).parents[2] / "configs" / "cluster"
LIMIT_CHECK_SECONDS = 30
"""How often Slurm looks at time limits."""
RUNTIMES = ("none", "pyxis", "apptainer")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass
class ContainerSection:
    runtime: str = "none"
    """`none`, `pyxis` (with enroot) or `apptainer`."""
    image: str = ""
    """What the runtime takes: a .sqsh or .sif file, or a registry's address."""
    mounts: list[str] = field(default_factory=list)
    """Folders beside the run's own, each FROM or FROM:TO."""


@dataclass
class CpuSection:
    """Jobs that need no GPU: tokenizer, prep, merge, export."""

    partition: str = ""
    """Else the profile's own."""
    cpus_per_task: int = 4
    memory: str = ""
    """Of a job, e.g. 16G; empty: the cluster's default."""
    time: str = "04:00:00"
    concurrent_tasks: int = 16
    """Most tasks of the prep array at a time."""


@dataclass
class HealthSection:
    """The pre-flight step of every training job; a node that fails is excluded."""

    enabled: bool = True
    min_free_gb: float = 5.0
    """Least free space in the scratch folder and in the run directory."""
    max_clock_skew_seconds: float = 30.0
    """Most that a node's clock may differ from the first node's; rounded up to whole seconds."""
    min_allreduce_gb_per_second: float = 0.0
    """Least bus bandwidth within a node, and between two; 0: not measured."""
    timeout_seconds: int = 300


@dataclass
class ClusterProfile:
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    """Features that nodes must have."""
    exclude: str = ""
    """Nodes never to use."""
    gpus_per_node: int = 0
    """0: a cluster without GPUs, trained on by gloo."""
    gpu_type: str = ""
    """Where the cluster names its GPUs, e.g. a100."""
    gpu_memory_gb: float = 0.0
    """Of one GPU; 0: the data sheet's, if gpu_type says which it is, else not checked."""
    tasks_per_node: int = 0
    """Ranks on a node; 0: one per GPU."""
    cpus_per_task: int = 8
    memory: str = ""
    """Of a training node, e.g. 480G; 0 is all of it; empty: the cluster's default."""
    exclusive: bool = False
    """Share training nodes with nobody."""
    time: str = "24:00:00"
    """Time limit of one training job; it saves and requeues itself before that."""
    warn_seconds: int = 120
    """How long before the time limit the ranks are asked to save. Slurm may be a minute early."""
    exit_seconds: int = 120
    """How long the other ranks get once the first has left."""
    modules: list[str] = field(default_factory=list)
    """Loaded with `module load`."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that run before everything else in a job."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every job."""
    python: str = ""
    """The interpreter on the nodes or in the container; else the one that submits."""
    scratch: str = ""
    """Folder on a node's own disk, TMPDIR of every task; may name variables ($SLURM_JOB_ID)."""
    network_interface: str = ""
    """What NCCL and gloo talk over, e.g. ib0."""
    container: ContainerSection = field(default_factory=ContainerSection)
    cpu: CpuSection = field(default_factory=CpuSection)
    health: HealthSection = field(default_factory=HealthSection)

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node

    @property
    def cpu_partition(self) -> str:
        return self.cpu.partition or self.partition

    def problems(self) -> list[str]:
        """Everything that is wrong whatever the cluster says."""
        problems = [
            f"{name} is {value}; it must be at least 1"
            for name, value in {
                "cpus_per_task": self.cpus_per_task,
                "warn_seconds": self.warn_seconds,
                "exit_seconds": self.exit_seconds,
                "cpu.cpus_per_task": self.cpu.cpus_per_task,
                "cpu.concurrent_tasks": self.cpu.concurrent_tasks,
                "health.timeout_seconds": self.health.timeout_seconds,
            }.items()
            if value < 1
        ]
        if self.ranks_per_node < 1:
            problems.append("set gpus_per_node, or tasks_per_node on a cluster without GPUs")
        if self.tasks_per_node and 0 < self.gpus_per_node < self.tasks_per_node:
            problems.append(
                f"tasks_per_node {self.tasks_per_node} is more than gpus_per_node "
                f"{self.gpus_per_node}: a rank has a GPU of its own"
            )
        for name, value in {"time": self.time, "cpu.time": self.cpu.time}.items():
            problems += time_problems(name, value)
        if self.container.runtime not in RUNTIMES:
            choices = ", ".join(RUNTIMES)
            problems.append(f"container.runtime is '{self.container.runtime}'; choose {choices}")
        elif self.container.runtime != "none" and not self.container.image:
            problems.append(f"container.runtime {self.container.runtime} needs container.image")
        if self.container.runtime == "pyxis" and self.scratch and not self._sees_scratch():
            problems.append(
                f"scratch {self.scratch} is not in the container: mount its folder on the node "
                "with container.mounts, or leave it out"
            )
        return problems

    def _sees_scratch(self) -> bool:
        """Pyxis mounts before a task can make the folder, so it or one above it has to be there."""
        targets = [(mount.split(":") * 2)[1] for mount in self.container.mounts]
        return any(Path(self.scratch).is_relative_to(target) for target in targets)


def load_profile(name: str) -> ClusterProfile:
    """The profile NAME under configs/cluster/, or a YAML file given by its path.

    Raises ConfigError naming what is wrong, and the profiles that there are.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(profile.stem for profile in PROFILES.glob("*.yaml")))
        raise ConfigError(
            f"no cluster profile at {path}; there are {known}. Write one of your own after them "
            "(docs/slurm.md) and give its name, or the path of its YAML file, to --cluster"
        )
    try:
        return load_structured(ClusterProfile, path, [])
    except ConfigError as error:
        raise ConfigError([f"profile {name}: {problem}" for problem in error.problems]) from None


def time_problems(name: str, value: str) -> list[str]:
    """A bare number is refused: YAML reads an unquoted 1:00:00 as 3600, Slurm that as minutes."""
    if seconds_of(value) is not None and not value.isdigit():
        return []
    return [
        f"{name} is '{value}'; write DAYS-HOURS:MINUTES such as 0-01:30, or HOURS:MINUTES:SECONDS "
        "in quotes"
    ]


def warning_problems(limit: str, warn_seconds: int) -> list[str]:
    """A job that is asked to stop as it starts: Slurm looks at limits only every so often."""
    seconds = seconds_of(limit)
    if seconds is None or seconds > warn_seconds + LIMIT_CHECK_SECONDS:
        return []
    return [
        f"time limit {limit} leaves nothing to train in: the ranks are asked to save warn_seconds "
        f"{warn_seconds} before it, up to {LIMIT_CHECK_SECONDS} s early"
    ]


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit in any of Slurm's notations, None if it is in none of them.

    M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    parts = [int(match[name] or 0) for name in ("first", "second", "third")]
    if match["days"] is not None or match["third"] is not None:
        weights = (3600, 60, 1)
    else:
        weights = (60, 1, 0)
    in_day = sum(part * weight for part, weight in zip(parts, weights, strict=True))
    return int(match["days"] or 0) * 86_400 + in_day
