"""A real file server on this machine that can be taken away and brought back."""

import subprocess
import sys
import time
from ftplib import FTP
from pathlib import Path

from esolm.pipeline.launch.ranks import free_port

USER, PASSWORD = "ada", "s3cret"


class FtpServer:
    """Serves a folder in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "pyftpdlib", "-i", "127.0.0.1", "-w"]
        command += ["-p", str(self.port), "-d", str(self.folder), "-u", USER, "-P", PASSWORD]
        nowhere = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        for _ in range(300):
            try:
                FTP().connect("127.0.0.1", self.port)
            except ConnectionRefusedError:
                assert self._process.poll() is None, "the FTP server ended by itself"
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the FTP server does not answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
