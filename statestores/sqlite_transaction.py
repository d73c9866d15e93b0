"""A SQLite transaction around a function."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def in_transaction(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Committed when `function` returns, rolled back when it raises. Has the write lock from its start, so what
    `function` reads stays true until the end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = function(connection)
        connection.execute("COMMIT")
    except BaseException:
        undo(connection, "ROLLBACK")
        raise
    return result


def undo(connection: sqlite3.Connection, *statements: str) -> None:
    """Roll back. If that fails there is nothing to roll back any more: some errors, a full disk for one, end the
    transaction, and a dead connection has none."""
    with suppress(sqlite3.Error):
        for statement in statements:
            connection.execute(statement)
