"""A server in a process of its own, for tests, benchmarks and scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil


class Served:
    """`thoraclip serve` on a free port of this machine, and its log.

    Args:
        bundle: folder.
        arguments: more of them.
        environment: more variables.
        cwd: its working folder.

    Raises:
        RuntimeError: it does not start; with its log.
    """

    def __init__(
        self, bundle: Path, *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        command = [sys.executable, "-m", "thoraclip", "serve", str(bundle), "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, env=os.environ | (environment or {}), cwd=cwd, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._heard = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        is_heard = self._heard.wait(60)
        self.address = next((line.split()[2] for line in self.log if line.startswith("serving at ")), "")
        if not is_heard or not self.address:
            self.__exit__()
            raise RuntimeError("".join(self.log))
        self.port = int(self.address.rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if line.startswith("serving at "):
                self._heard.set()
        self._heard.set()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of a kind."""
        told = [json.loads(line) for line in self.log if line.startswith("{")]
        return [line for line in told if line["event"] == name]

    def megabytes(self) -> float:
        """Memory of the server, without its helpers."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to stop; returns its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(5)
        return code

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stderr is not None
        self._reader.join(5)
        self.process.stderr.close()
