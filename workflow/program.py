"""A workflow run as a pure function of its history: inputs in, commands out. No disk, no network, no clock.

    run = Program(definition, instance_id)
    commands = run.apply(time_ms, inputs)          # one turn: feed the inputs, step until nothing is ready

Everything the code can observe comes from here: results in the order they were recorded, the time of the turn, random
numbers seeded with the execution id. So the same definition and the same records give the same commands (INV-10), see
`workflow.replay`.

A program whose turn raised anything is used up: `close` it and replay.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import os
import random
import sys
import traceback
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from actors.errortext import message_of, trace_of
from actors.period import MAX_MS
from statestores.codec import CodecError, decode, encode
from workflow.definition import read, restore
from workflow.errors import (
    ActivityFailed,
    ActorCallFailed,
    Failure,
    Stall,
    WorkflowEvicted,
    WorkflowGuardError,
)
from workflow.history import VERSION, Command, Input, Start, encode_commands
from workflow.loop import WorkflowLoop, site_name
from workflow.pieces import Raw, Unwritten, is_large

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Coroutine, Sequence

    from statestores.codec import Adapter
    from workflow.definition import Activity, Workflow
    from workflow.pieces import Data
    from workflow.replay import Track

_ROOT = os.path.dirname(os.path.dirname(__file__))
_PACKAGES = {os.path.join(_ROOT, name) for name in ("statestores", "actors", "workflow", "runtime_api")}
_PACKAGES.add(os.path.dirname(asyncio.__file__))
_LONGEST_TRACEBACK = 20_000
_WITHDRAWN: Command = ("",)
_CONTROL = frozenset({"paused", "resumed", "stalled", "recovered", "terminated"})
_UNPARK = frozenset({"resumed", "recovered"})

Place = tuple["types.CodeType", int]
"""A source position: code object and instruction offset. Lines are worked out only when somebody wants to read one."""


class Step:
    """A durable step under way. `arguments` (JSON, or the reference to it) are kept for further attempts of an
    activity; `attempt` counts them from 1, `retrying`: waits for the next."""

    __slots__ = ("arguments", "attempt", "call", "decoder", "future", "name", "retrying")

    def __init__(
        self,
        future: asyncio.Future[Any],
        decoder: Adapter[Any] | None,
        name: str,
        arguments: bytes | dict[str, Any],
        call: bool,
    ) -> None:
        self.future = future
        self.decoder = decoder
        self.name = name
        self.arguments = arguments
        self.call = call
        self.attempt = 1
        self.retrying = False

    def awaits(self, attempt: int) -> bool:
        """Whether that attempt is the one under way."""
        return self.attempt == attempt and not self.retrying


class Wanted(NamedTuple):
    """A large value that the code gets, and what will decode it."""

    reference: dict[str, Any]
    decoder: Adapter[Any] | None


class Outgoing(NamedTuple):
    """A large value that a command refers to. `reference` is empty until somebody has written the value and knows its
    digest: that takes time, which others have between the pieces of it."""

    reference: dict[str, Any]
    value: bytes | Unwritten


class Program:
    """One execution of a workflow, live in memory. Not thread-safe; between turns it may move to another thread."""

    def __init__(self, definition: Workflow[Any, Any], instance_id: str, surface: object = None) -> None:
        self.definition = definition
        self.instance_id = instance_id
        self.execution = ""
        self._random: DeterministicRandom | None = None
        # While it is replayed: where in its records.
        self.track: Track | None = None
        self.paused = False
        self.stalled = False
        self.finished = False
        # Traceback of the failure, when the code failed. Not part of the commands: it changes with every edit of the
        # code.
        self.traceback = ""
        self.loop = WorkflowLoop(self, _context_with(surface))  # type: ignore[abstract]  # made concrete in a loop
        # When it ended: timers and retry waits that nobody waits for any more.
        self.leftover: tuple[list[str], list[str]] = ([], [])
        self._start: Start | None = None
        self._root: asyncio.Task[Any] | None = None
        self._parked: deque[Input] = deque()
        self._steps: dict[str, Step] = {}
        self._events: dict[str, deque[Any]] = {}
        self._waiters: dict[str, deque[asyncio.Future[Any]]] = {}
        self._commands: list[Command] = []
        self._withdrawn = False
        self._places: list[Place | None] = []
        self._new_timers: dict[str, int] = {}
        # Large values. JSON of commands longer than `limit` is referred to; `outgoing`: what was in this turn, to be
        # taken from here, and the references filled in, before its commands are looked at. `_arrived`: what the inputs
        # of this turn refer to, by digest: JSON, and for one decoder perhaps what it says.
        self.limit = sys.maxsize
        self.outgoing: list[Outgoing] = []
        self._arrived: dict[str, tuple[Data, Adapter[Any] | None, Any]] = {}

    # -- from outside -------------------------------------------------------------------------------------------------

    def apply(self, time_ms: int, inputs: Sequence[Input]) -> list[Command]:
        """One turn. Raises `Stall` when the code cannot go on; the inputs are then still to be recorded, as parked."""
        outside = self.loop.enter()
        try:
            return self.apply_within(time_ms, inputs)
        finally:
            self.loop.leave(outside)

    def wanted(self, inputs: Sequence[Input]) -> list[Wanted]:
        """What is referred to of what a turn with these inputs may feed to the code: `supply` it before."""
        if self._parked and any(item[0] in _UNPARK for item in inputs):
            inputs = [*self._parked, *inputs]
        found: list[Wanted] = []
        start = self._start  # which may be parked, too
        for item in inputs:
            kind = item[0]
            if kind == "started":
                start = Start.of(item[1])
                if start.reference is not None and start.at_ms is None:
                    found.append(Wanted(start.reference, self.definition.input))
            elif kind == "begun":
                if start is not None and start.reference is not None:
                    found.append(Wanted(start.reference, self.definition.input))
            elif kind in ("done", "event") and len(item) > 3:
                step = self._steps.get(item[1]) if kind == "done" else None
                found.append(Wanted(item[3], None if step is None else step.decoder))
        return found

    def supply(self, wanted: Wanted, data: Data, value: Any = None) -> None:
        """For the next turn. `value`: what its decoder made of the JSON, if it was asked."""
        self._arrived[wanted.reference["@"]] = data, wanted.decoder, value

    def pending(self, step: str) -> Step | None:
        return self._steps.get(step)

    @property
    def replaying(self) -> bool:
        return self.track is not None

    @property
    def random(self) -> DeterministicRandom:
        """Seeded with the execution id, by whoever asks first: to seed it costs as much as a turn."""
        if self._random is None:
            self._random = DeterministicRandom(self.execution)
        return self._random

    @property
    def parked(self) -> bool:
        """Inputs are recorded but not applied."""
        return self.paused or self.stalled

    def close(self) -> None:
        """Evict: drop the run without running any of its code (no `finally`, no GeneratorExit). Idempotent."""
        if not self.loop.dead:
            self.loop.kill()
            self._steps.clear()
            self._waiters.clear()
            self._arrived.clear()

    # -- commands: what the code of the workflow asks for -------------------------------------------------------------

    async def activity(
        self, activity: Activity[Any, Any], arguments: bytes | Unwritten, code: types.CodeType, offset: int
    ) -> Any:
        # Written out, not built from `_scope_step`, `_issue` and `_outcome`: every step of every replay runs through
        # here.
        loop = self.loop
        if loop.dead:
            raise WorkflowEvicted
        name = activity.name
        site = code.co_name
        step = loop.scope().step(site if site[0] != "<" else site_name(code), name)
        if len(arguments) > self.limit:
            kept: bytes | dict[str, Any] = self._refer(arguments)
            self._commands.append(("activity", step, name, None, kept))
        else:
            assert isinstance(arguments, bytes)
            kept = arguments
            self._commands.append(("activity", step, name, orjson.Fragment(arguments)))
        self._places.append((code, offset))
        if (track := self.track) is not None and (outcome := track.pass_to("done", step)) is not None:
            return _restored(activity.result, outcome[2], name, False)
        future: asyncio.Future[Any] = asyncio.Future(loop=loop)
        self._steps[step] = Step(future, activity.result, name, kept, False)
        del arguments  # this frame lives as long as the step
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(step)
            raise

    def _refer(self, value: bytes | Unwritten) -> dict[str, Any]:
        reference: dict[str, Any] = {}
        self.outgoing.append(Outgoing(reference, value))
        return reference

    def actor_call(
        self, target: tuple[str, str, str], payload: bytes, decoder: Adapter[Any] | None, frame: types.FrameType
    ) -> Coroutine[Any, Any, Any]:
        call = self._actor_call(target, payload, decoder, site_name(frame.f_code), (frame.f_code, frame.f_lasti))
        call.__name__ = target[2]  # type: ignore[attr-defined]  # names its task
        return call

    async def _actor_call(
        self, target: tuple[str, str, str], payload: bytes, decoder: Adapter[Any] | None, site: str, place: Place
    ) -> Any:
        step = self._scope_step(site, target[2])
        self._issue(("call", step, *target, _payload(payload)), place)
        if (track := self.track) is not None and (outcome := track.pass_to("done", step)) is not None:
            return _restored(decoder, outcome[2], "/".join(target), True)
        future: asyncio.Future[Any] = self.loop.create_future()
        self._steps[step] = Step(future, decoder, "/".join(target), b"", True)
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(step)
            raise

    def _abandon(self, step: str) -> None:
        if self._steps.pop(step, None) is not None:
            self._issue(("abandon", step), None)

    def actor_send(self, target: tuple[str, str, str], payload: bytes, frame: types.FrameType) -> None:
        step = self._scope_step(site_name(frame.f_code), target[2])
        self._issue(("send", step, *target, _payload(payload)), (frame.f_code, frame.f_lasti))

    def set_status(self, value: Any, frame: types.FrameType) -> None:
        self._issue(("status", orjson.Fragment(encode(value))), (frame.f_code, frame.f_lasti))

    def event_future(self, name: str, *, awaited: bool) -> asyncio.Future[Any]:
        """Resolved with the payload of the next event of that name (case-folded) nobody waits for; at once if one is
        there. `awaited`: to wait for it is the next thing the code does."""
        loop = self.loop
        if loop.dead:
            raise WorkflowEvicted
        future: asyncio.Future[Any] = asyncio.Future(loop=loop)
        buffered = self._events.get(name)
        if buffered:
            future.set_result(buffered.popleft())
        elif (waiters := self._waiters.get(name)) is not None:
            waiters.append(future)
        elif awaited and (track := self.track) is not None and (item := track.pass_to("event", name)) is not None:
            future.set_result(item[2])
        else:
            self._waiters[name] = deque((future,))
        return future

    def put_back(self, name: str, payload: Any) -> None:
        """An event that was there for a waiter which came to nothing before it could take it: first in line again."""
        self._events.setdefault(name, deque()).appendleft(payload)

    def start_timer(self, when: float, site: str, callee: str, place: Place | None) -> str:
        """`when` is a float of seconds, off by up to a microsecond: a sleep of whole milliseconds takes just these, any
        other the next more. Raises `OverflowError`, at the line that asked, for what no reminder can be set for."""
        due_ms = math.ceil(when * 1000 - 1e-3)
        if due_ms > MAX_MS:
            raise OverflowError("a durable timer cannot be due after the year 9999")
        step = self._scope_step(site, callee)
        self._new_timers[step] = len(self._commands)
        self._issue(("timer", step, due_ms), place)
        return step

    def cancel_timer(self, step: str) -> None:
        """A timer that was started in this same turn leaves no trace."""
        started = self._new_timers.pop(step, None)
        if started is not None:
            self._commands[started] = _WITHDRAWN
            self._withdrawn = True
        else:
            self._issue(("cancel", step), None)

    def _scope_step(self, site: str, callee: str) -> str:
        return self.loop.scope().step(site, callee)

    def _issue(self, command: Command, place: Place | None) -> None:
        self._check_alive()
        self._commands.append(command)
        self._places.append(place)

    def _check_alive(self) -> None:
        if self.loop.dead:
            raise WorkflowEvicted

    # -- inputs -------------------------------------------------------------------------------------------------------

    def apply_within(self, time_ms: int, inputs: Sequence[Input]) -> list[Command]:
        """`apply` for whoever has entered the loop."""
        commands: list[Command] = []
        self._commands = commands
        self._places = []
        if self._new_timers:
            self._new_timers.clear()
        self._withdrawn = False
        self._set_time(time_ms)
        if len(inputs) == 1 and not (self._parked or self.paused or self.stalled or self.finished):
            item = inputs[0]  # as in nearly every turn
            if item[0] not in _CONTROL:
                self._feed(item)
                if self._arrived:
                    self._arrived.clear()
                return [c for c in commands if c[0]] if self._withdrawn else commands
        for item in inputs:
            if item[0] in _CONTROL:
                self._control(item[0])
            elif self._parked or self.paused or self.stalled:
                self._parked.append(item)
            elif not self.finished:
                self._feed(item)
            while self._parked and not self.parked and not self.finished:
                self._feed(self._parked.popleft())
        if self._arrived:
            self._arrived.clear()
        return [c for c in commands if c[0]] if self._withdrawn else commands

    def _set_time(self, time_ms: int) -> None:
        now_s = time_ms / 1000
        if now_s > self.loop.now_s:
            self.loop.now_s = now_s

    def _control(self, kind: str) -> None:
        if kind in ("paused", "resumed"):
            self.paused = kind == "paused"
        elif kind in ("stalled", "recovered"):
            self.stalled = kind == "stalled"
        else:
            self.finished = True
            self.close()

    def _feed(self, item: Input) -> None:
        _FEEDERS[item[0]](self, item)
        root = self._root
        if root is None:
            return
        self.loop.run_ready()
        if root.done():
            self._finish(root)
        elif not (self._steps or self._waiters or self.loop.has_timers):
            raise Stall("StuckWorkflow", f"the code waits for something that can never happen, {_waiting_at(root)}")

    def _feed_started(self, item: Input) -> None:
        if item[1]["v"] > VERSION:
            raise Stall("EngineError", f"the history is of version {item[1]['v']}, this program reads {VERSION}")
        self._start = start = Start.of(item[1])
        self.execution = start.execution
        self.limit = start.limit or sys.maxsize
        if start.at_ms is None:
            self._begin(start)

    def _feed_begun(self, _item: Input) -> None:
        if self._start is not None and self._root is None:
            self._begin(self._start)

    def _begin(self, start: Start) -> None:
        found = self.definition.scan
        if found.findings:
            where, message = found.findings[0]
            raise Stall("WorkflowGuardError", f"{where} in workflow code: {message}")
        try:
            if start.reference is None:
                code = self.definition.begin(start.input)
            else:
                data, _, value = self._arrived[start.reference["@"]]
                code = self.definition.begin(decode(data)) if value is None else self.definition.begin_with(value)
        except CodecError as error:
            raise Stall(
                "InvalidWorkflowInput", f"the recorded input no longer fits {self.definition.name}: {error}"
            ) from None
        self._root = self.loop.create_root(code)

    def _feed_done(self, item: Input) -> None:
        step = self._steps.pop(item[1], None)
        if step is None or step.future.done():
            return
        try:
            if len(item) > 3:
                step.future.set_result(self._read(item[3], step.decoder))
            else:
                step.future.set_result(restore(step.decoder, item[2]))
        except CodecError as error:
            step.future.set_exception(_unreadable(step.name, step.call, error))

    def _read(self, reference: dict[str, Any], decoder: Adapter[Any] | None) -> Any:
        """Raises `CodecError`."""
        data, by, value = self._arrived[reference["@"]]
        return value if value is not None and by is decoder else read(decoder, data)

    def _feed_failed(self, item: Input) -> None:
        step = self._steps.pop(item[1], None)
        if step is not None and not step.future.done():
            step.future.set_exception(_failed(step.name, step.call, Failure(*item[2:5])))

    def _feed_again(self, item: Input) -> None:
        step = self._steps.get(item[1])
        if step is not None and step.retrying and step.attempt == item[2] - 1:
            step.attempt, step.retrying = item[2], False
            arguments = step.arguments
            if isinstance(arguments, bytes):
                self._issue(("activity", item[1], step.name, orjson.Fragment(arguments)), None)
            else:
                self._issue(("activity", item[1], step.name, None, arguments), None)

    def _feed_fired(self, item: Input) -> None:
        self.loop.fire(item[1])

    def _feed_event(self, item: Input) -> None:
        name = item[1].casefold()
        payload = self._read(item[3], None) if len(item) > 3 else item[2]
        waiters = self._waiters.get(name)
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(payload)
                break
        else:
            self._events.setdefault(name, deque()).append(payload)
        if waiters is not None and not (waiters and any(not w.done() for w in waiters)):
            del self._waiters[name]

    def forget_waiter(self, name: str, future: asyncio.Future[Any]) -> None:
        waiters = self._waiters.get(name)
        if waiters is not None and future in waiters:
            waiters.remove(future)
            if not waiters:
                del self._waiters[name]

    def _feed_retry(self, item: Input) -> None:
        """The attempt has failed and another will follow: the code sees nothing of it."""
        step = self._steps.get(item[1])
        if step is not None and step.awaits(item[2] - 1):
            step.retrying = True

    def _finish(self, root: asyncio.Task[Any]) -> None:
        """Tasks the code left behind end with it, unheard."""
        self.finished = True
        self.leftover = (self.loop.armed(), [name for name, step in self._steps.items() if step.retrying])
        if root.cancelled():
            outcome: Command = ("failed", "CancelledError", "the workflow cancelled itself")
        elif (error := root.exception()) is not None:
            outcome = self._failure(error)
        else:
            outcome = self._success(root.result())
        self._issue(outcome, None)
        self.close()

    def _success(self, result: Any) -> Command:
        try:
            to_check = self._start is not None and self._start.checked and not self.definition.is_sure_of(result)
            if is_large(result) and len(result) > self.limit and not to_check:
                return ("completed", None, self._refer(Unwritten([Raw(result)])))
            data = encode(result)
            if to_check:
                self.definition.check_output(data)
            if len(data) > self.limit:
                return ("completed", None, self._refer(data))
            return ("completed", orjson.Fragment(data))
        except CodecError as error:
            return ("failed", "UnserializableResult", message_of(error))

    def _failure(self, error: BaseException) -> Command:
        if (refusal := _refusal_in(error)) is not None:
            raise Stall("WorkflowGuardError", f"{refusal} ({_raised_at(refusal)})") from error
        if not self.replaying:
            self.traceback = trace_of(error, _LONGEST_TRACEBACK)
        return ("failed", type(error).__name__, message_of(error))

    def place_of(self, command: Command) -> str:
        """Source line of a command of the last turn, "" for those that have none of the user's."""
        for issued, place in zip(self._commands, self._places, strict=True):
            if issued is command and place is not None:
                return _line(place)
        return ""

    def goes_on(self, recorded: str, time_ms: int) -> bool:
        """For `workflow.replay.Track`. The present turn has commanded what is recorded of it and nothing is left to run
        in it: the next one begins. Otherwise False."""
        if self._parked or self.outgoing:
            return False
        if encode_commands(self._commands) != recorded:  # one that was withdrawn is never recorded
            return False
        if not self.loop.is_last_to_run():
            return False
        self._commands.clear()
        self._places.clear()
        if self._new_timers:
            self._new_timers.clear()
        self._set_time(time_ms)
        return True

    def waiting_at(self) -> str:
        return "" if self._root is None else _waiting_at(self._root)


