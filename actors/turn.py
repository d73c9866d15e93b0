"""The turn: decide, commit, act.

A `Turn` is one message handled by one activation, start to end. While the user's method runs it collects, beside the
changes to the actor's fields, all the method wants done; nothing of it happens before the turn is committed. To user
code it is the *context*: `context()` inside a method gives the running turn.

    running ──returns──▶ decided ──store──▶ committed ──▶ answered, messages leave, timers start
       │                    │
       └──raises──▶ failed  └──refused──▶ dropped with its activation, and run again elsewhere if the caller has time

What is collected here becomes one `TurnCommit` (see `actors.decision`), so the fields below mirror it.
"""

from __future__ import annotations

import contextvars
import dataclasses
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ParamSpec

from actors.definition import HOOKS
from actors.errors import ActorMoved, InvalidState, UnknownMethod
from actors.message import Envelope
from actors.names import check_name, check_text, stream_of
from actors.schedule import Misfire, make_schedule
from statestores.model import IndexQuery, NewEvent, OutboxMessage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime, timedelta

    from actors.activation import Activation
    from actors.definition import EventMethod, Method
    from actors.message import Call
    from actors.ref import MakeReference
    from actors.reminders import ReminderInfo
    from statestores.errors import CommitRefused, StoreUnavailable
    from statestores.model import Reminder

    Span = str | int | float | timedelta
    When = Span | datetime

P = ParamSpec("P")
# What a NamedTuple's own constructor comes to, at a fraction of its cost.
_new = tuple.__new__

_current: contextvars.ContextVar[Turn | None] = contextvars.ContextVar("mecha_turn", default=None)


def context() -> Turn:
    """The running turn. Raises `RuntimeError` outside of one."""
    turn = _current.get()
    if turn is None:
        raise RuntimeError("context() works inside an actor's method only; outside, use the Runtime")
    if turn.closed:
        raise _ended(turn)
    return turn


def current_turn() -> Turn | None:
    """The running turn, None outside of one."""
    turn = _current.get()
    return None if turn is None or turn.closed else turn


def refuse_replayed() -> None:
    """For what a client does with its host by no call of a reference: code that is replayed cannot do it again. What
    stands in there for a turn raises."""
    if (turn := _current.get()) is not None:
        _ = turn.activation


