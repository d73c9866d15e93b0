"""Workflows on a real host: activities, timers, events, control, listing, recovery.

Local, since these hold the host in their hand: they drop it, look into its store, deploy other code to it, and watch
their workflows and activities by variables of the test. What of this shows through the public surface is tested on each
placement by tests/runtime_api (`test_workflow_http.py`, `test_connect.py`); tests/e2e drops hosts of a cluster.
"""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from actors import InvalidName, InvalidSchedule
from actors.clock import SystemClock
from statestores.model import IndexQuery
from tests.workflow.steps import Ledger, Order, Receipt, charge, double, double_in_thread, issue
from workflow import (
    ActivityFailed,
    ActorCallFailed,
    InstanceExists,
    InstanceNotFound,
    InstanceNotTerminal,
    InvalidWorkflowInput,
    RetryPolicy,
    UnknownWorkflow,
    WorkflowFailed,
    WorkflowStalled,
    WorkflowTerminated,
    activity,
    activity_info,
    actor,
    current,
    instance_id_of,
    send,
    set_status,
    wait_event,
    workflow,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors import ActorClient
    from tests.workflow.conftest import World
    from workflow import WorkflowClient


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so. Used where the thing waited for has no one to tell us."""
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@workflow
async def order(value: Order) -> Receipt:
    set_status("charging")
    number = await charge(value.card, value.cents)
    doubled = await asyncio.gather(double(1), double_in_thread(2))
    await asyncio.sleep(0.01)
    receipt = await issue(Order(number, sum(doubled)))
    set_status("done")
    return receipt


@workflow
async def waits(name: str) -> Any:
    return await wait_event(name)


@workflow
async def fails(_: None) -> None:
    await double(1)
    raise LookupError("nothing there")


async def test_order_completes(world: World) -> None:
    """A typed workflow runs to its typed result; its state and history show what happened."""
    client = await world.start([order])
    handle = await client.handle(order, Order("x", 5))
    assert await handle.result(10) == Receipt("receipt-x:5", 6)
    state = await handle.state()
    assert (state.name, state.status, state.custom_status) == ("order", "COMPLETED", "done")
    assert (state.input, state.output) == ({"card": "x", "cents": 5}, {"number": "receipt-x:5", "cents": 6})
    assert state.created_ms <= state.updated_ms
    history = await client.history(handle.instance_id)
    assert history[0].inputs[0][0] == "started"
    assert [c[0] for c in history[0].commands] == ["status", "activity"]
    assert history[-1].commands[-1][0] == "completed"


async def test_failure_is_reported(world: World) -> None:
    """wait raises what the code raised, as data; the state has type, message and traceback."""
    client = await world.start([fails])
    instance = await client.start(fails)
    with pytest.raises(WorkflowFailed, match="LookupError: nothing there"):
        await client.wait(instance, 10)
    state = await client.get(instance)
    assert state.status == "FAILED"
    assert state.failure is not None
    assert "test_instance.py" in state.failure.traceback


async def test_events_before_and_after_the_wait(world: World) -> None:
    """raise_event reaches a waiting instance; to an ended one it is ignored, to an unknown one an error."""
    client = await world.start([waits])
    instance = await client.start("waits", "Go")
    await client.raise_event(instance, "gO", {"a": [1]})
    assert await client.wait(instance, 10) == {"a": [1]}
    recorded = await client.history(instance)
    await client.raise_event(instance, "go", 2)
    assert await client.history(instance) == recorded
    with pytest.raises(InstanceNotFound):
        await client.raise_event("nobody", "go")
    with pytest.raises(InstanceNotFound):
        await client.history("nobody")


async def test_pause_resume(world: World) -> None:
    """A paused instance takes inputs and applies them after resume."""
    client = await world.start([waits])
    instance = await client.start(waits, "go")
    await client.pause(instance)
    await client.pause(instance)
    await client.raise_event(instance, "go", 1)
    assert (await client.get(instance)).status == "SUSPENDED"
    await client.resume(instance)
    assert await client.wait(instance, 10) == 1


async def test_terminate_and_purge(world: World) -> None:
    """terminate ends it with the given output; purge is for ended ones, or by force."""
    client = await world.start([waits])
    instance = await client.start(waits, "go", instance_id="a")
    with pytest.raises(InstanceNotTerminal):
        await client.purge(instance)
    await client.terminate(instance, {"why": "test"})
    await client.terminate(instance, "second time")
    with pytest.raises(WorkflowTerminated) as caught:
        await client.wait(instance, 10)
    assert caught.value.output == {"why": "test"}
    await client.purge(instance)
    with pytest.raises(InstanceNotFound):
        await client.get(instance)
    other = await client.start(waits, "go", instance_id="b")
    await client.purge(other, force=True)
    assert await client.listing() == []


async def test_terminate_clears_timers(world: World) -> None:
    """Nothing of a terminated instance is left to fire."""

    @workflow
    async def sleeps(_: None) -> None:
        await asyncio.sleep(3600)

    client = await world.start([sleeps])
    instance = await client.start(sleeps)
    assert world.host is not None
    assert len(await world.host.client.reminders("mecha.workflow", instance)) == 1
    await client.terminate(instance)
    assert await world.host.client.reminders("mecha.workflow", instance) == []


async def test_what_a_workflow_leaves_behind_never_fires(world: World) -> None:
    """A timer that nobody waits for any more ends with its instance."""

    @workflow
    async def leaves(_: None) -> None:
        asyncio.create_task(asyncio.sleep(3600))  # noqa: RUF006
        await asyncio.sleep(0.001)

    client = await world.start([leaves])
    instance = await client.start(leaves)
    await client.wait(instance, 10)
    assert world.host is not None
    assert await world.host.client.reminders("mecha.workflow", instance) == []


async def test_id_reuse(world: World) -> None:
    """An active id is refused; the id of an ended instance can start again, with its history gone."""
    client = await world.start([waits])
    await client.start(waits, "go", instance_id="same")
    with pytest.raises(InstanceExists):
        await client.start(waits, "go", instance_id="same")
    first = (await client.get("same")).execution_id
    await client.terminate("same")
    await client.start(waits, "go", instance_id="same")
    second = await client.get("same")
    assert (second.status, second.execution_id == first) == ("RUNNING", False)
    assert (await client.history("same"))[0].version == 1


async def test_late_result_of_a_former_incarnation(world: World) -> None:
    """An activity that was started by an earlier execution of the id cannot answer for the present one."""
    started, go_on = asyncio.Event(), asyncio.Event()
    results = iter(["old", "new"])

    @activity
    async def slow() -> str:
        mine = next(results)
        if mine == "old":
            started.set()
            await go_on.wait()
        return mine

    @workflow
    async def asks(_: None) -> list[str]:
        return [await slow(), str(await wait_event("go"))]

    client = await world.start([asks])
    await client.start(asks, instance_id="same")
    await started.wait()
    await client.terminate("same")
    await client.start(asks, instance_id="same")
    go_on.set()
    await client.raise_event("same", "go", 1)
    assert await client.wait("same", 10) == ["new", "1"]


async def test_idempotent_start(world: World) -> None:
    """The same start again is the same instance, while it runs and after it has ended."""
    client = await world.start([waits])
    first = await client.start(waits, "go", idempotency_key="k")
    assert await client.start(waits, "go", idempotency_key="k") == first
    await client.raise_event(first, "go", 1)
    await client.wait(first, 10)
    assert await client.start(waits, "go", idempotency_key="k") == first
    assert (await client.get(first)).status == "COMPLETED"
    assert await client.start(waits, "go", idempotency_key="other") != first


async def test_delayed_start(world: World) -> None:
    """Until its time a delayed instance is PENDING; events that come meanwhile are kept."""
    client = await world.start([waits])
    instance = await client.start(waits, "go", delay="1h")
    await client.raise_event(instance, "go", 1)
    assert (await client.get(instance)).status == "PENDING"
    soon = await client.start(waits, "go", start_at=datetime.now(UTC) + timedelta(milliseconds=50))
    await client.raise_event(soon, "go", 2)
    assert await client.wait(soon, 10) == 2


async def test_wrong_starts(world: World) -> None:
    """Unknown names and unfit inputs are refused before anything is recorded."""
    client = await world.start([order])
    with pytest.raises(UnknownWorkflow, match="there is order"):
        await client.start("nothing")
    with pytest.raises(InvalidWorkflowInput, match="cents"):
        await client.start(order, {"card": "x"})
    with pytest.raises(TypeError, match=r"start_at='2030-01-31T09:00:00Z' is not a datetime, e\.g\."):
        await client.start(order, Order("x", 1), start_at="2030-01-31T09:00:00Z")  # type: ignore[arg-type]  # likewise
    with pytest.raises(TypeError, match="decorate it with @workflow"):
        await client.start(test_wrong_starts)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(InvalidName, match="instance id 'a/b'"):
        await client.start(order, Order("x", 1), instance_id="a/b")
    with pytest.raises(InvalidName, match="must not be empty"):
        await client.start(order, Order("x", 1), idempotency_key="")
    with pytest.raises(InvalidSchedule, match="start_at and delay both say"):
        await client.start(order, Order("x", 1), start_at=datetime(2030, 1, 31, tzinfo=UTC), delay="1h")
    assert await client.listing() == []


async def test_an_input_that_nobody_takes_is_refused(world: World) -> None:
    """As an argument of a method that has no parameter is. What says that there is none is fine."""

    @workflow
    async def asks_nothing() -> str:
        return "done"

    client = await world.start([asks_nothing])
    for given in (0, "", "x", [1], {"a": 1}, False):
        with pytest.raises(InvalidWorkflowInput, match="asks_nothing: takes no input"):
            await client.start(asks_nothing, given)
    assert await client.listing() == []
    nothing: tuple[Any, ...] = (None, [], {})
    for given in nothing:
        assert await client.run(asks_nothing, given) == "done"


async def test_references_and_clients_of_a_runtime_are_refused_inside(world: World) -> None:
    """What they do would be done again by each replay. The instance is stalled, and the remedy is named."""
    ways: dict[str, Callable[[ActorClient, WorkflowClient], Awaitable[Any]]] = {
        "call": lambda actors, _: actors.actor(Ledger, "x").read(),
        "call with JSON": lambda actors, _: actors.call("Ledger", "x", "read"),
        "send": lambda actors, _: actors.send(actors.actor(Ledger, "x").read),
        "delete": lambda actors, _: actors.delete("Ledger", "x"),
        "set_reminder": lambda actors, _: actors.set_reminder("Ledger", "x", "r", {"due": "1h"}),
        "reminders": lambda actors, _: actors.reminders("Ledger", "x"),
        "actor state": lambda actors, _: actors.state("Ledger", "x"),
        "actors": lambda actors, _: actors.listing(IndexQuery("Ledger")),
        "dead letters": lambda actors, _: actors.dead_letters(),
        "start": lambda _, workflows: workflows.start("waits", "go"),
        "start with a key": lambda _, workflows: workflows.start("waits", "go", idempotency_key="k"),
        "run": lambda _, workflows: workflows.run(waits, "go"),
        "get": lambda _, workflows: workflows.get("other"),
        "wait": lambda _, workflows: workflows.wait("other"),
        "wait for a while": lambda _, workflows: workflows.wait("other", "1h"),
        "raise_event": lambda _, workflows: workflows.raise_event("other", "go"),
        "pause": lambda _, workflows: workflows.pause("other"),
        "purge": lambda _, workflows: workflows.purge("other", force=True),
        "instances": lambda _, workflows: workflows.listing(),
        "history": lambda _, workflows: workflows.history("other"),
    }

    @workflow
    async def uses(way: str) -> None:
        assert world.host is not None
        await ways[way](world.host.client, client)

    client = await world.start([uses, waits])
    await client.start(waits, "go", instance_id="other")
    for way in ways:
        with pytest.raises(WorkflowStalled, match=r"use workflow\.actor.*test_instance\.py:\d+\)"):
            await client.run(uses, way)
    assert (await client.get("other")).status == "RUNNING"
    assert len(await client.listing(name="waits")) == 1


async def test_naive_start_time_is_utc(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the host is: as it is in reminders."""
    client = await world.start([waits])
    monkeypatch.setenv("TZ", "UTC-12")
    time.tzset()
    try:
        naive = datetime.now(UTC).replace(tzinfo=None)
        later = await client.start(waits, "go", start_at=naive + timedelta(hours=1))
        assert (await client.get(later)).status == "PENDING"
        assert len(await client.listing(created_from=naive - timedelta(hours=1))) == 1
    finally:
        monkeypatch.undo()
        time.tzset()


async def test_wait_times_out(world: World) -> None:
    """wait gives up after its timeout, the instance goes on."""
    client = await world.start([waits])
    instance = await client.start(waits, "go")
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01"):
        await client.wait(instance, 0.01)
    with pytest.raises(TimeoutError, match="has not ended within '10ms'"):
        await client.wait(instance, "10ms")
    with pytest.raises(InvalidSchedule, match="write a Go duration"):
        await client.wait(instance, "soon")
    waiting = asyncio.create_task(client.wait(instance, 10))
    await client.raise_event(instance, "go", 3)
    assert await waiting == 3


async def test_what_runs_out_of_time_below_is_no_wait_that_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TimeoutError that is not the wait's own comes through as it is, and says nothing of the instance."""
    client = await world.start([waits])

    async def out_of_time(*_: object, **__: object) -> str:
        raise TimeoutError("the disk does not answer")

    monkeypatch.setattr(client._client, "call_method", out_of_time)  # whatever it is that raises it
    with pytest.raises(TimeoutError, match=r"^the disk does not answer$"):
        await client.wait("nobody", 60)


async def test_listing(world: World) -> None:
    """Listed by name and status, page by page."""
    client = await world.start([waits, fails])
    for position in range(3):
        await client.start(waits, "go", instance_id=f"w{position}")
    await client.start(fails, instance_id="f0")
    await client.wait_state("f0", 10)
    assert [instance_id_of(e) for e in await client.listing(name="waits")] == ["w0", "w1", "w2"]
    assert [instance_id_of(e) for e in await client.listing(statuses=("FAILED",))] == ["f0"]
    assert [instance_id_of(e) for e in await client.listing(after="f0", limit=2)] == ["w0", "w1"]
    for statuses in (("WAITING",), "FAILED"):
        with pytest.raises(ValueError, match="give a tuple of COMPLETED"):
            await client.listing(statuses=statuses)  # type: ignore[arg-type]  # the mistake


async def test_a_listing_tells_the_times_that_get_tells(world: World) -> None:
    """Whoever compares them, or asks for what was created from then on, must not be off by the length of a turn."""
    client = await world.start([waits], clock=RestlessClock())
    instance = await client.start(waits, "go")
    created_ms = (await client.get(instance)).created_ms
    assert [(entry.created_ms, entry.updated_ms) for entry in await client.listing()] == [(created_ms, created_ms)]
    await client.raise_event(instance, "go")
    ended = await client.wait_state(instance, 10)
    assert [(entry.created_ms, entry.updated_ms) for entry in await client.listing()] == [ended[3:5]]


# -- activities -------------------------------------------------------------------------------------------------------

QUICK = RetryPolicy(max_attempts=3, initial_interval="5ms", non_retriable=(KeyError, "Hopeless"))


class Hopeless(Exception):
    """Named in the policy by its name."""


async def test_retries_with_one_identity(world: World) -> None:
    """A failing activity is tried again by its policy; all attempts carry one activity id."""
    seen: list[tuple[str, int]] = []

    @activity(retry=QUICK)
    async def flaky() -> str:
        info = activity_info()
        seen.append((info.activity_id, info.attempt))
        if info.attempt < 3:
            raise ConnectionError("not yet")
        return "at last"

    @workflow
    async def tries(_: None) -> str:
        return await flaky()

    client = await world.start([tries])
    instance = await client.start(tries)
    assert await client.wait(instance, 10) == "at last"
    assert [attempt for _, attempt in seen] == [1, 2, 3]
    assert len({identity for identity, _ in seen}) == 1
    kinds = [entry.inputs[0][0] for entry in await client.history(instance)]
    assert kinds == ["started", "retry", "again", "retry", "again", "done"]


@pytest.mark.parametrize(("error", "attempts"), [(ConnectionError, 3), (KeyError, 1), (Hopeless, 1), (SystemExit, 3)])
async def test_last_failure_is_raised(world: World, error: type[BaseException], attempts: int) -> None:
    """When attempts are used up, or the error is not worth another, the code gets ActivityFailed."""
    seen: list[int] = []

    @activity(retry=QUICK)
    async def fails_always() -> None:
        seen.append(activity_info().attempt)
        raise error("no")

    @workflow
    async def tries(_: None) -> str:
        try:
            await fails_always()
        except ActivityFailed as failure:
            return failure.error_type
        return ""

    client = await world.start([tries])
    assert await client.run(tries) == error.__name__
    assert sorted(set(seen)) == list(range(1, attempts + 1))


async def test_timeouts(world: World) -> None:
    """An attempt is cut off after its timeout; the overall timeout ends the retries."""

    @activity(retry=RetryPolicy(max_attempts=2, initial_interval="1ms", timeout="20ms"))
    async def hangs() -> None:
        await asyncio.Event().wait()

    @activity(retry=RetryPolicy(max_attempts=0, initial_interval="5ms", overall_timeout="50ms"))
    def fails_in_thread() -> None:
        raise OSError("again")

    @workflow
    async def tries(_: None) -> list[str]:
        results = await asyncio.gather(hangs(), fails_in_thread(), return_exceptions=True)
        return [r.error_type for r in results if isinstance(r, ActivityFailed)]

    client = await world.start([tries])
    cut_off, given_up = await client.run(tries)
    assert cut_off == "ActivityTimeout"
    assert given_up in ("OSError", "ActivityTimeout")  # the last attempt may begin with no time left


async def test_unencodable_result_is_a_recorded_failure(world: World) -> None:
    """A result without JSON form fails the step; the instance does not hang."""

    @activity
    async def gives_object() -> Any:
        return object()

    @workflow
    async def tries(_: None) -> str:
        try:
            await gives_object()
        except ActivityFailed as failure:
            return failure.error_type
        return ""

    client = await world.start([tries])
    assert await client.run(tries) == "CodecError"


async def test_threads_are_bounded(world: World) -> None:
    """Plain functions run in at most so many threads at a time, off the event loop."""
    running, most, lock = 0, 0, threading.Lock()
    main = threading.current_thread()
    three = threading.Barrier(3)  # three meet in it: so there are as many, and a fourth would be seen

    @activity(retry=RetryPolicy(max_attempts=1))
    def counts(number: int) -> int:
        nonlocal running, most
        assert threading.current_thread() is not main
        with lock:
            running += 1
            most = max(most, running)
        three.wait(10)
        with lock:
            running -= 1
        return number

    @workflow
    async def many(_: None) -> int:
        return sum(await asyncio.gather(*(counts(n) for n in range(21))))

    client = await world.start([many], threads=3)
    assert await client.run(many) == 210
    assert most == 3


async def test_pause_holds_retries_back(world: World) -> None:
    """An attempt that fails while paused is followed by the next one only after resume."""
    attempts: list[int] = []
    failing = asyncio.Event()

    @activity(retry=QUICK)
    async def flaky() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            await failing.wait()
            raise OSError
        return len(attempts)

    @workflow
    async def tries(_: None) -> int:
        return await flaky()

    client = await world.start([tries])
    instance = await client.start(tries)
    await client.pause(instance)
    failing.set()

    async def retry_is_due() -> bool:
        return bool((await client.history(instance))[-1].inputs[0][0] == "again")

    await eventually(retry_is_due)
    assert len(attempts) == 1
    await client.resume(instance)
    assert await client.wait(instance, 10) == 2


# -- actors -----------------------------------------------------------------------------------------------------------


@workflow
async def books(amount: int) -> int:
    total = await actor(Ledger, "main").book(amount)
    send(actor(Ledger, "log").book, 1)
    try:
        await actor(Ledger, "main").book(-1)
    except ActorCallFailed as error:
        return total if error.error_type == "ValueError" else -1
    return -1


async def test_actor_calls_take_effect_once(world: World) -> None:
    """Calls and sends from a workflow are turns of the target, exactly one each, replays or not."""
    client = await world.start([books])
    assert await client.run(books, 7) == 7
    assert await world.ledger("main") == 7

    async def logged() -> bool:
        return await world.ledger("log") == 1

    await eventually(logged)
    assert await world.ledger_history("main") == 1


RUNS: list[str] = []


@workflow
async def counts_its_runs(_: None) -> list[str]:
    RUNS.append(current().instance_id)
    return [await wait_event("go") for _ in range(3)]


async def test_a_hot_instance_runs_once_and_an_evicted_one_for_each_turn(world: World) -> None:
    """What the worlds of these tests differ in: the code runs through, or from its beginning for each of four turns."""
    client = await world.start([counts_its_runs])
    instance = await client.start(counts_its_runs)
    for word in "abc":
        await client.raise_event(instance, "go", word)
    assert await client.wait(instance, 10) == ["a", "b", "c"]
    assert RUNS.count(instance) == (4 if world.evict_always else 1)


# -- recovery ---------------------------------------------------------------------------------------------------------


async def test_crash_recovery(world: World) -> None:
    """After a crash at any point everything unfinished goes on: activities run again, timers fire, events are kept."""
    runs: list[str] = []
    hanging = asyncio.Event()

    @activity
    async def recorded(name: str) -> str:
        runs.append(name)
        if name == "hangs" and runs.count(name) == 1:
            hanging.set()
            await asyncio.Event().wait()
        return name

    @workflow
    async def survives(_: None) -> list[str]:
        first = await recorded("quick")
        second = await recorded("hangs")
        await asyncio.sleep(0.05)
        booked = await actor(Ledger, "a").book(3)
        return [first, second, str(booked), str(await wait_event("go"))]

    client = await world.start([survives])
    instance = await client.start(survives)
    await client.raise_event(instance, "go", "event")
    await hanging.wait()
    await world.crash()
    client = await world.start([survives])
    assert await client.wait(instance, 10) == ["quick", "hangs", "3", "event"]
    assert runs == ["quick", "hangs", "hangs"]
    assert await world.ledger_history("a") == 1


async def test_crashes_all_along(world: World) -> None:
    """A workflow that is crashed again and again ends once, with one effect per step."""

    @workflow
    async def long_way(_: None) -> int:
        total = 0
        for number in range(24):
            total += await double(number)
            total = await actor(Ledger, "sum").book(1) + total
            await asyncio.sleep(0.002)
        return total

    client = await world.start([long_way])
    instance = await client.start(long_way)
    for booked in (1, 6, 11, 16):  # long before the end: on a busy machine it runs on between two looks

        async def has_come_so_far(count: int = booked) -> bool:
            return await world.ledger_history("sum") >= count

        await eventually(has_come_so_far)
        assert (await client.get(instance)).status == "RUNNING"
        await world.crash()
        client = await world.start([long_way])
    assert await client.wait(instance, 20) == 552 + 300
    assert await world.ledger_history("sum") == 24


class RestlessClock(SystemClock):
    """Has moved on whenever it is looked at: who looks twice sees two times."""

    def __init__(self) -> None:
        self._looks = 0

    def now_ms(self) -> int:
        self._looks += 1
        return super().now_ms() + self._looks


async def test_the_time_the_code_saw_is_the_time_on_record(world: World) -> None:
    """INV-10: however long a turn takes, the replay of it starts the same timers as the turn did."""

    @workflow
    async def naps(_: None) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.wait_for(double(1), 30)
        for nap in (0.001, 0.0015, 0.002):
            await asyncio.sleep(nap)
            await double_in_thread(2)
        async with asyncio.timeout_at(loop.time() + 30):
            await wait_event("go")
        return loop.time() - began

    client = await world.start([naps], clock=RestlessClock())
    instance = await client.start(naps)
    await client.raise_event(instance, "go")
    assert await client.wait(instance, 10) > 0.004


async def test_idle_instances_are_evicted_and_come_back(world: World) -> None:
    """An instance that waits leaves memory, and is replayed when its event comes."""
    ended: list[str] = []

    @workflow
    async def naps(_: None) -> int:
        try:
            number = await double(4)
            return number + int(await wait_event("go"))
        finally:
            ended.append("finally")

    client = await world.start([naps], idle_timeout=0.02)
    instance = await client.start(naps)
    assert world.host is not None
    actors = world.host.client

    async def evicted() -> bool:
        return not actors.is_active("mecha.workflow", instance)

    await eventually(evicted)
    assert ended == []
    await client.raise_event(instance, "go", 1)
    assert await client.wait(instance, 10) == 9
    assert ended == ["finally"]


# -- stalled ----------------------------------------------------------------------------------------------------------


@workflow(name="job")
async def good_job(_: None) -> int:
    first = await double(1)
    return first + int(await wait_event("go"))


@workflow(name="job")
async def bad_job(_: None) -> str:
    return await charge("a", 1) + str(await wait_event("go"))


async def test_changed_code_stalls_and_a_fix_resumes(world: World) -> None:
    """Code that no longer fits stalls the instance, visibly; its inputs are kept; resume with fixed code goes on."""
    client = await world.start([good_job])
    instance = await client.start(good_job)

    async def first_step_done() -> bool:
        return len(await client.history(instance)) == 2

    await eventually(first_step_done)
    await world.stop()
    client = await world.start([bad_job])
    await client.raise_event(instance, "go", 5)
    with pytest.raises(WorkflowStalled, match=r"double.*test_instance.py:"):
        await client.wait(instance, 10)
    state = await client.get(instance)
    assert state.status == "STALLED"
    assert state.failure is not None
    assert state.failure.type == "NondeterminismError"
    length = len(await client.history(instance))
    await client.resume(instance)
    assert (await client.get(instance)).status == "STALLED"
    assert len(await client.history(instance)) == length
    await world.stop()
    client = await world.start([good_job])
    await client.resume(instance)
    assert await client.wait(instance, 10) == 7


async def test_undeployed_workflow_stalls(world: World) -> None:
    """An instance whose workflow is not deployed is stalled, and recovers by its next input when it is."""
    client = await world.start([waits])
    instance = await client.start(waits, "go")
    await world.stop()
    client = await world.start([order])
    await client.raise_event(instance, "other", 1)
    state = await client.get(instance)
    assert (state.status, state.failure and state.failure.type) == ("STALLED", "UnknownWorkflow")
    await client.raise_event(instance, "go", 2)
    await world.stop()
    client = await world.start([waits])
    await client.raise_event(instance, "other", 3)
    assert await client.wait(instance, 10) == 2


async def test_terminate_a_stalled_instance(world: World) -> None:
    """What cannot be mended can be ended."""

    @workflow
    async def stuck(_: None) -> None:
        await asyncio.Event().wait()

    client = await world.start([stuck])
    instance = await client.start(stuck)
    with pytest.raises(WorkflowStalled, match="never happen"):
        await client.wait(instance, 10)
    await client.terminate(instance)
    assert (await client.get(instance)).status == "TERMINATED"


async def test_undeployed_activity_waits(world: World) -> None:
    """Work for an activity that is not deployed is neither lost nor failed."""

    @activity(name="later")
    async def later() -> str:
        return "done"

    @workflow
    async def needs_later(_: None) -> str:
        chosen = {"it": later}["it"]
        return await chosen()

    client = await world.start([needs_later])
    instance = await client.start(needs_later)
    await world.crash()
    client = await world.start([needs_later], [later])
    assert await client.wait(instance, 10) == "done"


@pytest.mark.parametrize("end", ["terminate", "purge"])
async def test_undeployed_activity_of_an_ended_instance(world: World, end: str) -> None:
    """INV-9 asks for what is unfinished only: work that nobody waits for any more does not wait for a deployment."""

    @activity(name="later")
    async def later() -> str:
        return "done"

    @workflow
    async def needs_later(_: None) -> str:
        chosen = {"it": later}["it"]
        return await chosen()

    client = await world.start([needs_later])
    instance = await client.start(needs_later)
    if end == "terminate":
        await client.terminate(instance)
    else:
        await client.purge(instance, force=True)
    journal = world.store.journal

    async def no_work_left() -> bool:
        return not [m for p in range(journal.partitions) for m in await journal.outbox(p)]

    await eventually(no_work_left)
