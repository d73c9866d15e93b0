"""Our own load generator, a process: asyncio protocols, as little client as possible. See `httpload`."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from typing import TYPE_CHECKING, cast

from benchmarks.loops import new_event_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH = b"content-length: "
_PATIENCE_S = 30.0


class Connection(asyncio.Protocol):
    """One connection: sends the next request when the last is answered, until the time is over."""

    def __init__(self, rounds: Iterator[list[bytes]], end: float, latencies: list[float]) -> None:
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rounds = rounds
        self._end = end
        self._latencies = latencies
        self._buffer = b""
        self._left: list[bytes] = []
        self._begin = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._next_round()

    def data_received(self, data: bytes) -> None:
        self._buffer = data if not self._buffer else self._buffer + data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        start = head.find(_LENGTH)
        length = int(head[start + len(_LENGTH) :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if start < 0 and b"transfer-encoding" in head:
            self._fail(f"an answer of unknown length: {head!r}")
        elif not head.startswith(b"http/1.1 2"):
            self._fail(f"answered {self._buffer!r}")
        elif len(self._buffer) >= head_end + 4 + length:
            self._buffer = b""
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc}")

    def _answered(self) -> None:
        if self._left:
            self._send(self._left.pop())
            return
        now = time.perf_counter()
        if now >= self._end:
            self.finished.set_result(None)
            return
        self._latencies.append(now - self._begin)
        self._next_round()

    def _next_round(self) -> None:
        self._begin = time.perf_counter()
        self._left = next(self._rounds)[::-1]
        self._send(self._left.pop())

    def _send(self, request: bytes) -> None:
        assert self._transport is not None
        self._transport.write(request)

    def _fail(self, reason: str) -> None:
        if not self.finished.done():
            self.finished.set_exception(RuntimeError(reason))


def rounds_of(script: list[tuple[str, str, str]], keys: int, unique: str) -> Iterator[list[bytes]]:
    """The requests of one round after the other, as bytes."""
    for number in itertools.count():
        key = str(random.randrange(keys))
        yield [
            _encoded(method, path.replace("%d", key).replace("%i", f"{unique}-{number}"), body)
            for method, path, body in script
        ]


def _encoded(method: str, path: str, body: str) -> bytes:
    content = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: bench\r\n{content}\r\n{body}".encode()


async def run(port: int, script: list[tuple[str, str, str]], keys: int, seconds: float, connections: int) -> None:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    begin = time.perf_counter()
    rounds = rounds_of(script, keys, f"{random.getrandbits(48):x}")
    made = [
        await loop.create_connection(lambda: Connection(rounds, begin + seconds, latencies), "127.0.0.1", port)
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + _PATIENCE_S):
        await asyncio.gather(*(connection.finished for _, connection in made))
    ordered = sorted(latencies) or [0.0]
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 for share in (0.5, 0.99))
    result = {"requests": len(latencies), "seconds": seconds, "failed": 0, "p50_ms": p50, "p99_ms": p99}
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(*json.loads(sys.argv[1])))
