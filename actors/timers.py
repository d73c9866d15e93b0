"""Timers: volatile wake-ups, in the memory of the host that owns the actor.

A timer outlives the activation (its next tick activates the actor again) and dies with the host. Ticks never overlap:
the next is reckoned from the previous scheduled time, after the previous turn has ended; late ones run back to back
(Dapr's rule, protocol section 3.3). A failed tick is logged, the schedule goes on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from actors.bystream import ByStream
from actors.errors import ActorError
from actors.reminders import tick_payload
from actors.schedule import make_schedule, next_due_ms
from statestores.model import partition_of

if TYPE_CHECKING:
    from actors.host import Host
    from actors.turn import TimerRequest

log = logging.getLogger(__name__)


class Timers:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: ByStream[asyncio.Task[None]] = ByStream()

    def apply(self, stream: str, requests: dict[str, TimerRequest | None]) -> None:
        """Start, replace or clear timers, as a committed turn asked."""
        for name, request in requests.items():
            self._cancel((stream, name))
            if request is not None:
                self._running[stream, name] = self._host.create_task(self._run(stream, request))

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
        tasks = [*self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()

    def _cancel(self, key: tuple[str, str]) -> None:
        task = self._running.pop(key, None)
        # A timer that clears itself is inside its own tick: the tick ends by itself, the schedule does not go on.
        if task is not None:
            task.cancel()

    async def _run(self, stream: str, request: TimerRequest) -> None:
        clock = self._host.clock
        due_ms, schedule = make_schedule(
            request.due, request.period, request.ttl, None, "all", clock.now_ms(), first_fire_immediate=True
        )
        while True:
            await asyncio.sleep(max(0, due_ms - clock.now_ms()) / 1000)
            await self._tick(stream, request)
            following = next_due_ms(schedule, due_ms, clock.now_ms())
            if following is None:
                break
            due_ms, schedule = following
        if self._running.get((stream, request.name)) is asyncio.current_task():
            del self._running[stream, request.name]

    async def _tick(self, stream: str, request: TimerRequest) -> None:
        call = self._host.new_call(stream, request.callback or "receive_timer")
        call.payload = tick_payload(request.callback, request.name, request.data)
        call.internal = True
        try:
            await asyncio.shield(self._host.place(call))
        except ActorError as error:
            log.warning("timer %s of %s failed: %s", request.name, stream, error)
