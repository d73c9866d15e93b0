"""Stalled: code that no longer fits its history is noticed at the first difference, and can be mended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.workflow.steps import charge, double
from workflow import wait_event, workflow
from workflow.errors import Stall
from workflow.history import Record, encode_inputs
from workflow.replay import replay
from workflow.testing import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Sequence


@workflow(name="job")
async def original(number: int) -> int:
    number = await double(number)
    await asyncio.sleep(60)
    return await double(number)


@workflow(name="job")
async def other_activity(number: int) -> int:
    await charge("a", 1)
    return number


@workflow(name="job")
async def other_arguments(number: int) -> int:
    number = await double(number + 1)
    return number


@workflow(name="job")
async def fewer_commands(number: int) -> int:
    await wait_event("go")
    return number


@workflow(name="job")
async def more_commands(number: int) -> int:
    await asyncio.gather(double(number), charge("a", 1))
    return number


@pytest.mark.parametrize("changed", [other_activity, other_arguments, fewer_commands, more_commands])
def test_difference_is_named(changed: Any) -> None:
    """The first differing command stalls, with the command, the recorded one and the source line."""
    run = Rehearsal(original, 1)
    run.complete("original.double", 2)
    with pytest.raises(Stall) as caught:
        replay(changed, run.instance_id, run.records)
    assert caught.value.kind == "NondeterminismError"
    assert "original.double" in caught.value.message
    assert "test_stall.py:" in caught.value.message


@workflow(name="job")
async def sleeps_beside(number: int) -> None:
    await asyncio.gather(asyncio.sleep(60), double(number))


@workflow(name="job")
async def sleeps_twice(_: int) -> None:
    await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))


def test_a_task_of_asyncio_s_own_coroutine_has_a_step_that_stays() -> None:
    """No function of the user's is under way in it. Its name is a wire format, so none of ours is in it; the line that
    is told is the user's."""
    run = Rehearsal(sleeps_beside, 1)
    assert '"sleep>asyncio.sleep"' in run.records[0].commands
    with pytest.raises(Stall) as caught:
        replay(sleeps_twice, run.instance_id, run.records)
    line = sleeps_twice.function.__code__.co_firstlineno + 2
    assert f"{__file__}:{line}" in caught.value.message


def test_stalled_instance_goes_on_with_mended_code() -> None:
    """Inputs that come while stalled are kept, and applied once the code replays again."""
    run = Rehearsal(original, 1)
    run.drop()
    good, run.definition = run.definition, other_activity
    with pytest.raises(Stall):
        replay(run.definition, run.instance_id, run.records)
    run.records.append(
        Record(run.now_ms, encode_inputs([("stalled", "NondeterminismError", "x"), ("done", "original.double", 2)]), "")
    )
    run.summary.apply(run.records[-1])
    assert run.status == "STALLED"
    run.definition = good
    run.turn(("recovered",))
    assert (run.status, list(run.timers)) == ("RUNNING", ["original.sleep"])
    run.advance()
    run.complete("original.double[2]", 4)
    assert run.output == 4


@workflow
async def stuck(_: None) -> None:
    await asyncio.Event().wait()


@workflow
async def spins(_: None) -> None:
    while True:  # noqa: ASYNC110
        await asyncio.sleep(0)


def test_waiting_for_nothing_stalls() -> None:
    """Code that waits for something nobody can bring about is stalled, with the line it waits at."""
    run = Rehearsal(stuck)
    assert run.stall is not None
    assert run.stall[0] == "StuckWorkflow"
    assert run.stall[1].endswith(f"waiting at {__file__}:{stuck.function.__code__.co_firstlineno + 2}")


def test_spinning_code_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that never comes to rest is stopped by the watchdog instead of blocking its host."""
    monkeypatch.setattr("workflow.loop.SPIN_LIMIT", 1000)
    run = Rehearsal(spins)
    assert run.stall is not None
    assert run.stall[0] == "StuckWorkflow"


def test_newer_history_is_not_replayed() -> None:
    """A history of a later format version stalls rather than being misread."""
    run = Rehearsal(original, 1)
    newer: Sequence[Record] = [run.records[0]._replace(inputs=run.records[0].inputs.replace('"v":1', '"v":2'))]
    with pytest.raises(Stall, match="version 2"):
        replay(original, run.instance_id, newer)


def test_layout_edits_do_not_matter() -> None:
    """Steps are lexical places, not lines: comments, blank lines and renamed locals change nothing."""

    @workflow(name="job")
    async def original(value: int) -> int:
        # a new comment

        doubled = await double(value)
        await asyncio.sleep(60)
        return await double(doubled)

    run = Rehearsal(_module_original(), 1)
    run.complete("original.double", 2)
    program = replay(original, run.instance_id, run.records)
    program.close()


def _module_original() -> Any:
    return original
