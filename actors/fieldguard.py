"""Who may touch the durable fields of an actor, as far as an object can tell.

Only code of a turn, while that runs. What a turn has left running (a task that nobody awaits, the other parts of a
`gather` of which one has failed) still holds the actor, and what it changed would become part of whatever turn comes
next: a change that nobody asked for, or that was rolled back already (INV-5, INV-6). Such code is known by its context,
which asyncio hands on to all that a turn begins; so an assignment there is refused. A change in place is no assignment,
so what it would have to start from is not given out: the field of a list, a dict or a model cannot be read there
either. (What was read before a turn failed is not the actor's any more: see `actors.state.restore`.)

Two rules are about turns that run. Event-sourced fields are assigned by events alone: anything else would be lost at
the next load. An interleaved turn, which runs beside others, assigns nothing: it would become part of theirs.

Losing alternatives: to cancel what a turn leaves running (a client that was connected by the first turn that needed it
has tasks, too, and would die with that turn), and to go on with another object after a failure (whoever keeps `self`,
an interleaved method above all, would act on one that is dead).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.errors import InvalidState
from actors.turn import _current, ended

if TYPE_CHECKING:
    from actors.definition import ActorDefinition

_NOTHING: Any = object()


def guard_fields(cls: type, definition: ActorDefinition) -> None:
    """Make the class check. It asks at every assignment, about 0.2 us, and state-style classes where fields that are
    no plain values are read."""
    durable = frozenset(f.name for f in definition.fields)
    assign, delete = cls.__setattr__, cls.__delattr__

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name in durable:
            _check_assignment(self, name)
        assign(self, name, value)  # type: ignore[call-arg]  # mypy takes the unbound slot wrapper for a bound one

    def __delattr__(self: Any, name: str) -> None:
        if name in durable:
            _check_assignment(self, name)
        delete(self, name)  # type: ignore[call-arg]  # the same

    cls.__setattr__ = __setattr__  # type: ignore[assignment]  # a plain function is a fine method
    cls.__delattr__ = __delattr__  # type: ignore[assignment]  # the same
    if not definition.event_sourced:  # there, what is changed in place is not recorded
        for _, name, atom in definition.typed_fields:
            if atom is None:
                setattr(cls, name, _Changeable(name, getattr(cls, name, _NOTHING)))


class _Changeable:
    """The attribute of a field whose value could be changed in place. All else is as if it was not there: the value is
    in the instance's dict, the default is the class's."""

    __slots__ = ("default", "name")

    def __init__(self, name: str, default: Any) -> None:
        self.name, self.default = name, default

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is not None:
            turn = _current.get()
            if turn is not None and turn.closed and turn.activation.instance is instance:
                raise ended(turn)
            value = instance.__dict__.get(self.name, self.default)
        else:
            value = self.default
        if value is _NOTHING:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value

    def __delete__(self, instance: Any) -> None:
        try:
            del instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(self.name) from None


def _check_assignment(instance: Any, field: str) -> None:
    """While a history is folded no turn runs, nor where an object of the class is used as such."""
    turn = _current.get()
    if turn is None or turn.activation.instance is not instance:
        return
    if turn.closed:
        raise ended(turn)
    if turn.method.interleave:
        raise InvalidState(
            f"{turn.actor_type}.{turn.method.name} interleaves: it is read_only, and may not set {field}"
        )
    if turn.activation.definition.event_sourced and not turn.applying:
        raise InvalidState(
            f"{turn.actor_type}.{field} is event-sourced: change it inside an @event method, or the "
            f"change would be lost"
        )
