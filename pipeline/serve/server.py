"""Runs the application under uvicorn, and ends it without breaking off what has begun."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from types import FrameType
from typing import Any, Protocol

import uvicorn

from esolm.data_prep.files import write_atomic
from esolm.data_prep.tokenizers import has_tokenizer
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.generate import check_bundle, load_bundle
from esolm.pipeline.run.sections import API_KEY
from esolm.pipeline.serve.app import make_app
from esolm.pipeline.serve.service import Limits, Service


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
        self._check_tokenizer()

    def open(self) -> Service:
        """Raises as `check`, and DataError for a tokenizer that cannot be loaded."""
        bundle = load_bundle(self.path, self.dtype)
        self._check_tokenizer()
        return Service(bundle, self.name or self.path.resolve().name, self.limits)

    def _check_tokenizer(self) -> None:
        if not has_tokenizer(self.path):
            message = "carries no tokenizer: export it again with --tokenizer DIR"
            raise ConfigError(f"{self.path} {message}")


@dataclass(frozen=True)
class Address:
    """Where to listen. port: 0 for a free one. port_file: where the port is told, if anywhere."""

    host: str
    port: int
    port_file: Path | None = None

    def tell(self, port: int) -> None:
        """Once requests are taken."""
        if self.port_file is not None:
            write_atomic(self.port_file, f"{port}\n".encode())


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

    def __init__(self, config: uvicorn.Config, writer: Drainable, address: Address) -> None:
        super().__init__(config)
        self._writer, self._address = writer, address

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Called by uvicorn; it listens when this is over, or has failed."""
        await super().startup(sockets)
        if self.started:
            self._address.tell(self.servers[0].sockets[0].getsockname()[1])

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


def listen(app: Any, writer: Drainable, address: Address) -> None:
    """Answers requests until it is told to end."""
    config = uvicorn.Config(
        app, host=address.host, port=address.port, log_level="info", timeout_keep_alive=30
    )
    DrainingServer(config, writer, address).run()


def serve(served: Served, address: Address) -> None:
    """By this process alone, until it is told to end. Raises as `Served.open`."""
    service = served.open()
    listen(make_app(service, os.environ.get(API_KEY)), service.engine, address)
    service.engine.close()
