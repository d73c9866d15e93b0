"""The bare sketch: how fast can durable counters be on this machine when nothing has rules?

A dict of counters, one row (key, version, value as JSON) per call, and SQLite (WAL, synchronous=FULL) that commits
in one transaction whatever has gathered since the last one. No validation, no turns, no fencing, no idempotency, no
snapshots, no recovery. What the runtime achieves is told as a share of this.

    python -m benchmarks.ceiling FILE PORT      serve POST /add/{key}, body: by how much; answer: the new value

One multi-row statement per transaction and not `executemany`: sqlite3 lets go of the interpreter lock at every step and
has to win it back from a busy event loop, so row by row the sketch would be slower, and the comparison flattering.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import uvicorn

from benchmarks.loops import new_event_loop
from runtime_api.collector import collect_rarely
from runtime_api.switching import switch_often

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any

    Message = MutableMapping[str, Any]

_LARGEST_STATEMENT = 256
_TABLE = "CREATE TABLE IF NOT EXISTS log (key, version, value, PRIMARY KEY (key, version)) WITHOUT ROWID"
_INSERT = "INSERT INTO log (key, version, value) VALUES "


class Write(NamedTuple):
    key: str
    version: int
    value: str
    done: asyncio.Future[None]


class Counters:
    """Make it inside a running loop. `close` commits what is under way."""

    def __init__(self, path: str) -> None:
        collect_rarely()  # as a runtime does, so that neither is any part of the difference
        switch_often()
        self._loop = asyncio.get_running_loop()
        self._counters: dict[str, tuple[int, int]] = {}
        self._pending: list[Write] = []
        self._writing = False
        self._batches: SimpleQueue[list[Write] | None] = SimpleQueue()
        self._thread = Thread(target=self._write_batches, args=(path,))
        self._thread.start()

    async def add(self, key: str, by: int) -> int:
        """The new value, durable."""
        version, value = self._counters.get(key, (0, 0))
        version += 1
        value += by
        self._counters[key] = version, value
        done = self._loop.create_future()
        self._pending.append(Write(key, version, str(value), done))
        if not self._writing:
            self._writing = True
            self._loop.call_soon(self._flush)
        await done
        return value

    async def close(self) -> None:
        while self._writing:  # noqa: ASYNC110  # once, at the end
            await asyncio.sleep(0.001)
        self._batches.put(None)
        self._thread.join()

    def _flush(self) -> None:
        batch, self._pending = self._pending, []
        self._batches.put(batch)

    def _committed(self, batch: list[Write]) -> None:
        if self._pending:
            self._flush()
        else:
            self._writing = False
        for write in batch:
            if not write.done.done():
                write.done.set_result(None)

    def _write_batches(self, path: str) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(_TABLE)
        while (batch := self._batches.get()) is not None:
            _insert(connection, batch)
            self._loop.call_soon_threadsafe(self._committed, batch)
        connection.close()


def _insert(connection: sqlite3.Connection, batch: list[Write]) -> None:
    if len(batch) <= _LARGEST_STATEMENT:
        _insert_part(connection, batch)
        return
    connection.execute("BEGIN")
    for start in range(0, len(batch), _LARGEST_STATEMENT):
        _insert_part(connection, batch[start : start + _LARGEST_STATEMENT])
    connection.execute("COMMIT")


def _insert_part(connection: sqlite3.Connection, part: list[Write]) -> None:
    connection.execute(
        _INSERT + ",".join(["(?,?,?)"] * len(part)),
        [column for key, version, value, _ in part for column in (key, version, value)],
    )


def recorded_sum(path: str) -> int:
    """What the file says: the sum of the newest value of each counter."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT CAST(value AS INTEGER), max(version) FROM log GROUP BY key")
        return sum(value for value, _ in rows)
    finally:
        connection.close()


class Sketch:
    """The ASGI application."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        message = await receive()
        value = await self._counters.add(scope["path"][5:], int(message["body"]))
        body = b"%d" % value
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def serve(path: str, port: int) -> None:
    """Serve until told to stop; the settings are those of `mecha run`."""
    counters = Counters(path)
    config = uvicorn.Config(
        Sketch(counters),
        port=port,
        http="httptools",
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        limit_concurrency=10_000,
    )
    await uvicorn.Server(config).serve()
    await counters.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2])))
