"""Several hosts on one store: calls find their actor, whatever becomes of the hosts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from actors import (
    ActorFailed,
    ActorNotActive,
    Deadlock,
    NotOwner,
    OutcomeUnknown,
    actor,
    context,
    method,
    send,
)
from actors.placement.hop import decode_batch
from tests.actors.worlds import overrun, until
from tests.placement.network import PARTITIONS, Cluster, cluster_of, ids_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

gates: dict[str, asyncio.Event] = {}


@actor
class Cell:
    value: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    @method(read_only=True)
    async def read(self) -> int:
        return self.value

    @method
    async def add_when(self, gate: str, amount: int = 1) -> int:
        await gates[gate].wait()
        self.value += amount
        return self.value

    @method
    async def fail(self) -> None:
        raise ValueError("no")

    @method
    async def told(self, token: str, result: int | None, error: dict[str, str] | None) -> None:
        self.value = 0 if error is None else len(error["message"])

    @method
    async def add_via(self, other: str) -> int:
        return await context().actor(Cell, other).add(1)

    @method
    async def add_there_and_back(self, other: str) -> int:
        return await context().actor(Cell, other).add_via(context().actor_id)

    @method
    async def tell(self, other: str, times: int) -> None:
        for _ in range(times):
            send(context().actor(Cell, other).add, 1)


@actor(reentrant=True)
class Walker:
    value: int = 0

    @method
    async def walk(self, steps: list[Any]) -> None:
        for step in steps:
            match step:
                case ["add", cell]:
                    await context().actor(Cell, cell).add(1)
                case ["ask", walker, inner]:
                    await context().actor(Walker, walker).walk(inner)
                case ["both", one, other]:
                    await asyncio.gather(self.walk(one), self.walk(other))
                case ["open", gate]:
                    gates[gate].set()
                case ["wait", gate]:
                    await gates[gate].wait()
                case ["grow"]:
                    self.value += 1
                case ["fail"]:
                    raise ValueError("as told")

    @method(read_only=True)
    async def read(self) -> int:
        return self.value


@actor
class Early(Walker):
    async def on_activate(self) -> None:
        await self.walk([["add", of_partition(2)], ["add", of_partition(3)]])


def of_partition(partition: int, number: int = 0, actor_type: str = "Cell") -> str:
    """An actor id in that partition."""
    return ids_in(partition, actor_type)[number]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of(Cell, Walker, Early) as made:
        yield made


async def test_a_call_goes_to_the_owner(cluster: Cluster) -> None:
    """A call is answered wherever it comes in, and runs where its actor lives."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    for partition in range(PARTITIONS):
        name = of_partition(partition)
        assert await one.client.actor(Cell, name).add(2) == 2
        assert await two.client.actor(Cell, name).add(3) == 5
        assert await one.client.actor(Cell, name).read() == 5
    assert set(one.activations) == {f"Cell/{of_partition(p)}" for p in (0, 1)}
    assert set(two.activations) == {f"Cell/{of_partition(p)}" for p in (2, 3)}


async def test_errors_cross_hosts(cluster: Cluster) -> None:
    """What the method raised arrives as the same kind of error as in one process."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    with pytest.raises(ActorFailed, match="ValueError: no"):
        await one.client.actor(Cell, of_partition(2)).fail()


async def test_a_durable_call_that_fails_elsewhere(cluster: Cluster) -> None:
    """Its failure is recorded for the caller and told as a message; the answer to the call itself is empty, and the
    link it takes carries what comes after it."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    caller, target = of_partition(0), of_partition(2)
    call = one.new_call(f"Cell/{target}", "fail")
    call.payload, call.outbox_id, call.outbox_partition = b"", "m1", 0
    call.reply_to = (f"Cell/{caller}", "told", "token")
    async with asyncio.timeout(5):
        await one.place(call)
        while await one.client.actor(Cell, caller).read() != len("no"):
            pass
        assert await one.client.actor(Cell, target).add(1) == 1
        assert await two.client.actor(Cell, caller).read() == len("no")


