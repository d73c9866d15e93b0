"""Inputs that come too late, twice, or at a time that was before: each is told by what it names, and changes nothing.

The instance's own methods are called as the outbox, reminders and activities call them.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from actors.clock import SystemClock
from workflow import RetryPolicy, WorkflowFailed, activity, activity_info, wait_event, workflow

if TYPE_CHECKING:
    from tests.workflow.conftest import World
    from workflow import WorkflowClient

ID = "late"


async def tell(world: World, method: str, *args: Any) -> None:
    assert world.host is not None
    await world.host.client.call("mecha.workflow", ID, method, json.dumps(args).encode())


async def recorded(client: WorkflowClient) -> int:
    return len(await client.history(ID))


async def test_outcomes_of_another_execution_are_dropped(world: World) -> None:
    """An id may be used again: what an earlier run has asked for is not an answer to this one."""

    @workflow
    async def asks_and_sleeps(_: None) -> list[Any]:
        return [await asyncio.gather(never(), asyncio.sleep(3600, "slept"))]

    @activity
    async def never() -> str:
        return await asyncio.Event().wait()  # type: ignore[return-value]  # never gets there

    client = await world.start([asks_and_sleeps])
    await client.start(asks_and_sleeps, instance_id=ID)
    execution = (await client.get(ID)).execution_id
    (first,) = await client.history(ID)
    step, timer = (command[1] for command in sorted(first.commands))
    for former in ("former", execution + "x", ""):
        await tell(world, "replied", f"{former} {step}", "wrong", None)
        await tell(world, "timer_fired", f"fired {former} {timer}")
        await tell(world, "timer_fired", f"again {former} 2:0 {step}")
        await tell(world, "timer_fired", f"start {former} -")
    assert await recorded(client) == 1
    await tell(world, "replied", f"{execution} {step}", "right", None)
    await tell(world, "timer_fired", f"fired {execution} {timer}")
    assert await client.wait(ID, 10) == [["right", "slept"]]


async def test_the_failure_of_an_attempt_counts_once(world: World) -> None:
    """Its report may come twice; by the second time the next attempt is what is waited for."""

    second = asyncio.Event()

    @activity(retry=RetryPolicy(max_attempts=2, initial_interval=0.01))
    async def fails() -> None:
        if activity_info().attempt == 2:
            second.set()
            await asyncio.Event().wait()
        raise LookupError("once")

    @workflow
    async def tries(_: None) -> None:
        await fails()

    client = await world.start([tries])
    await client.start(tries, instance_id=ID)
    execution = (await client.get(ID)).execution_id
    first = (await client.history(ID))[0]
    step = first.commands[0][1]
    await asyncio.wait_for(second.wait(), 10)
    before = await recorded(client)
    for attempt in (1, 3):
        await tell(world, "activity_failed", "", execution, step, attempt, ["LookupError", "again", ""], -1)
    assert await recorded(client) == before
    await tell(world, "activity_failed", "", execution, step, 2, ["LookupError", "at last", ""], -1)
    with pytest.raises(WorkflowFailed, match="at last"):
        await client.wait(ID, 10)


class MovedClock(SystemClock):
    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


async def test_time_does_not_go_back_when_a_clock_does(world: World) -> None:
    """Neither what the code sees nor what is recorded, and a replay sees the same (INV-10)."""

    @workflow
    async def watches(_: None) -> list[float]:
        loop = asyncio.get_running_loop()
        seen = [loop.time()]
        for _turn in range(2):
            await wait_event("go")
            seen.append(loop.time())
        return seen

    clock = MovedClock()
    client = await world.start([watches], clock=clock)
    await client.start(watches, instance_id=ID)
    clock.ahead_ms = -60_000
    await client.raise_event(ID, "go")
    await client.raise_event(ID, "go")
    seen = await client.wait(ID, 10)
    assert seen == sorted(seen)
    times = [record.time_ms for record in await client.history(ID)]
    assert times == sorted(times)
    assert [time_ms / 1000 for time_ms in times] == seen


async def test_a_stalled_instance_is_not_tried_with_each_input(world: World) -> None:
    """Replay may be long, and the code has not changed: once in an activation, and when somebody says `resume`."""
    runs: list[int] = []

    @workflow(name="job")
    async def before(_: None) -> None:
        await wait_event("one")
        await wait_event("other")

    @workflow(name="job")
    async def after(_: None) -> None:
        runs.append(1)
        await asyncio.sleep(1)

    client = await world.start([before])
    await client.start(before, instance_id=ID)
    await world.stop()
    client = await world.start([after])
    for _ in range(3):
        await client.raise_event(ID, "one")
    assert (await client.get(ID)).status == "STALLED"
    assert len(runs) == 1
    await client.resume(ID)
    assert len(runs) == 2
