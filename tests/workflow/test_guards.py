"""What a replay cannot repeat is refused inside workflow code, named with its remedy, and left alone elsewhere."""

from __future__ import annotations

import asyncio
import datetime as datetime_module
import importlib
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from time import sleep as sleep_by_name
from time import time as time_by_name
from typing import TYPE_CHECKING, Any

import pytest

from tests.workflow.steps import double
from workflow import WorkflowGuardError, workflow
from workflow.testing import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED: dict[str, Callable[[], Any]] = {
    "time.time": lambda: time.time(),
    "time.monotonic": lambda: time.monotonic(),
    "time.sleep": lambda: time.sleep(0),
    "time.localtime": lambda: time.localtime(),
    "time.gmtime": lambda: time.gmtime(None),
    "time.ctime": lambda: time.ctime(),
    "time.strftime": lambda: time.strftime("%Y"),
    "random.random": lambda: random.random(),
    "random.Random": lambda: random.Random().random(),
    "random.Random.seed": lambda: random.Random(1).seed(),
    "random.Random.seed: a version, no seed": lambda: random.Random(1).seed(version=2),
    "random.Random.seed: None and a version": lambda: random.Random(1).seed(None, 2),
    "random.Random.seed: of the class": lambda: random.Random.seed(random.Random(1), a=None, version=2),
    "random.SystemRandom": lambda: random.SystemRandom().random(),
    "random.shuffle": lambda: random.shuffle([1, 2]),
    "secrets.token_hex": lambda: secrets.token_hex(),
    "uuid.uuid4": lambda: uuid.uuid4(),
    "os.urandom": lambda: os.urandom(4),
    "thread": lambda: threading.Thread(target=print).start(),
    "socket": lambda: socket.socket(),
    "open": lambda: open(os.devnull),  # noqa: SIM115
    "process": lambda: subprocess.run([sys.executable, "-c", ""], check=False),
    "executor": lambda: asyncio.get_running_loop().run_in_executor(None, print),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_workflow(name: str) -> None:
    """Each raises WorkflowGuardError, which the code may catch: the value never reached it."""
    act = REFUSED[name]

    @workflow
    async def guarded(_: None) -> str:
        try:
            act()
        except WorkflowGuardError as error:
            return str(error)
        return "nothing"

    run = Rehearsal(guarded)
    assert run.status == "COMPLETED"
    assert "use" in run.output or "@activity" in run.output


@pytest.mark.parametrize(
    "name",
    ["time.time", "time.ctime", "random.random", "random.Random", "uuid.uuid4", "os.urandom", "secrets.token_hex"],
)
def test_allowed_elsewhere(name: str) -> None:
    """Before, after and beside workflows everything is as it was."""
    REFUSED[name]()
    Rehearsal(harmless)
    REFUSED[name]()


def test_plain_functions_of_a_moment_or_a_seed_are_allowed() -> None:
    """They give the same again on replay: it is only without the argument that they look at the clock."""

    @workflow
    async def computes(_: None) -> list[Any]:
        generator = random.Random(7)
        generator.seed(a=8)
        drawn = generator.random()
        generator.seed(9, version=2)
        drawn += generator.random()
        return [*time.gmtime(0)[:3], time.strftime("%Y", time.gmtime(0)), drawn]

    assert Rehearsal(computes).output == [1970, 1, 1, "1970", random.Random(8).random() + random.Random(9).random()]


@workflow
async def harmless(_: None) -> None:
    await double(1)


def test_io_of_asyncio_is_refused() -> None:
    """Connections and subprocesses through asyncio name the activity as the remedy."""

    @workflow
    async def connects(_: None) -> str:
        try:
            await asyncio.open_connection("localhost", 1)
        except WorkflowGuardError as error:
            return str(error)
        return "nothing"

    assert "@activity" in Rehearsal(connects).output


def test_what_asyncio_is_refused_is_told_with_the_line_that_called_it() -> None:
    @workflow
    async def moves_on(_: None) -> None:
        await asyncio.to_thread(print)

    stall = Rehearsal(moves_on).stall
    assert stall is not None
    assert stall[1].endswith(f"({__file__}:{moves_on.function.__code__.co_firstlineno + 2})")


def test_other_threads_are_not_guarded() -> None:
    """While one thread steps a workflow, another may use the clock."""
    inside, done = threading.Event(), threading.Event()
    seen: list[Any] = []

    def other() -> None:
        inside.wait()
        try:
            seen.append(time.time())
            seen.append(random.random())
        except WorkflowGuardError as error:
            seen.append(error)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    @workflow
    async def steps(_: None) -> None:
        inside.set()
        done.wait(5)

    Rehearsal(steps)
    thread.join()
    assert [type(value) for value in seen] == [float, float]


def test_a_test_double_survives_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stood in a guarded place before a step stands there after it."""
    monkeypatch.setattr(time, "time", lambda: 42.0)
    Rehearsal(harmless)
    assert time.time() == 42.0


def test_imports_and_logging_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """An import inside the code, and logging with its timestamps, do no harm to replay."""
    import logging

    sys.modules.pop("colorsys", None)

    @workflow
    async def imports(_: None) -> str:
        logging.getLogger("tests").warning("hello")
        return str(importlib.import_module("colorsys").__name__)

    assert Rehearsal(imports).output == "colorsys"
    assert "hello" in caplog.text


@workflow
async def clock_by_name(_: None) -> float:
    await double(1)
    return time_by_name()


@workflow
async def sleep_imported(_: None) -> None:
    sleep_by_name(1)  # noqa: ASYNC251


@workflow
async def now_of_the_class(_: None) -> str:
    return datetime.now(UTC).isoformat()


def helper() -> str:
    return datetime_module.datetime.now(UTC).isoformat()


@workflow
async def now_in_a_helper(_: None) -> str:
    return helper()


@pytest.mark.parametrize(
    "definition", [clock_by_name, sleep_imported, now_of_the_class, now_in_a_helper], ids=lambda d: str(d.name)
)
def test_scan_finds_what_cannot_be_patched(definition: Any) -> None:
    """A clock imported by name and datetime.now stall the instance before it runs, with the line."""
    run = Rehearsal(definition)
    assert run.stall is not None
    assert run.stall[0] == "WorkflowGuardError"
    assert "test_guards.py:" in run.stall[1]
    assert "use" in run.stall[1]


@workflow
async def uncaught(_: None) -> float:
    await double(1)
    return time.time()


def test_uncaught_guard_error_stalls() -> None:
    """Nothing is lost by a forbidden call: the instance waits for better code, and names the line."""
    run = Rehearsal(uncaught)
    run.complete("uncaught.double", 2)
    assert run.status == "STALLED"
    assert run.stall is not None
    assert "time.time inside a workflow" in run.stall[1]
    assert "test_guards.py:" in run.stall[1]


@workflow
async def uncaught_in_a_group(_: None) -> None:
    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(double(1))
            group.create_task(uncaught.function(None))

    async with asyncio.TaskGroup() as group:
        group.create_task(inner())


def test_guard_error_within_groups_stalls() -> None:
    """As it would by itself, with the line, although a TaskGroup wraps it, and another does so again."""
    run = Rehearsal(uncaught_in_a_group)
    *_, step = [step for step, (_, arguments) in run.activities.items() if arguments == [1]]
    run.complete(step, 2)
    assert run.stall is not None
    assert run.stall[0] == "WorkflowGuardError"
    assert "time.time inside a workflow" in run.stall[1]
    assert "test_guards.py:" in run.stall[1]


def test_groups_of_other_errors_fail() -> None:
    """Only a guard's error is a matter of the code that is deployed."""

    async def fails() -> None:
        raise ValueError("no")

    @workflow
    async def groups(_: None) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())

    assert Rehearsal(groups).failure == ("ExceptionGroup", "unhandled errors in a TaskGroup (1 sub-exception)")


