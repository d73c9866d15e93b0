"""A workflow instance: an event-sourced actor whose history is the record of its turns.

Every input (an activity's result, a timer, an event, pause, …) is one turn of the actor ``mecha.workflow/<instance
id>``, see `workflow.advance`. So single activation, fencing, atomicity and recovery are the actor's; nothing here
writes or schedules by itself.

An instance whose code cannot go on is *stalled*: the input is recorded all the same, unapplied, and waits with the ones
that follow until a later activation, or `resume`, finds code that can replay the history.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from actors import actor, context, definition_of, event, method
from statestores.errors import StoreError
from workflow.advance import Advance, engine_failed, instant, new_record, retry_name
from workflow.context import SURFACE
from workflow.deployment import Deployment  # noqa: TC001  # annotations of an actor are looked up when it is defined
from workflow.errors import PayloadLost, Refused, Stall
from workflow.history import (
    ACTOR_TYPE,
    FAILED,
    STALLED,
    TERMINAL,
    Input,
    Record,
    Start,
    Summary,
)
from workflow.orders import OpenOrders, Order
from workflow.payloads import Stored, reference
from workflow.program import Live, Program
from workflow.replay import replay, replay_reading

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from actors import ActorDefinition, Turn
    from statestores.model import Event
    from workflow.definition import Workflow
    from workflow.payloads import Keeper
    from workflow.pieces import Data

MARKER_KIND = "activities"
"""Posted work: this instance has open orders."""
ROW_KIND = "activity"
"""Posted work: one order that outlives its workflow, in full. (Before there were markers, each was posted so.)"""

MISSING = "missing"

_NEVER = 2**62
_FOLDED_AT_ONCE = 1000
_RECORDED = operator.itemgetter("t", "i", "c")
# Results are bounded by the activities in flight, not by the mailbox; to refuse one would only run its activity again.
_MAILBOX_LIMIT = 1_000_000


class WorkflowInstance:
    """The actor. One subclass per `Engine`, see `instance_type`. Methods answer with a word rather than an exception
    where the caller is expected to ask: "" done, "missing", "exists", "terminal" and the execution that has ended, or
    the present status; those that are called under a key raise it, see `Refused`."""

    _deployment: ClassVar[Deployment]

    name: str = ""
    status: str = ""
    execution: str = ""
    # Identity of the start request: the same one again, of the same workflow, is the same start.
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
    # Open orders; None: to be found in the records, from `_since` on. The marker that stands for them: "" when there
    # are none, None when none was ever posted.
    _open: OpenOrders | None = None
    _marker: str | None = None
    _since: int = 0
    # Large values that the records refer to: digest -> id. See `workflow.payloads`.
    _payloads: dict[str, str] | None = None
    # The replay of a stalled instance was tried in this activation: not again before somebody says `resume`.
    _tried: bool = False

    # -- the history --------------------------------------------------------------------------------------------------

    @event
    def advanced(
        self, t: int, i: str, c: str, s: str = "", x: str = "", m: str | None = None, p: dict[str, str] | None = None
    ) -> None:
        """One turn: time, inputs, commands. `s` is not empty when anything that is shown has changed; `x`: the
        traceback of a failure; `m`: the marker that was posted, "" when it was removed, None or absent when it stays
        as it was; `p`: ids of the large values that are referred to for the first time, by their digest."""
        self._know(p)
        self._fold(Record(t, i, c), s, x, m)

    def __mecha_fold__(self, events: Sequence[Event]) -> None:
        """All of a history: `advanced` for each of its events. Most records change nothing that is shown, and are only
        kept; so they are parsed many at a time."""
        records: list[Record] = []
        for start in range(0, len(events), _FOLDED_AT_ONCE):
            some = events[start : start + _FOLDED_AT_ONCE]
            if any(event.name != "advanced" for event in some):
                raise LookupError("an event that is not of a workflow")
            facts = orjson.loads(b"[%b]" % b",".join([event.data for event in some]))
            kept = list(map(new_record, map(_RECORDED, facts)))
            for position, (fact, record) in enumerate(zip(facts, kept, strict=True), len(records)):
                if "m" in fact:
                    self._marker, self._since = fact["m"], position
                if "p" in fact:
                    self._know(fact["p"])
                if fact["s"]:
                    self._summary = self._summary or Summary()
                    self._summary.apply(record)
                    self._show(self._summary, record, fact["x"])
            records += kept
        if records:
            self.__dict__["updated_ms"] = records[-1].time_ms
        self._records = None if self.status in TERMINAL else records

    def _fold(self, record: Record, telling: str, trace: str, marker: str | None) -> None:
        own = self.__dict__
        records = own.get("_records")
        if records is None:
            records = own["_records"] = []
        if marker is not None:
            own["_marker"], own["_since"] = marker, len(records)
        records.append(record)
        own["updated_ms"] = record.time_ms
        if telling:
            summary = self._summary
            if summary is None:
                summary = self._summary = Summary()
            summary.apply(record)
            self._show(summary, record, trace)

    def _know(self, payloads: dict[str, str] | None) -> None:
        if payloads:
            self.__dict__["_payloads"] = {**(self._payloads or {}), **payloads}

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
        return self._start(name, orjson.Fragment(input), at_ms, delay_ms, request, None)

    @method
    def start_large(self, name: str, stored: str, at_ms: int, delay_ms: int, request: str) -> str:
        """`stored`: where the JSON of the input is."""
        return self._start(name, None, at_ms, delay_ms, request, Stored.parse(stored))

    @method
    def start_once(self, name: str, input: str, at_ms: int, delay_ms: int, request: str, large: bool) -> str:
        """`start` under a key, whose receipt outlives what is recorded: of this execution, when another one follows or
        it is purged. `input`: JSON text; `large`: where it is."""
        if large:
            refused = self._start(name, None, at_ms, delay_ms, request, Stored.parse(input))
        else:
            refused = self._start(name, orjson.Fragment(input), at_ms, delay_ms, request, None)
        if refused:
            raise Refused(refused)
        return ""

    def _start(
        self, name: str, input: orjson.Fragment | None, at_ms: int, delay_ms: int, request: str, stored: Stored | None
    ) -> str:
        if self.status:
            if self.request == request and self.name == name:
                return ""
            return f"terminal {self.execution}" if self.status in TERMINAL else "exists"
        turn = context()
        now_ms = turn.now_ms()
        at: int | None = max(at_ms, now_ms + delay_ms)
        if at == now_ms:
            at = None
        keeper = self._deployment.keeper
        begin = Start(turn.actor_id, turn.turn_id, name, input, at, request, 0 if keeper is None else keeper.limit)
        if at is not None:
            turn.set_reminder("start", due=instant(at), data=f"start {turn.turn_id} -", callback="timer_fired")
        if stored is None:
            Advance(self, turn, [begin.to_input()], name).run()
        else:
            begin = begin._replace(reference=reference(stored.digest, stored.size))
            Advance(self, turn, [begin.to_input()], name).take_in(stored)
        return ""

    @method
    def activity_done(self, message: str, execution: str, step: str, result: str) -> None:
        """`message`: the row that stands for the order alone, or "". `result`: JSON text."""
        turn = context()
        if message:
            turn.done(message)
        if self._ordered(execution, step) is not None:
            Advance(self, turn, [("done", step, orjson.Fragment(result))]).run()

    @method
    def activity_done_large(self, message: str, execution: str, step: str, stored: str) -> None:
        """`stored`: where the JSON of the result is. Fails with `PayloadLost` when it is there no more, which can be
        only when this host has the partition from another one, and has begun the order anew."""
        turn = context()
        if message:
            turn.done(message)
        if self._ordered(execution, step) is not None:
            found = Stored.parse(stored)
            Advance(self, turn, [("done", step, None, reference(found.digest, found.size))]).take_in(found)

    @method
    def activity_failed(
        self, message: str, execution: str, step: str, attempt: int, error: list[str], retry_ms: int
    ) -> None:
        """`error`: type, message, traceback. `retry_ms`: try again after so long; -1: this was the last attempt."""
        turn = context()
        if message:
            turn.done(message)
        order = self._ordered(execution, step)
        if order is None or order.attempt != attempt:  # the same attempt, delivered twice, fails once
            return
        if retry_ms < 0:
            Advance(self, turn, [("failed", step, *error)]).run()
            return
        due_ms = turn.now_ms() + retry_ms
        again = f"again {execution} {attempt + 1}:{order.first_ms} {step}"
        turn.set_reminder(retry_name(step), due=instant(due_ms), data=again, callback="timer_fired")
        Advance(self, turn, [("retry", step, attempt + 1, due_ms, error[0], error[1])]).run()

    @method
    def resume_orders(self, message: str, redelivered: bool) -> None:
        """A scan has found the row `message`: begin whatever is open and not under way."""
        turn = context()
        if message != self._marker:  # of a commit this one rests on, which has removed it by now
            turn.done(message)
            return
        orders = self._addressed((self._open or self._open_orders()).orders.values())
        turn.after_commit(lambda: self._deployment.begin(message, self._still_open(message, orders), redelivered))

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
        Advance(self, context(), [item]).run()

    @method
    def timer_fired(self, data: str) -> None:
        kind, execution, rest = data.split(" ", 2)
        if self.status in TERMINAL or execution != self.execution:
            return
        if kind == "fired":
            Advance(self, context(), [("fired", rest)]).run()
        elif kind == "start":
            Advance(self, context(), [("begun",)]).run()
        else:
            attempt, _, step = rest.partition(" ")
            number, _, first_ms = attempt.partition(":")
            again: Input = ("again", step, int(number), int(first_ms)) if first_ms else ("again", step, int(number))
            Advance(self, context(), [again]).run()

    @method
    def raise_event(self, name: str, payload: str, large: bool = False) -> str:
        """`payload`: JSON text; `large`: where it is. (One method for both: under one key they are one event.) Ignored
        once the instance has ended."""
        if not self.status:
            raise Refused(MISSING)
        if self.status in TERMINAL:
            return ""
        if large:
            found = Stored.parse(payload)
            item: Input = ("event", name, None, reference(found.digest, found.size))
            Advance(self, context(), [item]).take_in(found)
        else:
            Advance(self, context(), [("event", name, orjson.Fragment(payload))]).run()
        return ""

    @method
    def pause(self) -> str:
        if not self.status:
            return MISSING
        if self.status not in TERMINAL and not self._folded().paused:
            Advance(self, context(), [("paused",)]).run()
        return ""

    @method
    def resume(self) -> str:
        """Ends a pause, and tries a stalled instance again with the present code."""
        if not self.status:
            return MISSING
        if self.status in TERMINAL:
            return ""
        self._tried = False
        self._deployment.poison.pop(context().actor_id, None)
        if self._folded().paused:
            Advance(self, context(), [("resumed",)]).run()
        elif self.status == STALLED:
            Advance(self, context(), []).run()
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
        orders = self._open_orders().orders
        self._cancel(turn, list(orders.values()))
        orders.clear()
        Advance(self, turn, [("terminated", orjson.Fragment(output))]).park()
        return ""

    @method
    def purge(self, force: bool, execution: str) -> str:
        """Remove everything. `execution`: only if it is still that one; "": whichever."""
        if not self.status:
            raise Refused(MISSING)
        if execution and execution != self.execution:
            return ""
        if self.status not in TERMINAL and not force:
            raise Refused(self.status)
        self._drop()
        turn = context()
        instance_id = turn.actor_id
        if self._marker:
            turn.done(self._marker)
        turn.delete()
        if self.status not in TERMINAL:  # what one that has completed left behind is still to be done
            self._cancel(turn, list(self._open_orders().orders.values()))
        turn.after_commit(lambda: self._deployment.tell(instance_id, MISSING))
        keeper, stream, payloads = self._deployment.keeper, turn.stream, self._payloads
        if keeper is not None and payloads:
            turn.after_commit(lambda: keeper.forget(stream, payloads.values()))
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
        for field in _VALUES:  # each by itself: JSON may be nested so deep, and no deeper
            shown[field] = orjson.Fragment(orjson.dumps(shown[field]))
        if self._payloads:
            shown["payloads"] = self._shown_payloads()
        return orjson.dumps(shown).decode()  # all of it was JSON before

    def _shown_payloads(self) -> dict[str, str]:
        """Where input and output are, when they are large."""
        summary = self._folded()
        found = {
            "input": None if summary.started is None else summary.started.reference,
            "output": summary.output_reference,
        }
        return {field: str(self._stored(refers)) for field, refers in found.items() if refers is not None}

    # -- for a turn, see `workflow.advance` ---------------------------------------------------------------------------

    def _ordered(self, execution: str, step: str) -> Order | None:
        """The open order of a step, if its outcome is still wanted."""
        if execution != self.execution or self.status in TERMINAL:
            return None
        return (self._open or self._open_orders()).orders.get(step)

    def _expects(self, execution: str, step: str) -> bool:
        """Whether the outcome of a call to an actor is still wanted: of this execution, not ended, and (where the code
        can be asked) not given up by it."""
        if execution != self.execution or self.status in TERMINAL:
            return False
        if self.status == STALLED:
            return True
        live = self._live
        if live is None and self._payloads:
            return True  # to ask the code takes reading; recorded for nothing, it does no harm
        try:
            program = self._replayed() if live is None else live.program
        except Stall:
            return True  # the turn finds it out again, and records it
        return program.parked or program.pending(step) is not None

    def _still_open(self, marker: str, orders: list[Order]) -> list[Order]:
        """Those that no turn since has closed. (All of them, when the run was dropped meanwhile: nobody has looked.)"""
        if marker != self._marker:
            return []
        return orders if self._open is None else [order for order in orders if self._open.has(order)]

    def _move_marker(self, turn: Turn, orders: dict[str, Order], *, ended: bool) -> str | None:
        """INV-9: it stands while there are open orders. The new one, "" when there is none any more; None: as before.
        Orders the code has left open at its end go on for themselves."""
        if ended:
            for order in self._addressed(orders.values()):
                turn.post(ROW_KIND, order.encode())
            orders.clear()
        if orders:
            return None if self._marker else turn.post(MARKER_KIND, b"{}")
        if self._marker:
            turn.done(self._marker)
            return ""
        return None

    def _addressed(self, orders: Iterable[Order]) -> list[Order]:
        """Saying where their arguments are, when those are large."""
        found = list(orders)
        for order in found:
            if order.reference is not None:
                order.stored = str(self._stored(order.reference))
        return found

    def _stored(self, refers: dict[str, Any]) -> Stored:
        assert self._payloads is not None
        return Stored(refers["@"], refers["n"], self._payloads[refers["@"]])

    def _keeper(self) -> Keeper:
        """Raises `PayloadLost` where the store has no place for large values."""
        keeper = self._deployment.keeper
        if keeper is None:
            raise PayloadLost("this host's store has no payloads")
        return keeper

    def _open_orders(self) -> OpenOrders:
        """As recorded."""
        records = self._records or ()
        since = len(records) if self._marker == "" else self._since
        turn = context()
        # An execution has the id of the turn that starts it.
        found = OpenOrders.of(turn.actor_id, self.execution or turn.turn_id, records, since)
        self.__dict__["_open"] = found
        return found

    def _tell(self, turn: Turn) -> None:
        """Wake those who wait, once this is durable."""
        deployment, instance_id = self._deployment, turn.actor_id
        if instance_id not in deployment.waiters and instance_id not in deployment.poison:
            # Somebody may begin to wait before the commit: he sees the status, and his answer waits for the commit.
            return
        shown = self._shown()
        turn.after_commit(lambda: deployment.tell(instance_id, shown))

    def _definition(self, starting: str) -> Workflow[Any, Any]:
        """Raises `Stall`."""
        name = self.name or starting
        definition = self._deployment.workflows.get(name)
        if definition is None:
            raise Stall("UnknownWorkflow", f"no workflow named {name!r} is deployed here")
        return definition

    def _replayed(self, starting: str = "") -> Program:
        """The program, live from now on. Raises `Stall`."""
        definition = self._definition(starting)
        instance_id = context().actor_id
        try:
            program = replay(definition, instance_id, self._records or (), SURFACE)
        except Stall:
            raise
        except Exception as error:
            raise engine_failed(instance_id, error) from error
        self._live = Live(program)
        return program

    async def _replayed_reading(self, starting: str, load: Callable[[dict[str, Any]], Awaitable[Data]]) -> Program:
        """`_replayed` of a history that refers to large values. Raises `PayloadLost`, `StoreError` as well."""
        definition = self._definition(starting)
        instance_id = context().actor_id
        try:
            program = await replay_reading(definition, instance_id, self._records or (), SURFACE, load)
        except (Stall, PayloadLost, StoreError):
            raise
        except Exception as error:
            raise engine_failed(instance_id, error) from error
        self._live = Live(program)
        return program

    def _folded(self) -> Summary:
        assert self._summary is not None
        return self._summary

    def _cancel(self, turn: Turn, orders: list[Order]) -> None:
        deployment = self._deployment
        turn.after_commit(lambda: deployment.cancel(orders))

    def _drop(self) -> None:
        """Of what memory holds, keep only what is recorded."""
        self.__dict__["_open"] = None
        if self._live is not None:
            self._live.close()
            self._live = None


_VALUES = ("input", "output", "custom_status")
_SHOWN = ("name", "status", "execution", "created_ms", "updated_ms", "input", "output", "custom_status", "failure")


def instance_type(deployment: Deployment, idle_timeout_s: float) -> type[WorkflowInstance]:
    """The actor class of one engine."""
    made = type("WorkflowInstance", (WorkflowInstance,), {"_deployment": deployment, "__module__": __name__})
    # No snapshots: replay needs every record. Few receipts: only what was asked for under a key leaves one.
    return actor(
        name=ACTOR_TYPE, idle_timeout=idle_timeout_s, snapshot_every=_NEVER, mailbox_limit=_MAILBOX_LIMIT, receipts="1h"
    )(made)


def definition_for(cls: type[WorkflowInstance]) -> ActorDefinition:
    found = definition_of(cls)
    assert found is not None
    return found
