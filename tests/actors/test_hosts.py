"""Hosts: fencing and take-over, leases and reads, outages, draining, what leaves memory and what a crash leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from actors import (
    ActorError,
    ActorFailed,
    Host,
    HostStopping,
    LoopClock,
    NotOwner,
    OutcomeUnknown,
    Retriable,
    StoreInUse,
    actor,
    context,
    event,
    method,
)
from actors.activation import Activation
from actors.clock import SystemClock
from actors.placement.owners import make_owner
from statestores.errors import StaleEpoch, StoreUnavailable
from statestores.memory import MemoryStore
from statestores.model import partition_of
from tests.actors.worlds import World, settled, until
from tests.placement.test_owners import an_ended_pid, owner
from tests.simulation.simloop import SimulatedLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class HandClock:
    """Both clocks in a tester's hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds


class Adder:
    """What can be added to, also by a turn that does not end by itself."""

    value: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    @method
    async def add_and_hang(self) -> int:
        self.value += 100
        await self.hang("turn")
        return self.value

    async def hang(self, where: str) -> None:
        await asyncio.Event().wait()


@actor(idle_timeout="50ms")
class Cell(Adder):
    @method
    async def add_slowly(self) -> int:
        self.value += 1
        for _ in range(10):
            await asyncio.sleep(0)
        return self.value

    @method
    async def check(self) -> None:
        raise ValueError(f"value is {self.value}")

    @method(read_only=True)
    async def read(self) -> int:
        return self.value

    @method(read_only=True, consistency="cached")
    async def read_cached(self) -> int:
        return self.value

    @method(read_only=True, consistency="linearizable")
    async def read_surely(self) -> int:
        return self.value


@actor
class Steady(Cell):
    """One that stays in memory."""


@actor(idle_timeout="50ms")
class Till:
    total: int = 0
    refuses: ClassVar[bool] = False

    @event
    def taken_in(self, amount: int) -> None:
        self.total += amount

    @event
    def closed(self, total: int) -> None:
        pass

    async def on_activate(self) -> None:
        if self.refuses:
            raise ValueError("cannot start")

    async def on_deactivate(self) -> None:
        self.closed(self.total)

    @method
    async def take_in(self, amount: int) -> int:
        self.taken_in(amount)
        return self.total

    @method
    async def take_in_and_fail(self, amount: int) -> None:
        self.taken_in(amount)
        raise ValueError("no")


@actor(idle_timeout="50ms")
class Hooked:
    starts: int = 0
    stops: int = 0
    fail_start: bool = False
    fail_stop: bool = False

    async def on_activate(self) -> None:
        if self.fail_start:
            raise ValueError("cannot start")
        self.starts += 1
        self._open = True

    async def on_deactivate(self) -> None:
        self._open = False
        self.stops += 1
        await asyncio.sleep(0.01)
        if self.fail_stop:
            raise ValueError("cannot stop")

    @method
    async def set(self, name: str, value: bool) -> None:
        setattr(self, name, value)

    @method
    async def counts(self) -> list[int]:
        assert self._open, "a call ran in an incarnation that had been closed"
        return [self.starts, self.stops]


async def take_over(world: World, host: Host) -> None:
    """Another host takes everything, without asking."""
    await world.journal.acquire(range(4), "other", host.clock.now_ms(), 60_000, force=True)


# -- fencing -----------------------------------------------------------------------------------------------------------


async def test_host_that_lost_its_partitions_cannot_write(world: World) -> None:
    """INV-2, INV-3: its commits are refused, its callers may retry elsewhere, its activations are dropped."""
    host = await world.host(Cell)
    cell = host.client.actor(Cell, "c")
    await cell.add()
    await take_over(world, host)
    with pytest.raises(NotOwner) as refused:
        await cell.add()
    assert refused.value.retriable
    assert host.client.is_active("Cell", "c") is False
    with pytest.raises(NotOwner):
        await cell.read()
    assert len(await host.client.history("Cell", "c")) == 1


