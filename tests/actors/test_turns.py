"""Turns: one at a time, all or nothing, answered after the commit, in both styles of state."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import BaseModel

from actors import ActorFailed, InvalidState, Retriable, Turn, actor, context, event, method
from tests.actors.worlds import settled, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.actors.worlds import World


class Address(BaseModel):
    street: str = ""
    tags: list[str] = []


@dataclass
class Item:
    name: str
    count: int = 0


@actor
class Basket:
    total: int = 0
    items: list[Item] = field(default_factory=list)
    address: Address = Address()
    notes: dict[str, list[str]] = field(default_factory=dict)

    @method
    async def add(self, name: str, count: int) -> int:
        self.items.append(Item(name, count))
        self.total += count
        return self.total

    @method(read_only=True)
    async def add_although_reading(self, then: str) -> None:
        self.items.append(Item(then))
        await asyncio.sleep(0)
        if then == "fail":
            raise ValueError("no")

    @method
    async def count_up(self, name: str) -> None:
        next(i for i in self.items if i.name == name).count += 1

    @method
    async def change_all_and_fail(self) -> None:
        self.total = 99
        self.items[0].count = 99
        self.items.append(Item("late"))
        self.address.street = "Elm"
        self.address.tags.append("bad")
        self.notes["n"] = ["bad"]
        await asyncio.sleep(0)
        raise ValueError("no")

    @method
    def change_and_fail_at_once(self) -> None:
        self.total = 98
        self.address.tags.append("bad")
        raise ValueError("no")

    @method
    async def move(self, street: str) -> None:
        self.address.street = street
        self.address.tags.append(street.lower())
        self.notes.setdefault("moves", []).append(street)

    @method(read_only=True)
    async def look(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "items": [[i.name, i.count] for i in self.items],
            "street": self.address.street,
            "tags": self.address.tags,
            "notes": self.notes,
        }


@actor
class Misfit:
    first: int = 0
    notes: dict[str, int] = field(default_factory=lambda: {"a": "x"})  # type: ignore[dict-item]  # the mistake
    last: int = 0

    @method
    def set(self, number: int) -> int:
        self.first = self.last = number
        if number < 0:
            raise ValueError("no")
        return number

    @method(read_only=True)
    async def read(self) -> list[Any]:
        return [self.first, self.notes, self.last]


@actor
class Ledger:
    balance: int = 0
    log: list[int] = field(default_factory=list)

    @event
    def moved(self, amount: int) -> None:
        self.balance += amount
        self.log.append(amount)

    @method
    async def move(self, amount: int) -> int:
        self.moved(amount)
        await asyncio.sleep(0)
        if self.balance < 0:
            raise ValueError("overdrawn")
        return self.balance

    @method
    def move_at_once(self, amount: int) -> int:
        self.moved(amount)
        if self.balance < 0:
            raise ValueError("overdrawn")
        return self.balance

    @event
    def withdrawn(self, amount: int) -> None:
        self.balance -= amount
        if self.balance < 0:
            raise ValueError("overdrawn")

    @event
    def moved_twice(self, amount: int) -> None:
        self.moved(amount)
        self.moved(amount)

    @method
    async def withdraw(self, amount: int) -> bool:
        with suppress(ValueError):
            self.withdrawn(amount)
            return True
        return False

    @method
    def withdraw_at_once(self, amount: int) -> bool:
        with suppress(ValueError):
            self.withdrawn(amount)
            return True
        return False

    @method
    async def withdraw_or_move(self, amount: int) -> None:
        with suppress(ValueError):
            self.withdrawn(amount)
        self.moved(amount)

    @method
    async def move_twice(self, amount: int) -> None:
        self.moved_twice(amount)

    @method
    async def cheat(self) -> None:
        self.balance = 1_000_000

    @method
    async def hide(self) -> None:
        del self.balance

    @method(read_only=True)
    async def read(self) -> list[int]:
        return [self.balance, *self.log]

    @method(read_only=True)
    async def write_while_reading(self) -> None:
        self.moved(1)


_TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


@actor
class Witness:
    asked: int = 0

    @method
    async def tenant(self) -> str:
        await asyncio.sleep(0)
        self.asked += 1
        return _TENANT.get()


@actor
class Counter:
    value: int = 0
    _entered: int = 0

    def on_activate(self) -> None:
        self._inside = 0
        self._most = 0
        self._gate = asyncio.Event()

    @method
    async def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    @method
    async def slow_add(self) -> int:
        """Loses updates when turns interleave."""
        self._inside += 1
        self._most = max(self._most, self._inside)
        before = self.value
        for _ in range(5):
            await asyncio.sleep(0)
        self.value = before + 1
        self._inside -= 1
        return self.value

    @method(read_only=True)
    async def most_inside(self) -> int:
        return self._most

    @method
    async def fail_if_positive(self) -> None:
        if self.value > 0:
            raise ValueError(f"value is {self.value}")

    @method(read_only=True)
    async def read(self) -> int:
        return self.value

    @method(read_only=True)
    async def read_together(self, how_many: int) -> int:
        """Returns only once so many reads are inside at the same time."""
        self._inside += 1
        if self._inside >= how_many:
            self._gate.set()
        await self._gate.wait()
        self._inside -= 1
        return self.value

    @method(read_only=True)
    async def write_although_reading(self) -> None:
        await asyncio.sleep(0)
        self.value = 1000

    @method(read_only=True)
    def write_although_reading_at_once(self) -> None:
        self.value = 1000

    @method(interleave=True)
    async def wait_for(self, value: int) -> int:
        while self.value < value:  # noqa: ASYNC110  # what waits here is a stand-in for a long poll
            await asyncio.sleep(0.001)
        return self.value

    @method(interleave=True)
    async def write_although_interleaving(self) -> None:
        self.value = 1000

    @method
    async def sort(self, values: list[int]) -> list[int]:
        first = values.pop(0)
        self.value += first
        return [first, *values]


async def test_state_survives_a_restart(world: World) -> None:
    """State-style: the fields a turn changed are durable when it is answered, in-place changes of models too."""
    host = await world.host(Basket)
    basket = host.client.actor(Basket, "b")
    await basket.add("apple", 2)
    await basket.count_up("apple")
    await basket.move("Oak")
    await basket.move("Elm")
    before = await basket.look()
    await world.crash(host)
    after = await (await world.client(Basket)).actor(Basket, "b").look()
    assert after == before
    assert after["items"] == [["apple", 3]]
    assert after["tags"] == ["oak", "elm"]
    assert after["notes"] == {"moves": ["Oak", "Elm"]}


async def test_failed_turn_leaves_no_trace(world: World) -> None:
    """INV-6, state-style: immutable, mutable and nested values are as before; nothing is recorded."""
    client = await world.client(Basket)
    basket = client.actor(Basket, "b")
    await basket.add("apple", 2)
    before = await basket.look()
    with pytest.raises(ActorFailed, match="ValueError: no"):
        await basket.change_all_and_fail()
    assert await basket.look() == before
    with pytest.raises(ActorFailed):
        await client.actor("Basket", "b").change_and_fail_at_once()
    assert await basket.look() == before
    assert len(await client.history("Basket", "b")) == 1


async def test_failed_turn_leaves_no_trace_though_the_state_does_not_fit(world: World) -> None:
    """INV-6: what a factory makes may be nothing that its annotation would read; then the actor is loaded again."""
    misfit: Any = (await world.client(Misfit)).actor(Misfit, "m")
    assert await misfit.set(1) == 1
    outcomes = await asyncio.gather(*(misfit.set(number) for number in (-1, 2, -1)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ActorFailed, int, ActorFailed]
    assert await misfit.read() == [2, {"a": "x"}, 2]


async def test_event_sourced_state_is_the_fold_of_its_events(world: World) -> None:
    """Events record their name and arguments; a restart folds them."""
    host = await world.host(Ledger)
    ledger = host.client.actor(Ledger, "l")
    assert [await ledger.move(5), await ledger.move(-2)] == [5, 3]
    history = await host.client.history("Ledger", "l")
    assert [(e.version, e.name, e.data) for e in history] == [
        (1, "moved", b'{"amount":5}'),
        (2, "moved", b'{"amount":-2}'),
    ]
    await world.crash(host)
    assert await (await world.client(Ledger)).actor(Ledger, "l").read() == [3, 5, -2]


async def test_failed_event_sourced_turn_leaves_no_trace(world: World) -> None:
    """INV-6, event-sourced: what its events did in memory is undone."""
    client = await world.client(Ledger)
    ledger = client.actor(Ledger, "l")
    await ledger.move(5)
    with pytest.raises(ActorFailed, match="overdrawn"):
        await ledger.move(-9)
    assert await ledger.read() == [5, 5]
    with pytest.raises(ActorFailed, match="overdrawn"):
        await client.actor("Ledger", "l").move_at_once(-9)
    assert await ledger.read() == [5, 5]
    assert len(await client.history("Ledger", "l")) == 1


async def test_many_failing_event_sourced_turns_in_a_row(world: World) -> None:
    """A failed turn is its caller's alone: those behind it in the mailbox run, in order, however many fail."""
    client = await world.client(Ledger)
    ledger = client.actor(Ledger, "l")
    amounts = [-1, 5, *[-100] * 12, 7, *[-100] * 12, 1]
    outcomes = await asyncio.gather(*(ledger.move(a) for a in amounts), return_exceptions=True)
    assert [o for o in outcomes if isinstance(o, int)] == [5, 12, 13]
    assert all(isinstance(o, ActorFailed) for o in outcomes if not isinstance(o, int))
    assert await ledger.read() == [13, 5, 7, 1]


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("withdraw", "event 'withdrawn' raised"),
        ("withdraw_at_once", "event 'withdrawn' raised"),
        ("withdraw_or_move", "event 'moved' cannot be recorded by event 'withdrawn', or after that has failed"),
        ("move_twice", "event 'moved' cannot be recorded by event 'moved_twice'"),
    ],
)
async def test_event_that_could_not_be_applied_again_is_not_recorded(
    world: World, name: str, message: str, key: str | None
) -> None:
    """What its method raises, it raises at every load; an event within an event would be applied twice. The turn fails,
    though its method catches the error, and leaves no trace (INV-6)."""
    host = await world.host(Ledger)
    await host.client.actor(Ledger, "l").move(5)
    assert await host.client.actor(Ledger, "l").withdraw(1) is True
    with pytest.raises(ActorFailed, match=message):
        await getattr(host.client.actor(Ledger, "l", idempotency_key=key), name)(9)
    assert await host.client.actor(Ledger, "l").read() == [4, 5]
    await world.crash(host)
    assert await (await world.client(Ledger)).actor(Ledger, "l").read() == [4, 5]


