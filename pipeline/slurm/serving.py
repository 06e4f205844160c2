"""What a submit can know of stage serve before its job starts."""

import os
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from esolm.model.settings import setting_problems
from esolm.pipeline.export.manifest import NAME
from esolm.pipeline.run.sections import API_KEY, RunConfig
from esolm.pipeline.slurm.profile import (
    LIMIT_CHECK_SECONDS,
    ClusterProfile,
    seconds_of,
    time_problems,
)
from esolm.pipeline.slurm.stages import bundle_of


def serving_problems(config: RunConfig, profile: ClusterProfile, stages: list[str]) -> list[str]:
    """Everything that keeps the run's bundle from being served."""
    if "serve" not in stages:
        return []
    serve = config.serve
    problems = setting_problems(serve, "serve.") + _time_problems(config, profile)
    if 0 < profile.gpus_per_node < serve.replicas:
        problems.append(
            f"serve.replicas {serve.replicas} is more than gpus_per_node {profile.gpus_per_node}: "
            "a replica has a GPU of its own, and all are on one node"
        )
    bundle = bundle_of(Path(config.run.dir))
    if "export" not in stages and not os.path.isfile(bundle / NAME):  # nor where none may look
        problems.append(f"stage serve: {bundle} is no bundle yet; add stage export")
    if API_KEY in profile.environment:
        problems.append(
            f"environment: {API_KEY} would stand in every script; set it where you submit instead"
        )
    return problems + _missing_packages(config, profile)


def serving_notes(config: RunConfig, stages: list[str]) -> list[str]:
    """What whoever submits should know."""
    if "serve" not in stages or API_KEY in os.environ or _is_loopback(config.serve.host):
        return []
    return [f"serve: without {API_KEY} whoever reaches {config.serve.host} may use the server"]


def _time_problems(config: RunConfig, profile: ClusterProfile) -> list[str]:
    own = config.serve.time
    problems = time_problems("serve.time", own) if own else []
    seconds, warning = seconds_of(own or profile.time), profile.warn_seconds
    if seconds is not None and seconds <= warning + LIMIT_CHECK_SECONDS:
        problems.append(
            f"time limit {own or profile.time} leaves nothing to serve in: the server is told to "
            f"end warn_seconds {warning} before it, up to {LIMIT_CHECK_SECONDS} s early"
        )
    return problems


def _missing_packages(config: RunConfig, profile: ClusterProfile) -> list[str]:
    """Of the interpreter that runs here, if it is the one of the jobs."""
    if profile.python or profile.container.runtime != "none":
        return []
    extras = {"fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve"}
    extras |= {"ray": "ray"} if config.serve.replicas > 1 else {}
    missing = {extra for package, extra in extras.items() if find_spec(package) is None}
    return [f"stage serve: pip install 'esolm[{extra}]'" for extra in sorted(missing)]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
