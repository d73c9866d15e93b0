"""A backlog of messages: delivered in batches, in order, once, fairly; and who feeds it is slowed down.

Invariants, for N messages that wait in the outbox:
- they cost a number of store calls that does not grow with N but with N divided by the size of a batch, also when they
  may have been delivered before (INV-8 is looked at for many at once);
- those of one sender to one receiver keep their order, as none has to be refused and tried again;
- each takes effect once, whichever part of them was delivered before a crash.
"""

from __future__ import annotations

import asyncio
from dataclasses import field
from typing import TYPE_CHECKING, Any

import pytest

from actors import actor, context, method
from actors.errors import MailboxFull
from statestores.errors import StoreUnavailable
from statestores.model import OutboxMessage, TurnCommit, partition_of
from tests.actors.test_messages import Receiver, Sender, until_delivered
from tests.actors.worlds import settled, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors import ActorClient, DeadLetter, Host
    from tests.actors.worlds import World

N = 400


@actor
class Asker:
    """Calls a sender inside its own turn."""

    @method
    async def ask(self, who: str, amounts: list[int]) -> None:
        await context().actor(Sender, "s").tell(who, amounts)


async def leave_behind(world: World, *senders: str, count: int = N) -> None:
    """A crashed host leaves `count` messages of each sender to Receiver/r undelivered."""
    host = await world.host(Sender, Receiver)
    world.lever.refuse = lambda turn: turn.stream.startswith("Receiver/")
    for number, sender in enumerate(senders):
        await host.client.actor(Sender, sender).tell("r", list(range(number * count, (number + 1) * count)))
    await world.crash(host)
    world.lever.refuse = None
    world.lever.calls.clear()


async def caught_up(client: ActorClient) -> None:
    """All that stands in the rows is in flight."""
    await until(lambda: not client._host.outbox._behind)


def batches_of(world: World, stream: str) -> list[int]:
    """How many turns of a stream each later commit has; filled in as they come."""
    sizes: list[int] = []

    def count(turns: Sequence[TurnCommit]) -> None:
        if some := sum(turn.stream == stream for turn in turns):
            sizes.append(some)

    world.lever.on_commit = count
    return sizes


async def test_backlog_of_a_crash_takes_few_store_calls(world: World) -> None:
    """INV-8 for all that wait by one look, and their turns in full batches."""
    await leave_behind(world, "s")
    sizes = batches_of(world, "Receiver/r")
    client = await world.client(Sender, Receiver)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == list(range(N))
    assert world.lever.calls["receipts"] <= N // 50
    assert len(sizes) <= N // 20


