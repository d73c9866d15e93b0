"""The marker: one row that stands as long as an instance has open orders, and what begins them (INV-7, INV-9)."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from actors import Host, OutcomeUnknown, room
from statestores.memory import MemoryJournal
from statestores.model import IndexEntry, NewEvent, OutboxMessage, TurnCommit, partition_of
from tests.actors.worlds import Lever, settled
from tests.histories.test_histories import FILES, load
from tests.workflow.steps import double
from tests.workflow.test_instance import QUICK, eventually
from workflow import (
    ActivityFailed,
    Engine,
    RetryPolicy,
    WorkflowFailed,
    activities,
    activity,
    activity_info,
    wait_event,
    workflow,
)
from workflow.history import Record, parse
from workflow.instance import MARKER_KIND, ROW_KIND
from workflow.orders import OpenOrders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from statestores.errors import CommitRefused
    from statestores.store import Journal
    from tests.workflow.conftest import World


async def rows(journal: Journal) -> list[str]:
    """Kinds of everything that stands in the outbox."""
    found = [await journal.outbox(partition) for partition in range(journal.partitions)]
    return [orjson.loads(row.body)["k"] for of_partition in found for row in of_partition]


class Gate:
    """Activities that say when they have begun, and end when they are let."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, bool]] = []
        self.open = asyncio.Event()

        @activity(name="pass_gate")
        async def pass_gate(name: str) -> str:
            self.begun.append((name, activity_info().redelivered))
            if not name.startswith("quick"):
                await self.open.wait()
            return name

        self.pass_gate = pass_gate

    async def has_begun(self, *names: str) -> None:
        async def begun() -> bool:
            return sorted(name for name, _ in self.begun) == sorted(names)

        await eventually(begun)


async def test_one_row_stands_for_all_open_orders(world: World) -> None:
    """INV-9: the marker is posted with the first open order and removed with the last; more of them change nothing."""
    gate = Gate()

    @workflow
    async def fans_out(_: None) -> int:
        await asyncio.gather(*(gate.pass_gate(f"slow{n}") for n in range(100)))
        return int(await wait_event("go")) + await double(1)

    client = await world.start([fans_out], [gate.pass_gate])
    instance = await client.start(fans_out)
    await gate.has_begun(*(f"slow{n}" for n in range(100)))
    assert await rows(world.store.journal) == [MARKER_KIND]
    gate.open.set()

    async def waits_for_the_event() -> bool:
        return len(await client.history(instance)) == 101

    await eventually(waits_for_the_event)
    assert await rows(world.store.journal) == []
    await client.raise_event(instance, "go", 1)
    assert await client.wait(instance, 10) == 3
    assert await rows(world.store.journal) == []


async def test_a_crash_begins_open_orders_again_and_no_others(world: World) -> None:
    """INV-9: after a crash what was open is begun again, and told so; what has its outcome is not."""
    gate = Gate()

    @workflow
    async def fans_out(_: None) -> list[str]:
        return list(await asyncio.gather(*(gate.pass_gate(name) for name in ("quick", "a", "b"))))

    client = await world.start([fans_out], [gate.pass_gate])
    instance = await client.start(fans_out)

    async def first_is_recorded() -> bool:
        return len(await client.history(instance)) == 2

    await gate.has_begun("quick", "a", "b")
    await eventually(first_is_recorded)
    await world.crash()
    gate.begun.clear()
    client = await world.start([fans_out], [gate.pass_gate])
    await gate.has_begun("a", "b")
    assert {redelivered for _, redelivered in gate.begun} == {True}
    gate.open.set()
    assert await client.wait(instance, 10) == ["quick", "a", "b"]


async def test_what_is_under_way_is_not_begun_twice(world: World) -> None:
    """A scan that finds the marker of an instance leaves alone what runs here already."""
    gate = Gate()

    @workflow
    async def asks(_: None) -> str:
        return await gate.pass_gate("slow")

    client = await world.start([asks], [gate.pass_gate])
    instance = await client.start(asks)
    await gate.has_begun("slow")
    assert world.host is not None
    world.host.outbox.recover(world.host.owned())
    others = [await client.start(asks) for _ in range(64)]  # in every partition, behind what the scan finds
    await gate.has_begun(*["slow"] * 65)
    gate.open.set()
    for started in (instance, *others):
        assert await client.wait(started, 10) == "slow"
    assert len(gate.begun) == 65
    assert gate.begun[0] == ("slow", False)


