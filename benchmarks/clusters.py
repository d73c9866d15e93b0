"""Hosts on Ray, a store on Redis, everything on this machine: rates, hops, fail-over, start.

Every cluster is made for its measurement, by ``mecha run --placement ray``, with two hosts that serve and one spare
unless said otherwise, and a Redis of its own with AOF, fsynced every second. Counters are added up at the end, as
everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import signal
import statistics
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]  # has no types

from benchmarks.calls import KEYS
from benchmarks.httpload import Request
from benchmarks.model import Benchmark, Sample, Series, Setting, Target, check, check_between
from benchmarks.processes import free_port, server
from statestores.model import partition_of
from tests.e2e.clusters import Connection
from tests.servers import RedisServer
from workflow.history import ACTOR_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 64
HOPS_IN_FLIGHT = 256
LEASE_S = 3
_MILLION = 1 << 20
_WATCHED = 32
_CALM_S = 2.0
_AFTER_S = 6.0
# Without a spare host: a process has to be started, with all that it loads.
_AFTER_COLD_S = 25.0
_WARM_ROUNDS = 3
_ROUNDS = 5


class Cluster:
    """A running one. `started_s`: from the command to the first answer of an actor."""

    def __init__(self, port: int, started_s: float) -> None:
        self.port, self.started_s = port, started_s

    def hosts(self) -> list[dict[str, Any]]:
        return list(self._asked("GET", "/v1.0/mecha/cluster")["hosts"])

    def serving(self) -> list[dict[str, Any]]:
        return [host for host in self.hosts() if host["owned"]]

    def add(self, key: str, amount: int) -> int:
        return int(self._asked("POST", f"/v1.0/actors/Counter/{key}/method/add", str(amount)))

    def call(self, path: str, body: Any) -> Any:
        return self._asked("POST", path, json.dumps(body))

    def _asked(self, verb: str, path: str, body: str = "") -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body.encode() or None, method=verb)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    @property
    def memory(self) -> int:
        """Unique bytes of all processes that belong to it: hosts, the controller, Ray."""
        total = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any("ray" in part or "_HostActor" in part for part in process.cmdline()[:2]):
                    total += process.memory_full_info().uss
        return total


@contextlib.contextmanager
def cluster(setting: Setting, hosts: int = 2, spares: int = 1) -> Iterator[Cluster]:
    port = free_port()
    options = ["--placement", "ray", "--port", str(port), "--lease", f"{LEASE_S}s"]
    options += ["--hosts", str(hosts), "--spares", str(spares)]
    with RedisServer(aof="everysec") as redis:
        command = [sys.executable, "-m", "runtime_api.cli", "run", "benchmarks.apps", "--store", redis.url, *options]
        begun = time.perf_counter()
        with server(command, port, setting.directory):
            made = Cluster(port, 0.0)
            made.add("first", 0)
            made.started_s = time.perf_counter() - begun
            shares = [32 // hosts] * hosts
            while [len(host["owned"]) for host in made.serving()] != shares or len(made.hosts()) < hosts + spares:
                time.sleep(0.05)
            yield made


def over_http(setting: Setting) -> Sample:
    request = Request("POST", "/v1.0/actors/Counter/k%d/method/add", "1")
    with cluster(setting) as made:
        warm = setting.loader.run(made.port, request, KEYS, setting.warm_up_s, CONNECTIONS)
        load = setting.loader.run(made.port, request, KEYS, setting.seconds, CONNECTIONS)
        found = sum(made.add(f"k{key}", 0) for key in range(KEYS))
    answered = warm.requests + load.requests
    check_between("sum of all counters", found, answered, answered + 2 * CONNECTIONS)
    return Sample(load.rate, load.detail)


def hops(setting: Setting) -> Sample:
    """Two actors, one on each host, each with half of the calls in flight to counters of the other host."""
    with cluster(setting, spares=setting.size(1, 0)) as made:
        one, two = made.serving()
        driven = [_driver_on(one), _driver_on(two)]
        targets = [_counters_on(two, "a"), _counters_on(one, "b")]
        orders = [(driven[0], targets[0]), (driven[1], targets[1])]
        _drive(made, orders, setting.warm_up_s)
        rate = _drive(made, orders, setting.seconds)
    return Sample(rate, f"{HOPS_IN_FLIGHT} in flight, each call durable")


def _drive(made: Cluster, orders: list[tuple[str, list[str]]], seconds: float) -> float:
    """Calls a second; every one of them is in the counters afterwards."""

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(
                asyncio.to_thread(made.call, f"/v1.0/actors/Caller/{name}/method/drive", [ids, seconds])
                for name, ids in orders
            )
        )

    before = sum(made.add(key, 0) for _, ids in orders for key in ids)
    begun = time.perf_counter()
    answered: int = sum(asyncio.run(all_of_them()))
    elapsed_s = time.perf_counter() - begun
    check("sum of all counters", sum(made.add(key, 0) for _, ids in orders for key in ids) - before, answered)
    return answered / elapsed_s


def _driver_on(host: dict[str, Any]) -> str:
    return _ids_on(host, "Caller", "d", 1)[0]


def _counters_on(host: dict[str, Any], prefix: str) -> list[str]:
    return _ids_on(host, "Counter", prefix, HOPS_IN_FLIGHT // 2)


def _ids_on(host: dict[str, Any], actor_type: str, prefix: str, count: int) -> list[str]:
    found: list[str] = []
    number = 0
    while len(found) < count:
        if str(partition_of(f"{actor_type}/{prefix}{number}", host["partitions"])) in host["owned"]:
            found.append(f"{prefix}{number}")
        number += 1
    return found


def gap_after(setting: Setting, number: int, hosts: int = 2, spares: int = 1, after_s: float = _AFTER_S) -> Sample:
    """The longest time between two answers of any actor of the host that gets the signal, in ms. Each is called by one
    caller over a connection of its own, under a key, again until it is answered."""
    with cluster(setting, hosts, spares) as made:
        victim = made.serving()[0]
        keys = _ids_on(victim, "Counter", "g", _WATCHED)
        try:
            gaps, calls = asyncio.run(_watch(made, keys, victim["pid"], number, after_s))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim["pid"], signal.SIGCONT)
        check("sum of all counters", sum(made.add(key, 0) for key in keys), calls)
    return Sample(max(gaps) * 1000, f"{calls:,} calls, {_WATCHED} actors watched, all exact")


async def _watch(made: Cluster, keys: list[str], pid: int, number: int, after_s: float) -> tuple[list[float], int]:
    end = time.monotonic() + _CALM_S + after_s
    made_calls = 0

    async def watch(key: str) -> float:
        nonlocal made_calls
        connection = Connection(made.port, answer_s=0.5)
        last, longest, count = time.monotonic(), 0.0, 0
        while time.monotonic() < end:
            await connection.insist("POST", f"/v1.0/actors/Counter/{key}/method/add", b"1", key=f"{key}-{count}")
            now = time.monotonic()
            last, longest, count = now, max(longest, now - last), count + 1
            await asyncio.sleep(0.005)
        connection.close()
        made_calls += count
        return longest

    async def hurt() -> None:
        await asyncio.sleep(_CALM_S)
        os.kill(pid, number)

    *gaps, _ = await asyncio.gather(*(watch(key) for key in keys), hurt())
    return [gap for gap in gaps if gap is not None], made_calls


def fan_out(setting: Setting, workflow: str, place: str, width: int) -> Sample:
    """Seconds from the start of such a workflow to its result, on each host in turn. Before that, each host has had
    some: of activities that are measured it knows where they belong, and processes that tasks run in are there."""
    rounds = setting.size(_ROUNDS, 1)
    with cluster(setting) as made:
        first, second = made.serving()
        count = _WARM_ROUNDS + rounds
        ids = zip(_ids_on(first, ACTOR_TYPE, "f", count), _ids_on(second, ACTOR_TYPE, "s", count), strict=True)
        taken_s = []
        for each in itertools.chain.from_iterable(ids):
            begun = time.perf_counter()
            shown = made.call(f"/v1.0/mecha/workflows/{workflow}/run?instanceID={each}", [place, width])
            taken_s.append(time.perf_counter() - begun)
            check("activities of the workflow", shown["output"], width)
    timed = taken_s[2 * _WARM_ROUNDS :]
    return Sample(statistics.mean(timed), f"{width} at once; {min(timed):.3f} to {max(timed):.3f} s")


def _in_places(name: str, workflow: str, full: int, quick: int) -> tuple[Series, ...]:
    def measure(setting: Setting, place: str) -> Sample:
        return fan_out(setting, workflow, place, setting.size(full, quick))

    return tuple(
        Series(f"{name}, {place}", functools.partial(measure, place=place)) for place in ("here", "spread", "auto")
    )


def start(setting: Setting) -> Sample:
    with cluster(setting) as made:
        return Sample(made.started_s, f"{made.memory / _MILLION:.0f} MiB of all its processes")


RATE = Benchmark(
    name="cluster-http",
    question="How many durable calls a second do two hosts on Ray answer over HTTP, 1,000 keys, 64 connections?",
    unit="calls/s",
    series=(Series("two hosts, Redis everysec", over_http),),
    targets=(Target("two hosts, Redis everysec", ">=", 5000),),
)
HOPS = Benchmark(
    name="cluster-hops",
    question="How many calls a second do actors of one host make to actors of another, 256 in flight?",
    unit="calls/s",
    series=(Series("between two hosts", hops),),
    targets=(Target("between two hosts", ">=", 10_000),),
)
GAPS = Benchmark(
    name="cluster-gaps",
    question="How long is the longest silence of any actor when its host is hurt under load?",
    unit="ms",
    series=(
        Series("kill -9", lambda setting: gap_after(setting, signal.SIGKILL)),
        Series("frozen (SIGSTOP)", lambda setting: gap_after(setting, signal.SIGSTOP)),
    ),
    targets=(Target("kill -9", "<=", 2000), Target("frozen (SIGSTOP)", "<=", (LEASE_S + 1) * 1000)),
)
SPARES = Benchmark(
    name="cluster-spares",
    question="How long is the longest silence when the only host that serves is killed under load, with a spare host"
    " beside it and without?",
    unit="ms",
    series=(
        Series("warm: one spare", lambda setting: gap_after(setting, signal.SIGKILL, 1, 1)),
        Series("cold: none", lambda setting: gap_after(setting, signal.SIGKILL, 1, 0, _AFTER_COLD_S)),
    ),
    # What a published runtime of functions reached by prewarmed pools (from 5 s without).
    targets=(Target("warm: one spare", "<=", 1000), Target("cold: none", "<=", 5000)),
)
PLACES = Benchmark(
    name="cluster-places",
    question="How long does a workflow take that fans out to 200 tiny activities, or to 16 that compute for 100 ms"
    " each, by the place of its activities?",
    unit="s",
    series=(*_in_places("tiny", "greet_all", 200, 20), *_in_places("heavy", "grind_all", 16, 4)),
    # Within a tenth of the better of the two.
    targets=tuple(
        Target(f"{name}, auto", "<=", 1.10, f"{name}, {place}")
        for name in ("tiny", "heavy")
        for place in ("here", "spread")
    ),
)
START = Benchmark(
    name="cluster-start",
    question="How long does a local cluster take from the command to the first answer of an actor?",
    unit="s",
    series=(Series("Ray, controller, two hosts, one spare", start),),
    targets=(Target("Ray, controller, two hosts, one spare", "<=", 8),),
)
