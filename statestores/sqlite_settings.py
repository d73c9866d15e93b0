"""Dapr's component metadata for ``state.sqlite``, as far as it means something here, as arguments of `SqliteStore`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import parse_qsl, unquote

from statestores.errors import ComponentError

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "n", "no", "off", ""})


class SqliteSettings(TypedDict, total=False):
    path: str
    wal: bool
    busy_timeout_s: float
    cleanup_interval_s: float | None


def settings_of(metadata: Mapping[str, str]) -> SqliteSettings:
    """Raises `ComponentError` that names the field. Names are matched without regard to case, as Dapr does; names that
    concern other parts of the program are left to them."""
    given = {name.lower(): value for name, value in metadata.items()}
    settings = SqliteSettings(path=_path(given.get("connectionstring", "")))
    if "disablewal" in given:
        settings["wal"] = not _boolean("disableWAL", given["disablewal"])
    # `timeout` bounds a whole operation in Dapr. Here all an operation can wait for is another process's lock.
    for name in ("timeout", "busyTimeout"):
        if given.get(name.lower()):
            settings["busy_timeout_s"] = _duration_s(name, given[name.lower()])
    if given.get("cleanupinterval"):
        # Zero or less means never, as in Dapr.
        interval = given["cleanupinterval"]
        settings["cleanup_interval_s"] = (
            None if interval.startswith("-") else _duration_s("cleanupInterval", interval) or None
        )
    return settings


def _path(connection_string: str) -> str:
    path, _, query = connection_string.removeprefix("file:").partition("?")
    if connection_string.startswith("file:"):
        path = unquote(path)
        if path.startswith("//"):
            path = path[2:]
    if not path:
        raise ComponentError("connectionString: name the database file, for example 'data.db'")
    if path == ":memory:" or dict(parse_qsl(query)).get("mode") == "memory":
        raise ComponentError("connectionString: for a store in memory use the type state.in-memory")
    return path


def _boolean(name: str, text: str) -> bool:
    lowered = text.strip().lower()
    if lowered not in _TRUE | _FALSE:
        raise ComponentError(f"{name}: write true or false, not {text!r}")
    return lowered in _TRUE


def _duration_s(name: str, text: str) -> float:
    """Go's notation (``1h30m``, ``500ms``); a bare number means seconds."""
    stripped = text.strip()
    if stripped.isascii() and stripped.isdigit():
        return float(stripped)
    parts = _PART.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise ComponentError(f"{name}: write a duration such as 2s, 500ms or 1h30m, not {text!r}")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
