"""A workflow instance: an event-sourced actor whose history is the record of its turns.

Every input (an activity's result, a timer, an event, pause, …) is one turn of the actor ``mecha.workflow/<instance
id>``:

    1. the live program is at hand, or replayed from the records;
    2. the input is applied: the code runs until it waits again, and issues commands;
    3. one event, `advanced`, records input and commands; what the commands ask for goes into the same commit:
    activities
       into the outbox, timers as reminders, calls and sends as messages.

So single activation, fencing, atomicity and recovery are the actor's; nothing here writes or schedules by itself. When
a turn fails or its commit is refused the program has seen an input that never was: it is dropped, and replayed next
time.

An instance whose code cannot go on is *stalled*: the input is recorded all the same, unapplied, and waits with the ones
that follow until a later activation, or `resume`, finds code that can replay the history.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import operator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from actors import actor, context, definition_of, event, method
from statestores.codec import encode
from workflow.context import SURFACE
from workflow.errors import Stall
from workflow.history import (
    ACTOR_TYPE,
    FAILED,
    STALLED,
    TERMINAL,
    Command,
    Input,
    Record,
    Start,
    Summary,
    encode_commands,
    encode_inputs,
)
from workflow.replay import Live, Program, replay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actors import ActorDefinition, Turn
    from statestores.model import Event
    from workflow.definition import Workflow

log = logging.getLogger("workflow")

ACTIVITY_KIND = "activity"

MISSING = "missing"

_NEVER = 2**62
_FOLDED_AT_ONCE = 1000
_RECORDED = operator.itemgetter("t", "i", "c")
# Results are bounded by the activities in flight, not by the mailbox; to refuse one would only run its activity again.
_MAILBOX_LIMIT = 1_000_000
_RECHECK_S = 30.0
_POISONED = 3
# Inputs and commands that change what is shown of an instance.
_TELLING = frozenset(
    {"started", "begun", "paused", "resumed", "terminated", "stalled", "recovered", "status", "completed", "failed"}
)


class Deployment:
    """What all instances in one process share: the code, and who waits here for the end of which instance."""

    def __init__(self, workflows: Mapping[str, Workflow[Any, Any]], *, evict_always: bool) -> None:
        self.workflows = workflows
        self.evict_always = evict_always
        self.waiters: dict[str, list[asyncio.Future[str]]] = {}

    async def wait_told(self, instance_id: str) -> str:
        """What is shown of the instance once it has ended or stalled here. "" after a while without that: ask again,
        it may have moved to another host. For an instance that is here and going on."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        queue = self.waiters.setdefault(instance_id, [])
        queue.append(future)
        recheck = loop.call_later(_RECHECK_S, _give_up, future)
        try:
            return await future
        finally:
            recheck.cancel()
            if self.waiters.get(instance_id) is queue:  # it was not told
                queue.remove(future)
                if not queue:
                    del self.waiters[instance_id]

    def release(self) -> None:
        """The host has stopped: nobody here will be told anything."""
        for instance_id in list(self.waiters):
            self.tell(instance_id, "")

    def tell(self, instance_id: str, shown: str) -> None:
        """The instance has ended or stalled, durably."""
        for future in self.waiters.pop(instance_id, ()):
            if not future.done():
                future.set_result(shown)


