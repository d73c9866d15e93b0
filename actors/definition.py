"""A class becomes an actor type: `@actor`, `@method`, `@event`.

    @actor(idle_timeout="10m")
    class Account:
        balance: int = 0                     # annotated fields are the durable state

        @method
        async def deposit(self, amount: int) -> int:
            self.balance += amount           # committed when the turn ends
            return self.balance

Two styles on one core. In the *state* style a turn's changed fields are its event. In the *event-sourced* style,
methods marked `@event` record themselves, name and arguments, and then apply; the state is the fold of them, and fields
may be assigned nowhere else. Names that start with an underscore, and names without annotation, are volatile.
"""

from __future__ import annotations

import copy
import dataclasses
import dis
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, overload

from pydantic import BaseModel

from actors.errortext import storable
from actors.hostneeds import NOTHING, HostNeeds, host_needs
from actors.names import check_name
from actors.signature import Signature, by_position, check_default
from actors.timetext import parse_duration_s
from statestores.codec import ATOMS, Adapter, adapter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from statestores.model import Event

    Duration = str | int | float | timedelta

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

Consistency = Literal["cached", "lease", "linearizable"]
"""What must be sure when a read is answered. All levels wait until what was read is durable. `cached`: nothing else; a
host that has lost the actor and does not know it yet may show an old value. `lease`: this host's lease runs, so no
other can have changed it; when that is not certain, the store is asked. `linearizable`: the store is asked each time;
for when clocks are not to be trusted."""

Upcaster = Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]] | None]
"""(event name, data) of one schema version -> the same fact in the next one, or None to drop it. A snapshot comes under
the name ``snapshot``, a change of state-style fields under ``state``; those two may not be dropped or renamed."""

STATE_EVENT = "state"
"""The event of a turn that changed fields: their new values by name."""

SNAPSHOT = "snapshot"
"""The name under which upcasters are given snapshots."""

ATTRIBUTE = "__mecha_actor__"
FOLD = "__mecha_fold__"
"""A class of the runtime's own may have a method of this name that applies many recorded events at once, in order: the
same as applying them one by one, but cheaper. (It takes a sequence of `statestores.model.Event`.)"""
_METHOD = "__mecha_method__"
_EVENT = "__mecha_event__"

_UNSET: Any = object()

HOOKS = frozenset({"on_activate", "on_deactivate", "receive_reminder", "receive_timer"})
"""Methods the runtime itself calls, when a class has them. They are turns like any other, and not callable from
outside."""

_OWN_HOOKS = frozenset({"on_activate", "on_deactivate"})

