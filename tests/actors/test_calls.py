"""Calls: keys make them happen once, deadlines and cancellation undo them, mailboxes refuse, bad input is named."""

from __future__ import annotations

import asyncio
import math
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from actors import (
    ActorFailed,
    DeadlineExceeded,
    InvalidArguments,
    InvalidName,
    InvalidSchedule,
    LoopClock,
    MailboxFull,
    UnknownActorType,
    UnknownMethod,
    UnserializableResult,
    actor,
    context,
    method,
    send,
)
from statestores.model import IndexQuery
from tests.actors.test_hosts import HandClock
from tests.actors.worlds import overrun, settled, until

if TYPE_CHECKING:
    from tests.actors.worlds import World


@actor(mailbox_limit=3, receipts="1h")
class Till:
    cash: int = 0
    note: str = ""

    def on_activate(self) -> None:
        self._gate = asyncio.Event()
        self._cancelled = 0

    @method
    async def pay(self, amount: int) -> int:
        self.cash += amount
        return self.cash

    @method
    async def pay_slowly(self, amount: int) -> int:
        self.cash += amount
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        return self.cash

    @method
    async def pay_deaf(self, amount: int) -> int:
        """Swallows the cancellation."""
        self.cash += amount
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return self.cash

    @method(read_only=True)
    async def read_deaf(self) -> int:
        """Swallows the cancellation, beside other reads."""
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return self.cash

    @method
    async def pay_and_turn_the_cancellation_into_an_error(self) -> None:
        self.cash += 1
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            raise ValueError("cleaning up failed") from None

    @method(timeout="20ms")
    async def pay_too_slowly(self) -> None:
        self.cash += 1
        await self._gate.wait()

    @method
    async def cancel_itself(self) -> None:
        self.cash += 1
        waiting = asyncio.ensure_future(asyncio.sleep(60))
        waiting.cancel()
        await waiting

    @method
    async def set_note(self, note: str) -> str:
        self.note = note
        return note

    @method(interleave=True)
    async def open_gate(self) -> None:
        self._gate.set()

    @method(read_only=True)
    async def read(self) -> int:
        return self.cash

    @method(read_only=True)
    async def read_slowly(self) -> int:
        await self._gate.wait()
        return self.cash

    @method(read_only=True)
    async def times_cancelled(self) -> int:
        return self._cancelled

    @method
    async def fail_once(self, amount: int) -> int:
        if not hasattr(self, "_failed"):
            self._failed = True
            raise ValueError("the first time")
        self.cash += amount
        return self.cash


@actor(snapshot_every=2)
class Box:
    """With None where, by the annotation, none can be, as people write it."""

    label: str = None  # type: ignore[assignment]  # the mistake
    size: int = 0

    @method
    async def grow(self, amount: int = None) -> int:  # type: ignore[assignment]  # noqa: RUF013  # the mistake
        self.size += 1 if amount is None else amount
        return self.size

    @method
    async def grow_both_ways(self, up: int = None, down: int = None) -> int:  # type: ignore[assignment]  # noqa: RUF013  # the mistake
        return await self.grow((up or 0) - (down or 0))

    @method
    async def mark(self, label: str | None) -> None:
        self.label = label  # type: ignore[assignment]  # the mistake

    @method
    async def tell(self, other: str) -> None:
        send(context().actor(Box, other).grow)
        send(context().actor(Box, other).grow_both_ways, down=5)


@actor
class Scale:
    @method
    async def show_number(self, number: int) -> str:
        return str(number)

    @method
    async def show_fraction(self, fraction: float) -> str:
        return str(fraction)


@actor
class Shop:
    sales: int = 0

    @method
    async def add_huge(self, item: str) -> str:
        return await context().actor(Scale, item).show_number(2**70)

    @method
    async def add_infinite(self, item: str) -> str:
        return await context().actor(Scale, item).show_fraction(math.inf)

    @method
    async def sell(self, till: str, amount: int) -> int:
        ref = context().actor(Till, till)
        first = await ref.pay(amount)
        second = await ref.pay(amount)
        self.sales += 1
        return first + second

    @method
    async def sell_and_fail_once(self, till: str) -> int:
        paid = await context().actor(Till, till).pay(1)
        if not hasattr(self, "_failed"):
            self._failed = True
            raise ValueError("after the nested call")
        return paid

    @method
    async def sell_two_and_fail_once(self, till: str) -> int:
        """What is sold at the same time comes in another order the second time."""
        ref, fails = context().actor(Till, till), not hasattr(self, "_failed")
        self._failed = True
        begin = {10: asyncio.Event(), 20: asyncio.Event()}

        async def sell(amount: int, other: int) -> None:
            await begin[amount].wait()
            await ref.pay(amount)
            if fails:
                raise ValueError("after the first of them")
            begin[other].set()

        begin[10 if fails else 20].set()
        async with asyncio.TaskGroup() as group:
            group.create_task(sell(10, 20))
            group.create_task(sell(20, 10))
        self.sales += 2
        return self.sales

    @method
    async def wait_for_till(self, till: str) -> int:
        self.sales += 1
        return await context().actor(Till, till).pay_slowly(1)