async def test_what_was_delivered_before_the_crash_is_found_out_in_few_store_calls(world: World) -> None:
    """INV-8: no message of a backlog of which half had been delivered has a second effect, and none is left out."""
    host = await world.host(Sender, Receiver)
    world.lever.refuse = lambda turn: bool(turn.outbox_done)
    await host.client.actor(Sender, "s").tell("r", list(range(N // 2)))
    await until(lambda: sum(c.receipt is not None for c in world.lever.commits) == N // 2)
    world.lever.refuse = lambda turn: bool(turn.outbox_done) or turn.stream == "Receiver/r"
    await host.client.actor(Sender, "s").tell("r", list(range(N // 2, N)))
    await world.crash(host)
    world.lever.refuse = None
    world.lever.calls.clear()
    client = await world.client(Sender, Receiver)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == list(range(N))
    assert world.lever.calls["receipts"] <= N // 50


async def test_repeated_calls_behind_their_first_attempts_run_once(world: World) -> None:
    """INV-8: a look at the receipts says nothing of an attempt that still waits in the same mailbox."""
    client = await world.client(Receiver)
    keyed = [client.actor(Receiver, "r", idempotency_key=f"k{i % 5}").take(i % 5) for i in range(20)]
    answers = await asyncio.gather(*keyed)
    assert await client.actor(Receiver, "r").all() == [0, 1, 2, 3, 4]
    assert answers == [0, 1, 3, 6, 10] * 4
    assert not any(turn.receipt is None for turn in world.lever.commits if turn.stream == "Receiver/r")
    assert len([turn for turn in world.lever.commits if turn.stream == "Receiver/r"]) == 5


async def test_receiver_is_given_no_more_than_its_mailbox_takes(world: World) -> None:
    """None of a burst is refused, so all of it arrives in the order it was sent."""

    @actor(name="Slow", mailbox_limit=8)
    class Slow:
        taken: list[str] = []  # noqa: RUF012  # a field of the state

        @method
        async def take(self, _: int) -> None:
            await asyncio.sleep(0)
            self.taken = [*self.taken, context().idempotency_key or ""]

    host = await world.host(Sender, Slow)
    refused: list[BaseException] = []
    fail = host.fail

    def watch(call: Any, error: BaseException) -> None:
        refused.append(error)
        fail(call, error)

    host.fail = watch  # type: ignore[method-assign]
    await asyncio.gather(*(host.client.actor(Sender, "s").tell_by_name("Slow", "x", "take") for _ in range(100)))
    sent = [m.id for turn in world.lever.commits for m in turn.outbox]
    await until_delivered(world)
    assert await host.client.state("Slow", "x") == (100, {"taken": sent})
    assert not [error for error in refused if isinstance(error, MailboxFull)]


async def test_refused_message_needs_no_receipt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full mailbox has refused has certainly not been run: it is delivered as if for the first time."""
    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 0.001)
    gate = asyncio.Event()

    @actor(name="Gated", mailbox_limit=1)
    class Gated:
        taken: int = 0

        @method
        async def take(self, amount: int) -> None:
            await gate.wait()
            self.taken += amount

    host = await world.host(Sender, Gated)
    calls = [asyncio.ensure_future(host.client.actor("Gated", "g").take(1))]
    await until(lambda: "Gated/g" in host.activations and host.activations["Gated/g"].running)
    calls.append(asyncio.ensure_future(host.client.actor("Gated", "g").take(1)))
    await until(lambda: host.activations["Gated/g"].mailbox)
    await host.client.actor(Sender, "s").tell_by_name("Gated", "g", "take")
    await until(lambda: any(d.attempts > 1 for d in host.outbox._in_flight.values()))
    gate.set()
    await asyncio.gather(*calls)
    await until_delivered(world)
    assert await host.client.state("Gated", "g") == (3, {"taken": 3})
    assert world.lever.calls.get("receipts", 0) == 0


gates: dict[str, asyncio.Event] = {}


@actor(name="Busy", mailbox_limit=1)
class Busy:
    """Refuses everything while two calls to `hold` are there."""

    taken: int = 0
    told: list[str] = field(default_factory=list)

    @method
    async def hold(self) -> None:
        await gates["busy"].wait()

    @method
    async def take_at_second_try(self, amount: int) -> None:
        self._tries = getattr(self, "_tries", 0) + 1
        if self._tries == 1:
            raise ValueError("not yet")
        self.taken += amount

    @method
    async def ask_nobody(self) -> None:
        context().call_durably("Nowhere", "x", "take", b"1", reply_method="tell", token="t")

    @method
    async def tell(self, token: str, _: Any, error: dict[str, str]) -> None:
        self.told.append(f"{token}: {error['type']}")


async def keep_busy(client: ActorClient) -> list[asyncio.Future[None]]:
    """Two calls to Busy/b, one that runs and one that waits."""
    activations = client._host.activations
    calls = [asyncio.ensure_future(client.actor(Busy, "b").hold())]
    await until(lambda: "Busy/b" in activations and activations["Busy/b"].running)
    calls.append(asyncio.ensure_future(client.actor(Busy, "b").hold()))
    await until(lambda: activations["Busy/b"].mailbox)
    return calls


async def until_refused_often(host: Host) -> None:
    await until(lambda: any(d.attempts > 10 for d in host.outbox._in_flight.values()))


async def test_refusals_are_no_failures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is given up after eight failures of its turn, however often a full mailbox has refused it."""
    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 0.001)
    monkeypatch.setattr("actors.outbox._LONGEST_RETRY_S", 0.002)
    gates["busy"] = asyncio.Event()
    host = await world.host(Sender, Busy)
    calls = await keep_busy(host.client)
    await host.client.actor(Sender, "s").tell_by_name("Busy", "b", "take_at_second_try")
    await until_refused_often(host)
    gates["busy"].set()
    await asyncio.gather(*calls)
    await until_delivered(world)
    assert await host.client.dead_letters() == []
    assert await host.client.state("Busy", "b") == (1, {"taken": 1, "told": []})


async def test_caller_that_is_busy_hears_of_a_failure_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome of a durable call is not given up because its caller's mailbox has been full for long."""
    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 0.001)
    monkeypatch.setattr("actors.outbox._LONGEST_RETRY_S", 0.002)
    gates["busy"] = asyncio.Event()
    host = await world.host(Busy)
    world.lever.hold()
    asked = asyncio.ensure_future(host.client.actor(Busy, "b").ask_nobody())
    await until(lambda: "Busy/b" in host.activations and host.activations["Busy/b"].uncommitted)
    calls = await keep_busy(host.client)
    world.lever.let_go()
    await asked
    await until_refused_often(host)
    gates["busy"].set()
    await asyncio.gather(*calls)
    await until_delivered(world)
    assert await host.client.dead_letters() == []
    assert await host.client.state("Busy", "b") == (1, {"taken": 0, "told": ["t: UnknownActorType"]})


async def test_doubt_ends_when_all_rows_have_been_seen(world: World) -> None:
    """A lost answer makes what stood in the partition then doubtful, not what comes later."""
    client = await world.client(Sender, Receiver, store_patience_s=0.01, max_in_flight_messages=8)
    await client.actor(Sender, "s").tell("other", [])
    world.lever.lose_answers = 1
    with pytest.raises(Exception, match="lost"):
        await client.actor(Sender, "s").tell("r", [0])
    await until_delivered(world)
    await caught_up(client)
    world.lever.calls.clear()
    await client.actor(Sender, "s").tell("r", list(range(1, 100)))
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == list(range(100))
    assert world.lever.calls["outbox"] > 0
    assert world.lever.calls.get("receipts", 0) == 0


async def test_commit_that_turns_out_recorded_during_a_scan(world: World) -> None:
    """INV-9: the outcome of a commit became unknown after the scan had read its page: the scan goes on to find it."""
    client = await world.client(Sender, Receiver)
    host = client._host
    await caught_up(client)
    partition = partition_of("Sender/s", 4)
    await client.actor(Sender, "s").tell("other", [1])
    await until_delivered(world)
    scan = world.journal.outbox
    late = OutboxMessage("late.0", "Sender/s", b'{"k":"turn","s":"Receiver/r","m":"take","p":[7]}')

    async def scan_and_then(asked: int, *args: Any, **options: Any) -> list[OutboxMessage]:
        page = await scan(asked, *args, **options)
        del world.lever.outbox
        epoch = host.epochs[partition]
        turn = TurnCommit(partition, epoch, "", "late", host.clock.now_ms(), outbox=(late,))
        assert await world.journal.commit([turn]) == [None]
        host.outbox.recover([partition])
        return page

    world.lever.outbox = scan_and_then  # type: ignore[attr-defined]
    host.outbox.recover([partition])
    await until(lambda: "Receiver/r" in host.activations)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [7]


async def test_partitions_take_turns_when_there_is_little_room(world: World) -> None:
    """A long backlog of one partition does not hold up the others until its end."""
    one, other = "s", next(f"s{i}" for i in range(99) if partition_of(f"Sender/s{i}", 4) != partition_of("Sender/s", 4))
    await leave_behind(world, one, other, count=100)
    client = await world.client(Sender, Receiver, max_in_flight_messages=8)
    await until_delivered(world)
    taken = await client.actor(Receiver, "r").all()
    assert sorted(taken) == list(range(200))
    first_of_later, last_of_earlier = (
        sorted((taken.index(0), taken.index(100)))[1],
        sorted((taken.index(99), taken.index(199)))[0],
    )
    assert first_of_later < last_of_earlier


# -- giving up, and taking it back ----------------------------------------------------------------------------------


async def dead_letter(client: ActorClient) -> DeadLetter:
    """Of a message to Receiver/r, whose type its host has by now."""
    (letter,) = await client.dead_letters()
    assert (letter.actor, letter.method) == ("Receiver/r", "take")
    return letter


async def leave_dead_letter(world: World) -> None:
    host = await world.host(Sender)
    await host.client.actor(Sender, "s").tell("r", [5])
    await until_delivered(world)
    await host.stop()


async def test_dead_letter_leaves_though_nobody_waits_for_it(world: World) -> None:
    """INV-9: it is recorded as sent again, then its caller gives up: it is delivered without a restart."""
    await leave_dead_letter(world)
    client = await world.client(Sender, Receiver)
    world.lever.hold()
    sending = asyncio.ensure_future(client.resend_dead_letter(await dead_letter(client)))
    await settled()
    sending.cancel()
    await settled()
    world.lever.let_go()
    await until(lambda: "Receiver/r" in client._host.activations)
    await until_delivered(world)
    assert sending.cancelled()
    assert await client.actor(Receiver, "r").all() == [5]
    assert await client.dead_letters() == []


async def test_dead_letter_leaves_though_the_answer_is_lost(world: World) -> None:
    """INV-9: whoever sends it again is told that the outcome is unknown; it was recorded, so it is delivered."""
    await leave_dead_letter(world)
    client = await world.client(Sender, Receiver, store_patience_s=0.01)
    letter = await dead_letter(client)
    await caught_up(client)
    world.lever.lose_answers = 1
    with pytest.raises(StoreUnavailable):
        await client.resend_dead_letter(letter)
    await until(lambda: "Receiver/r" in client._host.activations)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [5]


# -- pacing ----------------------------------------------------------------------------------------------------------


async def crowd(world: World, gate: asyncio.Event) -> tuple[ActorClient, asyncio.Future[None]]:
    """A host whose room for messages is taken by a receiver that waits for the gate, with more in the rows; and the
    first caller who waits for room."""

    @actor(name="Gate")
    class Gate:
        @method
        async def take(self, _: int) -> None:
            await gate.wait()

    client = await world.client(Sender, Receiver, Asker, Gate, max_in_flight_messages=8)
    await caught_up(client)
    await asyncio.gather(*(client.actor(Sender, "s").tell_by_name("Gate", "g", "take") for _ in range(8)))
    told = asyncio.ensure_future(client.actor(Sender, "s").tell("r", list(range(20))))
    await until(lambda: client._host.outbox.crowded)
    return client, told


async def test_caller_from_outside_waits_for_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who feeds faster than messages can be delivered is answered when there is room again; the turn is durable."""
    monkeypatch.setattr("actors.outbox._LONGEST_PACE_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    await settled()
    assert not told.done()
    assert (await client.state("Sender", "s") or (0, {}))[1]["sent"] == 20
    gate.set()
    async with asyncio.timeout(10):
        await told
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == list(range(20))


async def test_turns_do_not_wait_for_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs inside a turn is answered at once, or what room depends on could wait for room. A turn that asks, and
    is asked from outside, sends nothing itself."""
    monkeypatch.setattr("actors.outbox._LONGEST_PACE_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    async with asyncio.timeout(10):
        await client.actor(Asker, "a").ask("r", [20])
    assert client._host.outbox.crowded
    gate.set()
    async with asyncio.timeout(10):
        await told
    await until_delivered(world)
    assert sorted(await client.actor(Receiver, "r").all()) == list(range(21))


async def test_nobody_waits_for_room_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that never comes, since it depends on the caller who waits, is not waited for."""
    monkeypatch.setattr("actors.outbox._LONGEST_PACE_S", 0.01)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    async with asyncio.timeout(10):
        await told
    assert client._host.outbox.crowded
    gate.set()


async def test_host_that_stops_answers_who_waits_for_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A durable turn is answered, though nothing will be delivered any more."""
    monkeypatch.setattr("actors.outbox._LONGEST_PACE_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    client._host.abort()
    async with asyncio.timeout(10):
        await told
    gate.set()
