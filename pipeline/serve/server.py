"""Runs the application under uvicorn, and ends it without breaking off what has begun."""

import os
import threading
from pathlib import Path
from types import FrameType

import uvicorn

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.generate import load_bundle
from esolm.pipeline.serve.app import make_app
from esolm.pipeline.serve.service import Limits, Service

API_KEY = "ESOLM_API_KEY"


class DrainingServer(uvicorn.Server):
    """On the first signal it takes nothing more and ends when all is written; on the second now."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM."""
        if self._service.engine.is_draining:
            super().handle_exit(sig, frame)
            self.force_exit = True
            return
        # Not within the handler: it interrupts a thread that may hold the engine's lock.
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        self._service.engine.drain()
        self._service.engine.wait_until_idle()
        self.should_exit = True


def serve(
    path: Path, host: str, port: int, limits: Limits, name: str | None, dtype: str | None
) -> None:
    """Until it is told to end. Raises ConfigError, ExportError or DataError for a bad bundle."""
    bundle = load_bundle(path, dtype)
    if bundle.tokenizer is None:
        raise ConfigError(f"{path} carries no tokenizer: export it again with --tokenizer DIR")
    service = Service(bundle, name or path.resolve().name, limits)
    app = make_app(service, os.environ.get(API_KEY))
    config = uvicorn.Config(app, host=host, port=port, log_level="info", timeout_keep_alive=30)
    DrainingServer(config, service).run()
    service.engine.close()
