"""A workflow to be simulated: three activities, a sleep, an event, a call and a message, each with a token to count.
Half of them have a long activity beside all that, so that the others come and go while one is always under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson

from tests.simulation.programs import Tally
from tests.simulation.simloop import current_node
from tests.simulation.world import Op, Violation, World
from workflow import RetryPolicy, activity, activity_info, actor, send, wait_event, workflow
from workflow.errors import ActivityFailed, Stall
from workflow.history import Record
from workflow.replay import replay

if TYPE_CHECKING:
    from tests.simulation.world import Life

PLACE = "w"
STREAM = f"Tally/{PLACE}"
WORLD: ContextVar[World] = ContextVar("simulated_world")
"""Activities are plain functions; this is where they find themselves."""

_RESULT = ["1", "2", "3"]


@activity(retry=RetryPolicy(max_attempts=0, initial_interval=0.1, backoff=1.5, max_interval=1.0))
async def mark(token: str, step: str) -> str:
    """Takes effect once, however often it is run: `activity_id` is the idempotency key. Now and then it fails then."""
    world = WORLD.get()
    client = world.life_of(current_node()).host.client
    tally: Any = client.actor(Tally, PLACE, idempotency_key=activity_info().activity_id)
    await tally.add(f"{token}.{step}")
    if world.chance(0.2):
        raise ConnectionError("failed after its effect")
    return step


@activity(retry=RetryPolicy(max_attempts=2, initial_interval=0.1, non_retriable=(ValueError,)))
async def refuse(token: str) -> None:
    raise ValueError(token)


@activity
async def dwell() -> None:
    await asyncio.sleep(4.0)


@workflow
async def errand(token: str) -> list[str]:
    dwelling = asyncio.create_task(dwell()) if crc32(token.encode()) % 2 else None
    first = await mark(token, "1")
    await asyncio.sleep(0.4)
    second, third = await asyncio.gather(mark(token, "2"), mark(token, "3"))
    try:
        heard = await wait_event("go", str, timeout=2.0)
    except TimeoutError:
        heard = "nothing"
    tally = actor(Tally, PLACE)
    await tally.add(f"{token}.called")
    send(tally.add, f"{token}.sent")
    if dwelling is not None:
        await dwelling
    try:
        await refuse(token)
    except ActivityFailed:
        return [first, second, third, heard]
    return []


TOKENS = (".1", ".2", ".3", ".called", ".sent")


async def run_errands(world: World, random: Any, name: str) -> None:
    """A client that starts workflows and signals some of them."""
    for _ in range(2):
        token = world.new_token(name)
        await world.start_workflow(token)
        await asyncio.sleep(random.random() * 2)
        if random.random() < 0.5:
            await world.signal(token, "go", "went")


async def check_errands(world: World, life: Life) -> None:
    """INV-10: the history of every instance replays to the same commands; INV-8, INV-9: each ends, every step of it has
    taken effect once."""
    started = [op for op in world.history if op.method == "$workflow"]
    counted = Counter((await world.state_of(life, STREAM)).get("tokens", ()))
    for op in started:
        stream = f"mecha.workflow/{op.token}"
        state = await world.state_of(life, stream)
        if not state.get("status"):
            if op.outcome == "ok":
                raise Violation(f"INV-7: {op} was acknowledged, there is no such workflow")
            _expect(op, counted, 0)
            continue
        if (
            state["status"] != "COMPLETED"
            or state["output"][:3] != _RESULT
            or state["output"][3] not in ("went", "nothing")
        ):
            raise Violation(f"INV-9: {op} ended as {state}")
        _expect(op, counted, 1)
        await _check_replay(world, op.token, stream)


def _expect(op: Op, counted: Counter[str], want: int) -> None:
    for suffix in TOKENS:
        if (found := counted[op.token + suffix]) != want:
            raise Violation(f"INV-8: {op}: step {suffix} took effect {found} times, not {want}")


async def _check_replay(world: World, instance_id: str, stream: str) -> None:
    recorded = [orjson.loads(event.data) for event in await world.truth.events(stream)]
    try:
        replay(errand, instance_id, [Record(each["t"], each["i"], each["c"]) for each in recorded]).close()
    except Stall as stall:
        raise Violation(f"INV-10: {instance_id} does not replay: {stall.kind}: {stall.message}") from stall
