"""Ray on this machine alone, for one server: it tells nobody, and shows nothing."""

import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.launch.stop import hold_stop_signals

CLUSTER = "RAY_ADDRESS"
# Of requests and answers under way, where they are large.
OBJECT_STORE_BYTES = 128 << 20


def prepare() -> None:
    """To be called before Ray is imported, which reads its environment then."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if CLUSTER in os.environ:
        return
    # Its name says otherwise: without it Ray listens at the machine's outer address.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_enable_metrics_collection": "0"}
    # Whoever has not this token gets nothing from Ray's ports; its own would stay in the home.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def connected(replicas: int) -> Iterator[int]:
    """Ray, and the CPUs of a replica: the cluster of RAY_ADDRESS, or one for this process alone.

    Raises ConfigError if that cluster cannot be joined.
    """
    import ray

    cpus = _cpus_of_a_replica(replicas)
    # A folder of its own, for Ray clears nothing away, and its processes would take code from the
    # working one. The paths of its sockets must be short.
    with tempfile.TemporaryDirectory(
        prefix="esolm-ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        with chdir(folder):
            if CLUSTER in os.environ:
                _join(os.environ[CLUSTER])
            else:
                _start(replicas * cpus, folder)
        try:
            yield cpus
        finally:
            ray.shutdown()


def _cpus_of_a_replica(replicas: int) -> int:
    """As many as it has threads, which Ray sees to."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit():
        return int(given)
    return 1 if CLUSTER in os.environ else max(1, len(os.sched_getaffinity(0)) // replicas)


def _join(cluster: str) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        ray.init()
    except (OSError, RuntimeError, RayError) as error:
        raise ConfigError(f"no Ray cluster for us at {CLUSTER} {cluster}: {error}") from error


def _start(cpus: int, folder: str) -> None:
    import ray

    # Slurm and systemd send SIGTERM to every process at once, and this one needs the others until
    # it has drained. They inherit what is blocked here, and end by SIGKILL with this process.
    with hold_stop_signals((signal.SIGTERM,)):
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
