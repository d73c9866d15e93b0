"""How much one answer may hold that is put together of several values.

Each value came in a request of its own, of limited length; an answer with many of them has no limit by nature, however
short the request for it. So values are read a few at a time, and what is more than an answer may have is left for the
next page, or refused where there are no pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors import ActorClient
    from statestores import Event

VALUES_AT_ONCE = 16
"""Values that are read together. An answer may be as long as so many request bodies, of the longest there may be."""

LINE_BYTES = 200
"""What a line of an answer costs beside its key and value, about."""


async def read_events(
    actors: ActorClient, actor_type: str, actor_id: str, *, after: int, limit: int, most_bytes: int
) -> tuple[list[Event], bool]:
    """A page of a history, and whether there may be more. It has one event at least, when there is one, and otherwise
    no more than `most_bytes`. Raises `StoreError`."""
    found: list[Event] = []
    size = 0
    while len(found) < limit:
        wanted = min(VALUES_AT_ONCE, limit - len(found))
        events = await actors.history(actor_type, actor_id, after=after, limit=wanted)
        for event in events:
            size += LINE_BYTES + len(event.data)
            if found and size > most_bytes:
                return found, True
            found.append(event)
        if len(events) < wanted:
            return found, False
        after = events[-1].version
    return found, True
