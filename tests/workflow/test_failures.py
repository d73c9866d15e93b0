"""Failures that are hard to tell: whatever code raises, its failure is recorded, and no activity is left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from actors import ActorFailed, reminders
from statestores.codec import CodecError, encode
from statestores.memory import MemoryStore
from tests.workflow.conftest import World as MadeWorld
from tests.workflow.test_payloads import MovedClock
from workflow import (
    ActivityFailed,
    RetryPolicy,
    WorkflowFailed,
    WorkflowStalled,
    activity,
    activity_info,
    set_status,
    workflow,
)
from workflow.advance import Advance
from workflow.instance import WorkflowInstance
from workflow.raised import error_of, raised

if TYPE_CHECKING:
    from collections.abc import Callable

    from statestores.store import Payloads
    from tests.workflow.conftest import World
    from workflow.history import Record


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Halves(ValueError):
    """As `os.listdir` gives names that are not UTF-8."""

    def __init__(self) -> None:
        super().__init__("caf\udce9.txt")


class Quits(BaseException):
    """None of `Exception`'s."""


KINDS: dict[str, type[BaseException]] = {"Mute": Mute, "Halves": Halves, "Quits": Quits}
TEXTS = {"Mute": "<exception str() failed>", "Halves": "caf\\udce9.txt", "Quits": ""}


@activity
async def at_once(kind: str) -> None:
    raise KINDS[kind]


@activity
async def later(kind: str) -> None:
    await asyncio.sleep(0)
    raise KINDS[kind]


@activity
def in_thread(kind: str) -> None:
    raise KINDS[kind]


@activity(retry=RetryPolicy(max_attempts=2, initial_interval="1ms"))
async def twice(kind: str) -> None:
    raise KINDS[kind]


@activity
async def nothing(_: str) -> None:
    pass


async def told(call: Any) -> list[str]:
    try:
        await call
    except ActivityFailed as error:
        return [error.error_type, error.message]
    return []


@workflow
async def calling(kind: str) -> list[list[str]]:
    return list(await asyncio.gather(*(told(call(kind)) for call in (at_once, later, in_thread, twice))))


@workflow
async def failing_at_once(kind: str) -> None:
    raise KINDS[kind]


@workflow
async def failing_later(kind: str) -> None:
    await nothing(kind)
    raise KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
async def test_failures_of_activities_are_recorded(world: World, kind: str) -> None:
    """The workflow hears of its activity's failure, wherever it ran and however its exception behaves."""
    client = await world.start([calling], [at_once, later, in_thread, twice])
    assert await client.run(calling, kind, instance_id="c") == [[kind, TEXTS[kind]]] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", [failing_at_once, failing_later], ids=lambda found: str(found.name))
async def test_failures_of_workflows_are_recorded(world: World, failing: Any, kind: str) -> None:
    """What a workflow raises ends it as FAILED, with type and text, also in its first turn; it does not stall."""
    client = await world.start([failing])
    instance = await client.start(failing, kind)
    with pytest.raises(WorkflowFailed):
        await client.wait(instance, 10)
    failure = (await client.get(instance)).failure
    assert failure is not None
    assert (failure.type, failure.message) == (kind, TEXTS[kind])
    assert kind in failure.traceback


@pytest.mark.parametrize("kind", KINDS)
def test_failures_arrive_from_other_processes(kind: str) -> None:
    """The data an exception travels as can be made of every one."""
    found = raised(KINDS[kind]())
    assert (found.names[0], found.message) == (kind, TEXTS[kind])
    assert kind in "".join(cls.__name__ for cls in type(error_of(found)).__mro__)


class Unfit(type):
    def __instancecheck__(cls, _: object) -> bool:
        raise RuntimeError("who asks?")


class NotRetried(Exception, metaclass=Unfit):
    pass


