"""What runtimes change of their interpreter while they run: `runtime_api.collector` and `runtime_api.switching`."""

from __future__ import annotations

import threading

from runtime_api import collector, switching


class Tuning:
    """The first runtime that starts changes the interpreter, the last one that stops puts back what was found. With a
    lock, since each runtime may have a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._former: tuple[tuple[int, int, int], float] = (0, 0, 0), 0.0

    def begin(self) -> None:
        with self._lock:
            if self._users == 0:
                self._former = collector.collect_rarely(), switching.switch_often()
            self._users += 1

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                thresholds, interval_s = self._former
                collector.restore(thresholds)
                switching.restore(interval_s)


TUNING = Tuning()
"""There is one interpreter: whatever counts its users has to be one, too."""