def send(method: Callable[P, Awaitable[Any]] | Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Send a one-way message: ``send(context().actor(Airport, "JFK").departed, miles=10)``. It leaves when the turn has
    been committed, is delivered even if everything crashes right after, and takes effect exactly once (INV-8)."""
    context().send(method, *args, **kwargs)


class TimerRequest:
    """A timer to start once the turn is committed."""

    __slots__ = ("callback", "data", "due", "name", "period", "ttl")

    def __init__(
        self, name: str, due: When | None, period: Span | None, ttl: When | None, data: Any, callback: str | None
    ) -> None:
        self.name, self.due, self.period, self.ttl, self.data, self.callback = name, due, period, ttl, data, callback


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Turn:
    """One running turn, and the context of the code in it. All times are the host's clock."""

    activation: Activation
    call: Call
    method: Method
    events: list[NewEvent] | None = None
    # Wants anything beside events and changed fields: set by whatever fills one of the following.
    wrote: bool = False
    outbox: list[tuple[OutboxMessage, Envelope]] | None = None
    outbox_done: list[str] | None = None
    reminders_set: dict[str, Reminder] | None = None
    reminders_cleared: set[str] | None = None
    timers: dict[str, TimerRequest | None] | None = None
    # Name, status, and since when, if that is another time than the commit's.
    listing: tuple[str, str, int | None] | None = None
    deleting: bool = False
    callbacks: list[Callable[[], None]] | None = None
    # What is still to be waited for when the method has returned.
    rest: Callable[[], Coroutine[Any, Any, None]] | None = None
    # The event that is being applied: fields of event-sourced actors may be assigned only then. Or the one whose method
    # has raised: it can be applied no more than that when the state is rebuilt, so the turn cannot be recorded.
    applying: str = ""
    # Why the turn is being cancelled, once it is.
    cancelled_by: BaseException | None = None
    task: asyncio.Task[Any] | None = None
    # Calls of its own chain that came back and run inside it (reentrancy), in the order in which they came.
    joined: dict[asyncio.Task[Any], Call] | None = None
    depth: int = 1
    # How many calls below its key it has made that are equal (see `nested_key`).
    nested_calls: dict[tuple[str, str, str], int] | None = None
    # Decided or failed: code that still holds this context (a stray background task) may no longer use it.
    closed: bool = False
    failed: bool = False
    _turn_id: str | None = None
    _chain_id: str | None = None
    result: Any = None

    # -- what user code may ask ----------------------------------------------------------------------------------------

    @property
    def actor_type(self) -> str:
        return self.activation.definition.name

    @property
    def actor_id(self) -> str:
        return self.activation.stream.partition("/")[2]

    @property
    def stream(self) -> str:
        return self.activation.stream

    @property
    def turn_id(self) -> str:
        """Unique for ever; recorded with the turn's events."""
        turn_id = self._turn_id
        if turn_id is None:
            turn_id = self._turn_id = self.activation.host.new_id()
        return turn_id

    @property
    def caller(self) -> str:
        """The stream of the calling actor, or what a client gave as its name."""
        return self.call.caller

    @property
    def trace_id(self) -> str:
        return self.call.trace_id

    @property
    def idempotency_key(self) -> str | None:
        return self.call.key if self.call.key is not None else self.call.outbox_id

    def nested_key(self, stream: str, method: str, arguments: bytes) -> str:
        """For a call that this turn, which has a key itself, makes: so that a repeated turn repeats no effects. It is
        derived from the turn's own key, the arguments (a text of them), and how many equal calls it has made before.

        The losing alternative, the call's place among all that the turn makes, is not the same each time: calls made
        beside each other (`asyncio.gather`) may come in another order, and would get each other's answers."""
        # Keys belong to one actor's method: those of others may look the same.
        own = f"{self.stream}.{self.method.name}:{self.idempotency_key}\0"
        digest = blake2b(own.encode() + arguments, digest_size=16).hexdigest()
        made = self.nested_calls = {} if self.nested_calls is None else self.nested_calls
        equal = made[stream, method, digest] = made.get((stream, method, digest), 0) + 1
        return f"{digest}/{equal}"

    @property
    def chain_id(self) -> str:
        """Identity of the call chain this turn belongs to (Dapr's reentrancy id)."""
        if self._chain_id is None:
            self._chain_id = self.call.chain_id or self.turn_id
        return self._chain_id

    @property
    def epoch(self) -> int:
        """Under which this turn is recorded, if it is: an activation lives in one epoch."""
        activation = self.activation
        return activation.host.epochs[activation.partition]

    def now_ms(self) -> int:
        return self.activation.host.clock.now_ms()

    # -- talking to other actors ---------------------------------------------------------------------------------------

    @property
    def actor(self) -> MakeReference:
        """A reference to another actor. ``await ref.method(…)`` is a call inside this turn: what it did stays done even
        if this turn fails later. Use `send` for effects that must stand or fall with this turn."""
        return self.activation.host.client.actor

    def send(self, method: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """See `actors.send`."""
        from actors.ref import target_of  # references know turns

        stream, name, payload = target_of(method, args, kwargs)
        self._post(Envelope("turn", stream, name, payload, self.trace_id))

    def send_raw(self, actor_type: str, actor_id: str, method: str, payload: bytes = b"") -> str:
        """`send` with arguments already encoded (see `Signature.bind_json`). Returns the message's id."""
        return self._post(Envelope("turn", _checked_stream(actor_type, actor_id), method, payload, self.trace_id))

    def call_durably(
        self, actor_type: str, actor_id: str, method: str, payload: bytes, *, reply_method: str, token: str
    ) -> str:
        """A call whose turn runs exactly once and whose outcome comes back, exactly once, as a turn of this actor:
        ``reply_method(token: str, result, error: {"type", "message", "traceback"} | None)``. Returns the message's
        id."""
        stream = _checked_stream(actor_type, actor_id)
        return self._post(Envelope("turn", stream, method, payload, self.trace_id, reply_method, token))

    def post(self, kind: str, payload: bytes) -> str:
        """Hand JSON to the host's worker of that kind after the commit, and again after every restart until a turn of
        this actor commits `done` of the returned id."""
        return self._post(Envelope(kind, payload=payload, trace_id=self.trace_id))

    def done(self, message_id: str) -> None:
        """Work posted under this id is finished; recorded with this turn."""
        self._check_writing("done")
        if self.outbox_done is None:
            self.outbox_done = []
        self.outbox_done.append(message_id)

    # -- reminders and timers ------------------------------------------------------------------------------------------

    def set_reminder(
        self,
        name: str,
        *,
        due: When | None = None,
        period: Span | None = None,
        ttl: When | None = None,
        repeats: int | None = None,
        data: Any = None,
        callback: str | None = None,
        misfire: Misfire = "latest",
    ) -> None:
        """A durable wake-up, replacing one of that name. It fires as a turn: ``callback(data)`` when given, else
        ``receive_reminder(name, data)``; the advance of its schedule is recorded with that turn, so each tick takes
        effect once. `misfire` decides what happens to ticks missed while nothing was running. Raises
        `InvalidSchedule`, `UnknownMethod`."""
        from actors.reminders import encode_reminder

        self._check_writing("set_reminder")
        check_name("reminder name", name)
        self._check_callback(callback, "receive_reminder")
        now_ms = self.now_ms()
        due_ms, schedule = make_schedule(due, period, ttl, repeats, misfire, now_ms, first_fire_immediate=False)
        if self.reminders_set is None:
            self.reminders_set = {}
        self.reminders_set[name] = encode_reminder(self.stream, name, due_ms, schedule, data, callback)

    def clear_reminder(self, name: str) -> None:
        """Remove a reminder; an absent one is fine."""
        self._check_writing("clear_reminder")
        if self.reminders_set is not None:
            self.reminders_set.pop(name, None)
        if self.reminders_cleared is None:
            self.reminders_cleared = set()
        self.reminders_cleared.add(name)

    async def reminders(self) -> list[ReminderInfo]:
        """The reminders this actor had when the turn began."""
        await self.wait_committed()
        return await self.activation.host.reminders.of(self.stream)

    async def is_listed(self) -> bool:
        """Whether the actor had anything durable when the turn began."""
        await self.wait_committed()
        query = IndexQuery(self.actor_type, id_prefix=self.actor_id, limit=1)  # itself comes first, if it is there
        return any(entry.stream == self.stream for entry in await self.activation.host.journal.index(query))

    def set_timer(
        self,
        name: str,
        *,
        due: When | None = None,
        period: Span | None = None,
        ttl: When | None = None,
        data: Any = None,
        callback: str | None = None,
    ) -> None:
        """A volatile wake-up, from the commit of this turn on: it is gone when the host stops. Ticks are turns, like
        those of reminders (`receive_timer(name, data)` without callback). Raises `InvalidSchedule`, `UnknownMethod`."""
        self._check_writing("set_timer")
        check_name("timer name", name)
        self._check_callback(callback, "receive_timer")
        make_schedule(
            due, period, ttl, None, "all", self.now_ms(), first_fire_immediate=True
        )  # refuse it now, not later
        self._timer(name, TimerRequest(name, due, period, ttl, data, callback))

    def clear_timer(self, name: str) -> None:
        self._check_writing("clear_timer")
        self._timer(name, None)

    # -- the actor itself ----------------------------------------------------------------------------------------------

    def set_index(self, *, name: str, status: str, at_ms: int | None = None) -> None:
        """How this actor shows in listings; `at_ms`: since when, in ms since the epoch (default: the time of the
        commit). Raises `InvalidName` for what no store can hold."""
        self._check_writing("set_index")
        check_text("name in listings", name)
        check_text("status in listings", status)
        self.listing = (name, status, at_ms)

    def delete(self) -> None:
        """Remove this actor with everything it owns when the turn ends. Other changes of this turn are moot; messages
        it sends, or has sent before, still leave."""
        self._check_writing("delete")
        self.deleting = True

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call back on the event loop once this turn is durable; never, if it fails. Volatile."""
        if self.closed:
            raise _ended(self)
        if self.callbacks is None:
            self.callbacks = []
        self.callbacks.append(callback)

    def go_on(self, rest: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """For a method that cannot suspend, so that its turns need no task, on the rare occasion that it must: `rest`
        is run when the method has returned, and the turn ends with it (INV-5). The answer is the method's. `rest` may
        call this again. Not for types that are reentrant."""
        if self.method.read_only:
            raise self.read_only("go on")
        assert not self.activation.definition.options.reentrant
        self.rest = rest

    def is_over(self) -> bool:
        """Whatever of this turn is ever recorded, is recorded by now."""
        return self.closed and self.activation.uncommitted == 0

    def __call__(self, outcome: CommitRefused | StoreUnavailable | None) -> None:
        """The store's answer. A turn is its own callback: an object less for every one that is committed."""
        self.activation.committed(self, outcome)

    # -- for the runtime -----------------------------------------------------------------------------------------------

    def record_event(self, made: EventMethod, instance: Any, bound: tuple[Any, ...]) -> Any:
        """Record it, and apply it to the instance."""
        if self.applying:
            raise InvalidState(
                f"event {made.name!r} cannot be recorded by event {self.applying!r}, or after that has failed: "
                "call both from the method"
            )
        self.record_encoded(self.activation.event_name(made.name), made.signature.encode_named(bound))
        self.applying = made.name
        result = made.function(instance, *bound)
        self.applying = ""
        return result

    def record_encoded(self, name: str, data: bytes) -> None:
        """`record_event` for who has bound and encoded the arguments himself, and applies the event himself. `name` is
        as recorded: see `versioned_name`."""
        if self.method.read_only:
            raise self.read_only(f"record event {name}")
        event: NewEvent = _new(NewEvent, (name, data))
        if self.events is None:
            self.events = [event]
        else:
            self.events.append(event)

    async def wait_committed(self) -> None:
        """Wait until everything this activation decided before has been committed: nothing that rests on it may leave
        the actor earlier (INV-7). Raises `ActorMoved` when it was refused."""
        await self.activation.wait_committed()
        if self.activation.was_refused:
            raise ActorMoved(f"{self.stream} was dropped: an earlier turn could not be recorded")

    def _post(self, envelope: Envelope) -> str:
        self._check_writing("send")
        if self.outbox is None:
            self.outbox = []
        message = OutboxMessage(f"{self.turn_id}.{len(self.outbox)}", self.stream, envelope.encode())
        self.outbox.append((message, envelope))
        return message.id

    def _timer(self, name: str, request: TimerRequest | None) -> None:
        if self.timers is None:
            self.timers = {}
        self.timers[name] = request

    def _check_writing(self, what: str) -> None:
        if self.closed:
            raise _ended(self)
        if self.method.read_only:
            raise self.read_only(what)
        self.wrote = True

    def _check_callback(self, name: str | None, hook: str) -> None:
        """`hook` is called where nothing is named."""
        methods = self.activation.definition.methods
        if name is None and hook not in methods:
            raise UnknownMethod(
                f"{self.actor_type} has no {hook}(name, data): write it, or name a method as `callback`"
            )
        if name is not None and (name in HOOKS or name not in methods):
            raise UnknownMethod(f"{self.actor_type} has no method {name!r} to call back: mark it with @method")

    def read_only(self, what: str) -> InvalidState:
        return InvalidState(f"{self.actor_type}.{self.method.name} is read_only: it cannot {what}")

    def over(self, what: str) -> InvalidState:
        """For code that has outlived its turn."""
        how = "has failed" if self.failed else "has ended"
        return InvalidState(
            f"cannot {what} of {self.stream}: the turn this code belongs to {how}; await all of a turn's work inside "
            "it, or call a method of the actor, by a reference"
        )


def recording_turn(instance: Any, event_name: str) -> Turn:
    """The turn an event method called on `instance` is recorded in. Raises `RuntimeError` outside a turn of that
    actor."""
    turn = current_turn()
    if turn is None or turn.activation.instance is not instance:
        raise RuntimeError(f"event {event_name!r} can be recorded only inside a turn of its own actor")
    return turn


def _ended(turn: Turn) -> RuntimeError:
    """For code that has outlived its turn: nothing it wants done would be."""
    return RuntimeError(
        f"the turn of {turn.stream} this code belongs to has ended; await all of a turn's work inside it"
    )


def _checked_stream(actor_type: str, actor_id: str) -> str:
    check_name("actor type", actor_type)
    check_name("actor id", actor_id)
    return stream_of(actor_type, actor_id)