async def test_new_host_goes_on_where_the_old_one_was_fenced(world: World) -> None:
    """Both live: what the old one decides after the take-over never happened."""
    clock = HandClock()
    old = await world.host(Cell, clock=clock, lease_s=10)
    await old.client.actor(Cell, "c").add()
    world.lever.hold()
    late = asyncio.ensure_future(old.client.actor(Cell, "c").add(100))
    await settled()
    clock.seconds += 11
    new = await world.host(Cell, name="two", clock=clock, lease_s=10)
    world.lever.let_go()
    with pytest.raises(Retriable):
        await late
    assert await new.client.actor(Cell, "c").read() == 1
    assert await new.client.actor(Cell, "c").add() == 2
    with pytest.raises(Retriable):
        await old.client.actor(Cell, "c").add()


async def test_identities_are_new_after_every_start(world: World) -> None:
    """A host started again under its old name gives turns and messages ids that were never used."""
    first = await world.host(Cell, name="same")
    await first.client.actor(Cell, "c").add()
    await first.client.actor(Cell, "c").add()
    await world.crash(first)
    second = await world.host(Cell, name="same")
    assert await second.client.actor(Cell, "c").add() == 3
    turns = [e.turn_id for e in await second.client.history("Cell", "c")]
    assert len(set(turns)) == 3


async def test_second_host_waits_for_the_lease_of_one_that_went_silent(world: World) -> None:
    """A crashed host of another machine is waited for: as long as its lease runs, no longer."""
    first = await world.host(Cell, name="first", lease_s=0.2)
    await first.client.actor(Cell, "c").add()
    await world.crash(first)
    ends_ms = max(owned.lease_until_ms for owned in await world.journal.owners())
    second = await world.host(Cell, name="second", lease_s=0.2)
    assert SystemClock().now_ms() >= ends_ms
    assert await second.client.actor(Cell, "c").add() == 2


def in_simulated_time(program: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """A lease that is renewed in time on any machine, however long this one stands still."""

    async def life(_: SimulatedLoop) -> None:
        await program(World(MemoryStore(partitions=4).journal))

    for seed in range(10):
        run(seed, life)


def test_living_owner_is_not_robbed() -> None:
    """A second host of a store in use says so, and the first one goes on."""

    async def program(world: World) -> None:
        first = await world.host(Cell, name="first", lease_s=0.2, clock=LoopClock())
        with pytest.raises(StoreInUse, match="in use"):
            await world.host(Cell, name="second", lease_s=0.2, clock=LoopClock())
        assert await first.client.actor(Cell, "c").add() == 1

    in_simulated_time(program)


def test_living_owner_beside_one_that_is_gone_is_not_robbed() -> None:
    """A process that has ended left one partition, a living one has another: only the former is taken at once."""
    gone, alive, lease_ms = owner(an_ended_pid()), make_owner("alive"), 300

    async def program(world: World) -> None:
        clock = LoopClock()
        await world.journal.acquire([0], gone, clock.now_ms(), 600_000)
        (theirs,) = await world.journal.acquire([1], alive, clock.now_ms(), lease_ms)
        starting = asyncio.ensure_future(world.host(Cell, name="late", clock=clock))
        kept = [theirs]
        while not starting.done() and kept:  # it renews its lease, as a living one does
            kept = await world.journal.renew([(1, theirs.epoch)], alive, clock.now_ms(), lease_ms)
            await asyncio.sleep(0.02)
        with pytest.raises(StoreInUse, match="alive"):
            await starting

    in_simulated_time(program)


def test_two_that_start_at_once_after_a_crash() -> None:
    """Both find that the former owner is gone; one has the store, the other one is told so."""
    gone = owner(an_ended_pid())

    async def program(world: World) -> None:
        clock = LoopClock()
        await world.journal.acquire(range(world.journal.partitions), gone, clock.now_ms(), 600_000)
        starts = [world.host(Cell, name=name, lease_s=0.3, clock=clock) for name in "pq"]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, StoreInUse)]
        assert len(refused) == 1
        (host,) = [each for each in outcomes if isinstance(each, Host)]
        assert host.lease_holds()
        assert await host.client.actor(Cell, "c").add() == 1

    in_simulated_time(program)