async def test_assignment_outside_an_event_is_refused(world: World) -> None:
    """Event-sourced fields change in events only: anything else would be lost, so it is an error."""
    client = await world.client(Ledger)
    ledger = client.actor(Ledger, "l")
    for change in (ledger.cheat, ledger.hide):
        with pytest.raises(ActorFailed, match="event-sourced"):
            await change()
    with pytest.raises(ActorFailed, match="read_only"):
        await ledger.write_while_reading()
    assert await ledger.read() == [0]


async def test_event_outside_a_turn_is_refused() -> None:
    """Events are recorded in turns; calling one on a bare instance says so."""
    with pytest.raises(RuntimeError, match="only inside a turn"):
        Ledger().moved(1)


async def test_turns_do_not_interleave(world: World) -> None:
    """INV-5: across every await, one writing turn at a time."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    answers = await asyncio.gather(*(counter.slow_add() for _ in range(20)))
    assert answers == list(range(1, 21))
    assert await counter.most_inside() == 1


async def test_next_turn_runs_before_the_last_is_committed(world: World) -> None:
    """Pipelining: turns decide one after the other while the store is still writing; no answer leaves before."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    await counter.add()
    world.lever.hold()
    waiting = [asyncio.ensure_future(counter.add()) for _ in range(10)]
    await settled()
    assert client._host.activations["Counter/c"].version == 11
    assert not any(w.done() for w in waiting)
    world.lever.let_go()
    assert await asyncio.gather(*waiting) == list(range(2, 12))
    assert len(world.lever.commits) == 11


