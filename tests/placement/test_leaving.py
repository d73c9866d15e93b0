"""Partitions that leave a host: one by one, with what holds them up, and with all that memory has of them."""

from __future__ import annotations

import asyncio
from dataclasses import field
from typing import TYPE_CHECKING, Any

import pytest

from actors import actor, context, method, room
from tests.actors.test_wakeups import Wall
from tests.actors.worlds import until
from tests.placement.network import Cluster, cluster_of, ids_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.outbox import Work

gates: dict[str, asyncio.Event] = {}


@actor
class Place:
    value: int = 0
    rings: list[str] = field(default_factory=list)

    @method
    async def add(self) -> int:
        self.value += 1
        return self.value

    @method
    async def add_when(self, gate: str, others: list[str]) -> int:
        """Hold this one until the gate opens, then have others counted, each by the one before it."""
        await gates[gate].wait()
        if others:
            await context().actor(Place, others[0]).add_when(gate, others[1:])
        self.value += 1
        return self.value

    @method
    async def remind(self, name: str, due: float) -> None:
        context().set_reminder(name, due=due)

    @method
    async def forget(self, name: str) -> None:
        context().clear_reminder(name)

    @method
    async def receive_reminder(self, name: str, data: Any) -> None:
        self.rings.append(name)

    @method
    async def rung(self) -> list[str]:
        return self.rings

    @method
    async def post(self) -> str:
        return context().post("job", b"1")


def of_partition(partition: int, number: int = 0) -> str:
    return ids_in(partition, "Place")[number]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    gates.clear()
    async with cluster_of(Place) as made:
        yield made
        for gate in gates.values():
            gate.set()


async def hold(cluster: Cluster, host: str, name: str, gate: str, *others: str) -> asyncio.Task[int]:
    """A turn of that actor, which runs until the gate opens."""
    made = cluster.hosts[host]
    gates.setdefault(gate, asyncio.Event())
    held = asyncio.create_task(made.client.actor(Place, name).add_when(gate, list(others)))
    stream = f"Place/{name}"
    await until(lambda: stream in made.activations and made.activations[stream].running)
    return held


async def test_a_quiet_partition_does_not_wait_for_a_busy_one(cluster: Cluster) -> None:
    """Partitions that are given together leave each as soon as it is quiet, and are served elsewhere meanwhile."""
    one = await cluster.add("one", [0, 1, 2, 3])
    two = await cluster.add("two", [])
    held = await hold(cluster, "one", of_partition(2), "busy")
    giving = asyncio.create_task(cluster.placement("one").give([2, 3], 60.0))
    await until(lambda: one.owned() == [0, 1, 2])
    await cluster.placement("two").take([3], force=False)
    assert await one.client.actor(Place, of_partition(3)).add() == 1
    assert not giving.done()
    gates["busy"].set()
    assert await held == 1
    await giving
    assert one.owned() == [0, 1]
    assert two.owned() == [3]


async def test_a_chain_that_holds_a_partition_up_may_enter_it(cluster: Cluster) -> None:
    """A turn that has to end before its partition can leave calls another actor there: it must get its answer, also
    when the way leads over an actor that stays."""
    one = await cluster.add("one", [0, 1, 2, 3])
    first, between, last = of_partition(2), of_partition(0), of_partition(2, 1)
    held = await hold(cluster, "one", first, "chain", between, last)
    giving = asyncio.create_task(cluster.placement("one").give([2], 60.0))
    await until(lambda: cluster.placement("one")._leaving)
    gates["chain"].set()
    assert await held == 1
    await giving
    assert one.owned() == [0, 1, 3]


async def test_a_chain_that_holds_nothing_up_waits_for_the_next_owner(cluster: Cluster) -> None:
    """A call of a turn elsewhere would hold up a partition that is leaving: it is answered by the next owner."""
    one = await cluster.add("one", [0, 1, 2, 3])
    two = await cluster.add("two", [])
    held = await hold(cluster, "one", of_partition(2), "busy")
    outside, inside = of_partition(0), of_partition(2, 1)
    gates["open"] = asyncio.Event()
    gates["open"].set()
    giving = asyncio.create_task(cluster.placement("one").give([2], 60.0))
    await until(lambda: cluster.placement("one")._leaving)
    calling = asyncio.create_task(one.client.actor(Place, outside).add_when("open", [inside]))
    await until(lambda: cluster.placement("one")._parked.get(2))
    assert f"Place/{inside}" not in one.activations
    gates["busy"].set()
    await held
    await giving
    await cluster.placement("two").take([2], force=False)
    assert await calling == 1
    assert f"Place/{inside}" in two.activations


async def test_work_of_a_partition_that_left_takes_no_room(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker has under way for it is another host's to finish; other work, which had no room, is begun."""
    monkeypatch.setattr(room, "_MOST_WORK", 2)
    begun: list[str] = []

    def never(work: Work) -> None:
        begun.append(work.stream)

    one = await cluster.add("one", [0, 1, 2, 3], workers={"job": never})
    leaving, staying = of_partition(2), of_partition(0)
    for _ in range(2):
        await one.client.actor(Place, leaving).post()
    await one.client.actor(Place, staying).post()
    assert begun == [f"Place/{leaving}"] * 2
    await cluster.placement("one").give([2], 60.0)
    await until(lambda: f"Place/{staying}" in begun)
    assert begun == [f"Place/{leaving}"] * 2 + [f"Place/{staying}"]
    assert one.outbox.in_flight == 1


async def test_a_reminder_that_was_cleared_elsewhere_does_not_ring(cluster: Cluster) -> None:
    """What a host knows of the reminders of a partition leaves with it: when it comes back, the store's word counts."""
    clock = Wall()
    one = await cluster.add("one", [0, 1, 2, 3], clock=clock)
    two = await cluster.add("two", [], clock=clock)
    name = of_partition(2)
    await one.client.actor(Place, name).remind("old", 5.0)
    await until(lambda: (f"Place/{name}", "old") in one.reminders._window)
    await cluster.placement("one").give([2], 60.0)
    await cluster.placement("two").take([2], force=False)
    await two.client.actor(Place, name).forget("old")
    await cluster.placement("two").give([2], 60.0)
    await cluster.placement("one").take([2], force=False)
    clock.ms += 6_000
    await one.client.actor(Place, name).remind("new", 0.0)
    async with asyncio.timeout(10):
        while not (rings := await one.client.actor(Place, name).rung()):  # noqa: ASYNC110  # of the host's own time
            await asyncio.sleep(0.001)
    assert rings == ["new"]