async def test_stopped_host_leaves_at_once(world: World) -> None:
    """Its leases end with it: the next one does not wait."""
    first = await world.host(Cell, name="first", lease_s=600)
    await first.client.actor(Cell, "c").add()
    await first.stop()
    async with asyncio.timeout(30):
        second = await world.host(Cell, name="second", lease_s=600)
    assert await second.client.actor(Cell, "c").add() == 2


# -- leases and reads --------------------------------------------------------------------------------------------------


async def test_read_under_a_running_lease_asks_nobody(world: World) -> None:
    """The default level serves from memory while the lease runs."""
    clock = HandClock()
    host = await world.host(Cell, clock=clock, lease_s=10)
    await host.client.actor(Cell, "c").add()
    assert await host.client.actor(Cell, "c").read() == 1
    assert "renew" not in world.lever.calls


async def test_read_after_the_lease_is_confirmed_with_the_store(world: World) -> None:
    """A host whose clock says that its lease may have ended asks before it answers, and knows for a while again."""
    clock = HandClock()
    host = await world.host(Cell, clock=clock, lease_s=10)
    await host.client.actor(Cell, "c").add()
    clock.seconds += 9.5
    assert await asyncio.gather(*(host.client.actor(Cell, "c").read() for _ in range(20))) == [1] * 20
    assert world.lever.calls["renew"] <= 2
    assert await host.client.actor(Cell, "c").read() == 1
    assert world.lever.calls["renew"] <= 2


@pytest.mark.parametrize("name", ["read", "read_surely", "check"])
async def test_lost_actor_is_not_read(world: World, name: str) -> None:
    """INV-3: after its lease an old host does not show a value that a new one may have overwritten, in an error
    neither."""
    clock = HandClock()
    host = await world.host(Cell, clock=clock, lease_s=10)
    await host.client.actor(Cell, "c").add()
    await take_over(world, host)
    clock.seconds += 11
    with pytest.raises(NotOwner):
        await getattr(host.client.actor(Cell, "c"), name)()


@pytest.mark.parametrize("name", ["read", "read_surely", "check"])
async def test_actor_that_was_lost_and_taken_back_is_read_anew(world: World, name: str) -> None:
    """INV-7: a read that waits for the store's word while its actor goes to another host, which writes, and comes back,
    shows what was written there."""
    clock = HandClock()
    host = await world.host(Steady, clock=clock, lease_s=10)
    await host.client.actor(Steady, "c").add()
    clock.seconds += 11
    other = await world.host(Steady, name="two", clock=clock, lease_s=10)
    assert await other.client.actor(Steady, "c").add() == 2
    await other.stop()
    asked = world.lever.calls.get("renew", 0)
    gate = world.lever.gates["renew"] = asyncio.Event()
    read = asyncio.ensure_future(getattr(host.client.actor(Steady, "c"), name)())
    await until(lambda: world.lever.calls.get("renew", 0) > asked)
    await host.take(range(4), force=True)
    gate.set()
    if name == "check":
        with pytest.raises(ActorFailed, match="2"):
            await read
    else:
        assert await read == 2


async def test_read_levels(world: World) -> None:
    """`cached` answers from memory whatever the lease says; `linearizable` asks the store however long it runs."""
    clock = HandClock()
    host = await world.host(Cell, clock=clock, lease_s=10)
    cell = host.client.actor(Cell, "c")
    await cell.add()
    assert await cell.read_surely() == 1
    assert world.lever.calls["renew"] == 1
    clock.seconds += 11
    assert await cell.read_cached() == 1
    assert world.lever.calls["renew"] == 1
    await take_over(world, host)
    assert await cell.read_cached() == 1
    with pytest.raises(NotOwner):
        await cell.read_surely()


async def test_read_that_cannot_be_confirmed_is_refused(world: World) -> None:
    """Without lease and without store there is no answer, but an error that may be retried."""
    clock = HandClock()
    host = await world.host(Cell, clock=clock, lease_s=10)
    await host.client.actor(Cell, "c").add()
    clock.seconds += 11
    world.lever.down = True
    with pytest.raises(NotOwner, match="cannot be confirmed"):
        await host.client.actor(Cell, "c").read()
    world.lever.down = False
    assert await host.client.actor(Cell, "c").read() == 1


