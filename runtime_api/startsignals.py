"""SIGTERM and SIGINT while something starts, before an event loop listens for them."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType
    from typing import Self

_STOPS = (signal.SIGTERM, signal.SIGINT)


class StartSignals:
    """Inside ``with``, both end the start by a `KeyboardInterrupt`, at once where that is possible, else at the next
    `check`. Used on the main thread.

    What a handler raises does not always arrive: Python drops it in callbacks after a fork and in finalizers, and Ray
    sets handlers of its own while it starts. So Python is told to note the number of each signal in a pipe as well
    (`signal.set_wakeup_fd`), which it does whoever handles it; until an event loop does that for itself."""

    def __enter__(self) -> Self:
        self._noted, self._notes = os.pipe()
        for end in (self._noted, self._notes):
            os.set_blocking(end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._notes, warn_on_full_buffer=False)
        self._before = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._noted)
        os.close(self._notes)

    def take_back(self) -> None:
        """From whoever has set a handler of its own meanwhile."""
        signal.signal(signal.SIGTERM, _interrupt)
        self.check()

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if a signal has come, also one that was lost."""
        noted = b""
        with contextlib.suppress(BlockingIOError):
            noted = os.read(self._noted, 4096)
        if any(number in noted for number in _STOPS):
            raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
