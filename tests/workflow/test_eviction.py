"""Eviction discards the frames of a run: no user code runs, whatever it has prepared for its end, and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from runtime_api import Runtime
from tests.workflow.steps import double
from workflow import discard, wait_event, workflow
from workflow.errors import WorkflowEvicted
from workflow.testing import Rehearsal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

RAN: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    RAN.clear()
    yield
    gc.collect()


async def with_finally() -> None:
    try:
        await double(1)
    finally:
        RAN.append("finally")


async def with_awaiting_finally() -> None:
    try:
        await double(1)
    finally:
        await double(2)
        RAN.append("finally")


async def with_hostile_except() -> None:
    while True:
        try:
            await double(1)
        except BaseException:
            RAN.append("except")


async def with_context_manager() -> None:
    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        try:
            yield
        finally:
            RAN.append("manager")

    with manager():
        await double(1)


async def with_async_context_manager() -> None:
    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        try:
            yield
        finally:
            RAN.append("async manager")

    async with manager(), contextlib.AsyncExitStack() as stack:
        stack.callback(RAN.append, "stack")
        await stack.enter_async_context(manager())
        await double(1)


async def with_async_generator() -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            yield await double(1)
        finally:
            RAN.append("async generator")

    async for _ in numbers():
        await double(2)


async def with_generator() -> None:
    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            RAN.append("generator")

    for _ in numbers():
        await double(1)


async def with_tasks() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(with_finally())
        group.create_task(with_hostile_except())


async def with_shield_and_timeout() -> None:
    try:
        async with asyncio.timeout(60):
            await asyncio.shield(with_finally())
    finally:
        RAN.append("outer finally")


async def with_unstarted_coroutine() -> None:
    later = with_finally()
    await double(1)
    await later


async def inside_except_block() -> None:
    try:
        raise ValueError
    except ValueError:
        try:
            await wait_event("never")
        finally:
            RAN.append("finally")


HOSTILE: list[Callable[[], Awaitable[None]]] = [
    with_finally,
    with_awaiting_finally,
    with_hostile_except,
    with_context_manager,
    with_async_context_manager,
    with_async_generator,
    with_generator,
    with_tasks,
    with_shield_and_timeout,
    with_unstarted_coroutine,
    inside_except_block,
]


def test_frames_can_be_discarded_here() -> None:
    """On the Pythons we support, eviction frees memory rather than keeping frames alive."""
    assert discard.can_discard()


@pytest.mark.parametrize("can_discard", [True, False])
async def test_where_frames_are_kept_a_warning_says_so(
    can_discard: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a Python whose frames cannot be dropped, the start says once what that means and what to do; elsewhere, and
    without workflows, nothing."""
    if not can_discard:
        monkeypatch.setattr(discard, "_STATE_BYTE", None)
    async with Runtime([evicted_never], store="memory://"), Runtime([], store="memory://"):
        pass
    warnings = [record.getMessage() for record in caplog.records if record.name == "workflow"]
    assert len(warnings) == (0 if can_discard else 1)
    assert all("use CPython 3.11 to 3.13" in warning for warning in warnings)


@workflow
async def evicted_never(_: None) -> None: ...


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: str(body.__name__))
def test_eviction_runs_no_user_code(body: Callable[[], Awaitable[None]]) -> None:
    """Neither dropping a run nor collecting its remains runs finally, except, __exit__ or generator code."""

    @workflow
    async def evicted(_: None) -> None:
        await body()

    run = Rehearsal(evicted)
    run.drop()
    del run
    gc.collect()
    assert RAN == []


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: str(body.__name__))
def test_termination_runs_no_user_code(body: Callable[[], Awaitable[None]]) -> None:
    """Terminate is an eviction for good: the code gets no chance to object."""

    @workflow
    async def terminated(_: None) -> None:
        await body()

    run = Rehearsal(terminated)
    run.turn(("terminated", None))
    gc.collect()
    assert (run.status, RAN) == ("TERMINATED", [])


def test_a_run_that_is_let_go_of_is_evicted() -> None:
    """Forgetting a run without a word is as good as dropping it, in a reference cycle too."""

    @workflow
    async def forgotten(_: None) -> None:
        await with_finally()

    run = Rehearsal(forgotten)
    run.__dict__["cycle"] = run
    del run
    gc.collect()
    assert RAN == []


def test_finally_runs_when_the_code_really_ends() -> None:
    """In a run that goes on, finally is what it always was."""

    @workflow
    async def ends(_: None) -> None:
        await with_awaiting_finally()

    run = Rehearsal(ends, evict=True)
    run.complete("with_awaiting_finally.double", 2)
    assert RAN == []
    run.complete("with_awaiting_finally.double[2]", 4)
    assert (run.status, RAN) == ("COMPLETED", ["finally"])


class Held:
    """Something a frame holds."""


def test_eviction_releases_what_frames_held() -> None:
    """Objects in the locals of an evicted run are freed."""
    alive: list[weakref.ref[Held]] = []

    @workflow
    async def holds(_: None) -> None:
        held = Held()
        alive.append(weakref.ref(held))
        await double(1)
        assert held is not None

    run = Rehearsal(holds)
    run.drop()
    gc.collect()
    assert alive[0]() is None


def test_shared_generator_survives() -> None:
    """A generator that somebody else holds too is left alone."""

    def numbers() -> Iterator[int]:
        yield from range(10)

    shared = numbers()

    @workflow
    async def borrows(_: None) -> None:
        for _number in shared:
            await double(1)

    run = Rehearsal(borrows)
    run.drop()
    gc.collect()
    assert next(shared) == 1


def test_leftover_reference_cannot_command() -> None:
    """Code that outlives its run by a trick gets a signal that `except Exception` cannot swallow."""
    leaked: list[Any] = []

    @workflow
    async def leaks(_: None) -> None:
        leaked.append(asyncio.get_running_loop())
        await double(1)

    run = Rehearsal(leaks)
    run.drop()
    with pytest.raises(WorkflowEvicted):
        leaked[0].call_later(1, print)
