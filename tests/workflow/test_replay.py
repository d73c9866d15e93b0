"""asyncio on the deterministic loop: each construct once, live and replayed after every turn (INV-10)."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pydantic
import pytest

import actors
from tests.workflow.steps import Ledger, Order, Receipt, charge, double, issue
from workflow import ActivityFailed, ActorCallFailed, activity, actor, current, send, set_status, wait_event, workflow
from workflow.context import SURFACE
from workflow.errors import Stall
from workflow.history import Record, encode_inputs, parse
from workflow.replay import replay
from workflow.testing import Rehearsal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T0 = 1_700_000_000_000


class Dated(pydantic.BaseModel):
    until_s: float

    @pydantic.field_validator("until_s")
    @classmethod
    def _not_yet(cls, until_s: float) -> float:
        return min(until_s, time.time())


@pytest.fixture(params=[False, True], ids=["hot", "evicted"])
def evict(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@workflow
async def sequence(number: int) -> int:
    for _ in range(3):
        number = await double(number)
    return number


def test_steps_in_sequence(evict: bool) -> None:
    """Awaiting activities one after the other; each has its own lexical step."""
    run = Rehearsal(sequence, 1, evict=evict)
    for position, step in enumerate(["sequence.double", "sequence.double[2]", "sequence.double[3]"]):
        assert run.activities == {step: ("double", [2**position])}
        run.complete(step, 2 ** (position + 1))
    assert (run.status, run.output) == ("COMPLETED", 8)


@workflow
async def typed(order: Order) -> Receipt:
    receipt = await issue(order)
    assert isinstance(receipt, Receipt)
    return Receipt(receipt.number.upper(), receipt.cents)


def test_values_are_typed_by_annotation(evict: bool) -> None:
    """Inputs and results arrive as the dataclasses they are annotated with."""
    run = Rehearsal(typed, Order("x", 5), evict=evict)
    assert run.activities == {"typed.issue": ("issue", [{"card": "x", "cents": 5}])}
    run.complete("typed.issue", {"number": "a", "cents": 5})
    assert run.output == {"number": "A", "cents": 5}


def test_result_that_does_not_fit_fails_the_step() -> None:
    """A recorded result that the annotation refuses is an error in the code that awaits it."""
    run = Rehearsal(typed, Order("x", 5))
    run.complete("typed.issue", "nonsense")
    assert run.status == "FAILED"
    assert run.failure is not None
    assert run.failure[0] == "ActivityFailed"


@workflow
async def finish_order(count: int) -> list[int]:
    order: list[int] = []

    async def one(number: int) -> None:
        await double(number)
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    return order


def test_completion_order_is_history(evict: bool) -> None:
    """Concurrent steps go on in the order their results were recorded."""
    run = Rehearsal(finish_order, 3, evict=evict)
    for step in ("one[3]>one.double", "one>one.double", "one[2]>one.double"):
        run.complete(step, 0)
    assert run.output == [2, 0, 1]


@workflow
async def first_of(count: int) -> int:
    for done in asyncio.as_completed([double(n) for n in range(count)]):
        return await done
    return -1


def test_as_completed_gives_the_first_recorded(evict: bool) -> None:
    """as_completed yields by recorded completion; tasks left behind end with the workflow."""
    run = Rehearsal(first_of, 3, evict=evict)
    run.complete("double[2]>first_of.double", 22)
    assert (run.status, run.output) == ("COMPLETED", 22)


@workflow
async def sleeper(_: None) -> float:
    before = asyncio.get_running_loop().time()
    await asyncio.sleep(3600)
    await asyncio.sleep(0)
    assert current().now() == datetime.fromtimestamp(asyncio.get_running_loop().time(), UTC)
    return asyncio.get_running_loop().time() - before


def test_sleep_is_a_durable_timer(evict: bool) -> None:
    """asyncio.sleep asks for a timer and goes on when it has fired, at its time."""
    run = Rehearsal(sleeper, evict=evict)
    assert run.timers == {"sleeper.sleep": T0 + 3_600_000}
    run.advance()
    assert run.output == pytest.approx(3600)


@workflow
async def limited(_: None) -> str:
    try:
        async with asyncio.timeout(10):
            return await charge("a", 1)
    except TimeoutError:
        pass
    try:
        return await asyncio.wait_for(charge("b", 2), 10)
    except TimeoutError:
        return "late"


@pytest.mark.parametrize(("late", "output"), [(0, "ok"), (1, "ok"), (2, "late")])
def test_timeout_and_wait_for(evict: bool, late: int, output: str) -> None:
    """A timeout cancels the step; a result in time cancels the timer, in the history too."""
    run = Rehearsal(limited, evict=evict)
    for _ in range(late):
        run.advance()
    if run.activities:
        run.complete(next(iter(run.activities)), "ok")
    assert run.output == output
    assert run.timers == {}
    assert run.activities == {}


@workflow
async def waiting(_: None) -> list[int]:
    tasks = [asyncio.create_task(double(n)) for n in range(3)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return [task.result() for task in done]


def test_wait_and_cancel(evict: bool) -> None:
    """asyncio.wait, and cancelling what is pending: the steps are abandoned, later results ignored."""
    run = Rehearsal(waiting, evict=evict)
    run.complete("double[3]>waiting.double", 6)
    assert run.output == [6]
    assert run.activities == {}


@workflow
async def primitives(_: None) -> list[str]:
    seen: list[str] = []
    queue: asyncio.Queue[str] = asyncio.Queue()
    lock, ready = asyncio.Lock(), asyncio.Event()

    async def producer() -> None:
        async with lock:
            await queue.put(await charge("first", 1))
        ready.set()

    async def consumer() -> None:
        seen.append(await queue.get())
        await ready.wait()
        async with lock:
            seen.append("locked")

    await asyncio.gather(producer(), asyncio.shield(consumer()))
    return seen


def test_queue_event_lock_shield(evict: bool) -> None:
    """Synchronisation primitives work among the tasks of one workflow."""
    run = Rehearsal(primitives, evict=evict)
    run.complete("producer>producer.charge", "r")
    assert run.output == ["r", "locked"]


@workflow
async def failing(_: None) -> str:
    try:
        await charge("a", 1)
    except ActivityFailed as error:
        return f"{error.error_type}: {error.message}"
    return "no failure"


def test_activity_failure_is_raised(evict: bool) -> None:
    """A failed activity raises ActivityFailed with the original's type and message."""
    run = Rehearsal(failing, evict=evict)
    run.fail("failing.charge", "CardDeclined", "no money")
    assert run.output == "CardDeclined: no money"


