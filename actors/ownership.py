"""Which partitions this host owns, and until when it may believe so.

Safety never rests on this module: the store refuses a commit under an old epoch (INV-2, INV-3). It serves reads: an
answer that nobody asks the store about may only be given while no other host can have taken the partition, that is
until the lease ends, measured on the monotonic clock from before the renewal was sent, less a margin.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from statestores.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actors.clock import Clock
    from statestores.store import Journal

log = logging.getLogger(__name__)


class Ownership:
    """The epochs and the lease of one host. `epochs[p]` is 0 for a partition it does not own."""

    def __init__(
        self, journal: Journal, owner: str, clock: Clock, lease_s: float, on_lost: Callable[[int], None]
    ) -> None:
        self._journal = journal
        self._owner = owner
        self._clock = clock
        self._lease_s = lease_s
        self._margin_s = lease_s / 10
        self._on_lost = on_lost
        self._valid_until = 0.0
        self._task: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        # The question to the store that has not been sent yet: whoever needs an answer now joins it.
        self._next: asyncio.Task[frozenset[tuple[int, int]]] | None = None
        self.epochs: list[int] = [0] * journal.partitions
        # Released by this host, and not asked for since. What else it had and does not own has been lost.
        self.given: set[int] = set()

    @property
    def owned(self) -> list[int]:
        return [p for p, epoch in enumerate(self.epochs) if epoch]

    def lease_holds(self) -> bool:
        return self._clock.monotonic() < self._valid_until

    async def acquire(self, partitions: Sequence[int], *, force: bool) -> None:
        """Raises `LeaseHeld`, with nothing taken, when another owner's lease runs and not `force`; `StoreError`."""
        self.given.difference_update(partitions)
        asked = self._clock.monotonic()
        taken = await self._journal.acquire(partitions, self._owner, self._clock.now_ms(), self.lease_ms, force=force)
        for ownership in taken:
            self.lose(ownership.partition)  # what memory has of it is of an older epoch
        until = self._valid(asked)
        self._valid_until = min(self._valid_until, until) if any(self.epochs) else until
        for ownership in taken:
            self.epochs[ownership.partition] = ownership.epoch

    async def end_leases_of(self, owner: str) -> None:
        """Of one whose process is gone, so that nobody waits for them. By their epochs: what another host has taken
        over meanwhile is its own. Raises `StoreError`."""
        await self._journal.release([(o.partition, o.epoch) for o in await self._journal.owners() if o.owner == owner])

    def start_renewing(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._renew_for_ever(), name="lease")

    async def confirm(self) -> frozenset[tuple[int, int]]:
        """Ask the store which partitions are still ours, and extend their lease. Those of which it said so, with their
        epochs. Raises `StoreError` when it cannot say."""
        pairs = [(p, e) for p, e in enumerate(self.epochs) if e]
        if not pairs:
            return frozenset()
        asked = self._clock.monotonic()
        kept = await self._journal.renew(pairs, self._owner, self._clock.now_ms(), self.lease_ms)
        still_ours = {(o.partition, o.epoch) for o in kept}
        for pair in pairs:
            if pair not in still_ours:
                self.lose(*pair)
        # What was taken over while the question was under way has a lease of its own, which this did not extend.
        if still_ours.issuperset((p, e) for p, e in enumerate(self.epochs) if e):
            self._valid_until = self._valid(asked)
        return frozenset(still_ours)

    async def confirm_now(self, partition: int) -> None:
        """`confirm`, asked after this call, of this partition: returns when the store has said that it is ours, or
        `epochs` says that it is not. One question answers for all who came while the last one was under way."""
        while epoch := self.epochs[partition]:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_task(self._confirm_next(), name="confirm")
                self._next.add_done_callback(_seen)
            if (partition, epoch) in await asyncio.shield(self._next):
                return

    async def _confirm_next(self) -> frozenset[tuple[int, int]]:
        async with self._asking:
            self._next = None
            return await self.confirm()

    def lose(self, partition: int, epoch: int | None = None) -> None:
        """`epoch`: only if it is still that one. An answer about an older one says nothing of the present."""
        if self.epochs[partition] and epoch in (None, self.epochs[partition]):
            self.epochs[partition] = 0
            self._on_lost(partition)

    async def release(self, partitions: Iterable[int]) -> None:
        """End the leases of these partitions, so that a successor need not wait. They are no longer ours from the start
        of this call on: a successor may answer before we hear that the store knows."""
        partitions = [*partitions]
        self.given.update(partitions)
        pairs = [(p, self.epochs[p]) for p in partitions if self.epochs[p]]
        for partition, _ in pairs:
            self.lose(partition)
        try:
            await self._journal.release(pairs)
        except StoreError as error:
            log.warning("leases could not be released, they end by themselves: %s", error)

    def stop(self) -> None:
        for task in (self._task, self._next):
            if task is not None:
                task.cancel()
        self._task = self._next = None

    @property
    def lease_ms(self) -> int:
        return int(self._lease_s * 1000)

    def _valid(self, asked: float) -> float:
        return asked + self._lease_s - self._margin_s

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self.confirm()
            except StoreError as error:
                log.warning("the lease could not be renewed, trying again: %s", error)
            except Exception:
                log.exception("the lease was not renewed, by a bug, trying again")


def _seen(task: asyncio.Task[Any]) -> None:
    """A failure is told to whoever waits; when all of them have gone, to nobody."""
    if not task.cancelled():
        task.exception()