async def test_whether_an_actor_is_active_is_known_to_its_owner(cluster: Cluster) -> None:
    """Fields are changed of an actor that is active, wherever that is; of one that is not, nowhere."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    for active in (of_partition(0), of_partition(2)):
        await one.client.actor(Cell, active).add(1)
        for amount, host in enumerate((one, two), start=40):
            await host.client.patch("Cell", active, [["value", amount]])
            assert await two.client.actor(Cell, active).read() == amount
    for idle in (of_partition(0, 1), of_partition(2, 1)):
        for host in (one, two):
            with pytest.raises(ActorNotActive):
                await host.client.patch("Cell", idle, [["value", 40]])
            assert not host.client.is_active("Cell", idle)


async def test_a_change_that_was_made_before_its_answer_was_lost_is_not_denied(cluster: Cluster) -> None:
    """A change of fields that is made again, at an owner where the actor is not active, is answered by its receipt
    (INV-8)."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    name = of_partition(2)
    await one.client.actor(Cell, name).add(1)
    cluster.network.hold("two", "one")
    pending = asyncio.create_task(one.client.patch("Cell", name, [["value", 40]]))
    activation = two.activations[f"Cell/{name}"]
    await until(lambda: activation.version == 2 and not activation.uncommitted)
    cluster.kill("two")
    cluster.network.thaw("one")
    three = await cluster.add("three", [2, 3])
    await pending
    assert await three.client.actor(Cell, name).read() == 40


async def test_calls_gather_into_batches(cluster: Cluster) -> None:
    """The hop carries whatever has gathered since the last batch left."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    name = of_partition(3)
    await one.client.actor(Cell, name).add(0)
    before = len(cluster.network.batches)
    answers = await asyncio.gather(*(one.client.actor(Cell, name).add(1) for _ in range(200)))
    assert answers == list(range(1, 201))
    assert len(cluster.network.batches) - before <= 8


async def test_a_killed_host_fails_no_call(cluster: Cluster) -> None:
    """Calls that were under way on a host that died are answered by its successor, and take effect once (INV-8)."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    name, gate = of_partition(2), asyncio.Event()
    gates["killed"] = gate
    pending = [asyncio.create_task(one.client.actor(Cell, name).add_when("killed")) for _ in range(5)]
    await until(lambda: f"Cell/{name}" in cluster.hosts["two"].activations)
    cluster.kill("two")
    await cluster.add("three", [2, 3])
    gate.set()
    assert sorted(await asyncio.gather(*pending)) == [1, 2, 3, 4, 5]


async def test_an_effect_recorded_before_the_death_is_not_repeated(cluster: Cluster) -> None:
    """The commit was made and its answer died with the host: the call made again gets that first answer (INV-8)."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    name = of_partition(2)
    assert await one.client.actor(Cell, name).add(1) == 1
    cluster.network.hold("two", "one")
    pending = asyncio.create_task(one.client.call("Cell", name, "add", b"10"))
    activation = two.activations[f"Cell/{name}"]
    await until(lambda: activation.version == 2 and not activation.uncommitted)
    cluster.kill("two")
    cluster.network.thaw("one")
    three = await cluster.add("three", [2, 3])
    assert await pending == b"11"
    assert await three.client.actor(Cell, name).read() == 11


async def test_a_frozen_host_is_left_for_its_successor(cluster: Cluster) -> None:
    """A call to a host that neither dies nor answers goes to the next owner as soon as the store names one; what the
    frozen one decides later is refused (INV-2)."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    name = of_partition(2)
    assert await one.client.actor(Cell, name).add(1) == 1
    cluster.network.freeze("two")
    pending = asyncio.create_task(one.client.actor(Cell, name).add(1))
    await until(lambda: one.placement._links["two"].unanswered)  # type: ignore[attr-defined]  # a cluster's
    await cluster.add("three", [2, 3])
    assert await pending == 2
    cluster.network.thaw("two")
    assert await two.client.actor(Cell, name).add(1) == 3


async def test_what_a_zombie_has_is_nobodys_until_its_lease_ends(cluster: Cluster) -> None:
    """INV-7: a host that was declared dead and lives may answer reads until its lease ends. Until then nobody serves
    what it had, however often somebody is told to take it."""
    zombie = await cluster.add("h-1", [0])
    two = await cluster.add("h-2")
    placement = cluster.placement("h-2")
    deposed_ms = two.clock.now_ms()
    for _ in range(3):
        await placement.take_free([0], ["h-2"])
    assert two.owned() == []
    (held,) = await cluster.journal.owners()
    assert held.lease_until_ms >= deposed_ms + zombie.ownership.lease_ms
    pending = asyncio.create_task(two.client.actor(Cell, of_partition(0)).add(1))
    while not two.owned():  # told over and over, as a supervisor does
        await placement.take_free([0], ["h-2"])
        await asyncio.sleep(0.01)
    assert two.clock.now_ms() >= held.lease_until_ms
    assert await pending == 1