async def test_reads_and_errors_wait_for_what_they_rest_on(world: World) -> None:
    """INV-7: a read, and a failure, that saw an uncommitted change is given after that change is durable."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    await counter.read()
    world.lever.hold()
    write = asyncio.ensure_future(counter.add())
    await settled()
    read, failure = asyncio.ensure_future(counter.read()), asyncio.ensure_future(counter.fail_if_positive())
    await settled()
    assert not read.done()
    assert not failure.done()
    world.lever.let_go()
    assert await write == 1
    assert await read == 1
    with pytest.raises(ActorFailed, match="value is 1"):
        await failure


async def test_refused_commit_runs_everything_behind_it_again(world: World) -> None:
    """A turn the store refuses takes with it all that was decided on top of it, reads and failures too; each is run
    again, takes effect once, and no answer shows what never was."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    await counter.add()
    world.lever.hold()
    refused: list[str] = []

    def refuse_once(turn: Any) -> bool:
        if not refused and turn.events:
            refused.append(turn.turn_id)
        return turn.turn_id in refused

    world.lever.refuse = refuse_once
    first = asyncio.ensure_future(counter.add(10))
    await settled()
    others = [asyncio.ensure_future(counter.add(100)) for _ in range(3)]
    read = asyncio.ensure_future(counter.read())
    await settled()
    world.lever.let_go()
    answers = [await first, *[await o for o in others]]
    assert sorted(answers)[-1] == 311
    assert len(set(answers)) == 4
    assert await read in {1, 11, 101, 111, 201, 211, 301, 311}
    assert await counter.read() == 311
    assert len(await client.history("Counter", "c")) == 5