class Forgetful(MemoryJournal):
    """Loses the answer to the commits it is told to lose: they are recorded, and nobody knows."""

    losing = False

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        answers = await super().commit(turns)
        if self.losing:
            self.losing = False
            raise RuntimeError("the answer is lost")
        return answers


async def test_an_unknown_outcome_leaves_no_order_behind() -> None:
    """INV-9: orders of a turn that was recorded without our knowing are begun, though its marker was at work before."""
    gate = Gate()

    @workflow
    async def adds_work(_: None) -> list[str]:
        first = asyncio.create_task(gate.pass_gate("slow"))
        await wait_event("go")
        return [await gate.pass_gate("quick"), await first]

    engine = Engine([adds_work], [gate.pass_gate])
    journal = Forgetful(4)
    host = Host(journal, engine.types, workers=engine.workers)
    client = engine.attach(host.client)
    await host.start()
    try:
        instance = await client.start(adds_work)
        await gate.has_begun("slow")
        journal.losing = True
        method = engine.types[0].methods["raise_event"]
        with pytest.raises(OutcomeUnknown):
            await host.client.call_method(f"mecha.workflow/{instance}", method, ("go", "1"))
        await gate.has_begun("slow", "quick")
        gate.open.set()
        assert await client.wait(instance, 10) == ["quick", "slow"]
        assert await rows(journal) == []
    finally:
        await host.stop(5)
        engine.close()


async def test_terminate_and_purge_take_the_marker_along(world: World) -> None:
    """Nothing of an instance that was ended from outside is begun again; what runs ends unheard."""
    gate = Gate()

    @workflow
    async def asks(_: None) -> str:
        return await gate.pass_gate("slow")

    client = await world.start([asks], [gate.pass_gate])
    terminated, purged = await client.start(asks), await client.start(asks)
    await gate.has_begun("slow", "slow")
    await client.terminate(terminated)
    await client.purge(purged, force=True)
    assert await rows(world.store.journal) == []
    gate.open.set()
    length = len(await client.history(terminated))
    await world.stop()
    client = await world.start([asks], [gate.pass_gate])
    assert len(gate.begun) == 2
    assert len(await client.history(terminated)) == length


async def test_orders_left_behind_outlive_their_workflow(world: World) -> None:
    """An activity that was commanded is run at least once, even when the code ended, or failed, without waiting."""
    gate = Gate()

    @workflow
    async def leaves(_: None) -> None:
        left = [asyncio.create_task(gate.pass_gate(name)) for name in ("running", "just begun")]
        await double(1)
        raise LookupError(str(len(left)))

    client = await world.start([leaves], [gate.pass_gate, double])
    instance = await client.start(leaves)
    with pytest.raises(WorkflowFailed, match="LookupError"):
        await client.wait(instance, 10)
    await gate.has_begun("running", "just begun")
    assert await rows(world.store.journal) == [ROW_KIND] * 2
    await world.crash()
    gate.begun.clear()
    gate.open.set()
    await world.start([leaves], [gate.pass_gate, double])
    await gate.has_begun("running", "just begun")

    async def are_done() -> bool:
        return await rows(world.store.journal) == []

    await eventually(are_done)


async def test_paused_and_stalled_instances_go_on_working(world: World) -> None:
    """While an instance cannot apply outcomes they are recorded, and what they are of is not begun again."""
    gate = Gate()

    @workflow(name="job")
    async def job(_: None) -> list[str]:
        return list(await asyncio.gather(gate.pass_gate("a"), gate.pass_gate("b")))

    @workflow(name="job")
    async def other_job(_: None) -> int:
        return await double(1)

    client = await world.start([job], [gate.pass_gate])
    instance = await client.start(job)
    await gate.has_begun("a", "b")
    await client.pause(instance)
    await world.crash()
    gate.begun.clear()
    gate.open.set()
    client = await world.start([other_job], [gate.pass_gate])

    async def both_are_recorded() -> bool:
        inputs = [item for entry in await client.history(instance) for item in entry.inputs]
        return len([item for item in inputs if item[0] == "done"]) == 2

    await eventually(both_are_recorded)
    assert await rows(world.store.journal) == []
    assert (await client.get(instance)).status == "STALLED"
    await world.stop()
    client = await world.start([job], [gate.pass_gate])
    await client.resume(instance)
    assert await client.wait(instance, 10) == ["a", "b"]
    assert sorted(name for name, _ in gate.begun) == ["a", "b"]


