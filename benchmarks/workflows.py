"""A workflow of three activities: how many a second, and how long one takes."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks import apps
from benchmarks.calls import serve_command
from benchmarks.driving import Drive, drive
from benchmarks.httpload import CONNECTIONS, Load, Request, run_script
from benchmarks.model import Benchmark, Sample, Series, Setting, Target, check, check_between
from benchmarks.peers import dbos, restate, temporal
from benchmarks.processes import free_port, server
from runtime_api import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN = [Request("POST", "/v1.0/mecha/workflows/three_steps/run", "0")]
START_AND_WAIT = [
    Request("POST", "/v1.0/workflows/dapr/three_steps/start?instanceID=%i", "0"),
    Request("GET", "/v1.0/mecha/workflows/%i/result"),
]
RESTATE = [Request("POST", "/ThreeSteps/run", "0")]
_PAGE = 1000


class Timed(Protocol):
    """What every load gives."""

    @property
    def rate(self) -> float: ...
    @property
    def p50_ms(self) -> float: ...
    @property
    def detail(self) -> str: ...


def drive_runtime(file: str, load: list[Any]) -> dict[str, Any]:
    """In this process; see `in_process`."""

    async def run() -> dict[str, Any]:
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:

            async def one() -> None:
                result = await runtime.workflows.run(apps.three_steps, 0)
                check("result of three steps", result, 3)

            return (await drive(itertools.repeat(one), *load))._asdict()

    return asyncio.run(run())


def in_process(setting: Setting, in_flight: int) -> Drive:
    file = setting.directory / "workflows.db"
    driven = Drive(**setting.apart(drive_runtime, file=str(file), load=[in_flight, setting.warm_up_s, setting.seconds]))
    check("workflows completed after reopening", asyncio.run(completed(file)), driven.made)
    return driven


def over_http(setting: Setting, script: list[Request], connections: int) -> Load:
    file, port = setting.directory / "workflows.db", free_port()
    with server(serve_command(file, port), port, setting.directory):
        warm_up = run_script(port, script, 1, setting.warm_up_s, connections)
        load = run_script(port, script, 1, setting.seconds, connections)
    made = warm_up.requests + load.requests
    check_between("workflows completed after reopening", asyncio.run(completed(file)), made, made + 2 * connections)
    return load


def restate_over_http(setting: Setting, connections: int) -> Load:
    with restate.serving(setting.directory) as port:
        run_script(port, RESTATE, 1, setting.peer_warm_up_s, connections)
        return run_script(port, RESTATE, 1, setting.seconds, connections)


async def completed(file: Path) -> int:
    """How many instances the file says are completed; the others may be there, but must not have failed."""
    found, after = 0, ""
    async with Runtime(apps, store=f"sqlite:///{file}") as runtime:
        check("failed workflows", await runtime.workflows.listing(statuses=("FAILED", "STALLED")), [])
        while page := await runtime.workflows.listing(statuses=("COMPLETED",), after=after, limit=_PAGE):
            found += len(page)
            after = page[-1].stream.partition("/")[2]
    return found


def _rate(measure: Callable[[Setting], Timed]) -> Callable[[Setting], Sample]:
    def measured(setting: Setting) -> Sample:
        found = measure(setting)
        return Sample(found.rate, found.detail)

    return measured


def _p50(measure: Callable[[Setting], Timed]) -> Callable[[Setting], Sample]:
    def measured(setting: Setting) -> Sample:
        found = measure(setting)
        return Sample(found.p50_ms, f"{found.rate:,.0f} a second")

    return measured


def _series(
    name: str, of: Callable[[Callable[[Setting], Timed]], Callable[[Setting], Sample]], in_flight: int
) -> Series:
    measures: dict[str, tuple[Callable[[Setting], Timed], bool]] = {
        _IN: (partial(in_process, in_flight=in_flight), False),
        _RUN: (partial(over_http, script=RUN, connections=in_flight), False),
        _WAIT: (partial(over_http, script=START_AND_WAIT, connections=in_flight), False),
        _RESTATE: (partial(restate_over_http, connections=in_flight), True),
        _DBOS: (partial(dbos.three_steps, in_flight=in_flight), True),
        _TEMPORAL: (partial(temporal.three_steps, in_flight=in_flight), True),
    }
    measure, peer = measures[name]
    return Series(name, of(measure), peer)


_IN, _RUN, _WAIT = "in process", "over HTTP, one request", "over HTTP, start, then wait"
_RESTATE, _DBOS, _TEMPORAL = "Restate, over HTTP", "DBOS, SQLite", "Temporal, SQLite"
_ALL = (_IN, _RUN, _WAIT, _RESTATE, _DBOS, _TEMPORAL)

RATE = Benchmark(
    name="workflows",
    question="How many workflows of three activities a second are started and awaited, 32 in flight?",
    unit="workflows/s",
    series=tuple(_series(name, _rate, CONNECTIONS) for name in _ALL),
    targets=(
        Target(_IN, ">=", 4, _RESTATE),
        Target(_IN, ">=", 30, _DBOS),
        Target(_RUN, ">=", 2.5, _RESTATE),
        Target(_WAIT, ">=", 2.5, _RESTATE),
    ),
)

LATENCY = Benchmark(
    name="workflow-latency",
    question="How long does a workflow of three activities take from start to result, one at a time (median)?",
    unit="ms",
    series=tuple(_series(name, _p50, 1) for name in _ALL),
    targets=(Target(_IN, "<=", 5), Target(_RUN, "<=", 5), Target(_WAIT, "<=", 5)),
)
