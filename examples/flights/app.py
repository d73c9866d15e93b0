"""The application: aircraft and airports are actors, an overdue departure is a workflow.

Nothing here knows about crashes, files or progress bars. `mecha run examples/flights/app.py` serves the same
application over HTTP.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from actors import actor, context, event, method, send
from workflow import activity, wait_event, workflow
from workflow import actor as actor_of
from workflow import send as send_from_workflow

log = logging.getLogger("flights")


@actor
class Aircraft:
    """Event-sourced: its history is the log book, and the fields are the fold of it."""

    last_row: int = 0
    flights: int = 0
    miles: int = 0
    minutes_late: int = 0
    airport: str = ""
    in_time: list[int] = field(default_factory=list)
    """Rows of overdue departures that landed in time."""

    @method
    async def departed(
        self,
        row: int,
        origin: str,
        dest: str,
        miles: int,
        minutes_late: int,
        landed: bool,
        overdue: bool,
        in_time: bool,
    ) -> bool:
        """Enter a departure, once: rows come in order, so one that is not newer than the last has been entered before,
        and False is the answer. The log book and both messages are one commit."""
        if row <= self.last_row:
            return False
        self.flew(row, dest if landed else "", miles, minutes_late, overdue and in_time)
        turn = context()
        send(turn.actor(Airport, origin).departed, minutes_late)
        if landed:
            send(turn.actor(Airport, dest).arrived)
        return True

    @event
    def flew(self, row: int, airport: str, miles: int, minutes_late: int, in_time: bool) -> None:
        self.last_row = row
        self.flights += 1
        self.miles += miles
        self.minutes_late += minutes_late
        self.airport = airport
        if in_time:
            self.in_time.append(row)

    @method(read_only=True)
    async def landed_in_time(self, row: int) -> bool:
        return row in self.in_time


# A receipt is kept for as long as its message could come again, however short the retention; a short one keeps the
# store small where hundreds of thousands of messages arrive.
@actor(receipts="10s")
class Airport:
    """State-style: what a turn changes is its event."""

    departures: int = 0
    arrivals: int = 0
    minutes_late: int = 0
    escalations: int = 0

    @method
    async def departed(self, minutes_late: int) -> None:
        self.departures += 1
        self.minutes_late += minutes_late

    @method
    async def arrived(self) -> None:
        self.arrivals += 1

    @method
    async def escalated(self) -> None:
        self.escalations += 1


@actor
class Feed:
    """How far the file has been entered: all rows up to `row`, and some after it perhaps, none after `goal`."""

    source: str = ""
    row: int = 0
    goal: int = 0

    @method
    async def begin(self, source: str, rows: int) -> tuple[int, int]:
        """The row to go on after, and the one to go on to: no less than an earlier run set out for, since it may have
        been stopped with any of its rows in. Raises `ValueError` when totals of another file are in this store."""
        if self.source not in ("", source):
            raise ValueError(f"this store holds the totals of another file ({self.source}, not {source})")
        self.source = source
        self.goal = max(self.goal, self.row, rows)
        return self.row, self.goal

    @method
    async def entered(self, row: int) -> None:
        self.row = max(self.row, row)


# -- overdue departures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overdue:
    row: int
    tail: str
    origin: str
    dest: str
    minutes_late: int
    patience_s: float


@activity
async def notify(flight: Overdue) -> None:
    log.info("row %d: %s to %s left %d min late", flight.row, flight.tail, flight.dest, flight.minutes_late)


@activity
async def escalate(flight: Overdue) -> None:
    log.warning("row %d: %s has not arrived at %s", flight.row, flight.tail, flight.dest)


@workflow
async def overdue_departure(flight: Overdue) -> str:
    """Notify; then wait for `arrived`, not for ever.

    The log book has the last word: when nothing ran at the time `arrived` should have come (somebody pulled the plug),
    patience is at its end although the flight was in time.
    """
    await notify(flight)
    try:
        await wait_event("arrived", timeout=flight.patience_s)
    except TimeoutError:
        pass
    else:
        return "closed"
    if await actor_of(Aircraft, flight.tail).landed_in_time(flight.row):
        return "closed by the log book"
    await escalate(flight)
    send_from_workflow(actor_of(Airport, flight.origin).escalated)
    return "escalated"
