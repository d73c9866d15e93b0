"""Calls that are made again late: the proof of what they have done outlives every attempt (INV-8)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from actors import OutcomeUnknown, actor, method
from tests.actors.worlds import until
from tests.placement.network import PARTITIONS, Cluster, cluster_of, ids_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors import Host

gates: dict[str, asyncio.Event] = {}


class WallClock:
    """One wall clock for all hosts, in a tester's hand; the other one is the loop's."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@actor(mailbox_limit=3)
class Counter:
    value: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    @method
    async def add_when(self, gate: str) -> int:
        await gates[gate].wait()
        self.value += 1
        return self.value


@actor(receipts="1s")
class Forgetful:
    value: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value


NAME = ids_in(2, "Counter")[0]
STREAM = f"Counter/{NAME}"
LEASE_S = 300.0
PATIENCE_S = 5.0
AGAIN_S = 4 * LEASE_S + 2 * PATIENCE_S


class Hosts:
    """One asks, the others own the actor, one after the other."""

    def __init__(self, cluster: Cluster, clock: WallClock) -> None:
        self.cluster, self.clock = cluster, clock

    async def add(self, name: str, partitions: list[int]) -> Host:
        return await self.cluster.add(name, partitions, clock=self.clock, lease_s=LEASE_S)

    async def purge(self) -> None:
        for partition in range(PARTITIONS):
            await self.cluster.journal.purge_receipts(partition, self.clock.now_ms(), 1000)

    async def lose_the_answer(self) -> asyncio.Task[bytes]:
        """A call from `one` is recorded by `two`, whose answer does not leave it."""
        one, two = await self.add("one", [0, 1]), await self.add("two", [2, 3])
        assert await one.client.actor(Counter, NAME).add(1) == 1
        self.cluster.network.hold("two", "one")
        pending = asyncio.create_task(one.client.call("Counter", NAME, "add", b"10"))
        activation = two.activations[STREAM]
        await until(lambda: activation.version == 2 and not activation.uncommitted)
        return pending

    async def add_a_busy_successor(self) -> tuple[Host, asyncio.Task[int]]:
        """In place of `two`: the actor is in a turn there, until `gates["busy"]` is set."""
        gates["busy"] = asyncio.Event()
        self.cluster.kill("two")
        three = await self.add("three", [2, 3])
        busy = asyncio.create_task(three.client.actor(Counter, NAME).add_when("busy"))
        await until(lambda: STREAM in three.activations and three.activations[STREAM].running)
        return three, busy


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with cluster_of(Counter, Forgetful) as cluster:
        yield Hosts(cluster, WallClock())


@pytest.mark.parametrize("late_s", [3 * LEASE_S + PATIENCE_S, AGAIN_S])
async def test_a_receipt_outlives_long_leases(hosts: Hosts, late_s: float) -> None:
    """The owner is lost when it has recorded a call, and found to be lost only after its lease of minutes: the first
    answer is the only one."""
    pending = await hosts.lose_the_answer()
    hosts.clock.seconds += late_s
    await hosts.purge()
    hosts.cluster.kill("two")
    hosts.cluster.network.thaw("one")
    three = await hosts.add("three", [2, 3])
    assert await pending == b"11"
    assert await three.client.actor(Counter, NAME).add(0) == 11


async def test_a_keyed_call_has_at_least_that_time(hosts: Hosts) -> None:
    """Its receipt lives as long as its type says, and never shorter than one of a call without a key."""
    one, two = await hosts.add("one", [0, 1]), await hosts.add("two", [2, 3])
    name = ids_in(2, "Forgetful")[0]
    await one.client.call("Forgetful", name, "add", b"1", idempotency_key="k")
    hosts.clock.seconds += AGAIN_S
    await hosts.purge()
    assert await two.client.call("Forgetful", name, "add", b"1", idempotency_key="k") == b"1"


async def test_a_call_that_can_have_lost_its_receipt_is_not_made_again(hosts: Hosts) -> None:
    """After that time nobody knows whether it was recorded, and it is not applied twice."""
    pending = await hosts.lose_the_answer()
    hosts.clock.seconds += 10 * AGAIN_S
    await hosts.purge()
    hosts.cluster.kill("two")
    hosts.cluster.network.thaw("one")
    three = await hosts.add("three", [2, 3])
    with pytest.raises(OutcomeUnknown, match="too late"):
        await pending
    assert await three.client.actor(Counter, NAME).add(0) == 11


async def test_a_call_that_waits_too_long_for_its_turn_is_not_run_again(hosts: Hosts) -> None:
    """Time passes in the mailbox of the next owner as well: a call made again is run only while its receipt, if there
    was one, is there."""
    pending = await hosts.lose_the_answer()
    three, busy = await hosts.add_a_busy_successor()
    hosts.cluster.network.thaw("one")
    await until(lambda: three.activations[STREAM].mailbox)
    hosts.clock.seconds += 10 * AGAIN_S
    await hosts.purge()
    gates["busy"].set()
    with pytest.raises(OutcomeUnknown, match="too late"):
        await pending
    assert await busy == 12


async def test_a_call_made_again_that_is_refused_may_have_been_recorded(hosts: Hosts) -> None:
    """The next owner has no room for it, so its receipt is not looked for: nobody says that it was not applied."""
    pending = await hosts.lose_the_answer()
    three, busy = await hosts.add_a_busy_successor()
    waiting = [asyncio.create_task(three.client.actor(Counter, NAME).add(0)) for _ in range(3)]
    await until(lambda: len(three.activations[STREAM].mailbox or ()) == 3)
    hosts.cluster.network.thaw("one")
    with pytest.raises(OutcomeUnknown, match="3 calls waiting"):
        await pending
    gates["busy"].set()
    assert [await busy, *await asyncio.gather(*waiting)] == [12, 12, 12, 12]


async def test_long_turns_are_run_again_all_the_same(hosts: Hosts) -> None:
    """A call whose host says that it is still at it has not been recorded: however long it has run, it goes to the
    successor when that host is lost."""
    one, two = await hosts.add("one", [0, 1]), await hosts.add("two", [2, 3])
    gates["long"] = asyncio.Event()
    pending = asyncio.create_task(one.client.call("Counter", NAME, "add_when", b'"long"'))
    stream = f"Counter/{NAME}"
    await until(lambda: stream in two.activations and two.activations[stream].running)
    (sent,) = hosts.cluster.placement("one")._links["two"].unanswered.values()
    for _ in range(3):
        first = sent.call.again_until_ms
        hosts.clock.seconds += AGAIN_S * 0.6
        await until(lambda first=first: sent.call.again_until_ms > first)  # type: ignore[misc]  # mypy sees no default there
    hosts.clock.seconds += AGAIN_S * 0.6
    hosts.cluster.kill("two")
    await hosts.add("three", [2, 3])
    gates["long"].set()
    assert await pending == b"1"