def test_read_levels_are_checked_at_decoration() -> None:
    """A level that does not exist, or on a method that writes, is refused."""
    with pytest.raises(TypeError, match="unknown consistency"):
        method(read_only=True, consistency="eventual")  # type: ignore[call-overload]  # the mistake that is tested
    with pytest.raises(TypeError, match="choice of reads"):
        method(consistency="cached")


# -- outages -----------------------------------------------------------------------------------------------------------


async def test_actor_that_cannot_be_loaded(world: World) -> None:
    """The store is away when an actor is activated: retriable, nothing was applied, later it works."""
    host = await world.host(Cell)
    world.lever.down = True
    with pytest.raises(NotOwner, match="cannot be loaded"):
        await host.client.actor(Cell, "c").add()
    world.lever.down = False
    assert await host.client.actor(Cell, "c").add() == 1


async def test_lease_is_renewed_by_itself(world: World) -> None:
    """An idle host keeps its partitions, through an outage shorter than the lease."""
    host = await world.host(Cell, lease_s=0.15)
    await until(lambda: world.lever.calls.get("renew", 0) >= 2)
    world.lever.down = True
    await until(lambda: world.lever.turned_away >= 1)
    world.lever.down = False
    await until(lambda: world.lever.calls["renew"] >= 4)
    assert host.owned() == [0, 1, 2, 3]


async def test_idle_host_learns_that_it_was_replaced(world: World) -> None:
    """The renewal says so; everything in memory is dropped."""
    host = await world.host(Cell, lease_s=0.1)
    await host.client.actor(Cell, "c").add()
    await take_over(world, host)
    await until(lambda: host.owned() == [])
    assert host.activations == {}
    with pytest.raises(NotOwner):
        await host.client.actor(Cell, "c").read()


async def test_one_lost_partition_leaves_the_others(world: World) -> None:
    """Partitions are lost one by one; actors of the others go on."""
    host = await world.host(Cell)
    for number in range(8):
        await host.client.actor(Cell, f"c{number}").add()
    host.lost_partition(0, StaleEpoch(0, 1, 2))
    assert host.owned() == [1, 2, 3]
    outcomes = await asyncio.gather(*(host.client.actor(Cell, f"c{n}").add() for n in range(8)), return_exceptions=True)
    for number, outcome in enumerate(outcomes):
        lost = partition_of(f"Cell/c{number}", 4) == 0
        assert isinstance(outcome, NotOwner) if lost else outcome == 2


# -- stopping ----------------------------------------------------------------------------------------------------------


async def test_stop_finishes_what_is_queued(world: World) -> None:
    """Drain: every call that was accepted gets its answer, new ones are refused with a retriable error."""
    host = await world.host(Cell)
    cell = host.client.actor(Cell, "c")
    await cell.add(0)
    accepted = [asyncio.ensure_future(cell.add_slowly()) for _ in range(20)]
    await settled(2)
    stopping = asyncio.ensure_future(host.stop())
    await settled(2)
    with pytest.raises(HostStopping):
        await cell.add()
    with pytest.raises(HostStopping):
        await host.client.set_reminder("Cell", "other", "r", {"due": 1})
    assert await asyncio.gather(*accepted) == list(range(1, 21))
    await stopping
    assert await (await world.client(Cell)).actor(Cell, "c").read() == 20


async def test_stop_with_a_turn_that_hangs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """After the time limit it is rolled back, and its caller, and those behind it, are told to go elsewhere. The limit
    is what is left of a drain, not all of it, and the log says no more."""
    host = await world.host(Cell)
    hanging = asyncio.ensure_future(host.client.actor(Cell, "c").add_and_hang())
    await until(lambda: host.client.is_active("Cell", "c") and host.activations["Cell/c"].running)
    behind = asyncio.ensure_future(host.client.actor(Cell, "c").add())
    await settled()
    await host.stop(timeout_s=0.02)
    assert caplog.messages == ["the 0.02 s left for turns to end are over: what still runs is rolled back"]
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(hanging, behind, return_exceptions=True)
    assert all(isinstance(o, Retriable) for o in outcomes)
    assert await (await world.client(Cell)).actor(Cell, "c").read() == 0