async def test_failure_seen_through_a_refused_turn_is_not_reported(world: World) -> None:
    """An error that rests on a change which never became durable is not an answer: the turn is run again."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    await counter.read()
    world.lever.hold()
    world.lever.refuse = lambda turn: bool(turn.events)
    write = asyncio.ensure_future(client.actor(Counter, "c", timeout=0.2).add())
    await settled()
    check = asyncio.ensure_future(counter.fail_if_positive())
    await settled()
    write.cancel()
    world.lever.let_go()
    await check


async def test_arguments_are_fresh_when_a_turn_is_run_again(world: World) -> None:
    """A turn that changed its arguments in place gets the caller's arguments again when it is repeated."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    await counter.add(0)
    refused: list[str] = []

    def refuse_once(turn: Any) -> bool:
        if not refused and turn.events:
            refused.append(turn.turn_id)
        return turn.turn_id in refused

    world.lever.refuse = refuse_once
    assert await counter.sort([5, 6, 7]) == [5, 6, 7]
    assert await counter.read() == 5
    refused.clear()
    assert await client.actor("Counter", "c").sort([1, 2]) == [1, 2]
    assert await counter.read() == 6


async def test_reads_run_beside_each_other(world: World) -> None:
    """`read_only` turns overlap: each of these waits for the others to be inside."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    async with asyncio.timeout(5):
        assert await asyncio.gather(*(counter.read_together(4) for _ in range(4))) == [0] * 4


async def test_writer_waits_for_readers_and_readers_for_the_writer(world: World) -> None:
    """INV-5: a writing turn never runs beside a read."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    await counter.read()
    first = asyncio.ensure_future(counter.read_together(2))
    await settled()
    write = asyncio.ensure_future(counter.add())
    await settled()
    assert not write.done()
    assert client._host.activations["Counter/c"].instance.value == 0
    client._host.activations["Counter/c"].instance._gate.set()
    assert await first == 0
    assert await write == 1


