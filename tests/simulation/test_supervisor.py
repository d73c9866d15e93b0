"""The supervisor in a simulated cluster: what it finishes for others, and whom it takes for dead, or not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from actors.placement.supervisor import Node
from tests.simulation.cells import Cell, wait_until
from tests.simulation.clusterworld import LEASE_S, PARTITIONS, Machine, World, run
from tests.simulation.faultystore import Faults

if TYPE_CHECKING:
    from actors.placement.supervisor import Supervisor

SEEDS = range(5)


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
    """Whoever was starting it has died: it will never serve. It may be slow to come up, so it is given time."""

    async def scenario(world: World) -> None:
        calm(world)
        unstarted = Machine(world, "h-unstarted", "1", "node")
        world.machines[unstarted.name] = unstarted
        world.loop.freeze(unstarted.name, 10_000)
        world.supervise()
        await wait_until(lambda: sum(bool(m.host.owned()) for m in world.machines.values()) == 2)
        await wait_until(lambda: unstarted.name not in world.machines)
        assert world.loop.time() > 80

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_is_frozen_for_good_is_replaced(seed: int) -> None:
    """Not before others have what it had: from then on it can record nothing. So a spare is there again."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        frozen = next(m for m in world.machines.values() if m.host.owned())
        world.loop.freeze(frozen.name, 10_000)
        begun_s = world.loop.time()
        await wait_until(lambda: frozen.name not in world.machines)
        assert 3 * LEASE_S < world.loop.time() - begun_s < 5 * LEASE_S
        assert len({p for report in supervisor.reports() for p in report.owned}) == PARTITIONS
        await settled(world, supervisor, 3)
        assert world.made == 4

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_does_not_answer_and_keeps_its_lease_is_not_ended_soon(seed: int) -> None:
    """Only the way from the supervisor to it is broken: it serves, so it is left alone for long."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        deaf = next(m for m in world.machines.values() if m.host.owned())
        deaf.is_deaf = True
        before = list(deaf.host.epochs)
        await asyncio.sleep(60.0)
        assert deaf.name in supervisor.silent()
        assert deaf.host.epochs == before
        await wait_until(lambda: deaf.name not in world.machines)
        await settled(world, supervisor, 3)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_is_blocked_for_good_is_replaced(seed: int) -> None:
    """A turn may end at last, so it is given more time than one that does not answer at all."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        blocked = next(m for m in world.machines.values() if m.host.owned())
        blocked.block(10_000)
        begun_s = world.loop.time()
        await wait_until(lambda: blocked.name not in world.machines)
        assert world.loop.time() - begun_s > 80
        await settled(world, supervisor, 3)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_turn_of_the_only_host_may_end(seed: int) -> None:
    """Nobody else is there to take what it has, so it still has it afterwards, and its turn is recorded."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise(hosts=1, spares=0)
        await settled(world, supervisor, 1)
        (only,) = world.machines.values()
        only.block(200.0)
        counting = asyncio.create_task(world.loop.ask(only.name, only.host.client.call("Cell", "c", "add", b"")))
        await asyncio.sleep(210.0)
        assert await counting == b"1"
        assert world.made == 1
        await settled(world, supervisor, 1)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_when_every_host_is_blocked_for_good_all_are_replaced(seed: int) -> None:
    """A turn that never ends may block one host after the other. It does not end the cluster."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        for machine in list(world.machines.values()):
            machine.block(10_000)
        assert await world.insist("key", "Cell", "c", "add", b"") == 1
        await settled(world, supervisor, 3)
        assert world.made == 6

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("when_s", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_roll_passes_by_a_host_that_freezes(seed: int, when_s: float) -> None:
    """Before, at the beginning, or in the middle: at the end there are the hosts that are wanted, all of them new."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        frozen = world.luck.choice(list(world.machines.values()))
        if not when_s:
            world.loop.freeze(frozen.name, 10_000)
            await wait_until(lambda: supervisor.silent() == [frozen.name])
        await roll(world, supervisor, "2")
        await asyncio.sleep(when_s)
        world.loop.freeze(frozen.name, 10_000)
        await wait_until(lambda: versions(world) == ["2"] * 3)
        await settled(world, supervisor, 3)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_leaves_and_freezes_does_not_hold_up_a_roll(seed: int) -> None:
    """It cannot give what it has; when its lease has ended others take it, and it is ended."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        await roll(world, supervisor, "2")
        for _ in range(2):
            await wait_until(lambda: any(k.leaving and not k.stopping for k in supervisor._hosts.values()), 0.0001)
            leaving = next(name for name, known in supervisor._hosts.items() if known.leaving and not known.stopping)
            world.loop.freeze(leaving, 10_000)
            await wait_until(lambda name=leaving: name not in world.machines)  # type: ignore[misc]  # mypy sees no default there
        await wait_until(lambda: versions(world) == ["2"] * 3)
        await settled(world, supervisor, 3)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("seed", range(20))
def test_a_roll_makes_no_host_too_many(seed: int, spares: int) -> None:
    """One that has come up and has not said anything yet is counted: each host is replaced by one."""

    async def scenario(world: World) -> None:
        calm(world)
        world.answer_s = 0.1
        supervisor = world.supervise(spares=spares)
        await settled(world, supervisor, 2 + spares)
        await roll(world, supervisor, "2")
        await wait_until(lambda: versions(world) == ["2"] * (2 + spares))
        await asyncio.sleep(20.0)
        assert world.made == 2 * (2 + spares)
        assert len(world.machines) == 2 + spares

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("per_node", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_too_many_is_ended(seed: int, per_node: int) -> None:
    """Whatever made it: another supervisor, which did not live to see it. It ends without failed calls."""

    async def scenario(world: World) -> None:
        calm(world)
        for _ in range(4):
            await world.start_host("1", None)
        supervisor = world.supervise(per_node=per_node)
        await settled(world, supervisor, 2 if per_node else 3)
        await asyncio.sleep(20.0)
        assert world.made == 4
        assert len(world.machines) == (2 if per_node else 3)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_waits_for_the_answer_of_one_that_has_just_frozen(seed: int) -> None:
    """A host that ends while another one, frozen, is not yet known to be so is replaced as at any other time."""

    async def scenario(world: World) -> None:
        calm(world)
        supervisor = world.supervise()
        await settled(world, supervisor, 3)
        frozen, ending = (machine for machine in world.machines.values() if machine.host.owned())
        lost = set(ending.host.owned())
        world.loop.freeze(frozen.name, 1.0)
        await world.loop.ask(ending.name, ending.host.stop(1.0))
        begun_s = world.loop.time()
        ending.kill()
        await wait_until(lambda: any(lost <= set(m.host.owned()) for m in world.machines.values()), 0.01)
        assert world.loop.time() - begun_s < 0.4

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
            await wait_until(lambda machine=machine: machine.name in supervisor.silent())  # type: ignore[misc]  # mypy sees no default there
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