@actor(reentrant=True)
class Leaver:
    """Whose methods want to end the process."""

    stays: int = 0

    @method
    async def at_once(self) -> None:
        self.stays += 1
        sys.exit(3)

    @method
    async def later(self) -> None:
        self.stays += 1
        await asyncio.sleep(0)
        sys.exit("enough")

    @method
    async def joined(self) -> None:
        await context().actor(Leaver, context().actor_id).at_once()

    @method(read_only=True)
    async def count(self) -> int:
        return self.stays


@actor
class Picky:
    level: int = 0

    @method
    async def list_as(self, name: str, status: str) -> None:
        context().set_index(name=name, status=status)

    @method
    async def set_level(self, level: int, reason: str = "", *, loud: bool = False) -> str:
        self.level = level
        return f"{level} {reason} {loud}"

    @method
    async def wrong_result(self, what: Any) -> int:
        self.level += 1
        return what  # type: ignore[no-any-return]  # the mistake that is tested

    @method
    async def object_result(self) -> Any:
        self.level += 1
        return object()

    @method
    async def infinite_result(self) -> float:
        self.level += 1
        return float("inf")

    @method
    async def nested_nan(self) -> list[float]:
        self.level += 1
        return [1.0, float("nan")]

    @method
    async def result_of(self, value: dict[str, list[int]]) -> dict[str, list[int]]:
        value["seen"] = [1]
        return value

    @method
    async def raise_name_error(self) -> None:
        await context().actor("Picky", "other").no_such_method()


# -- idempotency keys --------------------------------------------------------------------------------------------------


async def test_keyed_call_takes_effect_once(world: World) -> None:
    """INV-8: the same key gets the first answer again; another key, or another method, is another call."""
    client = await world.client(Till)
    assert await client.actor(Till, "t", idempotency_key="k1").pay(5) == 5
    assert await client.actor(Till, "t", idempotency_key="k1").pay(5) == 5
    assert await client.actor(Till, "t", idempotency_key="k2").pay(5) == 10
    assert await client.actor(Till, "t", idempotency_key="k1").set_note("n") == "n"
    assert await client.call("Till", "t", "pay", b"5", idempotency_key="k2") == b"10"
    assert await client.actor(Till, "t").read() == 10


async def test_keyed_call_is_remembered_after_a_restart(world: World) -> None:
    """The receipt is in the same commit as the effect."""
    host = await world.host(Till)
    assert await host.client.actor(Till, "t", idempotency_key="k").pay(5) == 5
    await world.crash(host)
    client = await world.client(Till)
    assert await client.actor(Till, "t", idempotency_key="k").pay(5) == 5
    assert await client.actor(Till, "t").read() == 5


async def test_keyed_duplicates_in_flight_at_once(world: World) -> None:
    """INV-8 among calls that overlap: queued, running, decided and not committed yet."""
    client = await world.client(Till)
    await client.actor(Till, "t").pay(1)
    world.lever.hold()
    calls = [asyncio.ensure_future(client.actor(Till, "t", idempotency_key="k").pay(5)) for _ in range(2)]
    await settled()
    calls += [asyncio.ensure_future(client.actor(Till, "t", idempotency_key="k").pay(5)) for _ in range(2)]
    await settled()
    world.lever.let_go()
    assert await asyncio.gather(*calls) == [6] * 4
    assert await client.actor(Till, "t").read() == 6


async def test_keyed_call_whose_answer_was_lost(world: World) -> None:
    """The commit happened, the caller was told that nobody knows: its retry gets the answer, not a second effect."""
    client = await world.client(Till, store_patience_s=0.01)
    await client.actor(Till, "t").pay(1)
    world.lever.lose_answers = 5
    with pytest.raises(Exception, match="lost"):
        await client.actor(Till, "t", idempotency_key="k").pay(5)
    world.lever.lose_answers = 0
    assert await client.actor(Till, "t", idempotency_key="k").pay(5) == 6
    assert await client.actor(Till, "t").read() == 6