def test_a_logging_handler_may_look_at_the_world() -> None:
    """Whatever the application's own handler asks for, the workflow sees nothing of it; its own code stays guarded."""
    import logging

    class Handler(logging.Handler):
        seen: list[Any]

        def emit(self, record: logging.LogRecord) -> None:
            self.seen.append((time.time(), time.strftime("%Y"), random.random(), uuid.uuid4(), record.getMessage()))

    handler = Handler()
    handler.seen = []
    logger = logging.getLogger("tests.handled")
    logger.addHandler(handler)

    @workflow
    async def logs(_: None) -> float:
        logger.warning("hello")
        return time.time()

    try:
        run = Rehearsal(logs)
    finally:
        logger.removeHandler(handler)
    assert [message for *_, message in handler.seen] == ["hello"]
    assert run.stall is not None
    assert "time.time inside a workflow" in run.stall[1]


def test_logging_is_allowed_where_ray_has_been_imported(caplog: pytest.LogCaptureFixture) -> None:
    """Ray makes the records of `logging` itself, and asks for the time: a workflow that logs must not stall of it."""
    import logging

    import ray  # noqa: F401  # for what its import does

    @workflow
    async def logs(_: None) -> str:
        logging.getLogger("tests").warning("hello")
        return "logged"

    assert Rehearsal(logs).output == "logged"
    assert "hello" in caplog.text
