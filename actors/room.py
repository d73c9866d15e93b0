"""How many messages, and how much work, a host may have in flight, and how that is shared out.

Messages have room of their own, and so has work, which may take days and must not hold them up. A receiver takes at
most an eighth of what all the others leave, so that those that are stuck leave some to the rest. (The first fifteen:
the next ones take a part that is fixed, so that no more than `_SHARES` are full, and seven of them the last of it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.message import Envelope

# Posted work under way at once, on one host.
_MOST_WORK = 10_000
# A receiver's share of what the others leave is one part in so many: enough for full batches.
_PARTS = 8
# It is no less than one part in so many of all the room for messages. So no more receivers than that are full at a
# time: each has backlogs of its own, to be scanned.
_SHARES = 64
# What room is for, if not for one receiver, whose stream has a slash.
ALL = "all"
MESSAGES = "messages"
WORK = "work"


class Room:
    """What it is for is given by a name: `ALL`, `MESSAGES`, `WORK`, or a receiver's stream."""

    __slots__ = ("_messages", "_most", "_taken", "_working")

    def __init__(self, most_messages: int) -> None:
        self._most = most_messages
        self._messages = 0
        self._working = 0
        self._taken: dict[str, int] = {}

    def take(self, envelope: Envelope) -> None:
        if envelope.is_work:
            self._working += 1
        else:
            self._messages += 1
            self._taken[envelope.stream] = self._taken.get(envelope.stream, 0) + 1

    def give_back(self, envelope: Envelope) -> None:
        if envelope.is_work:
            self._working -= 1
            return
        self._messages -= 1
        stream = envelope.stream
        self._taken[stream] -= 1
        if not self._taken[stream]:
            del self._taken[stream]

    def is_any_for(self, of: str) -> bool:
        return self._left(of)[0] > 0

    def is_ample_for(self, of: str) -> bool:
        """Enough to be worth a scan: half of it is free."""
        left, limit = self._left(of)
        return left > 0 and 2 * left >= limit

    def is_scant_for(self, of: str) -> bool:
        """Some, but not ample."""
        left, limit = self._left(of)
        return 0 < 2 * left < limit

    def lacking(self, envelope: Envelope) -> str | None:
        """What there is no room in for this. None: it may be begun."""
        if envelope.is_work:
            return WORK if self._working >= _MOST_WORK else None
        if self._messages >= self._most:
            return MESSAGES
        return None if self.is_any_for(envelope.stream) else envelope.stream

    def _left(self, of: str) -> tuple[int, int]:
        """How many more may be begun, and how many may be in flight at all."""
        if of == ALL:  # a scan goes past whatever has none
            return 1, 1
        if of == WORK:
            return _MOST_WORK - self._working, _MOST_WORK
        free = self._most - self._messages
        if of == MESSAGES:
            return free, self._most
        taken = self._taken.get(of, 0)
        share = max((free + taken) // _PARTS, self._most // _SHARES, 1)
        return min(free, share - taken), share
