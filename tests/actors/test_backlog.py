"""A backlog of messages: delivered in batches, in order, once, fairly; and who feeds it is slowed down.

Invariants, for N messages that wait in the outbox:
- they cost a number of store calls that does not grow with N but with N divided by the size of a batch, also when they
  may have been delivered before (INV-8 is looked at for many at once);
- those of one sender to one receiver keep their order, as none has to be refused and tried again;
- each takes effect once, whichever part of them was delivered before a crash;
- none waits for room that others have taken which are stuck: receivers leave some to each other, and work and messages
  have rooms of their own.
"""

from __future__ import annotations

import asyncio
from dataclasses import field
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from actors import actor, context, method, send
from actors.errors import MailboxFull
from actors.room import MESSAGES, WORK
from statestores.errors import StaleEpoch, StoreUnavailable
from statestores.model import OutboxMessage, TurnCommit, partition_of
from tests.actors.test_messages import Receiver, Sender, until_delivered
from tests.actors.worlds import settled, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors import ActorClient, DeadLetter, Host
    from tests.actors.worlds import World

N = 400

gates: dict[str, asyncio.Event] = {}


@actor
class Asker:
    """Calls a sender inside its own turn."""

    @method
    async def ask(self, who: str, amounts: list[int]) -> None:
        await context().actor(Sender, "s").tell(who, amounts)


@actor(mailbox_limit=10)
class Stuck:
    """Takes nothing before its gate is open."""

    taken: list[tuple[str, int]] = field(default_factory=list)

    @method
    async def take(self, number: int) -> None:
        await gates[context().actor_id].wait()
        self.taken.append((context().caller.partition("/")[2], number))


@actor
class Poster:
    """Sends messages to actors of the type Stuck, and posts work."""

    sent: int = 0

    @method
    async def tell(self, names: list[str]) -> None:
        for name in names:
            send(context().actor(Stuck, name).take, self.sent)
            self.sent += 1

    @method
    async def post(self, kind: str = "job") -> str:
        return context().post(kind, b"1")

    @method
    async def finish(self, message_id: str) -> None:
        context().done(message_id)


async def leave_behind(world: World, *senders: str, count: int = N) -> None:
    """A crashed host leaves `count` messages of each sender to Receiver/r undelivered."""
    host = await world.host(Sender, Receiver)
    world.lever.refuse = lambda turn: turn.stream.startswith("Receiver/")
    for number, sender in enumerate(senders):
        await host.client.actor(Sender, sender).tell("r", list(range(number * count, (number + 1) * count)))
    await world.crash(host)
    world.lever.refuse = None
    world.lever.calls.clear()


async def until_delivered_to(world: World, stream: str) -> None:
    await until(lambda: any(turn.stream == stream for turn in world.lever.commits))


async def caught_up(client: ActorClient) -> None:
    """All that stands in the rows is in flight."""
    await until(lambda: not client._host.outbox._backlogs._standing)


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

    host.fail = watch  # type: ignore[method-assign]  # the real one, looked at
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


async def keep_busy(client: ActorClient) -> list[asyncio.Task[None]]:
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
    monkeypatch.setattr("actors.pacing._LONGEST_S", 0.001)
    close_gates("a", "busy")
    host = await world.host(Busy, Poster, Stuck, max_in_flight_messages=1)
    await host.client.actor(Poster, "p").tell(["a"])
    await until(lambda: "Stuck/a" in host.activations)
    await host.client.actor(Busy, "b").ask_nobody()  # what it asks for waits for room until the actor is busy
    calls = await keep_busy(host.client)
    gates["a"].set()
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

    world.lever.outbox = scan_and_then  # type: ignore[attr-defined]  # the lever passes everything on
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


# -- room ------------------------------------------------------------------------------------------------------------


def close_gates(*names: str) -> None:
    gates.update({name: asyncio.Event() for name in names})


def open_gates() -> None:
    for gate in gates.values():
        gate.set()