async def test_no_marker_while_waiting_for_a_retry(world: World) -> None:
    """A step that waits for its next attempt is found by its reminder; the next attempt knows of the first."""
    seen: list[tuple[int, int]] = []

    @activity(retry=QUICK)
    async def flaky() -> int:
        seen.append((activity_info().attempt, len(await rows(world.store.journal))))
        if len(seen) < 3:
            raise ConnectionError
        return len(seen)

    @workflow
    async def tries(_: None) -> int:
        return await flaky()

    client = await world.start([tries])
    instance = await client.start(tries)
    assert await client.wait(instance, 10) == 3
    assert seen == [(1, 1), (2, 1), (3, 1)]
    history = await client.history(instance)
    first_ms = history[0].time_ms
    assert [e.inputs[0][2:] for e in history if e.inputs[0][0] == "again"] == [[2, first_ms], [3, first_ms]]


async def test_more_instances_than_may_work_wait_in_their_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-9: instances beyond the limit of a host are not begun from memory, and none of them is forgotten."""
    monkeypatch.setattr(room, "_MOST_WORK", 2)
    running, most = 0, 0

    @activity
    async def counted(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    @workflow
    async def sums(number: int) -> int:
        return await counted(number) + await counted(number)

    client = await world.start([sums])
    instances = [await client.start(sums, number) for number in range(20)]
    assert [await client.wait(instance, 20) for instance in instances] == [2 * number for number in range(20)]
    assert most <= 2
    assert await rows(world.store.journal) == []


async def test_activities_beyond_the_limit_wait_in_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more tasks of activities than the limit run at a time; the others follow as these end."""
    monkeypatch.setattr(activities, "_MOST_RUNNING", 3)
    running, most = 0, 0

    @activity
    async def counted(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    @workflow
    async def fans_out(width: int) -> int:
        return sum(await asyncio.gather(*(counted(number) for number in range(width))))

    client = await world.start([fans_out])
    assert await client.run(fans_out, 50) == 1225
    assert most == 3


async def test_rows_of_former_stores_are_honoured(world: World) -> None:
    """A store in which each activity has a row, and no instance a marker, goes on where it was."""

    @workflow
    async def asks(_: None) -> int:
        return await double(1) + await double(2)

    stream, journal = "mecha.workflow/old", world.store.journal
    partition = partition_of(stream, journal.partitions)
    started = {"v": 1, "id": "old", "x": "former-1", "name": "asks", "input": None, "at": None, "r": ""}
    issued = [["activity", "asks.double", "double", [1]]]
    event = {"t": 1000, "i": orjson.dumps([["started", started]]).decode(), "c": orjson.dumps(issued).decode()}
    row = {"k": "activity", "p": {"x": "former-1", "s": "asks.double", "n": "double", "a": [1], "k": 1, "f": 1000}}
    owned = await journal.acquire(range(journal.partitions), "former", 0, 0)
    refused = await journal.commit(
        [
            TurnCommit(
                partition,
                owned[partition].epoch,
                stream,
                "former-1",
                1000,
                0,
                events=(NewEvent("advanced", orjson.dumps(event | {"s": "1", "x": ""})),),
                listing=IndexEntry(stream, "asks", "RUNNING", 1000, 1000),
                outbox=(OutboxMessage("former-1.0", stream, orjson.dumps(row)),),
            )
        ]
    )
    assert refused == [None]
    client = await world.start([asks])
    assert await client.wait("old", 10) == 6
    assert await rows(journal) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_open_orders_follow_from_the_records(path: Path) -> None:
    """The fold of a whole history, of its end, and of one record after the other are the same."""

    def shown(found: OpenOrders) -> list[tuple[Any, ...]]:
        return sorted((*o.key, o.name, o.arguments, o.first_ms) for o in found.orders.values())

    _, records = load(path)
    kept = OpenOrders("i", "x")
    since = 0
    for count, record in enumerate(records, 1):
        kept.apply(record.time_ms, parse(record.inputs), parse(record.commands))
        if not kept.orders:
            since = count
        assert shown(OpenOrders.of("i", "x", records[:count], 0)) == shown(kept)
        assert shown(OpenOrders.of("i", "x", records[:count], since)) == shown(kept)


def test_an_attempt_that_waited_for_resume_keeps_its_number() -> None:
    """ "again" may be recorded long before the command it leads to, in a time without open orders."""
    records = [
        Record(10, "[]", '[["activity","a","f",[]]]'),
        Record(20, '[["paused"]]', ""),
        Record(30, '[["retry","a",2,40,"E",""]]', ""),
        Record(40, '[["again","a",2,10]]', ""),
        Record(50, '[["resumed"]]', '[["activity","a","f",[]]]'),
    ]
    order = OpenOrders.of("i", "x", records, 4).orders["a"]
    assert (order.attempt, order.first_ms) == (2, 10)


async def test_an_activity_that_cancels_itself_has_failed(world: World) -> None:
    """Only the host's end and the workflow's word cancel an activity unheard; its own doing is a failure like any."""

    @activity(retry=RetryPolicy(max_attempts=1))
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    @workflow
    async def asks() -> str:
        try:
            await cancels_itself()
        except ActivityFailed as error:
            return error.error_type
        return ""

    client = await world.start([asks], [cancels_itself])
    assert await client.wait(await client.start(asks), 10) == "CancelledError"


async def test_what_is_given_up_while_it_waits_is_not_begun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An activity that waits for its place, or for a thread, when its workflow gives it up or is ended, never runs."""
    monkeypatch.setattr(activities, "_MOST_RUNNING", 3)
    ran, gate, begun = list[str](), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @activity
    def occupies(name: str) -> None:
        ran.append(name)
        loop.call_soon_threadsafe(begun.set)
        gate.wait(10)

    @workflow
    async def asks(name: str) -> None:
        await occupies(name)

    @workflow
    async def changes_its_mind(name: str) -> None:
        running = asyncio.ensure_future(occupies(name))
        await wait_event("enough")
        running.cancel()

    client = await world.start([asks, changes_its_mind], [occupies], threads=1)
    first = await client.start(asks, "first")
    await begun.wait()
    others = [await client.start(changes_its_mind, "given up") for _ in range(2)]  # one waits for a thread
    terminated, purged = [await client.start(asks, "ended") for _ in range(2)]
    last = await client.start(asks, "last")
    for other in others:
        await client.raise_event(other, "enough")
        await client.wait(other, 10)
    await client.terminate(terminated)
    await client.purge(purged, force=True)
    gate.set()
    for instance in (first, last):
        await client.wait(instance, 10)
    assert ran == ["first", "last"]
    assert await rows(world.store.journal) == []


async def test_what_is_closed_before_its_marker_is_looked_at_is_not_begun_again() -> None:
    """INV-7: a scan's turn that waits for the store begins what is open by then, not what was open when it looked."""
    gate = Gate()

    @workflow
    async def fans_out() -> list[str]:
        return list(await asyncio.gather(gate.pass_gate("slow"), double_later(1)))

    let_double, doubled = asyncio.Event(), list[int]()

    @activity
    async def double_later(number: int) -> str:
        doubled.append(number)
        await let_double.wait()
        return "doubled"

    engine = Engine([fans_out], [gate.pass_gate, double_later])
    lever = Lever(MemoryJournal(4))
    host = Host(lever, engine.types, workers=engine.workers)
    client = engine.attach(host.client)
    await host.start()
    try:
        instance = await client.start(fans_out)
        await gate.has_begun("slow")
        stream, methods = f"mecha.workflow/{instance}", engine.types[0].methods
        (marker,) = [row.id for partition in range(4) for row in await lever.outbox(partition)]
        lever.hold()
        event = asyncio.ensure_future(client.raise_event(instance, "unheard"))
        await settled()
        looking = host.client.call_method(stream, methods["resume_orders"], (marker, True))
        let_double.set()
        await settled()
        lever.let_go()
        await asyncio.gather(event, looking)
        await settled()
        assert doubled == [1]
        assert gate.begun == [("slow", False)]
        gate.open.set()
        assert await client.wait(instance, 10) == ["slow", "doubled"]
    finally:
        await host.stop(5)
        engine.close()