class WorkflowInstance:
    """The actor. One subclass per `Engine`, see `instance_type`. Methods answer with a word rather than an exception
    where the caller is expected to ask: "" done, "missing", "exists", "terminal", or the present status."""

    _deployment: ClassVar[Deployment]

    name: str = ""
    status: str = ""
    execution: str = ""
    # Identity of the start request: the same one again is the same start.
    request: str = ""
    created_ms: int = 0
    updated_ms: int = 0
    input: Any = None
    output: Any = None
    custom_status: Any = None
    failure: Any = None  # [type, message, traceback]

    _records: list[Record] | None = None
    _summary: Summary | None = None
    _live: Live | None = None
    # The replay of a stalled instance was tried in this activation: not again before somebody says `resume`.
    _tried: bool = False
    # Errors of ours that made turns fail, in this activation: not for ever.
    _poison: tuple[str, ...] = ()

    # -- the history --------------------------------------------------------------------------------------------------

    @event
    def advanced(self, t: int, i: str, c: str, s: str = "", x: str = "") -> None:
        """One turn: time, inputs, commands. `s` is not empty when anything that is shown has changed; `x`: the
        traceback of a failure."""
        self._fold(Record(t, i, c), s, x)

    def __mecha_fold__(self, events: Sequence[Event]) -> None:
        """All of a history: `advanced` for each of its events. Most records change nothing that is shown, and are only
        kept; so they are parsed many at a time."""
        records: list[Record] = []
        for start in range(0, len(events), _FOLDED_AT_ONCE):
            some = events[start : start + _FOLDED_AT_ONCE]
            if any(event.name != "advanced" for event in some):
                raise LookupError("an event that is not of a workflow")
            facts = orjson.loads(b"[%b]" % b",".join([event.data for event in some]))
            kept = list(map(Record._make, map(_RECORDED, facts)))
            records += kept
            for fact, record in zip(facts, kept, strict=True):
                if fact["s"]:
                    self._summary = self._summary or Summary()
                    self._summary.apply(record)
                    self._show(self._summary, record, fact["x"])
        if records:
            self.__dict__["updated_ms"] = records[-1].time_ms
        self._records = None if self.status in TERMINAL else records

    def _fold(self, record: Record, telling: str, trace: str) -> None:
        own = self.__dict__
        records = own.get("_records")
        if records is None:
            records = own["_records"] = []
        records.append(record)
        own["updated_ms"] = record.time_ms
        if telling:
            summary = self._summary
            if summary is None:
                summary = self._summary = Summary()
            summary.apply(record)
            self._show(summary, record, trace)

    def _show(self, summary: Summary, record: Record, extra: str) -> None:
        shown = self.__dict__
        if not shown.get("created_ms") and summary.started is not None:
            started = summary.started
            shown.update(name=started.name, execution=started.execution, input=started.input, request=started.request)
            shown["created_ms"] = record.time_ms
        shown["status"] = status = summary.status
        shown["output"] = summary.output
        shown["custom_status"] = summary.custom_status
        if status == STALLED and summary.stall is not None:
            shown["failure"] = [*summary.stall, ""]
        elif status == FAILED and summary.failure is not None:
            shown["failure"] = [*summary.failure, extra]
        else:
            shown["failure"] = None

    # -- life ---------------------------------------------------------------------------------------------------------

    @method
    def start(self, name: str, input: str, at_ms: int, delay_ms: int, request: str) -> str:
        """`input`: JSON text. The code begins at `at_ms`, or `delay_ms` from now."""
        if self.status:
            if self.request == request:
                return ""
            return "terminal" if self.status in TERMINAL else "exists"
        turn = context()
        now_ms = turn.now_ms()
        at: int | None = max(at_ms, now_ms + delay_ms)
        if at == now_ms:
            at = None
        begin = Start(turn.actor_id, turn.turn_id, name, orjson.Fragment(input), at, request)
        if at is not None:
            turn.set_reminder("start", due=_instant(at), data=f"start {turn.turn_id} -", callback="timer_fired")
        self._advance(turn, [begin.to_input()], name)
        return ""

    @method
    def activity_done(self, message: str, execution: str, step: str, result: str) -> None:
        """`message`: the outbox message the attempt was started by. `result`: JSON text."""
        turn = context()
        turn.done(message)
        if self._expects(execution, step):
            self._advance(turn, [("done", step, orjson.Fragment(result))])

    @method
    def activity_failed(
        self, message: str, execution: str, step: str, attempt: int, error: list[str], retry_ms: int
    ) -> None:
        """`error`: type, message, traceback. `retry_ms`: try again after so long; -1: this was the last attempt."""
        turn = context()
        turn.done(message)
        if not self._expects(execution, step, attempt):
            return
        if retry_ms < 0:
            self._advance(turn, [("failed", step, *error)])
            return
        due_ms = turn.now_ms() + retry_ms
        again = f"again {execution} {attempt + 1} {step}"
        turn.set_reminder(_retry_name(step), due=_instant(due_ms), data=again, callback="timer_fired")
        self._advance(turn, [("retry", step, attempt + 1, due_ms, error[0], error[1])])

    @method
    def wants(self, message: str, execution: str, step: str) -> bool:
        """Whether the outcome of an activity is still waited for. If not, its work is done with."""
        if self._expects(execution, step):
            return True
        context().done(message)
        return False

    @method
    def replied(self, token: str, result: Any, error: Any) -> None:
        """The outcome of a durable call to an actor."""
        execution, _, step = token.partition(" ")
        if not self._expects(execution, step):
            return
        if error is None:
            item: Input = ("done", step, result)
        else:
            item = ("failed", step, error["type"], error["message"], error.get("traceback", ""))
        self._advance(context(), [item])

    @method
    def timer_fired(self, data: str) -> None:
        kind, execution, rest = data.split(" ", 2)
        if self.status in TERMINAL or execution != self.execution:
            return
        if kind == "fired":
            self._advance(context(), [("fired", rest)])
        elif kind == "start":
            self._advance(context(), [("begun",)])
        else:
            attempt, _, step = rest.partition(" ")
            self._advance(context(), [("again", step, int(attempt))])

    @method
    def raise_event(self, name: str, payload: str) -> str:
        """`payload`: JSON text. Ignored once the instance has ended."""
        if not self.status:
            return MISSING
        if self.status not in TERMINAL:
            self._advance(context(), [("event", name, orjson.Fragment(payload))])
        return ""

    @method
    def pause(self) -> str:
        if not self.status:
            return MISSING
        if self.status not in TERMINAL and not self._folded().paused:
            self._advance(context(), [("paused",)])
        return ""

    @method
    def resume(self) -> str:
        """Ends a pause, and tries a stalled instance again with the present code."""
        if not self.status:
            return MISSING
        if self.status in TERMINAL:
            return ""
        self._tried = False
        self._poison = ()
        if self._folded().paused:
            self._advance(context(), [("resumed",)])
        elif self.status == STALLED:
            self._advance(context(), [])
        return ""

    @method
    async def terminate(self, output: str) -> str:
        """`output`: JSON text. The code gets no chance to object, or to clean up; running activities end unheard."""
        if not self.status:
            return MISSING
        if self.status in TERMINAL:
            return ""
        turn = context()
        for reminder in await turn.reminders():
            turn.clear_reminder(reminder.name)
        self._drop()
        text = encode_inputs([("terminated", orjson.Fragment(output))])
        self._record(turn, self._now_ms(turn), text, "", True, "")
        return ""

    @method
    def purge(self, force: bool, execution: str) -> str:
        """Remove everything. `execution`: only if it is still that one; "": whichever."""
        if not self.status:
            return MISSING
        if execution and execution != self.execution:
            return ""
        if self.status not in TERMINAL and not force:
            return self.status
        self._drop()
        turn = context()
        instance_id = turn.actor_id
        turn.delete()
        turn.after_commit(lambda: self._deployment.tell(instance_id, MISSING))
        return ""

    # -- looking ------------------------------------------------------------------------------------------------------

    @method(read_only=True)
    def describe(self) -> str:
        """What is shown of the instance, as JSON; "" when there is none."""
        return self._shown() if self.status else ""

    @method(interleave=True)
    async def wait_ended(self) -> str:
        """`describe` once the instance has ended or stalled. "" after a while without that: ask again, the instance may
        have moved to another host."""
        if not self.status:
            return MISSING
        if self._is_over():
            return self._shown()
        return await self._deployment.wait_told(context().actor_id)

    @property
    def is_going_on(self) -> bool:
        return bool(self.status) and not self._is_over()

    def _is_over(self) -> bool:
        return self.status in TERMINAL or self.status == STALLED

    def _shown(self) -> str:
        shown = {field: getattr(self, field) for field in _SHOWN}
        return orjson.dumps(shown).decode()  # all of it was JSON before

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _expects(self, execution: str, step: str, attempt: int = 0) -> bool:
        """Whether the outcome of a step is still wanted: of this execution, not ended, and (where the code can be
        asked) not given up by it. `attempt`: a failure of that one; the same attempt, delivered twice, fails once."""
        if execution != self.execution or self.status in TERMINAL:
            return False
        if self.status == STALLED:
            return True
        live = self._live
        try:
            program = self._program() if live is None else live.program
        except Stall:
            return True  # the turn finds it out again, and records it
        pending = program.pending(step)
        if pending is None:
            return program.parked
        return not attempt or program.parked or pending.awaits(attempt)

    def _advance(self, turn: Turn, inputs: list[Input], starting: str = "") -> None:
        """Apply inputs, record them with what the code commanded, and do that. `starting`: name of a workflow that
        begins."""
        items = inputs
        try:
            if len(self._poison) >= _POISONED:
                raise Stall("EngineError", self._poison[-1])
            if self.status == STALLED:
                if self._tried:
                    self._park(turn, inputs)
                    return
                items = [("recovered",), *inputs]
            # Not by `encode`: whatever of this comes from outside has been through it already.
            text = orjson.dumps(items).decode()
            program = self._program(starting)
            # Read once: the time the code saw is the time that is recorded.
            now_ms = self._now_ms(turn)
            commands = program.apply(now_ms, orjson.loads(text))
        except Stall as stall:
            self._stall(turn, inputs, stall)
            return
        except Exception as error:
            self._stall(turn, inputs, _engine_failed(turn.actor_id, error))
            return
        except BaseException:
            self._drop()
            raise
        try:
            self._perform(turn, program, commands)
            self._record(turn, now_ms, text, encode_commands(commands), _is_telling(items, commands), program.traceback)
        except Exception as error:
            self._drop()
            self._poison = (*self._poison, f"{type(error).__name__}: {error}")
            raise
        except BaseException:
            self._drop()
            raise
        if program.finished:
            self._drop()
            self._records = None  # nothing will be replayed any more
        elif self._deployment.evict_always:
            self._drop()

    def _stall(self, turn: Turn, inputs: list[Input], stall: Stall) -> None:
        """The code cannot go on: record that, once, with the inputs that wait for better code."""
        self._drop()
        self._tried = True
        already = self._folded().stall if self.status == STALLED else None
        if already != (stall.kind, stall.message):
            log.warning("workflow instance %s is stalled: %s: %s", turn.actor_id, stall.kind, stall.message)
            inputs = [("stalled", stall.kind, stall.message), *inputs]  # the marker first: what follows it is parked
        self._park(turn, inputs)

    def _now_ms(self, turn: Turn) -> int:
        """Time as the history tells it: it never goes back."""
        return max(turn.now_ms(), self.updated_ms)

    def _park(self, turn: Turn, inputs: list[Input]) -> None:
        if inputs:
            self._record(turn, self._now_ms(turn), encode_inputs(inputs), "", _is_telling(inputs, []), "")

    def _record(self, turn: Turn, now_ms: int, inputs: str, commands: str, telling: bool, trace: str) -> None:
        """Record the event `advanced`, and apply it. (Calling it would do the same, at three times the cost.)"""
        before = self.status
        told = "1" if telling else ""
        fields = {"t": now_ms, "i": inputs, "c": commands, "s": told, "x": trace}
        turn.record_encoded("advanced", orjson.dumps(fields))
        self._fold(Record(now_ms, inputs, commands), told, trace)
        if self.status != before:
            turn.set_index(name=self.name, status=self.status)
            if self._is_over():
                self._tell(turn)

    def _tell(self, turn: Turn) -> None:
        """Wake those who wait, once this is durable."""
        deployment, instance_id = self._deployment, turn.actor_id
        if deployment.waiters.get(instance_id) is None:
            # Somebody may begin to wait before the commit: he sees the status, and his answer waits for the commit.
            return
        shown = self._shown()
        turn.after_commit(lambda: deployment.tell(instance_id, shown))

    def _program(self, starting: str = "") -> Program:
        """The live program; after an eviction, replayed. Raises `Stall`."""
        if self._live is None:
            name = self.name or starting
            definition = self._deployment.workflows.get(name)
            if definition is None:
                raise Stall("UnknownWorkflow", f"no workflow named {name!r} is deployed here")
            instance_id = context().actor_id
            try:
                self._live = Live(replay(definition, instance_id, self._records or (), SURFACE))
            except Stall:
                raise
            except Exception as error:
                raise _engine_failed(instance_id, error) from error
        return self._live.program

    def _folded(self) -> Summary:
        assert self._summary is not None
        return self._summary

    def _drop(self) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None

    # -- what commands ask for ----------------------------------------------------------------------------------------

    def _perform(self, turn: Turn, program: Program, commands: list[Command]) -> None:
        execution = program.execution
        for command in commands:
            kind = command[0]
            if kind == "activity":
                step = program.pending(command[1])
                if step is not None:
                    self._post(turn, execution, command, step.attempt, step.first_ms)
                elif ("abandon", command[1]) not in commands:  # the code has ended without waiting for it
                    self._post(turn, execution, command, 1, turn.now_ms())
            elif kind == "timer":
                turn.set_reminder(
                    _timer_name(command[1]),
                    due=_instant(command[2]),
                    data=f"fired {execution} {command[1]}",
                    callback="timer_fired",
                )
            elif kind == "cancel":
                turn.clear_reminder(_timer_name(command[1]))
            elif kind == "abandon":
                turn.clear_reminder(_retry_name(command[1]))
            elif kind == "call":
                payload = encode(command[5][0]) if command[5] else b""
                _, step_id, actor_type, actor_id, name, _ = command
                token = f"{execution} {step_id}"
                turn.call_durably(actor_type, actor_id, name, payload, reply_method="replied", token=token)
            elif kind == "send":
                turn.send_raw(command[2], command[3], command[4], encode(command[5][0]) if command[5] else b"")
        if program.finished:
            timers, retries = program.leftover
            for name in (*map(_timer_name, timers), *map(_retry_name, retries)):
                turn.clear_reminder(name)

    def _post(self, turn: Turn, execution: str, command: Command, attempt: int, first_ms: int) -> None:
        _, step, name, arguments = command
        body = {"x": execution, "s": step, "n": name, "a": arguments, "k": attempt, "f": first_ms}
        turn.post(ACTIVITY_KIND, orjson.dumps(body))


