"""The processes of a job, to be killed or stopped."""

import psutil

from tests.slurm.cluster import MiniCluster


def ranks(cluster: MiniCluster, job: str) -> dict[int, psutil.Process]:
    """The training processes of a job by their rank."""
    found = _of_job(cluster, job)
    return {
        int(process.environ()["SLURM_PROCID"]): process
        for process in found
        if process.cmdline()[1:4] == ["-m", "esolm", "train"]
    }


def server(cluster: MiniCluster, job: str) -> psutil.Process:
    """What `esolm serve` runs in."""
    found = _of_job(cluster, job)
    [process] = [each for each in found if each.cmdline()[1:4] == ["-m", "esolm", "serve"]]
    return process


def srun(cluster: MiniCluster, job: str) -> psutil.Process:
    """The srun that started the ranks; its child, which cleans up behind it, is left alone."""
    sruns = [process for process in _of_job(cluster, job) if process.name() == "srun"]
    [parent] = [process for process in sruns if process.parent() not in sruns]
    return parent


def batch_script(cluster: MiniCluster, job: str) -> psutil.Process:
    """The interpreter of the batch script."""
    shells = [
        process
        for process in _of_job(cluster, job)
        if any(word.endswith("/slurm_script") for word in process.cmdline())
    ]
    [parent] = [process for process in shells if process.parent() not in shells]
    return parent


def suspend(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.suspend()


def _of_job(cluster: MiniCluster, job: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            process.cmdline()
        except psutil.Error:  # gone meanwhile
            continue
        here = environment.get("SLURM_CONF") == cluster.environment()["SLURM_CONF"]
        if here and environment.get("SLURM_JOB_ID") == job and process.is_running():
            found.append(process)
    return found
