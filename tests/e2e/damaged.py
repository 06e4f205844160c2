"""The commands of a person whose run was damaged: `damaged.py CONFIG FOLDER`, one JSON line a case.

CONFIG: of a run that has stopped before its end and lies beside it. FOLDER: where copies of it are
damaged. The commands run in this one process, which has imported everything once; a case that
changes no file comes first.
"""

import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.cli.main import main
from esolm.pipeline.export import gate
from esolm.pipeline.parallel.fragments import STATES
from tests.damages import DAMAGES

CHECKPOINTS = "checkpoints"


def esolm(*arguments: object) -> tuple[int, str]:
    """Runs a command; returns its exit code and what it said; -1 stands for a trace."""
    sys.argv = ["esolm", *map(str, arguments)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
        except Exception as error:
            return -1, f"{said.getvalue()}{error!r}"
    return 0, said.getvalue()


def files_of(run: Path) -> list[Path]:
    """The files of a run that hold something; of the checkpoints, the newest's."""
    found = [path for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size]
    newest = max((run / CHECKPOINTS).iterdir())
    kept = (path for path in found if CHECKPOINTS not in path.parts or newest in path.parents)
    return [path.relative_to(run) for path in kept if path.name != ".lock"]


def undamaged(path: Path) -> None:
    """It stays as it is."""


def cases(run: Path, folder: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """The copies of a run, damaged, with the file and the kind of damage; each is removed after."""
    kinds: list[tuple[Path, Callable[[Path], None]]] = [(Path("DONE"), undamaged)]
    kinds += [(name, damage) for name in files_of(run) for damage in DAMAGES]
    for name, damage in kinds:
        copy = folder / "run"
        shutil.copytree(run, copy)
        damage(copy / name)
        yield {"file": str(name), "damage": damage.__name__, "run": str(copy)}, copy
        shutil.rmtree(copy)


def digest_of(checkpoint: Path) -> str:
    """The checksum of every number of a checkpoint."""
    reader, digest = CheckpointReader(checkpoint), hashlib.sha256()
    for state in STATES:
        for name, tensor in sorted(reader.tensors(state).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def resumed(config: Path, run: Path) -> dict[str, Any]:
    """What is said of a run before it goes on, how it goes on, and where it has come to."""
    record: dict[str, Any] = {
        "ls": esolm("checkpoint", "ls", run, "--json"),
        "verify": esolm("checkpoint", "verify", run),
        "status": esolm("status", run),
        "resume": esolm("train", config, f"run.dir={run}"),
    }
    record["left"] = sorted(path.name for path in (run / CHECKPOINTS).iterdir())
    if record["resume"][0] == 0:
        record["digest"] = digest_of(run)
    return record


def exported(run: Path, folder: Path) -> dict[str, Any]:
    bundle = folder / "bundle"
    record: dict[str, Any] = {"export": esolm("export", run, "--out", bundle, "--dtype", "fp32")}
    if record["export"][0] == 0:
        weights = (bundle / "model.safetensors").read_bytes()
        record["step"] = json.loads((bundle / "export.json").read_bytes())["step"]
        record["digest"] = hashlib.sha256(weights).hexdigest()
        shutil.rmtree(bundle)
    return record


if __name__ == "__main__":
    gate.check_reload = lambda *_: ({}, {})  # a fresh process takes seconds
    settings, place = Path(sys.argv[1]), Path(sys.argv[2])
    for case, damaged in cases(settings.parent / "run", place):
        print(json.dumps({**case, **resumed(settings, damaged)}), flush=True)
    # Last, for its gate joins a process group of its own for good.
    for case, damaged in cases(settings.parent / "run", place):
        if Path(case["file"]).parts[0] in ("DONE", CHECKPOINTS, "tokenizer", "config.yaml"):
            print(json.dumps({**case, **exported(damaged, place)}), flush=True)
