"""Rehearse a workflow without host, store or clock: for tests of workflow code, and of this package.

    run = Rehearsal(order, Order("x", 5))
    assert run.activities == {"order.charge": ("charge", ["x", 5])}
    run.complete("order.charge", "receipt-1")
    run.advance()                                # the next durable timer fires, at its time
    assert run.output == ...

The test plays the outside world, one turn at a time. With `evict` the live run is dropped after every turn and replayed
before the next, so that whatever depends on memory shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from statestores.codec import encode
from workflow.context import SURFACE
from workflow.errors import Failure, Stall
from workflow.history import Input, Record, Start, Summary, encode_commands, encode_inputs, parse
from workflow.program import Live, Program
from workflow.replay import replay

if TYPE_CHECKING:
    from workflow.definition import Workflow


class Rehearsal:
    """One instance and its world. `activities`, `calls`: open steps; `timers`: pending ones with their due time in ms;
    `sends`: messages sent so far."""

    def __init__(
        self,
        definition: Workflow[Any, Any],
        value: Any = None,
        *,
        instance_id: str = "rehearsal",
        execution: str = "execution-1",
        now_ms: int = 1_700_000_000_000,
        evict: bool = False,
    ) -> None:
        self.definition = definition
        self.instance_id = instance_id
        self.now_ms = now_ms
        self.evict = evict
        self.records: list[Record] = []
        self.summary = Summary()
        self.activities: dict[str, tuple[str, Any]] = {}
        self.calls: dict[str, tuple[str, str, str, Any]] = {}
        self.sends: list[tuple[str, str, str, Any]] = []
        self.timers: dict[str, int] = {}
        self._held: Live | None = None
        self.turn(Start(instance_id, execution, definition.name, orjson.loads(encode(value)), None).to_input())

    # -- the world acts -----------------------------------------------------------------------------------------------

    def complete(self, step: str, result: Any = None) -> None:
        """An activity or actor call is answered. Raises `LookupError` when it is not open."""
        self._close(step)
        self.turn(("done", step, result))

    def fail(self, step: str, error_type: str = "RuntimeError", message: str = "") -> None:
        """An activity or actor call fails, with no attempt left. Raises `LookupError` when it is not open."""
        self._close(step)
        self.turn(("failed", step, *Failure(error_type, message)))

    def _close(self, step: str) -> None:
        if step not in (*self.activities, *self.calls):
            raise LookupError(f"no step {step!r} is open; {self._open()}")
        self.activities.pop(step, None)
        self.calls.pop(step, None)

    def _open(self) -> str:
        return f"open are {', '.join([*self.activities, *self.calls]) or 'none'}"

    def advance(self) -> str:
        """Let the timer that is due first fire, at its time. Returns its step. Raises `LookupError` without a timer."""
        if not self.timers:
            raise LookupError(f"no timer is pending; the workflow is {self.status}, {self._open()}")
        step = min(self.timers, key=lambda s: (self.timers[s], s))
        self.now_ms = max(self.now_ms, self.timers.pop(step))
        self.turn(("fired", step))
        return step

    def event(self, name: str, payload: Any = None) -> None:
        self.turn(("event", name, payload))

    def turn(self, *inputs: Input) -> None:
        """One turn with these inputs. A stall is recorded as the engine records it."""
        program = self._live()
        text = encode_inputs(list(inputs))
        try:
            commands = encode_commands(program.apply(self.now_ms, parse(text)))
        except Stall as stall:
            self.drop()
            text, commands = encode_inputs([("stalled", stall.kind, stall.message), *inputs]), ""
        record = Record(self.now_ms, text, commands)
        self.records.append(record)
        self.summary.apply(record)
        for command in parse(commands):
            self._perform(command)
        if self.evict:
            self.drop()

    def drop(self) -> None:
        """Evict the live run."""
        if self._held is not None:
            self._held.close()
            self._held = None

    # -- what came of it ----------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        return self.summary.status

    @property
    def output(self) -> Any:
        return self.summary.output

    @property
    def failure(self) -> tuple[str, str] | None:
        return self.summary.failure

    @property
    def stall(self) -> tuple[str, str] | None:
        return self.summary.stall

    def _live(self) -> Program:
        if self._held is None:
            self._held = Live(replay(self.definition, self.instance_id, self.records, SURFACE))
        return self._held.program

    def _perform(self, command: list[Any]) -> None:
        kind, step = command[0], command[1]
        if kind == "activity":
            self.activities[step] = (command[2], command[3])
        elif kind == "timer":
            self.timers[step] = command[2]
        elif kind == "cancel":
            self.timers.pop(step, None)
        elif kind == "abandon":
            self.activities.pop(step, None)
            self.calls.pop(step, None)
        elif kind == "call":
            self.calls[step] = (command[2], command[3], command[4], command[5])
        elif kind == "send":
            self.sends.append((command[2], command[3], command[4], command[5]))
