"""Timers: volatile wake-ups, in the memory of the host that owns the actor.

A timer outlives the activation (its next tick activates the actor again) and dies with the host. Ticks never overlap:
the next is reckoned from the previous scheduled time, after the previous turn has ended; late ones run back to back
(Dapr's rule). A failed tick is logged, the schedule goes on.

A tick that waits while a turn clears or replaces its timer, or deletes the actor, never runs. It is withdrawn when that
turn is decided, as the next one begins then, and none follows before the turn is recorded, or refused.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from actors.bystream import ByStream
from actors.reminders import tick_payload
from actors.schedule import make_schedule, next_due_ms
from statestores.model import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors.host import Host
    from actors.message import Call
    from actors.turn import TimerRequest

log = logging.getLogger(__name__)


class _Timer:
    __slots__ = ("changing", "task", "tick")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        # A turn that has been decided changes it. If it is recorded, that ends the task.
        self.changing = False
        # The one that waits for its turn, or has it.
        self.tick: Call | None = None

    def withdraw(self) -> None:
        """The tick, unless its turn has begun."""
        if self.tick is not None and self.tick.turn is None:
            self.tick.future.cancel()


class Timers:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: ByStream[_Timer] = ByStream()

    def apply(self, stream: str, requests: dict[str, TimerRequest | None]) -> None:
        """Start, replace or clear timers, as a committed turn asked."""
        for name, request in requests.items():
            self._cancel((stream, name))
            if request is not None:
                self._running[stream, name] = timer = _Timer()
                timer.task = self._host.create_task(self._run(stream, request, timer))

    def withdraw(self, stream: str, names: Iterable[str] | None) -> None:
        """Ticks that wait, of timers that a turn has changed; None: of all of the stream."""
        for name in self._running.names(stream) if names is None else names:
            timer = self._running.get((stream, name))
            if timer is not None:
                timer.changing = True
                timer.withdraw()

    def forget(self, stream: str) -> None:
        for name in self._running.names(stream):
            self._cancel((stream, name))

    def forget_partition(self, partition: int) -> None:
        """Timers die with the ownership of their actor, as they would with the host: what owns it now has none."""
        partitions = self._host.journal.partitions
        for stream in self._running.streams():
            if partition_of(stream, partitions) == partition:
                self.forget(stream)

    async def stop(self) -> None:
        tasks = [timer.task for timer in self._running.values() if timer.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()

    def _cancel(self, key: tuple[str, str]) -> None:
        timer = self._running.pop(key, None)
        # A timer that clears itself is inside its own tick: the tick ends by itself, the schedule does not go on.
        if timer is not None and timer.task is not None:
            timer.withdraw()
            timer.task.cancel()

    async def _run(self, stream: str, request: TimerRequest, timer: _Timer) -> None:
        clock = self._host.clock
        due_ms, schedule = make_schedule(
            request.due, request.period, request.ttl, None, "all", clock.now_ms(), first_fire_immediate=True
        )
        while True:
            await asyncio.sleep(max(0, due_ms - clock.now_ms()) / 1000)
            while timer.changing:
                timer.changing = False
                await self._host.group.drain()
            if not await self._tick(stream, request, timer):
                continue
            following = next_due_ms(schedule, due_ms, clock.now_ms())
            if following is None:
                break
            due_ms, schedule = following
        if self._running.get((stream, request.name)) is timer:
            del self._running[stream, request.name]

    async def _tick(self, stream: str, request: TimerRequest, timer: _Timer) -> bool:
        """False: it was withdrawn."""
        call = self._host.new_call(stream, request.callback or "receive_timer")
        call.payload = tick_payload(request.callback, request.name, request.data)
        call.internal = True
        timer.tick = call
        answer = self._host.place(call)
        await asyncio.wait([answer])  # cancelled, this leaves the tick alone
        timer.tick = None
        if answer.cancelled():
            return False
        if (error := answer.exception()) is not None:
            log.warning("timer %s of %s failed: %s", request.name, stream, error)
        return True
