"""Callers from outside are answered later while there is no room for what their turn has sent.

Who feeds in a closed loop is slowed down to what can be delivered, so that a backlog is bounded by the number of
callers. Nothing that is delivered waits for such an answer, and none waits for long: room may depend on who waits here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_S = 1.0


class Pacing:
    """Answers that wait for room, by what it is for (see `Room`)."""

    def __init__(self, is_free: Callable[[str], bool]) -> None:
        self._is_free = is_free
        self._waiting: dict[str, tuple[asyncio.TimerHandle, list[Callable[[], None]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, of: str, answer: Callable[[], None], deadline: float | None) -> None:
        """Call back when there is room, or when a moment has passed; and once more, perhaps. Before the deadline, on
        the loop's clock, in any case: who is told that it has passed, though his turn is durable, makes another one."""
        loop = asyncio.get_running_loop()
        if of not in self._waiting:
            self._waiting[of] = loop.call_later(_LONGEST_S, self._end, of), []
        self._waiting[of][1].append(answer)
        if deadline is not None and (left_s := deadline - loop.time()) < 2 * _LONGEST_S:
            loop.call_later(left_s / 2, answer)

    def offer(self) -> None:
        """There may be more room."""
        for of in tuple(self._waiting):
            if of in self._waiting and self._is_free(of):  # an answer may have ended other waits
                self._end(of)

    def end(self) -> None:
        """Nobody waits any longer."""
        while self._waiting:
            self._end(next(iter(self._waiting)))

    def _end(self, of: str) -> None:
        timer, answers = self._waiting.pop(of)
        timer.cancel()  # or it would end the next wait too early
        for answer in answers:
            answer()
