"""The supervisor among nodes that differ: hosts come where there is room for them, in a simulated world."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from actors.hostneeds import host_needs
from actors.placement.supervisor import Node
from tests.simulation.cells import Cell, wait_until
from tests.simulation.clusterworld import World, run
from tests.simulation.faultystore import Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from actors.placement.supervisor import Supervisor

SPECIAL = host_needs({"special": 1}, {"zone": "a"})
BARE = Node("bare", leaving=False, resources={"CPU": 4.0}, labels={"zone": "a"})
FAR = Node("far", leaving=False, resources={"special": 9.0}, labels={"zone": "b"})


def good(name: str, room: int) -> Node:
    return Node(name, leaving=False, resources={"special": float(room)}, labels={"zone": "a"})


def play(nodes: list[Node], scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """In whatever order: some seeds. No host is ever made where there is no room for it."""

    async def begin(world: World) -> None:
        world.faults = Faults(delay_s=0.002)
        world.nodes_there = nodes
        await scenario(world)
        assert world.misplaced == 0

    for seed in range(5):
        run(seed, (Cell,), begin)


async def settled(supervisor: Supervisor, count: int, version: str = "1") -> None:
    await wait_until(
        lambda: (
            supervisor.is_settled
            and [report.version for report in supervisor.reports()] == [version] * count
            and supervisor.silent() == []
        )
    )


def where(world: World) -> list[str]:
    return sorted(machine.node for machine in world.machines.values())


def test_hosts_come_where_there_is_what_they_need() -> None:
    """With so many on each node, only nodes that have what hosts need count."""

    async def scenario(world: World) -> None:
        supervisor = world.supervise(per_node=1, spares=0, needs=SPECIAL)
        await settled(supervisor, 2)
        assert where(world) == ["one", "two"]
        assert (supervisor.wanted_serving, supervisor.unplaced) == (2, "")

    play([BARE, good("one", 5), FAR, good("two", 1)], scenario)


def test_one_suitable_node_gets_all_hosts() -> None:
    """With so many hosts all together, all of them are where they can be."""

    async def scenario(world: World) -> None:
        supervisor = world.supervise(hosts=2, spares=1, needs=SPECIAL)
        await settled(supervisor, 3)
        assert where(world) == ["one"] * 3
        assert supervisor.unplaced == ""

    play([BARE, FAR, good("one", 3)], scenario)


@pytest.mark.parametrize("per_node", [0, 1])
def test_without_a_suitable_node_nothing_is_tried_until_one_comes(per_node: int) -> None:
    """What is lacking where can be read meanwhile; with the node come the hosts."""

    async def scenario(world: World) -> None:
        supervisor = world.supervise(hosts=1, per_node=per_node, spares=1, needs=SPECIAL)
        await asyncio.sleep(120)
        assert world.made == 0
        assert supervisor.placeable == 0
        assert "Each needs special 1, label zone: a." in supervisor.unplaced
        assert "node bare has special 0 of 1" in supervisor.unplaced
        assert "node far has label zone is b, not a" in supervisor.unplaced
        world.nodes_there = [*world.nodes_there, good("one", 2)]
        await settled(supervisor, 2)
        assert await world.insist("k", "Cell", "c", "add", b"3") == 3
        assert supervisor.unplaced == ""

    play([BARE, FAR], scenario)


def test_hosts_beyond_the_room_are_missing_by_name() -> None:
    """What can be placed serves everything; the rest is told."""

    async def scenario(world: World) -> None:
        supervisor = world.supervise(hosts=3, spares=0, needs=SPECIAL)
        await settled(supervisor, 2)
        assert (supervisor.placeable, supervisor.wanted_serving) == (2, 3)
        assert supervisor.unplaced.startswith("1 of 3 hosts have no place.")
        assert "node one has room for 2" in supervisor.unplaced

    play([good("one", 2)], scenario)


@pytest.mark.parametrize(("hosts", "per_node"), [(2, 0), (1, 0), (0, 2), (0, 1)])
def test_a_roll_without_room_for_one_more(hosts: int, per_node: int) -> None:
    """A host leaves before its successor comes; calls are answered all the same, once."""

    async def scenario(world: World) -> None:
        count = hosts + per_node
        supervisor = world.supervise(hosts=hosts, per_node=per_node, spares=0, needs=SPECIAL)
        await settled(supervisor, count)
        rolled = asyncio.Event()

        async def call_on() -> list[int]:
            answers: list[int] = []
            while not rolled.is_set():
                answers.append(await world.insist(f"k{len(answers)}", "Cell", "c", "add", b"1"))
            return answers

        calling = asyncio.ensure_future(call_on())
        supervisor.roll("2")
        await settled(supervisor, count, "2")
        rolled.set()
        answers = await calling
        assert answers == [*range(1, len(answers) + 1)]

    play([good("one", hosts + per_node)], scenario)


def test_a_killed_host_is_replaced_where_it_was() -> None:
    """Its place is free when it has ended."""

    async def scenario(world: World) -> None:
        supervisor = world.supervise(hosts=2, spares=0, needs=SPECIAL)
        await settled(supervisor, 2)
        victim = next(iter(world.machines.values()))
        victim.kill()
        await victim.wait_gone()
        while victim.name in {report.name for report in supervisor.reports()}:  # noqa: ASYNC110  # simulated
            await asyncio.sleep(0.05)
        await settled(supervisor, 2)
        assert where(world) == ["one", "one"]

    play([good("one", 2)], scenario)
