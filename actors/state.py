"""The durable state of one activation: what it was when the last turn was decided, and what has changed since.

Three things happen to it. *Fold*: a snapshot and events become field values. *Changes*: the fields that differ from the
base, ready to be recorded. *Restore*: back to the base, when a turn failed (INV-6). All are plain functions of values.

The base keeps immutable values as they are and everything else as its JSON bytes, since a list or a model may be
changed in place: the only way to know is to encode it and compare. That costs in proportion to the field; actors with
large collections are better event-sourced.

What is recorded are the values by field name, and under `$absent`, which no field can be named, the names of fields
that were deleted. The losing alternative, the first form, recorded ``{"$absent": true}`` as the value of a deleted
field, which a user's own value may be. A record without a list is read that way still; so a new one that holds such a
value has a list as well, if an empty one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson

from actors.definition import SNAPSHOT, STATE_EVENT
from actors.errors import InvalidState, UnserializableResult
from statestores.codec import ATOMS, CodecError, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors.definition import ActorDefinition
    from statestores.model import Event, StreamState

_DELETED = "$absent"
_DELETED_AT_FIRST = b'{"$absent":true}'


class Encoded:
    """The base of a value that could be changed in place: its JSON."""

    __slots__ = ("json",)

    def __init__(self, json: bytes) -> None:
        # A copy: what orjson returns sits in a block of kilobytes, and this is kept as long as the activation.
        self.json = bytes(memoryview(json))


_ABSENT: Any = Encoded(b"")

Base = list[Any]


def new_instance(definition: ActorDefinition) -> Any:
    """An instance with default state, made without calling `__init__` (an actor is made by its history, not by
    arguments)."""
    instance: Any = object.__new__(definition.cls)
    instance.__dict__.update(definition.shared_defaults)
    for field in definition.own_defaults:
        instance.__dict__[field.name] = field.make_default()
    return instance


def capture(definition: ActorDefinition, instance: Any) -> Base:
    """The base of an instance's present state."""
    values = instance.__dict__
    return [_base_of(values.get(f.name, _ABSENT)) for f in definition.fields]


def changes(definition: ActorDefinition, instance: Any, base: Base) -> dict[str, Any] | None:
    """Fields that differ from the base, by name, ready for `encode_changes`; None when none does.

    What is recorded must be readable again: a value its annotation refuses would make the actor one that cannot be
    loaded. Raises `UnserializableResult`, `InvalidState`."""
    values = instance.__dict__
    changed: dict[str, Any] | None = None
    for place, name, atom in definition.typed_fields:
        new = values.get(name, _ABSENT)
        old = base[place]
        if new is old:
            continue
        kind = type(new)
        if kind in ATOMS:
            if kind is type(old) and new == old:
                continue
            if kind is float and not math.isfinite(new):
                raise UnserializableResult(f"{definition.name}.{name} cannot be stored: {new} has no JSON form")
        else:
            new = _encode_field(definition, name, new)
            if type(old) is Encoded and new.json == old.json:
                continue
        if kind is not atom:
            _check_annotation(definition, place, new)
        if changed is None:
            changed = {name: new}
        else:
            changed[name] = new
    return changed


def changed_names(definition: ActorDefinition, instance: Any, base: Base) -> list[str]:
    """Fields that differ from the base, whatever they were set to."""
    try:
        return [*(changes(definition, instance, base) or ())]
    except Exception:  # annotations have code of their own
        return ["what cannot be stored"]


def _check_annotation(definition: ActorDefinition, place: int, value: Any) -> None:
    field = definition.fields[place]
    if value is _ABSENT or field.adapter.annotation is Any:
        return
    try:
        field.adapter.decode(value.json if type(value) is Encoded else encode(value))
    except CodecError as error:
        raise InvalidState(f"{definition.name}.{field.name} may not be set to this: {error}") from None


def advance(definition: ActorDefinition, base: Base, changed: dict[str, Any]) -> None:
    """Make the changed fields the new base."""
    for place, name, _ in definition.typed_fields:
        if name in changed:
            base[place] = changed[name]


def restore(definition: ActorDefinition, instance: Any, base: Base, *, renew: bool) -> None:
    """Put every durable field back to the base. A list, dict or model that is as it was stays the same object, unless
    `renew`: then whoever holds the old one can change nothing any more."""
    values = instance.__dict__
    for field, old in zip(definition.fields, base, strict=True):
        if old is _ABSENT:
            values.pop(field.name, None)
        elif type(old) is Encoded:
            if renew or not _is_still(old, values.get(field.name, _ABSENT)):
                values[field.name] = field.adapter.decode(old.json)
        else:
            values[field.name] = old


def encode_changes(definition: ActorDefinition, changed: dict[str, Any]) -> bytes:
    """Raises `UnserializableResult`."""
    try:
        return orjson.dumps(changed, _recorded_form)
    except TypeError:  # a list of deletions is needed, or an integer is beyond 64 bits, or half a surrogate pair: where
        for name, value in changed.items():
            if type(value) is not Encoded:
                _encode_field(definition, name, value)
    recorded: dict[str, Any] = {name: value for name, value in changed.items() if value is not _ABSENT}
    recorded[_DELETED] = [name for name, value in changed.items() if value is _ABSENT]
    return orjson.dumps(recorded, _fragment)


def encode_snapshot(definition: ActorDefinition, instance: Any) -> bytes:
    """Raises `CodecError`: event-sourced state may hold what has no JSON form."""
    values = instance.__dict__
    state = {f.name: values[f.name] for f in definition.fields if f.name in values}
    deleted = [name for name in definition.default_names if name not in values]
    if deleted:
        state[_DELETED] = deleted
    return encode({"v": definition.options.schema, "s": state})


