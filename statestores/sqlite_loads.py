"""Loading streams from SQLite: one at a time while few are wanted, many by one statement when they queue up.

sqlite3 lets go of the interpreter lock at every row, and beside a busy event loop has to wait for it each time. So when
thousands of streams are wanted at once (a restart with many unfinished workflows), the rows of up to `_AT_ONCE` streams
are put into a single one, as JSON. While one statement is under way, what is wanted meanwhile waits for the next.

JSON holds bytes as digits, and what a statement makes is there several times over before it is taken apart: for many
small values the cheaper way, for large ones much the dearer. So the statement looks first how large everything is, and
when there are large values, or it is too much, it says only that. Large values are then loaded as they are, a stream at
a time, and what is too much for now waits for the next statement, which is made for less.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import orjson

from statestores.model import Event, Snapshot, StreamState

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Sequence

    Read = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]

_AT_ONCE = 256
_AT_FIRST = 16
# Of all streams that are loaded together. What an event costs beside its data is taken to be `_EVENT_BYTES`.
_MOST_BYTES = 4_000_000
_EVENT_BYTES = 200
_LARGE_VALUE = 8_192
_NO_LIMIT = 2**63 - 1

# One statement, so that it sees one moment. The snapshot, if usable, comes first: its name is NULL.
_LOAD = """
    SELECT version, NULL AS name, data, NULL, NULL, NULL, NULL FROM snapshots WHERE stream = :stream AND version <= :at
    UNION ALL
    SELECT version, name, data, time_ms, turn_id, caller, trace_id FROM events WHERE stream = :stream AND version <= :at
        AND version > coalesce((SELECT version FROM snapshots WHERE stream = :stream AND version <= :at), 0)
    ORDER BY version"""
# Again one statement. Streams go by their places among those wanted; bytes and texts, whatever is in them, as
# hexadecimal digits. Either how large each stream is, or snapshots and events.
_LOAD_MANY = f"""
    WITH wanted AS (SELECT key AS place, value AS stream, coalesce(snapshots.version, 0) AS seen,
            coalesce(length(data), 0) AS snapshot_bytes
            FROM json_each(:streams) LEFT JOIN snapshots ON snapshots.stream = value),
        sizes AS MATERIALIZED (SELECT place, snapshot_bytes + coalesce(sum(length(data) + {_EVENT_BYTES}), 0) AS bytes,
            max(snapshot_bytes, coalesce(max(length(data)), 0)) > {_LARGE_VALUE} AS is_large
            FROM wanted LEFT JOIN events ON events.stream = wanted.stream AND events.version > seen GROUP BY place),
        found AS MATERIALIZED (SELECT sum(bytes) > :most OR max(is_large) AS is_too_much FROM sizes)
    SELECT CASE WHEN is_too_much THEN (SELECT json_group_array(json_array(place, bytes, is_large)) FROM sizes) END,
        CASE WHEN NOT is_too_much THEN (SELECT json_group_array(json_array(place, version, hex(data)))
            FROM wanted JOIN snapshots USING (stream)) END,
        CASE WHEN NOT is_too_much THEN (SELECT json_group_array(json_array(place, version, time_ms,
            hex(name), hex(turn_id), hex(caller), hex(trace_id), hex(data)))
            FROM wanted CROSS JOIN events ON events.stream = wanted.stream AND events.version > seen) END
    FROM found"""


def load(connection: sqlite3.Connection, stream: str, at_version: int | None = None) -> StreamState:
    """See `Journal.load`."""
    wanted = {"stream": stream, "at": _NO_LIMIT if at_version is None else at_version}
    rows = connection.execute(_LOAD, wanted).fetchall()
    snapshot = None
    if rows and rows[0][1] is None:
        version, _, data, *_ = rows.pop(0)
        snapshot = Snapshot(version, data)
    return _state(snapshot, list(map(Event._make, rows)))


def load_some(connection: sqlite3.Connection, streams: Sequence[str]) -> dict[int, StreamState]:
    """The newest states by the places of their streams: of as many as are not too much together, at least one."""
    if len(streams) == 1 or any("\0" in stream for stream in streams):  # SQLite's JSON ends at a NUL
        return {0: load(connection, streams[0])}
    wanted = {"streams": json.dumps([*streams]), "most": _MOST_BYTES}
    sizes, snapshots, events = connection.execute(_LOAD_MANY, wanted).fetchone()
    if sizes is None:
        return dict(enumerate(_states(len(streams), snapshots, events)))
    large, small = _fitting(orjson.loads(sizes))
    found = {place: load(connection, streams[place]) for place in large}
    if small:
        together = load_some(connection, [streams[place] for place in small])
        found |= {small[place]: state for place, state in together.items()}
    return found


def _fitting(sizes: list[tuple[int, int, int]]) -> tuple[list[int], list[int]]:
    """The places of the first streams that are not too much together: those with large values, and the others."""
    large: list[int] = []
    small: list[int] = []
    total = 0
    for place, size, is_large in sorted(sizes):
        total += size
        if place and total > _MOST_BYTES:
            break
        (large if is_large else small).append(place)
    return large, small


def _states(count: int, snapshots: str, events: str) -> list[StreamState]:
    kept = {place: Snapshot(version, bytes.fromhex(data)) for place, version, data in orjson.loads(snapshots)}
    recent: list[list[Event]] = [[] for _ in range(count)]
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


def _size_of(state: StreamState) -> int:
    snapshot = len(state.snapshot.data) if state.snapshot else 0
    return snapshot + sum([len(event.data) + _EVENT_BYTES for event in state.events])


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
        # How many the next statement is for: of large histories, fewer. It begins low, as nothing is known of them yet.
        self._at_once = _AT_FIRST

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
            states: dict[int, StreamState] = await self._read(lambda connection: load_some(connection, streams))
            size = sum(map(_size_of, states.values()))
            self._at_once = max(1, min(_AT_ONCE, _MOST_BYTES // 2 * len(states) // (size + 1)))
            for place, state in states.items():
                future = some[place][1]
                if not future.done():
                    future.set_result(state)
            self._waiting[:0] = [waiting for place, waiting in enumerate(some) if place not in states]
            some = []
        except Exception as error:
            for _, future in some:
                if not future.done():
                    future.set_exception(error)
        finally:
            for _, future in some:  # this task was cancelled: the loop is about to end
                future.cancel()
            self._go_on()
