"""The configuration of the cluster that the tests start.

The facts that the settings stand on were measured with Debian 12's Slurm 22.05; a comment says so
where a setting looks odd.
"""

import os
import socket
from pathlib import Path

NODES = ("node1", "node2", "node3", "node4")
GPUS_PER_NODE = 2

SLURM_CONF = """
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for its credentials to expire: 120 s unless said otherwise.
AuthInfo=socket={root}/munge/munge.socket,cred_expire=5
SlurmctldPort={port}
SlurmdPort={slurmd_port}
SrunPortRange={first_srun_port}-{last_srun_port}
FirstJobId={first_job_id}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
{user_signal}
# The defaults are made for thousands of jobs: one that waits may not be looked at for 30 s.
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout={node_timeout}
SlurmctldTimeout=20
KillWait={kill_wait}
# Of a one-minute job a crowded machine may spend more than that on starting Python.
OverTimeLimit=5
MinJobAge=3600
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.log
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=60 OverSubscribe=NO
PartitionName=high Nodes=ALL MaxTime=60 DefaultTime=10 State=UP PriorityTier=10 \
PreemptMode=OFF OverSubscribe=NO
PartitionName=billed Nodes=node4 MaxTime=60 State=UP PriorityTier=1 AllowAccounts=physics
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:{gpus} "
    "State=UNKNOWN"
)


def write_configuration(
    root: Path, port: int, user_signal: bool, node_timeout: int, kill_wait: int
) -> None:
    """slurm.conf, cgroup.conf, gres.conf below `etc`, and the device files they speak of.

    user_signal, node_timeout, kill_wait: see `MiniCluster.set_user_signal` and those after it.
    """
    etc, host = root / "etc", socket.gethostname()
    nodes = [
        NODE.format(name=name, host=host, port=port + 2 + i, gpus=GPUS_PER_NODE)
        for i, name in enumerate(NODES)
    ]
    content = SLURM_CONF.format(
        host=host,
        root=root,
        port=port,
        slurmd_port=port + 1,
        first_srun_port=port + 10,
        last_srun_port=port + 399,
        # Two clusters on one machine derive other ports from their jobs' ids.
        first_job_id=port,
        user_signal="SlurmctldParameters=preempt_send_user_signal" if user_signal else "",
        node_timeout=node_timeout,
        kill_wait=kill_wait,
        nodes="\n".join(nodes),
    )
    (etc / "slurm.conf").write_text(content)
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    devices = root / "dev"
    for number in range(GPUS_PER_NODE):
        # CUDA_VISIBLE_DEVICES is set only for devices that are device files.
        if not (devices / f"gpu{number}").exists():
            os.mknod(devices / f"gpu{number}", 0o020666, os.makedev(1, 3))
    gres = [f"NodeName={name} Name=gpu File={devices}/gpu[0-{GPUS_PER_NODE - 1}]" for name in NODES]
    (etc / "gres.conf").write_text("\n".join(gres) + "\n")


def free_ports() -> int:
    """The first of 400 ports that nobody listens on, below those that the kernel hands out."""
    for first in range(10_000 + os.getpid() % 16 * 400, 20_000, 400):
        try:
            for port in range(first, first + 6):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports for a cluster")