async def test_failed_keyed_call_may_be_tried_again(world: World) -> None:
    """A failed turn leaves no trace, no receipt either."""
    client = await world.client(Till)
    with pytest.raises(ActorFailed):
        await client.actor(Till, "t", idempotency_key="k").fail_once(5)
    assert await client.actor(Till, "t", idempotency_key="k").fail_once(5) == 5
    assert await client.actor(Till, "t", idempotency_key="k").fail_once(5) == 5


async def test_nested_calls_of_a_keyed_call_happen_once(world: World) -> None:
    """Below a keyed call every call has a key of its place in the turn: a repeated turn repeats no effects."""
    client = await world.client(Till, Shop)
    with pytest.raises(ActorFailed):
        await client.actor(Shop, "s", idempotency_key="k").sell_and_fail_once("t")
    assert await client.actor(Till, "t").read() == 1
    assert await client.actor(Shop, "s", idempotency_key="k").sell_and_fail_once("t") == 1
    assert await client.actor(Till, "t").read() == 1
    assert await client.actor(Shop, "s", idempotency_key="two").sell("t", 10) == 11 + 21
    assert await client.actor(Till, "t").read() == 21


@pytest.mark.parametrize(("method_name", "expected"), [("add_huge", 2**70), ("add_infinite", "inf")])
async def test_nested_calls_take_the_same_arguments_below_a_key(world: World, method_name: str, expected: Any) -> None:
    """In one process they need no JSON form, with a key or without."""
    client = await world.client(Shop, Scale)
    for key in (None, "k"):
        shop: Any = client.actor(Shop, "s", idempotency_key=key)
        assert await getattr(shop, method_name)(key or "-") == str(expected)


async def test_nested_calls_may_come_in_another_order(world: World) -> None:
    """The repeated turn makes first what it had not made before: neither is left out, nor made twice."""
    client = await world.client(Till, Shop)
    with pytest.raises(ActorFailed):
        await client.actor(Shop, "s", idempotency_key="k").sell_two_and_fail_once("t")
    assert await client.actor(Till, "t").read() == 10
    assert await client.actor(Shop, "s", idempotency_key="k").sell_two_and_fail_once("t") == 2
    assert await client.actor(Till, "t").read() == 30


async def test_equal_keys_of_different_callers_are_different_calls(world: World) -> None:
    """One key given to two actors: what both call on a third happens twice."""
    client = await world.client(Till, Shop)
    await client.actor(Shop, "one", idempotency_key="order-7").sell("t", 1)
    await client.actor(Shop, "two", idempotency_key="order-7").sell("t", 1)
    assert await client.actor(Till, "t").read() == 4


async def test_receipts_are_kept_for_their_retention_and_purged(world: World) -> None:
    """`receipts=` says how long a key is remembered; after that a purge forgets it."""
    host = await world.host(Till)
    await host.client.actor(Till, "t", idempotency_key="k").pay(5)
    now_ms, hour_ms = host.clock.now_ms(), 3_600_000
    purged = [await world.journal.purge_receipts(p, now_ms + hour_ms - 60_000, 10) for p in range(4)]
    assert sum(purged) == 0
    purged = [await world.journal.purge_receipts(p, now_ms + hour_ms + 60_000, 10) for p in range(4)]
    assert sum(purged) == 1
    assert await host.client.actor(Till, "t", idempotency_key="k").pay(5) == 10


