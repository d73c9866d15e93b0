"""Coming back: after `kill -9` with many unfinished workflows, and to one with a very long history."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import apps
from benchmarks.apps import GATE
from benchmarks.driving import spread
from benchmarks.model import Benchmark, Sample, Series, Setting, Target, check
from benchmarks.processes import ROOT, WrongResult, environment
from benchmarks.workflows import completed
from runtime_api import Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_AT_A_TIME = 256
_PER_ROUND = 50


# -- these run in interpreters of their own --


def leave_unfinished(file: str, count: int) -> None:
    """Start `count` workflows and die. As many as a host runs activities at a time are at the closed gate, the others
    on the way there."""

    async def run() -> None:
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:

            async def one(number: int) -> None:
                await runtime.workflows.start(apps.gated, number, instance_id=f"w{number}")

            await spread((functools.partial(one, number) for number in range(count)), _AT_A_TIME)
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def resume_all(file: str, count: int) -> dict[str, Any]:
    """Open the gate: seconds from the start of the runtime until the last workflow has been loaded, has recorded the
    result of the activity it was interrupted in, and has begun its next step; and until the last one has ended."""

    async def run() -> dict[str, Any]:
        begin = time.perf_counter()
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:
            started = time.perf_counter()
            while len(apps.passed) < count:  # noqa: ASYNC110  # a step that told of itself would be measured with it
                await asyncio.sleep(0.01)
            resumed = time.perf_counter()
            results = await asyncio.gather(*(runtime.workflows.wait(f"w{number}") for number in range(count)))
            ended = time.perf_counter()
        check("results", results, [number + 1 for number in range(count)])
        return {"start_s": started - begin, "resumed_s": resumed - begin, "ended_s": ended - begin}

    return asyncio.run(run())


def write_history(file: str, rounds: int) -> dict[str, Any]:
    """One workflow with a history of 100 recorded events per round, that waits for one more."""

    async def run() -> dict[str, Any]:
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:
            await runtime.workflows.start(apps.long_history, rounds, instance_id="long")
            ticks: Iterator[Callable[[], Awaitable[object]]] = iter(
                [lambda: runtime.workflows.raise_event("long", "tick", 1)] * (rounds * _PER_ROUND)
            )
            await spread(ticks, _AT_A_TIME)
            # All events are recorded. Wait for the activities, too, so that only the last event is missing.
            expected = 1 + 2 * rounds * _PER_ROUND
            recorded = 0
            while not recorded:  # polled, before the measurement: nothing tells that a history has grown
                recorded = len(await runtime.workflows.history("long", after=expected - 1))
                await asyncio.sleep(0.05)
            return {"events": expected - 1 + recorded}

    return asyncio.run(run())


def resume_long(file: str, total: int) -> dict[str, Any]:
    """Seconds from the event that wakes the workflow until it has ended, with nothing of it in memory before."""

    async def run() -> dict[str, Any]:
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:
            begin = time.perf_counter()
            await runtime.workflows.raise_event("long", "end", 1)
            result = await runtime.workflows.wait("long")
            seconds = time.perf_counter() - begin
        check("sum of the steps", result, total)
        return {"seconds": seconds}

    return asyncio.run(run())


# -- measured from outside --


def _restart(setting: Setting) -> Sample:
    file, count = str(setting.directory / "restart.db"), setting.size(10_000, 50)
    code = f"from benchmarks.recovery import leave_unfinished; leave_unfinished({file!r}, {count})"
    died = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(**{GATE: "closed"}), capture_output=True, check=False
    )
    if died.returncode != -signal.SIGKILL:
        raise WrongResult(f"the first process did not get to its end: {died.stderr.decode()[-2000:]}")
    result = setting.apart(resume_all, file=file, count=count)
    check("workflows completed after reopening", asyncio.run(completed(Path(file))), count)
    detail = "{start_s:.2f} s of it until the runtime has started; the last one has ended after {ended_s:.2f} s"
    return Sample(result["resumed_s"], detail.format(**result))


def _long_history(setting: Setting) -> Sample:
    file, rounds = str(setting.directory / "long.db"), setting.size(1000, 5)
    written = setting.apart(write_history, file=file, rounds=rounds)
    result = setting.apart(resume_long, file=file, total=2 * rounds * _PER_ROUND + 1)
    return Sample(result["seconds"], f"{written['events']:,} events")


RESTART = Benchmark(
    name="restart",
    question="After kill -9 with 10,000 unfinished workflows: how long until the last of them has taken its next step?",
    unit="s",
    series=(Series("last of 10,000 workflows", _restart),),
    targets=(Target("last of 10,000 workflows", "<=", 5),),
)

LONG_HISTORY = Benchmark(
    name="long-history",
    question="How long until a workflow with a history of 100,000 events, none of it in memory, takes its next step?",
    unit="s",
    series=(Series("workflow of 100,000 events", _long_history),),
    targets=(Target("workflow of 100,000 events", "<=", 1),),
)
