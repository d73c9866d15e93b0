"""``mecha bench``: how many durable calls a second this machine does, in process and over HTTP. A quick look, no
more: the client shares the machine with the server, and one run is one run."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from actors import actor, method
from runtime_api.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_READY = re.compile(rb"http://127\.0\.0\.1:(\d+)")
_STOP_S = 30.0


@actor
class BenchCounter:
    """What is measured: one field, one event per call."""

    value: int = 0

    @method
    async def add(self, by: int) -> int:
        self.value += by
        return self.value


class Line(NamedTuple):
    what: str
    calls_per_s: float
    p50_ms: float
    p99_ms: float


def run_bench(store: str, seconds: float, actors: int, in_flight: int, connections: int) -> list[Line]:
    """Measure and give one line per case. `store` "": SQLite in a temporary directory, a file for each case."""
    lines = []
    for what, keys in ((f"{actors:,} actors", actors), ("one hot actor", 1)):
        with _store_url(store) as url:
            run = asyncio.run(_in_process(url, seconds, keys, in_flight))
        lines.append(_line(f"in process, {what}, {in_flight} in flight", run))
    for what, keys in ((f"{actors:,} actors", actors), ("one hot actor", 1)):
        with _store_url(store) as url, _server(url) as port:
            run = asyncio.run(_over_http(port, seconds, keys, connections))
        lines.append(_line(f"HTTP, {what}, {connections} connections", run))
    return lines


class Run(NamedTuple):
    latencies_s: list[float]
    elapsed_s: float


def _line(what: str, run: Run) -> Line:
    ordered = sorted(run.latencies_s)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return Line(what, len(ordered) / run.elapsed_s, p50 * 1000, p99 * 1000)


@contextlib.contextmanager
def _store_url(given: str) -> Iterator[str]:
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="mecha-bench-") as directory:
        yield f"sqlite:///{Path(directory) / 'bench.db'}"


async def _drive(seconds: float, workers: list[Callable[[], Awaitable[None]]]) -> Run:
    """Each worker makes its next call as soon as the last is answered, until the time is over: one call at least."""
    latencies: list[float] = []
    start = time.perf_counter()

    async def work(call: Callable[[], Awaitable[None]]) -> None:
        begin = start
        while not latencies or begin < start + seconds:
            await call()
            now = time.perf_counter()
            latencies.append(now - begin)
            begin = now

    await asyncio.gather(*map(work, workers))
    return Run(latencies, time.perf_counter() - start)


async def _in_process(url: str, seconds: float, actors: int, in_flight: int) -> Run:
    async with Runtime([BenchCounter], store=url, app_id="bench") as runtime:
        invoke = runtime.actors.invoke_nowait
        keys = itertools.cycle([f"a{n}" for n in range(actors)])

        async def call() -> None:
            await invoke("BenchCounter", next(keys), "add", b"1")

        return await _drive(seconds, [call] * in_flight)


@contextlib.contextmanager
def _server(url: str) -> Iterator[int]:
    """A server process of its own on a free port."""
    command = [sys.executable, "-m", "runtime_api.cli", "run", f"{__name__}:BenchCounter"]
    # Settings of the caller's environment would change what is measured.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MECHA_", "DAPR_"))}
    process = subprocess.Popen(
        [*command, "--store", url, "--port", "0", "--app-id", "bench"], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        ready = _READY.search(process.stdout.readline())
        if ready is None:
            raise RuntimeError("the server for the benchmark did not start")
        yield int(ready[1])
    finally:
        process.terminate()
        process.wait(_STOP_S)
        assert process.stdout is not None
        process.stdout.close()


async def _over_http(port: int, seconds: float, actors: int, connections: int) -> Run:
    keys = itertools.cycle([f"a{n}" for n in range(actors)])
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(_connection(port, keys)) for _ in range(connections)]
        return await _drive(seconds, callers)


@contextlib.asynccontextmanager
async def _connection(port: int, keys: Iterator[str]) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A connection that is kept; calling what it gives makes one request. As little client as possible."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def call() -> None:
        where = f"/v1.0/actors/BenchCounter/{next(keys)}/method/add"
        writer.write(f"POST {where} HTTP/1.1\r\nhost: bench\r\ncontent-length: 1\r\n\r\n1".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head[head.index(b"content-length: ") + 16 :].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {head.split(bytes([13]), 1)[0]!r}: {body!r}")

    try:
        yield call
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
