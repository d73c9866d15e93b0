"""Time, passed in. Waiting is always the running event loop's, so a loop with simulated time simulates everything."""

from __future__ import annotations

import asyncio
import time
from time import time_ns  # by name: `time.time_ns` may be a workflow's guard just now
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall-clock time in milliseconds since the Unix epoch: what is written down, and shown to people."""

    def monotonic(self) -> float:
        """Seconds that never jump: leases and deadlines are measured with it."""


class SystemClock:
    def now_ms(self) -> int:
        return time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class LoopClock:
    """The running loop's time as both clocks, from a given start: for simulations and time-travel tests."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = start_ms

    def now_ms(self) -> int:
        return self._start_ms + int(asyncio.get_running_loop().time() * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()
