"""Names on the wire and in the store. The rule is Dapr's (protocol, section 1.0, `ValidateName`)."""

from __future__ import annotations

import re

from actors.errors import InvalidName

_FORBIDDEN = re.compile(r"[#?/\\\x00-\x1f\x7f\ud800-\udfff]")
_LONGEST = 1024


def check_name(what: str, name: str) -> None:
    """Raise `InvalidName` unless `name` can be an actor type, actor id, reminder or timer name."""
    if not name or name in {".", ".."}:
        raise InvalidName(f"{what} must not be empty, '.' or '..'")
    if len(name) > _LONGEST:
        raise InvalidName(f"{what} is {len(name)} characters long, the limit is {_LONGEST}")
    if found := _FORBIDDEN.search(name):
        raise InvalidName(
            f"{what} {name!r} contains {found.group()!r}: '#', '?', '/', '\\' and control characters are not allowed"
        )


def stream_of(actor_type: str, actor_id: str) -> str:
    """The stream of an actor. Neither part can contain a slash, so the name is unambiguous."""
    return f"{actor_type}/{actor_id}"
