"""Reminders: durable wake-ups, fired as turns.

The rows in the store are the truth; memory holds a window of the soonest. A scan loads what is due within the horizon,
at most `_WINDOW` at a time, so a million pending reminders cost nothing but disk. A reminder set for within the horizon
is put into the window by the commit that made it. The tick's turn records the advance of its own schedule in the same
commit: a crash before the commit fires it again, after the commit never (INV-4, INV-8).

No reminder may hold up those of others. So a tick that waits for its actor gives its place among those that start to
the next one, and a row that cannot be fired (no host has its type or its callback, which another release may have; its
actor cannot be read) is *set aside*: scans go past it, and try it again after a pause that grows.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from actors.bystream import ByStream
from actors.errors import ActorError, CallerError, Retriable
from actors.schedule import Schedule, decode_schedule, encode_schedule, next_due_ms, resolve_misfire
from statestores.codec import encode
from statestores.errors import StoreError
from statestores.model import Reminder, partition_of

if TYPE_CHECKING:
    from actors.host import Host
    from actors.message import Call
    from actors.turn import Turn

log = logging.getLogger(__name__)

_HORIZON_MS = 10_000
_WINDOW = 2_000
# Ticks that start: each may load an actor. One that has not ended after a moment waits for its actor's turns or runs,
# and gives its place to another.
_MOST_STARTING = 500
_STARTING_S = 1.0
# All ticks under way, each of which costs a few kilobytes.
_MOST_IN_FLIGHT = 20_000
# Rows that are set aside, each for a pause that grows.
_MOST_ASIDE = 50_000
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0
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


class _Aside(NamedTuple):
    """A row that could not be fired, and when it is tried again: seconds on the loop's clock."""

    reminder: Reminder
    until: float
    pause_s: float


