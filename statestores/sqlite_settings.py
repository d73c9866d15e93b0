"""Dapr's component metadata for ``state.sqlite``, as far as it means something here, as arguments of `SqliteStore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict
from urllib.parse import parse_qsl, unquote

from statestores.errors import ComponentError
from statestores.settingtext import duration_s, flag

if TYPE_CHECKING:
    from collections.abc import Mapping


class SqliteSettings(TypedDict, total=False):
    path: str
    wal: bool
    busy_timeout_s: float


def settings_of(metadata: Mapping[str, str]) -> SqliteSettings:
    """Raises `ComponentError` that names the field. Names are matched without regard to case, as Dapr does; names that
    concern other parts of the program are left to them."""
    given = {name.lower(): value for name, value in metadata.items()}
    settings = SqliteSettings(path=_path(given.get("connectionstring", "")))
    if "disablewal" in given:
        settings["wal"] = not flag("disableWAL", given["disablewal"])
    # `timeout` bounds a whole operation in Dapr. Here all an operation can wait for is another process's lock.
    for name in ("timeout", "busyTimeout"):
        if given.get(name.lower()):
            settings["busy_timeout_s"] = duration_s(name, given[name.lower()])
    return settings


def _path(connection_string: str) -> str:
    path, _, query = connection_string.removeprefix("file:").partition("?")
    if connection_string.startswith("file:"):
        path = unquote(path)
        if path.startswith("//"):
            path = path[2:]
    if not path:
        raise ComponentError("connectionString: name the database file, for example 'data.db'")
    options = dict(parse_qsl(query))
    if path == ":memory:" or options.get("mode") == "memory":
        raise ComponentError("connectionString: for a store in memory use the type state.in-memory")
    if options.get("mode") == "ro" or "immutable" in options:
        raise ComponentError("connectionString: a store is written to: leave out mode=ro and immutable")
    return path
