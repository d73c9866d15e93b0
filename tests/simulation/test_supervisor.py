"""The supervisor in a simulated cluster: what it finishes for others, and whom it takes for dead, or not."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from actors import actor, method
from actors.placement.supervisor import Node
from tests.simulation.clusterworld import PARTITIONS, Machine, World, run
from tests.simulation.faultystore import Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actors.placement.supervisor import Supervisor

SEEDS = range(5)
_LONGEST_S = 300.0


@actor
class Cell:
    value: int = 0

    @method
    async def add(self) -> int:
        self.value += 1
        return self.value


@pytest.fixture(autouse=True)
def _hush() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


async def wait_until(condition: Callable[[], object], step_s: float = 0.05) -> None:
    async with asyncio.timeout(_LONGEST_S):
        while not condition():  # noqa: ASYNC110  # time is free here
            await asyncio.sleep(step_s)


def calm(world: World) -> None:
    """Nothing fails; all that asks the store takes its time."""
    world.faults = Faults(delay_s=0.01)


async def settled(world: World, supervisor: Supervisor, count: int) -> None:
    await wait_until(lambda: supervisor.is_settled and len(world.machines) == count)


def versions(world: World) -> list[str]:
    return sorted(machine.version for machine in world.machines.values())


async def roll(world: World, supervisor: Supervisor, version: str) -> None:
    async def there() -> None:
        supervisor.roll(version)

    await world.loop.ask(f"supervisor{world.supervisors}", there())


@pytest.mark.parametrize("seed", range(20))
def test_hosts_that_come_up_one_after_the_other_are_not_taken_for_dead(seed: int) -> None:
    """A host that is told to take something before it has heard of another one takes nothing from that one: no epoch
    is spent twice on one partition at the start."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        await asyncio.sleep(3.0)
        epochs = [max(machine.host.epochs[p] for machine in world.machines.values()) for p in range(PARTITIONS)]
        assert epochs == [1] * PARTITIONS

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_roll_outlives_its_supervisor(seed: int) -> None:
    """The next supervisor, which was told of the old version, sees hosts of the new one and finishes the roll."""

    async def scenario(world: World) -> None:
        calm(world)
        first = world.supervise()
        await settled(world, first, 3)
        await roll(world, first, "2")
        await wait_until(lambda: "2" in versions(world), 0.001)
        assert "1" in versions(world)
        second = world.supervise()
        await wait_until(lambda: versions(world) == ["2"] * 3)
        await settled(world, second, 3)
        assert second.wanted.version == "2"

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_never_answered_is_not_kept(seed: int) -> None:
    """Whoever was starting it has died: it will never serve. One that has answered once may be frozen for long."""

    async def scenario(world: World) -> None:
        calm(world)
        unstarted = Machine(world, "h-unstarted", "1", "node")
        world.machines[unstarted.name] = unstarted
        world.loop.freeze(unstarted.name, 10_000)
        world.supervise()
        await wait_until(lambda: sum(bool(m.host.owned()) for m in world.machines.values()) == 2)
        frozen = next(m for m in world.machines.values() if m.host.owned())
        world.loop.freeze(frozen.name, 200.0)
        await wait_until(lambda: unstarted.name not in world.machines)
        assert world.loop.time() > 80
        await asyncio.sleep(60)
        assert frozen.name in world.machines

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_silent_host_has_its_place_on_its_node(seed: int) -> None:
    """With so many hosts on each node, one that does not answer for a while is not replaced by one more."""

    async def scenario(world: World) -> None:
        calm(world)
        world.nodes_there = (Node("a", leaving=False), Node("b", leaving=False))
        supervisor = world.supervise(per_node=1)
        await settled(world, supervisor, 4)
        for machine in list(world.machines.values()):
            world.loop.freeze(machine.name, 5.0)
            await wait_until(lambda machine=machine: machine.name in supervisor.silent())  # type: ignore[misc]
            await wait_until(lambda: not supervisor.silent())
        assert world.made == 4
        assert sorted(machine.node for machine in world.machines.values()) == ["a", "a", "b", "b"]

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_roll_on_many_nodes_gives_up_no_spare(seed: int) -> None:
    """A host leaves when one of the new version is there to take its place: with a spare on each node none goes
    before."""

    async def scenario(world: World) -> None:
        calm(world)
        world.nodes_there = (Node("a", leaving=False), Node("b", leaving=False))
        supervisor = world.supervise(per_node=1)
        await settled(world, supervisor, 4)
        await roll(world, supervisor, "2")
        await wait_until(lambda: any(known.leaving for known in supervisor._hosts.values()), 0.001)
        assert "2" in [report.version for report in supervisor.reports()]
        await wait_until(lambda: versions(world) == ["2"] * 4)
        assert sorted(machine.node for machine in world.machines.values()) == ["a", "a", "b", "b"]

    run(seed, [Cell], scenario)
