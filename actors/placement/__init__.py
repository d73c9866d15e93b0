"""Where an actor lives. The protocol that `actors.placement.local` and `actors.placement.cluster` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.message import Call


class Placement(Protocol):
    @property
    def submit(self) -> Callable[[Call], None]:
        """Bring a call to the host that owns its stream's partition. Never raises, never blocks: `call.future` gets the
        answer or the error. A call that cannot have been applied is routed again by itself while its deadline
        allows."""

    @property
    def lacks(self) -> bool:
        """Whether this host is without partitions that are its own to have: it refuses calls of their actors."""

    async def start(self) -> None:
        """Own what this host owns from its beginning. Raises `StoreError`."""

    async def drain(self) -> None:
        """Return when every answer this host has given has left it."""

    def stop(self) -> None:
        """The host has stopped, or crashed: let go of everything."""


__all__ = ["Placement"]