async def test_a_policy_that_fails_is_no_reason_to_wait_for_ever(world: World) -> None:
    """When it cannot be said whether to try again, the attempt has failed, and was the last."""

    @activity(retry=RetryPolicy(max_attempts=3, initial_interval="1ms", non_retriable=(NotRetried,)))
    async def quick() -> None:
        raise LookupError("nothing there")

    @activity(retry=RetryPolicy(max_attempts=3, initial_interval="1ms", non_retriable=(NotRetried,)))
    async def slow() -> None:
        await asyncio.sleep(0)
        raise LookupError("nothing there")

    @workflow
    async def asking() -> list[list[str]]:
        return list(await asyncio.gather(told(quick()), told(slow())))

    client = await world.start([asking], [quick, slow])
    async with asyncio.timeout(10):
        assert await client.run(asking) == [["LookupError", "nothing there"]] * 2


class FaultyPayloads:
    """A store with a bug: it raises what no store may."""

    def __init__(self, inner: Payloads) -> None:
        self._inner = inner

    async def put(self, *_: Any) -> None:
        raise ZeroDivisionError("a bug in the store")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self._inner, name)
        return found


@activity
async def large_at_once() -> str:
    return "x" * 1000


@activity
async def large_later() -> str:
    await asyncio.sleep(0)
    return "x" * 1000


@workflow
async def enlarging() -> list[list[str]]:
    return list(await asyncio.gather(told(large_at_once()), told(large_later())))


async def test_a_result_that_cannot_be_reported_is_a_failure() -> None:
    """A result that was made and cannot be stored, by a bug, is told as the failure it is."""
    store = MemoryStore()
    await store.open()
    world = MadeWorld(store, evict_always=False)
    client = await world.start(
        [enlarging], [large_at_once, large_later], payloads=FaultyPayloads(store.payloads), large_value_bytes=100
    )
    async with asyncio.timeout(10):
        outcome = await client.run(enlarging)
    assert outcome == [["ZeroDivisionError", "a bug in the store"]] * 2
    await world.close()
    await store.close()


@workflow
async def naps() -> str:
    await asyncio.sleep(0.01)
    return "rested"


@pytest.mark.parametrize("asleep", [True, False], ids=["a timer", "an activity"])
async def test_errors_of_ours_stall_in_the_end(world: World, monkeypatch: pytest.MonkeyPatch, asleep: bool) -> None:
    """A turn that fails by a bug of ours, even one that had recorded something, is tried a few times and then stalls
    its instance: nothing that would wake it is lost, and nothing is tried for ever."""
    monkeypatch.setattr(reminders, "_RETRY_DELAY_S", 0.01)
    fold = WorkflowInstance._fold

    def fails_at_the_end(instance: WorkflowInstance, record: Record, *rest: Any) -> None:
        if '"completed"' in record.commands:
            raise ZeroDivisionError("a bug of ours")
        fold(instance, record, *rest)

    monkeypatch.setattr(WorkflowInstance, "_fold", fails_at_the_end)
    client = await world.start([naps, rests], [nothing])
    instance = await client.start(naps if asleep else rests)
    with pytest.raises(WorkflowStalled, match="ZeroDivisionError: a bug of ours"):
        await client.wait(instance, 10)
    monkeypatch.setattr(WorkflowInstance, "_fold", fold)
    await client.resume(instance)
    assert await client.wait(instance, 10) == "rested"