async def test_host_purges_receipts_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask."""
    monkeypatch.setattr("actors.host._PURGE_EVERY_S", 0.01)
    client = await world.client(Till, clock=LoopClock(1_000))
    await client.actor(Till, "t", idempotency_key="k").pay(5)
    await until(lambda: world.lever.calls.get("purge_receipts", 0) >= 4)


async def test_keyed_read_does_not_bring_an_actor_into_being(world: World) -> None:
    """A receipt is no state: nothing is listed."""
    client = await world.client(Till)
    assert await client.actor(Till, "t", idempotency_key="k").read() == 0
    assert await client.listing(IndexQuery("Till")) == []


# -- deadlines and cancellation ----------------------------------------------------------------------------------------


async def test_deadline_cancels_a_running_turn_and_rolls_it_back(world: World) -> None:
    """INV-6: the method gets a CancelledError, nothing of it stays, the next turn runs."""
    client = await world.client(Till)
    with pytest.raises(DeadlineExceeded):
        await client.actor(Till, "t", timeout=0.02).pay_slowly(5)
    assert await client.actor(Till, "t").read() == 0
    assert await client.actor(Till, "t").times_cancelled() == 1


async def test_deadline_takes_a_waiting_call_out_of_the_mailbox(world: World) -> None:
    """A call that never began is not run after its deadline."""
    client = await world.client(Till)
    await client.actor(Till, "t").read()
    running = asyncio.ensure_future(client.actor(Till, "t").pay_slowly(5))
    await settled()
    with pytest.raises(DeadlineExceeded):
        await client.actor(Till, "t", timeout=0.01).pay(100)
    await client.actor(Till, "t").open_gate()
    assert await running == 5
    assert await client.actor(Till, "t").read() == 5


async def test_deadline_of_a_call_that_waits_for_readers(world: World) -> None:
    """Out of the mailbox and not begun yet: it is not run either."""
    client = await world.client(Till)
    await client.actor(Till, "t").read()
    reading = asyncio.ensure_future(client.actor(Till, "t").read_slowly())
    await settled()
    with pytest.raises(DeadlineExceeded):
        await client.actor(Till, "t", timeout=0.01).pay(100)
    await client.actor(Till, "t").open_gate()
    assert await reading == 0
    assert await client.actor(Till, "t").pay(1) == 1


@pytest.mark.parametrize("name", ["at_once", "later", "joined"])
async def test_exit_of_a_method_is_the_failure_of_its_turn(world: World, name: str) -> None:
    """INV-6, and everybody else goes on: one request cannot end the process."""
    client = await world.client(Leaver)
    leaver = client.actor(Leaver, "a")
    with pytest.raises(ActorFailed, match="SystemExit"):
        await getattr(leaver, name)()
    assert await leaver.count() == 0


async def test_caller_that_is_cancelled_takes_its_turn_along(world: World) -> None:
    """Cancelling the awaiting task cancels the turn, waiting or running."""
    client = await world.client(Till)
    await client.actor(Till, "t").read()
    running = asyncio.ensure_future(client.actor(Till, "t").pay_slowly(5))
    await settled()
    waiting = asyncio.ensure_future(client.actor(Till, "t").pay(7))
    await settled()
    waiting.cancel()
    running.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert await client.actor(Till, "t").read() == 0


async def test_deadline_reaches_nested_calls(world: World) -> None:
    """What is left of the outer deadline bounds the inner call; both are rolled back."""
    client = await world.client(Till, Shop)
    activations = client._host.activations

    def has_begun() -> bool:
        till = activations.get("Till/t")
        return till is not None and bool(till.running or getattr(till.instance, "_cancelled", 0))

    await overrun(lambda timeout_s: client.actor(Shop, "s", timeout=timeout_s).wait_for_till("t"), has_begun)
    await until(lambda: activations["Till/t"].quiet)
    assert await client.actor(Till, "t").read() == 0
    assert await client.actor(Till, "t").times_cancelled() == 1
    assert await client.state("Shop", "s") is None


@pytest.mark.parametrize("name", ["pay_deaf", "read_deaf", "pay_and_turn_the_cancellation_into_an_error"])
async def test_method_that_swallows_the_cancellation_is_rolled_back(world: World, name: str) -> None:
    """The caller was promised that nothing stays, whatever the method makes of it."""
    client = await world.client(Till)
    arguments = b"5" if name == "pay_deaf" else b""
    with pytest.raises(DeadlineExceeded):
        await client.call("Till", "t", name, arguments, timeout=0.02)
    assert await client.actor(Till, "t").read() == 0
    assert await client.actor(Till, "t").pay(1) == 1


async def test_method_timeout(world: World) -> None:
    """A method's own timeout counts from the start of its turn."""
    client = await world.client(Till)
    with pytest.raises(DeadlineExceeded, match=r"ran longer than 0\.02 s"):
        await client.actor(Till, "t").pay_too_slowly()
    assert await client.actor(Till, "t").read() == 0


async def test_cancellation_the_method_made_itself_is_its_failure(world: World) -> None:
    """A CancelledError out of something the method awaited is an error like any other, not a silence."""
    client = await world.client(Till)
    async with asyncio.timeout(5):
        with pytest.raises(ActorFailed, match="CancelledError"):
            await client.actor(Till, "t").cancel_itself()
    assert await client.actor(Till, "t").read() == 0


async def test_deadline_after_the_decision_is_told_and_the_effect_stays(world: World) -> None:
    """Once decided it is too late to roll back: the caller learns that it was not answered in time."""
    client = await world.client(Till)
    await client.actor(Till, "t").pay(1)
    world.lever.hold()
    with pytest.raises(DeadlineExceeded):
        await client.actor(Till, "t", timeout=0.01).pay(5)
    world.lever.let_go()
    assert await client.actor(Till, "t").read() == 6