async def test_a_batch_that_may_have_arrived_is_sent_again(cluster: Cluster) -> None:
    """A lost acknowledgement repeats the batch; the call runs once."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    name = of_partition(2)
    cluster.network.dropping.add("two")
    assert await one.client.actor(Cell, name).add(1) == 1
    assert await one.client.actor(Cell, name).read() == 1


async def test_a_hand_over_fails_no_call(cluster: Cluster) -> None:
    """While partitions go from host to host under load, every call is answered and counted once."""
    one = await cluster.add("one", [0, 1, 2, 3])
    two = await cluster.add("two", [])
    names = [of_partition(p, n) for p in range(PARTITIONS) for n in range(3)]
    shifted = asyncio.Event()

    async def load(host_name: str) -> int:
        host, rounds = cluster.hosts[host_name], 0
        while rounds < 30 or not shifted.is_set():
            await asyncio.gather(*(host.client.actor(Cell, name).add(1) for name in names))
            rounds += 1
            await asyncio.sleep(0)
        return rounds

    async def shift() -> None:
        for _ in range(3):
            await cluster.placement("one").give([2, 3], 2.0)
            await cluster.placement("two").take([2, 3], force=False)
            await cluster.placement("two").give([2, 3], 2.0)
            await cluster.placement("one").take([2, 3], force=False)
        shifted.set()

    rounds, more, _ = await asyncio.gather(load("one"), load("two"), shift())
    assert [await two.client.actor(Cell, name).read() for name in names] == [rounds + more] * len(names)
    assert one.owned() == [0, 1, 2, 3]


async def test_messages_survive_the_host_that_sends_them(cluster: Cluster) -> None:
    """One-way messages between hosts arrive exactly once, though their sender's host dies at once (INV-8, INV-9)."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    sender, target = of_partition(0), of_partition(2)
    await two.client.actor(Cell, sender).tell(target, 20)
    cluster.kill("one")
    await cluster.add("three", [0, 1])

    async with asyncio.timeout(5):
        while await two.client.actor(Cell, target).read() < 20:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.001)
    assert await two.client.actor(Cell, target).read() == 20
    assert one.aborted


async def test_a_deadlock_over_two_hosts_is_seen(cluster: Cluster) -> None:
    """A -> B -> A across hosts fails at once and names the chain."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    first, second = of_partition(0), of_partition(2)
    with pytest.raises(Deadlock, match=f"Cell/{first} -> Cell/{second} -> Cell/{first}"):
        await one.client.actor(Cell, first).add_there_and_back(second)


async def test_a_deadline_travels(cluster: Cluster) -> None:
    """A call that is late on another host is rolled back there (INV-6)."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    name = of_partition(2)
    gates["late"] = asyncio.Event()
    await overrun(
        lambda timeout_s: one.client.actor(Cell, name, timeout=timeout_s).add_when("late", 5),
        lambda: f"Cell/{name}" in two.activations,
    )
    await until(lambda: two.activations[f"Cell/{name}"].quiet)  # its own clock says so, or the word of the other host
    gates["late"].set()
    assert await two.client.actor(Cell, name).add(1) == 1


async def test_giving_up_travels(cluster: Cluster) -> None:
    """A cancelled call is cancelled where it runs, and leaves no trace."""
    one = await cluster.add("one", [0, 1])
    two = await cluster.add("two", [2, 3])
    name = of_partition(2)
    gates["cancelled"] = asyncio.Event()
    pending = asyncio.ensure_future(one.client.actor(Cell, name).add_when("cancelled", 5))
    await until(lambda: f"Cell/{name}" in two.activations and two.activations[f"Cell/{name}"].running)
    pending.cancel()
    await until(lambda: two.activations[f"Cell/{name}"].quiet)
    assert await two.client.actor(Cell, name).add(1) == 1


