"""Random programs, random orders: a run evicted anywhere issues the commands it issued when it was not (INV-10)."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from tests.workflow.steps import charge, double
from workflow import ActivityFailed, current, set_status, wait_event, workflow
from workflow.replay import replay
from workflow.testing import Rehearsal

SEEDS = range(150)


async def piece(depth: int) -> int:
    """A random program. The workflow's own generator decides, so it is a different one for each execution."""
    choose = current().random
    shape = choose.randrange(11) if depth else choose.randrange(3)
    if shape == 0:
        return await double(choose.randrange(100))
    if shape == 1:
        await asyncio.sleep(choose.randrange(1, 100))
        return 1
    if shape == 2:
        try:
            return len(await charge("x", choose.randrange(100)))
        except ActivityFailed:
            return -1
    count = choose.randrange(1, 4)
    if shape == 8:
        async with asyncio.Semaphore(1):
            return sum([await piece(depth - 1) for _ in range(count)])
    if shape == 10:
        return await event_or_nothing(choose.choice("ab"), choose.randrange(100))
    parts = [piece(depth - 1) for _ in range(count)]
    if shape == 3:
        return sum(await asyncio.gather(*parts))
    if shape == 4:
        return sum([await done for done in asyncio.as_completed(parts)])
    if shape == 5:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
        return sum(task.result() for task in tasks)
    if shape == 6:
        return await first_wins(parts)
    if shape == 7:
        return await limited(parts, choose.randrange(1, 100))
    set_status(len(parts))
    results = await asyncio.gather(*(asyncio.shield(part) for part in parts), return_exceptions=True)
    return sum(r for r in results if isinstance(r, int))


async def event_or_nothing(name: str, seconds: int) -> int:
    try:
        return len(str(await wait_event(name, timeout=seconds)))
    except TimeoutError:
        return 0


async def first_wins(parts: list[Any]) -> int:
    done, pending = await asyncio.wait([asyncio.create_task(p) for p in parts], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return len(done)


async def limited(parts: list[Any], seconds: int) -> int:
    try:
        async with asyncio.timeout(seconds):
            return sum(await asyncio.gather(*parts))
    except TimeoutError:
        return -2


@workflow
async def random_program(_: None) -> int:
    return await piece(3)


def play(run: Rehearsal, choose: Random, *, turns: int = 200) -> None:
    """The world at random, until the workflow has ended."""
    for _ in range(turns):
        if run.status not in ("RUNNING", "SUSPENDED"):
            return
        moves = ["event"] if choose.random() < 0.2 or not (run.activities or run.timers) else []
        moves += ["done"] * len(run.activities) + ["timer"] * bool(run.timers)
        move = choose.choice(moves)
        if move == "event":
            run.event(choose.choice("aAbB"), choose.randrange(10))
        elif move == "timer":
            run.advance()
        elif choose.random() < 0.15:
            run.fail(choose.choice(sorted(run.activities)))
        else:
            step = choose.choice(sorted(run.activities))
            run.complete(step, "r" if run.activities[step][0] == "charge" else 3)
        if choose.random() < 0.05:
            run.turn(("resumed" if run.status == "SUSPENDED" else "paused",))


@pytest.mark.parametrize("seed", SEEDS)
def test_eviction_anywhere_changes_nothing(seed: int) -> None:
    """The same world gives the same history, whether the run stays in memory or is replayed for every turn."""
    hot = Rehearsal(random_program, execution=f"seed {seed}")
    play(hot, Random(seed))
    cold = Rehearsal(random_program, execution=f"seed {seed}", evict=True)
    play(cold, Random(seed))
    assert hot.stall is None
    assert cold.records == hot.records
    for length in range(1, len(hot.records) + 1, max(1, len(hot.records) // 5)):
        replay(random_program, "rehearsal", hot.records[:length]).close()