async def test_mailbox_refuses_when_full(world: World) -> None:
    """One more than `mailbox_limit` is refused with a retriable error; the others are served."""
    client = await world.client(Till)
    await client.actor(Till, "t").read()
    running = asyncio.ensure_future(client.actor(Till, "t").pay_slowly(1))
    await settled()
    waiting = [asyncio.ensure_future(client.actor(Till, "t").pay(1)) for _ in range(3)]
    await settled()
    with pytest.raises(MailboxFull) as refused:
        await client.actor(Till, "t").pay(1)
    assert refused.value.retriable
    await client.actor(Till, "t").open_gate()
    assert [await running, *await asyncio.gather(*waiting)] == [1, 2, 3, 4]


@pytest.mark.parametrize("how", ["deadline", "cancellation"])
async def test_calls_that_are_given_up_take_nobodys_place(world: World, how: str) -> None:
    """A mailbox is not full of calls whose callers wait no longer; those that do keep their order."""
    client = await world.client(Till)
    till = client.actor(Till, "t")
    await till.read()
    running = asyncio.ensure_future(till.pay_slowly(1))
    await settled()
    hasty = client.actor(Till, "t", timeout=0.01) if how == "deadline" else till
    given_up = [asyncio.ensure_future(hasty.pay(100)) for _ in range(2)]
    waiting = [asyncio.ensure_future(till.pay(10))]
    await settled()
    if how == "cancellation":
        for call in given_up:
            call.cancel()
    await asyncio.wait(given_up)
    waiting += [asyncio.ensure_future(till.pay(20)), asyncio.ensure_future(till.pay(30))]
    await settled()
    with pytest.raises(MailboxFull, match="3 calls"):
        await till.pay(40)
    await till.open_gate()
    assert [await running, *await asyncio.gather(*waiting)] == [1, 11, 31, 61]


async def test_a_full_mailbox_is_not_searched_at_every_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at each call that waits costs most when there is no time to spare."""
    monkeypatch.setattr("actors.activation._LOOK_AGAIN_S", 1000.0)
    client = await world.client(Till)
    till = client.actor(Till, "t")
    await till.read()
    running = asyncio.ensure_future(till.pay_slowly(1))
    await settled()
    waiting = [asyncio.ensure_future(till.pay(10)) for _ in range(3)]
    await settled()
    for gone in range(2):
        with pytest.raises(MailboxFull):
            await till.pay(100)
        waiting[gone].cancel()
    monkeypatch.setattr("actors.activation._LOOK_AGAIN_S", 0.0)
    waiting.append(asyncio.ensure_future(till.pay(20)))
    await settled()
    await till.open_gate()
    assert [await running, *await asyncio.gather(*waiting[2:])] == [1, 11, 31]


async def test_mailbox_limit_counts_reads_that_run(world: World) -> None:
    """Reads that run beside each other are calls that wait as well."""
    client = await world.client(Till)
    till = client.actor(Till, "t")
    await till.read()
    reading = [asyncio.ensure_future(till.read_slowly()) for _ in range(3)]
    await settled()
    with pytest.raises(MailboxFull):
        await till.read_slowly()
    with pytest.raises(MailboxFull):
        await till.pay(1)
    await till.open_gate()
    assert await asyncio.gather(*reading) == [0, 0, 0]
    assert await till.pay(1) == 1


@pytest.mark.parametrize("name", ["pay", "read"])
async def test_mailbox_limit_counts_calls_that_wait_for_the_store(world: World, name: str) -> None:
    """A store that stalls fills the mailboxes, and no more: turns that are decided, and reads that wait for them."""
    client = await world.client(Till)
    till = client.actor(Till, "t")
    await till.pay(1)
    world.lever.hold()
    first = asyncio.ensure_future(till.pay(1))
    others = [asyncio.ensure_future(till.pay(1) if name == "pay" else till.read()) for _ in range(2)]
    await settled()
    with pytest.raises(MailboxFull):
        await till.pay(1)
    with pytest.raises(MailboxFull):
        await till.read()
    world.lever.let_go()
    assert [await first, *await asyncio.gather(*others)] == ([2, 3, 4] if name == "pay" else [2, 2, 2])
    assert await till.pay(1) == (5 if name == "pay" else 3)


async def test_built_in_calls_from_outside_find_a_full_mailbox(world: World) -> None:
    """Setting reminders, sending and deleting from outside are calls like others; a tick passes."""
    clock = HandClock()
    client = await world.client(Till, clock=clock)
    till = client.actor(Till, "t")
    await client.set_reminder("Till", "t", "later", {"due": 5, "callback": "set_note", "data": "rung"})
    running = asyncio.ensure_future(till.pay_slowly(1))
    await settled()
    waiting = [asyncio.ensure_future(till.pay(1)) for _ in range(3)]
    await settled()
    with pytest.raises(MailboxFull):
        await client.set_reminder("Till", "t", "r", {"due": 60})
    with pytest.raises(MailboxFull):
        await client.send(till.pay, 1)
    with pytest.raises(MailboxFull):
        await client.delete("Till", "t")
    clock.seconds += 5
    client._host.reminders._wake.set()
    await until(lambda: len(client._host.activations["Till/t"].mailbox or ()) == 4)
    await till.open_gate()
    await asyncio.gather(running, *waiting)
    await until(lambda: any(b'"note":"rung"' in e.data for c in world.lever.commits for e in c.events))


# -- names, arguments, results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a#b", "a?b", "a\\b", "a\nb", "x" * 1025])
async def test_names_with_forbidden_characters(world: World, name: str) -> None:
    """A bad id is the caller's error, by reference and by name; a good call works afterwards."""
    client = await world.client(Till)
    with pytest.raises(InvalidName):
        client.actor(Till, name)
    with pytest.raises(InvalidName):
        await client.delete("Till", name)
    assert await client.actor(Till, "t").pay(1) == 1