@pytest.mark.parametrize(
    "name", ["write_although_reading", "write_although_reading_at_once", "write_although_interleaving"]
)
async def test_read_that_writes_is_an_error(world: World, name: str) -> None:
    """A read_only method that changes a field fails, says which, and the change is undone."""
    client = await world.client(Counter)
    counter = client.actor("Counter", "c")
    with pytest.raises(ActorFailed, match="value"):
        await getattr(counter, name)()
    assert await counter.read() == 0
    assert await client.history("Counter", "c") == []


@pytest.mark.parametrize(
    ("then", "told"), [("end", "add_although_reading is read_only, but changed items"), ("fail", "ValueError: no")]
)
async def test_read_that_changes_in_place_is_rolled_back(world: World, then: str, told: str) -> None:
    """INV-6 holds for reads: a change that no assignment makes does not become part of the next turn."""
    client = await world.client(Basket)
    basket = client.actor(Basket, "b")
    with pytest.raises(ActorFailed, match=told):
        await basket.add_although_reading(then)
    assert await basket.add("a", 1) == 1
    found = await client.state("Basket", "b")
    assert found is not None
    assert found[1]["items"] == [{"name": "a", "count": 1}]


async def test_interleave_overlaps_writers(world: World) -> None:
    """A long wait marked `interleave` sees later turns happen."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    waiting = asyncio.ensure_future(counter.wait_for(3))
    for _ in range(3):
        await counter.add()
    assert await asyncio.wait_for(waiting, 5) == 3


async def test_store_that_loses_an_answer_gives_effect_once(world: World) -> None:
    """The commit happened, its answer was lost: it is repeated and recognised."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    world.lever.lose_answers = 1
    assert await counter.add() == 1
    assert await counter.read() == 1
    assert len(await client.history("Counter", "c")) == 1


async def test_store_outage_shorter_than_patience_is_waited_out(world: World) -> None:
    """While the store is away commits are repeated; nobody notices more than the delay."""
    client = await world.client(Counter)
    counter = client.actor(Counter, "c")
    await counter.add()
    world.lever.down = True
    waiting = asyncio.ensure_future(counter.add())
    await until(lambda: world.lever.turned_away >= 2)  # the commit, and its repeat
    assert not waiting.done()
    world.lever.down = False
    assert await waiting == 2


async def test_store_outage_longer_than_patience_is_told(world: World) -> None:
    """After `store_patience_s` callers learn that the outcome is unknown, may retry, and later calls work."""
    client = await world.client(Counter, store_patience_s=0.01)
    counter = client.actor(Counter, "c")
    await counter.add()
    world.lever.down = True
    with pytest.raises(Retriable):
        await counter.add()
    with pytest.raises(Retriable):
        await counter.add()
    world.lever.down = False
    assert await counter.add() == 2


@actor
class Probe:
    value: int = 0
    _kept: ClassVar[asyncio.Future[str]]

    @method
    async def who(self) -> list[str]:
        turn = context()
        return [turn.actor_type, turn.actor_id, turn.stream, turn.caller, turn.trace_id, turn.idempotency_key or ""]

    @method
    async def leave_a_task_behind(self) -> None:
        self._stray = asyncio.ensure_future(self._later())

    async def _later(self) -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            context()
        except RuntimeError as error:
            return str(error)
        return "still open"

    @method
    async def stray(self) -> str:
        return str(await self._stray)

    @method
    async def stray_of_failed(self) -> None:
        self._stray = asyncio.ensure_future(self._later())
        raise ValueError("no")

    @method(read_only=True)
    async def stray_of_read(self) -> None:
        await asyncio.sleep(0)
        Probe._kept = asyncio.ensure_future(self._later())
        raise ValueError("no")


