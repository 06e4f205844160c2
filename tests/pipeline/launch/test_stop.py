"""Signals that are held back while a rank starts reach it when it can take them."""

import os
import signal
import subprocess
import sys

from esolm.pipeline.launch.ranks import LAUNCHER
from esolm.pipeline.launch.stop import STOP_SIGNALS, hold_stop_signals
from tests.processes import environment

RANK = """
import signal
from esolm.pipeline.launch.ranks import die_with_launcher
print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
die_with_launcher()
print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_a_rank_of_any_command_lets_signals_come_when_it_has_begun() -> None:
    with hold_stop_signals():
        rank = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RANK],
            env={**environment(), LAUNCHER: str(os.getpid())},
            capture_output=True,
            text=True,
            check=True,
        )
    assert rank.stdout.split() == ["True", "False"]


def test_what_was_blocked_before_stays_so() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with hold_stop_signals():
            held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        after = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert set(STOP_SIGNALS) <= held
    assert signal.SIGUSR1 in after
    assert signal.SIGTERM not in after