@actor
class Deaf(Adder):
    """Swallows every cancellation."""

    hanging: ClassVar[set[str]] = set()
    released: ClassVar[asyncio.Event]

    async def hang(self, where: str) -> None:
        self.hanging.add(where)
        while not self.released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.released.wait()
        self.hanging.discard(where)
        if where == "turn":
            await context().actor(Deaf, "other").add()

    async def on_deactivate(self) -> None:
        if context().actor_id == "hook":
            self.value += 100
            await self.hang("hook")

    @method(read_only=True)
    async def read_and_hang(self) -> int:
        await self.hang("read")
        return self.value


@pytest.mark.parametrize("ending", ["stop", "give"])
@pytest.mark.parametrize("where", ["turn", "read", "hook"])
async def test_what_does_not_let_go_keeps_no_host(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str, ending: str
) -> None:
    """A turn that swallows its cancellation runs on, and the partitions leave all the same, at once. Of what it does
    then nothing is recorded, neither its own state nor that of others it calls (INV-2, INV-6). When its host stops, its
    caller is told."""
    monkeypatch.setattr("actors.host._LETTING_GO_S", 0.01)
    Deaf.hanging.clear()
    Deaf.released = asyncio.Event()
    one = await world.host(Deaf)
    deaf = one.client.actor(Deaf, where)
    await deaf.add()
    call = {"turn": deaf.add_and_hang, "read": deaf.read_and_hang}.get(where)
    asked = [asyncio.ensure_future(call())] if call is not None else []
    if asked:
        await until(lambda: Deaf.hanging)
    leaving = asyncio.ensure_future(one.stop(timeout_s=0.02) if ending == "stop" else one.give(range(4), 0.02))
    try:
        await until(leaving.done)
        assert Deaf.hanging == {where}
        two = await world.host(Deaf, name="two")
        assert await two.client.actor(Deaf, where).add() == 2
        for answer in asked if ending == "stop" else ():
            with pytest.raises(HostStopping):
                await asyncio.wait_for(answer, 5)
    finally:
        Deaf.released.set()
    await leaving
    await until(lambda: not Deaf.hanging)
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, ActorError)
    assert await two.client.actor(Deaf, where).add() == 3
    assert await two.client.state("Deaf", "other") is None


@pytest.mark.parametrize("ending", ["stop", "give"])
async def test_abort_ends_a_drain(world: World, ending: str) -> None:
    """Who waits for the drain hears that it is over, not that it was cancelled itself."""
    host = await world.host(Cell)
    hanging = asyncio.ensure_future(host.client.actor(Cell, "c").add_and_hang())
    await until(lambda: "Cell/c" in host.activations and host.activations["Cell/c"].running)
    leaving = asyncio.ensure_future(host.stop() if ending == "stop" else host.give(range(4), 30))
    await settled()
    host.abort()
    async with asyncio.timeout(5):
        await leaving
    assert host.owned() == []
    with pytest.raises(Retriable):
        await hanging


async def test_abort_answers_whoever_waits(world: World) -> None:
    """Decided turns: nobody knows. All others, also those that were queued: not applied, since the host stops. Nobody
    waits for ever."""
    host = await world.host(Steady)
    cell = host.client.actor(Steady, "c")
    await cell.add()
    world.lever.hold()
    decided = asyncio.ensure_future(cell.add())
    await settled()
    running = asyncio.ensure_future(cell.add_and_hang())
    await settled()
    waiting = asyncio.ensure_future(cell.add())
    reading = asyncio.ensure_future(host.client.actor(Steady, "c").read())
    await settled()
    host.abort()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(decided, running, waiting, reading, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, HostStopping, HostStopping, HostStopping]
    with pytest.raises(HostStopping):
        await cell.add()


