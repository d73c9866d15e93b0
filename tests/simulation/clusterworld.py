"""A whole cluster in a simulated world: hosts, supervisor and store on nodes of their own, which freeze and die."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from actors import Host, LoopClock
from actors.hostneeds import NOTHING
from actors.placement.cluster import ClusterPlacement
from actors.placement.hop import PeerGone
from actors.placement.supervisor import LONGEST_LAG_S, Node, Report, Supervisor, Wanted
from tests.actors.worlds import definitions
from tests.simulation import simloop
from tests.simulation.faultystore import Faults, FaultyJournal
from tests.simulation.simloop import NodeDied
from tests.simulation.world import Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from random import Random

    from actors.hostneeds import HostNeeds
    from tests.simulation.simloop import SimulatedLoop

PARTITIONS = 4
LEASE_S = 3.0
FAULTS = Faults(delay_s=0.002, slow=0.01, slow_s=0.5, fail=0.005, lose_answer=0.01)
# A living owner that is robbed may answer reads until its lease ends, so not every scenario has it.
DISASTERS = ("freeze", "block", "kill", "zombie", "supervisor", "outage", "cut off")
ROBBERY = "rob"


class Machine:
    """A host on a node of its own; to others, a peer and a handle."""

    spacing_s = 0.003

    def __init__(self, world: World, name: str, version: str, node: str) -> None:
        self.name, self.version, self.node, self._world = name, version, node, world
        self.journal = FaultyJournal(world.truth, world.luck, world.faults, name)
        self.placements: list[ClusterPlacement] = []
        self.since_ms = int(world.loop.time() * 1000)
        self.host = Host(
            self.journal,
            definitions(*world.types),
            clock=LoopClock(),
            host_id=name,
            lease_s=LEASE_S,
            store_patience_s=10.0,
            placement=self._place,
        )
        self.gone = world.loop.create_future()
        self._blocked_until_s = 0.0
        # It does not hear the supervisor.
        self.is_deaf = False

    def _place(self, host: Host) -> ClusterPlacement:
        self.placements.append(ClusterPlacement(host, self._world))
        return self.placements[0]

    async def _there(self, work: Any) -> Any:
        try:
            return await self._world.loop.ask(self.name, work)
        except NodeDied:
            raise PeerGone(self.name) from None

    async def start(self) -> None:
        await self._there(self.host.start())

    async def deliver(self, sender: str, batch: bytes) -> None:
        async def receive() -> None:
            await asyncio.sleep(self._world.luck.random() * 0.002)
            self.placements[0].receive(sender, batch)

        await self._there(receive())

    def close(self) -> None:
        """Holds nothing."""

    async def report(self) -> Report:
        await asyncio.sleep(10_000 if self.is_deaf else self._world.answer_s)
        if self._world.loop.time() < self._blocked_until_s:
            await asyncio.sleep(LONGEST_LAG_S)
            return self._report(LONGEST_LAG_S)

        async def look() -> Report:
            return self._report(0.0)

        report: Report = await self._there(look())
        return report

    def block(self, seconds: float) -> None:
        """Its event loop does nothing for so long. It answers all the same what it is asked by the supervisor."""
        self._blocked_until_s = self._world.loop.time() + seconds
        self._world.loop.freeze(self.name, seconds)

    def _report(self, lag_s: float) -> Report:
        return Report(
            name=self.name,
            node=self.node,
            pid=0,
            since_ms=self.since_ms,
            version=self.version,
            partitions=PARTITIONS,
            owned={p: epoch for p, epoch in enumerate(self.host.epochs) if epoch},
            lag_s=lag_s,
            activations=len(self.host.activations),
            url="",
            lease_holds=self.host.lease_holds(),
            hears_store=self.placements[0].hears_store(),
        )

    async def take(self, partitions: Sequence[int], alive: Sequence[str]) -> None:
        await self._there(self.placements[0].take_free(partitions, alive))

    async def give(self, partitions: Sequence[int], timeout_s: float) -> None:
        await self._there(self.placements[0].give(partitions, timeout_s))

    async def stop(self, timeout_s: float) -> None:
        await self._there(self.host.stop(timeout_s))

    async def wait_gone(self) -> None:
        await asyncio.shield(self.gone)

    def kill(self) -> None:
        self.journal.crash()
        self._world.loop.kill(self.name)
        self.declare_dead()

    def declare_dead(self) -> None:
        """No host can reach it any more. It may go on running, renew its lease, and think that it serves."""
        # Kept: nothing of it may run again, not even because it is let go of.
        if self._world.machines.pop(self.name, None) is not None:
            self._world.ended.append(self)
        if not self.gone.done():
            self.gone.set_result(None)


@dataclass(eq=False)
class World:
    """The network (`connect`), the fleet (`start_host`, …) and everything else outside of hosts."""

    loop: SimulatedLoop
    types: Sequence[type]
    faults: Faults = FAULTS
    truth: Truth = field(default_factory=lambda: Truth(PARTITIONS))
    machines: dict[str, Machine] = field(default_factory=dict)
    # Declared dead: nobody but a client reaches them. Some of them live.
    ended: list[Machine] = field(default_factory=list)
    supervisors: int = 0
    made: int = 0
    # Of a cluster manager, on which hosts are placed; each host is a machine of its own all the same.
    nodes_there: Sequence[Node] = (Node("node", leaving=False),)
    wanted: Wanted = field(default_factory=Wanted)
    # Hosts that were to be made where there is no room for them.
    misplaced: int = 0
    # How long questions of the supervisor are on their way.
    answer_s: float = 0.0
    kept: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.luck: Random = self.loop.random_for("faults")

    async def connect(self, name: str) -> Machine:
        if name not in self.machines:
            raise PeerGone(name)
        return self.machines[name]

    async def start_host(self, version: str, node: str | None) -> Machine:
        self.made += 1
        machine = Machine(self, f"h-{self.made}", version, self._place_for(node))
        self.machines[machine.name] = machine
        try:
            await machine.start()
        except BaseException:
            machine.kill()
            raise
        return machine

    async def existing(self) -> list[Any]:
        return list(self.machines.values())

    async def nodes(self) -> list[Node]:
        return list(self.nodes_there)

    def _place_for(self, wanted: str | None) -> str:
        """Where there is room: the node that was asked for, else any."""
        for node in self.nodes_there:
            there = sum(machine.node == node.id for machine in self.machines.values())
            if wanted in (None, node.id) and there < self.wanted.room(node):
                return node.id
        self.misplaced += 1
        raise RuntimeError(f"no room on {wanted or 'any node'}")

    def supervise(
        self, hosts: int = 2, *, per_node: int = 0, spares: int = 1, needs: HostNeeds = NOTHING
    ) -> Supervisor:
        """A supervisor on a node of its own; the former one, if it lives, is killed."""
        self.loop.kill(f"supervisor{self.supervisors}")
        self.supervisors += 1
        self.wanted = Wanted(hosts, per_node, spares, drain_s=2.0, needs=needs, lease_s=LEASE_S)
        supervisor = Supervisor(self, self.wanted)
        self.kept += [supervisor, self.loop.spawn(f"supervisor{self.supervisors}", supervisor.run())]
        return supervisor

    async def insist(self, key: str, actor_type: str, actor_id: str, name: str, body: bytes) -> int:
        """The answer, through whatever host, asked for under one key ("": none) until it comes."""
        while True:
            machines = [m for m in self.machines.values() if self.loop.is_alive(m.name)]
            if machines:
                machine = self.luck.choice(machines)
                try:
                    async with asyncio.timeout(self.luck.choice([0.5, 2.0, 5.0])):
                        call = machine.host.client.call(actor_type, actor_id, name, body, idempotency_key=key or None)
                        answer: int = orjson.loads(await self.loop.ask(machine.name, call))
                        return answer
                except (Exception, NodeDied):  # whatever it was: asked again, under the same key
                    pass
            await asyncio.sleep(0.05)

    def reachable(self) -> list[Machine]:
        """What a client may come to: zombies are among it."""
        return [m for m in (*self.machines.values(), *self.ended) if self.loop.is_alive(m.name)]

    async def trouble(self, disasters: Sequence[str]) -> None:
        """For ever, one now and then. Cancel it to stop."""
        while True:
            await asyncio.sleep(self.luck.uniform(0.2, 3.0))
            self._hurt(self.luck.choice(disasters))

    async def heal(self) -> None:
        """The end of all faults; a supervisor is there, and everything is served."""
        self.faults = Faults()
        for machine in self.machines.values():
            machine.journal.faults = Faults()
            machine.journal._out_until_s = 0.0
        self.supervise()
        await asyncio.sleep(15)

    def _hurt(self, kind: str) -> None:
        machines = [m for m in (*self.machines.values(), *self.ended) if self.loop.is_alive(m.name) and m.host.owned()]
        if kind == "supervisor":
            self.supervise()
        if not machines:
            return
        victim = self.luck.choice(machines)
        if kind == "freeze":
            self.loop.freeze(victim.name, self.luck.uniform(0.1, 8.0))
        elif kind == "block":
            victim.block(self.luck.uniform(0.1, 8.0))
        elif kind == "kill":
            victim.kill()
        elif kind == "zombie" and victim.name in self.machines:
            victim.declare_dead()
        elif kind == "outage":
            victim.journal.outage(self.luck.uniform(0.1, 5.0))
        elif kind == "cut off":  # for so long that others have what it had
            victim.journal.outage(self.luck.uniform(2.0, 5.0) * LEASE_S)
        elif kind == ROBBERY:  # taken over although its owner lives and serves: a zombie
            robber = self.luck.choice(list(self.machines.values()))
            stolen = self.luck.sample(range(PARTITIONS), 2)
            self.loop.spawn(robber.name, _rob(robber.placements[0], stolen))


async def _rob(robber: ClusterPlacement, stolen: list[int]) -> None:
    try:
        await robber.take(stolen, force=True)
    except Exception:
        logging.getLogger("simulation").info("a robbery failed", exc_info=True)


def run(
    seed: int, types: Sequence[type], scenario: Callable[[World], Coroutine[Any, Any, None]], max_steps: int = 3_000_000
) -> tuple[int, float]:
    """One seed is one run: (steps, seconds) of it."""
    worlds = []  # kept to the end of the run: nothing of it may be collected while the loop still runs

    async def program(world: World) -> tuple[int, float]:
        await scenario(world)
        return world.loop.steps, world.loop.time()

    def begin(loop: SimulatedLoop) -> Coroutine[Any, Any, tuple[int, float]]:
        worlds.append(World(loop, types))
        return program(worlds[0])

    return simloop.run(seed, begin, max_steps=max_steps)
