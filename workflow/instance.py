"""A workflow instance: an event-sourced actor whose history is the record of its turns.

Every input (an activity's result, a timer, an event, pause, …) is one turn of the actor ``mecha.workflow/<instance
id>``:

    1. the live program is at hand, or replayed from the records;
    2. the input is applied: the code runs until it waits again, and issues commands;
    3. one event, `advanced`, records input and commands; what the commands ask for goes into the same commit: timers
       as reminders, calls and sends as messages, activities by the instance's marker (see `workflow.orders`).

So single activation, fencing, atomicity and recovery are the actor's; nothing here writes or schedules by itself. When
a turn fails or its commit is refused the program has seen an input that never was: it is dropped, and replayed next
time.

An instance whose code cannot go on is *stalled*: the input is recorded all the same, unapplied, and waits with the ones
that follow until a later activation, or `resume`, finds code that can replay the history.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import operator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from actors import actor, context, definition_of, event, method
from statestores.codec import encode
from statestores.errors import StoreError
from workflow.context import SURFACE
from workflow.errors import PayloadLost, Stall
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
    encode_inputs,
)
from workflow.orders import OpenOrders, Order
from workflow.payloads import Stored, reference
from workflow.program import Live, Program
from workflow.replay import replay, replay_reading

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from actors import ActorDefinition, Turn
    from statestores.model import Event
    from workflow.definition import Workflow
    from workflow.payloads import Data, Keeper

log = logging.getLogger("workflow")

MARKER_KIND = "activities"
"""Posted work: this instance has open orders."""
ROW_KIND = "activity"
"""Posted work: one order that outlives its workflow, in full. (Before there were markers, each was posted so.)"""

MISSING = "missing"

_NEVER = 2**62
# What a NamedTuple's constructor comes to.
_new_record = functools.partial(tuple.__new__, Record)
_FOLDED_AT_ONCE = 1000
_RECORDED = operator.itemgetter("t", "i", "c")
# Results are bounded by the activities in flight, not by the mailbox; to refuse one would only run its activity again.
_MAILBOX_LIMIT = 1_000_000
_RECHECK_S = 30.0
_POISONED = 3
_ENDS = frozenset({"completed", "failed"})
# Inputs and commands that change what is shown of an instance.
_TELLING = frozenset(
    {"started", "begun", "paused", "resumed", "terminated", "stalled", "recovered", "status", "completed", "failed"}
)


class Deployment:
    """What all instances in one process share: the code, who waits here for the end of which instance, and who does
    activities: `begin(marker, orders, redelivered)`, `cancel(execution, step)`."""

    def __init__(
        self,
        workflows: Mapping[str, Workflow[Any, Any]],
        begin: Callable[[str, Sequence[Order], bool], None],
        cancel: Callable[[str, str | None], None],
        *,
        evict_always: bool,
        keeper: Keeper | None = None,
    ) -> None:
        self.workflows = workflows
        self.begin = begin
        self.cancel = cancel
        # None: the store has no place for large values, and they are recorded like small ones.
        self.keeper = keeper
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

    def release(self, lost: Callable[[str], bool] | None = None) -> None:
        """The host has stopped, or lost the streams for which `lost` is true: nobody will be told of them here."""
        for instance_id in list(self.waiters):
            if lost is None or lost(f"{ACTOR_TYPE}/{instance_id}"):
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
    # Open orders; None: to be found in the records, from `_since` on. The marker that stands for them: "" when there
    # are none, None when none was ever posted.
    _open: OpenOrders | None = None
    _marker: str | None = None
    _since: int = 0
    # Large values that the records refer to: digest -> id. See `workflow.payloads`.
    _payloads: dict[str, str] | None = None
    # The replay of a stalled instance was tried in this activation: not again before somebody says `resume`.
    _tried: bool = False
    # Errors of ours that made turns fail, in this activation: not for ever.
    _poison: tuple[str, ...] = ()

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
            kept = list(map(_new_record, map(_RECORDED, facts)))
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

    def _start(
        self, name: str, input: orjson.Fragment | None, at_ms: int, delay_ms: int, request: str, stored: Stored | None
    ) -> str:
        if self.status:
            if self.request == request:
                return ""
            return "terminal" if self.status in TERMINAL else "exists"
        turn = context()
        now_ms = turn.now_ms()
        at: int | None = max(at_ms, now_ms + delay_ms)
        if at == now_ms:
            at = None
        keeper = self._deployment.keeper
        begin = Start(turn.actor_id, turn.turn_id, name, input, at, request, 0 if keeper is None else keeper.limit)
        if at is not None:
            turn.set_reminder("start", due=_instant(at), data=f"start {turn.turn_id} -", callback="timer_fired")
        if stored is None:
            self._advance(turn, [begin.to_input()], name)
        else:
            begin = begin._replace(reference=reference(stored.digest, stored.size))
            self._take_in(turn, begin.to_input(), stored, name)
        return ""

    @method
    def activity_done(self, message: str, execution: str, step: str, result: str) -> None:
        """`message`: the row that stands for the order alone, or "". `result`: JSON text."""
        turn = context()
        if message:
            turn.done(message)
        if self._ordered(execution, step) is not None:
            self._advance(turn, [("done", step, orjson.Fragment(result))])

    @method
    def activity_done_large(self, message: str, execution: str, step: str, stored: str) -> None:
        """`stored`: where the JSON of the result is. Fails with `PayloadLost` when it is there no more, which can be
        only when this host has the partition from another one, and has begun the order anew."""
        turn = context()
        if message:
            turn.done(message)
        if self._ordered(execution, step) is not None:
            found = Stored.parse(stored)
            self._take_in(turn, ("done", step, None, reference(found.digest, found.size)), found)

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
            self._advance(turn, [("failed", step, *error)])
            return
        due_ms = turn.now_ms() + retry_ms
        again = f"again {execution} {attempt + 1}:{order.first_ms} {step}"
        turn.set_reminder(_retry_name(step), due=_instant(due_ms), data=again, callback="timer_fired")
        self._advance(turn, [("retry", step, attempt + 1, due_ms, error[0], error[1])])

    @method
    def resume_orders(self, message: str, redelivered: bool) -> None:
        """A scan has found the row `message`: begin whatever is open and not under way."""
        turn = context()
        if message != self._marker:  # of a commit this one rests on, which has removed it by now
            turn.done(message)
            return
        orders = self._addressed((self._open or self._open_orders()).orders.values())
        turn.after_commit(lambda: self._deployment.begin(message, orders, redelivered))

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
            number, _, first_ms = attempt.partition(":")
            again: Input = ("again", step, int(number), int(first_ms)) if first_ms else ("again", step, int(number))
            self._advance(context(), [again])

    @method
    def raise_event(self, name: str, payload: str) -> str:
        """`payload`: JSON text. Ignored once the instance has ended."""
        if not self.status:
            return MISSING
        if self.status not in TERMINAL:
            self._advance(context(), [("event", name, orjson.Fragment(payload))])
        return ""

    @method
    def raise_event_large(self, name: str, stored: str) -> str:
        """`stored`: where the JSON of the payload is."""
        if not self.status:
            return MISSING
        if self.status not in TERMINAL:
            found = Stored.parse(stored)
            self._take_in(context(), ("event", name, None, reference(found.digest, found.size)), found)
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
        self._open_orders().orders.clear()
        self._cancel_activities(turn, self.execution)
        items: list[Input] = [("terminated", orjson.Fragment(output))]
        self._record(turn, self._now_ms(turn), items, encode_inputs(items), [], "")
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
        if self._marker:
            turn.done(self._marker)
        turn.delete()
        if self.status not in TERMINAL:  # what one that has completed left behind is still to be done
            self._cancel_activities(turn, self.execution)
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

    # -- one turn -----------------------------------------------------------------------------------------------------

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

    def _advance(self, turn: Turn, inputs: list[Input], starting: str = "") -> None:
        """Apply inputs, record them with what the code commanded, and do that. `starting`: name of a workflow that
        begins."""
        if self._payloads:
            turn.go_on(functools.partial(self._advance_reading, turn, inputs, starting, {}, {}))
        else:
            self._advance_now(turn, inputs, starting, None)

    def _take_in(self, turn: Turn, item: Input, stored: Stored, starting: str = "") -> None:
        """`_advance` by an input that refers to a large value."""
        turn.go_on(functools.partial(self._take_in_reading, turn, item, stored, starting))

    async def _take_in_reading(self, turn: Turn, item: Input, stored: Stored, starting: str) -> None:
        """The value is there, under an id of this epoch, before anything is recorded of it. Raises `PayloadLost`."""
        keeper = self._keeper()
        kept: dict[str, str] = {}
        arrived: dict[str, Data] = {}
        if stored.digest not in (self._payloads or ()):
            if stored.epoch != turn.epoch:
                arrived[stored.digest] = data = await keeper.load(turn.stream, stored)
                kept[stored.digest] = (await keeper.keep(turn.stream, data, turn.is_over)).id
            else:
                kept[stored.digest] = stored.id
        await self._advance_reading(turn, [item], starting, kept, arrived)

    async def _advance_reading(
        self, turn: Turn, inputs: list[Input], starting: str, kept: dict[str, str], arrived: dict[str, Data]
    ) -> None:
        """`_advance` where the history or the inputs refer to large values. No other turn runs meanwhile. `kept`: ids
        that are to be recorded with this turn; `arrived`: values that are at hand."""
        known = {**(self._payloads or {}), **kept}

        async def load(wanted: dict[str, Any]) -> Data:
            digest = wanted["@"]
            found = arrived.pop(digest, None)
            stored = Stored(digest, wanted["n"], known[digest])
            return found if found is not None else await self._keeper().load(turn.stream, stored)

        try:
            if not self._is_poisoned() and not (self.status == STALLED and self._tried):
                program = self._live.program if self._live is not None else await self._replayed_reading(starting, load)
                recovering = [("recovered",)] if self.status == STALLED else []
                for wanted in program.wanted(orjson.loads(orjson.dumps([*recovering, *inputs]))):
                    program.supply(wanted["@"], await load(wanted))
        except PayloadLost as error:
            self._stall(turn, inputs, Stall("PayloadLost", str(error)), kept)
        except Stall as stall:
            self._stall(turn, inputs, stall, kept)
        except BaseException:
            self._drop()
            raise
        else:
            self._advance_now(turn, inputs, starting, kept)

    def _advance_now(self, turn: Turn, inputs: list[Input], starting: str, kept: dict[str, str] | None) -> None:
        items = inputs
        try:
            if self._is_poisoned():
                raise Stall("EngineError", self._poison[-1])
            if self.status == STALLED:
                if self._tried:
                    self._park(turn, inputs, kept)
                    return
                items = [("recovered",), *inputs]
            # Not by `encode`: whatever of this comes from outside has been through it already.
            text = orjson.dumps(items).decode()
            live = self._live
            program = live.program if live is not None else self._replayed(starting)
            # Read once: the time the code saw is the time that is recorded.
            now_ms = turn.now_ms()
            if now_ms < self.updated_ms:
                now_ms = self.updated_ms  # as the history tells it, time never goes back
            commands = program.apply(now_ms, orjson.loads(text))
        except Stall as stall:
            self._stall(turn, inputs, stall, kept)
            return
        except Exception as error:
            self._stall(turn, inputs, _engine_failed(turn.actor_id, error), kept)
            return
        except BaseException:
            self._drop()
            raise
        if program.outgoing:
            turn.go_on(functools.partial(self._conclude_storing, turn, program, now_ms, items, text, commands, kept))
        else:
            self._conclude(turn, program, now_ms, items, text, commands, kept)

    async def _conclude_storing(
        self,
        turn: Turn,
        program: Program,
        now_ms: int,
        items: list[Input],
        text: str,
        commands: list[Command],
        kept: dict[str, str] | None,
    ) -> None:
        """What the commands refer to is durable before they are (PAY-1)."""
        keeper, stream = self._keeper(), turn.stream
        known = kept or {}
        try:
            while program.outgoing:
                digest, data = program.outgoing.popitem()
                if digest not in known and digest not in (self._payloads or ()):
                    known[digest] = (await keeper.keep(stream, data, turn.is_over)).id
        except BaseException:
            self._drop()
            raise
        self._conclude(turn, program, now_ms, items, text, commands, known)

    def _conclude(
        self,
        turn: Turn,
        program: Program,
        now_ms: int,
        items: list[Input],
        text: str,
        commands: list[Command],
        kept: dict[str, str] | None,
    ) -> None:
        """Record what the code has commanded, and see to it."""
        try:
            if len(commands) != 1 or commands[0][0] != "activity":
                self._perform(turn, program, commands)
            self._record(turn, now_ms, items, text, commands, program.traceback, kept)
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

    def _is_poisoned(self) -> bool:
        return len(self._poison) >= _POISONED

    def _stall(self, turn: Turn, inputs: list[Input], stall: Stall, kept: dict[str, str] | None) -> None:
        """The code cannot go on: record that, once, with the inputs that wait for better code."""
        self._drop()
        self._tried = True
        already = self._folded().stall if self.status == STALLED else None
        if already != (stall.kind, stall.message):
            log.warning("workflow instance %s is stalled: %s: %s", turn.actor_id, stall.kind, stall.message)
            inputs = [("stalled", stall.kind, stall.message), *inputs]  # the marker first: what follows it is parked
        self._park(turn, inputs, kept)

    def _now_ms(self, turn: Turn) -> int:
        """Time as the history tells it: it never goes back."""
        return max(turn.now_ms(), self.updated_ms)

    def _park(self, turn: Turn, inputs: list[Input], kept: dict[str, str] | None) -> None:
        if inputs:
            self._record(turn, self._now_ms(turn), inputs, encode_inputs(inputs), [], "", kept)

    def _record(
        self,
        turn: Turn,
        now_ms: int,
        items: list[Input],
        inputs: str,
        commands: list[Command],
        trace: str,
        kept: dict[str, str] | None = None,
    ) -> None:
        """Record the event `advanced`, and apply it. (Calling it would do the same, at three times the cost.) `inputs`:
        the items as text."""
        before = self.status
        if kept:
            self._know(kept)
        known = self._open or self._open_orders()
        opened = known.apply(now_ms, items, commands)
        marker = self._move_marker(turn, known.orders, ended=bool(commands) and commands[-1][0] in _ENDS)
        told = "1" if _is_telling(items, commands) else ""
        issued = orjson.dumps(commands).decode() if commands else ""
        fields = {"t": now_ms, "i": inputs, "c": issued, "s": told, "x": trace}
        if marker is not None:
            fields["m"] = marker
        if kept:
            fields["p"] = kept
        turn.record_encoded("advanced", orjson.dumps(fields))
        self._fold(_new_record((now_ms, inputs, issued)), told, trace, marker)
        if opened and (standing := self._marker):
            begin = self._deployment.begin
            if self._payloads:
                opened = self._addressed(opened)
            turn.after_commit(lambda: begin(standing, opened, False))
        if not told:
            return
        if self.status != before:
            turn.set_index(name=self.name, status=self.status)
            if self._is_over():
                self._tell(turn)

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
        if deployment.waiters.get(instance_id) is None:
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
            raise _engine_failed(instance_id, error) from error
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
            raise _engine_failed(instance_id, error) from error
        self._live = Live(program)
        return program

    def _folded(self) -> Summary:
        assert self._summary is not None
        return self._summary

    def _cancel_activities(self, turn: Turn, execution: str, step: str | None = None) -> None:
        deployment = self._deployment
        turn.after_commit(lambda: deployment.cancel(execution, step))

    def _drop(self) -> None:
        """Of what memory holds, keep only what is recorded."""
        self.__dict__["_open"] = None
        if self._live is not None:
            self._live.close()
            self._live = None

    # -- what commands ask for ----------------------------------------------------------------------------------------

    def _perform(self, turn: Turn, program: Program, commands: list[Command]) -> None:
        execution = program.execution
        for command in commands:
            kind = command[0]
            if kind == "activity":
                continue
            if kind == "timer":
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
                self._cancel_activities(turn, execution, command[1])
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
