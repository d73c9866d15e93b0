"""Closed loops in this process: keep so many under way, until the time or the work is over."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Drive(NamedTuple):
    """`made` counts the warm-up, too; the rest does not. Times per operation."""

    made: int
    rate: float
    p50_ms: float
    cpu_us: float

    @property
    def detail(self) -> str:
        return f"p50 {self.p50_ms:.2f} ms, {self.cpu_us:.0f} µs of CPU each"


async def drive(
    operations: Iterator[Callable[[], Awaitable[object]]], in_flight: int, warm_up_s: float, seconds: float
) -> Drive:
    """Make one operation after the other; a new one as soon as one has ended."""
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    made = 0
    latencies: list[float] = []
    cpu_s: float | None = None

    async def work() -> None:
        nonlocal made, cpu_s
        now = time.perf_counter()
        while now < end:
            if cpu_s is None and now >= begin:
                cpu_s = time.process_time()
                latencies.clear()
            started = now
            await next(operations)()
            made += 1
            now = time.perf_counter()
            latencies.append(now - started)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    elapsed_s, cpu_s = time.perf_counter() - begin, time.process_time() - (cpu_s or 0.0)
    return Drive(made, len(latencies) / elapsed_s, statistics.median(latencies) * 1000, cpu_s / len(latencies) * 1e6)


async def spread(operations: Iterator[Callable[[], Awaitable[object]]], in_flight: int) -> float:
    """Make all of them, `in_flight` at a time. Returns the seconds until the last has ended."""
    begin = time.perf_counter()

    async def work() -> None:
        for operation in operations:
            await operation()

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return time.perf_counter() - begin
