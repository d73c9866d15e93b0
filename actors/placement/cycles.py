"""Deadlocks of which no host sees all: the calls of a cycle run over several hosts, each from a chain of its own.

A host knows who waits for whom (`actors.waits`) as far as it makes the call or is asked it. A call that has stood in a
mailbox for a while is followed from there, along what its actor waits for; where the way leaves this host, a *probe*
goes after it, with the path so far (edge chasing: Chandy, Misra and Haas, 1983). One that comes to the caller it began
with has found a cycle, and says so to the host where it began:

    host 1: X -> Y stands, Y -> Z is asked of host 2     host 2: Z -> W is asked of host 3     host 3: W -> X
        ("probe", (id of Y -> Z, 1, n, (X, Y, Z)))  ────▶  (id of Z -> W, 1, n, (X, Y, Z, W))  ────▶
        ◀───────────────────────────────────────────────────────  ("cycle", (n, (X, Y, Z, W, X)))

Where every way of a cycle leads through calls that stand, the last of them that came to stand finds it at once: all
the others were there. Nobody else need look often.

Is what was found still so? Edges are seen one after the other, but a turn that waits has stood still since it began to:
that it waits for this very call is seen where that call has arrived, by its id, so nothing before it on the path has
moved either. Only a caller that gives up (a deadline, a cancellation) in the time a probe travels can have broken the
cycle unseen; then a call fails that would have had its turn.

Who is to fail? All calls that stand in a cycle may find it, and one failure is enough. The callers have an order, their
names': who is n-th of them fails when it has found the cycle n times, by which time the ones before it have.

Probes may be lost; the next ones are not. A host of a release that does not know them lets them pass, and what leads
over it ends by its deadline, as does what only a host sees that is frozen.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from actors.errors import Deadlock

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from actors.host import Host
    from actors.message import Call
    from actors.placement.hop import Item

# The id of the call it has come with; whose it is, by host and number; callers from the first one to the last target.
Probe: TypeAlias = tuple[str, str, int, tuple[str, ...]]

_LONGEST_PAUSE_S = 8.0


class _Standing:
    """A call of a turn, in a mailbox. `number`: of its last probes."""

    __slots__ = ("call", "finds", "next_s", "number", "pause_s")

    def __init__(self, call: Call, next_s: float, pause_s: float) -> None:
        self.call, self.next_s, self.pause_s = call, next_s, pause_s
        self.number = 0
        self.finds = 0


class Chaser:
    """Of one host. `put(peer, item)` sends. `pause_s`: how long a call stands before it is followed.

    No method awaits, so what is known of the calls is consistent."""

    def __init__(self, host: Host, name: str, put: Callable[[str, Item], None], pause_s: float) -> None:
        self._host, self._name, self._put, self._pause_s = host, name, put, pause_s
        self._standing: list[_Standing] = []
        self._followed: dict[int, _Standing] = {}
        self._numbers = 0
        # Calls that were asked of peers, by who waits for them and their id: (target, peer).
        self._away: dict[str, dict[str, tuple[str, str]]] = {}
        # Probes seen since the last look: many ways may lead to one actor.
        self._seen: set[tuple[str, int, str]] = set()

    def stands(self, call: Call) -> None:
        """The call has had to queue."""
        self._standing.append(_Standing(call, asyncio.get_running_loop().time() + self._pause_s, self._pause_s))

    def went(self, call: Call, peer: str) -> None:
        assert call.hop is not None
        if call.waiter:
            self._away.setdefault(call.waiter, {})[call.hop] = call.stream, peer

    def came_back(self, call: Call) -> None:
        """It was answered, or given up."""
        away = self._away.get(call.waiter)
        if away is not None and call.hop is not None:
            away.pop(call.hop, None)
            if not away:
                del self._away[call.waiter]

    def look(self) -> None:
        """Follow what has stood long enough. Called now and then."""
        self._seen.clear()
        if not self._standing:
            return
        now_s = asyncio.get_running_loop().time()
        for standing in self._standing:
            if _may_stand(standing.call) and now_s >= standing.next_s:
                standing.pause_s = min(2 * standing.pause_s, _LONGEST_PAUSE_S)
                standing.next_s = now_s + standing.pause_s
                self._followed.pop(standing.number, None)
                self._numbers += 1
                standing.number = self._numbers
                self._followed[standing.number] = standing
                call = standing.call
                self._follow(self._name, standing.number, (call.waiter, call.stream))
        for standing in self._standing:
            if not _may_stand(standing.call):
                self._followed.pop(standing.number, None)
        self._standing = [standing for standing in self._standing if _may_stand(standing.call)]

    def probed(self, sender: str, probe: Probe, serving: Container[tuple[str, str]]) -> None:
        """A probe has come. `serving`: the calls that are under way here, by who asked, and id."""
        call_id, origin, number, path = probe
        if (sender, call_id) in serving and (origin, number, path[-1]) not in self._seen:
            self._seen.add((origin, number, path[-1]))
            self._follow(origin, number, path)

    def found(self, number: int, chain: tuple[str, ...]) -> None:
        """One of our probes has come back to where it began."""
        standing = self._followed.get(number)
        if standing is None or not self._stands_still(standing.call):
            return
        del self._followed[number]  # one find a round
        standing.finds += 1
        if standing.finds > sorted(set(chain)).index(chain[0]):
            self._host.fail(standing.call, Deadlock(chain))
        else:
            standing.pause_s = self._pause_s
            standing.next_s = asyncio.get_running_loop().time() + self._pause_s

    def _follow(self, origin: str, number: int, path: tuple[str, ...]) -> None:
        """From the end of the path along everything that is waited for there, as far as this host knows."""
        caller, paths, seen = path[0], [path], set(path[1:])
        while paths:
            path = paths.pop()
            for following in self._host.waits.targets(path[-1]):
                if following == caller:
                    self._tell(origin, number, (*path, caller))
                    return
                if following not in seen:
                    seen.add(following)
                    paths.append((*path, following))
            for call_id, (target, peer) in self._away.get(path[-1], {}).items():
                if target not in path:
                    self._put(peer, ("probe", (call_id, origin, number, (*path, target))))

    def _tell(self, origin: str, number: int, chain: tuple[str, ...]) -> None:
        if origin == self._name:
            self.found(number, chain)
        else:
            self._put(origin, ("cycle", (number, chain)))

    def _stands_still(self, call: Call) -> bool:
        """Certain that its turn has not begun. One that runs without a task leaves no mark but that it is not in the
        mailbox any more."""
        activation: Any = self._host.activations.get(call.stream)
        if activation is None or not _may_stand(call):
            return False
        assert call.method is not None
        return not call.method.inline or call in (activation.mailbox or ())


def _may_stand(call: Call) -> bool:
    return call.turn is None and not call.future.done()