async def test_context_tells_about_the_turn(world: World) -> None:
    """`context()` inside a turn; a clear error outside."""
    client = await world.client(Probe)
    answer = await client.call("Probe", "p", "who", b"", caller="me", trace_id="t1", idempotency_key="k")
    assert answer == b'["Probe","p","Probe/p","me","t1","k"]'
    with pytest.raises(RuntimeError, match="inside an actor's method"):
        context()


async def test_turn_is_closed_to_code_it_left_behind(world: World) -> None:
    """INV-5: a background task cannot use a turn that has ended, however it ended."""
    client = await world.client(Probe)
    probe = client.actor(Probe, "p")
    await probe.leave_a_task_behind()
    assert "has ended" in await probe.stray()
    with pytest.raises(ActorFailed):
        await probe.stray_of_failed()
    assert "has ended" in await probe.stray()
    with pytest.raises(ActorFailed):
        await probe.stray_of_read()
    assert "has ended" in await Probe._kept


async def test_context_that_was_kept_is_closed(world: World) -> None:
    """What it is asked for after its turn would never be done: refused, and not lost."""
    kept: list[Turn] = []

    @actor
    class Keeper:
        @method
        async def keep(self) -> None:
            kept.append(context())

    client = await world.client(Keeper)
    await client.actor(Keeper, "k").keep()
    (turn,) = kept
    asked: list[Callable[[], object]] = [
        lambda: turn.send(client.actor(Keeper, "k").keep),
        lambda: turn.set_reminder("r", due=1),
        lambda: turn.after_commit(lambda: None),
        turn.delete,
    ]
    for ask in asked:
        with pytest.raises(RuntimeError, match="has ended"):
            ask()


async def test_history_carries_time_turn_caller_and_trace(world: World) -> None:
    """The journal is the audit log."""
    client = await world.client(Counter)
    await client.call("Counter", "c", "add", b"2", caller="alice", trace_id="00-abc")
    (recorded,) = await client.history("Counter", "c")
    assert (recorded.caller, recorded.trace_id, recorded.name) == ("alice", "00-abc", "state")
    assert recorded.data == b'{"value":2}'
    assert recorded.turn_id
    assert abs(recorded.time_ms - client._host.clock.now_ms()) < 60_000


async def test_context_variables_of_callers_are_not_seen(world: World) -> None:
    """Nobody's turn sees the variables of another caller, whoever made the actor start to work."""
    client = await world.client(Witness)

    async def asked_by(name: str) -> str:
        _TENANT.set(name)
        return await client.actor(Witness, "w").tenant()

    assert await asyncio.gather(*(asyncio.create_task(asked_by(f"t{n}")) for n in range(4))) == ["nobody"] * 4


async def test_unchanged_state_is_not_recorded(world: World) -> None:
    """A turn that changed nothing costs no write, also when a field was assigned its own value."""
    client = await world.client(Counter, Basket)
    counter = client.actor(Counter, "c")
    await counter.add(0)
    await counter.add(0)
    assert await client.history("Counter", "c") == []
    assert (await client.actor(Basket, "b").look())["items"] == []
    assert world.lever.commits == []


async def test_patch_sets_and_resets_fields(world: World) -> None:
    """Fields can be patched from outside, all or nothing, in the order of turns."""
    client = await world.client(Counter)
    await client.actor(Counter, "c").add()
    await client.patch("Counter", "c", [["value", 41]])
    assert await client.actor(Counter, "c").add() == 42
    with pytest.raises(InvalidState, match="no field 'nope'"):
        await client.patch("Counter", "c", [["value", 7], ["nope", 1]])
    assert await client.actor(Counter, "c").read() == 42
    await client.patch("Counter", "c", [["value"]])
    assert await client.actor(Counter, "c").read() == 0


async def test_until_helper_fails_loudly() -> None:
    """The tests' own waiting cannot pass for a condition that never holds."""
    with pytest.raises(TimeoutError):
        await until(lambda: False, timeout_s=0.01)
