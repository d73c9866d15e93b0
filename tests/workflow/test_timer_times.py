"""When durable timers are due. The code counts in floats of seconds, the history in whole milliseconds."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workflow.steps import double
from workflow import wait_event, workflow
from workflow.testing import Rehearsal

NOWS = st.integers(1_000_000_000_000, 4_102_444_800_000)  # 2001 to 2100
WHOLE_MS = st.integers(1, 10**10)
SECONDS = st.floats(0.000_01, 1e7)


@workflow
async def each_way(seconds: float) -> None:
    """Every way in which asyncio arms a timer."""
    loop = asyncio.get_running_loop()
    loop.call_later(seconds, print)
    async with asyncio.timeout(seconds), asyncio.timeout_at(loop.time() + seconds), asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(seconds))
        group.create_task(asyncio.wait_for(double(1), seconds))
        group.create_task(wait_event("never", timeout=seconds))


@settings(deadline=None, max_examples=200, database=None)
@given(now_ms=NOWS, ms=WHOLE_MS)
def test_whole_milliseconds_are_exact(now_ms: int, ms: int) -> None:
    """A timer of n ms is due n ms after the turn that started it, whenever that was and whatever floats make of it."""
    run = Rehearsal(each_way, ms / 1000, now_ms=now_ms)
    assert list(run.timers.values()) == [now_ms + ms] * 6


@settings(deadline=None, max_examples=200, database=None)
@given(now_ms=NOWS, seconds=SECONDS)
def test_fractions_of_milliseconds_are_rounded_up(now_ms: int, seconds: float) -> None:
    """A timer is never due early by more than a float is off (2 us), nor late by a millisecond or more."""
    run = Rehearsal(each_way, seconds, now_ms=now_ms)
    for due_ms in run.timers.values():
        assert -0.002 <= due_ms - (now_ms + seconds * 1000) < 1.002


@workflow
async def naps(seconds: list[float]) -> float:
    loop = asyncio.get_running_loop()
    end = loop.time() + sum(seconds)
    for some in seconds:
        try:
            async with asyncio.timeout_at(end):
                await asyncio.sleep(some)
        except TimeoutError:
            break
    while loop.time() < end:  # noqa: ASYNC110  # what people write to be sure
        await asyncio.sleep(end - loop.time())
    return loop.time()


@settings(deadline=None, max_examples=200, database=None)
@given(now_ms=NOWS, seconds=st.lists(st.floats(0, 5), max_size=5), late_ms=st.lists(st.integers(0, 3), min_size=1))
def test_replay_starts_the_same_timers(now_ms: int, seconds: list[float], late_ms: list[int]) -> None:
    """INV-10: timers that hang on the loop's time are the same on replay, however late each one fired."""
    hot = Rehearsal(naps, seconds, now_ms=now_ms)
    cold = Rehearsal(naps, seconds, now_ms=now_ms, evict=True)
    for run in (hot, cold):
        for turn in range(200):
            if run.status != "RUNNING":
                break
            run.advance()
            run.now_ms += late_ms[turn % len(late_ms)]
    assert hot.status == "COMPLETED" or not any(late_ms)
    assert cold.records == hot.records


@workflow
async def for_ever(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except OverflowError as error:
        return str(error)
    return "woke up"


def test_timer_that_no_calendar_holds() -> None:
    """A timer beyond the year 9999 is refused where the code asks for it, with a reason, and the instance goes on."""
    assert "year 9999" in Rehearsal(for_ever, 1e12).output
    assert Rehearsal(for_ever, 1e11).status == "RUNNING"
