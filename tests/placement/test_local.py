"""One host that owns everything: what becomes of partitions that it loses."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from actors import LoopClock, NotOwner, actor, context, method
from actors.placement.local import LocalPlacement
from actors.placement.owners import make_owner
from statestores.errors import FormatError, StaleEpoch
from statestores.memory import MemoryStore
from statestores.model import partition_of
from tests.actors.worlds import World, settled, until
from tests.placement.test_owners import an_ended_pid, owner
from tests.simulation.simloop import SimulatedLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from actors import Host

PARTITIONS = 4
LEASE_S = 0.3


@actor
class Cell:
    value: int = 0
    rung: int = 0

    @method
    async def add(self) -> int:
        self.value += 1
        return self.value

    @method
    async def ring_in(self, due: str) -> None:
        context().set_reminder("bell", due=due, callback="ring")

    @method
    async def ring(self) -> None:
        self.rung += 1

    @method(read_only=True)
    async def heard(self) -> int:
        return self.rung


class Robber(LocalPlacement):
    """Takes over although the owner lives: as if that had been frozen until its lease ended."""

    async def start(self) -> None:
        await self._host.ownership.acquire(range(PARTITIONS), force=True)
        await super().start()


def in_simulated_time(program: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def life(_: SimulatedLoop) -> None:
        await program(World(MemoryStore(partitions=PARTITIONS).journal))

    for seed in range(10):
        run(seed, life)


async def host_of(world: World, name: str = "one", **options: Any) -> Host:
    return await world.host(Cell, name=name, clock=LoopClock(), lease_s=LEASE_S, **options)


async def rob(world: World, partitions: Sequence[int] = range(PARTITIONS), *, owner: str = "") -> list[tuple[int, int]]:
    """Somebody else has these, for longer than any test lasts; with their epochs."""
    taken = await world.journal.acquire(
        partitions, owner or make_owner("other"), LoopClock().now_ms(), 3_600_000, force=True
    )
    return [(each.partition, each.epoch) for each in taken]


def lose(host: Host, partition: int) -> None:
    """The store has refused a commit of it."""
    host.lost_partition(partition, StaleEpoch(partition, host.epochs[partition], host.epochs[partition] + 1))


def whole(host: Host) -> bool:
    return host.owned() == [*range(PARTITIONS)]


def test_what_another_host_has_taken_comes_back_when_it_ends() -> None:
    """A host that was thought dead refuses calls and says that it lacks something, for as long as its successor keeps
    what it has; then it serves again, from what the successor has recorded (INV-3), and without a restart."""

    async def program(world: World) -> None:
        one = await host_of(world)
        assert await one.client.actor(Cell, "c").add() == 1
        assert not one.placement.lacks
        two = await host_of(world, "two", placement=Robber)
        assert await two.client.actor(Cell, "c").add() == 2
        await until(lambda: one.owned() == [])
        for _ in range(20):
            await asyncio.sleep(LEASE_S)
            with pytest.raises(NotOwner):
                await one.client.actor(Cell, "c").add()
            assert one.placement.lacks
        assert whole(two)
        await two.stop()
        await until(lambda: whole(one), timeout_s=6)
        assert not one.placement.lacks
        assert await one.client.actor(Cell, "c").add() == 3

    in_simulated_time(program)


def test_what_the_other_host_left_unfinished_is_found() -> None:
    """INV-9: a reminder that a crashed successor has set is fired by the host that takes the partition again."""

    async def program(world: World) -> None:
        one = await host_of(world)
        two = await host_of(world, "two", placement=Robber)
        await two.client.actor(Cell, "c").ring_in("1s")
        await world.crash(two)
        await until(lambda: one.owned() == [])
        await until(lambda: whole(one), timeout_s=6)
        await asyncio.sleep(1)
        assert await one.client.actor(Cell, "c").heard() == 1

    in_simulated_time(program)


def test_whose_process_is_gone_is_not_waited_for() -> None:
    """As at the start of a host."""

    async def program(world: World) -> None:
        one = await host_of(world)
        stolen = await rob(world, owner=owner(an_ended_pid()))
        await until(lambda: one.epochs[0] > stolen[0][1], timeout_s=LEASE_S)
        assert whole(one)

    in_simulated_time(program)


def test_one_refused_commit_finds_all_that_is_lost() -> None:
    """A server that forgets its owners forgets all of them: nobody's call has to find out for its own partition."""

    async def program(world: World) -> None:
        one = await host_of(world)
        stolen = await rob(world)
        await world.journal.release(stolen)
        with contextlib.suppress(NotOwner):  # it may have been taken again before the call has had its last attempt
            await one.client.actor(Cell, "c").add()
        await until(lambda: whole(one), timeout_s=LEASE_S / 10)
        assert all(one.epochs[partition] > epoch for partition, epoch in stolen)

    in_simulated_time(program)


