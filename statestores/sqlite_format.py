"""The durable layout of a SQLite store: how a file is recognised, made, and brought up to date.

A file is ours when its `application_id` says so; its format version stands in the table `meta`. Both are read before
anything is written, so a file that belongs to somebody else stays as it was.

Format 1: one b-tree per thing that is looked up, since every index costs each turn another page.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from statestores import sqlite_keys, sqlite_payloads
from statestores.errors import ComponentError, FormatError
from statestores.model import FORMAT_VERSION
from statestores.sqlite_transaction import in_transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

APPLICATION_ID = 0x4D454348  # "MECH"

_MAGIC = b"SQLite format 3\0"

SCHEMA: tuple[str, ...] = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    # `recent`: see `_RECENT` in sqlite_journal.py.
    """CREATE TABLE ownership (
        partition INTEGER PRIMARY KEY,
        epoch INTEGER NOT NULL,
        owner TEXT NOT NULL,
        lease_until_ms INTEGER NOT NULL,
        recent TEXT NOT NULL DEFAULT ''
    )""",
    # Invariant: at most one event for a stream and a version (INV-1).
    """CREATE TABLE events (
        stream TEXT NOT NULL,
        version INTEGER NOT NULL,
        name TEXT NOT NULL,
        data BLOB NOT NULL,
        time_ms INTEGER NOT NULL,
        turn_id TEXT NOT NULL,
        caller TEXT NOT NULL,
        trace_id TEXT NOT NULL,
        PRIMARY KEY (stream, version)
    ) WITHOUT ROWID""",
    "CREATE TABLE snapshots (stream TEXT PRIMARY KEY, version INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE streams (
        stream TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        status TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE reminders (
        stream TEXT NOT NULL,
        name TEXT NOT NULL,
        due_ms INTEGER NOT NULL,
        partition INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (stream, name)
    ) WITHOUT ROWID""",
    # In the order of the scan, so that it stops at its limit however many are overdue.
    "CREATE INDEX reminders_by_due ON reminders (due_ms, stream, name, partition)",
    # Given-up messages stand apart (`given_up` 1), so that the scan for work never walks over them.
    """CREATE TABLE outbox (
        partition INTEGER NOT NULL,
        given_up INTEGER NOT NULL DEFAULT 0,
        position INTEGER NOT NULL,
        id TEXT NOT NULL UNIQUE,
        stream TEXT NOT NULL,
        body BLOB NOT NULL,
        dead TEXT NOT NULL,
        PRIMARY KEY (partition, given_up, position)
    ) WITHOUT ROWID""",
    # Invariant: a stream consumes a key once (INV-8).
    """CREATE TABLE receipts (
        stream TEXT NOT NULL,
        key TEXT NOT NULL,
        reply BLOB NOT NULL,
        expires_ms INTEGER NOT NULL,
        outbox_partition INTEGER NOT NULL,
        partition INTEGER NOT NULL,
        turn_id TEXT NOT NULL,
        PRIMARY KEY (stream, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX receipts_by_expiry ON receipts (partition, expires_ms)",
    *sqlite_keys.SCHEMA,
)

MIGRATIONS: Mapping[int, Sequence[str]] = {}
"""Statements that turn a file of the format that is the key into one of the next format. None is needed yet."""


def check_place(path: Path) -> None:
    """Raises `ComponentError` when there can be no file, and `FormatError` when there is one and it is no SQLite
    database, without opening it as one."""
    if path.is_dir():
        raise ComponentError(f"{path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise ComponentError(f"{path}: there is no directory {path.parent}: make it, or name another file")
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start and start != _MAGIC:
        raise FormatError(f"{path} is not a SQLite database: give the store another path, or move the file away")


def is_empty(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the database is still to be made. Raises `FormatError` when it is somebody else's. Writes nothing.

    Whose it is is read last: another process may make it in between, which writes both in one commit."""
    try:
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise FormatError(f"{path} cannot be read as a SQLite database ({error}): restore it from a copy") from error
    if application_id == APPLICATION_ID:
        return False
    if application_id == 0 and objects == 0:
        return True
    raise FormatError(f"{path} is a SQLite database of another program: give the store another path")


def prepare(
    connection: sqlite3.Connection,
    path: Path,
    partitions: int,
    *,
    schema: Sequence[str] = SCHEMA,
    migrations: Mapping[int, Sequence[str]] = MIGRATIONS,
) -> int:
    """Make the layout, or migrate it, in one transaction; returns how many partitions the store has.

    `partitions` counts only when the store is made: from then on the number is part of the data.
    """

    def make(connection: sqlite3.Connection) -> int:
        if is_empty(connection, path):  # decided under the write lock: two processes may open a new file at once
            _create(connection, partitions, schema)
        else:
            _migrate(connection, path, migrations)
        for statement in sqlite_payloads.ADDED:
            connection.execute(statement)
        (recorded,) = connection.execute("SELECT value FROM meta WHERE key = 'partitions'").fetchone()
        return int(recorded)

    return in_transaction(connection, make)


def check_same(connection: sqlite3.Connection, path: Path, partitions: int) -> None:
    """Raises `FormatError` when the file is no longer what `prepare` has made of it."""
    found = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    if (found.get("format_version"), found.get("partitions")) != (FORMAT_VERSION, partitions):
        raise FormatError(f"{path} has been migrated or made anew since it was opened: start this program again")


def _create(connection: sqlite3.Connection, partitions: int, schema: Sequence[str]) -> None:
    for statement in schema:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("INSERT INTO meta VALUES ('format_version', ?), ('partitions', ?)", (FORMAT_VERSION, partitions))


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Mapping[int, Sequence[str]]) -> None:
    (version,) = connection.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {version}, this program knows versions up to {FORMAT_VERSION}:"
            " upgrade the program, or open the file with the one that wrote it"
        )
    for step in range(version, FORMAT_VERSION):
        if step not in migrations:
            raise FormatError(
                f"{path} has format version {version}, this program reads version {FORMAT_VERSION} and cannot migrate"
                f" from version {step}: migrate the file with an earlier release first"
            )
        for statement in migrations[step]:
            connection.execute(statement)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'format_version'", (FORMAT_VERSION,))
