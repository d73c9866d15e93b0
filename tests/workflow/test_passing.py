"""Replay without waiting: what is awaited next and recorded next is given at once, and the code sees no difference.

Each case is a workflow that says what it sees, and when, into `SEEN`; the world answers in an order where giving
something at once would be wrong, or right but at another time. A replay sees what the live run saw (INV-10)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.workflow.steps import Ledger, double
from workflow import actor, current, wait_event, workflow
from workflow.context import SURFACE
from workflow.errors import Stall
from workflow.replay import Track, replay
from workflow.testing import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Callable

    from workflow.history import Input

SEEN: list[Any] = []


def see(what: Any) -> None:
    SEEN.append((what, current().now().timestamp()))


def seen_by(run: Rehearsal) -> list[Any]:
    """What a replay of the run's records sees."""
    SEEN.clear()
    program = replay(run.definition, run.instance_id, run.records, SURFACE)
    program.close()
    return list(SEEN)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many inputs were given at once, by their kind."""
    counted: Counter[str] = Counter()
    original = Track.pass_to

    def pass_to(self: Track, kind: str, name: str) -> Input | None:
        item = original(self, kind, name)
        counted[kind] += item is not None
        return item

    monkeypatch.setattr(Track, "pass_to", pass_to)
    return counted


@workflow
async def line() -> int:
    """One thing after the other."""
    total = 0
    for number in range(10):
        total += await double(number)
        see(total)
        total += await actor(Ledger, "a").book(1)
        see(await wait_event("go"))
        await asyncio.sleep(1)
        see("slept")
    return total


def answer_all(run: Rehearsal) -> None:
    for number in range(10):
        for kind in (run.activities, run.calls):
            run.now_ms += 5
            run.complete(next(iter(kind)), number)
        run.now_ms += 5
        run.event("go", number)
        run.advance()


def test_a_straight_line_is_given_everything_at_once(passed: Counter[str]) -> None:
    """But the timers, which are asyncio's affair."""
    SEEN.clear()
    run = Rehearsal(line)
    answer_all(run)
    live = list(SEEN)
    assert seen_by(run) == live
    assert passed == {"done": 20, "event": 10}


def test_a_difference_is_found_where_it_is() -> None:
    """Also in a turn that was never waited for: the stall names the command and the line."""
    run = Rehearsal(line)
    answer_all(run)
    position = next(i for i, r in enumerate(run.records) if i > 8 and '"call"' in r.commands)
    run.records[position] = run.records[position]._replace(commands=run.records[position].commands.replace("book", "x"))
    with pytest.raises(Stall, match=r"recorded is .*\bx\b.*test_passing.py"):
        replay(run.definition, run.instance_id, run.records, SURFACE)


@workflow
async def two_wait_for_one_event() -> None:
    async def one(name: str) -> None:
        see((name, await wait_event("go")))

    async with asyncio.TaskGroup() as group:
        group.create_task(one("first"))
        group.create_task(one("second"))


def both_events(run: Rehearsal) -> None:
    run.event("go", 1)
    run.event("go", 2)


@workflow
async def no_time_to_wait() -> None:
    """The event comes in the next turn; with a timeout of zero that is too late."""
    try:
        see(await wait_event("go", timeout=0))
    except TimeoutError:
        see("nothing yet")
    see(await wait_event("go"))


def one_event(run: Rehearsal) -> None:
    run.event("go", 1)


