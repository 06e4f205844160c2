"""A real server for HTTP on this machine that gives parts of files, and can fail in many ways."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer:
    """Serves a folder, as it is at each request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        """Of all requests for content so far."""
        self.statuses: list[int] = []
        """What the next requests for content are answered with, if not 0; -1 hangs up half-way."""
        self.gives_parts = True
        self.delay = 0.0
        """Seconds that each content takes."""
        self.busiest = self._now = 0
        """The most requests at one time."""
        self._lock = threading.Lock()

    @contextmanager
    def started(self, port: int = 0) -> Iterator[str]:
        owner = self

        class Handler(_Handler):
            server_of = owner

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()

    def begin(self, path: str) -> int:
        with self._lock:
            self.paths.append(path)
            self._now += 1
            self.busiest = max(self.busiest, self._now)
            return self.statuses.pop(0) if self.statuses else 0

    def end(self) -> None:
        with self._lock:
            self._now -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: RangeServer

    def do_HEAD(self) -> None:
        self._answer(with_content=False, status=0)

    def do_GET(self) -> None:
        status = self.server_of.begin(self.path)
        try:
            time.sleep(self.server_of.delay)
            self._answer(with_content=True, status=status)
        finally:
            self.server_of.end()

    def _answer(self, with_content: bool, status: int) -> None:
        path = self.server_of.folder / self.path.lstrip("/")
        if status > 0 or not path.is_file():
            return self._say(status or 404, {}, b"")
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers = {"ETag": f'"{path.stat().st_mtime_ns}-{len(content)}"'}
        code = 200
        if found and self.server_of.gives_parts:
            first, last = int(found[1]), int(found[2])
            if first >= len(content):
                return self._say(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            code, content = 206, content[first : last + 1]
        return self._say(code, headers, content if with_content else b"", len(content), status < 0)

    def _say(
        self, code: int, headers: dict[str, str], content: bytes, size: int = 0, cut: bool = False
    ) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection |= cut

    def log_message(self, *_: object) -> None:
        pass
