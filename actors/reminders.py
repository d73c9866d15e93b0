"""Reminders: durable wake-ups, fired as turns.

The rows in the store are the truth; memory holds a window of the soonest. A scan loads what is due within the horizon,
at most `_WINDOW` at a time, so a million pending reminders cost nothing but disk. A reminder set for within the horizon
is put into the window by the commit that made it. The tick's turn records the advance of its own schedule in the same
commit: a crash before the commit fires it again, after the commit never (INV-4, INV-8).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from actors.errors import ActorError, CallerError, Retriable
from actors.schedule import Schedule, decode_schedule, encode_schedule, next_due_ms, resolve_misfire
from statestores.codec import encode
from statestores.errors import StoreError
from statestores.model import Reminder

if TYPE_CHECKING:
    from actors.host import Host
    from actors.message import Call
    from actors.turn import Turn

log = logging.getLogger(__name__)

_HORIZON_MS = 10_000
_WINDOW = 2_000
_MOST_IN_FLIGHT = 500
# A tick that fails is tried again, at most so often, then the schedule goes on (Dapr's default failure policy).
_RETRIES = 3
_RETRY_DELAY_S = 1.0
_STORE_RETRY_S = 1.0


class ReminderInfo(NamedTuple):
    """A reminder as people see it."""

    name: str
    due_ms: int
    schedule: Schedule
    data: Any
    callback: str | None


def encode_reminder(
    stream: str, name: str, due_ms: int, schedule: Schedule, data: Any, callback: str | None
) -> Reminder:
    body = {"s": encode_schedule(schedule), "d": data, "c": callback}
    return Reminder(stream, name, due_ms, encode(body))


def decode_reminder(reminder: Reminder) -> ReminderInfo:
    body = orjson.loads(reminder.body)
    return ReminderInfo(reminder.name, reminder.due_ms, decode_schedule(body["s"]), body["d"], body["c"])


class Tick(NamedTuple):
    """A reminder that is due. `skipping`: its misfire policy drops this tick, only the schedule goes on."""

    reminder: Reminder
    schedule: Schedule
    skipping: bool = False


def advance_reminder(turn: Turn, tick: Tick, now_ms: int) -> None:
    """Put what follows the tick that this turn is into the turn, unless its method said otherwise itself."""
    reminder, schedule, _ = tick
    name = reminder.name
    if (turn.reminders_set and name in turn.reminders_set) or (
        turn.reminders_cleared and name in turn.reminders_cleared
    ):
        return
    turn.wrote = True
    following = _after(tick, now_ms)
    if following is None:
        turn.reminders_cleared = turn.reminders_cleared or set()
        turn.reminders_cleared.add(name)
        return
    due_ms, schedule = following
    info = decode_reminder(reminder)
    turn.reminders_set = turn.reminders_set or {}
    turn.reminders_set[name] = encode_reminder(reminder.stream, name, due_ms, schedule, info.data, info.callback)


def _after(tick: Tick, now_ms: int) -> tuple[int, Schedule] | None:
    if tick.skipping:
        resolved = resolve_misfire(tick.schedule, tick.reminder.due_ms, now_ms)
        return None if resolved is None else (resolved, tick.schedule)
    return next_due_ms(tick.schedule, tick.reminder.due_ms, now_ms)


class Reminders:
    """Fires what is due, of the partitions this host owns."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # (stream, name) -> the row that is in the window; an entry of the heap counts only while it is the row here.
        self._window: dict[tuple[str, str], Reminder] = {}
        self._heap: list[tuple[int, str, str]] = []
        self._in_flight: set[tuple[str, str]] = set()
        # Everything due up to here is in the window (or in flight).
        self._scanned_to_ms = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._host.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def rescan(self) -> None:
        """New partitions: what they have due is not in the window yet."""
        self._scanned_to_ms = 0
        self._wake.set()

    def changed(self, turn: Turn) -> None:
        """A committed turn set or cleared reminders."""
        stream = turn.stream
        for name in turn.reminders_cleared or ():
            self._window.pop((stream, name), None)
        for name, reminder in (turn.reminders_set or {}).items():
            if reminder.due_ms <= self._scanned_to_ms:
                self._put(reminder)
                self._wake.set()
            else:
                self._window.pop((stream, name), None)

    def forget(self, stream: str) -> None:
        """The stream is gone, with its reminders."""
        for key in [k for k in self._window if k[0] == stream]:
            del self._window[key]

    async def of(self, stream: str) -> list[ReminderInfo]:
        return [decode_reminder(r) for r in await self._host.journal.reminders(stream)]

    def _put(self, reminder: Reminder) -> None:
        self._window[reminder.stream, reminder.name] = reminder
        heapq.heappush(self._heap, (reminder.due_ms, reminder.stream, reminder.name))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._scan()
            except StoreError as error:
                log.warning("reminders cannot be scanned, trying again: %s", error)
                await asyncio.sleep(_STORE_RETRY_S)
                continue
            delay_s = self._fire()
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _scan(self) -> None:
        now_ms = self._host.clock.now_ms()
        if self._scanned_to_ms > now_ms + _HORIZON_MS // 2 or len(self._window) >= _WINDOW:
            return
        until_ms = now_ms + _HORIZON_MS
        # Commits answered while the scan is under way must find their place: they compare with the new mark.
        before, self._scanned_to_ms = self._scanned_to_ms, until_ms
        room = _WINDOW + len(self._in_flight)
        try:
            found = await self._host.journal.due_reminders(self._host.owned(), until_ms, room)
        except BaseException:
            self._scanned_to_ms = before
            raise
        for reminder in found:
            key = (reminder.stream, reminder.name)
            if key not in self._window and key not in self._in_flight:
                self._put(reminder)
        if len(found) == room:  # there is more before the horizon: the window reaches only to the last one found
            self._scanned_to_ms = found[-1].due_ms - 1

    def _fire(self) -> float:
        """Fire what is due; seconds until there is something to do again."""
        now_ms = self._host.clock.now_ms()
        while self._heap and len(self._in_flight) < _MOST_IN_FLIGHT:
            due_ms, stream, name = self._heap[0]
            reminder = self._window.get((stream, name))
            if reminder is None or reminder.due_ms != due_ms:
                heapq.heappop(self._heap)
                continue
            if due_ms > now_ms:
                return min((due_ms - now_ms) / 1000, _HORIZON_MS / 2000)
            heapq.heappop(self._heap)
            del self._window[stream, name]
            self._in_flight.add((stream, name))
            self._host.create_task(self._tick(reminder))
        if len(self._in_flight) >= _MOST_IN_FLIGHT:
            return _HORIZON_MS / 1000  # a finished tick wakes the loop
        return 0.0 if len(self._window) == 0 and self._scanned_to_ms <= now_ms else _HORIZON_MS / 2000

    async def _tick(self, reminder: Reminder) -> None:
        try:
            info = decode_reminder(reminder)
            if resolve_misfire(info.schedule, reminder.due_ms, self._host.clock.now_ms()) != reminder.due_ms:
                await self._advance_only(Tick(reminder, info.schedule, skipping=True))
            else:
                await self._fire_turn(reminder, info)
        except Exception:
            log.exception("reminder %s of %s could not be fired", reminder.name, reminder.stream)
        finally:
            self._in_flight.discard((reminder.stream, reminder.name))
            self._wake.set()

    async def _fire_turn(self, reminder: Reminder, info: ReminderInfo) -> None:
        failures = 0
        while True:
            try:
                await self._host.place(self._tick_call(reminder, info))
            except (CallerError, ActorError) as error:
                if isinstance(error, Retriable):
                    await asyncio.sleep(_RETRY_DELAY_S)
                    continue
                failures += 1
                log.warning("reminder %s of %s failed (%d): %s", reminder.name, reminder.stream, failures, error)
                if failures > _RETRIES or isinstance(error, CallerError):
                    await self._advance_only(Tick(reminder, info.schedule))
                    return
                await asyncio.sleep(_RETRY_DELAY_S)
            else:
                return

    async def _advance_only(self, tick: Tick) -> None:
        """Go on with the schedule without running the actor's method."""
        call = self._host.new_call(tick.reminder.stream, "$advance_reminder")
        call.internal, call.reminder = True, tick
        await self._host.place(call)

    def _tick_call(self, reminder: Reminder, info: ReminderInfo) -> Call:
        call = self._host.new_call(reminder.stream, info.callback or "receive_reminder")
        call.payload = tick_payload(info.callback, info.name, info.data)
        call.internal, call.reminder = True, Tick(reminder, info.schedule)
        return call


def tick_payload(callback: str | None, name: str, data: Any) -> bytes:
    """Arguments of a tick: ``callback(data)``, or ``callback()`` without data, or ``receive_…(name, data)``."""
    if callback is None:
        return encode([name, data])
    return b"" if data is None else encode(data)