# A coroutine function whose code holds none of these can never suspend: its turn runs without a task of its own.
_SUSPENDING = frozenset(
    {
        "GET_AWAITABLE",
        "GET_AITER",
        "GET_ANEXT",
        "BEFORE_ASYNC_WITH",
        "SEND",
        "YIELD_FROM",
        "YIELD_VALUE",
        "END_ASYNC_FOR",
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One durable field. `default` is copied for each actor; unset means: absent until it is first assigned."""

    name: str
    adapter: Adapter[Any]
    default: Any = _UNSET
    factory: Callable[[], Any] | None = None

    @property
    def has_default(self) -> bool:
        return self.default is not _UNSET or self.factory is not None

    @property
    def is_shared(self) -> bool:
        return self.factory is None and type(self.default) in ATOMS

    def make_default(self) -> Any:
        return self.factory() if self.factory is not None else copy.deepcopy(self.default)


class _Mark(NamedTuple):
    """What `@method` leaves on a function."""

    read_only: bool = False
    interleave: bool = False
    consistency: Consistency = "lease"
    timeout: Duration | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    name: str
    function: Callable[..., Any]
    signature: Signature
    read_only: bool
    interleave: bool
    consistency: Consistency
    timeout_s: float | None
    # Is a coroutine function, and: can run to its end without ever suspending.
    is_async: bool
    inline: bool


@dataclasses.dataclass(frozen=True, slots=True)
class EventMethod:
    name: str
    function: Callable[..., Any]
    signature: Signature


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How a type behaves. Durations in seconds."""

    idle_timeout_s: float = 600.0
    mailbox_limit: int = 1000
    reentrant: bool = False
    max_depth: int = 32
    snapshot_every: int = 100
    timeout_s: float | None = None
    receipts_ms: int = 24 * 3600 * 1000
    # The schema version new events are written under; older ones go through upcasters[version] step by step.
    schema: int = 1
    upcasters: Mapping[int, Upcaster] = dataclasses.field(default_factory=dict)
    needs: HostNeeds = NOTHING

    def __post_init__(self) -> None:
        for name in ("mailbox_limit", "max_depth", "snapshot_every", "schema"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise TypeError(f"@actor: {name} is {value!r}: write a whole number, 1 or more")
        _check_flag("@actor: reentrant", self.reentrant)


@dataclasses.dataclass(frozen=True, slots=True)
class ActorDefinition:
    name: str
    cls: type
    fields: tuple[Field, ...]
    methods: Mapping[str, Method]
    events: Mapping[str, EventMethod]
    options: Options
    # Derived, and kept because every turn asks: the fields' places, names, and the types whose values need no further
    # check; whether state changes by @event methods; the recorded name of a change of fields.
    typed_fields: tuple[tuple[int, str, type | None], ...]
    # Defaults that all instances can share, being immutable, and the fields that need their own.
    shared_defaults: Mapping[str, Any]
    own_defaults: tuple[Field, ...]
    # Fields that an actor has from its beginning: absent ones were deleted.
    default_names: tuple[str, ...]
    event_sourced: bool
    state_event: str
    fold: Callable[[Any, Sequence[Event]], None] | None


@overload
def actor(cls: C, /) -> C: ...
@overload
def actor(
    *,
    name: str | None = None,
    idle_timeout: Duration = "10m",
    mailbox_limit: int = 1000,
    reentrant: bool = False,
    max_depth: int = 32,
    snapshot_every: int = 100,
    timeout: Duration | None = None,
    receipts: Duration = "24h",
    schema: int = 1,
    upcasters: Mapping[int, Upcaster] | None = None,
    resources: Mapping[str, float | str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Callable[[C], C]: ...
def actor(
    cls: C | None = None,
    /,
    *,
    name: str | None = None,
    idle_timeout: Duration = "10m",
    mailbox_limit: int = 1000,
    reentrant: bool = False,
    max_depth: int = 32,
    snapshot_every: int = 100,
    timeout: Duration | None = None,
    receipts: Duration = "24h",
    schema: int = 1,
    upcasters: Mapping[int, Upcaster] | None = None,
    resources: Mapping[str, float | str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> C | Callable[[C], C]:
    """Make a class an actor type.

    `idle_timeout`: how long an activation stays in memory without a turn. `mailbox_limit`: calls that may wait, be
    read-only and run, or be on their way to the store; one more is refused (`MailboxFull`). `reentrant`: a call chain
    that comes back to the actor joins the turn that started it, at most `max_depth` deep. `snapshot_every`: events
    between snapshots. `timeout`: longest run of a turn, from its start. `receipts`: how long an idempotency key is
    remembered. `schema`, `upcasters`: see `Upcaster`. `resources` (``{"num_gpus": 1}``; num_cpus, num_gpus, memory in
    bytes or as ``"2GiB"``, custom ones) and `labels` (``{"zone": "a"}``): on a Ray cluster, what the nodes of the
    application's hosts must have, see `HostNeeds`; elsewhere ignored.

    Raises `TypeError` for a class that cannot be an actor, or options that cannot be, at decoration.
    """
    if upcasters is not None and not isinstance(upcasters, Mapping):
        raise TypeError(f"@actor: upcasters is {upcasters!r}: write a dict by version, {{1: upcaster}}")
    options = Options(
        idle_timeout_s=parse_duration_s(idle_timeout),
        mailbox_limit=mailbox_limit,
        reentrant=reentrant,
        max_depth=max_depth,
        snapshot_every=snapshot_every,
        timeout_s=_limit_s("@actor", timeout),
        receipts_ms=int(parse_duration_s(receipts) * 1000),
        schema=schema,
        upcasters=dict(upcasters or {}),
        needs=host_needs(resources, labels),
    )

    def decorate(cls: C) -> C:
        definition = _define(cls, name or cls.__name__, options)
        setattr(cls, ATTRIBUTE, definition)
        return cls

    return decorate if cls is None else decorate(cls)


@overload
def method(function: F, /) -> F: ...
@overload
def method(
    *,
    read_only: bool = False,
    interleave: bool = False,
    timeout: Duration | None = None,
    consistency: Consistency = "lease",
) -> Callable[[F], F]: ...
def method(
    function: F | None = None,
    /,
    *,
    read_only: bool = False,
    interleave: bool = False,
    timeout: Duration | None = None,
    consistency: Consistency = "lease",
) -> F | Callable[[F], F]:
    """Make a method callable from outside; each call of it is a turn.

    `read_only`: runs beside other reads, and may change nothing. `interleave` (a read, too): starts at once, beside any
    turn; for long waits. `timeout` cancels a turn that runs longer and rolls it back. `consistency` of reads: see
    `Consistency`.
    """
    _check_flag("@method: read_only", read_only)
    _check_flag("@method: interleave", interleave)
    if consistency not in get_args(Consistency):
        raise TypeError(f"unknown consistency {consistency!r}: use {', '.join(get_args(Consistency))}")
    if consistency != "lease" and not (read_only or interleave):
        raise TypeError("consistency is a choice of reads: a method that writes is always confirmed by its commit")
    mark_as = _Mark(read_only or interleave, interleave, consistency, timeout)

    def mark(function: F) -> F:
        _check_plain("@method", function)
        setattr(function, _METHOD, mark_as)
        return function

    return mark if function is None else mark(function)


@overload
def event(function: F, /) -> F: ...
@overload
def event(*, name: str | None = None) -> Callable[[F], F]: ...
def event(function: F | None = None, /, *, name: str | None = None) -> F | Callable[[F], F]:
    """Make a method an event: calling it inside a turn records its name and arguments, then runs it to apply them.

    It must be a plain `def` that changes fields by its arguments alone (no clock, no randomness, no calls, no other
    events): it runs again whenever the state is rebuilt. Its result is ignored on replay. A turn in which it raises
    fails, whether or not the method catches that.

    `name`: under which it is recorded, its own unless given. Raises `TypeError` for one that could not be read again.
    """

    def mark(function: F) -> F:
        _check_plain("@event", function)
        setattr(function, _EVENT, _event_name(function.__name__ if name is None else name))
        return function

    return mark if function is None else mark(function)


def definition_of(cls: type | str | object) -> ActorDefinition | None:
    """The definition `@actor` left on a class itself (not on a base of it), or None."""
    found = cls.__dict__.get(ATTRIBUTE) if isinstance(cls, type) else None
    return found if isinstance(found, ActorDefinition) else None


# -- how a class is read -----------------------------------------------------------------------------------------------


def _define(cls: type, name: str, options: Options) -> ActorDefinition:
    check_name("actor type", name)
    if not isinstance(cls, type):
        raise TypeError(f"@actor makes a class an actor type: {cls!r} is none")
    _check_form(cls)
    missing = [v for v in range(1, options.schema) if options.upcasters and v not in options.upcasters]
    if missing:
        raise TypeError(f"{cls.__qualname__}: no upcaster for schema version(s) {missing}")
    unused = [v for v in options.upcasters if v not in range(1, options.schema)]
    if unused:
        raise TypeError(
            f"{cls.__qualname__}: upcasters {unused} lead from no version before schema={options.schema}: raise it"
        )
    for version, upcaster in options.upcasters.items():
        if not callable(upcaster):
            raise TypeError(
                f"{cls.__qualname__}: upcaster of version {version} is {upcaster!r}: write a function of (name, data)"
            )
    _check_members(cls)
    events = _collect_events(cls)
    fields = _collect_fields(cls)
    methods = _collect_methods(cls)
    for field in fields:
        if field.name in methods or inspect.isfunction(getattr(cls, field.name, None)):
            raise TypeError(f"{cls.__qualname__}.{field.name} is both a field and a method: rename one")
        # It could not be put back either, when a turn has failed. (What a factory makes is not known yet: it may use
        # what its module defines later.)
        if field.default is not _UNSET:
            check_default(f"{cls.__qualname__}.{field.name}", field.adapter, field.default)
    definition = ActorDefinition(
        name=name,
        cls=cls,
        fields=fields,
        methods=methods,
        events=events,
        options=options,
        typed_fields=tuple((place, f.name, f.adapter.atom) for place, f in enumerate(fields)),
        shared_defaults={f.name: f.default for f in fields if f.has_default and f.is_shared},
        own_defaults=tuple(f for f in fields if f.has_default and not f.is_shared),
        default_names=tuple(f.name for f in fields if f.has_default),
        event_sourced=bool(events),
        state_event=versioned_name(STATE_EVENT, options.schema),
        fold=getattr(cls, FOLD, None),
    )
    from actors.fieldguard import guard_fields  # guards know turns, and turns definitions: not at import time

    guard_fields(cls, definition)
    return definition


def _check_form(cls: type) -> None:
    """Classes whose objects cannot be made by a history, or not be changed."""
    where = f"{cls.__qualname__}: an actor class"
    if "__slots__" in cls.__dict__:
        raise TypeError(f"{where} cannot have __slots__")
    if issubclass(cls, BaseModel):
        raise TypeError(f"{where} cannot be a pydantic model: annotate the fields of a plain class, models among them")
    if (parameters := getattr(cls, "__dataclass_params__", None)) is not None and parameters.frozen:
        raise TypeError(f"{where} cannot be a frozen dataclass: its methods change its fields")
    for base in cls.__mro__[:-1]:
        made = base.__dict__.get("__init__")
        if made is None or made.__module__ == typing.__name__ or "__dataclass_params__" in base.__dict__:
            continue
        if base is cls or not hasattr(cls, "on_activate"):
            raise TypeError(
                f"{where} is made by its history, so __init__ of {base.__qualname__} would not be called: give fields "
                "their defaults, and begin in on_activate"
            )


def _check_flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}: write True or False")


def _check_plain(what: str, function: object) -> None:
    """What is none is not found in its class, so it would be left out without a word."""
    if not inspect.isfunction(function):
        raise TypeError(f"{what} is for plain functions of self, not for a {type(function).__name__}: leave that out")


def _check_members(cls: type) -> None:
    """The same of functions that were made something else after they were marked."""
    for name, member in inspect.getmembers_static(cls):
        function = _made_of(member)
        if isinstance(getattr(function, _METHOD, None), _Mark):
            _check_plain(f"{cls.__qualname__}.{name}: @method", member)
        if isinstance(getattr(function, _EVENT, None), str):
            _check_plain(f"{cls.__qualname__}.{name}: @event", member)
        if name in HOOKS and isinstance(member, (classmethod, staticmethod, property)):
            _check_plain(f"{cls.__qualname__}.{name}", member)


def _made_of(member: object) -> object:
    """The function in what a decorator has made of it, None for what is made of none."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, (functools.cached_property, functools.partialmethod)):
        return member.func
    return getattr(member, "__wrapped__", None)


def _event_name(name: str) -> str:
    if name in (STATE_EVENT, SNAPSHOT):
        raise TypeError(f"an event cannot be named {name!r}: that is what upcasters are given under this name")
    if not isinstance(name, str) or not name or "@" in name or storable(name) != name:
        raise TypeError(
            f"an event cannot be named {name!r}: a text, no '@' (a schema version follows that), no half surrogates"
        )
    return name


def versioned_name(name: str, schema: int) -> str:
    """The recorded name of an event: the schema version is part of it, from the second on."""
    return name if schema == 1 else f"{name}@{schema}"


def _collect_fields(cls: type) -> tuple[Field, ...]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{cls.__qualname__}: a field's annotation cannot be resolved ({error}); import the type at module level"
        ) from error
    return tuple(
        _field(cls, name, annotation)
        for name, annotation in hints.items()
        if not name.startswith("_") and typing.get_origin(annotation) is not ClassVar and annotation is not ClassVar
    )


def _field(cls: type, name: str, annotation: Any) -> Field:
    if not name.isidentifier():  # made by `type(…)`; a record has entries of its own that begin with $
        raise TypeError(f"{cls.__qualname__}: a field cannot be named {name!r}")
    # A dataclass keeps its factories to itself.
    default = getattr(cls, name, getattr(cls, "__dataclass_fields__", {}).get(name, _UNSET))
    factory: Callable[[], Any] | None = None
    if isinstance(default, dataclasses.Field):
        factory = None if default.default_factory is dataclasses.MISSING else default.default_factory
        default = _UNSET if default.default is dataclasses.MISSING else default.default
    return Field(name, adapter(annotation, default), default, factory)


def _collect_methods(cls: type) -> dict[str, Method]:
    methods = {}
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        mark = getattr(function, _METHOD, None)
        if mark is not None and mark.read_only and name in _OWN_HOOKS:
            raise TypeError(f"{cls.__qualname__}.{name}: a hook cannot be read_only, as it runs alone")
        if mark is not None:
            methods[name] = make_method(name, function, mark)
        elif name in HOOKS:
            methods[name] = make_method(name, function)
    return methods


def make_method(
    name: str,
    function: Callable[..., Any],
    mark: _Mark | None = None,
) -> Method:
    mark = mark if mark is not None else _Mark()
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__}: a generator gives no one result: return a list")
    is_async = inspect.iscoroutinefunction(function)
    return Method(
        name=name,
        function=by_position(function),
        signature=Signature(function),
        read_only=mark.read_only,
        interleave=mark.interleave,
        consistency=mark.consistency,
        timeout_s=_limit_s(function.__qualname__, mark.timeout),
        is_async=is_async,
        inline=not mark.interleave and (not is_async or not _can_suspend(function)),
    )


def _limit_s(where: str, timeout: Duration | None) -> float | None:
    limit_s = None if timeout is None else parse_duration_s(timeout)
    if limit_s == 0:
        raise TypeError(f"{where}: timeout must be longer than 0, or no turn could end; None: no limit")
    return limit_s


def _collect_events(cls: type) -> dict[str, EventMethod]:
    events: dict[str, EventMethod] = {}
    for attribute, function in inspect.getmembers(cls, inspect.isfunction):
        name = getattr(function, _EVENT, None)
        if name is None:
            continue
        original = getattr(function, "__wrapped__", function)
        if inspect.iscoroutinefunction(original):
            raise TypeError(f"{original.__qualname__}: an event is applied, not awaited; make it a plain def")
        if inspect.isgeneratorfunction(original) or inspect.isasyncgenfunction(original):
            raise TypeError(f"{original.__qualname__}: a generator is not run when it is called: it can be no event")
        if name in events:
            raise TypeError(f"{cls.__qualname__}: two events are named {name!r}")
        made = EventMethod(name, by_position(original), Signature(original))
        events[name] = made
        setattr(cls, attribute, _recording(made))
    return events


def _recording(made: EventMethod) -> Callable[..., Any]:
    """What calling an event method does: record it in the running turn, then apply it."""
    from actors.turn import recording_turn  # the turn knows definitions, so not at import time

    original, signature = made.function, made.signature

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        turn = recording_turn(self, made.name)
        return turn.record_event(made, self, signature.bind_python(args, kwargs))

    record.__name__ = original.__name__
    record.__qualname__ = original.__qualname__
    record.__doc__ = original.__doc__
    record.__wrapped__ = original  # type: ignore[attr-defined]  # as functools.wraps does
    setattr(record, _EVENT, made.name)
    return record


def _can_suspend(function: Callable[..., Any]) -> bool:
    return any(i.opname in _SUSPENDING for i in dis.get_instructions(function))