async def taken_by(client: ActorClient, name: str, sender: str) -> list[int]:
    state = await client.state("Stuck", name)
    return [number for who, number in state[1]["taken"] if who == sender] if state is not None else []


async def test_receivers_that_are_stuck_leave_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever waits for a dozen actors that do not take it, messages to others leave at once, also of the same sender;
    and afterwards those get theirs, in the order they were sent."""
    stuck = [*"abcdefghijkl"]
    monkeypatch.setattr("actors.pacing._LONGEST_S", 0.001)
    close_gates(*stuck)
    client = await world.client(Sender, Receiver, Poster, Stuck, max_in_flight_messages=128)
    for name in stuck:
        await client.actor(Poster, "p").tell([name] * 100)
    await client.actor(Poster, "s").tell(stuck * 20)
    for number in range(50):
        await client.actor(Sender, f"s{number % 5}").tell(f"r{number}", [number])
    await until(lambda: all(f"Receiver/r{number}" in client._host.activations for number in range(50)))
    assert [await client.state("Stuck", name) for name in stuck] == [None] * 12
    assert client._host.outbox.in_flight <= 128
    open_gates()
    await until_delivered(world)
    for offset, name in enumerate(stuck):
        assert await taken_by(client, name, "p") == list(range(offset * 100, offset * 100 + 100))
        assert await taken_by(client, name, "s") == list(range(offset, 240, 12))


async def test_what_waits_to_be_tried_again_leaves_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver whose turns fail holds no more room than its share while they wait for their next attempt."""
    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 60.0)
    monkeypatch.setattr("actors.outbox._LONGEST_RETRY_S", 60.0)
    monkeypatch.setattr("actors.pacing._LONGEST_S", 0.001)
    client = await world.client(Sender, Receiver, max_in_flight_messages=16)
    for _ in range(40):
        await client.actor(Sender, "s").tell_by_name("Receiver", "bad", "refuse")
    await client.actor(Sender, "s").tell("good", [1])
    await until_delivered_to(world, "Receiver/good")
    assert client._host.outbox.in_flight < 16