def test_what_is_not_lost_goes_on() -> None:
    """Half of the partitions are lost: actors of the others are served all the while, under the epochs they had."""

    async def program(world: World) -> None:
        one = await host_of(world)
        before = [*one.epochs]
        names = [f"c{number}" for number in range(8)]
        of = {name: partition_of(f"Cell/{name}", PARTITIONS) for name in names}
        stolen = await rob(world, [0, 1])
        await until(lambda: one.owned() == [2, 3])
        assert one.placement.lacks
        for name in names:
            if of[name] in (0, 1):
                with pytest.raises(NotOwner):
                    await one.client.actor(Cell, name).add()
            else:
                assert await one.client.actor(Cell, name).add() == 1
        await world.journal.release(stolen)
        await until(lambda: whole(one), timeout_s=6)
        assert one.epochs[2:] == before[2:]
        assert one.epochs[0] > stolen[0][1]

    in_simulated_time(program)


def test_a_store_that_gives_and_refuses_in_turn_is_not_asked_without_end() -> None:
    """Lost again and again: every time it is taken again, with a pause in between that grows to its limit."""

    async def program(world: World) -> None:
        one = await host_of(world)
        begun = world.lever.calls["acquire"]
        loop = asyncio.get_running_loop()
        end_s = loop.time() + 60
        while loop.time() < end_s:
            await until(lambda: whole(one), timeout_s=6)
            lose(one, 0)
        assert 10 <= world.lever.calls["acquire"] - begun <= 20

    in_simulated_time(program)


def test_the_store_is_away_or_refuses_meanwhile() -> None:
    """Whatever a try fails with, it is not the last one."""

    async def program(world: World) -> None:
        one = await host_of(world)
        world.lever.down = True
        lose(one, 0)
        away = world.lever.turned_away
        await until(lambda: world.lever.turned_away >= away + 4)
        assert one.placement.lacks
        world.lever.down = False
        await until(lambda: whole(one), timeout_s=6)

    in_simulated_time(program)


def test_a_store_that_has_become_another_one(caplog: pytest.LogCaptureFixture) -> None:
    """It is not taken over by a program that would write what does not fit it, and the host goes on saying so."""

    async def program(world: World) -> None:
        one = await host_of(world)
        acquire, asked = one.journal.acquire, 0

        async def refused(*args: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            raise FormatError("it has been migrated")

        world.lever.acquire = refused  # type: ignore[attr-defined]
        caplog.clear()
        lose(one, 0)
        await until(lambda: asked == 3)
        assert one.placement.lacks
        assert [r.getMessage() for r in caplog.records if "migrated" in r.getMessage()] == [
            "lost partitions cannot be taken again, trying on: it has been migrated"
        ]
        world.lever.acquire = acquire  # type: ignore[attr-defined]
        await until(lambda: whole(one), timeout_s=6)

    in_simulated_time(program)


def test_what_is_given_is_not_lost() -> None:
    """A partition that the host has handed over stays away, also when it was just being taken again."""

    async def program(world: World) -> None:
        one = await host_of(world)
        await one.give([1], 1.0)
        lose(one, 0)
        gate = world.lever.gates["acquire"] = asyncio.Event()
        asked = world.lever.calls["acquire"]
        await until(lambda: world.lever.calls["acquire"] > asked)
        await one.give([0], 1.0)
        gate.set()
        await asyncio.sleep(10)
        assert one.owned() == [2, 3]
        assert not one.placement.lacks
        kept = {each.partition for each in await world.journal.owners() if each.lease_until_ms}
        assert kept == {2, 3}

    in_simulated_time(program)


def test_a_stop_gives_back_what_is_just_taken_again() -> None:
    """Its successor does not wait for a lease that nobody has."""

    async def program(world: World) -> None:
        one = await host_of(world)
        lose(one, 0)
        gate = world.lever.gates["acquire"] = asyncio.Event()
        asked = world.lever.calls["acquire"]
        await until(lambda: world.lever.calls["acquire"] > asked)
        stopping = asyncio.ensure_future(one.stop())
        await settled()
        assert not stopping.done()
        gate.set()
        await stopping
        assert not any(each.lease_until_ms for each in await world.journal.owners())

    in_simulated_time(program)


@pytest.mark.parametrize("ending", ["stop", "crash"])
def test_a_host_that_ends_takes_nothing_any_more(ending: str) -> None:
    """What is lost while it drains is its successor's."""

    async def program(world: World) -> None:
        one = await host_of(world)
        asked = world.lever.calls["acquire"]
        ended = asyncio.ensure_future(one.stop() if ending == "stop" else world.crash(one))
        one.draining = True
        lose(one, 0)
        await ended
        await asyncio.sleep(10)
        assert world.lever.calls["acquire"] == asked

    in_simulated_time(program)
