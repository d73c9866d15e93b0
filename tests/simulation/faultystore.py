"""A journal behind a bad network: slow, silent, forgetful, and now and then gone. For simulations.

Every life of a host gets its own `FaultyJournal` on the one inner journal, which is the truth and never fails. What is
sent to it travels, is applied at once and whole (unless `Faults` say otherwise), and the answer travels back; each of
the three can go wrong. Requests are applied on the node `STORE`, so that they outlive the host that sent them: a commit
may arrive after its sender has died, been cancelled or been replaced, which is what fencing is for (INV-2).
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from statestores.errors import StoreUnavailable
from tests.simulation.simloop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from random import Random

    from statestores.errors import CommitRefused
    from statestores.model import (
        Event,
        IndexEntry,
        IndexQuery,
        OutboxMessage,
        Ownership,
        Receipt,
        Reminder,
        StreamState,
        TurnCommit,
    )
    from statestores.store import Journal

T = TypeVar("T")

STORE = "store"


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities per call, and the longest one-way delays. The default is a fast and faithful network."""

    delay_s: float = 0.0
    # Now and then a way takes up to `slow_s` instead.
    slow: float = 0.0
    slow_s: float = 1.0
    # The request is lost on its way: nothing is applied, `StoreUnavailable`.
    fail: float = 0.0
    # The request is applied, the answer is lost: `StoreUnavailable`. The fault worth most.
    lose_answer: float = 0.0
    # A commit of several turns: only the first few of them are applied, then `StoreUnavailable`.
    tear_batch: float = 0.0
    # `StoreUnavailable` first, and up to `late_s` later the request is applied after all: a client that timed out
    # before the server had read its request. The repeat may be applied before the original is.
    late: float = 0.0
    late_s: float = 5.0


class Call(NamedTuple):
    """One request, for a person who reads a failure: what was asked, and what became of it."""

    time_s: float
    host: str
    method: str
    fate: str