async def test_references_that_cannot_be(world: World) -> None:
    """An id that is no text, a timeout that is no length of time, an empty key: told where the reference is made."""
    client: Any = await world.client(Till)
    with pytest.raises(InvalidName, match="actor id must be a text, not int"):
        client.actor(Till, 5)
    for timeout in (-1, float("nan"), "soon", [1]):
        with pytest.raises(InvalidSchedule):
            client.actor(Till, "t", timeout=timeout)
    with pytest.raises(InvalidName, match="must not be empty"):
        client.actor(Till, "t", idempotency_key="")
    with pytest.raises(InvalidName, match="must not be empty"):
        await client.send_raw("Till", "t", "pay", b"1", idempotency_key="")
    with pytest.raises(InvalidName, match="must not be empty"):
        await client.call("Till", "t", "pay", b"1", idempotency_key="")
    assert await client.actor(Till, "t").read() == 0


async def test_texts_that_no_store_can_hold(world: World) -> None:
    """They are refused where they are given, and no other actor's turn fails for them."""
    client = await world.client(Till, Picky)
    for options in ({"idempotency_key": "\ud800"}, {"caller": "a\udfff"}, {"trace_id": "\ud800"}):
        with pytest.raises(InvalidName, match="surrogate"):
            await client.call("Till", "t", "pay", b"1", **options)
    with pytest.raises(InvalidName, match="idempotency key"):
        client.actor(Till, "t", idempotency_key="\ud800")
    with pytest.raises(InvalidName, match="idempotency key"):
        await client.send_raw("Till", "t", "pay", b"1", idempotency_key="\ud800")
    good = [asyncio.ensure_future(client.actor(Till, f"t{i}").pay(1)) for i in range(5)]
    for name, status in (("\ud800", ""), ("", "\udc00")):
        with pytest.raises(ActorFailed, match=r"InvalidName.*surrogate"):
            await client.actor(Picky, "p").list_as(name, status)
    assert await asyncio.gather(*good) == [1] * 5
    await client.actor(Picky, "p").list_as("\u00e9\U0001f600", "fine")
    assert [e.status for e in await client.listing(IndexQuery("Picky"))] == ["fine"]


async def test_unknown_type_and_method(world: World) -> None:
    """Said by name."""
    client = await world.client(Till)
    with pytest.raises(UnknownActorType, match="'Nope'"):
        await client.actor("Nope", "x").anything()
    with pytest.raises(UnknownMethod, match=r"Till\.t\.nothing"):
        await client.actor("Till", "t").nothing()
    with pytest.raises(AttributeError, match="nothing"):
        _ = client.actor(Till, "t").nothing  # type: ignore[attr-defined]  # the mistake that is tested


@pytest.mark.parametrize("name", ["on_activate", "$delete", "$patch", "receive_reminder"])
async def test_hooks_and_built_in_methods_cannot_be_called_from_outside(world: World, name: str) -> None:
    """They are the runtime's."""
    client = await world.client(Till)
    with pytest.raises(UnknownMethod):
        await client.call("Till", "t", name, b"")
    with pytest.raises(AttributeError):
        getattr(client.actor(Till, "t"), name)


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"[3]", b'"3  False"'),
        (b"3", b'"3  False"'),
        (b'{"level": 3, "reason": "x", "loud": true}', b'"3 x True"'),
        (b'[3, "x", true]', b'"3 x True"'),
        (b'{"level": 3}', b'"3  False"'),
    ],
)
async def test_request_body_is_the_arguments(world: World, payload: bytes, answer: bytes) -> None:
    """By name, by position, or the value itself."""
    assert await (await world.client(Picky)).call("Picky", "p", "set_level", payload) == answer


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"{", "not valid JSON"),
        (b'{"level": "high"}', "'level'"),
        (b'{"level": 1, "colour": 2}', "colour"),
        (b'{"reason": "x"}', "missing: level"),
        (b"[1, 2, 3, 4]", "got 4"),
        (b"", "missing: level"),
        (b"99999999999999999999999", "level"),
    ],
)
async def test_bad_arguments_are_the_callers_error(world: World, payload: bytes, message: str) -> None:
    """Nothing runs, the error names what is wrong, a later good request works."""
    client = await world.client(Picky)
    with pytest.raises(InvalidArguments, match=message):
        await client.call("Picky", "p", "set_level", payload)
    assert await client.call("Picky", "p", "set_level", b"[1]") == b'"1  False"'