_SHOWN = ("name", "status", "execution", "created_ms", "updated_ms", "input", "output", "custom_status", "failure")


def instance_type(deployment: Deployment, idle_timeout_s: float) -> type[WorkflowInstance]:
    """The actor class of one engine."""
    made = type("WorkflowInstance", (WorkflowInstance,), {"_deployment": deployment, "__module__": __name__})
    # No snapshots: replay needs every record. Few receipts: starts are recognised by their recorded request.
    return actor(
        name=ACTOR_TYPE, idle_timeout=idle_timeout_s, snapshot_every=_NEVER, mailbox_limit=_MAILBOX_LIMIT, receipts="1h"
    )(made)


def definition_for(cls: type[WorkflowInstance]) -> ActorDefinition:
    found = definition_of(cls)
    assert found is not None
    return found


def _is_telling(inputs: list[Input], commands: list[Command]) -> bool:
    """Whether a turn changed what is shown. ("failed" is an activity's as an input, the workflow's as a command.)"""
    for item in inputs:
        if item[0] in _TELLING and item[0] != "failed":
            return True
    for command in commands:  # noqa: SIM110  # generators would cost more than all they look at
        if command[0] in _TELLING:
            return True
    return False


def _give_up(future: asyncio.Future[str]) -> None:
    if not future.done():
        future.set_result("")


def _engine_failed(instance_id: str, error: Exception) -> Stall:
    log.error("workflow instance %s: the engine failed", instance_id, exc_info=error)
    return Stall("EngineError", f"{type(error).__name__}: {error}")


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _timer_name(step: str) -> str:
    """Name of the reminder of a durable timer. Names are limited, lexical places are not."""
    return step if len(step) <= 500 else f"timer {hashlib.sha256(step.encode()).hexdigest()}"


def _retry_name(step: str) -> str:
    return f"retry {_timer_name(step)}"
