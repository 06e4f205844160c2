"""`python -m tests.slurm.faulty_health KIND ...`: the pre-flight with a fault planted."""

import os
import signal
import sys

from esolm.pipeline.slurm import bandwidth, health


def _cannot_compute(info: object) -> None:
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")


def _dies(*_: object) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def main() -> int:
    kind = sys.argv.pop(1)
    if kind == "device":
        bandwidth.device_of = _cannot_compute  # type: ignore[assignment]
    elif kind == "dies":
        bandwidth._all_reduce_speed = _dies
    else:
        assert kind == "fit"
    return health.main()


if __name__ == "__main__":
    sys.exit(main())
