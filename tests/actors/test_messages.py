"""Messages: sent with the turn, delivered whatever happens, in effect exactly once; durable calls and posted work."""

from __future__ import annotations

import asyncio
from dataclasses import field
from typing import TYPE_CHECKING, Any

import pytest

from actors import ActorFailed, Host, InvalidArguments, UnknownMethod, Work, actor, context, method, send
from statestores.errors import StaleEpoch, StoreUnavailable
from tests.actors.worlds import settled, until

if TYPE_CHECKING:
    from tests.actors.worlds import World


@actor
class Sender:
    sent: int = 0
    outcomes: list[list[Any]] = field(default_factory=list)

    @method
    async def tell(self, who: str, amounts: list[int]) -> None:
        for amount in amounts:
            send(context().actor(Receiver, who).take, amount)
        self.sent += len(amounts)

    @method
    async def tell_and_fail(self, who: str) -> None:
        send(context().actor(Receiver, who).take, 1)
        raise ValueError("no")

    @method
    async def tell_and_leave(self, who: str, amount: int) -> None:
        send(context().actor(Receiver, who).take, amount)
        context().delete()

    @method
    async def tell_by_name(self, actor_type: str, who: str, name: str) -> None:
        context().send_raw(actor_type, who, name, b"1")

    @method
    async def ask(self, who: str, name: str, argument: int, token: str) -> None:
        context().call_durably("Receiver", who, name, b"%d" % argument, reply_method="outcome", token=token)

    @method
    async def ask_type(self, actor_type: str, token: str) -> None:
        context().call_durably(actor_type, "x", "take", b"1", reply_method="outcome", token=token)

    @method
    async def outcome(self, token: str, result: Any, error: dict[str, str] | None) -> None:
        self.outcomes.append([token, result, None if error is None else [error["type"], error["message"]]])

    @method
    async def post(self, what: str) -> str:
        return context().post("job", b'"%b"' % what.encode())

    @method
    async def finish(self, message_id: str, what: str) -> None:
        context().done(message_id)
        self.outcomes.append([what])

    @method(read_only=True)
    async def heard(self) -> list[list[Any]]:
        return self.outcomes


@actor
class Receiver:
    taken: list[int] = field(default_factory=list)
    senders: list[str] = field(default_factory=list)

    @method
    async def take(self, amount: int) -> int:
        self.taken.append(amount)
        if context().caller not in self.senders:
            self.senders.append(context().caller)
        return sum(self.taken)

    @method
    async def refuse(self, amount: int) -> int:
        self.taken.append(amount)
        raise ValueError(f"not {amount}")

    @method
    async def refuse_at_first(self, amount: int) -> int:
        self._tries = getattr(self, "_tries", 0) + 1
        if self._tries == 1:
            raise ValueError("later")
        self.taken.append(amount)
        return amount

    @method
    async def relay(self, amount: int) -> None:
        self.taken.append(amount)
        if amount:
            send(context().actor(Receiver, "next").relay, amount - 1)

    @method
    async def hand_on_and_leave(self, left: int) -> None:
        turn = context()
        if left:
            send(turn.actor(Receiver, f"runner {left - 1}").hand_on_and_leave, left - 1)
        else:
            send(turn.actor(Receiver, "end").take, 0)
        turn.delete()

    @method
    async def remove(self) -> None:
        context().delete()

    @method(read_only=True)
    async def all(self) -> list[int]:
        return self.taken

    @method(read_only=True)
    async def who(self) -> list[str]:
        return self.senders


async def outbox_is_empty(world: World) -> bool:
    return not [m for p in range(4) for m in await world.journal.outbox(p)]


async def until_delivered(world: World) -> None:
    async with asyncio.timeout(30):
        while not await outbox_is_empty(world):  # noqa: ASYNC110  # the store tells nobody
            await asyncio.sleep(0.002)


async def test_messages_arrive_once_and_in_order(world: World) -> None:
    """Each takes effect once, in the order it was sent, and the sender is known."""
    client = await world.client(Sender, Receiver)
    await client.actor(Sender, "s").tell("r", list(range(50)))
    await client.actor(Sender, "s").tell("r", list(range(50, 100)))
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == list(range(100))
    assert await client.actor(Receiver, "r").who() == ["Sender/s"]


async def test_message_leaves_after_the_commit_only(world: World) -> None:
    """INV-7: nothing arrives of a turn that is not durable, nothing at all of one that failed."""
    client = await world.client(Sender, Receiver)
    with pytest.raises(Exception, match="no"):
        await client.actor(Sender, "s").tell_and_fail("r")
    await client.actor(Sender, "s").tell("r", [])
    world.lever.hold()
    told = asyncio.ensure_future(client.actor(Sender, "s").tell("r", [1]))
    await settled()
    assert "Receiver/r" not in client._host.activations
    world.lever.let_go()
    await told
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [1]