@pytest.mark.parametrize("seed", range(6))
async def test_order_holds_while_receivers_come_and_go(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of each sender and receiver: all messages, once, in the order of their commit, however many wait in rows, who is
    stuck for a while, which scans are begun anew, and across crashes."""
    random = Random(seed)
    monkeypatch.setattr("actors.backlogs._PAGE", random.choice([3, 10, 1000]))
    names, senders = [f"x{number}" for number in range(random.choice([2, 6]))], ["p", "q", "r"]
    close_gates(*names)
    most = random.choice([1, 4, 16])
    host = await world.host(Poster, Stuck, max_in_flight_messages=most)
    told: dict[str, list[str]] = {sender: [] for sender in senders}
    for _ in range(40):
        name, sender = random.choice(names), random.choice(senders)
        match random.choice(["tell", "tell", "tell", "open", "close", "recover", "crash", "wait"]):
            case "tell":
                burst = random.choices(names, k=random.choice([1, 5, 20]))
                telling = asyncio.ensure_future(host.client.actor(Poster, sender).tell(burst))
                while not telling.done():
                    host.outbox.end_pacing()
                    await asyncio.sleep(0.001)
                await telling
                told[sender] += burst
            case "open":
                gates[name].set()
            case "close":
                gates[name] = asyncio.Event()
            case "recover":
                host.outbox.recover(random.sample(range(4), 2))
            case "crash":
                await world.crash(host)
                host = await world.host(Poster, Stuck, max_in_flight_messages=most)
            case _:
                await settled(random.randrange(100))
    open_gates()
    await until_delivered(world)
    for name in names:
        for sender in senders:
            expected = [number for number, receiver in enumerate(told[sender]) if receiver == name]
            assert await taken_by(host.client, name, sender) == expected, f"seed {seed}"


async def test_message_that_is_sent_while_the_last_page_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-9: it is left to the rows, as others wait before it, and stands in no page: the scan goes on to find it."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 0.001)
    close_gates("a")
    client = await world.client(Poster, Stuck, max_in_flight_messages=8)
    await caught_up(client)
    await client.actor(Poster, "p").tell(["a"] * 5)
    assert [*client._host.outbox._backlogs._standing] == ["Stuck/a"]
    scan = world.journal.outbox

    async def scan_and_then(*args: Any, **options: Any) -> list[OutboxMessage]:
        page = await scan(*args, **options)
        del world.lever.outbox
        await client.actor(Poster, "p").tell(["a"])
        return page

    world.lever.outbox = scan_and_then  # type: ignore[attr-defined]  # the lever passes everything on
    open_gates()
    await until_delivered(world)
    assert await taken_by(client, "a", "p") == list(range(6))


async def test_rows_of_the_stuck_are_not_read_again_and_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long backlog of one receiver that is stuck costs those of others no reading: rows that are read grow with the
    number of rows, not with that times the number of scans."""
    monkeypatch.setattr("actors.backlogs._PAGE", 20)
    close_gates("a", "b")
    client = await world.client(Poster, Stuck, max_in_flight_messages=64)
    world.lever.hold()
    telling = [
        asyncio.ensure_future(client.actor(Poster, "p").tell(["a"] * 200)),
        *(asyncio.ensure_future(client.actor(Poster, "p").tell(["b", "b", "a", "b"])) for _ in range(50)),
    ]
    world.lever.let_go()
    await until(lambda: client._host.outbox.in_flight >= 8)
    scan, read = world.journal.outbox, 0

    async def counted(*args: Any, **options: Any) -> list[OutboxMessage]:
        nonlocal read
        page = await scan(*args, **options)
        read += len(page)
        return page

    world.lever.outbox = counted  # type: ignore[attr-defined]  # the lever passes everything on
    gates["b"].set()

    async with asyncio.timeout(10):
        while len(await taken_by(client, "b", "p")) < 150:  # noqa: ASYNC110  # the store tells nobody
            await asyncio.sleep(0.005)
    client._host.outbox.end_pacing()
    await asyncio.gather(*telling)
    assert read <= 10 * 400
    open_gates()
    await until_delivered(world)
    assert len(await taken_by(client, "a", "p")) == 250


async def test_work_that_takes_long_does_not_hold_up_messages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work has no room left, and rows wait for it: messages leave at once, also of those who wait with work."""
    monkeypatch.setattr("actors.room._MOST_WORK", 4)
    close_gates("a")
    client = await world.client(Poster, Stuck, workers={"job": lambda _: None})
    ids = [await client.actor(Poster, "p").post() for _ in range(10)]
    await client.actor(Poster, "p").tell(["a"])
    await until(lambda: "Stuck/a" in client._host.activations)
    assert [client.is_at_work(message_id) for message_id in ids] == [True] * 4 + [False] * 6
    open_gates()
    await until_delivered_to(world, "Stuck/a")
    assert await taken_by(client, "a", "p") == [0]


async def test_messages_that_are_stuck_do_not_hold_up_work(world: World) -> None:
    """There is no room for messages, and rows wait for it: work is begun at once, and found behind them by a scan."""
    close_gates(*(f"x{number}" for number in range(8)))
    begun: list[str] = []
    options: dict[str, Any] = {"workers": {"job": lambda work: begun.append(work.id)}, "max_in_flight_messages": 4}
    host = await world.host(Poster, Stuck, **options)
    await caught_up(host.client)
    telling = asyncio.ensure_future(host.client.actor(Poster, "p").tell([f"x{number}" for number in range(8)]))
    await until(lambda: host.outbox.in_flight == 4)
    first = await host.client.actor(Poster, "p").post()
    assert begun == [first]
    host.outbox.end_pacing()
    await telling
    await world.crash(host)
    begun.clear()
    await world.host(Poster, Stuck, **options)
    await until(lambda: begun)
    assert begun == [first]


async def test_long_backlogs_of_work_and_of_messages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-9: both stand in one partition, over many pages, and neither is dropped because the other one stands."""
    monkeypatch.setattr("actors.backlogs._PAGE", 2)
    monkeypatch.setattr("actors.room._MOST_WORK", 1)
    names = [f"x{number}" for number in range(16)]
    close_gates(*names)
    host = await world.host(Poster, Stuck)
    world.lever.refuse = lambda turn: turn.stream.startswith("Stuck/")
    await host.client.actor(Poster, "p").tell(names * 3)
    ids = [await host.client.actor(Poster, "p").post() for _ in range(6)]
    await world.crash(host)
    world.lever.refuse = None
    begun: list[str] = []
    options: dict[str, Any] = {"workers": {"job": lambda work: begun.append(work.id)}, "max_in_flight_messages": 16}
    host = await world.host(Poster, Stuck, **options)
    backlogs = host.outbox._backlogs
    await until(lambda: MESSAGES in backlogs and WORK in backlogs)
    open_gates()
    for number in range(len(ids)):
        await until(lambda number=number: len(begun) == number + 1)  # type: ignore[misc]  # mypy sees no default there
        await host.client.actor(Poster, "p").finish(begun[-1])
    await until_delivered(world)
    assert begun == ids
    for number, name in enumerate(names):
        assert await taken_by(host.client, name, "p") == list(range(number, 48, 16))


async def test_row_that_was_begun_before_a_scan_failed_is_not_begun_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been delivered when the store answers again: no second turn is tried (INV-8 would refuse it)."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 0.001)
    monkeypatch.setattr("actors.backlogs._PAUSE_S", 60.0)
    close_gates("a")
    client = await world.client(Poster, Stuck, max_in_flight_messages=8)
    await caught_up(client)
    await client.actor(Poster, "p").tell(["a"] * 2)
    scan, backlogs = world.journal.outbox, client._host.outbox._backlogs

    async def scan_and_then(*args: Any, **options: Any) -> list[OutboxMessage]:
        page = await scan(*args, **options)
        assert page == []
        world.lever.outbox = fail  # type: ignore[attr-defined]  # the lever passes everything on
        await client.actor(Poster, "p").tell(["a"])
        return page

    async def fail(*_: Any, **__: Any) -> list[OutboxMessage]:
        del world.lever.outbox
        raise StoreUnavailable("not now")

    world.lever.outbox = scan_and_then  # type: ignore[attr-defined]  # the lever passes everything on
    open_gates()
    await until(lambda: any(each.paused for each in backlogs._standing.get("Stuck/a", {}).values()))
    await until(lambda: client._host.outbox.in_flight == 0)
    for backlog in tuple(backlogs._standing["Stuck/a"].values()):
        backlogs._end_pause(backlog)
    await until_delivered(world)
    assert await taken_by(client, "a", "p") == [0, 1, 2]
    assert len([turn for turn in world.lever.commits if turn.stream == "Stuck/a"]) == 3


async def test_work_that_nobody_does_takes_no_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in its row for a host that has a worker for it, and work behind it does not."""
    monkeypatch.setattr("actors.room._MOST_WORK", 2)
    begun: list[str] = []
    host = await world.host(Poster, workers={"job": lambda work: begun.append(work.id)})
    others = [await host.client.actor(Poster, "p").post("other") for _ in range(3)]
    assert host.outbox.in_flight == 0
    first = await host.client.actor(Poster, "p").post()
    assert begun == [first]
    await world.crash(host)
    begun.clear()
    host = await world.host(Poster, workers={"job": lambda work: begun.append(work.id)})
    await until(lambda: begun)
    assert begun == [first]
    await world.crash(host)
    begun.clear()
    await world.host(Poster, workers={"other": lambda work: begun.append(work.id)})
    await until(lambda: len(begun) == 2)
    assert begun == others[:2]


async def test_work_that_is_finished_while_it_waits_is_not_begun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn may finish what has had no room yet. It is left out, and what waits behind it is not."""
    monkeypatch.setattr("actors.room._MOST_WORK", 1)
    begun: list[str] = []
    client = await world.client(Poster, workers={"job": lambda work: begun.append(work.id)})
    await caught_up(client)
    poster = client.actor(Poster, "p")
    ids = [await poster.post() for _ in range(4)]
    await poster.finish(ids[1])
    await poster.finish(ids[0])
    await until(lambda: len(begun) == 2)
    assert begun == [ids[0], ids[2]]
    await poster.finish(ids[2])
    await until(lambda: len(begun) == 3)
    assert begun == [ids[0], ids[2], ids[3]]


@pytest.mark.parametrize("error", [StoreUnavailable("not now"), ZeroDivisionError("a bug in the store")])
async def test_scan_that_fails_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """INV-9: the store does not answer a scan: it is asked again, after a pause and not before."""
    monkeypatch.setattr("actors.backlogs._PAUSE_S", 60.0)
    await leave_behind(world, "s", count=10)
    scan, failed = world.journal.outbox, 0

    async def fail(*args: Any, **options: Any) -> list[OutboxMessage]:
        nonlocal failed
        failed += 1
        if failed <= 4:
            raise error
        return await scan(*args, **options)

    world.lever.outbox = fail  # type: ignore[attr-defined]  # the lever passes everything on
    client = await world.client(Sender, Receiver)
    await until(lambda: failed == 4)
    backlogs = client._host.outbox._backlogs
    backlogs._wake.set()
    await settled()
    assert failed == 4
    for backlog in tuple(backlogs._standing["all"].values()):
        backlogs._end_pause(backlog)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == list(range(10))


async def test_little_room_is_filled_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the room may be taken for ever: the little that becomes free is given to who waits."""
    monkeypatch.setattr("actors.room._MOST_WORK", 10)
    begun: list[str] = []
    client = await world.client(Poster, workers={"job": lambda work: begun.append(work.id)})
    await caught_up(client)
    poster = client.actor(Poster, "p")
    ids = [await poster.post() for _ in range(12)]
    await poster.finish(ids[3])
    await until(lambda: len(begun) == 11)
    await poster.finish(ids[7])
    await until(lambda: len(begun) == 12)
    assert begun == ids


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


async def test_dead_letters_that_are_sent_again_cost_no_scans(world: World) -> None:
    """They leave from memory, in order: however many rows wait in the partition, none is read again for each."""
    host = await world.host(Sender)
    await host.client.actor(Sender, "s").tell("r", list(range(20)))
    await until_delivered(world)
    await host.stop()
    client = await world.client(Sender, Receiver)
    await caught_up(client)
    letters = await client.dead_letters()
    world.lever.calls.clear()
    for letter in letters:
        await client.resend_dead_letter(letter)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == list(range(20))
    assert "outbox" not in world.lever.calls


# -- pacing ----------------------------------------------------------------------------------------------------------


async def crowd(world: World, gate: asyncio.Event, *others: type) -> tuple[ActorClient, asyncio.Future[None]]:
    """A host whose room for messages is taken by receivers that wait for the gate, with more in the rows; and the first
    caller who waits for room."""

    @actor(name="Gate")
    class Gate:
        @method
        async def take(self, _: int) -> None:
            await gate.wait()

    client = await world.client(Sender, Receiver, Asker, Gate, *others, max_in_flight_messages=8)
    await caught_up(client)
    await asyncio.gather(*(client.actor(Sender, "s").tell_by_name("Gate", f"g{n}", "take") for n in range(8)))
    told = asyncio.ensure_future(client.actor(Sender, "s").tell("r", list(range(20))))
    await until(lambda: client._host.outbox._pacing)
    return client, told


async def test_caller_from_outside_waits_for_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who feeds faster than messages can be delivered is answered when there is room again; the turn is durable."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
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
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    async with asyncio.timeout(10):
        await client.actor(Asker, "a").ask("r", [20])
    assert MESSAGES in client._host.outbox._backlogs
    gate.set()
    async with asyncio.timeout(10):
        await told
    await until_delivered(world)
    assert sorted(await client.actor(Receiver, "r").all()) == list(range(21))


async def test_send_from_outside_waits_for_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends in a closed loop is slowed down like who calls; not so a turn that sends by way of the client."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)

    @actor(name="Mailer")
    class Mailer:
        @method
        async def mail(self) -> None:
            await client.send(client.actor(Receiver, "r").take, 30)

    gate = asyncio.Event()
    client, told = await crowd(world, gate, Mailer)
    sent = asyncio.ensure_future(client.send(client.actor(Receiver, "r").take, 20))
    async with asyncio.timeout(10):
        await client.actor(Mailer, "m").mail()
    await settled()
    assert not sent.done()
    assert MESSAGES in client._host.outbox._backlogs
    gate.set()
    async with asyncio.timeout(10):
        await asyncio.gather(told, sent)
    await until_delivered(world)
    assert sorted(await client.actor(Receiver, "r").all()) == [*range(21), 30]


async def test_nobody_waits_for_room_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that never comes, since it depends on the caller who waits, is not waited for."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 0.01)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    async with asyncio.timeout(10):
        await told
    assert MESSAGES in client._host.outbox._backlogs
    gate.set()


async def test_caller_with_a_deadline_is_answered_before_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is not waited for until the caller is told that nothing came of a turn that is durable."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    await client.actor(Sender, "s", timeout=2.0).tell("r", [20])
    assert MESSAGES in client._host.outbox._backlogs
    gate.set()
    await told


async def test_who_waits_later_waits_as_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What limits the wait of one caller, who has had room since, does not end that of the next."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    ((first, _),) = client._host.outbox._pacing._waiting.values()
    gate.set()
    await told
    await until_delivered(world)
    assert first.cancelled()
    assert not client._host.outbox._pacing._waiting


async def test_caller_of_a_receiver_that_is_full_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who feeds it is answered when it has room again; who sends to others is answered at once."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
    close_gates("a")
    client = await world.client(Sender, Receiver, Poster, Stuck, max_in_flight_messages=8)
    await caught_up(client)
    feeding = asyncio.ensure_future(client.actor(Poster, "p").tell(["a"] * 10))
    await until(lambda: client._host.outbox._pacing._waiting)
    await client.actor(Sender, "s").tell("r", [1])
    await until_delivered_to(world, "Receiver/r")
    await settled()
    assert not feeding.done()
    open_gates()
    await feeding
    await until_delivered(world)
    assert await taken_by(client, "a", "p") == list(range(10))


async def test_host_that_drains_answers_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for room for which nothing will be made any more: neither who waits already, nor who comes last."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    world.lever.hold()
    last = asyncio.ensure_future(client.actor(Sender, "s").tell("r", list(range(20, 40))))
    await until(lambda: client._host.activations["Sender/s"].uncommitted)
    stopping = asyncio.ensure_future(client._host.stop())
    await told
    world.lever.let_go()
    await last
    assert not stopping.done()
    gate.set()
    await stopping


async def test_who_waits_is_answered_when_the_partition_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn is durable, whoever delivers its messages."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    partition = partition_of("Sender/s", 4)
    epoch = client._host.epochs[partition]
    client._host.lost_partition(partition, StaleEpoch(partition, epoch, epoch + 1))
    await told
    gate.set()


async def test_host_that_stops_answers_who_waits_for_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A durable turn is answered, though nothing will be delivered any more."""
    monkeypatch.setattr("actors.pacing._LONGEST_S", 60.0)
    gate = asyncio.Event()
    client, told = await crowd(world, gate)
    client._host.abort()
    async with asyncio.timeout(10):
        await told
    gate.set()
