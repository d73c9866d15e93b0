"""Threads for code that blocks: at most so many, made when they are needed, kept until `close`.

They are daemons: a thread cannot be stopped, and one that blocks must not keep a process from ending that has stopped
in every other way. (The interpreter waits for each thread of `concurrent.futures`.) What is cut off so is what a crash
would have cut off.

Used on one event loop at a time, and there is no lock: who has been let in by `acquire` finds an idle thread, or there
are fewer than there may be.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# None: there is no more to come.
Jobs: TypeAlias = "SimpleQueue[Callable[[], None] | None]"


class Threads:
    def __init__(self, most: int, name: str) -> None:
        self._free = asyncio.Semaphore(most)
        self._name = name
        self._jobs: Jobs = SimpleQueue()
        self._made = 0
        self._busy = 0

    async def acquire(self) -> None:
        """Wait for a thread. Then `run`, once, or `release`."""
        await self._free.acquire()

    def release(self) -> None:
        self._free.release()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """In the thread that was acquired, which is free again when `work` has returned (it must not raise), heard or
        unheard. Whoever waits for the future, or has a callback at it, goes on before whoever waits for the thread.

        Raises `RuntimeError` when there can be no more threads; nothing is acquired then any more."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            result = work()
            with suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
                loop.call_soon_threadsafe(self._ended, outcome, result)

        try:
            if self._busy >= self._made:
                threading.Thread(target=_serve, args=(self._jobs,), name=self._name, daemon=True).start()
                self._made += 1
        except BaseException:
            self.release()
            raise
        self._busy += 1
        self._jobs.put(job)
        return outcome

    def close(self) -> None:
        """Idle threads end, busy ones when their work does."""
        for _ in range(self._made):
            self._jobs.put(None)
        self._made, self._jobs = 0, SimpleQueue()

    def _ended(self, outcome: asyncio.Future[Any], result: Any) -> None:
        if not outcome.done():
            outcome.set_result(result)
        self._busy -= 1
        self.release()


def _serve(jobs: Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # not to be kept while there is nothing to do
