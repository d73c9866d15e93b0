"""A host that freezes: how long its actors are silent, wherever in its round each part of the cluster just is.

Of a frozen host nobody says that it is dead; its lease, renewed every third of its length, ends by itself. What comes
after that is ours: to notice it, to take over, to find the new owner. Simulated time has no noise, so the bound is
a promise: one lease, and less than a second.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from statestores.model import partition_of
from tests.simulation.cells import Cell, wait_until
from tests.simulation.clusterworld import LEASE_S, PARTITIONS, World, run
from tests.simulation.faultystore import Faults

if TYPE_CHECKING:
    from tests.simulation.clusterworld import Machine

SEEDS = range(20)
# Not so long that it is ended.
_FROZEN_S = 8.0
# Longer than it takes to be passed by, and not so long that it is ended.
CUT_OFF_S = 20.0
# After so long the supervisor knows, and the lease has not ended.
_NOTICED_S = 1.7


def cell_of(partition: int) -> str:
    return next(name for n in range(1000) if partition_of(f"Cell/{(name := f'c{n}')}", PARTITIONS) == partition)


async def two_that_serve(world: World) -> tuple[Machine, Machine]:
    """Of three, once each has its share."""
    world.faults = Faults(delay_s=0.01)
    world.supervise()
    half = PARTITIONS // 2
    await wait_until(lambda: sorted(len(m.host.owned()) for m in world.machines.values()) == [0, half, half])
    await asyncio.sleep(world.luck.uniform(1.0, 3.0))
    first, second = (machine for machine in world.machines.values() if machine.host.owned())
    return first, second


async def add_by(world: World, machine: Machine, cell: str) -> int:
    return int(await world.loop.ask(machine.name, machine.host.client.call("Cell", cell, "add", b"")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frozen_hosts_actor_answers_again_within_its_lease_and_a_second(seed: int) -> None:
    """The call that was under way when the host froze, and one made after it, are answered by the successor in time."""

    async def scenario(world: World) -> None:
        victim, asker = await two_that_serve(world)
        cells = [cell_of(partition) for partition in victim.host.owned()]
        assert [await add_by(world, asker, cell) for cell in cells] == [1] * len(cells)
        frozen_s = world.loop.time()
        world.loop.freeze(victim.name, _FROZEN_S)
        assert [await add_by(world, asker, cell) for cell in cells] == [2] * len(cells)
        assert world.loop.time() - frozen_s < LEASE_S + 1.0

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_blocked_hosts_actor_answers_again_within_its_lease_and_two_seconds(seed: int) -> None:
    """A host whose event loop is blocked still answers the supervisor. Its lease ends all the same, which the
    supervisor learns a little later than that it is silent."""

    async def scenario(world: World) -> None:
        victim, asker = await two_that_serve(world)
        lost = victim.host.owned()
        cells = [cell_of(partition) for partition in lost]
        assert [await add_by(world, asker, cell) for cell in cells] == [1] * len(cells)
        blocked_s = world.loop.time()
        victim.block(_FROZEN_S)
        assert [await add_by(world, asker, cell) for cell in cells] == [2] * len(cells)
        assert world.loop.time() - blocked_s < LEASE_S + 2.0
        await asyncio.sleep(_FROZEN_S)
        assert [await add_by(world, victim, cell) for cell in cells] == [3] * len(cells)
        assert not set(victim.host.owned()) & set(lost)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_that_is_blocked_for_less_than_its_lease_keeps_what_it_has(seed: int) -> None:
    """A busy event loop is nothing to take a host's actors for."""

    async def scenario(world: World) -> None:
        victim, _ = await two_that_serve(world)
        before = list(victim.host.epochs)
        for _ in range(3):
            victim.block(LEASE_S * 0.5)
            await asyncio.sleep(LEASE_S)
        assert victim.host.epochs == before

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_store_that_is_away_moves_nothing(seed: int) -> None:
    """No lease can be renewed, and nobody's loop is blocked: everybody keeps what it has."""

    async def scenario(world: World) -> None:
        await two_that_serve(world)
        before = {machine.name: list(machine.host.epochs) for machine in world.machines.values()}
        for machine in world.machines.values():
            machine.journal.outage(3 * LEASE_S)
        await asyncio.sleep(6 * LEASE_S)
        assert {machine.name: list(machine.host.epochs) for machine in world.machines.values()} == before

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_alone_is_cut_off_from_the_store_is_passed_by(seed: int) -> None:
    """It answers the supervisor, its loop is not blocked, and it cannot renew its lease, while the store answers
    others. Back again it is fenced: what it was asked meanwhile counts once."""

    async def scenario(world: World) -> None:
        victim, asker = await two_that_serve(world)
        lost = victim.host.owned()
        cells = [cell_of(partition) for partition in lost]
        cut_off_s = world.loop.time()
        victim.journal.outage(CUT_OFF_S)
        assert [await add_by(world, asker, cell) for cell in cells] == [1] * len(cells)
        assert world.loop.time() - cut_off_s < 2 * LEASE_S + 2.0
        await asyncio.sleep(CUT_OFF_S + LEASE_S)
        assert victim.name in world.machines
        assert [await add_by(world, victim, cell) for cell in cells] == [2] * len(cells)
        assert not set(victim.host.owned()) & set(lost)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_spare_that_is_cut_off_from_the_store_takes_nothing_over(seed: int) -> None:
    """It could not: whoever can is told to."""

    async def scenario(world: World) -> None:
        victim, asker = await two_that_serve(world)
        spare = next(m for m in world.machines.values() if not m.host.owned())
        spare.journal.outage(100.0)
        await asyncio.sleep(2 * LEASE_S + 2.0)
        cells = [cell_of(partition) for partition in victim.host.owned()]
        killed_s = world.loop.time()
        victim.kill()
        assert [await add_by(world, asker, cell) for cell in cells] == [1] * len(cells)
        assert world.loop.time() - killed_s < LEASE_S + 1.0

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_awake_again_it_is_fenced(seed: int) -> None:
    """What the frozen host had decided, and what it is asked when it wakes up, counts once, with its successor."""

    async def scenario(world: World) -> None:
        victim, asker = await two_that_serve(world)
        lost = victim.host.owned()
        cells = [cell_of(partition) for partition in lost]
        under_way = [asyncio.create_task(add_by(world, asker, cell)) for cell in cells]
        await asyncio.sleep(world.luck.uniform(0.0, 0.02))
        world.loop.freeze(victim.name, _FROZEN_S)
        assert await asyncio.gather(*under_way) == [1] * len(cells)
        await asyncio.sleep(_FROZEN_S + 1.0)
        assert [await add_by(world, victim, cell) for cell in cells] == [2] * len(cells)
        assert not set(victim.host.owned()) & set(lost)

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_that_wakes_up_in_time_keeps_what_it_has(seed: int) -> None:
    """A host that is only silent, and renews its lease before it ends, loses nothing to those who wait for its end."""

    async def scenario(world: World) -> None:
        victim, _ = await two_that_serve(world)
        before = list(victim.host.epochs)
        world.loop.freeze(victim.name, LEASE_S * 0.6)
        await asyncio.sleep(3 * LEASE_S)
        assert victim.host.epochs == before

    run(seed, [Cell], scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_while_a_frozen_host_is_waited_for_others_are_not(seed: int) -> None:
    """A host that waits for the end of one lease takes at once what another one gives up by ending."""

    async def scenario(world: World) -> None:
        frozen, leaver = await two_that_serve(world)
        cells = [cell_of(partition) for partition in leaver.host.owned()]
        world.loop.freeze(frozen.name, _FROZEN_S)
        await asyncio.sleep(_NOTICED_S)
        spare = next(m for m in world.machines.values() if not m.host.owned())
        await world.loop.ask(leaver.name, leaver.host.stop(1.0))
        begun_s = world.loop.time()
        leaver.kill()
        for cell in cells:
            assert await add_by(world, spare, cell) == 1
        assert world.loop.time() - begun_s < 1.0

    run(seed, [Cell], scenario)
