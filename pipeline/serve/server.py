"""Runs the application under uvicorn, and ends it without breaking off what has begun."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import uvicorn

from esolm.data_prep.tokenizers import has_tokenizer
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.generate import check_bundle, load_bundle
from esolm.pipeline.serve.app import make_app
from esolm.pipeline.serve.service import Limits, Service

API_KEY = "ESOLM_API_KEY"


@dataclass(frozen=True)
class Served:
    """What is served. path: of the bundle. name, dtype: see `esolm serve`."""

    path: Path
    limits: Limits = field(default_factory=Limits)
    name: str | None = None
    dtype: str | None = None

    def check(self) -> None:
        """Raises ConfigError or ExportError if it cannot be served."""
        check_bundle(self.path, self.dtype)
        if not has_tokenizer(self.path):
            message = "carries no tokenizer: export it again with --tokenizer DIR"
            raise ConfigError(f"{self.path} {message}")

    def open(self) -> Service:
        """Raises as `check`, and DataError for a tokenizer that cannot be loaded."""
        self.check()
        bundle = load_bundle(self.path, self.dtype)
        return Service(bundle, self.name or self.path.resolve().name, self.limits)


class Drainable(Protocol):
    """What writes texts, and can be asked to begin no more."""

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is taken."""

    def drain(self) -> None:
        """Takes nothing more."""

    def wait_until_idle(self) -> object:
        """Returns once what has begun is done."""


class DrainingServer(uvicorn.Server):
    """On the first signal it takes nothing more and ends when all is written; on the second now."""

    def __init__(self, config: uvicorn.Config, writer: Drainable) -> None:
        super().__init__(config)
        self._writer = writer

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM."""
        if self._writer.is_draining:
            super().handle_exit(sig, frame)
            self.force_exit = True
            return
        # Not within the handler: it interrupts a thread that may hold the engine's lock.
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        self._writer.drain()
        self._writer.wait_until_idle()
        self.should_exit = True


def listen(app: Any, writer: Drainable, host: str, port: int) -> None:
    """Answers requests until it is told to end."""
    config = uvicorn.Config(app, host=host, port=port, log_level="info", timeout_keep_alive=30)
    DrainingServer(config, writer).run()


def serve(served: Served, host: str, port: int) -> None:
    """By this process alone, until it is told to end. Raises as `Served.open`."""
    service = served.open()
    listen(make_app(service, os.environ.get(API_KEY)), service.engine, host, port)
    service.engine.close()
