"""Placement without a cluster: one host owns all partitions.

Starting it takes every partition over. A living owner is not robbed: we wait for its lease to end. An owner that ran on
this machine and whose process is gone (`kill -9`) is taken over at once, so a restart after a crash does not wait. A
mistake in that judgement would let the other host answer old reads until its lease ends (INV-7), never record anything:
the epoch decides (INV-2, INV-3).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from actors.placement.owners import is_gone
from statestores.errors import LeaseHeld, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.host import Host
    from actors.message import Call
    from statestores.model import Ownership

log = logging.getLogger(__name__)

_GRACE_MS = 200


class StoreInUse(StoreError):
    """Another living host owns this store."""


class LocalPlacement:
    def __init__(self, host: Host) -> None:
        self._host = host
        # The way to an actor's host is a function call here: bound once, as it is on the path of every turn.
        self.submit: Callable[[Call], None] = host.submit

    async def drain(self) -> None:
        """Answers here are futures: they leave at once."""

    def stop(self) -> None:
        """Nothing is held but what the host holds."""

    async def start(self) -> None:
        """Own every partition. Raises `StoreInUse` when the present owner keeps its lease alive."""
        everything = range(len(self._host.epochs))
        waited_for = ""
        while True:
            try:
                await self._host.ownership.acquire(everything, force=False)
                return
            except LeaseHeld as held:
                holder = held.holder
            if is_gone(holder.owner):
                await self._host.ownership.end_leases_of(holder.owner)
                continue
            marker = f"{holder.owner}:{holder.epoch}"
            if marker == waited_for:
                raise StoreInUse(
                    f"this store is in use by {holder.owner}, which keeps renewing its lease: stop it, or use "
                    f"another store"
                )
            waited_for = marker
            await self._wait_out(holder)

    async def _wait_out(self, holder: Ownership) -> None:
        remaining_s = max(0, holder.lease_until_ms - self._host.clock.now_ms() + _GRACE_MS) / 1000
        log.warning("waiting %.1f s for the lease of %s", remaining_s, holder.owner)
        await asyncio.sleep(remaining_s)
