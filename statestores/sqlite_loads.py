"""Loading streams from SQLite: one at a time while few are wanted, many by one statement when they queue up.

sqlite3 lets go of the interpreter lock at every row, and beside a busy event loop has to wait for it each time. So when
thousands of streams are wanted at once (a restart with many unfinished workflows), the rows of up to `_AT_ONCE` streams
are put into a single one, as JSON. While one statement is under way, what is wanted meanwhile waits for the next.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import orjson

from statestores.model import Event, Snapshot, StreamState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Read = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]

_AT_ONCE = 256
# Of all streams of a statement together.
_MOST_EVENTS = 10_000
_NO_LIMIT = 2**63 - 1

# One statement, so that it sees one moment. The snapshot, if usable, comes first: its name is NULL.
_LOAD = """
    SELECT version, NULL AS name, data, NULL, NULL, NULL, NULL FROM snapshots WHERE stream = :stream AND version <= :at
    UNION ALL
    SELECT version, name, data, time_ms, turn_id, caller, trace_id FROM events WHERE stream = :stream AND version <= :at
        AND version > coalesce((SELECT version FROM snapshots WHERE stream = :stream AND version <= :at), 0)
    ORDER BY version"""
# Again one statement. Streams go by their places among those wanted; bytes and texts, whatever is in them, as
# hexadecimal digits.
_LOAD_MANY = """
    WITH wanted AS (SELECT key AS place, value AS stream FROM json_each(:streams)),
        kept AS (SELECT place, version, data FROM wanted JOIN snapshots USING (stream)),
        recent AS (SELECT place, events.* FROM wanted CROSS JOIN events ON events.stream = wanted.stream
            AND events.version > coalesce((SELECT version FROM kept WHERE kept.place = wanted.place), 0) LIMIT :most)
    SELECT (SELECT count(*) FROM recent),
        (SELECT json_group_array(json_array(place, version, hex(data))) FROM kept),
        (SELECT json_group_array(json_array(place, version, time_ms,
            hex(name), hex(turn_id), hex(caller), hex(trace_id), hex(data))) FROM recent)"""


def load(connection: sqlite3.Connection, stream: str, at_version: int | None = None) -> StreamState:
    """See `Journal.load`."""
    wanted = {"stream": stream, "at": _NO_LIMIT if at_version is None else at_version}
    rows = connection.execute(_LOAD, wanted).fetchall()
    snapshot = None
    if rows and rows[0][1] is None:
        version, _, data, *_ = rows.pop(0)
        snapshot = Snapshot(version, data)
    return _state(snapshot, list(map(Event._make, rows)))


def load_many(connection: sqlite3.Connection, streams: Sequence[str]) -> list[StreamState]:
    """The newest state of each. What is too much for one statement is halved."""
    if len(streams) == 1:
        return [load(connection, streams[0])]
    count = _MOST_EVENTS
    if not any("\0" in stream for stream in streams):  # SQLite's JSON ends at it
        try:
            wanted = {"streams": json.dumps([*streams]), "most": _MOST_EVENTS}
            count, snapshots, events = connection.execute(_LOAD_MANY, wanted).fetchone()
        except sqlite3.DataError:  # longer than a string may be
            pass
    if count == _MOST_EVENTS:
        middle = len(streams) // 2
        return load_many(connection, streams[:middle]) + load_many(connection, streams[middle:])
    kept = {place: Snapshot(version, bytes.fromhex(data)) for place, version, data in orjson.loads(snapshots)}
    recent: list[list[Event]] = [[] for _ in streams]
    for place, version, time_ms, *digits in orjson.loads(events):
        name, turn_id, caller, trace_id, data = map(bytes.fromhex, digits)
        event = Event(version, name.decode(), data, time_ms, turn_id.decode(), caller.decode(), trace_id.decode())
        recent[place].append(event)
    for found in recent:
        found.sort(key=_version)
    return [_state(kept.get(place), found) for place, found in enumerate(recent)]


def _state(snapshot: Snapshot | None, events: list[Event]) -> StreamState:
    """A snapshot is never ahead of its stream: with no event after it, the head is its version."""
    version = events[-1].version if events else snapshot.version if snapshot else 0
    return StreamState(version, snapshot, events)


def _version(event: Event) -> int:
    return event.version


class Loads:
    """`load` for who is on the event loop. `read` runs a function with the reader's connection, and may raise
    `StoreUnavailable`."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._waiting: list[tuple[str, asyncio.Future[StreamState]]] = []
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        # How many the next statement is for: of long histories, fewer.
        self._at_once = _AT_ONCE

    async def load(self, stream: str) -> StreamState:
        if self._busy:
            future: asyncio.Future[StreamState] = asyncio.get_running_loop().create_future()
            self._waiting.append((stream, future))
            return await future
        self._busy = True
        try:
            state: StreamState = await self._read(lambda connection: load(connection, stream))
        finally:
            self._go_on()
        return state

    def _go_on(self) -> None:
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
        self._busy = bool(self._waiting)
        self._task = asyncio.get_running_loop().create_task(self._load_waiting()) if self._waiting else None

    async def _load_waiting(self) -> None:
        some = self._waiting[: self._at_once]
        del self._waiting[: self._at_once]
        streams = [stream for stream, _ in some]
        try:
            states: list[StreamState] = await self._read(lambda connection: load_many(connection, streams))
            events = sum(len(state.events) for state in states)
            self._at_once = max(1, min(_AT_ONCE, _MOST_EVENTS // 2 * len(states) // (events + 1)))
            for (_, future), state in zip(some, states, strict=True):
                if not future.done():
                    future.set_result(state)
        except Exception as error:
            for _, future in some:
                if not future.done():
                    future.set_exception(error)
        finally:
            for _, future in some:  # this task was cancelled: the loop is about to end
                future.cancel()
            self._go_on()