@workflow
async def group_fails(_: None) -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(double(1))
            group.create_task(double(2))
    except ExceptionGroup as errors:
        return f"{len(errors.exceptions)} failed: {type(errors.exceptions[0]).__name__}"
    return "none failed"


def test_task_group_cancels_siblings(evict: bool) -> None:
    """When one task of a group fails the others are cancelled, their steps abandoned."""
    run = Rehearsal(group_fails, evict=evict)
    run.fail("double>group_fails.double")
    assert run.output == "1 failed: ActivityFailed"
    assert run.activities == {}


@workflow
async def raising(_: None) -> None:
    raise LookupError("nothing there")


def test_uncaught_exception_fails_the_instance() -> None:
    """What the code does not catch becomes its failure."""
    run = Rehearsal(raising)
    assert (run.status, run.failure) == ("FAILED", ("LookupError", "nothing there"))


@workflow
async def exiting(_: None) -> None:
    raise SystemExit(3)


def test_system_exit_fails_the_instance_only() -> None:
    """sys.exit in a workflow ends the workflow, not the process."""
    assert Rehearsal(exiting).failure == ("SystemExit", "3")


@workflow
async def events_in_order(_: None) -> list[int]:
    await double(0)
    return [await wait_event("Go", int) for _ in range(3)]


def test_events_are_buffered_by_name(evict: bool) -> None:
    """Events before anybody waits are kept in order; the case of the name does not matter."""
    run = Rehearsal(events_in_order, evict=evict)
    run.event("go", 1)
    run.event("GO", 2)
    run.event("other", 9)
    run.complete("events_in_order.double", 0)
    run.event("gO", 3)
    assert run.output == [1, 2, 3]


@workflow
async def event_or_timeout(_: None) -> str:
    try:
        return str(await wait_event("go", str, timeout="1m"))
    except TimeoutError as error:
        return str(error)


def test_event_wait_times_out(evict: bool) -> None:
    """wait_event with a timeout is an event or a durable timer, whichever is recorded first."""
    run = Rehearsal(event_or_timeout, evict=evict)
    run.advance()
    assert run.output == "no event 'go' within 1m"
    other = Rehearsal(event_or_timeout, evict=evict)
    other.event("go", "now")
    assert (other.output, other.timers) == ("now", {})