_FEEDERS: dict[str, Callable[[Program, Input], None]] = {
    "started": Program._feed_started,
    "begun": Program._feed_begun,
    "done": Program._feed_done,
    "failed": Program._feed_failed,
    "retry": Program._feed_retry,
    "again": Program._feed_again,
    "fired": Program._feed_fired,
    "event": Program._feed_event,
}


class DeterministicRandom(random.Random):
    """Seeded with the execution id. Callable, so that both ``current().random()`` and ``current().random.randint(1,
    6)`` work."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)

    def __call__(self) -> float:
        return self.random()


class Live:
    """Sole owner of a live program. When it is let go of, in whatever way, the program is closed before the garbage
    collector can reach its frames; `weakref.finalize` holds the program until then, and sees to it at the end of the
    process, too."""

    __slots__ = ("__weakref__", "_finalizer", "program")

    def __init__(self, program: Program) -> None:
        self.program = program
        self._finalizer = weakref.finalize(self, program.close)

    def close(self) -> None:
        self._finalizer()


@functools.lru_cache(maxsize=4)
def _context_with(surface: object) -> contextvars.Context:
    """An empty context: nothing of the host's (or the turn's) is visible to the code of a workflow, but what `surface`
    offers in place of an actor's turn. All programs share it, since nothing runs in it: each task has a copy."""
    from actors.turn import _current

    context = contextvars.Context()
    if surface is not None:
        context.run(_current.set, surface)  # type: ignore[arg-type]  # it answers as far as a workflow may ask
    return context


