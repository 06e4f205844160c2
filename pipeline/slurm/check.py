"""A profile against the cluster as it is: all that it would refuse, before anything waits."""

import getpass
from dataclasses import dataclass

from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.slurm.client import SlurmError, call, fields
from esolm.pipeline.slurm.profile import ClusterProfile, seconds_of
from esolm.pipeline.slurm.stages import GPU_STAGES, partition_of


@dataclass(frozen=True)
class Node:
    cpus: int
    gpus: int


def cluster_problems(
    config: RunConfig, profile: ClusterProfile, stages: list[str], most_nodes: int
) -> list[str]:
    """What the live cluster has against the stages. Raises SlurmError if it does not answer."""
    known = _partitions()
    problems = []
    for names in dict.fromkeys(partition_of(stage, profile) for stage in stages):
        for name in names.split(","):
            if name in known:
                problems += _access_problems(name, known[name], profile)
            else:
                named = f"'{name}'" if name else "is missing: it"
                problems.append(f"partition {named} is not one of {', '.join(sorted(known))}")
    if "train" in stages:
        limit = config.slurm.time or profile.time
        problems += _nowhere(
            {
                name: _size_problems(name, profile, _nodes(name), most_nodes)
                + _time_problems(name, known[name], limit)
                for name in profile.partition.split(",")
                if name in known
            }
        )
    if not set(stages) <= set(GPU_STAGES):
        problems += _nowhere(
            {
                name: _time_problems(name, known[name], profile.cpu.time)
                for name in profile.cpu_partition.split(",")
                if name in known
            }
        )
    return list(dict.fromkeys(problems + association_problems(profile)))


def _nowhere(found: dict[str, list[str]]) -> list[str]:
    """What keeps a job out of all of its partitions; Slurm takes the first that it fits."""
    if not all(found.values()):
        return []
    return [problem for problems in found.values() for problem in problems]


def _partitions() -> dict[str, dict[str, str]]:
    lines = call("scontrol", "--oneliner", "show", "partition").splitlines()
    found = [fields(line) for line in lines if line.startswith("PartitionName=")]
    return {partition["PartitionName"]: partition for partition in found}


def _nodes(partition: str) -> list[Node]:
    output = call("sinfo", "-h", "-N", "-p", partition, "-o", "%c|%G")
    return [
        Node(int(cpus.rstrip("+")), _gpus(gres))
        for cpus, gres in (line.split("|", 1) for line in output.splitlines())
    ]


def _gpus(gres: str) -> int:
    """GPUs in words such as gpu:a100:8(S:0-1),nvme:1."""
    entries = [entry.split("(")[0].split(":") for entry in gres.split(",")]
    return sum(int(parts[-1]) for parts in entries if parts[0] == "gpu" and parts[-1].isdigit())


def _access_problems(name: str, partition: dict[str, str], profile: ClusterProfile) -> list[str]:
    problems = []
    if partition.get("State", "UP") != "UP":
        problems.append(f"partition {name} is {partition['State']}")
    for kind, value, allowed, denied in (
        ("account", profile.account, "AllowAccounts", "DenyAccounts"),
        ("qos", profile.qos, "AllowQos", "DenyQos"),
    ):
        if not value:
            continue  # the user's own default, which only sbatch knows
        takes = partition.get(allowed, "ALL").split(",")
        if takes != ["ALL"] and value not in takes:
            problems.append(f"{kind} is '{value}'; partition {name} takes {', '.join(takes)}")
        if value in partition.get(denied, "").split(","):
            problems.append(f"{kind} '{value}' is shut out from partition {name}")
    return problems


def _size_problems(
    name: str, profile: ClusterProfile, nodes: list[Node], most_nodes: int
) -> list[str]:
    problems = []
    cpus = profile.ranks_per_node * profile.cpus_per_task
    most_gpus = max((node.gpus for node in nodes), default=0)
    most_cpus = max((node.cpus for node in nodes), default=0)
    if most_gpus < profile.gpus_per_node:
        problems.append(
            f"gpus_per_node is {profile.gpus_per_node}; no node of partition {name} "
            f"has more than {most_gpus}"
        )
    if most_cpus < cpus:
        problems.append(
            f"{profile.ranks_per_node} ranks with cpus_per_task {profile.cpus_per_task} need "
            f"{cpus} CPUs; no node of partition {name} has more than {most_cpus}"
        )
    if most_nodes > len(nodes):
        problems.append(
            f"slurm.nodes asks for {most_nodes} nodes; partition {name} has {len(nodes)}"
        )
    return problems


def _time_problems(name: str, partition: dict[str, str], limit: str) -> list[str]:
    most = seconds_of(partition.get("MaxTime", "UNLIMITED"))
    asked = seconds_of(limit)
    if most is None or asked is None or asked <= most:
        return []
    return [f"time limit {limit} is beyond the {partition['MaxTime']} of partition {name}"]


def association_problems(profile: ClusterProfile) -> list[str]:
    """Account and QoS against what accounting says of this user, where it keeps such records."""
    user = getpass.getuser()
    command = ("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,qos")
    try:
        lines = call(*command).splitlines()
    except SlurmError:
        return []  # no accounting here, so nothing that it could forbid
    rows = [line.split("|") for line in lines if line.strip()]
    if not rows:
        return []  # associations are not kept; where they are enforced, sbatch itself says so
    accounts = sorted({row[0] for row in rows})
    problems = []
    if profile.account and profile.account not in accounts:
        problems.append(
            f"account '{profile.account}' is not one of {user}'s: {', '.join(accounts)}"
        )
    mine = [row[1].split(",") for row in rows if profile.account in ("", row[0])]
    allowed = sorted({qos for names in mine for qos in names if qos})
    if profile.qos and mine and profile.qos not in allowed:
        problems.append(f"qos '{profile.qos}' is not one of {user}'s: {', '.join(allowed)}")
    return problems
