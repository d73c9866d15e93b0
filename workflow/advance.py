"""One turn of a workflow instance: inputs are applied, and recorded together with what the code commands in answer.

    1. the live program is at hand, or replayed from the records;
    2. the inputs are applied: the code runs until it waits again, and issues commands;
    3. one event, `advanced`, records both; what the commands ask for goes into the same commit: timers as reminders,
       calls and sends as messages, activities by the instance's marker (see `workflow.orders`).

When a turn fails or its commit is refused the program has seen an input that never was: it is dropped, and replayed
next time. Where large values are referred to they are read before 2. and stored before 3., while no other turn of the
instance runs.

This is the one module beside `workflow.instance` that touches what an instance holds in memory.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from actors.errortext import message_of
from statestores.codec import encode
from workflow.errors import PayloadLost, Stall
from workflow.history import STALLED, Command, Input, Record, encode_inputs
from workflow.payloads import Stored
from workflow.replay import settle, supply

if TYPE_CHECKING:
    from actors import Turn
    from workflow.instance import WorkflowInstance
    from workflow.pieces import Data
    from workflow.program import Program

log = logging.getLogger("workflow")

_POISONED = 3
_ENDS = frozenset({"completed", "failed"})
# Inputs and commands that change what is shown of an instance.
_TELLING = frozenset(
    {"started", "begun", "paused", "resumed", "terminated", "stalled", "recovered", "status", "completed", "failed"}
)
# What a NamedTuple's constructor comes to.
new_record = functools.partial(tuple.__new__, Record)


class Advance:
    """Made for one turn, and done with it. `starting`: name of the workflow that begins."""

    __slots__ = ("_inputs", "_instance", "_kept", "_now_ms", "_starting", "_text", "_turn")

    def __init__(self, instance: WorkflowInstance, turn: Turn, inputs: list[Input], starting: str = "") -> None:
        self._instance = instance
        self._turn = turn
        self._inputs = inputs
        self._starting = starting
        # Ids of large values that are referred to for the first time, by digest: to be recorded with this turn.
        self._kept: dict[str, str] = {}

    def run(self) -> None:
        instance = self._instance
        # (One that is stalled is not live, and reads what it has parked.)
        if instance._payloads and (instance._live is None or instance._live.program.wanted(self._inputs)):
            self._turn.go_on(functools.partial(self._run_reading, {}))
        else:
            self._apply()

    def take_in(self, stored: Stored) -> None:
        """`run`, of an input that refers to a large value. Raises `PayloadLost`."""
        self._turn.go_on(functools.partial(self._take_in, stored))

    def park(self) -> None:
        """Only record the inputs."""
        if self._inputs:
            self._now_ms = max(self._turn.now_ms(), self._instance.updated_ms)
            self._text = encode_inputs(self._inputs)
            self._record([], "")

    # -- large values -------------------------------------------------------------------------------------------------

    async def _take_in(self, stored: Stored) -> None:
        """The value is there, under an id of this epoch, before anything is recorded of it."""
        instance, turn = self._instance, self._turn
        keeper = instance._keeper()
        arrived: dict[str, Data] = {}
        if stored.digest not in (instance._payloads or ()):
            if stored.epoch != turn.epoch:
                arrived[stored.digest] = data = await keeper.load(turn.stream, stored)
                self._kept[stored.digest] = (await keeper.keep(turn.stream, data, turn.is_over)).id
            else:
                self._kept[stored.digest] = stored.id
        await self._run_reading(arrived)

    async def _run_reading(self, arrived: dict[str, Data]) -> None:
        """`run` where the history or the inputs refer to large values. `arrived`: those that are at hand."""
        instance, turn = self._instance, self._turn
        known = {**(instance._payloads or {}), **self._kept}

        async def load(wanted: dict[str, Any]) -> Data:
            digest = wanted["@"]
            found = arrived.pop(digest, None)
            stored = Stored(digest, wanted["n"], known[digest])
            return found if found is not None else await instance._keeper().load(turn.stream, stored)

        try:
            if not self._poison() and not (instance.status == STALLED and instance._tried):
                live = instance._live
                program = live.program if live is not None else await instance._replayed_reading(self._starting, load)
                recovering = [("recovered",)] if instance.status == STALLED else []
                wanted = program.wanted(orjson.loads(orjson.dumps([*recovering, *self._inputs])))
                await supply(program, wanted, load)
        except PayloadLost as error:
            self._stall(Stall("PayloadLost", str(error)))
        except Stall as stall:
            self._stall(stall)
        except BaseException:
            instance._drop()
            raise
        else:
            self._apply()

    async def _store(self, program: Program, commands: list[Command]) -> None:
        """What the commands refer to is durable before they are (PAY-1)."""
        instance, turn = self._instance, self._turn
        keeper = instance._keeper()
        try:
            while program.outgoing:
                refers = program.outgoing[-1].reference
                data = await settle(program)
                digest = refers["@"]
                if digest not in self._kept and digest not in (instance._payloads or ()):
                    self._kept[digest] = (await keeper.keep(turn.stream, data, turn.is_over)).id
        except BaseException:
            instance._drop()
            raise
        self._conclude(program, commands)

    # -- the code runs ------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        instance, turn = self._instance, self._turn
        inputs = self._inputs
        try:
            if instance._deployment.poison and (poison := self._poison()):
                raise Stall("EngineError", poison)
            if instance.status == STALLED:
                if instance._tried:
                    self.park()
                    return
                inputs = [("recovered",), *inputs]
            # Not by `encode`: whatever of this comes from outside has been through it already.
            self._text = text = orjson.dumps(inputs).decode()
            live = instance._live
            program = live.program if live is not None else instance._replayed(self._starting)
            # Read once: the time the code saw is the time that is recorded. There it never goes back.
            now_ms = turn.now_ms()
            if now_ms < instance.updated_ms:
                now_ms = instance.updated_ms
            self._now_ms = now_ms
            commands = program.apply(now_ms, orjson.loads(text))
        except Stall as stall:
            self._stall(stall)
            return
        except Exception as error:
            self._stall(engine_failed(turn.actor_id, error))
            return
        except BaseException:
            instance._drop()
            raise
        self._inputs = inputs
        if program.outgoing:
            turn.go_on(functools.partial(self._store, program, commands))
        else:
            self._conclude(program, commands)

    def _poison(self) -> str:
        """The last of too many errors of ours, "" when there are not so many."""
        errors = self._instance._deployment.poison.get(self._turn.actor_id, [])
        return errors[-1] if len(errors) >= _POISONED else ""

    def _stall(self, stall: Stall) -> None:
        """The code cannot go on: record that, once, with the inputs that wait for better code."""
        instance = self._instance
        instance._drop()
        instance._tried = True
        already = instance._folded().stall if instance.status == STALLED else None
        if already != (stall.kind, stall.message):
            log.warning("workflow instance %s is stalled: %s: %s", self._turn.actor_id, stall.kind, stall.message)
            # The marker first: what follows it is parked.
            self._inputs = [("stalled", stall.kind, stall.message), *self._inputs]
        self.park()

    # -- what came of it is recorded, and seen to ---------------------------------------------------------------------

    def _conclude(self, program: Program, commands: list[Command]) -> None:
        instance = self._instance
        try:
            if len(commands) != 1 or commands[0][0] != "activity":
                _perform(self._turn, program, commands, instance)
            self._record(commands, program.traceback)
        except Exception as error:
            instance._drop()
            if instance.status:  # else it has not begun, and there is nothing to stall
                errors = instance._deployment.poison.setdefault(self._turn.actor_id, [])
                errors.append(f"{type(error).__name__}: {message_of(error)}")
            raise
        except BaseException:
            instance._drop()
            raise
        if program.finished:
            instance._drop()
            instance._records = None  # nothing will be replayed any more
        elif instance._deployment.evict_always:
            instance._drop()

    def _record(self, commands: list[Command], trace: str) -> None:
        """Record the event `advanced`, and apply it. (Calling it would do the same, at three times the cost.)"""
        instance, turn, kept = self._instance, self._turn, self._kept
        now_ms, inputs = self._now_ms, self._text
        before = instance.status
        if kept:
            instance._know(kept)
        known = instance._open or instance._open_orders()
        opened = known.apply(now_ms, self._inputs, commands)
        marker = instance._move_marker(turn, known.orders, ended=bool(commands) and commands[-1][0] in _ENDS)
        told = "1" if _is_telling(self._inputs, commands) else ""
        issued = orjson.dumps(commands).decode() if commands else ""
        fields: dict[str, Any] = {"t": now_ms, "i": inputs, "c": issued, "s": told, "x": trace}
        if marker is not None:
            fields["m"] = marker
        if kept:
            fields["p"] = kept
        turn.record_encoded("advanced", orjson.dumps(fields))
        instance._fold(new_record((now_ms, inputs, issued)), told, trace, marker)
        if opened and (standing := instance._marker):
            begin = instance._deployment.begin
            if instance._payloads:
                opened = instance._addressed(opened)
            turn.after_commit(lambda: begin(standing, opened, False))
        if told and instance.status != before:
            turn.set_index(name=instance.name, status=instance.status, at_ms=now_ms)
            if instance._is_over():
                instance._tell(turn)


def _perform(turn: Turn, program: Program, commands: list[Command], instance: WorkflowInstance) -> None:
    """All that commands ask for but activities."""
    execution = program.execution
    for command in commands:
        kind = command[0]
        if kind == "activity":
            continue
        if kind == "timer":
            turn.set_reminder(
                timer_name(command[1]),
                due=instant(command[2]),
                data=f"fired {execution} {command[1]}",
                callback="timer_fired",
            )
        elif kind == "cancel":
            turn.clear_reminder(timer_name(command[1]))
        elif kind == "abandon":
            turn.clear_reminder(retry_name(command[1]))
            if (order := instance._ordered(execution, command[1])) is not None:
                instance._cancel(turn, [order])
        elif kind == "call":
            payload = encode(command[5][0]) if command[5] else b""
            _, step_id, actor_type, actor_id, name, _ = command
            token = f"{execution} {step_id}"
            turn.call_durably(actor_type, actor_id, name, payload, reply_method="replied", token=token)
        elif kind == "send":
            turn.send_raw(command[2], command[3], command[4], encode(command[5][0]) if command[5] else b"")
    if program.finished:
        timers, retries = program.leftover
        for name in (*map(timer_name, timers), *map(retry_name, retries)):
            turn.clear_reminder(name)


def _is_telling(inputs: list[Input], commands: list[Command]) -> bool:
    """Whether a turn changed what is shown. ("failed" is an activity's as an input, the workflow's as a command.)"""
    for item in inputs:
        if item[0] in _TELLING and item[0] != "failed":
            return True
    for command in commands:  # noqa: SIM110  # generators would cost more than all they look at
        if command[0] in _TELLING:
            return True
    return False


def engine_failed(instance_id: str, error: Exception) -> Stall:
    log.error("workflow instance %s: the engine failed", instance_id, exc_info=error)
    return Stall("EngineError", f"{type(error).__name__}: {message_of(error)}")


def instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def timer_name(step: str) -> str:
    """Name of the reminder of a durable timer. Names are limited, lexical places are not."""
    return step if len(step) <= 500 else f"timer {hashlib.sha256(step.encode()).hexdigest()}"


def retry_name(step: str) -> str:
    return f"retry {timer_name(step)}"
