"""Threads for plain activities: bounded, used again, and nobody waits for them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from workflow.threads import Threads


async def run(threads: Threads, gate: threading.Event, seen: list[threading.Thread]) -> None:
    await threads.acquire()
    await threads.run(lambda: seen.append(threading.current_thread()) or gate.wait(10))  # type: ignore[func-returns-value]  # None, so `or`


async def test_an_idle_thread_is_used_again() -> None:
    """No thread is made while one is idle; all of them are daemons, for which no interpreter waits."""
    threads, gate, seen = Threads(3, "t"), threading.Event(), list[threading.Thread]()
    gate.set()
    for _ in range(5):
        await run(threads, gate, seen)
    assert len(set(seen)) == 1
    gate.clear()
    waiting = [asyncio.create_task(run(threads, gate, seen)) for _ in range(9)]
    while len(seen) < 8:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(set(seen)) == 3
    assert len(seen) == 8, "no more at a time than there are threads"
    gate.set()
    await asyncio.gather(*waiting)
    assert len(set(seen)) == 3
    assert all(thread.daemon for thread in seen)
    threads.close()
    for thread in set(seen):
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_a_busy_thread_outlives_who_waits_for_it() -> None:
    """Cancelling the wait leaves the thread busy until its work ends; only then it is free again."""
    threads, gate, seen = Threads(1, "t"), threading.Event(), list[threading.Thread]()
    given_up = asyncio.create_task(run(threads, gate, seen))
    while not seen:  # noqa: ASYNC110
        await asyncio.sleep(0)
    given_up.cancel()
    with suppress(asyncio.CancelledError):
        await given_up
    next_ = asyncio.create_task(run(threads, gate, seen))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(seen) == 1
    gate.set()
    await next_
    assert len(seen) == 2
    threads.close()


async def test_whoever_hears_goes_on_before_whoever_waits_for_a_thread() -> None:
    """What a job has brought about is known when the next one is let in."""
    threads, order = Threads(1, "t"), list[str]()
    await threads.acquire()
    outcome = threads.run(lambda: 1)
    outcome.add_done_callback(lambda _: order.append("heard"))

    async def next_one() -> None:
        await threads.acquire()
        order.append("let in")

    await next_one()
    assert order == ["heard", "let in"]
    threads.release()
    threads.close()


def test_a_thread_that_ends_after_its_loop_is_not_heard() -> None:
    """Its work is done, and there is nobody to tell."""
    gate, seen = threading.Event(), list[threading.Thread]()

    async def leave_behind() -> None:
        threads = Threads(1, "t")
        leaving = asyncio.create_task(run(threads, gate, seen))
        while not seen:  # noqa: ASYNC110
            await asyncio.sleep(0)
        leaving.cancel()
        threads.close()

    asyncio.run(leave_behind())
    gate.set()
    seen[0].join(10)
    assert not seen[0].is_alive()