async def test_nobody_owns_it(cluster: Cluster) -> None:
    """A call for a partition without owner waits for one, and says so when none comes."""
    one = await cluster.add("one", [0, 1])
    waiting = asyncio.create_task(one.client.call("Cell", of_partition(3), "add", b"4"))
    await asyncio.sleep(0)
    await cluster.placement("one").take([3], force=False)
    assert await waiting == b"4"
    cluster.placement("one")._patience_s = 0.05
    with pytest.raises(NotOwner, match="partition 2"):
        await one.client.actor(Cell, of_partition(2)).read()


HERE, THERE = of_partition(0, actor_type="Walker"), of_partition(2, actor_type="Walker")
ONE_STEP_TOO_FAR = [["add", of_partition(2)], ["add", of_partition(3)]]


@pytest.mark.parametrize(
    ("actor_type", "name", "steps"),
    [
        ("Walker", THERE, ONE_STEP_TOO_FAR),
        ("Early", of_partition(2, actor_type="Early"), []),
        ("Walker", HERE, [["ask", THERE, [["ask", HERE, ONE_STEP_TOO_FAR]]]]),
    ],
    ids=["turn", "hook", "joined"],
)
async def test_a_turn_that_cannot_reach_another_is_not_elsewhere(
    cluster: Cluster, actor_type: str, name: str, steps: list[Any]
) -> None:
    """What is refused is the call that the turn has made, not the one that it is: that is not made again, and what the
    turn had done by calls before is done once."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2])
    for host in ("one", "two"):
        cluster.placement(host)._patience_s = 0.05
    refer: Any = one.client.actor
    with pytest.raises(OutcomeUnknown, match="partition 3"):
        await asyncio.wait_for(refer(actor_type, name).walk(steps), 5)
    assert await one.client.actor(Cell, of_partition(2)).read() == 1


async def test_a_call_is_not_made_again_when_the_turn_it_had_joined_was_cancelled(cluster: Cluster) -> None:
    """It would be a turn of its own then, beside the chain."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    gates.update(joined=asyncio.Event(), later=asyncio.Event())
    comes_back = [["ask", THERE, [["ask", HERE, [["open", "joined"], ["wait", "later"], ["grow"]]]]]]
    with pytest.raises(ActorFailed, match="as told"):
        await one.client.actor(Walker, HERE).walk([["both", comes_back, [["wait", "joined"], ["fail"]]]])
    gates["later"].set()
    await until(lambda: not cluster.placement("two")._serving)
    await cluster.placement("two")._links["one"].wait_sent()
    assert await one.client.actor(Walker, HERE).read() == 0
    sent = [item for sender, _, batch in cluster.network.batches if sender == "two" for item in decode_batch(batch)]
    assert [kind for kind, *_ in sent] == ["ask", "fail"]


async def test_an_owner_that_has_ended_is_not_waited_for_without_end(cluster: Cluster) -> None:
    """While the store goes on naming a host that is gone, a call waits its time, and then says so."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    cluster.placement("one")._patience_s = 0.2
    cluster.kill("two")
    with pytest.raises(NotOwner, match="nobody has owned partition 2"):
        await one.client.actor(Cell, of_partition(2)).read()


async def test_a_peer_that_cannot_be_looked_up_is_looked_up_again(cluster: Cluster) -> None:
    """That names are not known just now says nothing about the peer: the call waits, and is made."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    cluster.network.failing_lookups = 2
    async with asyncio.timeout(10):
        assert await one.client.actor(Cell, of_partition(2)).add(3) == 3
    assert cluster.network.failing_lookups == 0


async def test_a_call_that_reached_nobody_was_not_made_before(cluster: Cluster) -> None:
    """The owner had ended before anything was sent to it: its successor is asked as the first one, and needs to look
    for no receipt."""
    one = await cluster.add("one", [0, 1])
    await cluster.add("two", [2, 3])
    await until(lambda: cluster.placement("one").routes[2] == "two")
    cluster.kill("two")
    pending = asyncio.create_task(one.client.actor(Cell, of_partition(2)).add(1))
    await until(lambda: cluster.placement("one")._parked)
    await cluster.add("three", [2, 3])
    assert await pending == 1
    asks = [
        item[1]
        for sender, receiver, batch in cluster.network.batches
        if (sender, receiver) == ("one", "three")
        for item in decode_batch(batch)
        if item[0] == "ask"
    ]
    assert [ask.redelivered for ask in asks] == [False]
