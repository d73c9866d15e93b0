"""What all instances in one process share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from workflow.history import ACTOR_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from workflow.definition import Workflow
    from workflow.orders import Order
    from workflow.payloads import Keeper

_RECHECK_S = 30.0


class Deployment:
    """The code, who waits here for the end of which instance, and who does activities: `begin(marker, orders,
    redelivered)`, `cancel(orders)`."""

    def __init__(
        self,
        workflows: Mapping[str, Workflow[Any, Any]],
        begin: Callable[[str, Sequence[Order], bool], None],
        cancel: Callable[[Sequence[Order]], None],
        *,
        evict_always: bool,
        keeper: Keeper | None = None,
    ) -> None:
        self.workflows = workflows
        self.begin = begin
        self.cancel = cancel
        # None: the store has no place for large values, and they are recorded like small ones.
        self.keeper = keeper
        self.evict_always = evict_always
        self.waiters: dict[str, list[asyncio.Future[str]]] = {}
        # Errors of ours that made turns of an instance fail: not for ever. They are not the instance's, of which a turn
        # that fails after it has recorded something leaves nothing.
        self.poison: dict[str, list[str]] = {}

    async def wait_told(self, instance_id: str) -> str:
        """What is shown of the instance once it has ended or stalled here. "" after a while without that: ask again,
        it may have moved to another host. For an instance that is here and going on."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        queue = self.waiters.setdefault(instance_id, [])
        queue.append(future)
        recheck = loop.call_later(_RECHECK_S, _give_up, future)
        try:
            return await future
        finally:
            recheck.cancel()
            if self.waiters.get(instance_id) is queue:  # it was not told
                queue.remove(future)
                if not queue:
                    del self.waiters[instance_id]

    def release(self, lost: Callable[[str], bool] | None = None) -> None:
        """The host has stopped, or lost the streams for which `lost` is true: nobody will be told of them here."""
        for instance_id in {*self.waiters, *self.poison}:
            if lost is None or lost(f"{ACTOR_TYPE}/{instance_id}"):
                self.tell(instance_id, "")

    def tell(self, instance_id: str, shown: str) -> None:
        """The instance has ended or stalled, durably."""
        self.poison.pop(instance_id, None)
        for future in self.waiters.pop(instance_id, ()):
            if not future.done():
                future.set_result(shown)


def _give_up(future: asyncio.Future[str]) -> None:
    if not future.done():
        future.set_result("")
