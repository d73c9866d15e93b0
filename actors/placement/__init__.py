"""Where an actor lives. The protocol that `actors.placement.local` and a cluster's placement share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from actors.message import Call


class Placement(Protocol):
    def submit(self, call: Call) -> None:
        """Bring a call to the host that owns its stream's partition. Never raises, never blocks: `call.future` gets the
        answer or the error. A call that cannot have been applied is routed again by itself while its deadline
        allows."""


__all__ = ["Placement"]