async def test_a_start_that_fails_by_a_bug_of_ours_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no instance that could stall, and be forgotten when it has."""

    def fails(*_: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    client = await world.start([naps])
    monkeypatch.setattr(Advance, "_record", fails)
    with pytest.raises(ActorFailed, match="a bug of ours"):
        await client.start(naps)
    assert not world._engines[-1]._deployment.poison


@workflow
async def rests() -> str:
    await nothing("")
    return "rested"


def fits(value: Any) -> bool:
    try:
        encode(value)
    except CodecError:
        return False
    return True


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@workflow
async def goes_deep(value: Any) -> Any:
    set_status(value)
    await nothing("")
    return value


async def test_what_can_be_recorded_can_be_shown(world: World) -> None:
    """JSON of an input, a status, an output may be nested as deep as the encoding allows where it stands alone."""
    deep = nested(next(depth for depth in range(1000) if not fits(nested(depth + 1))))
    client = await world.start([goes_deep], [nothing])
    instance = await client.start(goes_deep, deep)
    assert await client.wait(instance, 10) == deep
    state = await client.get(instance)
    assert (state.input, state.output, state.custom_status) == (deep, deep, deep)


@activity(retry=RetryPolicy(max_attempts=1))
def interrupts() -> None:
    raise KeyboardInterrupt("of its own")


@workflow
async def asks_for_an_interrupt() -> list[str]:
    return await told(interrupts())


async def test_an_interrupt_raised_in_a_thread_is_a_failure(world: World) -> None:
    """Nobody is at the keyboard of a thread: the host goes on, and its workflow hears of it."""
    client = await world.start([asks_for_an_interrupt], [interrupts])
    async with asyncio.timeout(10):
        outcome = await client.run(asks_for_an_interrupt)
    assert outcome == ["RuntimeError", "KeyboardInterrupt was raised in a thread: of its own"]


@pytest.mark.parametrize("kind", ["quick", "waits", "plain"])
async def test_no_attempt_begins_after_the_time_of_its_step(world: World, kind: str) -> None:
    """What a crash has left open and nobody took up in time has failed when it is found again: it is not run."""
    clock, ran = MovedClock(), list[str]()
    policy = RetryPolicy(max_attempts=1, overall_timeout="1h")

    @activity(name="late", retry=policy)
    async def quick() -> None:
        ran.append("quick")

    @activity(name="late", retry=policy)
    async def waits() -> None:
        ran.append("waits")
        await asyncio.sleep(0)

    @activity(name="late", retry=policy)
    def plain() -> None:
        ran.append("plain")

    # Found by no look at the code of the workflow, and deployed by the second host alone.
    late: dict[str, Any] = {"quick": quick, "waits": waits, "plain": plain}

    @workflow
    async def asks() -> list[str]:
        return await told(late[kind]())

    client = await world.start([asks], clock=clock)
    instance = await client.start(asks)
    await world.crash()
    clock.later_ms = 3_600_000
    client = await world.start([asks], [late[kind]], clock=clock)
    assert await client.wait(instance, 10) == ["ActivityTimeout", "late is out of time: attempt 1 is not begun"]
    assert ran == []


async def test_the_attempt_that_is_not_begun_hides_no_failure(world: World) -> None:
    """Why a step was to be tried again is what its caller has to know, rather than that its time is over."""
    clock, begun = MovedClock(), asyncio.Event()

    @activity(retry=RetryPolicy(max_attempts=0, initial_interval="1ms", overall_timeout="1h"))
    async def pays() -> None:
        if activity_info().attempt == 1:
            raise LookupError("no such account")
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def asks() -> list[str]:
        return await told(pays())

    client = await world.start([asks], [pays], clock=clock)
    instance = await client.start(asks)
    await begun.wait()
    await world.crash()
    clock.later_ms = 3_600_000
    client = await world.start([asks], [pays], clock=clock)
    why = "pays is out of time: attempt 2 is not begun; attempt 1 failed: LookupError: no such account"
    assert await client.wait(instance, 10) == ["ActivityTimeout", why]


async def test_an_attempt_that_runs_out_of_time_says_what_the_one_before_met(world: World) -> None:
    """So it is, too, when its time ends while it runs."""

    @activity(retry=RetryPolicy(max_attempts=0, initial_interval="1ms", overall_timeout="1s"))
    async def pays() -> None:
        if activity_info().attempt <= 2:
            raise LookupError(f"no such account {activity_info().attempt}")
        await asyncio.Event().wait()

    @workflow
    async def asks() -> list[str]:
        return await told(pays())

    client = await world.start([asks], [pays])
    kind, why = await client.run(asks)
    assert kind == "ActivityTimeout"
    assert why.startswith("attempt 3 of pays ran longer than ")
    assert why.endswith(" s; attempt 2 failed: LookupError: no such account 2")


async def test_no_attempt_is_due_after_the_last_year(world: World) -> None:
    """A wait for which there can be no reminder is no wait: the attempt was the last."""

    @activity(retry=RetryPolicy(initial_interval=1e12, max_interval=1e12))
    async def fails() -> None:
        raise LookupError("nothing there")

    @workflow
    async def asks() -> list[str]:
        return await told(fails())

    client = await world.start([asks], [fails])
    async with asyncio.timeout(10):
        assert await client.run(asks) == ["LookupError", "nothing there"]
