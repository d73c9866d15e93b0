"""Durable calls of actors: over HTTP, and in process."""

from __future__ import annotations

import asyncio
import itertools
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import ceiling
from benchmarks.apps import Counter
from benchmarks.driving import Drive, drive
from benchmarks.httpload import CONNECTIONS, Load, Request
from benchmarks.model import Benchmark, Sample, Series, Setting, Target, check, check_between
from benchmarks.peers import restate
from benchmarks.processes import free_port, server
from runtime_api import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = 1000
IN_FLIGHT = 256
_CALL = Request("POST", "/v1.0/actors/Counter/k%d/method/add", "1")


# -- over HTTP
# -------------------------------------------------------------------------------------------------------------


def _load_counted(
    setting: Setting, port: int, request: Request, keys: int, warm_up_s: float | None = None
) -> tuple[Load, int]:
    """The measured load, and how many calls were answered including the warm-up's."""
    warm_up = setting.loader.run(port, request, keys, warm_up_s or setting.warm_up_s)
    load = setting.loader.run(port, request, keys, setting.seconds)
    return load, warm_up.requests + load.requests


def serve_command(store: Path, port: int, target: str = "benchmarks.apps") -> list[str]:
    options = ["--store", f"sqlite:///{store}", "--port", str(port), "--app-id", "bench"]
    return [sys.executable, "-m", "runtime_api.cli", "run", target, *options]


def over_http(setting: Setting, keys: int) -> Sample:
    file, port = setting.directory / "calls.db", free_port()
    with server(serve_command(file, port, "benchmarks.apps:Counter"), port, setting.directory):
        load, answered = _load_counted(setting, port, _CALL, keys)
    _check_total(asyncio.run(_recorded_sum(file, keys)), answered)
    return Sample(load.rate, load.detail)


def ceiling_over_http(setting: Setting, keys: int) -> Sample:
    file, port = setting.directory / "sketch.db", free_port()
    command = [sys.executable, "-m", "benchmarks.ceiling", str(file), str(port)]
    with server(command, port, setting.directory):
        load, answered = _load_counted(setting, port, Request("POST", "/add/k%d", "1"), keys)
    _check_total(ceiling.recorded_sum(str(file)), answered)
    return Sample(load.rate, load.detail)


def restate_over_http(setting: Setting) -> Sample:
    with restate.serving(setting.directory) as port:
        request = Request("POST", "/Counter/k%d/add", "1")
        load, answered = _load_counted(setting, port, request, KEYS, setting.peer_warm_up_s)
        _check_total(sum(restate.counter(port, f"k{key}") for key in range(KEYS)), answered)
    return Sample(load.rate, load.detail)


def _check_total(recorded: int, answered: int) -> None:
    """What was under way when a load ended may have been recorded, too: at most one call per connection and load."""
    check_between("sum of all counters after reopening", recorded, answered, answered + 2 * CONNECTIONS)


async def _recorded_sum(file: Path, keys: int) -> int:
    async with Runtime([Counter], store=f"sqlite:///{file}") as runtime:
        return sum(
            [
                found[1]["value"]
                for key in range(keys)
                if (found := await runtime.actors.state("Counter", f"k{key}")) is not None
            ]
        )


# -- in process --


def drive_runtime(file: str, keys: int, load: list[Any]) -> dict[str, Any]:
    """In this process; see `in_process`."""

    async def run() -> dict[str, Any]:
        async with Runtime([Counter], store=f"sqlite:///{file}") as runtime:
            counters = [partial(runtime.actor(Counter, f"k{key}").add, 1) for key in range(keys)]
            return (await drive(itertools.cycle(counters), *load))._asdict()

    return asyncio.run(run())


def drive_ceiling(file: str, keys: int, load: list[Any]) -> dict[str, Any]:
    """In this process; see `ceiling_in_process`."""

    async def run() -> dict[str, Any]:
        counters = ceiling.Counters(file)
        try:
            adds = [partial(counters.add, f"k{key}", 1) for key in range(keys)]
            return (await drive(itertools.cycle(adds), *load))._asdict()
        finally:
            await counters.close()

    return asyncio.run(run())


def in_process(setting: Setting, keys: int) -> Sample:
    file = setting.directory / "calls.db"
    driven = _driven(drive_runtime, setting, file, keys)
    check("sum of all counters after reopening", asyncio.run(_recorded_sum(file, keys)), driven.made)
    return Sample(driven.rate, driven.detail)


def ceiling_in_process(setting: Setting, keys: int) -> Sample:
    file = setting.directory / "sketch.db"
    driven = _driven(drive_ceiling, setting, file, keys)
    check("sum of all counters after reopening", ceiling.recorded_sum(str(file)), driven.made)
    return Sample(driven.rate, driven.detail)


def _driven(function: Callable[..., dict[str, Any]], setting: Setting, file: Path, keys: int) -> Drive:
    load = [IN_FLIGHT, setting.warm_up_s, setting.seconds]
    return Drive(**setting.apart(function, file=str(file), keys=keys, load=load))


# -- the questions --

_HTTP, _HTTP_HOT, _HTTP_SKETCH = "1,000 keys", "one hot actor", "bare sketch, 1,000 keys"
_IN, _IN_HOT, _IN_SKETCH = "1,000 actors", "one hot actor", "bare sketch, 1,000 keys"

HTTP_CALLS = Benchmark(
    name="http-calls",
    question="How many durable actor calls a second does one server process answer over HTTP, 32 connections?",
    unit="calls/s",
    series=(
        Series(_HTTP, lambda setting: over_http(setting, KEYS)),
        Series(_HTTP_HOT, lambda setting: over_http(setting, 1)),
        Series(_HTTP_SKETCH, lambda setting: ceiling_over_http(setting, KEYS)),
        Series("Restate, 1,000 keys", restate_over_http, peer=True),
    ),
    targets=(
        Target(_HTTP, ">=", 0.75, _HTTP_SKETCH),
        Target(_HTTP, ">=", 8, "Restate, 1,000 keys"),
        Target(_HTTP_HOT, ">=", 0.9, _HTTP),
    ),
)

CALLS = Benchmark(
    name="calls",
    question="How many durable turns a second run in process, 256 in flight?",
    unit="calls/s",
    series=(
        Series(_IN, lambda setting: in_process(setting, KEYS)),
        Series(_IN_HOT, lambda setting: in_process(setting, 1)),
        Series(_IN_SKETCH, lambda setting: ceiling_in_process(setting, KEYS)),
        Series("bare sketch, one key", lambda setting: ceiling_in_process(setting, 1)),
    ),
    targets=(Target(_IN, ">=", 0.45, _IN_SKETCH), Target(_IN_HOT, ">=", 1, _IN)),
)
