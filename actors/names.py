"""Names on the wire and in the store. The rule is Dapr's (`ValidateName` in its source)."""

from __future__ import annotations

import re

from actors.errors import InvalidName

_FORBIDDEN = re.compile(r"[#?/\\\x00-\x1f\x7f\ud800-\udfff]")
_HALF_A_PAIR = re.compile(r"[\ud800-\udfff]")
_LONGEST = 1024


def check_name(what: str, name: str) -> None:
    """Raise `InvalidName` unless `name` can be an actor type, actor id, reminder or timer name."""
    if not isinstance(name, str):
        raise InvalidName(f"{what} must be a text, not {type(name).__name__}")
    if not name or name in {".", ".."}:
        raise InvalidName(f"{what} must not be empty, '.' or '..'")
    if len(name) > _LONGEST:
        raise InvalidName(f"{what} is {len(name)} characters long, the limit is {_LONGEST}")
    if found := _FORBIDDEN.search(name):
        raise InvalidName(
            f"{what} {name!r} contains {found.group()!r}: '#', '?', '/', '\\' and control characters are not allowed"
        )


def check_text(what: str, text: str) -> None:
    """Raise `InvalidName` unless a store can hold `text`, which goes there as it is: a commit that fails in the store
    for it would take its neighbours along."""
    if not isinstance(text, str):
        raise InvalidName(f"{what} must be a text, not {type(text).__name__}")
    if not text.isascii() and (found := _HALF_A_PAIR.search(text)):
        raise InvalidName(f"{what} contains {found.group()!r}, half a surrogate pair, which no store can hold")


def check_key(key: str) -> None:
    """Raise `InvalidName` unless `key` can be an idempotency key. An empty one is a mistake: what has it by accident
    would be one and the same call."""
    check_text("idempotency key", key)
    if not key:
        raise InvalidName("idempotency key must not be empty: leave it out for none")


def stream_of(actor_type: str, actor_id: str) -> str:
    """The stream of an actor. Neither part can contain a slash, so the name is unambiguous."""
    return f"{actor_type}/{actor_id}"
