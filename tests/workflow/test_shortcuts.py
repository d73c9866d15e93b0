"""The ways past a turn, a task or a load give what the long way gives."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from typing import TYPE_CHECKING

import pytest

from actors import InvalidState, definition_of
from actors.state import apply_events, fold, new_instance
from statestores.model import Event, StreamState
from workflow import (
    ActivityFailed,
    InstanceNotFound,
    InvalidWorkflowInput,
    activity,
    activity_info,
    client,
    wait_event,
    workflow,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.workflow.conftest import World

SEEN: list[tuple[str, int]] = []


@activity
async def note(word: str) -> str:
    """Cannot suspend: runs without a task."""
    info = activity_info()
    SEEN.append((info.instance_id, info.attempt))
    return word + word


@activity
async def refuse(word: str) -> str:
    raise LookupError(word)


@workflow
async def noting(word: str) -> str:
    return await note(word)


@workflow
async def refused(word: str) -> str:
    try:
        return await refuse(word)
    except ActivityFailed as error:
        return f"{error.failure.type}: {error.failure.message}"


@workflow
async def patient(word: str) -> str:
    return str(await wait_event("go")) + word


def test_which_activities_run_without_a_task() -> None:
    """Only a coroutine function whose code holds nothing that waits is run in one go."""

    @activity
    async def waits() -> None:
        await asyncio.sleep(0)

    @activity
    def plain() -> None:
        pass

    assert note.is_quick
    assert not waits.is_quick
    assert not plain.is_quick


async def test_an_activity_without_a_task_is_an_activity(world: World) -> None:
    """It knows its instance, gives its result, and its failure is the workflow's to handle."""
    runs = await world.start([noting, refused])
    SEEN.clear()
    instance_id = await runs.start(noting, "a")
    assert await runs.wait(instance_id) == "aa"
    assert [(instance_id, 1)] == SEEN
    assert await runs.run(refused, "b") == "LookupError: b"


async def test_an_id_that_was_not_fresh_after_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that skips loading cannot overwrite what is recorded: the store refuses it (INV-1), and it starts anew as
    any start under a used id does."""
    runs = await world.start([noting])
    assert await runs.run(noting, "a", instance_id="used") == "aa"
    await world.stop()
    runs = await world.start([noting])  # nothing of it is in memory
    monkeypatch.setattr(client, "_new_id", lambda: "used")
    assert await runs.start(noting, "b") == "used"
    assert await runs.wait("used") == "bb"
    entries = await runs.history("used")
    assert [entry.version for entry in entries] == [1, 2], "the former history went before the new one began"


async def test_who_waits_here_hears_of_a_purge(world: World) -> None:
    """To wait for an instance that is removed meanwhile ends, and says so."""
    runs = await world.start([patient])
    instance_id = await runs.start(patient, "x")
    waiting = asyncio.create_task(runs.wait(instance_id))
    await asyncio.sleep(0)
    await runs.purge(instance_id, force=True)
    with pytest.raises(InstanceNotFound):
        await waiting


async def test_who_waits_here_hears_of_the_end(world: World) -> None:
    """Many wait for one end, one of them gives up; the others are told, and nothing is left behind."""
    runs = await world.start([patient])
    instance_id = await runs.start(patient, "x")
    waiting = [asyncio.create_task(runs.wait(instance_id)) for _ in range(3)]
    with pytest.raises(TimeoutError):
        await runs.wait(instance_id, timeout=0.01)
    waiting[0].cancel()
    await runs.raise_event(instance_id, "go", "a")
    assert await asyncio.gather(*waiting[1:]) == ["ax", "ax"]
    assert runs._deployment.waiters == {}


async def test_who_waits_here_hears_that_the_host_is_gone(world: World) -> None:
    """Nobody waits for a host that does nothing any more."""
    runs = await world.start([patient])
    instance_id = await runs.start(patient, "x")
    waiting = asyncio.ensure_future(runs._deployment.wait_told(instance_id))
    await asyncio.sleep(0)
    await world.crash()
    assert await waiting == ""


async def test_an_input_is_still_checked(world: World) -> None:
    """Skipping the check for plain values skips it for those only that need none."""
    runs = await world.start([noting])
    with pytest.raises(InvalidWorkflowInput):
        await runs.start(noting, 5)


async def test_guarded_names_are_put_back(world: World) -> None:
    """The process has its clock and its hooks back, once the event loop has come round."""
    original = time.time
    runs = await world.start([noting])
    assert await runs.run(noting, "a") == "aa"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert time.time is original


async def test_async_generators_of_others_are_still_closed(world: World) -> None:
    """A generator outside of workflows that is dropped half way is closed by its event loop, as ever."""
    runs = await world.start([noting])
    assert await runs.run(noting, "a") == "aa"
    closed = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    async for _ in numbers():
        break
    gc.collect()
    async with asyncio.timeout(5):
        await closed.wait()
    assert sys.get_asyncgen_hooks().finalizer is not None
    with contextlib.suppress(StopAsyncIteration):
        await anext(numbers())


async def test_a_history_folded_at_once_is_the_history(world: World) -> None:
    """The many events of a load, applied together, leave what they leave applied one by one."""
    runs = await world.start([noting, patient])
    going_on = await runs.start(patient, "x")
    for number in range(5):
        await runs.raise_event(going_on, "other", number)
    ended = await runs.start(noting, "a")
    await runs.wait(ended)
    assert world.host is not None
    definition = definition_of(runs._type)
    assert definition is not None
    for instance_id in (going_on, ended):
        history = await world.store.journal.load(f"mecha.workflow/{instance_id}")
        at_once, one_by_one = new_instance(definition), new_instance(definition)
        fold(definition, at_once, history)
        apply_events(definition, one_by_one, history.events)
        for field in definition.fields:
            assert getattr(at_once, field.name) == getattr(one_by_one, field.name)
        assert at_once._summary.status == one_by_one._summary.status
    assert at_once._records is None, "an ended instance is not replayed"
    foreign = StreamState(1, None, [Event(1, "other", b"{}", 0, "t", "", "")])
    with pytest.raises(InvalidState):
        fold(definition, new_instance(definition), foreign)