async def test_crash_between_commit_and_delivery(world: World) -> None:
    """INV-9: what was committed and not delivered is found in the store by the next host."""
    host = await world.host(Sender)  # it has no Receiver: nothing can be delivered
    await host.client.actor(Sender, "s").tell("r", [1, 2, 3])
    await world.crash(host)
    client = await world.client(Sender, Receiver)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [1, 2, 3]


async def test_crash_between_delivery_and_acknowledgement(world: World) -> None:
    """INV-8: delivered again after the crash, the message finds its receipt and has no second effect."""
    host = await world.host(Sender, Receiver)
    world.lever.refuse = lambda turn: bool(turn.outbox_done)  # the sender never learns of the delivery
    await host.client.actor(Sender, "s").tell("r", [1, 2])
    await until(lambda: any(c.receipt for c in world.lever.commits if c.stream == "Receiver/r"))
    assert await host.client.actor(Receiver, "r").all() == [1, 2]
    assert not await outbox_is_empty(world)
    await world.crash(host)
    world.lever.refuse = None
    client = await world.client(Sender, Receiver)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [1, 2]


@pytest.mark.parametrize("crash_after", range(8))
async def test_crash_anywhere_in_a_relay(world: World, crash_after: int) -> None:
    """Whichever commit is the last before the crash, each step of a chain of messages happens exactly once."""
    host = await world.host(Receiver)
    commits = 0

    def count(turns: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == crash_after + 2:
            host.abort()

    world.lever.on_commit = count
    await host.client.send(host.client.actor(Receiver, "next").relay, 3)
    await until(lambda: host.aborted or (commits >= 4 and not host.outbox.in_flight))
    world.lever.on_commit = None
    if not host.aborted:
        await world.crash(host)
    client = await world.client(Receiver)
    await until_delivered(world)
    assert await client.actor(Receiver, "next").all() == [3, 2, 1, 0]


@pytest.mark.parametrize("crash_after", range(10))
async def test_crash_anywhere_in_a_relay_of_actors_that_leave(world: World, crash_after: int) -> None:
    """INV-8 and INV-9 across deletions: each runner hands on and deletes itself; the end is reached once, and nobody is
    brought back by a message that is delivered again."""
    host = await world.host(Receiver)
    commits = 0

    def count(turns: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == crash_after + 2:
            host.abort()

    world.lever.on_commit = count
    await host.client.send(host.client.actor(Receiver, "runner 3").hand_on_and_leave, 3)
    await until(lambda: host.aborted or (commits >= 4 and not host.outbox.in_flight))
    world.lever.on_commit = None
    if not host.aborted:
        await world.crash(host)
    client = await world.client(Receiver)
    await until_delivered(world)
    assert await client.actor(Receiver, "end").all() == [0]
    assert [await client.state("Receiver", f"runner {n}") for n in range(4)] == [None] * 4


async def test_unknown_outcome_of_the_sending_turn(world: World) -> None:
    """The commit happened, its answer was lost for good: its messages are found and delivered without a restart."""
    client = await world.client(Sender, Receiver, store_patience_s=0.01)
    await client.actor(Sender, "s").tell("other", [])
    world.lever.lose_answers = 1
    with pytest.raises(Exception, match="lost"):
        await client.actor(Sender, "s").tell("r", [7])
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [7]


async def test_more_messages_than_may_be_in_flight(world: World) -> None:
    """What does not fit waits in the store; memory holds `max_in_flight_messages`."""
    client = await world.client(Sender, Receiver, max_in_flight_messages=8)
    most = 0

    def watch(_: Any) -> None:
        nonlocal most
        most = max(most, client._host.outbox.in_flight)

    world.lever.on_commit = watch
    for start in range(0, 100, 20):
        await client.actor(Sender, "s").tell("r", list(range(start, start + 20)))
    await until_delivered(world)
    assert sorted(await client.actor(Receiver, "r").all()) == list(range(100))
    assert most <= 8


async def test_message_to_nowhere_becomes_a_dead_letter(world: World) -> None:
    """What can never succeed is given up, kept, and shown with its reason; it can be sent again or thrown away."""
    host = await world.host(Sender, Receiver)
    client = host.client
    await client.actor(Sender, "s").tell_by_name("Nowhere", "x", "take")
    await client.actor(Sender, "s").tell_by_name("Receiver", "x", "no_such")
    await until_delivered(world)
    letters = await client.dead_letters()
    assert {(d.sender, d.actor, d.method) for d in letters} == {
        ("Sender/s", "Nowhere/x", "take"),
        ("Sender/s", "Receiver/x", "no_such"),
    }
    assert {d.reason.split(":")[0] for d in letters} == {"UnknownActorType", "UnknownMethod"}
    (lost,) = [d for d in letters if d.method == "no_such"]
    await client.discard_dead_letter(lost)
    assert [d.method for d in await client.dead_letters()] == ["take"]


async def test_dead_letter_is_sent_again(world: World) -> None:
    """After the reason is gone: here a type that is deployed now."""
    host = await world.host(Sender)
    await host.client.actor(Sender, "s").tell("r", [5])
    await until_delivered(world)
    await host.stop()
    client = await world.client(Sender, Receiver)
    (letter,) = await client.dead_letters()
    await client.resend_dead_letter(letter)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [5]
    assert await client.dead_letters() == []


async def test_message_whose_turn_keeps_failing_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many attempts; a failed turn leaves no trace each time, and the ones after it are delivered."""
    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 0.001)
    client = await world.client(Sender, Receiver)
    await client.actor(Sender, "s").tell_by_name("Receiver", "r", "refuse")
    await client.actor(Sender, "s").tell_by_name("Receiver", "r", "refuse_at_first")
    await until_delivered(world)
    (letter,) = await client.dead_letters()
    assert letter.reason == "ActorFailed: ValueError: not 1"
    assert await client.actor(Receiver, "r").all() == [1]


async def test_durable_call_brings_its_outcome(world: World) -> None:
    """Result or failure comes back once, as a message; a failure of the target's turn left no trace there."""
    client = await world.client(Sender, Receiver)
    sender = client.actor(Sender, "s")
    await sender.ask("r", "take", 4, "t1")
    await until_delivered(world)
    await sender.ask("r", "refuse", 5, "t2")
    await until_delivered(world)
    await sender.ask("r", "no_such", 5, "t3")
    await sender.ask_type("Nowhere", "t4")
    await until_delivered(world)
    heard = await sender.heard()
    assert sorted(heard)[:2] == [["t1", 4, None], ["t2", None, ["ValueError", "not 5"]]]
    assert [h[2][0] for h in sorted(heard)[2:]] == ["UnknownMethod", "UnknownActorType"]
    assert await client.actor(Receiver, "r").all() == [4]


async def test_durable_call_across_a_crash(world: World) -> None:
    """The target's turn and the outcome's arrival happen once each, whatever was lost in between."""
    host = await world.host(Sender)
    await host.client.actor(Sender, "s").ask("r", "take", 4, "t")
    await world.crash(host)
    host = await world.host(Sender, Receiver)
    await until(lambda: any(c.stream == "Receiver/r" for c in world.lever.commits))
    await world.crash(host)
    client = await world.client(Sender, Receiver)
    await until_delivered(world)
    assert await client.actor(Sender, "s").heard() == [["t", 4, None]]
    assert await client.actor(Receiver, "r").all() == [4]


async def test_posted_work_is_done_again_until_done_is_committed(world: World) -> None:
    """A worker that fails is called again; after a crash the work is found; `done` ends it."""
    seen: list[Work] = []
    hosts: list[Host] = []

    async def worker(work: Work) -> None:
        seen.append(work)
        if len(seen) < 3:
            raise RuntimeError("not yet")
        await hosts[-1].client.actor(Sender, "s").finish(work.id, "done")

    async def never(work: Work) -> None:
        await asyncio.Event().wait()

    first = await world.host(Sender, workers={"job": never})
    message_id = await first.client.actor(Sender, "s").post("x")
    await world.crash(first)
    hosts.append(await world.host(Sender, workers={"job": worker}))
    await until_delivered(world)
    assert [(w.id, w.body, w.kind, w.stream) for w in seen] == [(message_id, b'"x"', "job", "Sender/s")] * 3
    assert all(w.redelivered for w in seen)
    assert await hosts[0].client.actor(Sender, "s").heard() == [["done"]]
    assert hosts[0].outbox.in_flight == 0


async def test_send_from_outside(world: World) -> None:
    """Accepted durably, delivered once; a mistake in it is the caller's error at once."""
    client = await world.client(Receiver)
    await client.send(client.actor(Receiver, "r").take, 5)
    await client.send(client.actor("Receiver", "r").take, 6)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [5, 6]
    with pytest.raises(UnknownMethod):
        await client.send(client.actor("Receiver", "r").nothing, 6)
    with pytest.raises(InvalidArguments):
        await client.send(client.actor("Receiver", "r").take, "many")
    with pytest.raises(TypeError, match="method of an actor reference"):
        await client.send(print, 6)


async def test_send_from_outside_under_a_key(world: World) -> None:
    """INV-8: sent through references with one idempotency key, typed or by name, it is one message."""
    client = await world.client(Receiver)
    for _ in range(2):
        await client.send(client.actor(Receiver, "r", idempotency_key="once").take, 5)
        await client.send(client.actor("Receiver", "r", idempotency_key="once").take, 5)
    await client.send(client.actor(Receiver, "r", idempotency_key="other").take, 6)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [5, 6]


async def test_send_out_of_a_turn_has_no_key(world: World) -> None:
    """It stands or falls with its turn, and a key, which could do nothing, is refused."""

    @actor
    class Keyed:
        @method
        async def tell(self, who: str) -> None:
            send(context().actor(Receiver, who, idempotency_key="once").take, 5)

    client = await world.client(Keyed, Receiver)
    with pytest.raises(ActorFailed, match="without idempotency_key"):
        await client.actor(Keyed, "k").tell("r")


async def test_messages_of_a_deleted_actor_still_leave(world: World) -> None:
    """INV-9: what an actor has sent arrives, though it was deleted, and the host crashed, before any of it had left."""
    host = await world.host(Sender, Receiver)
    world.lever.refuse = lambda turn: turn.stream == "Receiver/r"
    await host.client.actor(Sender, "s").tell("r", [1, 2])
    await host.client.actor(Sender, "s").tell_and_leave("r", 3)
    assert await host.client.state("Sender", "s") is None
    await world.crash(host)
    world.lever.refuse = None
    client = await world.client(Sender, Receiver)
    await until_delivered(world)
    assert await client.actor(Receiver, "r").all() == [1, 2, 3]


async def test_message_that_comes_again_to_a_deleted_actor(world: World) -> None:
    """INV-8: it took effect before the deletion, and has none on the actor's successor."""
    host = await world.host(Sender, Receiver)
    world.lever.refuse = lambda turn: bool(turn.outbox_done)  # deliveries are never known to have succeeded
    await host.client.actor(Sender, "s").tell("r", [1])
    await until(lambda: any(c.receipt is not None for c in world.lever.commits))
    await host.client.actor(Receiver, "r").remove()
    await world.crash(host)
    world.lever.refuse = None
    client = await world.client(Sender, Receiver)
    await until_delivered(world)
    assert await client.state("Receiver", "r") is None


async def test_keyed_call_that_is_made_again_after_a_deletion(world: World) -> None:
    """INV-8: a client that repeats a call gets the first answer, and does not bring a deleted actor back."""
    client = await world.client(Receiver)
    taker = client.actor(Receiver, "r", idempotency_key="once")
    assert await taker.take(5) == 5
    await client.delete("Receiver", "r")
    assert await taker.take(5) == 5
    assert await client.state("Receiver", "r") is None


async def test_delivery_to_a_full_mailbox_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mailbox that refuses loses nothing."""
    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 0.001)

    @actor(name="Narrow", mailbox_limit=1)
    class Narrow:
        taken: int = 0

        @method
        async def take(self, amount: int) -> None:
            await asyncio.sleep(0)
            self.taken += amount

    client = await world.client(Sender, Narrow)
    for _ in range(10):
        await client.actor(Sender, "s").tell_by_name("Narrow", "n", "take")
    await until_delivered(world)
    assert await client.state("Narrow", "n") == (10, {"taken": 10})


async def test_acknowledgement_that_was_lost_is_made_again(world: World) -> None:
    """The row of a delivered message whose removal nobody confirmed goes, without a restart and without a second
    effect."""
    client = await world.client(Sender, Receiver, store_patience_s=0.005)
    failed: list[str] = []

    def fail_first_ack(turns: Any) -> None:
        if any(t.outbox_done for t in turns) and not failed:
            failed.append("once")
            raise StoreUnavailable("gone")

    world.lever.on_commit = fail_first_ack
    await client.actor(Sender, "s").tell("r", [1])
    await until_delivered(world)
    assert failed == ["once"]
    assert await client.actor(Receiver, "r").all() == [1]
    await until(lambda: client._host.outbox.in_flight == 0)


async def test_nothing_is_delivered_for_a_lost_partition(world: World) -> None:
    """A delivery that is waiting to be tried again stops when another host owns its outbox."""
    host = await world.host(Sender, Receiver)
    world.lever.refuse = lambda turn: turn.stream == "Receiver/r"
    await host.client.actor(Sender, "s").tell("r", [1])
    await until(lambda: any(d.attempts > 0 for d in host.outbox._in_flight.values()))
    await world.journal.acquire(range(4), "another", host.clock.now_ms(), 60_000, force=True)
    world.lever.refuse = None
    for partition in range(4):
        host.lost_partition(partition, StaleEpoch(partition, 1, 2))
    await until(lambda: host.outbox.in_flight == 0)
    assert await world.journal.events("Receiver/r") == []
    assert not await outbox_is_empty(world)
