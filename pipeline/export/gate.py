"""The gate that every bundle passes before it gets its name.

The first check that fails raises ExportError with the name of the check and its figures.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esolm.data_prep.progress import phase
from esolm.data_prep.tokenizers import Tokenizer
from esolm.pipeline.export.consolidate import Source
from esolm.pipeline.export.gate_network import check_coverage, check_decoding, check_parity
from esolm.pipeline.export.gate_reload import check_reload
from esolm.pipeline.export.writer import read_model

logger = logging.getLogger(__name__)


def run_gate(
    directory: Path,
    source: Source,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    tokenizer: Tokenizer | None,
) -> dict[str, dict[str, Any]]:
    """Runs all checks and returns the figures of each by its name, for export.json."""
    figures: dict[str, dict[str, Any]] = {}
    with _step("coverage"):
        figures["coverage"] = check_coverage(directory, source, tensors, dtype)
    stored = read_model(directory, torch.float32)
    with _step("logit parity"):
        figures["logit_parity"] = check_parity(source, tensors, stored, dtype)
    with _step("cached = uncached decoding"):
        figures["decoding"] = check_decoding(source, stored)
    with _step("reload in a fresh process, tokenizer parity"):
        reload = check_reload(directory, source, stored, tokenizer)
        figures["reload"], figures["tokenizer"] = reload
    return figures


@contextmanager
def _step(name: str) -> Iterator[None]:
    """Shows that a check runs, and says how long it took: on a terminal, or else in the log."""
    from rich.console import Console

    started = time.monotonic()
    with phase(f"gate: {name}"):
        yield
    if sys.stderr.isatty():
        seconds = time.monotonic() - started
        Console(stderr=True).print(f"[green]passed[/] {name} ({seconds:.1f} s)")
    else:
        logger.info("gate: %s passed in %.1f s", name, time.monotonic() - started)
