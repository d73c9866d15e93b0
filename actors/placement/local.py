"""Placement without a cluster: one host owns all partitions.

Starting it takes every partition over. A living owner is not robbed: we wait for its lease to end. An owner that ran on
this machine and whose process is gone (`kill -9`) is taken over at once, so a restart after a crash does not wait. A
mistake in that judgement would let the other host answer old reads until its lease ends (INV-7), never record anything:
the epoch decides (INV-2, INV-3).

A host that runs may *lose* partitions: it was frozen for longer than its lease, and another took over; or the server
has forgotten who owns them. What memory has of them is dropped then, and never used again. What holds from there on:
*while a host is neither stopping nor has given a partition away, it owns it or tries to take it again*, in the way it
has taken it at its start, so without force (INV-7). Until it has it, it refuses calls of its actors (`NotOwner`), and
says that it `lacks` something. Failure cases:

- *Another host keeps what was lost*: asked for again and again, ever more slowly. That host ends: the next try has it.
- *Some are lost, or only some of the lost can be had*: what is still owned goes on; the lost ones come back together.
- *Lost again*: taken again, after the pause that any second try waits. So a store that gives and refuses in turn is not
  asked without end.
- *The store is away, or does not say what came of a try*: the next try takes them under a newer epoch.
- *The store has forgotten everything*: with the epochs the owner is gone, so nobody is waited for. Epochs grow all the
  same, and the namespace's record is made again (see the stores' `acquire`). The actors are as empty as the store.
- *The store has become another one* (a newer release has migrated it meanwhile, or it was made anew with another number
  of partitions): it refuses. Only a restart can help, and `lacks` asks for one.
- *The host stops*: nothing more is taken. A try under way is waited for, so that what it takes is released with the
  rest; when there is no time for that, or in a crash, what it may have taken has a lease that ends by itself.
- *A partition is given away while it is asked for*: it is released again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from actors.placement.owners import is_gone
from statestores.errors import LeaseHeld, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actors.host import Host
    from actors.message import Call
    from statestores.model import Ownership

log = logging.getLogger(__name__)

_GRACE_MS = 200
_LONGEST_PAUSE_S = 5.0


class StoreInUse(StoreError):
    """Another living host owns this store."""


class LocalPlacement:
    def __init__(self, host: Host) -> None:
        self._host = host
        # The way to an actor's host is a function call here: bound once, as it is on the path of every turn.
        self.submit: Callable[[Call], None] = host.submit
        self._loss = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        # The latest try to take again what was lost.
        self._try: asyncio.Task[None] | None = None
        # Why the try before that did not succeed. Each reason is told once.
        self._told = ""

    @property
    def lacks(self) -> bool:
        return bool(self._lost())

    async def drain(self) -> None:
        """Answers here are futures: they leave at once. A try that is under way is waited for."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._try is not None:
            await asyncio.wait([self._try])

    def stop(self) -> None:
        """Nothing is held but what the host holds."""

    async def start(self) -> None:
        """Own every partition, and keep it so. Raises `StoreInUse` when the present owner keeps its lease alive."""
        waited_for = ""
        while (holder := await self._acquire(range(len(self._host.epochs)))) is not None:
            marker = f"{holder.owner}:{holder.epoch}"
            if marker == waited_for:
                raise StoreInUse(
                    f"this store is in use by {holder.owner}, which keeps renewing its lease: stop it, or use "
                    f"another store"
                )
            waited_for = marker
            await self._wait_out(holder)
        self._host.when_lost.append(lambda _: self._loss.set())
        self._keeping = self._host.create_task(self._keep())

    async def _acquire(self, partitions: Sequence[int]) -> Ownership | None:
        """Own all of these, or none: then who has one of them, and may be alive. Raises `StoreError`."""
        ownership = self._host.ownership
        while True:
            try:
                await ownership.acquire(partitions, force=False)
                return None
            except LeaseHeld as held:
                holder = held.holder
            if not is_gone(holder.owner):
                return holder
            await ownership.end_leases_of(holder.owner)

    async def _wait_out(self, holder: Ownership) -> None:
        remaining_s = max(0, holder.lease_until_ms - self._host.clock.now_ms() + _GRACE_MS) / 1000
        log.warning("waiting %.1f s for the lease of %s", remaining_s, holder.owner)
        await asyncio.sleep(remaining_s)

    # -- keeping what was taken ----------------------------------------------------------------------------------------

    def _lost(self) -> list[int]:
        ownership = self._host.ownership
        return [p for p, epoch in enumerate(ownership.epochs) if not epoch and p not in ownership.given]

    async def _keep(self) -> None:
        """Take again what is lost, until the host stops."""
        while True:
            await self._loss.wait()
            self._loss.clear()
            pause_s = min(self._host.ownership.lease_ms / 3000, _LONGEST_PAUSE_S)
            while self._lost() and not self._host.draining:
                # A task of its own: `drain` ends this one, and not what the store has been asked.
                self._try = self._host.create_task(self._take_again())
                await asyncio.wait([self._try])
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _take_again(self) -> None:
        host = self._host
        try:
            await host.ownership.confirm()  # a refused commit tells of one, and seldom only that one is lost
            lost = self._lost()
            holder = await self._acquire(lost)
        except StoreError as error:
            self._tell(f"lost partitions cannot be taken again, trying on: {error}")
            return
        if holder is not None:
            self._tell(f"lost partitions are those of {holder.owner} now: trying on until its lease ends")
            return
        self._told = ""
        log.warning("%d lost partitions are taken again", len(lost))
        host.find_unfinished(lost)
        if given := host.ownership.given.intersection(lost):
            await host.ownership.release(given)

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            log.warning("%s", reason)
