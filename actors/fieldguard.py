"""Who may touch the durable fields of an actor, as far as an object can tell.

Fields are assigned by a turn that runs. What a turn has left running when it ended (a task that nobody awaits, the
other parts of a `gather` of which one has failed, a callback) still holds the actor, and what it assigned would become
part of whatever turn comes next (INV-5). Such code is known by its context, which asyncio hands on to all that a turn
begins, and is refused. So is a read that assigns, where it does, and what it would change is anybody's; and whatever
assigns an event-sourced field outside an event, since that would be lost at the next load.

A change in place is no assignment. What is left of a turn that has *failed* may not make any, either (INV-6), so it is
not given what it would have to start from: there, a field that holds a list, a dict or a model cannot be read. (What it
holds already is not the actor's any more, see `actors.state.restore`.)

Losing alternatives: to cancel what a turn leaves running (a client that was connected by the first turn that needed it
has tasks, too, and would die with that turn), and to go on with another object after a failure (whoever keeps `self`,
an interleaved method above all, would act on one that is dead).
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
import inspect
import uuid
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from actors.errors import InvalidState
from actors.turn import Turn, _current
from statestores.codec import ATOMS

if TYPE_CHECKING:
    from actors.definition import ActorDefinition

# Besides members of an Enum. What cannot be changed in place may be read by anybody.
_IMMUTABLE: Final = frozenset(ATOMS) | {
    bytes,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
}


class _Default(Enum):
    """An Enum's member is the same one in every process, however the class that holds it gets there."""

    NONE = "none"


def guard_fields(cls: type, definition: ActorDefinition) -> None:
    """Make the class check each assignment of a durable field, and each look at one that is not annotated as a plain
    value. Either costs about 0.2 us."""
    durable = frozenset(f.name for f in definition.fields)
    assign, delete = cls.__setattr__, cls.__delattr__

    @functools.wraps(assign)
    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name in durable:
            _check_assignment(self, name)
        assign(self, name, value)  # type: ignore[call-arg]  # mypy takes the unbound slot wrapper for a bound one

    @functools.wraps(delete)
    def __delattr__(self: Any, name: str) -> None:
        if name in durable:
            _check_assignment(self, name)
        delete(self, name)  # type: ignore[call-arg]  # the same

    cls.__setattr__ = __setattr__  # type: ignore[assignment]  # a plain function is a fine method
    cls.__delattr__ = __delattr__  # type: ignore[assignment]  # the same
    for _, name, atom in definition.typed_fields:
        declared = inspect.getattr_static(cls, name, None)
        is_factory = isinstance(declared, dataclasses.Field)  # nobody may get that for a default
        if (atom is None or is_factory) and not inspect.isdatadescriptor(declared):  # else one of the user's own
            setattr(cls, name, _Changeable(name, getattr(cls, name, _Default.NONE)))


def check_guards(definition: ActorDefinition) -> None:
    """Raises `TypeError` when a decorator above `@actor` has taken the guard of a field away, as `@dataclass` does."""
    for _, name, atom in definition.typed_fields:
        if atom is None and not inspect.isdatadescriptor(inspect.getattr_static(definition.cls, name, None)):
            raise TypeError(
                f"{definition.cls.__qualname__}.{name} has lost what @actor has given it: put @actor above the other "
                "decorators of the class"
            )


class _Changeable:
    """The attribute of a field whose value may be one that is changed in place. The value is in the instance's dict,
    the default, as the class gives it, here."""

    __slots__ = ("default", "name")

    def __init__(self, name: str, default: Any) -> None:
        self.name, self.default = name, default

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            value = self.default
        elif (value := instance.__dict__.get(self.name, _Default.NONE)) is _Default.NONE:
            value = self._missing(instance)
        elif type(value) not in _IMMUTABLE and (turn := _current.get()) is not None and turn.failed:
            _check_reading(turn, instance, self.name, value)
        if value is _Default.NONE:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value

    def __delete__(self, instance: Any) -> None:
        try:
            del instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def _missing(self, instance: Any) -> Any:
        """An object of the class that is nobody's actor has the default of its class, as any object has. An actor
        without the field has deleted it, and must not get a default that it could change for all of its type."""
        default = self.default
        if type(default) in _IMMUTABLE or isinstance(default, Enum) or _turn_of(instance) is None:
            return default
        return _Default.NONE


def _turn_of(instance: Any) -> Turn | None:
    """That of the code that runs, if it is one of this actor. (In workflows something else stands in for turns.)"""
    turn = _current.get()
    return turn if type(turn) is Turn and turn.activation.instance is instance else None


def _check_reading(turn: Turn, instance: Any, field: str, value: Any) -> None:
    if turn.activation.instance is instance and not isinstance(value, Enum):
        raise turn.over(f"read {field}")


def _check_assignment(instance: Any, field: str) -> None:
    """While a history is folded no turn runs, nor where an object of the class is used as such."""
    turn = _current.get()
    if type(turn) is not Turn or turn.activation.instance is not instance:
        return
    if turn.closed:
        raise turn.over(f"set {field}")
    if turn.method.read_only:
        raise turn.read_only(f"set {field}")
    if turn.activation.definition.event_sourced and not turn.applying:
        raise InvalidState(
            f"{turn.actor_type}.{field} is event-sourced: change it inside an @event method, or the "
            f"change would be lost"
        )
