"""Activities that run in processes of their own, which die, are lost, and are cancelled."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.actors.worlds import until
from tests.workflow.apart import Processes, always_dies, begins, dies, is_cut_off, never_ends
from workflow import ActivityFailed, WorkflowTerminated, wait_event, workflow

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workflow.conftest import World

_WAIT_S = 60.0


@workflow
async def tries(plan: tuple[str, int]) -> int:
    return await dies(*plan)


@workflow
async def tries_in_vain(journal: str) -> str:
    try:
        await always_dies(journal)
    except ActivityFailed as failed:
        return f"{failed.error_type}: {failed.message}"
    return ""


@workflow
async def waits_in_vain() -> str:
    try:
        await is_cut_off()
    except ActivityFailed as failed:
        return failed.error_type
    return ""


@workflow
async def gives_up() -> str:
    running = asyncio.ensure_future(never_ends())
    await wait_event("enough")
    running.cancel()
    return "given up"


@workflow
async def waits() -> None:
    await never_ends()


# Neither the store nor eviction has a part in this.
pytestmark = pytest.mark.parametrize("world", ["memory-hot"], indirect=True)


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "begun")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def begun(processes: Processes) -> int:
    """The process of the one attempt, once there is one."""
    await until(lambda: processes.pids, timeout_s=_WAIT_S)
    return processes.pids[0]


async def test_a_process_that_dies_now_and_then_is_no_failure(world: World, journal: str) -> None:
    """The attempt is begun again in another process, which knows of the first; the policy is not asked."""
    client = await world.start([tries], [dies], elsewhere=Processes())
    assert await client.wait(await client.start(tries, (journal, 2)), timeout=_WAIT_S) == 3
    assert [line.split()[1:] for line in begins(journal)] == [["1", "False"], ["1", "True"], ["1", "True"]]


async def test_an_activity_that_kills_its_process_fails(
    world: World, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few repeats the attempt has failed, by a name and a message that say so, and the policy decides."""
    monkeypatch.setattr("workflow.activities._REPEAT_S", 0.01)
    client = await world.start([tries_in_vain], [always_dies], elsewhere=Processes())
    outcome = await client.wait(await client.start(tries_in_vain, journal), timeout=_WAIT_S)
    assert outcome == "WorkerDied: the process of always_dies has died 4 times; the last time: it ended with -9"
    assert [line.split()[1] for line in begins(journal)] == ["1"] * 4 + ["2"] * 4


async def test_a_lost_node_is_nobodys_failure(world: World, journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost with its node is run again, however often that happens."""
    monkeypatch.setattr("workflow.activities._REPEAT_S", 0.01)
    client = await world.start([tries], [dies], elsewhere=Processes(losses=5))
    assert await client.wait(await client.start(tries, (journal, 0)), timeout=_WAIT_S) == 6


async def test_a_timeout_ends_the_process(world: World) -> None:
    """An attempt that is over its time leaves nothing running."""
    processes = Processes()
    client = await world.start([waits_in_vain], [is_cut_off], elsewhere=processes)
    async with asyncio.timeout(_WAIT_S):
        while not processes.pids:  # a busy machine may need longer than the attempt is given to make a process
            assert await client.wait(await client.start(waits_in_vain)) == "ActivityTimeout"
    assert not is_running(processes.pids[0])


async def test_a_terminated_workflow_ends_the_process(world: World) -> None:
    """Nobody will hear its outcome, and others wait for what it holds."""
    processes = Processes()
    client = await world.start([waits], [never_ends], elsewhere=processes)
    instance = await client.start(waits)
    pid = await begun(processes)
    await client.terminate(instance)
    with pytest.raises(WorkflowTerminated):
        await client.wait(instance, timeout=_WAIT_S)
    await until(lambda: not is_running(pid), timeout_s=_WAIT_S)
    assert processes.pids == [pid]


async def test_a_purged_workflow_ends_the_process(world: World) -> None:
    """So does one that is removed while it runs."""
    processes = Processes()
    client = await world.start([waits], [never_ends], elsewhere=processes)
    instance = await client.start(waits)
    pid = await begun(processes)
    await client.purge(instance, force=True)
    await until(lambda: not is_running(pid), timeout_s=_WAIT_S)


async def test_a_step_that_is_cancelled_ends_the_process(world: World) -> None:
    """The code has given the step up."""
    processes = Processes()
    client = await world.start([gives_up], [never_ends], elsewhere=processes)
    instance = await client.start(gives_up)
    pid = await begun(processes)
    await client.raise_event(instance, "enough")
    assert await client.wait(instance, timeout=_WAIT_S) == "given up"
    await until(lambda: not is_running(pid), timeout_s=_WAIT_S)


async def test_a_stopped_host_ends_the_process(world: World) -> None:
    """What it has not finished its successor begins again."""
    processes = Processes()
    client = await world.start([waits], [never_ends], elsewhere=processes)
    await client.start(waits)
    pid = await begun(processes)
    await world.stop()
    await until(lambda: not is_running(pid), timeout_s=_WAIT_S)
