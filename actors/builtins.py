"""Methods every actor has, for the runtime's own use: their names start with ``$``, which no user's method can.

They are turns like any other, so deleting an actor, setting its reminders over HTTP or patching its fields is ordered
with its other turns, fenced and atomic. Arguments are JSON values, as for every method.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from actors.definition import HOOKS, make_method
from actors.errors import InvalidArguments, InvalidState, ReminderExists, UnknownMethod
from actors.state import patch_field
from actors.turn import context
from statestores.codec import encode, may_be_rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.definition import Method


async def _delete(_: Any) -> bool:
    """True when there was anything to delete. An actor without history may have reminders, and is listed then."""
    turn = context()
    existed = turn.activation.indexed or await turn.is_listed()
    turn.delete()
    return existed


def _accept(_: Any, method: str, payload: str) -> None:
    """A one-way message from outside: once this is committed it stands in the actor's own outbox. What could never be
    delivered is refused here, while somebody listens."""
    turn = context()
    definition = turn.activation.definition
    if method not in definition.methods or method in HOOKS:
        raise UnknownMethod(f"actor method not found: {turn.stream.replace('/', '.', 1)}.{method}")
    signature, body = definition.methods[method].signature, payload.encode()
    bound = signature.bind_json(body)
    if may_be_rounded(body):  # by the message: what the parameters made of it is not
        body = signature.encode_bound(bound)
    turn.send_raw(turn.actor_type, turn.actor_id, method, body)


def _advance_reminder(_: Any) -> None:
    """A tick without a method: the schedule goes on."""


async def _set_reminder(_: Any, name: str, options: dict[str, Any], overwrite: bool = True) -> None:
    turn = context()
    if not overwrite and any(r.name == name for r in await turn.reminders()):
        raise ReminderExists(f"reminder {name!r} of {turn.stream} exists already")
    _set_with(turn.set_reminder, name, options)


def _clear_reminder(_: Any, name: str) -> None:
    context().clear_reminder(name)


def _set_timer(_: Any, name: str, options: dict[str, Any]) -> None:
    _set_with(context().set_timer, name, options)


def _set_with(set_wakeup: Callable[..., None], name: str, options: dict[str, Any]) -> None:
    known = [parameter for parameter in inspect.signature(set_wakeup).parameters if parameter != "name"]
    if unknown := [option for option in options if option not in known]:
        raise InvalidArguments(f"{', '.join(map(repr, unknown))} is no option: there are {', '.join(known)}")
    set_wakeup(name, **options)


def _clear_timer(_: Any, name: str) -> None:
    context().clear_timer(name)


def _patch(instance: Any, operations: list[list[Any]]) -> None:
    """Operations are [field, value] to set, [field] to put the default back; in order, all or nothing."""
    definition = context().activation.definition
    if definition.event_sourced:
        raise InvalidState(f"{definition.name} is event-sourced: its state changes by its events only")
    for name, *value in operations:
        patch_field(definition, instance, name, encode(value[0]) if value else None)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "$accept": _accept,
    "$delete": _delete,
    "$advance_reminder": _advance_reminder,
    "$set_reminder": _set_reminder,
    "$clear_reminder": _clear_reminder,
    "$set_timer": _set_timer,
    "$clear_timer": _clear_timer,
    "$patch": _patch,
}

BUILTINS: Mapping[str, Method] = {name: make_method(name, function) for name, function in _FUNCTIONS.items()}

ACTIVE_ONLY = frozenset({"$patch"})
"""What only an actor that is active already can be asked for."""
