"""Random programs over actors and workflows of a cluster, while it is hurt; at the end every counter is exactly right.

    python -m tests.e2e.verifier --programs 100000 --seed 7

A program is made from the seed, and so is what every counter must be after it (see `verifier_app`). Each is sent with
an idempotency key, or an instance id of its own, until it is answered. So whatever is lost, or done twice, shows.
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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.clusters import ClusterProcess, Connection, Failed, hosts_of, pid_of_controller
from tests.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Sequence

APP = Path(__file__).with_name("verifier_app.py")
ACTORS = 50
FAULTS = ("kill", "freeze", "controller", "redis")
_WORKERS = 32
_CALM_S = 2.0
_SETTLE_S = 120.0

Model = Counter[str]


@dataclass
class Maker:
    """Programs, and what they must do to the counters."""

    rng: random.Random
    model: Model = field(default_factory=Counter)

    def steps(self, layer: int, actor: str, depth: int, *, counted: bool, plain: bool = False) -> list[Any]:
        """A program for that actor. `counted`: its effects remain. `plain`: nothing that waits for others."""
        return [self._step(layer, actor, depth, counted, plain) for _ in range(self.rng.randint(1, 3))]

    def workflow(self) -> list[Any]:
        made: list[Any] = []
        for _ in range(self.rng.randint(1, 4)):
            kind = self.rng.choice(["call", "send", "step", "sleep"])
            if kind in ("call", "send"):
                target = self._some()
                made.append([kind, target, self.steps(0, target, 1, counted=True)])
            elif kind == "step":
                made.append([kind, self.rng.choice([0, 0, 1, 2])])
            else:
                made.append([kind, self.rng.randint(1, 30)])
        return made

    def _step(self, layer: int, actor: str, depth: int, counted: bool, plain: bool) -> list[Any]:
        kinds = ["inc", "inc", "set", "get", "clear"]
        if layer < 2 and depth < 3 and not plain:
            kinds += ["call", "fail", "send", "later"]
        elif layer < 2 and depth < 3:
            kinds += ["send"]
        kind = self.rng.choice(kinds)
        if kind == "inc":
            if counted:
                self.model[f"Layer{layer}/{actor}"] += 1
            return [kind]
        if kind == "set":
            return [kind, f"k{self.rng.randrange(3)}", self.rng.randrange(100)]
        if kind in ("get", "clear"):
            return [kind, f"k{self.rng.randrange(3)}"]
        target = self._some()
        if kind == "later":
            return [kind, self.rng.randint(1, 200), self.steps(layer, actor, depth + 1, counted=counted, plain=True)]
        if kind == "fail":
            return [kind, target, [["inc"]] * self.rng.randint(1, 3)]
        return [kind, target, self.steps(layer + 1, target, depth + 1, counted=counted)]

    def _some(self) -> str:
        return f"a{self.rng.randrange(ACTORS)}"


@dataclass
class Verifier:
    port: int
    redis: RedisServer
    seed: int
    programs: int
    faults: Sequence[str] = FAULTS
    in_flight: int = _WORKERS
    done: int = 0
    retries: int = 0
    hurt: Counter[str] = field(default_factory=Counter)

    async def run(self) -> dict[str, tuple[int, int]]:
        """Counters that are wrong: (what it is, what it must be) by actor."""
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

    def _todo(self, maker: Maker) -> Any:
        for number in range(self.programs):
            if number % 5 == 4:
                yield number, "", maker.workflow()
            else:
                actor = maker._some()
                yield number, actor, maker.steps(0, actor, 0, counted=True)

    async def _work(self, todo: Any) -> None:
        connection = Connection(self.port)
        for number, actor, program in todo:
            body = json.dumps(program).encode()
            name = f"p{self.seed}-{number}"
            if actor:
                await connection.insist("POST", f"/v1.0/actors/Layer0/{actor}/method/run", body, key=name)
            else:
                await self._start(connection, name, body)
            self.done += 1
        self.retries += len(connection.failures)
        connection.close()

    async def _start(self, connection: Connection, name: str, body: bytes) -> None:
        """A repeated start finds its instance, and waits for the same end."""
        with contextlib.suppress(Failed):
            await connection.insist("POST", f"/v1.0/workflows/dapr/verify/start?instanceID={name}", body, key=name)
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
        while self.faults:
            await asyncio.sleep(rng.uniform(0.5, 1.5) * _CALM_S)
            kind = rng.choice(self.faults)
            self.hurt[kind] += 1
            if kind == "redis":
                await asyncio.to_thread(self.redis.restart)
            elif kind == "controller":
                pid = await pid_of_controller(self.port)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            else:
                hosts = await hosts_of(self.port)
                serving = [host for host in hosts if host["owned"]]
                if len(hosts) > 1 and serving:
                    await self._hurt_host(rng.choice(serving)["pid"], kind, rng.uniform(1, 8))

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

    async def _compare(self, model: Model) -> dict[str, tuple[int, int]]:
        """Messages and reminders may be under way for a while; then nothing may be wrong any more. Too much is wrong at
        once."""
        give_up = time.monotonic() + _SETTLE_S
        connection = Connection(self.port)
        wrong = dict.fromkeys(f"Layer{layer}/a{n}" for layer in range(3) for n in range(ACTORS))
        found: dict[str, tuple[int, int]] = {}
        while wrong and time.monotonic() < give_up:
            found = {}
            for actor in list(wrong):
                count = await connection.insist("POST", f"/v1.0/actors/{actor}/method/count")
                if count != model[actor]:
                    found[actor] = (count, model[actor])
                if count > model[actor]:
                    return found
            wrong = dict.fromkeys(found)
            await asyncio.sleep(0.2 if wrong else 0)
        connection.close()
        return found


def verify(programs: int, seed: int, faults: Sequence[str] = FAULTS, *options: str) -> str:
    """One line that says what was done. Raises `AssertionError` that names every wrong counter."""
    with RedisServer(aof="everysec") as redis, ClusterProcess(APP, redis.url, "--lease", "3s", *options) as cluster:
        verifier = Verifier(cluster.port, redis, seed, programs, faults)
        wrong = asyncio.run(verifier.run())
        rate = verifier.done / verifier.seconds
        line = (
            f"seed {seed}: {verifier.done} programs in {verifier.seconds:.0f} s ({rate:.0f}/s), faults "
            f"{dict(verifier.hurt)}, {verifier.retries} requests repeated, {len(wrong)} counters wrong"
        )
        assert not wrong, f"{line}: (is, must be) {wrong}"
        return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--faults", default=",".join(FAULTS), help="of " + ", ".join(FAULTS))
    given = parser.parse_args()
    try:
        print(verify(given.programs, given.seed, [f for f in given.faults.split(",") if f]))
    except AssertionError as error:
        sys.exit(f"WRONG {error}")