@actor
class Scales:
    weighed: str = ""

    @method
    async def weigh(self, load: Any, tare: float = 0.0, price: Decimal = Decimal(0)) -> str:
        self.weighed = f"{load!r} {tare!r} {price}"
        return self.weighed

    @method
    async def add(self, loads: list[float]) -> float:
        return sum(loads)

    @method(read_only=True)
    async def last(self) -> str:
        return self.weighed


LONG = "100000000000000000001"


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        ("[18446744073709551615]", "18446744073709551615 0.0 0"),
        ("[-9223372036854775808]", "-9223372036854775808 0.0 0"),
        (f'"{LONG}"', f"'{LONG}' 0.0 0"),
        (f'{{"load": {{"{LONG}": "-{LONG}"}}}}', f"{{'{LONG}': '-{LONG}'}} 0.0 0"),
        (f"[[{LONG}.5, {LONG}e2, 0.{LONG}]]", "[1e+20, 1e+22, 0.1] 0.0 0"),
        (f'{{"load": 1, "tare": {LONG}, "price": {LONG}}}', f"1 1e+20 {LONG}"),
        (f"[true, -{LONG}]", "True -1e+20 0"),
    ],
)
async def test_numbers_arrive_as_they_were_sent(world: World, payload: str, answer: str) -> None:
    """Integers of 64 bits, texts of digits; a longer integer where a float or a Decimal is asked for. Fractions and
    exponents make a float. A message arrives as a call does."""
    client = await world.client(Scales)
    assert await client.call("Scales", "s", "weigh", payload.encode()) == f'"{answer}"'.encode()
    await client.send_raw("Scales", "t", "weigh", payload.encode())
    await until(lambda: any(c.stream == "Scales/t" and c.events for c in world.lever.commits))
    assert await client.actor(Scales, "t").last() == answer
    assert await client.call("Scales", "s", "add", f"[{LONG}, 1]".encode()) == b"1e+20"


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", LONG])
@pytest.mark.parametrize("payload", ["{}", "[{}]", '{{"load": {}}}', '[{{"x": ["{}", {}]}}, 1]'])
async def test_integers_beyond_64_bits_are_refused(world: World, payload: str, number: str) -> None:
    """They would become floats unseen, where no annotation asks for any; in a message as in a call, by JSON as in
    Python."""
    client, body = await world.client(Scales), payload.replace("{}", number).replace("{{", "{").replace("}}", "}")
    for ask in (client.call, client.send_raw):
        with pytest.raises(
            InvalidArguments, match="argument 'load': it has an integer beyond 64 bits: send it as text"
        ):
            await ask("Scales", "s", "weigh", body.encode())
    with pytest.raises(InvalidArguments, match="send it as text"):
        await client.actor(Scales, "s").weigh([int(number)])


async def test_what_is_wrong_is_told_of_what_was_sent(world: World) -> None:
    """Of the array or object itself, not of the one value in it, which was a second try."""
    client = await world.client(Scales)
    for body in (b'["x"]', b'{"loads": ["x"]}'):
        with pytest.raises(InvalidArguments) as caught:
            await client.call("Scales", "s", "add", body)
        expected = "0: Input should be a valid number" if body[:1] == b"[" else "Input should be a valid array"
        assert str(caught.value).startswith(f"argument 'loads': {expected}")


async def test_bad_arguments_in_python(world: World) -> None:
    """The same by reference; what is given twice, and what there is not, are told apart."""
    picky: Any = (await world.client(Picky)).actor(Picky, "p")
    with pytest.raises(InvalidArguments, match="level"):
        await picky.set_level("high")
    with pytest.raises(InvalidArguments, match="missing: level"):
        await picky.set_level()
    with pytest.raises(InvalidArguments, match=r"not colour$"):
        await picky.set_level(1, colour=2)
    with pytest.raises(InvalidArguments, match=r"not level again$"):
        await picky.set_level(1, level=2)
    with pytest.raises(InvalidArguments, match="level"):
        await picky.set_level(object())
    assert await picky.set_level(1, loud=True) == "1  True"


