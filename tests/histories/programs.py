"""Workflows whose runs are kept in ``tests/histories/<version>/``. Once recorded, a program here never changes.

A new feature of the engine gets a new program; `record.py` writes histories of the ones that have none yet.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from workflow import ActivityFailed, activity, actor, current, send, set_status, wait_event, workflow

if TYPE_CHECKING:
    from collections.abc import Callable

    from workflow.testing import Rehearsal


@activity
async def work(name: str, number: int) -> int:
    return number


@workflow
async def sequence(number: int) -> int:
    for _ in range(3):
        number += await work("sequence", number)
    return number


@workflow
async def fan_out(width: int) -> list[int]:
    first = await asyncio.gather(*(work("gather", n) for n in range(width)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work("group", n)) for n in first]
    return [task.result() for task in tasks]


@workflow
async def timers(_: None) -> str:
    await asyncio.sleep(60)
    try:
        async with asyncio.timeout(30):
            await work("slow", 1)
    except TimeoutError:
        return current().now().isoformat()
    return "in time"


@workflow
async def events(_: None) -> list[Any]:
    got: list[Any] = [await wait_event("Go")]
    try:
        got.append(await wait_event("go", timeout="10s"))
    except TimeoutError:
        got.append("late")
    return got


@workflow
async def actors_and_status(_: None) -> int:
    set_status({"phase": "calling"})
    total: int = await actor("Account", "a").deposit(5)
    send(actor("Audit", "log").noted, text="deposited", amount=5)
    set_status("done")
    return total


@workflow
async def failures(_: None) -> str:
    try:
        await work("fails", 1)
    except ActivityFailed as error:
        set_status(error.error_type)
    raise LookupError("in the end")


@workflow
async def randomness(_: None) -> list[str]:
    before = [str(current().uuid4()), str(current().random())]
    await work("between", current().random.randint(1, 100))
    return [*before, str(current().uuid4())]


@workflow
async def races(_: None) -> int:
    done, pending = await asyncio.wait(
        [asyncio.create_task(work("race", n)) for n in range(3)], return_when=asyncio.FIRST_COMPLETED
    )
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return sum(task.result() for task in done)


def _answer_all(run: Rehearsal) -> None:
    """Open steps are answered last first, until the workflow has ended."""
    while run.activities:
        step = list(run.activities)[-1]
        run.complete(step, run.activities[step][1][1])


def _play_timers(run: Rehearsal) -> None:
    run.advance()
    run.advance()


def _play_events(run: Rehearsal) -> None:
    run.turn(("paused",))
    run.event("gO", {"number": 1})
    run.turn(("resumed",))
    run.advance()


def _play_actors(run: Rehearsal) -> None:
    run.complete(next(iter(run.calls)), 5)


def _play_failures(run: Rehearsal) -> None:
    step = next(iter(run.activities))
    run.turn(("retry", step, 2, run.now_ms + 1000, "OSError", "first"))
    run.turn(("again", step, 2))
    run.fail(step, "OSError", "second")


PROGRAMS: dict[str, tuple[Any, Any, Callable[[Rehearsal], None]]] = {
    "sequence": (sequence, 1, _answer_all),
    "fan_out": (fan_out, 4, _answer_all),
    "timers": (timers, None, _play_timers),
    "events": (events, None, _play_events),
    "actors_and_status": (actors_and_status, None, _play_actors),
    "failures": (failures, None, _play_failures),
    "randomness": (randomness, None, _answer_all),
    "races": (races, None, _answer_all),
}
"""Name -> (workflow, input, how the world answers)."""
