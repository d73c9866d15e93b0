"""Random programs over actors and workflows of a cluster, while it is hurt; at the end everything is exactly right.

    python -m tests.e2e.verifier --programs 100000 --seed 7

A program is made from the seed, and so is what every counter must be after it (see `verifier_app`). Each is sent with
an idempotency key, or an instance id of its own, until it is answered. So whatever is lost, or done twice, shows.

Values that are set are checked where the order makes it possible: within a turn, since turns do not interleave, and in
a workflow, which has a key of its own on one actor and does one thing after the other.

Faults, one at a time, all drawn from the seed (when they come is not):

    kill         a host's process, by SIGKILL
    freeze       a host, by SIGSTOP, for 1 to 8 s, which is longer than its lease or not
    controller   the controller's process, by SIGKILL
    redis        the store, by SIGKILL; it is started again with what is on its disk
    answers      for a moment the store does what it is asked and nobody hears of it, then all connections to it break;
                 or those of clients to hosts do, with what was asked by them
    raylet       that of a node, by SIGKILL: its host lives on as a zombie for a while. Another node is added, and the
                 zombie is buried

The last one wants a Ray of several nodes, whose start takes twenty seconds, and each new one of which takes three of
the processor. So the short form, in `test_ray_cluster.py`, is without it; this program has it, unless `--faults` says
otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.e2e.clusters import ClusterProcess, Connection, hosts_of, pid_of_controller
from tests.raynodes import RayNodes
from tests.servers import RedisServer, Relay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

APP = Path(__file__).with_name("verifier_app.py")
ACTORS = 50
# Those that a cluster on one node can have.
FAULTS = ("kill", "freeze", "controller", "redis", "answers")
ALL_FAULTS = (*FAULTS, "raylet")
# Of Ray, beside the head: so two are there while one is dead.
NODES = 2
_WORKERS = 32
_CALM_S = 2.0
_SETTLE_S = 120.0
_BURIAL_S = 30.0
# Of so many workflows one leaves its value behind.
_KEPT = 20


@dataclass
class Model:
    """What must be there in the end, by actor."""

    counters: Counter[str] = field(default_factory=Counter)
    # At most so much.
    maybes: Counter[str] = field(default_factory=Counter)
    kept: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def faults_of(self, actor: str, shown: dict[str, Any]) -> list[str]:
        """What is not as it must be, in words: [] if nothing."""
        found = list(shown["wrong"])
        if shown["counter"] != self.counters[actor]:
            found.append(f"counter is {shown['counter']}, must be {self.counters[actor]}")
        if shown["maybe"] > self.maybes[actor]:
            found.append(f"timers have counted to {shown['maybe']}, there were {self.maybes[actor]}")
        if shown["kept"] != self.kept[actor]:
            found.append(f"values are {shown['kept']}, must be {self.kept[actor]}")
        return found

    def is_beyond(self, actor: str, shown: dict[str, Any]) -> bool:
        """Waiting can only make it worse."""
        too_much = shown["counter"] > self.counters[actor] or shown["maybe"] > self.maybes[actor]
        return too_much or bool(shown["wrong"]) or shown["kept"] != self.kept[actor]


@dataclass
class Maker:
    """Programs, and what they must do to the actors."""

    rng: random.Random
    model: Model = field(default_factory=Model)

    def steps(self, layer: int, actor: str, depth: int, *, plain: bool = False) -> list[Any]:
        """A program for that actor, one turn of it. `plain`: nothing that waits for others."""
        # What keys hold that this turn has used: nobody else can have changed them since.
        known: dict[str, int | None] = {}
        return [self._step(layer, actor, depth, plain, known) for _ in range(self.rng.randint(1, 3))]

    def workflow(self, number: int) -> list[Any]:
        """Steps of all kinds, and among them, in this order, what is done to a key of its own."""
        made = [self._workflow_step() for _ in range(self.rng.randint(1, 4))]
        ordered = list(self._conversation(number))
        places = sorted(self.rng.randint(0, len(made)) for _ in ordered)
        for place, step in zip(reversed(places), reversed(ordered), strict=True):
            made.insert(place, step)
        return made

    def some(self) -> str:
        return f"a{self.rng.randrange(ACTORS)}"

    def _step(self, layer: int, actor: str, depth: int, plain: bool, known: dict[str, int | None]) -> list[Any]:
        kinds = ["inc", "inc", "set", "get", "clear", "soon"]
        if layer < 2 and depth < 3 and not plain:
            kinds += ["call", "fail", "send", "later"]
        elif layer < 2 and depth < 3:
            kinds += ["send"]
        kind = self.rng.choice(kinds)
        if kind == "inc":
            self.model.counters[f"Layer{layer}/{actor}"] += 1
            return [kind]
        if kind in ("set", "get", "clear"):
            return self._use_value(kind, f"k{self.rng.randrange(3)}", known)
        if kind == "soon":
            self.model.maybes[f"Layer{layer}/{actor}"] += 1
            return [kind, self.rng.randint(1, 200), [["maybe"]]]
        if kind == "later":
            return [kind, self.rng.randint(1, 200), self.steps(layer, actor, depth + 1, plain=True)]
        target = self.some()
        if kind == "fail":
            return [kind, target, self._undone()]
        return [kind, target, self.steps(layer + 1, target, depth + 1)]

    def _use_value(self, kind: str, key: str, known: dict[str, int | None]) -> list[Any]:
        if kind == "get":
            return [kind, key, known[key]] if key in known else [kind, key]
        if kind == "clear":
            known[key] = None
            return [kind, key]
        known[key] = value = self.rng.randrange(1 << 20)
        return [kind, key, value]

    def _undone(self) -> list[Any]:
        """Of a turn that fails."""
        return [self.rng.choice([["inc"], ["set", "k0", -1], ["clear", "k0"]]) for _ in range(self.rng.randint(1, 3))]

    def _workflow_step(self) -> list[Any]:
        kind = self.rng.choice(["call", "send", "step", "sleep"])
        if kind == "step":
            return [kind, self.rng.choice([0, 0, 1, 2])]
        if kind == "sleep":
            return [kind, self.rng.randint(1, 30)]
        layer, target = self.rng.randrange(3), self.some()
        return [kind, f"Layer{layer}/{target}", self.steps(layer, target, 1)]

    def _conversation(self, number: int) -> Iterator[list[Any]]:
        actor, key, value = f"Layer{self.rng.randrange(1, 3)}/{self.some()}", f"w{number}", self.rng.randrange(1 << 20)
        yield ["call", actor, [["get", key, None], ["set", key, value], ["get", key, value]]]
        yield ["fail", actor, [["set", key, -1], ["inc"]]]
        yield ["call", actor, [["get", key, value]]]
        if self.rng.randrange(_KEPT) == 0:
            self.model.kept[actor][key] = value
            return
        yield ["call", actor, [["clear", key]]]
        yield ["call", actor, [["get", key, None]]]


class Victim(NamedTuple):
    """A cluster that runs `verifier_app`, and what it stands on."""

    port: int
    redis: RedisServer
    # By which hosts reach it.
    relay: Relay
    # On which hosts run, when those can be hurt.
    nodes: RayNodes | None


@contextlib.contextmanager
def victim(faults: Sequence[str] = FAULTS, *options: str) -> Iterator[Victim]:
    """One that can be hurt in these ways."""
    with contextlib.ExitStack() as stack:
        # With everysec a server that is killed may have answered what it has not even written: it puts that off while
        # it fsyncs.
        redis = stack.enter_context(RedisServer(aof="always"))
        relay = stack.enter_context(Relay(redis.port))
        nodes = stack.enter_context(RayNodes(NODES)) if "raylet" in faults else None
        joined = ("--ray-address", nodes.address, "--hosts-per-node", "1", "--spares", "0") if nodes else ()
        cluster = stack.enter_context(ClusterProcess(APP, relay.url, *joined, *options))
        yield Victim(cluster.port, redis, relay, nodes)


@dataclass
class Verifier:
    victim: Victim
    seed: int
    programs: int
    faults: Sequence[str] = FAULTS
    in_flight: int = _WORKERS
    done: int = 0
    retries: int = 0
    hurt: Counter[str] = field(default_factory=Counter)
    connections: list[Connection] = field(default_factory=list)

    async def run(self) -> dict[str, list[str]]:
        """What is wrong, by actor."""
        maker = Maker(random.Random(self.seed))
        todo = self._todo(maker)
        begun = time.monotonic()
        nemesis = asyncio.create_task(self.trouble())
        try:
            await asyncio.gather(*(self._work(todo) for _ in range(self.in_flight)))
        finally:
            nemesis.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await nemesis
        self.seconds = time.monotonic() - begun
        return await self._compare(maker.model)

    def _todo(self, maker: Maker) -> Iterator[tuple[int, str, list[Any]]]:
        """Number, the actor that it is for ("": a workflow), program."""
        for number in range(self.programs):
            if number % 5 == 4:
                yield number, "", maker.workflow(number)
            else:
                actor = maker.some()
                yield number, actor, maker.steps(0, actor, 0)

    async def _work(self, todo: Iterator[tuple[int, str, list[Any]]]) -> None:
        connection = Connection(self.victim.port)
        self.connections.append(connection)
        for number, actor, program in todo:
            body = json.dumps(program).encode()
            name = f"p{self.seed}-{number}"
            if actor:
                await connection.insist("POST", f"/v1.0/actors/Layer0/{actor}/method/run", body, key=name)
            else:
                await self._start(connection, name, body, delay_ms=number % 3 * 50)
            self.done += 1
            if self.done % 5000 == 0:
                print(f"{self.done} programs, faults {dict(self.hurt)}", file=sys.stderr)
        self.retries += len(connection.failures)
        connection.close()

    async def _start(self, connection: Connection, name: str, body: bytes, delay_ms: int) -> None:
        """A repeated start finds its instance, and waits for the same end."""
        delay = f"&start={delay_ms}ms" if delay_ms else ""
        path = f"/v1.0/workflows/dapr/verify/start?instanceID={name}{delay}"
        await connection.insist("POST", path, body, key=name)
        while True:
            shown = await connection.insist("GET", f"/v1.0/mecha/workflows/{name}/result?timeout=2s")
            if shown["runtimeStatus"] == "COMPLETED":
                return
            if shown["runtimeStatus"] not in ("RUNNING", "PENDING"):
                raise AssertionError(f"workflow {name}: {shown}")

    # -- faults -------------------------------------------------------------------------------------------------------

    async def trouble(self) -> None:
        """Hurt the cluster, for ever. Cancel it to stop."""
        rng = random.Random(self.seed + 1)
        try:
            while self.faults:
                await asyncio.sleep(rng.uniform(0.5, 1.5) * _CALM_S)
                kind = rng.choice(self.faults)
                self.hurt[kind] += 1
                await self._hurt(kind, rng)
        except Exception as error:  # whoever runs this would see no more than that nothing is hurt any more
            print(f"seed {self.seed}: the trouble is over: {error!r}", file=sys.stderr)
            raise

    async def _hurt(self, kind: str, rng: random.Random) -> None:
        if kind == "redis":
            await asyncio.to_thread(self.victim.redis.restart)
        elif kind == "controller":
            pid = await pid_of_controller(self.victim.port)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        elif kind == "answers":
            await self._lose_answers(rng)
        elif kind == "raylet":
            await self._lose_raylet(rng)
        else:
            hosts = await hosts_of(self.victim.port)
            serving = [host for host in hosts if host["owned"]]
            if len(hosts) > 1 and serving:
                await self._hurt_host(rng.choice(serving)["pid"], kind, rng.uniform(1, 8))

    async def _lose_answers(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            for connection in self.connections:
                connection.close()
            return
        self.victim.relay.drop_answers()  # not in a thread: a cancelled one might do it after the end
        try:
            await asyncio.sleep(rng.uniform(0.05, 1.0))
        finally:
            self.victim.relay.cut()

    async def _lose_raylet(self, rng: random.Random) -> None:
        """None of what lived there is left behind."""
        nodes = self.victim.nodes
        assert nodes is not None
        hosts = await hosts_of(self.victim.port)
        node = rng.choice(nodes.workers)
        zombies = [host["pid"] for host in hosts if host["node"] == node]
        nodes.kill_raylet(node)
        try:
            await asyncio.sleep(rng.uniform(1, 12))
            await asyncio.to_thread(nodes.add)
        finally:
            await asyncio.to_thread(nodes.bury, node)
            for pid in zombies:
                await self._see_end(pid)

    async def _see_end(self, pid: int) -> None:
        """It ends itself when its raylet is not only dead but buried. One that does not would be there for ever."""
        give_up = time.monotonic() + _BURIAL_S
        while is_there(pid):
            if time.monotonic() > give_up:
                self.hurt["zombies that had to be killed"] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return
            await asyncio.sleep(0.1)

    async def _hurt_host(self, pid: int, kind: str, frozen_s: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            if kind == "kill":
                os.kill(pid, signal.SIGKILL)
                return
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(frozen_s)
            finally:
                os.kill(pid, signal.SIGCONT)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _compare(self, model: Model) -> dict[str, list[str]]:
        """Messages and reminders may be under way for a while; then nothing may be wrong any more. Too much is wrong at
        once."""
        give_up = time.monotonic() + _SETTLE_S
        connection = Connection(self.victim.port)
        unsure = [f"Layer{layer}/a{n}" for layer in range(3) for n in range(ACTORS)]
        found: dict[str, list[str]] = {}
        while unsure and time.monotonic() < give_up:
            found = {}
            for actor in unsure:
                shown = await connection.insist("POST", f"/v1.0/actors/{actor}/method/look")
                if faults := model.faults_of(actor, shown):
                    found[actor] = faults
                if model.is_beyond(actor, shown):
                    give_up = 0.0
            unsure = list(found)
            await asyncio.sleep(0.2 if unsure else 0)
        connection.close()
        return found


def is_there(pid: int) -> bool:
    """Running: one that has ended and that nobody has asked about may be listed for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def verify(programs: int, seed: int, faults: Sequence[str] = FAULTS) -> str:
    """One line that says what was done. Raises `AssertionError` that names whatever is wrong."""
    with victim(faults, "--lease", "3s") as hurt:
        verifier = Verifier(hurt, seed, programs, faults)
        wrong = asyncio.run(verifier.run())
        rate = verifier.done / verifier.seconds
        line = (
            f"seed {seed}: {verifier.done} programs in {verifier.seconds:.0f} s ({rate:.0f}/s), faults "
            f"{dict(verifier.hurt)}, {verifier.retries} requests repeated, {len(wrong)} actors wrong"
        )
        assert not wrong, f"{line}: {wrong}"
        return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--faults", default=",".join(ALL_FAULTS), help="of " + ", ".join(ALL_FAULTS))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    try:
        print(verify(given.programs, given.seed, [f for f in given.faults.split(",") if f]))
    except AssertionError as error:
        sys.exit(f"WRONG {error}")