async def test_none_where_it_is_the_default(world: World) -> None:
    """It fits, whatever the annotation says: in a call, in one by JSON, in a message, in a field that is set to it, and
    in a snapshot."""
    host = await world.host(Box)
    client = host.client
    assert await client.actor(Box, "a").grow() == 1
    assert [await client.call("Box", "a", "grow", body) for body in (b"", b"null", b"[null]")] == [b"2", b"3", b"4"]
    assert await client.call("Box", "a", "grow_both_ways", b"[null, 1]") == b"3"
    with pytest.raises(InvalidArguments):
        await client.call("Box", "a", "grow", b'"x"')
    for label in ("x", None):
        await client.actor(Box, "a").mark(label)
    assert await client.state("Box", "a") == (7, {"label": None, "size": 3})
    await client.actor(Box, "a").tell("b")
    await until(lambda: sum(len(c.events) for c in world.lever.commits if c.stream == "Box/b") == 2)
    await world.crash(host)
    client = await world.client(Box)
    assert await client.actor(Box, "a").grow() == 4
    assert await client.actor(Box, "b").grow() == -3


async def test_the_only_argument_by_keyword(world: World) -> None:
    """By name it is an object on the wire, as with several arguments; where the object itself fits, it is the value."""
    client = await world.client(Till, Picky)
    assert await client.actor("Till", "t").pay(amount=5) == 5
    assert await client.call("Till", "t", "pay", b'{"amount": 5}') == b"10"
    with pytest.raises(InvalidArguments, match="'amount'"):
        await client.actor("Till", "t").pay(cash=5)
    assert await client.call("Picky", "p", "result_of", b'{"value": [2]}') == b'{"value":[2],"seen":[1]}'


@pytest.mark.parametrize("name", ["object_result", "infinite_result", "nested_nan"])
async def test_result_without_json_form_rolls_the_turn_back(world: World, name: str) -> None:
    """INV-6: what cannot be sent is an error that names the method, in Python and by name."""
    client = await world.client(Picky)
    with pytest.raises(UnserializableResult, match=name):
        await getattr(client.actor(Picky, "p"), name)()
    with pytest.raises(UnserializableResult, match=name):
        await client.call("Picky", "p", name)
    assert await client.state("Picky", "p") is None


@pytest.mark.parametrize("wrong", ["text", None, [1], 1.5])
async def test_result_its_annotation_refuses(world: World, wrong: Any) -> None:
    """Results are validated like arguments, in Python and by name; the turn leaves no trace."""
    client = await world.client(Picky)
    with pytest.raises(UnserializableResult, match="wrong_result"):
        await client.actor(Picky, "p").wrong_result(wrong)
    with pytest.raises(UnserializableResult, match="wrong_result"):
        await client.actor("Picky", "p").wrong_result(wrong)
    assert await client.state("Picky", "p") is None
    assert await client.actor(Picky, "p").wrong_result(7) == 7


async def test_arguments_and_results_cross_by_value(world: World) -> None:
    """Neither side sees what the other does to its copy later."""
    client = await world.client(Picky)
    mine = {"a": [1]}
    answer = await client.actor(Picky, "p").result_of(mine)
    assert answer == {"a": [1], "seen": [1]}
    assert mine == {"a": [1]}


async def test_mistake_a_method_made_as_a_caller_is_its_own_failure(world: World) -> None:
    """The outer caller did nothing wrong."""
    client = await world.client(Picky)
    with pytest.raises(ActorFailed, match="no_such_method"):
        await client.actor(Picky, "p").raise_name_error()


async def test_reads_that_are_answered_at_once_let_others_run(world: World) -> None:
    """A program that asks again and again, without any wait of its own, does not keep the event loop for itself."""
    client = await world.client(Till)
    till: Any = client.actor("Till", "asked")
    assert await till.pay(1) == 1
    others: list[str] = []
    asyncio.get_running_loop().call_soon(others.append, "ran")
    for _ in range(200):
        assert await till.pay(0) == 1
    assert others == ["ran"]


async def test_call_whose_deadline_came_is_not_run_again(world: World) -> None:
    """Its caller was told that it was not applied, while it waited to be run again (its first turns were refused)."""
    host = await world.host(Till)
    till = host.client.actor(Till, "t")
    assert await till.pay(1) == 1
    late, next_one = host.new_call("Till/t", "pay"), host.new_call("Till/t", "pay")
    for call in (late, next_one):  # in the order of their timers
        call.payload, call.attempt = b"1", 1
        host.resubmit(call)
    host.expire(late)
    with pytest.raises(DeadlineExceeded):
        await late.future
    assert await next_one.future == 2
