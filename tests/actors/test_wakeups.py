"""Reminders and timers on a host: kinds, misfires, replacing and clearing, each tick once, a million in flat memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from dataclasses import field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from actors import (
    ActorFailed,
    InvalidArguments,
    InvalidName,
    InvalidSchedule,
    OutcomeUnknown,
    ReminderExists,
    UnknownMethod,
    actor,
    context,
    method,
)
from actors.period import Every
from actors.reminders import encode_reminder
from actors.schedule import Schedule
from statestores.errors import StoreUnavailable
from statestores.model import IndexQuery, Reminder, TurnCommit, partition_of
from tests.actors.worlds import settled, until

if TYPE_CHECKING:
    from actors import ActorClient
    from tests.actors.worlds import World


_LATER_S = 0.04


class Wall:
    """A wall clock that a test can move: what is due is decided by it, waiting is real."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000
        self._started = asyncio.get_running_loop().time()

    def now_ms(self) -> int:
        return self.ms + int((self.monotonic() - self._started) * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@actor
class Alarm:
    rings: list[list[Any]] = field(default_factory=list)
    heard: int = 0
    failures: ClassVar[int] = 0

    @method
    async def set(self, name: str, options: dict[str, Any]) -> None:
        context().set_reminder(name, **options)

    @method
    async def set_timer(self, name: str, options: dict[str, Any]) -> None:
        context().set_timer(name, **options)

    @method
    async def clear(self, name: str) -> None:
        context().clear_reminder(name)

    @method
    async def clear_timer(self, name: str) -> None:
        context().clear_timer(name)

    @method
    async def receive_reminder(self, name: str, data: Any) -> None:
        self.rings.append([name, data])

    @method
    async def receive_timer(self, name: str, data: Any) -> None:
        self.rings.append(["timer " + name, data])

    @method
    async def ring(self, data: Any = None) -> None:
        self.rings.append(["ring", data])

    @method
    def ring_inline(self, data: Any = None) -> None:
        self.rings.append(["inline", data])

    @method
    async def ring_and_clear(self) -> None:
        self.rings.append(["last"])
        context().clear_reminder("r")
        context().clear_timer("t")

    @method
    async def ring_and_replace(self) -> None:
        self.rings.append(["first"])
        context().set_reminder("r", due=0.01, data="second")
        context().set_timer("t", due=0.01, data="second")

    @method
    async def ring_badly(self) -> None:
        type(self).failures += 1
        self.rings.append(["never"])
        raise ValueError("no")

    @method
    async def ring_slowly(self) -> None:
        self._gate = asyncio.Event()
        self.rings.append(["slow"])
        await self._gate.wait()

    @method
    async def hold_and(self, change: str) -> None:
        self._gate = asyncio.Event()
        await self._gate.wait()
        match change:
            case "clear":
                context().clear_timer("t")
            case "replace":
                context().set_timer("t", due=3600)
            case "delete":
                context().delete()

    @method(interleave=True)
    async def let_go(self) -> None:
        self._gate.set()

    @method(interleave=True)
    async def listen(self) -> None:
        self._gate = asyncio.Event()
        await self._gate.wait()

    @method
    async def hear(self) -> None:
        self.heard += 1

    @method
    async def set_and_fail(self) -> None:
        context().set_reminder("r", due=0)
        context().set_timer("t", due=0)
        raise ValueError("no")

    @method
    async def set_and_clear(self) -> None:
        context().set_reminder("r", due=3600)
        context().clear_reminder("r")

    @method
    async def remove(self) -> None:
        context().delete()

    @method
    async def ring_and_delete(self) -> None:
        self.rings.append(["gone"])
        context().delete()

    @method
    async def set_and_delete(self) -> None:
        context().set_timer("t", due=0.01, callback="ring")
        context().set_reminder("r", due=0.01, callback="ring")
        context().delete()

    @method(read_only=True)
    async def rung(self) -> list[list[Any]]:
        return self.rings

    @method
    async def names(self) -> list[str]:
        return [r.name for r in await context().reminders()]


def rings(world: World) -> int:
    """Committed ticks, that is: state events of alarms that came from a reminder or timer."""
    return sum(1 for c in world.lever.commits for e in c.events if b'"rings"' in e.data)


async def wait_witness(world: World, client: ActorClient) -> None:
    """Returns when a reminder and a timer have come that are due later than any other wake-up of the test: so what
    should not come had every chance to."""

    def heard() -> int:
        return sum(1 for c in world.lever.commits for e in c.events if b'"heard"' in e.data)

    before = heard()
    await client.set_reminder("Alarm", "witness", "r", {"due": _LATER_S, "callback": "hear"})
    await client.set_timer("Alarm", "witness", "t", {"due": _LATER_S, "callback": "hear"})
    await until(lambda: heard() == before + 2)
    host = client._host
    await until(lambda: not host.reminders._ticking and ("Alarm/witness", "t") not in host.timers._running)


async def wait_for_ring(world: World, client: ActorClient) -> None:
    """Returns when a reminder that is set now, for soon, has come."""
    before = rings(world)
    await client.actor(Alarm, "quick").set("r", {"due": 0.01, "callback": "ring"})
    await until(lambda: rings(world) > before)


@pytest.mark.parametrize(
    "options",
    [
        {"due": 0.01, "data": {"a": [1]}},
        {"due": "10ms", "data": {"a": [1]}},
        {"due": "PT0S", "data": {"a": [1]}},
        {"due": timedelta(milliseconds=5), "data": {"a": [1]}},
        {"due": datetime(2020, 1, 1, tzinfo=UTC), "data": {"a": [1]}},
        {"due": "2020-01-01T00:00:00Z", "data": {"a": [1]}},
        {"period": "10ms", "repeats": 1, "data": {"a": [1]}},
    ],
)
async def test_kinds_of_reminder(world: World, options: dict[str, Any]) -> None:
    """Durations, ISO, Go, instants: each fires once, with its data, and is gone."""
    host = await world.host(Alarm)
    alarm = host.client.actor(Alarm, "a")
    jsonable = {k: v for k, v in options.items() if isinstance(v, (str, int, float, dict))}
    if jsonable == options:
        await alarm.set("r", options)
    else:
        await host.client.set_reminder("Alarm", "a", "r", {**jsonable, "due": _text(options["due"])})
    await until(lambda: rings(world) == 1)
    assert await alarm.rung() == [["r", {"a": [1]}]]
    assert await alarm.names() == []
    assert await world.journal.reminders("Alarm/a") == []


def _text(due: Any) -> str:
    return due.isoformat() if isinstance(due, datetime) else f"{due.total_seconds() * 1000:g}ms"


async def test_periodic_reminder_with_callback(world: World) -> None:
    """Fires its method with the data, repeatedly, as often as asked."""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set("r", {"due": 0, "period": 0.01, "repeats": 3, "callback": "ring", "data": 7})
    await until(lambda: rings(world) == 3)
    assert await client.actor(Alarm, "a").rung() == [["ring", 7]] * 3
    assert await client.reminders("Alarm", "a") == []


async def test_cron_reminder_is_read_back(world: World) -> None:
    """A cron schedule is kept as such."""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set("daily", {"period": "0 9 * * *"})
    (info,) = await client.reminders("Alarm", "a")
    assert info.due_ms % 86_400_000 == 9 * 3_600_000
    assert (await client.reminder("Alarm", "a", "daily")) == info
    assert await client.reminder("Alarm", "a", "other") is None


@pytest.mark.parametrize(("misfire", "expected"), [("all", 5), ("latest", 1), ("skip", 0)])
async def test_misfire_policies_after_a_stop(world: World, misfire: str, expected: int) -> None:
    """Ticks missed while nothing ran: every one, one for all, or none."""
    wall = Wall()
    host = await world.host(Alarm, clock=wall)
    await host.client.actor(Alarm, "a").set("r", {"due": 60, "period": 60, "misfire": misfire})
    await host.stop()
    wall.ms += 5 * 60_000 + 30_000  # five ticks are past, the next is half a minute away
    client = await world.client(Alarm, clock=wall)
    await until(lambda: len(world.lever.commits) > 1 and not client._host.reminders._ticking)
    await settled()
    assert len(await client.actor(Alarm, "a").rung()) == expected
    (info,) = await client.reminders("Alarm", "a")
    assert 0 < info.due_ms - wall.now_ms() <= 30_000


async def test_reminder_replaced_inside_its_own_tick(world: World) -> None:
    """What the tick's method says wins over the schedule."""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set("r", {"due": 0, "period": 0.005, "callback": "ring_and_replace"})
    await until(lambda: rings(world) == 3)  # the method sets a timer, too
    await wait_witness(world, client)
    assert sorted(await client.actor(Alarm, "a").rung()) == [["first"], ["r", "second"], ["timer t", "second"]]


async def test_reminder_cleared_inside_its_own_tick(world: World) -> None:
    """It does not come back."""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set("r", {"due": 0, "period": 0.005, "callback": "ring_and_clear"})
    await until(lambda: rings(world) == 1)
    await wait_witness(world, client)
    assert await client.actor(Alarm, "a").rung() == [["last"]]
    assert await client.reminders("Alarm", "a") == []


@pytest.mark.parametrize("change", ["clear", "replace", "delete"])
async def test_tick_that_waits_while_its_reminder_changes(world: World, change: str) -> None:
    """A tick queued behind the turn that clears or replaces its reminder, or deletes the actor, has no effect; an actor
    that is gone is not brought back by it."""
    client = await world.client(Alarm)
    alarm = client.actor(Alarm, "a")
    slow = asyncio.ensure_future(alarm.ring_slowly())
    await until(lambda: "Alarm/a" in client._host.activations and client._host.activations["Alarm/a"].running)
    due = client._host.clock.now_ms()
    row = encode_reminder("Alarm/a", "r", due, Schedule(Every(3_600_000)), "old", None)
    await commit_rows(world, client._host.epochs, [row])
    client._host.reminders.rescan()
    match change:
        case "clear":
            changed = asyncio.ensure_future(alarm.clear("r"))
        case "replace":
            changed = asyncio.ensure_future(alarm.set("r", {"due": 7200}))
        case _:
            changed = asyncio.ensure_future(alarm.remove())
    await until(lambda: client._host.reminders._ticking == 1)
    await settled()
    client._host.activations["Alarm/a"].instance._gate.set()
    await asyncio.gather(slow, changed)
    await until(lambda: not client._host.reminders._ticking)
    left = [r.name for r in await world.journal.reminders("Alarm/a")]
    assert left == (["r"] if change == "replace" else [])
    if change == "replace":
        (info,) = await client.reminders("Alarm", "a")
        assert info.due_ms > due + 7_000_000
    if change == "delete":
        assert await client.state("Alarm", "a") is None
        assert await client.delete("Alarm", "a") is False
    else:
        assert await alarm.rung() == [["slow"]]


async def test_tick_that_waits_to_be_tried_again_is_dropped_when_cleared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two attempts of a failing tick its reminder is replaced: the old schedule does not come back."""
    monkeypatch.setattr("actors.reminders._RETRY_DELAY_S", 0.03)
    client = await world.client(Alarm)
    alarm = client.actor(Alarm, "a")
    await alarm.set("r", {"due": 0, "period": 0.5, "callback": "ring_badly"})
    await until(lambda: client._host.reminders._ticking == 1)
    await settled()
    await alarm.set("r", {"due": 3600, "data": "new"})
    await until(lambda: not client._host.reminders._ticking)
    (info,) = await client.reminders("Alarm", "a")
    assert info.data == "new"


@pytest.mark.parametrize("change", ["clear", "delete"])
@pytest.mark.parametrize("waiting", [False, True], ids=["not due", "tick waits"])
async def test_reminder_is_gone_although_nobody_said_so(world: World, change: str, waiting: bool) -> None:
    """A turn that clears it, or deletes the actor, is recorded, and its caller does not hear so. The reminder does not
    fire: neither from the window, nor by a tick that waited behind that turn. A deleted actor does not come back."""
    wall = Wall()
    client = await world.client(Alarm, clock=wall, store_patience_s=0.001)
    host, alarm = client._host, client.actor(Alarm, "a")
    await alarm.set("r", {"due": 5, "callback": "ring"})
    world.lever.lose_answers = 1
    world.lever.hold()
    changing = asyncio.ensure_future(alarm.clear("r") if change == "clear" else alarm.remove())
    await settled()
    slow = None
    if waiting:
        slow = asyncio.ensure_future(alarm.ring_slowly())  # the next turn; the tick comes after it
        await settled()
        wall.ms += 6_000
        host.reminders._wake.set()
        await until(lambda: host.reminders._ticking == 1)
        await settled()
    world.lever.let_go()
    with pytest.raises(OutcomeUnknown):
        await changing
    if slow is not None:
        slow.cancel()
    else:
        wall.ms += 6_000
    await wait_witness(world, client)
    assert rings(world) == 0
    assert await client.reminders("Alarm", "a") == []
    if change == "delete":
        assert await client.state("Alarm", "a") is None


async def test_tick_that_waited_while_its_actor_was_elsewhere(world: World) -> None:
    """INV-8: it was fired there; the tick that still waits here, when the actor is back, has no effect."""
    wall = Wall()
    one = await world.host(Alarm, clock=wall)
    alarm = one.client.actor(Alarm, "a")
    await alarm.set("r", {"due": 5, "callback": "ring"})
    slow = asyncio.ensure_future(alarm.ring_slowly())
    await until(lambda: one.activations["Alarm/a"].running)
    wall.ms += 12_000  # its lease has ended, too
    one.reminders._wake.set()
    await until(lambda: one.reminders._ticking == 1)
    await settled()
    two = await world.host(Alarm, name="two", clock=wall)
    await until(lambda: rings(world) == 1)
    await two.stop()
    await one.take(range(4), force=True)
    slow.cancel()
    await until(lambda: not one.reminders._ticking)
    await wait_witness(world, one.client)
    assert await alarm.rung() == [["ring", None]]


@pytest.mark.parametrize(("change", "left"), [("nothing", 3600), ("clear", None), ("replace", 7200)])
async def test_reminder_that_changes_while_its_interleaved_tick_runs(
    world: World, change: str, left: int | None
) -> None:
    """The tick's turn lets others in. What they say of its reminder holds; if they say nothing, its schedule goes
    on."""
    client = await world.client(Alarm)
    alarm = client.actor(Alarm, "a")
    await alarm.set("r", {"due": 0, "period": 3600, "callback": "listen"})
    due = client._host.clock.now_ms()
    await until(lambda: hasattr(client._host.activations["Alarm/a"].instance, "_gate"))
    if change == "clear":
        await alarm.clear("r")
    elif change == "replace":
        await alarm.set("r", {"due": 7200})
    await alarm.let_go()
    await until(lambda: not client._host.reminders._ticking)
    dues = [info.due_ms - due for info in await client.reminders("Alarm", "a")]
    assert [round(ms / 60_000) for ms in dues] == ([] if left is None else [left // 60])


class HeldScan:
    """The next scan of a host: what it reads of the store is kept from the host until it is let go."""

    def __init__(self, world: World) -> None:
        self.has_read, self._held = asyncio.Event(), asyncio.Event()
        self._read = world.lever.__getattr__("due_reminders")
        self._lever = world.lever
        world.lever.due_reminders = self._scan  # type: ignore[attr-defined]  # the lever passes everything on

    async def _scan(self, *args: Any) -> Any:
        found = await self._read(*args)
        self.has_read.set()
        await self._held.wait()
        return found

    def let_go(self) -> None:
        self._held.set()
        del self._lever.due_reminders


async def test_scan_that_is_older_than_a_commit(world: World) -> None:
    """Rows a scan has read before their reminder was cleared are not fired."""
    client = await world.client(Alarm)
    alarm = client.actor(Alarm, "a")
    await alarm.set("r", {"due": 5, "callback": "ring"})
    reminders = client._host.reminders
    scan = HeldScan(world)
    reminders.rescan()
    reminders._window.clear()
    await scan.has_read.wait()
    await alarm.clear("r")
    scan.let_go()
    await until(lambda: reminders._changed is None)  # the scan is over
    assert ("Alarm/a", "r") not in reminders._window


@pytest.mark.parametrize("back_first", [False, True])
async def test_scan_that_is_older_than_a_hand_over(world: World, back_first: bool) -> None:
    """Nor are rows that were read before their partition left, which comes back when another host has cleared the
    reminder: whether the scan ends while it is away or when it is back."""
    one = await world.host(Alarm)
    await one.client.actor(Alarm, "a").set("r", {"due": 5, "callback": "ring"})
    reminders = one.reminders
    scan = HeldScan(world)
    reminders.rescan()
    reminders._window.clear()
    await scan.has_read.wait()
    await one.give(range(4), timeout_s=5)
    if not back_first:
        scan.let_go()
        await until(lambda: reminders._changed is None)
    two = await world.host(Alarm, name="two")
    await two.client.actor(Alarm, "a").clear("r")
    await two.stop()
    await one.take(range(4), force=False)
    if back_first:
        scan.let_go()
    await until(lambda: reminders._changed is None and reminders._scanned_to_ms)
    assert ("Alarm/a", "r") not in reminders._window


@pytest.mark.parametrize("under_way", [False, True])
async def test_window_full_of_later_ones_does_not_hold_up_a_partition_that_comes(
    world: World, monkeypatch: pytest.MonkeyPatch, under_way: bool
) -> None:
    """What it has due is fired at once, however full the window is, also when another scan was under way."""
    monkeypatch.setattr("actors.reminders._WINDOW", 20)
    host = await world.host(Alarm)
    now = host.clock.now_ms()
    later = [encode_reminder(f"Alarm/{i}", "r", now + 9_500, Schedule(), i, "ring") for i in range(30)]
    await commit_rows(world, host.epochs, later)
    scan = HeldScan(world) if under_way else None
    host.reminders.rescan()
    if scan is not None:
        await scan.has_read.wait()
    else:
        await until(lambda: len(host.reminders._window) == 20)
    await commit_rows(world, host.epochs, [encode_reminder("Alarm/due", "r", now, Schedule(), 0, "ring")])
    host.reminders.rescan()
    if scan is not None:
        scan.let_go()
    await until(lambda: rings(world) == 1)


async def test_failing_tick_is_tried_again_then_the_schedule_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most three more attempts; each leaves no trace; the next tick comes at its time."""
    monkeypatch.setattr("actors.reminders._RETRY_DELAY_S", 0.001)
    monkeypatch.setattr(Alarm, "failures", 0)
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set("r", {"due": 0, "period": 3600, "callback": "ring_badly"})
    due = client._host.clock.now_ms()
    await until(lambda: len(world.lever.commits) == 2)
    assert Alarm.failures == 4
    assert await client.actor(Alarm, "a").rung() == []
    (info,) = await client.reminders("Alarm", "a")
    assert info.due_ms > due + 3_500_000


@pytest.mark.parametrize("callback", ["no_such", "on_activate", "$delete"])
async def test_callback_that_does_not_exist_is_refused(world: World, callback: str) -> None:
    """A reminder or timer that could never fire is its author's mistake, told when it is set."""
    client = await world.client(Alarm)
    alarm, wanted = client.actor(Alarm, "a"), {"due": 0, "callback": callback}
    for set_inside in (alarm.set, alarm.set_timer):
        with pytest.raises(ActorFailed, match="Alarm has no method"):
            await set_inside("bad", wanted)
    for set_outside in (client.set_reminder, client.set_timer):
        with pytest.raises(UnknownMethod, match="Alarm has no method"):
            await set_outside("Alarm", "a", "bad", wanted)
    assert await client.reminders("Alarm", "a") == []


@actor
class Deaf:
    @method
    async def set(self, options: dict[str, Any]) -> None:
        context().set_reminder("r", **options)

    @method
    async def set_timer(self, options: dict[str, Any]) -> None:
        context().set_timer("t", **options)


async def test_wakeup_that_nobody_hears_is_refused(world: World) -> None:
    """Without a callback it calls a hook. A class without that has forgotten one of both: told when it is set."""
    client = await world.client(Deaf)
    deaf = client.actor(Deaf, "d")
    for set_inside, hook in ((deaf.set, "receive_reminder"), (deaf.set_timer, "receive_timer")):
        with pytest.raises(ActorFailed, match=f"Deaf has no {hook}"):
            await set_inside({"due": 0})
    for set_outside, hook in ((client.set_reminder, "receive_reminder"), (client.set_timer, "receive_timer")):
        with pytest.raises(UnknownMethod, match=f"Deaf has no {hook}"):
            await set_outside("Deaf", "d", "w", {"due": 0})
    assert await client.reminders("Deaf", "d") == []


@actor(name="Alarm")
class Former:
    """The type in the release before: one callback is not there yet, another one takes something else."""

    rings: list[list[Any]] = field(default_factory=list)

    @method
    async def ring(self, data: list[int]) -> None:
        self.rings.append(["ring", data])


@pytest.mark.parametrize("callback", ["ring_inline", "ring"])
async def test_tick_this_release_does_not_take(world: World, callback: str) -> None:
    """INV-9: while a release is rolled out, or back, a reminder may be due where its callback is another one, or none.
    It is set aside, holds up nobody, and fires where it can."""
    host = await world.host(Alarm)
    row = encode_reminder("Alarm/a", "r", host.clock.now_ms(), Schedule(), "new", callback)
    await commit_rows(world, host.epochs, [row])
    await world.crash(host)
    host = await world.host(Former)
    await until(lambda: len(host.reminders._aside) == 1)
    await host.client.set_reminder("Alarm", "b", "r", {"due": 0, "callback": "ring", "data": [1]})
    await until(lambda: rings(world) == 1)
    assert [info.name for info in await host.client.reminders("Alarm", "a")] == ["r"]
    await host.stop()
    client = await world.client(Alarm)
    await until(lambda: rings(world) == 2)
    await until(lambda: not client._host.reminders._ticking)
    assert await client.reminders("Alarm", "a") == []


async def test_reminder_whose_callback_is_gone_can_be_cleared(world: World) -> None:
    """For good: it is listed, and cleared from outside."""
    client = await world.client(Alarm)
    row = encode_reminder("Alarm/a", "bad", client._host.clock.now_ms(), Schedule(), None, "no_such")
    await commit_rows(world, client._host.epochs, [row])
    client._host.reminders.rescan()
    await until(lambda: len(client._host.reminders._aside) == 1)
    assert [info.callback for info in await client.reminders("Alarm", "a")] == ["no_such"]
    await client.clear_reminder("Alarm", "a", "bad")
    assert await client.reminders("Alarm", "a") == []
    assert len(client._host.reminders._aside) == 0


async def test_tick_takes_effect_once_across_a_crash(world: World) -> None:
    """The advance of the schedule is in the commit of the tick: before it the tick comes again, after it never."""
    host = await world.host(Alarm)
    await host.client.actor(Alarm, "a").set("r", {"due": 0, "callback": "ring"})

    def crash(turns: Any) -> None:
        if any(e for t in turns for e in t.events):
            host.abort()

    world.lever.hold()
    world.lever.on_commit = crash
    await until(lambda: "Alarm/a" in host.activations and host.activations["Alarm/a"].uncommitted)
    world.lever.let_go()
    await until(lambda: host.aborted)
    world.lever.on_commit = None
    client = await world.client(Alarm)
    await until(lambda: rings(world) >= 1 or not client._host.reminders._ticking)
    await wait_witness(world, client)
    assert await client.actor(Alarm, "a").rung() == [["ring", None]]


async def test_tick_whose_answer_was_lost_is_not_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit happened and nobody said so: before it fires again the store is asked whether the row still stands."""
    monkeypatch.setattr("actors.reminders._RETRY_DELAY_S", 0.005)
    client = await world.client(Alarm, store_patience_s=0.001)
    await client.actor(Alarm, "a").set("r", {"due": 0.02, "callback": "ring"})
    world.lever.lose_answers = 1
    await until(lambda: rings(world) == 1)
    await until(lambda: not client._host.reminders._ticking)
    await wait_witness(world, client)
    assert await client.actor(Alarm, "a").rung() == [["ring", None]]


async def test_failed_turn_sets_nothing(world: World) -> None:
    """INV-6 for reminders and timers."""
    client = await world.client(Alarm)
    with pytest.raises(Exception, match="no"):
        await client.actor(Alarm, "a").set_and_fail()
    await wait_witness(world, client)
    assert await client.actor(Alarm, "a").rung() == []
    assert await client.reminders("Alarm", "a") == []


async def test_reminder_set_and_cleared_in_one_turn(world: World) -> None:
    """It leaves nothing, so the actor is not listed."""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set_and_clear()
    assert await client.reminders("Alarm", "a") == []
    assert await client.listing(IndexQuery("Alarm")) == []


async def test_reminders_from_outside(world: World) -> None:
    """Set, read, replaced or refused, cleared; bad ones are the caller's error."""
    client = await world.client(Alarm)
    await client.set_reminder("Alarm", "a", "r", {"due": "1h", "data": 1})
    with pytest.raises(ReminderExists):
        await client.set_reminder("Alarm", "a", "r", {"due": "2h"}, overwrite=False)
    await client.set_reminder("Alarm", "a", "r", {"due": "2h", "data": 2})
    info = await client.reminder("Alarm", "a", "r")
    assert info is not None
    assert info.data == 2
    await client.clear_reminder("Alarm", "a", "r")
    assert await client.reminders("Alarm", "a") == []
    with pytest.raises(InvalidSchedule):
        await client.set_reminder("Alarm", "a", "r", {"due": "soon"})
    with pytest.raises(InvalidSchedule):
        await client.set_reminder("Alarm", "a", "r", {})
    with pytest.raises(InvalidName):
        await client.set_reminder("Alarm", "a", "r/s", {"due": 1})
    for set_wakeup in (client.set_reminder, client.set_timer):
        with pytest.raises(InvalidArguments, match="'every', 'name' is no option: there are due, period"):
            await set_wakeup("Alarm", "a", "r", {"due": 1, "every": 2, "name": "s"})


async def hold_before_the_first_tick(alarm: Alarm, change: str, options: dict[str, Any]) -> asyncio.Future[None]:
    """The turn that sets the timer is decided, then the next one begins, then the first one is committed and the timer
    starts."""
    setting = asyncio.ensure_future(alarm.set_timer("t", options))
    holding = asyncio.ensure_future(alarm.hold_and(change))
    await setting
    return holding


@pytest.mark.parametrize("callback", ["ring", "ring_inline"])
@pytest.mark.parametrize("change", ["clear", "replace", "delete"])
async def test_tick_that_waits_while_its_timer_is_changed_never_runs(world: World, change: str, callback: str) -> None:
    """The next turn begins when the one that changes the timer is decided, before that is committed."""
    client = await world.client(Alarm)
    alarm = client.actor(Alarm, "a")
    holding = await hold_before_the_first_tick(alarm, change, {"due": 0, "period": 0.001, "callback": callback})
    await until(lambda: client._host.activations["Alarm/a"].mailbox)
    before = rings(world)
    world.lever.hold()
    await alarm.let_go()
    await settled()
    world.lever.let_go()
    await holding
    await wait_witness(world, client)
    assert rings(world) == before


async def test_tick_of_a_timer_that_was_not_changed_after_all_comes(world: World) -> None:
    """The turn that cleared it is refused, and not made again: the one tick it has is still to come."""
    client = await world.client(Alarm, store_patience_s=0)
    alarm = client.actor(Alarm, "a")
    holding = await hold_before_the_first_tick(alarm, "clear", {"due": 0, "callback": "ring"})
    await until(lambda: client._host.activations["Alarm/a"].mailbox)

    def fail_once(_: object) -> None:
        world.lever.on_commit = None
        raise StoreUnavailable("not now")

    world.lever.on_commit = fail_once
    await alarm.let_go()
    with pytest.raises(OutcomeUnknown):
        await holding
    await until(lambda: rings(world) == 1)


async def test_deletion_takes_reminders_and_timers_along(world: World) -> None:
    """Nothing of a deleted actor fires, and one of the same name starts with nothing."""
    client = await world.client(Alarm)
    alarm = client.actor(Alarm, "a")
    await alarm.set("r", {"due": 0.03})
    await alarm.set_timer("t", {"due": 0.03})
    assert await client.delete("Alarm", "a") is True
    await wait_witness(world, client)
    assert await client.history("Alarm", "a") == []
    assert await alarm.rung() == []
    assert await alarm.names() == []
    assert await client.delete("Alarm", "a") is False


async def test_actor_that_deletes_itself_in_a_tick_stays_away(world: World) -> None:
    """The schedule of the tick ends with its actor."""
    client = await world.client(Alarm)
    await client.set_reminder("Alarm", "a", "r", {"due": 0, "period": 0.01, "callback": "ring_and_delete"})
    await client.set_timer("Alarm", "b", "t", {"due": 0, "period": 0.01, "callback": "ring_and_delete"})

    def deleted(name: str) -> int:
        return sum(1 for c in world.lever.commits if c.stream == f"Alarm/{name}" and c.delete)

    await until(lambda: deleted("a") and deleted("b"))
    await wait_witness(world, client)
    assert (deleted("a"), deleted("b")) == (1, 1)
    assert await client.reminders("Alarm", "a") == []
    assert await client.history("Alarm", "a") == await client.history("Alarm", "b") == []


async def test_what_a_turn_sets_that_deletes_its_actor_is_moot(world: World) -> None:
    """Neither a reminder nor a timer outlives it."""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set_and_delete()
    await wait_witness(world, client)
    assert rings(world) == 0
    assert await client.reminders("Alarm", "a") == []


async def test_tick_that_is_decided_is_not_withdrawn(world: World) -> None:
    """A turn that clears the timer is decided after the tick, and is not recorded: the tick is, and does not come
    again."""
    client = await world.client(Alarm)
    activations = client._host.activations
    alarm = client.actor(Alarm, "a")
    await alarm.set_timer("t", {"due": 0, "callback": "ring_inline"})
    world.lever.hold()
    await until(lambda: activations["Alarm/a"].uncommitted == 1)
    clearing = asyncio.ensure_future(alarm.clear_timer("t"))
    await until(lambda: activations["Alarm/a"].uncommitted == 2)
    clearing.cancel()
    world.lever.refuse = lambda turn: turn.stream == "Alarm/a" and not turn.events
    world.lever.let_go()
    await wait_witness(world, client)
    assert rings(world) == 1


async def test_actor_that_has_only_a_reminder_can_be_deleted(world: World) -> None:
    """It exists: also after a restart, with no history at all."""
    host = await world.host(Alarm)
    await host.client.set_reminder("Alarm", "a", "r", {"due": "1h"})
    await world.crash(host)
    client = await world.client(Alarm)
    assert await client.delete("Alarm", "a") is True
    assert await client.reminders("Alarm", "a") == []


# -- timers ------------------------------------------------------------------------------------------------------------


async def test_timer_kinds(world: World) -> None:
    """With callback or without, once or periodic; gone after a restart."""
    host = await world.host(Alarm)
    alarm = host.client.actor(Alarm, "a")
    await alarm.set_timer("once", {"due": 0.005, "data": 1})
    await until(lambda: rings(world) == 1)
    await alarm.set_timer("often", {"due": 0, "period": 0.005, "callback": "ring"})
    await until(lambda: rings(world) >= 4)
    await alarm.clear_timer("often")
    rung = await alarm.rung()
    assert rung[0] == ["timer once", 1]
    assert set(map(str, rung[1:])) == {"['ring', None]"}
    count = len(rung)
    await wait_witness(world, host.client)
    assert len(await alarm.rung()) <= count + 1
    await alarm.set_timer("later", {"due": 0.02})
    await host.stop()
    client = await world.client(Alarm)
    await wait_witness(world, client)
    assert ["timer later", None] not in await client.actor(Alarm, "a").rung()


@pytest.mark.parametrize(("callback", "expected"), [("ring_and_clear", 1), ("ring_and_replace", 3)])
async def test_timer_changed_inside_its_own_tick(world: World, callback: str, expected: int) -> None:
    """Cleared, it stops; replaced, the new one counts. (The method also sets a reminder of its own.)"""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set_timer("t", {"due": 0, "period": 0.005, "callback": callback})
    await until(lambda: rings(world) == expected)
    await wait_witness(world, client)
    rung = await client.actor(Alarm, "a").rung()
    assert len(rung) == expected
    assert client._host.timers._running == {}


async def test_failing_timer_goes_on(world: World) -> None:
    """A failed tick is logged; the schedule goes on."""
    client = await world.client(Alarm)
    await client.actor(Alarm, "a").set_timer("t", {"due": 0, "period": 0.005, "callback": "ring_badly"})
    await client.actor(Alarm, "a").set_timer("u", {"due": 0, "period": 0.005, "callback": "ring"})
    await until(lambda: rings(world) >= 3)
    assert ("Alarm/a", "t") in client._host.timers._running


# -- many --------------------------------------------------------------------------------------------------------------


async def commit_rows(world: World, epochs: list[int], rows: list[Reminder], *, cleared: bool = False) -> None:
    """Put reminders into the store, or take them out, as turns of their actors would have."""
    turns = [
        TurnCommit(
            partition_of(row.stream, 4),
            epochs[partition_of(row.stream, 4)],
            row.stream,
            f"{row.stream}.{row.name}.{cleared}",
            0,
            reminders_set=() if cleared else (row,),
            reminders_cleared=(row.name,) if cleared else (),
        )
        for row in rows
    ]
    for start in range(0, len(turns), 5000):
        assert all(a is None for a in await world.journal.commit(turns[start : start + 5000]))


async def pending(world: World, count: int) -> None:
    """`count` far reminders in the store cost a host no memory, and hold up a near one by nothing."""
    host = await world.host(Alarm)
    now = host.clock.now_ms()
    far = Schedule(Every(3_600_000))
    for start in range(0, count, 20_000):
        rows = [
            encode_reminder(f"Alarm/far{i}", "r", now + 3_600_000 + i, far, None, "ring")
            for i in range(start, min(start + 20_000, count))
        ]
        await commit_rows(world, host.epochs, rows)
    await world.crash(host)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    client = await world.client(Alarm)
    await client.actor(Alarm, "near").set("r", {"due": 0, "callback": "ring"})
    await until(lambda: rings(world) == 1, timeout_s=30)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 5_000_000
    assert len(client._host.reminders._window) == 0


async def test_many_pending_reminders_cost_no_memory(world: World) -> None:
    """Far ones stay in the store."""
    await pending(world, 10_000)


@pytest.mark.slow
async def test_a_million_pending_reminders_cost_no_memory(world: World) -> None:
    """The same at the size that was asked for."""
    await pending(world, 1_000_000)


async def test_backlog_larger_than_the_window(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More due at once than the window holds: all fire, each once, and memory stays within the window."""
    monkeypatch.setattr("actors.reminders._WINDOW", 100)
    monkeypatch.setattr("actors.reminders._MOST_IN_FLIGHT", 20)
    host = await world.host(Alarm)
    now = host.clock.now_ms()
    rows = [encode_reminder(f"Alarm/b{i % 50}", f"r{i}", now - 1000, Schedule(), i, "ring") for i in range(1500)]
    await commit_rows(world, host.epochs, rows)
    await world.crash(host)
    client = await world.client(Alarm)
    most = 0

    def watch(_: Any) -> None:
        nonlocal most
        most = max(most, len(client._host.reminders._window), len(client._host.reminders._heap))

    world.lever.on_commit = watch
    await until(lambda: rings(world) >= 1500, timeout_s=20)
    await until(lambda: not client._host.reminders._ticking)
    seen = [r[1] for i in range(50) for r in await client.actor(Alarm, f"b{i}").rung()]
    assert sorted(seen) == list(range(1500))
    assert most <= 300
    assert world.lever.calls["due_reminders"] < 100


async def test_ticks_that_run_long_do_not_hold_up_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ticks wait for their actors' turns: those of other actors come at their time."""
    monkeypatch.setattr("actors.reminders._MOST_STARTING", 3)
    monkeypatch.setattr("actors.reminders._STARTING_S", 0.01)
    client = await world.client(Alarm)
    slow = [client.actor(Alarm, f"slow{i}") for i in range(10)]
    await asyncio.gather(*(alarm.set("r", {"due": 0, "callback": "ring_slowly"}) for alarm in slow))
    await wait_for_ring(world, client)
    running = [client._host.activations[f"Alarm/slow{i}"].running for i in range(10)]
    assert all(running)
    await until(lambda: client._host.reminders._ticking == 10)
    await asyncio.gather(*(alarm.let_go() for alarm in slow))
    await until(lambda: rings(world) == 11)
    await until(lambda: not client._host.reminders._ticking)
    await until(lambda: not client._host.reminders._starting)


@actor
class Ended(Alarm):
    """A type that a later release no longer has."""


async def test_reminders_that_cannot_be_fired_do_not_hold_up_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows of a type that is not hosted than the window holds: the others come at their time, these when somebody
    has the type again (INV-9)."""
    monkeypatch.setattr("actors.reminders._WINDOW", 20)
    host = await world.host(Alarm, Ended)
    now = host.clock.now_ms()
    rows = [encode_reminder(f"Ended/{i}", "r", now - 1000, Schedule(), i, "ring") for i in range(100)]
    await commit_rows(world, host.epochs, rows)
    await world.crash(host)
    host = await world.host(Alarm)
    await until(lambda: len(host.reminders._aside) == 100)
    await wait_for_ring(world, host.client)
    assert len(host.reminders._window) + len(host.reminders._in_flight) == 0
    await world.crash(host)
    host = await world.host(Alarm, Ended)
    await until(lambda: rings(world) == 101)
    await until(lambda: not host.reminders._ticking)
    assert await host.client.reminders("Ended", "7") == []


async def test_reminders_that_cannot_be_fired_are_tried_again_ever_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is set aside is tried again after a pause that grows, up to a limit; one that has gone is forgotten;
    memory for them is bounded."""
    for name, value in (("_FIRST_PAUSE_S", 0.001), ("_LONGEST_PAUSE_S", 0.004), ("_MOST_ASIDE", 5)):
        monkeypatch.setattr(f"actors.reminders.{name}", value)
    monkeypatch.setattr("actors.reminders._RETRY_DELAY_S", 0.001)
    host = await world.host(Alarm, Ended)
    now = host.clock.now_ms()
    rows = [encode_reminder(f"Ended/{i}", "r", now - 1000 + i, Schedule(), i, "ring") for i in range(8)]
    await commit_rows(world, host.epochs, rows)
    await world.crash(host)
    host = await world.host(Alarm)
    reminders = host.reminders

    def longest() -> float:
        reminders.rescan()
        assert len(reminders._aside) <= 5
        return max((aside.pause_s for aside in reminders._aside.values()), default=0.0)

    await until(lambda: longest() == 0.004)
    await commit_rows(world, host.epochs, rows, cleared=True)

    def left() -> int:
        reminders.rescan()
        return len(reminders._aside)

    await until(lambda: left() == 0)
    await until(lambda: not reminders._ticking)


async def test_deletion_forgets_the_reminders_of_one_stream(world: World) -> None:
    """What the window knows of other actors stays."""
    host = await world.host(Alarm)
    for name in ("a", "b"):
        await host.client.actor(Alarm, name).set("r", {"due": 5, "callback": "ring"})
        await host.client.actor(Alarm, name).set_timer("t", {"due": 5})
    await host.client.actor(Alarm, "a").remove()
    assert [*host.reminders._window] == [("Alarm/b", "r")]
    assert [*host.timers._running] == [("Alarm/b", "t")]


async def test_many_set_at_once_for_soon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reminders set for the near future beyond the window's size wait in the store."""
    monkeypatch.setattr("actors.reminders._WINDOW", 20)
    client = await world.client(Alarm)
    await asyncio.gather(*(client.actor(Alarm, f"s{i}").set("r", {"due": 0.1 + i / 5000}) for i in range(200)))
    assert len(client._host.reminders._heap) <= 60
    await until(lambda: rings(world) == 200)
