"""How rows reach the actors: many at a time, each aircraft's in order, none twice, in bounded memory.

Rows are spread over *lanes* by tail number; a lane makes one call at a time, so an aircraft sees its rows in order, and
as many calls are in flight as lanes are busy. The `Feed` actor remembers a row up to which everything has been entered.
After a crash the rows behind it are fed again: an aircraft ignores what it has already entered, and starting a workflow
again under the same id and key is the same start. So no row needs a record of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING
from zlib import crc32

from actors import Retriable
from examples.flights.app import Aircraft, Feed, Overdue, overdue_departure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from examples.flights.data import Departure
    from runtime_api import Runtime

FEED_ID = "nyc-2013"
LANES = 256
MOST_WAITING = 4 * LANES
_CHUNK = 1000
_PATIENCE = 10
_FIRST_RETRY_S = 0.05


def instance_of(row: int) -> str:
    """The workflow instance of an overdue departure."""
    return f"overdue-{row}"


class Progress:
    """Which rows are in, out of order; from which row on something is missing.

    Invariant: every departure up to the row that `take` gives has been entered.
    """

    def __init__(self) -> None:
        # (last row, departures of the chunk that are not in yet), oldest first
        self._chunks: deque[list[int]] = deque()

    def begin(self, row: int) -> list[int]:
        """A departure is on its way; give what this returns to `finish`."""
        chunks = self._chunks
        if not chunks or row // _CHUNK != chunks[-1][0] // _CHUNK:
            chunks.append([row, 0])
        chunk = chunks[-1]
        chunk[0] = row
        chunk[1] += 1
        return chunk

    def finish(self, chunk: list[int]) -> None:
        chunk[1] -= 1

    def take(self) -> int:
        """The last row before which nothing is missing any more, as far as that has moved; else 0."""
        last = 0
        # The newest chunk may still grow, unless nothing comes: then the end of the feed tells the last row itself.
        while len(self._chunks) > 1 and not self._chunks[0][1]:
            last = self._chunks.popleft()[0]
        return last


class Feeder:
    """`patience_s`: the compressed interval an overdue departure is waited for. `on_entered`: called for each one."""

    def __init__(self, runtime: Runtime, patience_s: float, on_entered: Callable[[], None]) -> None:
        self._runtime = runtime
        self._patience_s = patience_s
        self._on_entered = on_entered
        self._progress = Progress()
        self._room = asyncio.Semaphore(MOST_WAITING)
        self._lanes: list[asyncio.Queue[tuple[Departure, list[int]] | None]] = [asyncio.Queue() for _ in range(LANES)]
        self.in_flight = 0
        self.most_in_flight = 0

    async def run(self, flights: Iterable[Departure], last_row: int) -> None:
        """Enter all departures; when this returns they are durable, and the feed stands at `last_row`."""
        async with asyncio.TaskGroup() as tasks:
            for lane in self._lanes:
                tasks.create_task(self._run_lane(lane))
            await self._fill(flights)
        await self._runtime.actor(Feed, FEED_ID).entered(last_row)

    async def _fill(self, flights: Iterable[Departure]) -> None:
        for flight in flights:
            await self._room.acquire()
            chunk = self._progress.begin(flight.row)
            self._lanes[crc32(flight.tail.encode()) % LANES].put_nowait((flight, chunk))
        for lane in self._lanes:
            lane.put_nowait(None)

    async def _run_lane(self, lane: asyncio.Queue[tuple[Departure, list[int]] | None]) -> None:
        while (item := await lane.get()) is not None:
            flight, chunk = item
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            await self._enter_patiently(flight)
            self.in_flight -= 1
            self._room.release()
            self._progress.finish(chunk)
            self._on_entered()
            if row := self._progress.take():
                await self._runtime.actor(Feed, FEED_ID).entered(row)

    async def _enter_patiently(self, flight: Departure) -> None:
        """The lane waits with its later rows: an aircraft would take this one for an old one after them."""
        for attempt in range(_PATIENCE):
            try:
                await self._enter(flight)
                return
            except Retriable:
                await asyncio.sleep(_FIRST_RETRY_S * 2**attempt)
        await self._enter(flight)

    async def _enter(self, flight: Departure) -> None:
        await self._runtime.actor(Aircraft, flight.tail).departed(
            flight.row, flight.origin, flight.dest, flight.miles,
            flight.minutes_late, flight.landed, flight.overdue, flight.in_time,
        )  # fmt: skip
        if flight.overdue:
            await self._watch(flight)

    async def _watch(self, flight: Departure) -> None:
        instance = instance_of(flight.row)
        await self._runtime.workflows.start(
            overdue_departure,
            Overdue(flight.row, flight.tail, flight.origin, flight.dest, flight.minutes_late, self._patience_s),
            instance_id=instance,
            idempotency_key=instance,
        )
        if flight.in_time:
            await self._runtime.workflows.raise_event(instance, "arrived")