class Reminders:
    """Fires what is due, of the partitions this host owns."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # (stream, name) -> the row that is in the window; an entry of the heap counts only while it is the row here.
        self._window: ByStream[Reminder] = ByStream()
        self._heap: list[tuple[int, str, str]] = []
        # The rows whose tick is under way. A commit that sets or clears one takes it out: that tick is too late.
        self._in_flight: ByStream[Reminder] = ByStream()
        self._aside: ByStream[_Aside] = ByStream()
        # Ticks under way, superseded ones included; and those of them that hold a place, until the timer ends it.
        self._ticking = 0
        self._starting: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        # What commits have changed since the scan under way was sent: its rows of these may be old.
        self._changed: set[tuple[str, str]] | None = None
        # Streams forgotten meanwhile: none of the scan's rows of these count.
        self._forgotten: set[str] = set()
        # Everything due up to here is in the window (or in flight); 0: nobody knows.
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
        """The store has, or may have, what is due and not in the window yet."""
        self._scanned_to_ms = 0
        self._wake.set()

    def changed(self, turn: Turn) -> None:
        """A committed turn set or cleared reminders."""
        stream = turn.stream
        for name in turn.reminders_cleared or ():
            self._supersede((stream, name))
        for name, reminder in (turn.reminders_set or {}).items():
            self._supersede((stream, name))
            if reminder.due_ms <= self._scanned_to_ms:
                self._put(reminder)
                self._wake.set()

    def forget(self, stream: str) -> None:
        """What is known of its reminders no longer holds, and a tick that has not run does not."""
        if self._changed is not None:
            self._forgotten.add(stream)
        for rows in (self._window, self._in_flight, self._aside):
            for name in rows.names(stream):
                self._supersede((stream, name))

    def forget_partition(self, partition: int) -> None:
        """Another host has it: what this one knows of it may be old when it comes back."""
        partitions = self._host.journal.partitions
        for stream in {*self._window.streams(), *self._in_flight.streams(), *self._aside.streams()}:
            if partition_of(stream, partitions) == partition:
                self.forget(stream)

    def is_superseded(self, reminder: Reminder) -> bool:
        """Whether a commit has changed the reminder since the tick of this row began: it must not take effect."""
        return self._in_flight.get((reminder.stream, reminder.name)) is not reminder

    def _supersede(self, key: tuple[str, str]) -> None:
        self._window.pop(key, None)
        self._in_flight.pop(key, None)
        self._aside.pop(key, None)
        if self._changed is not None:
            self._changed.add(key)

    async def of(self, stream: str) -> list[ReminderInfo]:
        return [decode_reminder(r) for r in await self._host.journal.reminders(stream)]

    def _put(self, reminder: Reminder) -> None:
        self._window[reminder.stream, reminder.name] = reminder
        heapq.heappush(self._heap, (reminder.due_ms, reminder.stream, reminder.name))
        if len(self._heap) > 3 * _WINDOW:
            self._trim()

    def _trim(self) -> None:
        """Keep the soonest; the rest stands in the store, for a later scan."""
        kept = heapq.nsmallest(_WINDOW, self._window.values(), key=lambda reminder: reminder.due_ms)
        if len(kept) < len(self._window):
            self._scanned_to_ms = min(self._scanned_to_ms, kept[-1].due_ms - 1)
        self._window.clear()
        self._window.update({(r.stream, r.name): r for r in kept})
        self._heap = [(r.due_ms, r.stream, r.name) for r in kept]  # sorted, hence a heap
        heapq.heapify(self._heap)

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
        # With a backlog the window is refilled when it is half empty, not after every tick.
        enough = len(self._window) > _WINDOW // 2 and self._scanned_to_ms > 0
        if enough or self._scanned_to_ms > now_ms + _HORIZON_MS // 2:
            return
        until_ms = now_ms + _HORIZON_MS
        # Commits answered while the scan is under way must find their place: they compare with the new mark.
        before, self._scanned_to_ms = self._scanned_to_ms, until_ms
        room = _WINDOW + len(self._in_flight) + len(self._aside)
        changed: set[tuple[str, str]] = set()
        forgotten: set[str] = set()
        self._changed, self._forgotten = changed, forgotten
        epochs = [*self._host.epochs]
        try:
            found = await self._host.journal.due_reminders(self._host.owned(), until_ms, room)
        except BaseException:
            self._scanned_to_ms = min(self._scanned_to_ms, before)
            raise
        finally:
            self._changed = None
        # Partitions that have left since, and may be back: another host may have changed their rows.
        left = {p for p, epoch in enumerate(epochs) if self._host.epochs[p] != epoch}
        for reminder in found:
            key = (reminder.stream, reminder.name)
            if key in changed or reminder.stream in forgotten or key in self._window or key in self._in_flight:
                continue
            if left and partition_of(reminder.stream, len(epochs)) in left:
                continue
            if not self._is_aside(reminder):
                self._put(reminder)
        if len(found) == room:  # there is more before the horizon: the window reaches only to the last one found
            until_ms = found[-1].due_ms - 1
            self._scanned_to_ms = min(self._scanned_to_ms, until_ms)
        self._forget_aside(until_ms, found)

    def _set_aside(self, reminder: Reminder) -> bool:
        """False: there is no room for more."""
        key = (reminder.stream, reminder.name)
        before = self._aside.get(key)
        if before is None and len(self._aside) >= _MOST_ASIDE:
            log.error("more than %d reminders cannot be fired, they may hold up others", _MOST_ASIDE)
            return False
        pause_s = _FIRST_PAUSE_S if before is None else min(2 * before.pause_s, _LONGEST_PAUSE_S)
        self._aside[key] = _Aside(reminder, self._host.loop_time() + pause_s, pause_s)
        return True

    def _is_aside(self, reminder: Reminder) -> bool:
        key = (reminder.stream, reminder.name)
        aside = self._aside.get(key)
        if aside is not None and aside.reminder != reminder:  # changed where this host did not see it: tried at once
            del self._aside[key]
            return False
        return aside is not None and self._host.loop_time() < aside.until

    def _forget_aside(self, until_ms: int, found: list[Reminder]) -> None:
        """A scan up to `until_ms` has found these: what is set aside and not among them is no longer in the store."""
        if self._aside:
            standing = {(reminder.stream, reminder.name) for reminder in found}
            for key, aside in [*self._aside.items()]:
                if aside.reminder.due_ms <= until_ms and key not in standing:
                    del self._aside[key]

    def _may_start(self) -> bool:
        return len(self._starting) < _MOST_STARTING and self._ticking < _MOST_IN_FLIGHT

    def _start(self, reminder: Reminder) -> None:
        self._in_flight[reminder.stream, reminder.name] = reminder
        self._ticking += 1
        task = self._host.create_task(self._tick(reminder))
        loop = asyncio.get_running_loop()
        self._starting[task] = loop.call_later(_STARTING_S, self._has_started, task)
        task.add_done_callback(self._has_started)

    def _has_started(self, task: asyncio.Task[None]) -> None:
        timer = self._starting.pop(task, None)
        if timer is not None:
            timer.cancel()
            self._wake.set()

    def _fire(self) -> float:
        """Fire what is due; seconds until there is something to do again."""
        now_ms = self._host.clock.now_ms()
        while self._heap and self._may_start():
            due_ms, stream, name = self._heap[0]
            reminder = self._window.get((stream, name))
            if reminder is None or reminder.due_ms != due_ms:
                heapq.heappop(self._heap)
                continue
            if due_ms > now_ms:
                return min((due_ms - now_ms) / 1000, _HORIZON_MS / 2000)
            heapq.heappop(self._heap)
            del self._window[stream, name]
            if not self._host.owns(stream):  # its new owner has found it in the store
                continue
            self._start(reminder)
        if not self._may_start():
            return _HORIZON_MS / 1000  # the next one that has started, or ended, wakes the loop
        return 0.0 if len(self._window) == 0 and self._scanned_to_ms <= now_ms else _HORIZON_MS / 2000

    async def _tick(self, reminder: Reminder) -> None:
        try:
            info = decode_reminder(reminder)
            if resolve_misfire(info.schedule, reminder.due_ms, self._host.clock.now_ms()) != reminder.due_ms:
                await self._advance_only(Tick(reminder, info.schedule, skipping=True))
            else:
                await self._fire_turn(reminder, info)
        except (ActorError, StoreError) as error:
            log.warning("reminder %s of %s cannot be fired, trying again: %s", reminder.name, reminder.stream, error)
            if not self.is_superseded(reminder) and not self._set_aside(reminder):
                await asyncio.sleep(_RETRY_DELAY_S)
        finally:
            self._ticking -= 1
            if not self.is_superseded(reminder):  # it failed: the row still stands, and a scan finds it
                del self._in_flight[reminder.stream, reminder.name]
            self._wake.set()

    async def _fire_turn(self, reminder: Reminder, info: ReminderInfo) -> None:
        failures = refusals = 0
        while True:
            try:
                await self._host.place(self._tick_call(reminder, info))
            except Retriable as error:
                refusals += 1
                if refusals > _RETRIES:
                    raise
                log.info("reminder %s of %s is tried again: %s", reminder.name, reminder.stream, error)
            except CallerError:  # no method of the actor has run: a release that has this one's fires it
                raise
            except ActorError as error:
                failures += 1
                log.warning("reminder %s of %s failed (%d): %s", reminder.name, reminder.stream, failures, error)
                if failures > _RETRIES:
                    await self._advance_only(Tick(reminder, info.schedule))
                    return
            else:
                return
            await asyncio.sleep(_RETRY_DELAY_S)
            if not await self._stands(reminder):
                return

    async def _stands(self, reminder: Reminder) -> bool:
        """Whether the tick is still to be fired. The store is asked, since it may have recorded a tick whose commit it
        did not answer."""
        if self.is_superseded(reminder) or not self._host.owns(reminder.stream):
            return False
        return reminder in await self._host.journal.reminders(reminder.stream)

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