def _payload(payload: bytes) -> Any:
    """An actor's arguments as recorded: an array of one JSON value, or of none (which is not the same as null)."""
    return [orjson.Fragment(payload)] if payload else []


def _restored(decoder: Adapter[Any] | None, result: Any, name: str, call: bool) -> Any:
    try:
        return restore(decoder, result)
    except CodecError as error:
        raise _unreadable(name, call, error) from None


def _unreadable(name: str, call: bool, error: CodecError) -> ActivityFailed | ActorCallFailed:
    return _failed(name, call, Failure("CodecError", f"the result is not what the annotation says: {error}"))


def _failed(name: str, call: bool, failure: Failure) -> ActivityFailed | ActorCallFailed:
    return ActorCallFailed(f"actor call {name}", failure) if call else ActivityFailed(f"activity {name}", failure)


def _refusal_in(error: BaseException) -> WorkflowGuardError | None:
    """A guard's error, by itself or among those of a `TaskGroup`."""
    if isinstance(error, BaseExceptionGroup):
        found = error.subgroup(WorkflowGuardError)
        return None if found is None else _refusal_in(found.exceptions[0])
    return error if isinstance(error, WorkflowGuardError) else None


def _line(place: Place) -> str:
    code, offset = place
    line: int | None = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= offset < end and number is not None:
            line = number
    return f"{code.co_filename}:{line}"


def _waiting_at(root: asyncio.Task[Any]) -> str:
    """The innermost line of the user's that the main task waits at."""
    awaited: Any = root.get_coro()
    where = ""
    while awaited is not None and getattr(awaited, "cr_frame", None) is not None:
        frame = awaited.cr_frame
        if not _is_ours(frame.f_code.co_filename):
            where = f"waiting at {frame.f_code.co_filename}:{frame.f_lineno}"
        awaited = awaited.cr_await
    return where


def _raised_at(error: BaseException) -> str:
    """The innermost line of the user's that the exception passed."""
    lines = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    return lines[-1] if lines else "workflow"


def _is_ours(filename: str) -> bool:
    """Or asyncio's: what a user has written called it."""
    return os.path.dirname(filename) in _PACKAGES