@dataclass(slots=True, eq=False)
class FaultyJournal:
    """A `Journal`. `faults` may be replaced at any time; `crash` and `outage` come on top.

    Randomness comes from `random` alone, one draw per decision, so a run is reproduced by its seed.
    """

    inner: Journal
    random: Random
    faults: Faults = Faults()
    host: str = ""
    # Newest last.
    calls: list[Call] = field(default_factory=list)
    _crashed: bool = False
    _out_until_s: float = 0.0
    _in_flight: set[asyncio.Task[Any]] = field(default_factory=set)

    # -- what tests do to it -------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The host behind this wrapper has died: no call ever returns again. Of what is under way to the store, each
        request is lost or arrives, at random; the inner journal lives on."""
        self._crashed = True
        for request in sorted(self._in_flight, key=asyncio.Task.get_name):
            if self.random.random() < 0.5:
                request.cancel()

    def outage(self, seconds: float) -> None:
        """The store cannot be reached for so long from here."""
        self._out_until_s = max(self._out_until_s, _loop().time() + seconds)

    # -- the road there and back ---------------------------------------------------------------------------------------

    async def _call(self, method: str, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Invariant: `request` is applied at most once by each call, and between two suspensions."""
        if self._crashed:
            await _never()
        fate = self._draw_fate()
        self.calls.append(Call(_loop().time(), self.host, method, fate))
        there_s, back_s = self._draw_delay(), self._draw_delay()
        if fate == "fail":
            await self._wait(there_s + back_s)
            raise StoreUnavailable(f"simulated: {method} was lost on its way")
        if fate == "late":
            self._send(request, there_s + self.random.random() * self.faults.late_s)
            await self._wait(there_s + back_s)
            raise StoreUnavailable(f"simulated: no answer to {method} in time; it may still arrive")
        answer = await self._answered(self._send(request, there_s))
        await self._wait(back_s)
        if fate == "lose_answer":
            raise StoreUnavailable(f"simulated: {method} was applied, its answer was lost")
        return answer

    def _draw_fate(self) -> str:
        draw = self.random.random()
        if _loop().time() < self._out_until_s:
            return "fail"
        for fate in ("fail", "lose_answer", "late"):
            draw -= getattr(self.faults, fate)
            if draw < 0:
                return fate
        return "answer"

    def _draw_delay(self) -> float:
        slow = self.random.random() < self.faults.slow
        return self.random.random() * (self.faults.slow_s if slow else self.faults.delay_s)

    def _send(self, request: Callable[[], Coroutine[Any, Any, T]], delay_s: float) -> asyncio.Task[T]:
        """On its own task, on the store's node: neither the caller's cancellation nor its death calls it back."""

        async def arrive() -> T:
            await asyncio.sleep(delay_s)
            return await request()

        task = _loop().spawn(STORE, arrive())
        self._in_flight.add(task)
        task.add_done_callback(self._arrived, context=Context())  # on no node: also when the host is gone
        return task

    def _arrived(self, request: asyncio.Task[Any]) -> None:
        self._in_flight.discard(request)
        if not request.cancelled():
            request.exception()  # seen: the caller may be gone

    async def _answered(self, request: asyncio.Task[T]) -> T:
        await asyncio.wait([request])
        if self._crashed:
            await _never()
        return request.result()

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._crashed:
            await _never()

    # -- Journal -------------------------------------------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        return self.inner.partitions

    async def acquire(
        self, partitions: Sequence[int], owner: str, now_ms: int, lease_ms: int, *, force: bool = False
    ) -> list[Ownership]:
        asked = tuple(partitions)
        return await self._call("acquire", lambda: self.inner.acquire(asked, owner, now_ms, lease_ms, force=force))

    async def renew(self, owned: Sequence[tuple[int, int]], owner: str, now_ms: int, lease_ms: int) -> list[Ownership]:
        asked = tuple(owned)
        return await self._call("renew", lambda: self.inner.renew(asked, owner, now_ms, lease_ms))

    async def release(self, owned: Sequence[tuple[int, int]]) -> None:
        asked = tuple(owned)
        await self._call("release", lambda: self.inner.release(asked))

    async def owners(self) -> list[Ownership]:
        return await self._call("owners", self.inner.owners)

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        batch = tuple(turns)
        if len(batch) > 1 and self.random.random() < self.faults.tear_batch:
            part = batch[: self.random.randrange(1, len(batch))]
            await self._call("commit", lambda: self.inner.commit(part))
            raise StoreUnavailable(f"simulated: {len(part)} of {len(batch)} turns were applied")
        return await self._call("commit", lambda: self.inner.commit(batch))

    async def load(self, stream: str, at_version: int | None = None) -> StreamState:
        return await self._call("load", lambda: self.inner.load(stream, at_version))

    async def events(self, stream: str, after_version: int = 0, limit: int = 1000) -> list[Event]:
        return await self._call("events", lambda: self.inner.events(stream, after_version, limit))

    async def receipts(self, stream: str, keys: Sequence[str]) -> list[Receipt | None]:
        return await self._call("receipts", lambda: self.inner.receipts(stream, keys))

    async def purge_receipts(self, partition: int, now_ms: int, limit: int) -> int:
        return await self._call("purge_receipts", lambda: self.inner.purge_receipts(partition, now_ms, limit))

    async def outbox(
        self, partition: int, after: str = "", limit: int = 1000, *, dead: bool = False
    ) -> list[OutboxMessage]:
        return await self._call("outbox", lambda: self.inner.outbox(partition, after, limit, dead=dead))

    async def due_reminders(self, partitions: Sequence[int], until_ms: int, limit: int) -> list[Reminder]:
        asked = tuple(partitions)
        return await self._call("due_reminders", lambda: self.inner.due_reminders(asked, until_ms, limit))

    async def reminders(self, stream: str) -> list[Reminder]:
        return await self._call("reminders", lambda: self.inner.reminders(stream))

    async def index(self, query: IndexQuery) -> list[IndexEntry]:
        return await self._call("index", lambda: self.inner.index(query))


def _loop() -> SimulatedLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop), "FaultyJournal lives in simulations only"
    return loop


async def _never() -> None:
    await asyncio.get_running_loop().create_future()