# -- activations -------------------------------------------------------------------------------------------------------


async def test_idle_actor_leaves_memory_and_comes_back(world: World) -> None:
    """After `idle_timeout` without a turn; its state is read again when it is called."""
    client = await world.client(Cell)
    await client.actor(Cell, "c").add()
    assert client.active_counts() == {"Cell": 1}
    await until(lambda: client.active_counts() == {"Cell": 0})
    assert client.is_active("Cell", "c") is False
    assert await client.actor(Cell, "c").add() == 2


async def test_read_that_is_being_confirmed_keeps_its_actor_in_memory(world: World) -> None:
    """However long the store takes to say whose it is: the read is not made again and again, its actor is not loaded
    anew; then it leaves."""
    client = await world.client(Cell)
    await client.actor(Cell, "c").add()
    activation = client._host.activations["Cell/c"]
    gate = world.lever.gates["renew"] = asyncio.Event()
    read = asyncio.ensure_future(client.actor(Cell, "c").read_surely())
    await until(lambda: "renew" in world.lever.calls)
    for _ in range(2):  # as long as it takes others to leave
        await client.actor(Cell, "other").add()
        await until(lambda: not client.is_active("Cell", "other"))
    assert client._host.activations["Cell/c"] is activation
    gate.set()
    assert await read == 1
    await until(lambda: not client.is_active("Cell", "c"))


async def test_stop_finishes_reads_that_are_being_confirmed(world: World) -> None:
    """Drain: what they have read is shown when the store has said whose it is, and nobody has to ask again."""
    host = await world.host(Cell)
    await host.client.actor(Cell, "c").add()
    gate = world.lever.gates["renew"] = asyncio.Event()
    read = asyncio.ensure_future(host.client.actor(Cell, "c").read_surely())
    await until(lambda: "renew" in world.lever.calls)
    stopping = asyncio.ensure_future(host.stop())
    await settled()
    gate.set()
    assert await read == 1
    await stopping


async def test_hooks_are_turns(world: World) -> None:
    """`on_activate` before the first call, `on_deactivate` when it leaves memory; what they change is durable."""
    client = await world.client(Hooked)
    assert await client.actor(Hooked, "h").counts() == [1, 0]
    await until(lambda: not client.is_active("Hooked", "h"))
    assert await client.actor(Hooked, "h").counts() == [2, 1]


async def test_call_during_on_deactivate_goes_to_the_next_incarnation(world: World) -> None:
    """It is not lost, and not run in the one that has just let go of its resources."""
    client = await world.client(Hooked)
    hooked = client.actor(Hooked, "h")
    assert await hooked.counts() == [1, 0]
    await until(lambda: not client._host.activations["Hooked/h"].instance._open)
    async with asyncio.timeout(10):
        assert await hooked.counts() == [2, 1]


async def test_hook_that_fails(world: World) -> None:
    """A failing `on_activate` fails the calls that wait for it; a failing `on_deactivate` is rolled back and logged."""
    client = await world.client(Hooked)
    hooked = client.actor(Hooked, "h")
    await hooked.set("fail_stop", True)
    await until(lambda: not client.is_active("Hooked", "h"))
    await hooked.set("fail_stop", False)
    assert await hooked.counts() == [2, 0]
    await hooked.set("fail_start", True)
    await until(lambda: not client.is_active("Hooked", "h"))
    with pytest.raises(ActorFailed, match="cannot start"):
        await hooked.counts()
    await client.call("Hooked", "other", "counts")


@pytest.mark.parametrize("fail_start", [False, True])
async def test_failed_turn_leaves_no_trace_in_on_deactivate(world: World, fail_start: bool) -> None:
    """INV-6: an event-sourced actor whose last turn failed is folded again before its last hook runs. One that cannot
    start again leaves without it."""
    client = await world.client(Till)
    till = client.actor(Till, "t")
    await till.take_in(1)
    Till.refuses = fail_start
    with pytest.raises(ActorFailed, match="no"):
        await till.take_in_and_fail(100)
    await until(lambda: not client.is_active("Till", "t"))
    await client._host.group.drain()
    Till.refuses = False
    assert await client.state("Till", "t") == ((1, {"total": 1}) if fail_start else (2, {"total": 1}))
    assert [e.data for e in await client.history("Till", "t", after=1)] == ([] if fail_start else [b'{"total":1}'])
    assert await till.take_in(1) == 2


