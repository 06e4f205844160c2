"""A real Slurm of four nodes on this machine: munged, slurmctld and four slurmd below one folder.

The facts that the settings stand on were measured with Debian 12's Slurm 22.05; a comment says so
where a setting looks odd.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "shellcheck")
# NODE_FAIL, PREEMPTED and CANCELLED may be passing states of a job that is requeued.
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY")
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
KillWait=5
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


def why_not() -> str | None:
    """Why there can be no cluster on this machine, None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if os.geteuid() != 0:
        return "a Slurm of our own has to be started by root"
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge shellcheck"
    return None


class MiniCluster:
    """Starts on construction, once all nodes are idle; `stop` leaves no process behind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._port = _free_ports()
        self._user_signal = False
        self._node_timeout = 20
        for name in ("etc", "munge", "state", "run", "log", "dev", *(f"spool/{n}" for n in NODES)):
            (root / name).mkdir(parents=True)
        self._write_configuration()
        self._environment = {"SLURM_CONF": str(root / "etc" / "slurm.conf"), "PATH": _search_path()}
        self._start_munged()
        self.start_controller()
        for name in NODES:
            self.start_node(name)
        self.wait_until(self._is_idle, "four idle nodes", 60)

    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        return {**kept, **self._environment}

    def run(self, *command: str) -> str:
        """Output of a client command such as scontrol; its failure is an error here."""
        finished = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert finished.returncode == 0, f"{command}: {finished.stderr}"
        return finished.stdout

    def jobs(self, job_id: str) -> list[dict[str, str]]:
        """The records of a job (several for an array) as Slurm has them now."""
        lines = self.run("scontrol", "-o", "show", "job", job_id).splitlines()
        return [_fields(line) for line in lines if line.strip()]

    def job(self, job_id: str) -> dict[str, str]:
        [record] = self.jobs(job_id)
        return record

    def wait_for_state(self, job_id: str, *states: str, timeout: float = 600) -> dict[str, str]:
        """Until a job is in one of the states; at once an error if it can no longer be."""

        def there() -> dict[str, str] | None:
            record = self.job(job_id)
            if record["JobState"] in states:
                return record
            assert record["JobState"] not in ENDED, f"it has ended: {record}"
            return None

        found: dict[str, str] = self.wait_until(there, f"{job_id} {states}", timeout)
        return found

    def wait_until(self, condition: Callable[[], Any], what: str, timeout: float) -> Any:
        """The first true answer of the condition."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if answer := condition():
                return answer
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {timeout} s")

    def set_user_signal(self, on: bool) -> None:
        """Whether a preempted job gets its own --signal at once (and TERM at the end of grace)."""
        self._user_signal = on
        self._reconfigure()

    def set_node_timeout(self, seconds: int) -> None:
        """How long a node may be silent before Slurm takes it for dead."""
        self._node_timeout = seconds
        self._reconfigure()

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D")
        self.wait_until(lambda: self._says("scontrol", "ping") is not None, "a controller", 60)

    def stop_controller(self) -> None:
        controller = self._daemons.pop("slurmctld")
        controller.terminate()
        controller.wait(timeout=30)

    def kill_controller(self) -> None:
        """As a power cut would: what it has not saved yet is lost."""
        controller = self._daemons.pop("slurmctld")
        controller.kill()
        controller.wait(timeout=30)

    def start_node(self, name: str) -> None:
        self._start(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Kills all of a node as a power cut would: slurmd, its slurmstepds, every task."""
        tasks = [process for process in psutil.process_iter() if self._is_on(process, name)]
        stepds = {
            parent
            for task in tasks
            for parent in task.parents()
            if "slurmstepd" in " ".join(parent.cmdline())
        }
        self._daemons[name].kill()
        # Before the tasks: it would tell the controller how they ended.
        for process in [*stepds, *tasks]:
            process.kill()
        self._daemons.pop(name).wait()

    def nodes_answer(self) -> bool:
        """Whether the controller has heard of every node since it started."""
        states = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split()
        return not any(state == "unknown" or state.endswith("*") for state in states)

    def empty(self) -> None:
        """Cancels what is left of a test and waits until the queue is empty."""
        self.run("scancel", "--user=root")
        self.wait_until(lambda: not self.run("squeue", "-h"), "an empty queue", 60)

    def stop(self) -> None:
        """Ends the daemons, and with them every process that a job left."""
        for name in NODES:
            if name in self._daemons:
                self.kill_node(name)
        for name in reversed(list(self._daemons)):
            self._daemons[name].terminate()
            try:
                self._daemons[name].wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._daemons[name].kill()
                self._daemons[name].wait()
        self._daemons.clear()

    def _start(self, name: str, *command: str) -> None:
        log = (self.root / "log" / f"{name}.out").open("ab")
        # None outlives this process, however it ends.
        tied = ("setpriv", "--pdeathsig", "KILL", *command)
        self._daemons[name] = subprocess.Popen(
            tied, env=self.environment(), stdout=log, stderr=log, cwd=self.root
        )

    def _start_munged(self) -> None:
        folder = self.root / "munge"
        folder.chmod(0o711)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        options = [f"--{option}={folder / file}" for option, file in files.items()]
        # The folders above are pytest's, readable by all: munged wants to be told it is meant so.
        self._start("munged", "munged", "--foreground", "--force", *options)
        self.wait_until((folder / "munge.socket").exists, "munged's socket", 20)

    def _reconfigure(self) -> None:
        self._write_configuration()
        self.run("scontrol", "reconfigure")

    def _write_configuration(self) -> None:
        etc, host = self.root / "etc", socket.gethostname()
        nodes = [
            NODE.format(name=name, host=host, port=self._port + 2 + i, gpus=GPUS_PER_NODE)
            for i, name in enumerate(NODES)
        ]
        content = SLURM_CONF.format(
            host=host,
            root=self.root,
            port=self._port,
            slurmd_port=self._port + 1,
            first_srun_port=self._port + 10,
            last_srun_port=self._port + 399,
            # Two clusters on one machine derive other ports from their jobs' ids.
            first_job_id=self._port,
            user_signal="SlurmctldParameters=preempt_send_user_signal" if self._user_signal else "",
            node_timeout=self._node_timeout,
            nodes="\n".join(nodes),
        )
        (etc / "slurm.conf").write_text(content)
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        devices = self.root / "dev"
        for number in range(GPUS_PER_NODE):
            # CUDA_VISIBLE_DEVICES is set only for devices that are device files.
            if not (devices / f"gpu{number}").exists():
                os.mknod(devices / f"gpu{number}", 0o020666, os.makedev(1, 3))
        gres = [
            f"NodeName={name} Name=gpu File={devices}/gpu[0-{GPUS_PER_NODE - 1}]" for name in NODES
        ]
        (etc / "gres.conf").write_text("\n".join(gres) + "\n")

    def _is_idle(self) -> bool:
        states = self._says("sinfo", "-h", "-N", "-p", "low", "-o", "%T")
        return states is not None and states.split() == ["idle"] * len(NODES)

    def _says(self, *command: str) -> str | None:
        """Output of a client command, None if it fails: the daemons may not be up yet."""
        finished = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False
        )
        return finished.stdout if finished.returncode == 0 else None

    def _is_on(self, process: psutil.Process, name: str) -> bool:
        """Whether a process is a task or a batch script on one of this cluster's nodes."""
        try:
            environment = process.environ()
        except psutil.Error:
            return False
        here = environment.get("SLURM_CONF") == self._environment["SLURM_CONF"]
        return here and environment.get("SLURMD_NODENAME") == name


def _search_path() -> str:
    """Debian keeps the daemons in sbin, which not everyone's PATH names."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _fields(line: str) -> dict[str, str]:
    """`Key=value Key=value` of scontrol; values hold no spaces in what the tests ask for."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _free_ports() -> int:
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
