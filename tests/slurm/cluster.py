"""A real Slurm on this machine: munged, slurmctld and four slurmd below one folder."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.slurm.configuration import NODES, free_ports, write_configuration

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "shellcheck")
# NODE_FAIL, PREEMPTED and CANCELLED may be passing states of a job that is requeued.
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY")


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
        self._port = free_ports()
        self._user_signal = False
        self._node_timeout, self._kill_wait = 20, 5
        for name in ("etc", "munge", "state", "run", "log", "dev", *(f"spool/{n}" for n in NODES)):
            (root / name).mkdir(parents=True)
        self._write_configuration()
        self._environment = {"SLURM_CONF": str(root / "etc" / "slurm.conf"), "PATH": _search_path()}
        (root / "munge").chmod(0o711)
        key = root / "munge" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self.start_munge()
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

    def set_kill_wait(self, seconds: int) -> None:
        """How long what was told to end by TERM has for it."""
        self._kill_wait = seconds
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
        processes = self._processes_on(name)
        self._daemons[name].kill()
        for process in processes:
            process.kill()
        self._daemons.pop(name).wait()

    def freeze_node(self, name: str) -> None:
        """Stops all of a node; `kill_node` ends it."""
        self._daemons[name].send_signal(signal.SIGSTOP)
        for process in self._processes_on(name):
            process.suspend()

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

    def start_munge(self) -> None:
        """What every other daemon and command proves with who it is."""
        folder = self.root / "munge"
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        options = [f"--{option}={folder / file}" for option, file in files.items()]
        # The folders above are pytest's, readable by all: munged wants to be told it is meant so.
        self._start("munged", "munged", "--foreground", "--force", *options)
        self.wait_until(self._munge_answers, "munge", 20)

    def kill_munge(self) -> None:
        self._daemons["munged"].kill()
        self._daemons.pop("munged").wait()

    def _munge_answers(self) -> bool:
        socket = self.root / "munge" / "munge.socket"
        return self._says("munge", f"--socket={socket}", "--no-input") is not None

    def _write_configuration(self) -> None:
        settings = (self._user_signal, self._node_timeout, self._kill_wait)
        write_configuration(self.root, self._port, *settings)

    def _reconfigure(self) -> None:
        self._write_configuration()
        self.run("scontrol", "reconfigure")

    def _is_idle(self) -> bool:
        states = self._says("sinfo", "-h", "-N", "-p", "low", "-o", "%T")
        return states is not None and states.split() == ["idle"] * len(NODES)

    def _says(self, *command: str) -> str | None:
        """Output of a client command, None if it fails: the daemons may not be up yet."""
        finished = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False
        )
        return finished.stdout if finished.returncode == 0 else None

    def _processes_on(self, name: str) -> list[psutil.Process]:
        """The slurmstepds of a node, then its tasks; else they would tell how the tasks ended."""
        tasks = [process for process in psutil.process_iter() if self._is_on(process, name)]
        stepds = {
            parent
            for task in tasks
            for parent in task.parents()
            if "slurmstepd" in " ".join(parent.cmdline())
        }
        return [*stepds, *tasks]

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
