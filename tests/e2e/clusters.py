"""A real cluster for tests: `mecha run --placement ray` as a process, and a client that does not give up."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers import free_port

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).parents[2]
_START_S = 120.0
_STOP_S = 60.0
_ANSWER_S = 3.0
_PAUSE_S = 0.05


class ClusterProcess:
    """`mecha run APP --placement ray`, with a Ray of its own unless `options` say otherwise."""

    def __init__(self, app: Path, store: str, *options: str) -> None:
        self.port = free_port()
        self._command = [
            *(sys.executable, "-m", "runtime_api.cli", "run", str(app), "--placement", "ray", "--store", store),
            *("--port", str(self.port), *options),
        ]
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.said: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Returns when it serves."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "1"}
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        while True:
            line = self._lines.get(timeout=_START_S)
            if line.startswith("mecha: serving"):
                return self
            if not line:
                self.__exit__()
                raise RuntimeError("the cluster did not start:\n" + "".join(self.said))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.said.append(line)
                self._lines.put(line)
        self._lines.put("")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> int:
        """Gracefully; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)

    def __exit__(self, *_: object) -> None:
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Failed(Exception):
    """The server's answer was not 2xx."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body[:300]!r}")
        self.status, self.body = status, body


class Connection:
    """HTTP over one connection, as little of it as is needed: many of these must not take the processor from those
    whom they test."""

    def __init__(self, port: int, answer_s: float = _ANSWER_S) -> None:
        """`answer_s`: after so long without an answer the connection is given up."""
        self._port = port
        self._answer_s = answer_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        # What went wrong and was tried again.
        self.failures: list[str] = []

    async def request(self, verb: str, path: str, body: bytes = b"", key: str = "") -> bytes:
        """The body of a 2xx answer. Raises `Failed`, `OSError`, `asyncio.IncompleteReadError`, `TimeoutError`."""
        try:
            async with asyncio.timeout(self._answer_s):
                return await self._request(verb, path, body, key)
        except Failed:
            raise
        except BaseException:
            self.close()
            raise

    async def insist(self, verb: str, path: str, body: bytes = b"", key: str = "") -> Any:
        """The JSON of the answer, asked for until there is one. The request must be one that may be repeated."""
        while True:
            try:
                answer = await self.request(verb, path, body, key)
                return json.loads(answer) if answer else None
            except (Failed, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                if isinstance(error, Failed) and error.status < 500 and error.status != 429:
                    raise
                self.failures.append(f"{type(error).__name__} {error}")
                await asyncio.sleep(_PAUSE_S)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _request(self, verb: str, path: str, body: bytes, key: str) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        given = f"idempotency-key: {key}\r\n" if key else ""
        head = f"{verb} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n{given}\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(answer.split(" ", 2)[1])
        length = answer.partition("content-length:")[2].partition("\r\n")[0].strip()
        found = await reader.readexactly(int(length)) if length else b""
        if "connection: close" in answer:
            self.close()
        if not 200 <= status < 300:
            raise Failed(status, found)
        return found


async def hosts_of(port: int) -> list[dict[str, Any]]:
    """The hosts of a cluster, those that own something first."""
    return sorted((await _status(port))["hosts"], key=lambda host: -len(host["owned"]))


async def pid_of_controller(port: int) -> int:
    """Of the controller of a cluster on this machine, once it has one."""
    return int((await _status(port))["pid"])


async def _status(port: int) -> dict[str, Any]:
    connection = Connection(port)
    try:
        status: dict[str, Any] = await connection.insist("GET", "/v1.0/mecha/cluster")
    finally:
        connection.close()
    return status