@workflow
async def zero_timeout(_: None) -> str:
    await double(1)
    try:
        return str(await wait_event("go", timeout=0))
    except TimeoutError:
        return "nothing there"


def test_zero_timeout_takes_what_is_there(evict: bool) -> None:
    """With timeout 0 a buffered event is taken, otherwise TimeoutError at once."""
    run = Rehearsal(zero_timeout, evict=evict)
    run.event("go", "x")
    run.complete("zero_timeout.double", 2)
    other = Rehearsal(zero_timeout, evict=evict)
    other.complete("zero_timeout.double", 2)
    assert (run.output, other.output) == ("x", "nothing there")


@workflow
async def cancelled_waiter(_: None) -> str:
    first = asyncio.create_task(wait_event("go"))
    await double(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    return str(await wait_event("go"))


def test_cancelled_waiter_takes_no_event(evict: bool) -> None:
    """An event is not lost to a waiter that was cancelled before it came."""
    run = Rehearsal(cancelled_waiter, evict=evict)
    run.complete("cancelled_waiter.double", 2)
    run.event("go", "kept")
    assert run.output == "kept"


@workflow
async def given_but_cancelled(_: None) -> str:
    async def waits() -> None:
        await wait_event("go")

    first = asyncio.create_task(waits())

    async def canceller() -> None:
        await wait_event("stop")
        first.cancel()

    second = asyncio.create_task(canceller())
    await asyncio.gather(first, second, return_exceptions=True)
    return str(await wait_event("go"))


def test_event_that_comes_in_the_turn_of_the_cancellation_is_kept() -> None:
    """Inputs of one turn are seen one after the other: the waiter is gone before the event comes."""
    run = Rehearsal(given_but_cancelled)
    run.turn(("paused",))
    run.event("stop")
    run.event("go", "kept")
    run.turn(("resumed",))
    assert run.output == "kept"


@activity
async def labelled(number: int, *, label: str, loud: bool = False) -> str:
    return f"{label}{number}"


@workflow
async def forgets_a_name(_: None) -> list[str]:
    seen = []
    mistaken: list[dict[str, Any]] = [{}, {"loud": True}]
    for given in mistaken:
        try:
            await labelled(1, **given)
        except TypeError as error:
            seen.append(str(error))
    return [*seen, await labelled(1, label="a")]


def test_a_missing_argument_is_a_type_error_where_it_is_missing(evict: bool) -> None:
    """As for any function, whether it goes by position or by name alone; nothing is recorded of the call."""
    run = Rehearsal(forgets_a_name, evict=evict)
    assert run.activities == {"forgets_a_name.labelled": ("labelled", {"args": [1], "kwargs": {"label": "a"}})}
    run.complete("forgets_a_name.labelled", "a1")
    *told, given = run.output
    # Python 3.12 and later say of what kind it is.
    assert [text.replace("keyword-only ", "") for text in told] == ["missing a required argument: 'label'"] * 2
    assert given == "a1"


def test_a_rehearsal_names_what_is_open() -> None:
    """A step that is misspelt, or a timer nobody has set, is the test's mistake and nothing that happened."""
    run = Rehearsal(sequence, 1)
    for mistaken in (run.complete, run.fail):
        with pytest.raises(LookupError, match=r"no step 'sequence\.dooble' is open; open are sequence\.double$"):
            mistaken("sequence.dooble")
    with pytest.raises(LookupError, match=r"no timer is pending; the workflow is RUNNING, open are sequence\.double$"):
        run.advance()
    assert len(run.records) == 1
    run.complete("sequence.double", 2)
    with pytest.raises(LookupError, match=r"open are sequence\.double\[2\]$"):
        run.complete("sequence.double", 2)


@workflow
async def refused_waits(_: None) -> list[str]:
    refused: list[str] = []
    mistakes: list[tuple[Any, Any]] = [("a while", Any), (1e12, Any), (None, object()), ("1m", object())]
    for limit, kind in mistakes:
        try:
            await wait_event("go", kind, timeout=limit)
        except Exception as error:
            refused.append(type(error).__name__)
        await double(1)
    return [*refused, await wait_event("go")]


@pytest.mark.parametrize("early", [False, True], ids=["event after", "event before"])
def test_a_wait_that_is_refused_takes_no_event(evict: bool, early: bool) -> None:
    """A mistake in the arguments is told at once, and the next who waits gets the event."""
    run = Rehearsal(refused_waits, evict=evict)
    if early:
        run.event("go", "kept")
    for _ in range(4):
        run.complete(next(iter(run.activities)), 2)
    if not early:
        run.event("go", "kept")
    assert run.output == ["InvalidSchedule", "OverflowError", "TypeError", "TypeError", "kept"]


@workflow
async def equal_timers(_: None) -> list[int]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    first, *_others = [loop.call_later(5, queue.put_nowait, 1) for _ in range(3)]
    await double(1)
    first.cancel()
    first.cancel()
    return [await queue.get(), await queue.get()]


def test_timers_that_are_equal_are_two(evict: bool) -> None:
    """Handles of one time and callback compare equal; each is a timer of its own, and so is its cancellation."""
    run = Rehearsal(equal_timers, evict=evict)
    steps = ["equal_timers.call_later", "equal_timers.call_later[2]", "equal_timers.call_later[3]"]
    assert list(run.timers) == steps
    run.complete("equal_timers.double", 2)
    assert list(run.timers) == steps[1:]
    assert [run.advance(), run.advance()] == steps[1:]
    assert run.output == [1, 1]


@workflow
async def named_tasks(_: None) -> list[str]:
    seen: list[str] = []

    async def job() -> None:
        await asyncio.sleep(5)
        task = asyncio.current_task()
        assert task is not None
        seen.append(task.get_name())

    names = ["job", "job", "job[2]", "a/b #1"]
    running = [asyncio.get_running_loop().create_task(job(), name=name) for name in names]
    await asyncio.gather(*running, asyncio.create_task(job()))
    return seen


def test_names_of_tasks_are_no_part_of_steps(evict: bool) -> None:
    """What a task is called is for people to read: its steps have ids that follow from the code alone."""
    run = Rehearsal(named_tasks, evict=evict)
    places = ["job", "job[2]", "job[3]", "job[4]", "job[5]"]
    assert list(run.timers) == [f"{place}>job.sleep" for place in places]
    for _ in places:
        run.advance()
    assert run.output == ["job", "job", "job[2]", "a/b #1", "job[5]"]


@workflow
async def generator_in_time(_: None) -> list[int]:
    async def numbers() -> AsyncIterator[int]:
        yield await double(1)
        yield await double(2)

    source = numbers()
    return [await asyncio.wait_for(anext(source), 5), await asyncio.wait_for(source.__anext__(), 5)]


def test_generators_are_waited_for(evict: bool) -> None:
    """The next of an async generator is an awaitable without a name; as a task it has a place all the same."""
    run = Rehearsal(generator_in_time, evict=evict)
    for result in (2, 4):
        run.complete(next(iter(run.activities)), result)
    assert run.output == [2, 4]
    assert run.timers == {}


@workflow
async def random_numbers(_: None) -> list[str]:
    numbers = [str(current().uuid4()), str(current().random()), str(current().random.randint(1, 10**9))]
    await double(1)
    return [*numbers, str(current().uuid4())]


def test_randomness_is_replayed() -> None:
    """Random numbers and uuids are the same on every replay of an execution, and differ between executions."""
    outputs = []
    for execution, evict in (("a", False), ("a", True), ("b", False)):
        run = Rehearsal(random_numbers, execution=execution, evict=evict)
        run.complete("random_numbers.double", 2)
        outputs.append(run.output)
    assert outputs[0] == outputs[1] != outputs[2]


@workflow
async def calls_actors(_: None) -> int:
    ledger = actor(Ledger, "a")
    total = await ledger.book(5)
    send(ledger.book, 6)
    actors.send(actors.context().actor(Ledger, "b").book, 7)
    try:
        await actor("Ledger", "c").book(-1)
    except ActorCallFailed as error:
        return total if error.error_type == "ValueError" else -1
    return -1


def test_actor_calls_and_sends(evict: bool) -> None:
    """Calls are steps with an answer; sends leave once, whichever way they are written."""
    run = Rehearsal(calls_actors, evict=evict)
    assert run.calls == {"calls_actors.book": ("Ledger", "a", "book", [5])}
    run.complete("calls_actors.book", 15)
    assert run.sends == [("Ledger", "a", "book", [6]), ("Ledger", "b", "book", [7])]
    run.fail("calls_actors.book[4]", "ValueError", "no negative bookings")
    assert (run.status, run.output) == ("COMPLETED", 15)


@workflow
async def statuses(_: None) -> None:
    set_status({"phase": 1})
    await double(1)
    set_status("done")


def test_custom_status(evict: bool) -> None:
    """set_status shows with the turn that set it."""
    run = Rehearsal(statuses, evict=evict)
    assert run.summary.custom_status == {"phase": 1}
    run.complete("statuses.double", 1)
    assert run.summary.custom_status == "done"


@workflow
async def logs(_: None) -> None:
    current().logger.warning("began")
    await double(1)
    current().logger.warning("went on")


def test_logger_is_silent_on_replay(caplog: pytest.LogCaptureFixture) -> None:
    """Each line is logged once, however often its turn is replayed."""
    with caplog.at_level(logging.WARNING):
        run = Rehearsal(logs, evict=True)
        run.complete("logs.double", 1)
    assert [r.getMessage() for r in caplog.records] == ["rehearsal: began", "rehearsal: went on"]


def test_pause_queues_and_resume_applies(evict: bool) -> None:
    """While paused inputs are recorded, not applied; resume applies them in order."""
    run = Rehearsal(finish_order, 2, evict=evict)
    run.turn(("paused",))
    assert run.status == "SUSPENDED"
    run.complete("one[2]>one.double", 0)
    run.complete("one>one.double", 0)
    assert run.status == "SUSPENDED"
    run.turn(("resumed",))
    assert (run.status, run.output) == ("COMPLETED", [1, 0])


def test_terminate_beats_what_comes_later(evict: bool) -> None:
    """After terminate nothing runs any more."""
    run = Rehearsal(sequence, 1, evict=evict)
    run.turn(("terminated", "why"))
    run.complete("sequence.double", 2)
    assert (run.status, run.output, run.activities) == ("TERMINATED", "why", {})


@workflow
async def left_behind(_: None) -> str:
    task = asyncio.create_task(charge("fire and forget", 1))
    await asyncio.sleep(0)
    assert not task.done()
    return "done"


def test_tasks_left_behind_end_with_the_workflow(evict: bool) -> None:
    """A step that was asked for is done even if nobody waits for it; the workflow's end is its own."""
    run = Rehearsal(left_behind, evict=evict)
    assert run.output == "done"
    assert run.activities == {"charge>left_behind.charge": ("charge", ["fire and forget", 1])}


def test_unencodable_output_is_a_failure() -> None:
    """A result without JSON form fails the instance, it does not hang it."""

    @workflow
    async def gives_object(_: None) -> object:
        return object()

    run = Rehearsal(gives_object)
    assert run.failure is not None
    assert run.failure[0] == "UnserializableResult"


@dataclass
class Totals:
    cents: int


@workflow
async def totals(given: object) -> Totals:
    return given  # type: ignore[return-value]  # the mistake


def test_an_output_its_annotation_refuses_is_a_failure(evict: bool) -> None:
    """Whoever waits for it would be given what he cannot read."""
    assert Rehearsal(totals, {"cents": 5}, evict=evict).output == {"cents": 5}
    run = Rehearsal(totals, {"cents": "much"}, evict=evict)
    assert (run.status, run.output) == ("FAILED", None)
    assert run.failure is not None
    assert run.failure[0] == "UnserializableResult"
    assert run.failure[1].startswith("the result is not what the annotation says: cents: Input should be a valid")
    replay(totals, "rehearsal", run.records, SURFACE).close()


def test_an_execution_that_began_before_outputs_were_checked_completes() -> None:
    """Its history says so, and a replay gives what is recorded (INV-10)."""
    refused = Rehearsal(totals, {"cents": "much"}).records[0]
    (started,) = parse(refused.inputs)
    del started[1]["o"]
    inputs = encode_inputs([started])
    completed = Record(refused.time_ms, inputs, '[["completed",{"cents":"much"}]]')
    replay(totals, "rehearsal", [completed], SURFACE).close()
    with pytest.raises(Stall, match="UnserializableResult"):
        replay(totals, "rehearsal", [completed._replace(inputs=refused.inputs)], SURFACE)


@workflow
async def dated(given: object) -> Dated:
    return given  # type: ignore[return-value]  # as it would come from an activity


def test_a_validator_of_an_output_may_look_at_the_clock() -> None:
    """It is no part of the workflow's code, and is asked again where the output is read."""
    assert Rehearsal(dated, {"until_s": 5}).output == {"until_s": 5}


def test_current_task_of_the_host_is_untouched() -> None:
    """A step nests inside the running loop and leaves it as it was."""

    async def host() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        run = Rehearsal(sequence, 1)
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        run.complete("sequence.double", 2)
        await asyncio.sleep(0)
        assert asyncio.current_task() is task

    asyncio.run(host())
