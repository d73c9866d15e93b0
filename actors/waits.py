"""Who waits for whom: the graph in which a deadlock is a cycle.

An edge from A to B stands while a turn of A awaits a call to B. A call that has to queue behind a running turn is
checked first: if the actor it queues at waits, through others, for the caller, then neither can ever go on, and the
call fails at once, naming the chain. Only calls that would wait are checked, so the common call pays one list append
and removal.

On a cluster an edge is known to the host that makes the call and to the one that is asked; `actors.placement.cycles`
finds the cycles that lead over more than these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Waits:
    def __init__(self) -> None:
        self._edges: dict[str, list[str]] = {}

    def add(self, waiting: str, target: str) -> None:
        self._edges.setdefault(waiting, []).append(target)

    def remove(self, waiting: str, target: str) -> None:
        targets = self._edges[waiting]
        targets.remove(target)
        if not targets:
            del self._edges[waiting]

    def targets(self, waiting: str) -> Sequence[str]:
        return self._edges.get(waiting, ())

    def cycle(self, caller: str, target: str) -> tuple[str, ...] | None:
        """The cycle that `caller` waiting for `target` would close, from `caller` back to `caller`; None if it closes
        none."""
        paths: list[tuple[str, ...]] = [(target,)]
        seen = {target}
        while paths:
            path = paths.pop()
            if path[-1] == caller:
                return (caller, *path)
            for following in self._edges.get(path[-1], ()):
                if following not in seen:
                    seen.add(following)
                    paths.append((*path, following))
        return None
