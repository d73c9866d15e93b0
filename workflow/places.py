"""Where a plain activity runs that asks for nothing: small ones here, in a thread; large ones elsewhere.

    here ── mean of its processor time above AWAY_ABOVE_S ──▶ elsewhere
      ◀──────────────── below BACK_BELOW_S ─────────────────

A task elsewhere costs a few milliseconds. What computes for much longer than that gains a processor of its own, and
leaves the interpreter to the host, which has one for everything. What waits (for a socket, a disk) uses no processor,
however long it takes, and stays. Between the two limits an activity stays where it is, so it does not move to and fro.

Only a measurement tells: nothing in a function's code says how long it will compute. So the first ones of a name run
here. The mean is of the latest few, since the same code may get other data.

Pure, and of one host: what others have measured it finds out by itself. Used on one event loop, so without locks.
"""

from __future__ import annotations

AWAY_ABOVE_S = 0.025
BACK_BELOW_S = 0.010
_WEIGHT = 0.25


class Places:
    """By name of the activity."""

    def __init__(self) -> None:
        self._means_s: dict[str, float] = {}
        self._away: set[str] = set()

    def is_away(self, name: str) -> bool:
        """Whether the next one of that name runs elsewhere."""
        return name in self._away

    def measured(self, name: str, busy_s: float) -> None:
        """One has ended, wherever it ran, and has used a processor so long."""
        mean_s = self._means_s.get(name, busy_s)
        self._means_s[name] = mean_s = mean_s + _WEIGHT * (busy_s - mean_s)
        if mean_s > AWAY_ABOVE_S:
            self._away.add(name)
        elif mean_s < BACK_BELOW_S:
            self._away.discard(name)