@workflow
async def cancels_itself() -> None:
    """A task that is cancelled is so at its next wait, whatever is recorded next."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        see(await double(1))
    except asyncio.CancelledError:
        task.uncancel()
        see("cancelled")
    see(await double(2))


def late_answer(run: Rehearsal) -> None:
    run.turn(("done", "cancels_itself.double", 2))
    run.complete("cancels_itself.double[2]", 4)


@workflow
async def cancels_itself_before_an_event() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        see(await wait_event("go"))
    except asyncio.CancelledError:
        task.uncancel()
        see("cancelled")
    see(await wait_event("go"))


@workflow
async def another_only_looks_on() -> None:
    """It commands nothing, and is to run before the next turn."""

    async def onlooker() -> None:
        see("onlooker")

    for number in range(3):
        looking = asyncio.create_task(onlooker())
        see(await double(number))
        await looking


@workflow
async def looks_for_an_event() -> None:
    see(await double(1))
    see(await double(2))
    try:
        see(await wait_event("y", timeout=0))
    except TimeoutError:
        see("no y")


def event_with_the_answer(run: Rehearsal) -> None:
    run.turn(("done", "looks_for_an_event.double", 1), ("event", "y", 1))
    run.complete("looks_for_an_event.double[2]", 2)


def event_with_the_next_answer(run: Rehearsal) -> None:
    run.complete("looks_for_an_event.double", 1)
    run.turn(("done", "looks_for_an_event.double[2]", 2), ("event", "y", 1))


def event_while_paused(run: Rehearsal) -> None:
    run.turn(("paused",))
    run.complete("looks_for_an_event.double", 1)
    run.event("y", 1)
    run.turn(("resumed",))
    run.complete("looks_for_an_event.double[2]", 2)


@workflow
async def others_are_ready() -> None:
    """The first to ask must not go on before the others have run."""

    async def part(number: int) -> None:
        see(("begins", number))
        see(("ends", number, await double(number)))

    await asyncio.gather(*(part(number) for number in range(3)))


def in_their_order(run: Rehearsal) -> None:
    for step in list(run.activities):
        run.complete(step, 0)


def together(run: Rehearsal) -> None:
    """Several inputs in one turn."""
    run.turn(*[("done", step, 0) for step in run.activities])


@workflow
async def a_paused_line() -> None:
    for number in range(3):
        see(await double(number))


def pause_in_the_middle(run: Rehearsal) -> None:
    run.complete(next(iter(run.activities)), 1)
    run.turn(("paused",))
    run.complete(next(iter(run.activities)), 2)
    run.turn(("resumed",))
    run.complete(next(iter(run.activities)), 3)


def in_turn(run: Rehearsal) -> None:
    for _ in range(3):
        run.complete(next(iter(run.activities)), 1)


def answered_twice(run: Rehearsal) -> None:
    for _ in range(3):
        step = next(iter(run.activities))
        run.complete(step, 1)
        run.turn(("done", step, 7))


@workflow
async def limited_wait() -> None:
    """A timer stands beside what is awaited, and is cancelled in the turn that follows."""
    for number in range(3):
        async with asyncio.timeout(10):
            see(await double(number))
        try:
            see(await asyncio.wait_for(double(number), 10))
        except TimeoutError:
            see("late")


def in_time_and_late(run: Rehearsal) -> None:
    for _ in range(5):
        run.now_ms += 20_000  # later than the timer, which has not fired
        run.complete(next(iter(run.activities)), 1)
    run.advance()


@pytest.mark.parametrize(
    ("definition", "world"),
    [
        (two_wait_for_one_event, both_events),
        (no_time_to_wait, one_event),
        (cancels_itself, late_answer),
        (others_are_ready, in_their_order),
        (others_are_ready, together),
        (a_paused_line, pause_in_the_middle),
        (a_paused_line, answered_twice),
        (cancels_itself_before_an_event, one_event),
        (another_only_looks_on, in_turn),
        (looks_for_an_event, event_with_the_answer),
        (looks_for_an_event, event_with_the_next_answer),
        (looks_for_an_event, event_while_paused),
        (limited_wait, in_time_and_late),
    ],
    ids=lambda value: value.__name__ if hasattr(value, "__name__") else None,
)
def test_the_code_sees_the_same(definition: Any, world: Callable[[Rehearsal], None]) -> None:
    """Live, and after every turn in a replay."""
    SEEN.clear()
    run = Rehearsal(definition)
    world(run)
    live = list(SEEN)
    assert live
    assert run.status == "COMPLETED"
    for count in range(1, len(run.records) + 1):
        SEEN.clear()
        replay(definition, run.instance_id, run.records[:count], SURFACE).close()
        assert live[: len(SEEN)] == SEEN
    assert live == SEEN