async def test_hook_that_fails_after_the_lease(world: World) -> None:
    """An `on_activate` that raises fails the calls that wait for it, also when failures have to be confirmed by the
    store."""
    clock = HandClock()
    client = await world.client(Hooked, clock=clock, lease_s=10)
    await client.actor(Hooked, "h").set("fail_start", True)
    await until(lambda: not client.is_active("Hooked", "h"))
    clock.seconds += 11
    with pytest.raises(ActorFailed, match="cannot start"):
        await client.actor(Hooked, "h").counts()


def test_hooks_are_not_read_only() -> None:
    """A hook runs alone, and may write."""
    with pytest.raises(TypeError, match="on_activate: a hook cannot be read_only"):

        @actor
        class Bad:
            @method(read_only=True)
            async def on_activate(self) -> None: ...


@actor(idle_timeout="50ms")
class Clinging:
    leaving: ClassVar[set[str]] = set()
    value: int = 0

    @method
    async def add(self) -> int:
        self.value += 1
        return self.value

    async def on_deactivate(self) -> None:
        self.leaving.add(context().actor_id)
        await asyncio.Event().wait()


async def test_hook_that_hangs_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One `on_deactivate` that does not return: other idle actors leave memory, with and without a hook of their own;
    it is cancelled after a time, its turn rolled back, and its actor leaves too."""
    farewell_s = 60.0
    monkeypatch.setattr("actors.turntask._FAREWELL_S", farewell_s)
    client = await world.client(Clinging, Hooked, Cell)
    Clinging.leaving.clear()
    await asyncio.gather(*(client.actor(Clinging, str(n)).add() for n in range(3)))
    await until(lambda: len(Clinging.leaving) == 3)
    await client.actor(Hooked, "h").counts()
    await client.actor(Cell, "c").add()
    await until(lambda: not client.is_active("Hooked", "h") and not client.is_active("Cell", "c"))
    assert client.active_counts()["Clinging"] == 3
    monkeypatch.setattr("actors.turntask._FAREWELL_S", 0.01)
    await client.actor(Clinging, "4").add()
    await until(lambda: "4" in Clinging.leaving and not client.is_active("Clinging", "4"))
    assert await client.actor(Clinging, "4").add() == 2


async def test_stop_with_a_hook_that_hangs_finishes_the_others(world: World) -> None:
    """A drain whose time is spent on one actor has deactivated the others."""
    host = await world.host(Clinging, Hooked)
    Clinging.leaving.clear()
    await host.client.actor(Clinging, "a").add()
    await host.client.actor(Hooked, "h").counts()
    await host.client.actor(Hooked, "i").counts()
    before = len(world.lever.commits)
    stopping = asyncio.ensure_future(host.stop())
    await until(lambda: {commit.stream for commit in world.lever.commits[before:]} >= {"Hooked/h", "Hooked/i"})
    assert Clinging.leaving == {"a"}
    assert not stopping.done()
    host.abort()
    await stopping
    client = await world.client(Hooked)
    for name in ("h", "i"):
        assert (await client.state("Hooked", name) or (0, {}))[1]["stops"] == 1


async def test_stop_runs_the_hooks(world: World) -> None:
    """Draining deactivates properly."""
    host = await world.host(Hooked)
    await host.client.actor(Hooked, "h").counts()
    await host.stop()
    assert (await (await world.client(Hooked)).state("Hooked", "h") or (0, {}))[1]["stops"] == 1


@actor(reentrant=True)
class Eraser:
    value: int = 0

    @method
    async def write(self) -> int:
        self.value += 1
        return self.value

    @method
    async def erase(self) -> None:
        self.value = 50
        context().delete()


async def test_deletion_and_new_beginning(world: World) -> None:
    """A deleted actor has no state, no history, no listing; calls behind the deletion find a new one."""
    client = await world.client(Eraser)
    eraser = client.actor(Eraser, "e")
    await eraser.write()
    outcomes = await asyncio.gather(eraser.write(), eraser.erase(), eraser.write(), eraser.write())
    assert list(outcomes) == [2, None, 1, 2]
    assert len(await client.history("Eraser", "e")) == 2
    assert await client.delete("Eraser", "e") is True
    assert await client.state("Eraser", "e") is None
    assert await eraser.write() == 1


async def test_refused_deletion_did_not_happen(world: World) -> None:
    """It is a turn like any other: refused by the store, it is run again."""
    client = await world.client(Eraser)
    eraser = client.actor(Eraser, "e")
    await eraser.write()
    refused: list[str] = []

    def refuse_once(turn: object) -> bool:
        if not refused and getattr(turn, "delete", False):
            refused.append("once")
            return True
        return False

    world.lever.refuse = refuse_once
    await eraser.erase()
    assert refused == ["once"]
    assert await client.state("Eraser", "e") is None


async def test_nothing_is_kept_of_finished_calls(world: World) -> None:
    """Tasks, waits and futures of finished work are let go."""
    host = await world.host(Cell)
    standing = len(host._tasks)
    await asyncio.gather(*(host.client.actor(Cell, f"c{i % 10}").add_slowly() for i in range(500)))
    await settled()
    assert len(host._tasks) == standing
    assert host.waits._edges == {}
    assert host._unsettled == {}
    assert all(a.mailbox is None and a.pump is None and a.marks is None for a in host.activations.values())


async def test_actors_that_were_let_go_leave_nothing(world: World) -> None:
    """Other ones each time, or the same again: objects in memory are as many as before."""
    host = await world.host(Steady)

    async def visit(numbers: range) -> int:
        await asyncio.gather(*(host.client.actor(Steady, f"k{number}").read() for number in numbers))
        for activation in tuple(host.activations.values()):
            activation.deactivate()
        gc.collect()
        return sys.getallocatedblocks()

    for _ in range(2):
        before = await visit(range(500))
    again = await visit(range(500))
    others = await visit(range(500, 1000))
    assert abs(again - before) < 100
    assert abs(others - before) < 100


async def test_activation_that_was_swept_is_let_go(world: World) -> None:
    """At once, the last one of a sweep too: what it holds may be large, and the next sweep be far."""
    host = await world.host(Cell)
    await asyncio.gather(*(host.client.actor(Cell, f"c{number}").add() for number in range(3)))
    await until(lambda: not host.activations)
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Activation) and each.host is host]


@pytest.mark.parametrize("left", [0, 1, 1000])
async def test_table_of_activations_shrinks_with_them(world: World, left: int) -> None:
    """Room for as many as there ever were is not kept when few are left; and these stay, in their order."""
    host = await world.host(Steady)
    empty = sys.getsizeof(host.activations)
    for number in range(50_000):
        stream = f"Steady/k{number}"
        host.activations[stream] = activation = Activation(
            host, host.types["Steady"], stream, partition_of(stream, len(host.epochs))
        )
        activation.begin()
    most = sys.getsizeof(host.activations)
    for activation in tuple(host.activations.values())[left:]:
        activation.deactivate()
    assert sys.getsizeof(host.activations) <= max(2 * empty, most // 8 if left else 0)
    assert list(host.activations) == [f"Steady/k{number}" for number in range(left)]


async def test_store_unavailable_at_start(world: World) -> None:
    """A host that cannot reach its store does not start, and says why."""
    world.lever.down = True
    with pytest.raises(StoreUnavailable):
        await world.host(Cell)
    world.hosts.pop()


async def test_what_is_cancelled_may_clean_up_for_as_long_as_the_stop_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the drain has not used is left to it."""
    monkeypatch.setattr("actors.host._LETTING_GO_S", 0.0)
    host = await world.host(Cell)
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                await asyncio.sleep(0.001)
            cleaned = True

    host.create_task(work())
    await settled()
    await host.stop(timeout_s=30)
    assert cleaned
