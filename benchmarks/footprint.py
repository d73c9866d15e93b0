"""What an activation costs: time to bring a dormant actor back, and memory to keep it."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.apps import Reading
from benchmarks.driving import spread
from benchmarks.model import Benchmark, Sample, Series, Setting, Target, check
from benchmarks.processes import apart
from runtime_api import Runtime
from statestores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_AT_A_TIME = 256
_EVENTS = 10


# -- these run in interpreters of their own --


def write_actors(file: str, count: int, events: int) -> dict[str, Any]:
    """Give `count` actors a history of so many events each."""

    async def run() -> dict[str, Any]:
        async with Runtime([Reading], store=f"sqlite:///{file}") as runtime:

            def turns() -> Iterator[Callable[[], Awaitable[object]]]:
                for number in range(count):
                    ref = runtime.actor(Reading, f"r{number}")
                    for event in range(events):
                        yield functools.partial(ref.record, f"sensor {number}", event / 7)

            await spread(turns(), _AT_A_TIME)
            return {}

    return asyncio.run(run())


def time_activations(file: str, count: int, events: int) -> dict[str, Any]:
    """Call each of `count` dormant actors once, one at a time."""

    async def run() -> dict[str, Any]:
        async with Runtime([Reading], store=f"sqlite:///{file}") as runtime:
            times = []
            for number in range(count):
                ref = runtime.actor(Reading, f"r{number}")
                begin = time.perf_counter()
                found = await ref.show()
                times.append(time.perf_counter() - begin)
                check("events counted", found, events)
            check("activations", runtime.actors.active_counts()["Reading"], count)
            return {"p50_ms": statistics.median(times) * 1000, "p99_ms": statistics.quantiles(times, n=100)[98] * 1000}

    return asyncio.run(run())


def weigh_activations(file: str, count: int) -> dict[str, Any]:
    """Memory of this process before any activation, with all of them idle, with none again, and after another round.

    Before the first weighing all actors have been activated and made dormant once, a few at a time: so what is made at
    its first use is in all of them, and the interpreter holds no free memory that activations could hide in. What the
    store keeps of its file is in none: SQLite drops it whenever another connection has written, and each lease that is
    renewed is a write.
    """

    async def run() -> dict[str, Any]:
        store = SqliteStore(file)
        async with Runtime([Reading], store=store) as runtime:

            async def activate(numbers: range) -> None:
                await spread((runtime.actor(Reading, f"r{number}").show for number in numbers), _AT_A_TIME)

            def make_dormant() -> None:
                for activation in tuple(runtime.host.activations.values()):
                    activation.deactivate()

            async def weigh() -> int:
                for use in (store.read, store.run_writer):
                    await use(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall())
                return resident_bytes()

            for first in range(0, count, _AT_A_TIME):
                await activate(range(first, min(first + _AT_A_TIME, count)))
                make_dormant()
            before = await weigh()
            await activate(range(count))
            held = runtime.actors.active_counts()["Reading"]
            idle = await weigh()
            make_dormant()
            left = runtime.actors.active_counts()["Reading"]
            dormant = await weigh()
            await activate(range(count))
            make_dormant()
            return {
                **{"before": before, "idle": idle, "dormant": dormant, "again": await weigh()},
                **{"held": held, "left": left},
            }

    return asyncio.run(run())


def resident_bytes() -> int:
    """After everything that is free has been given back."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- measured from outside --


def _activation(setting: Setting) -> Sample:
    file, count = str(setting.directory / "actors.db"), setting.size(5000, 50)
    setting.apart(write_actors, file=file, count=count, events=_EVENTS)
    result = setting.apart(time_activations, file=file, count=count, events=_EVENTS)
    return Sample(result["p50_ms"], f"p99 {result['p99_ms']:.2f} ms, {count:,} actors of {_EVENTS} events")


def _weigh(setting: Setting) -> dict[str, Any]:
    file, count = str(setting.directory / "actors.db"), setting.size(200_000, 500)
    setting.apart(write_actors, file=file, count=count, events=1)
    result = apart(weigh_activations, file=file, count=count)
    check("activations held", result["held"], count)
    check("activations left", result["left"], 0)
    return {**result, "count": count}


def _memory(setting: Setting) -> Sample:
    result = _weigh(setting)
    idle, left = ((result[at] - result["before"]) / result["count"] for at in ("idle", "dormant"))
    growth = (result["again"] - result["dormant"]) / result["count"]
    told = f"{left:.0f} bytes each not given back when all are dormant, {growth:+.0f} after another round"
    return Sample(idle / 1024, told)


ACTIVATION = Benchmark(
    name="activation",
    question="How long does a call take that has to bring a dormant actor back (median, one at a time)?",
    unit="ms",
    series=(Series("call of a dormant actor", _activation),),
    targets=(Target("call of a dormant actor", "<=", 1),),
)

MEMORY = Benchmark(
    name="memory",
    question="How much memory does an idle activation of a three-field actor keep, 200,000 of them?",
    unit="KiB",
    series=(Series("idle activation", _memory),),
    targets=(Target("idle activation", "<=", 3),),
)