def fold(definition: ActorDefinition, instance: Any, history: StreamState) -> None:
    """Bring a new instance to the state its history records. Raises `InvalidState` when the class cannot read it."""
    if history.snapshot is not None:
        try:
            _apply_snapshot(definition, instance, history.snapshot.data)
        except Exception as error:
            raise InvalidState(
                f"{definition.name} cannot read its snapshot at version {history.snapshot.version}: {error!r}; "
                "add an upcaster if the class has changed"
            ) from error
    if definition.fold is None:
        apply_events(definition, instance, history.events)
    elif history.events:
        try:
            definition.fold(instance, history.events)
        except Exception as error:
            raise InvalidState(f"{definition.name} cannot apply its {len(history.events)} events: {error!r}") from error


def apply_events(definition: ActorDefinition, instance: Any, events: Iterable[Event]) -> None:
    for event in events:
        try:
            _apply_event(definition, instance, event.name, event.data)
        except Exception as error:
            raise InvalidState(
                f"{definition.name} cannot apply event {event.version} ({event.name}): {error!r}; "
                "add an upcaster if the class has changed"
            ) from error


def patch_field(definition: ActorDefinition, instance: Any, name: str, value: bytes | None) -> None:
    """Set one field from JSON, or back to its default with None. Raises `InvalidState`."""
    field = next((f for f in definition.fields if f.name == name), None)
    if field is None:
        raise InvalidState(
            f"{definition.name} has no field {name!r}; it has {', '.join(f.name for f in definition.fields)}"
        )
    if value is not None:
        try:
            instance.__dict__[name] = field.adapter.decode(value)
        except CodecError as error:
            raise InvalidState(f"{definition.name}.{name}: {error}") from None
    elif field.has_default:
        instance.__dict__[name] = field.make_default()
    else:
        instance.__dict__.pop(name, None)


def plain_state(definition: ActorDefinition, instance: Any) -> dict[str, Any]:
    """The state as JSON values, for people and for the wire."""
    values = instance.__dict__
    return {f.name: orjson.loads(encode(values[f.name])) for f in definition.fields if f.name in values}


def _base_of(value: Any) -> Any:
    if value is _ABSENT or type(value) in ATOMS:
        return value
    return Encoded(encode(value))


def _is_still(old: Encoded, value: Any) -> bool:
    try:
        return value is not _ABSENT and encode(value) == old.json
    except CodecError:
        return False


def _encode_field(definition: ActorDefinition, name: str, value: Any) -> Encoded:
    if isinstance(value, Encoded):  # _ABSENT: the field was deleted
        return value
    try:
        return Encoded(encode(value))
    except CodecError as error:
        raise UnserializableResult(f"{definition.name}.{name} cannot be stored: {error}") from None


def _recorded_form(value: Encoded) -> orjson.Fragment:
    """What is written for a value that orjson does not know, which here is an `Encoded` one. Raises `TypeError` when
    the record needs a list of deletions."""
    if value is _ABSENT or value.json == _DELETED_AT_FIRST:
        raise TypeError
    return orjson.Fragment(value.json)


def _fragment(value: Encoded) -> orjson.Fragment:
    return orjson.Fragment(value.json)


def _apply_snapshot(definition: ActorDefinition, instance: Any, data: bytes) -> None:
    record = orjson.loads(data)
    upcast = _upcast(definition, SNAPSHOT, record["s"], record["v"])
    if upcast is not None:
        _set_fields(definition, instance, upcast[1], marked=False)


def _apply_event(definition: ActorDefinition, instance: Any, recorded_name: str, data: bytes) -> None:
    name, _, schema = recorded_name.partition("@")
    values: dict[str, Any] = orjson.loads(data)
    marked = _DELETED not in values
    fact: tuple[str, dict[str, Any]] | None = (name, values)
    recorded_schema = int(schema) if schema else 1
    if recorded_schema != definition.options.schema:
        fact = _upcast(definition, name, values, recorded_schema)
    if fact is None:
        return
    if fact[0] == STATE_EVENT:
        _set_fields(definition, instance, fact[1], marked)
        return
    made = definition.events[fact[0]]
    made.function(instance, *made.signature.bind_recorded(fact[1]))


def _upcast(
    definition: ActorDefinition, name: str, data: dict[str, Any], schema: int
) -> tuple[str, dict[str, Any]] | None:
    if schema > definition.options.schema:
        raise InvalidState(
            f"recorded under schema {schema}, {definition.name} knows {definition.options.schema}: "
            f"deploy the newer class"
        )
    fact: tuple[str, dict[str, Any]] | None = (name, data)
    for version in range(schema, definition.options.schema):
        upcaster = definition.options.upcasters.get(version)
        if upcaster is not None and fact is not None:
            fact = upcaster(*fact)
    return fact


def _set_fields(definition: ActorDefinition, instance: Any, values: dict[str, Any], marked: bool) -> None:
    """Fields the class no longer has are left out: removing a field needs no upcaster. `marked`: a deleted field is
    marked by its value, as at first."""
    target = instance.__dict__
    for field in definition.fields:
        if field.name not in values:
            continue
        value = values[field.name]
        if marked and type(value) is dict and len(value) == 1 and value.get(_DELETED) is True:
            target.pop(field.name, None)
        else:
            target[field.name] = field.adapter.restore(value)
    for name in values.get(_DELETED, ()):
        target.pop(name, None)
