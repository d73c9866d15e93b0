"""Who waits for whom: the graph in which a deadlock is a cycle.

An edge from A to B stands while a turn of A awaits a call to B. A call that has to queue behind a running turn is
checked first: if the actor it queues at waits, through others, for the caller, then neither can ever go on, and the
call fails at once, naming the chain. Only calls that would wait are checked, so the common call pays one entry of a
dictionary and its removal, however many others its turn awaits.

On a cluster an edge is known to the host that makes the call and to the one that is asked; `actors.placement.cycles`
finds the cycles that lead over more than these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from actors.message import Call


class Waits:
    def __init__(self) -> None:
        # By who waits: the calls it awaits, and their targets.
        self._edges: dict[str, dict[Call, str]] = {}

    def add(self, call: Call) -> None:
        """`call.waiter` awaits it, until `remove`."""
        self._edges.setdefault(call.waiter, {})[call] = call.stream

    def remove(self, call: Call) -> None:
        awaited = self._edges[call.waiter]
        del awaited[call]
        if not awaited:
            del self._edges[call.waiter]

    def targets(self, waiting: str) -> Collection[str]:
        awaited = self._edges.get(waiting)
        return () if awaited is None else awaited.values()

    def cycle(self, caller: str, target: str) -> tuple[str, ...] | None:
        """The cycle that `caller` waiting for `target` would close, from `caller` back to `caller`; None if it closes
        none."""
        paths: list[tuple[str, ...]] = [(target,)]
        seen = {target}
        while paths:
            path = paths.pop()
            if path[-1] == caller:
                return (caller, *path)
            for following in self.targets(path[-1]):
                if following not in seen:
                    seen.add(following)
                    paths.append((*path, following))
        return None
