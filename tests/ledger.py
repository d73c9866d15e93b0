"""An actor that shows what was recorded twice, or under which names: for tests of zombies."""

from __future__ import annotations

import asyncio

from actors import actor, event, method


@actor
class Ledger:
    """Whose history is who added to it."""

    total: int = 0

    @event
    def added(self, name: str) -> None:
        self.total += 1

    @method
    async def add(self, name: str) -> int:
        self.added(name)
        return self.total

    @method
    async def add_slowly(self, name: str, seconds: float) -> int:
        """A turn that a host may be in the middle of when it loses the actor."""
        before = self.total
        await asyncio.sleep(seconds)
        self.added(name)
        assert self.total == before + 1
        return self.total
