"""The payloads face on SQLite: one table of chunks.

Each chunk is a commit of its own, and so is each removal of one, so that no turn of an actor waits for more than a
chunk. The table was added to format 1 after its first files were made: programs that do not know it leave it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statestores.model import partition_of
from statestores.store import StoredAt

if TYPE_CHECKING:
    from sqlite3 import Connection

    from statestores.sqlite import SqliteStore

ADDED: tuple[str, ...] = (
    # A rowid table with an index: the listing reads the index alone, and never walks over the values.
    """CREATE TABLE IF NOT EXISTS payloads (
        partition INTEGER NOT NULL,
        stream TEXT NOT NULL,
        id TEXT NOT NULL,
        number INTEGER NOT NULL,
        chunk BLOB NOT NULL,
        UNIQUE (partition, stream, id, number)
    )""",
)

_PLACE = "partition = ? AND stream = ? AND id = ?"


class SqlitePayloads:
    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    async def put(self, stream: str, id: str, number: int, chunk: bytes | bytearray | memoryview) -> None:
        row = (*self._place(stream, id), number, chunk)
        await self._store.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO payloads VALUES (?, ?, ?, ?, ?)", row)
        )

    async def get(self, stream: str, id: str, number: int) -> bytes | None:
        place = (*self._place(stream, id), number)
        return await self._store.read(lambda connection: _chunk(connection, place))

    async def stored(self, partition: int, after: tuple[str, str] | None = None, limit: int = 100) -> list[StoredAt]:
        stream, id_ = after if after is not None else ("", "")
        return await self._store.read(lambda connection: _stored(connection, partition, stream, id_, limit))

    async def remove(self, stream: str, id: str) -> None:
        place = self._place(stream, id)
        while await self._store.write(lambda connection: _remove_one(connection, place)):
            pass

    def _place(self, stream: str, id: str) -> tuple[int, str, str]:
        return partition_of(stream, self._store.partitions), stream, id


def _chunk(connection: Connection, place: tuple[int, str, str, int]) -> bytes | None:
    row = connection.execute(f"SELECT chunk FROM payloads WHERE {_PLACE} AND number = ?", place).fetchone()
    return None if row is None else bytes(row[0])


def _stored(connection: Connection, partition: int, stream: str, id_: str, limit: int) -> list[StoredAt]:
    rows = connection.execute(
        "SELECT DISTINCT stream, id FROM payloads WHERE partition = ? AND (stream, id) > (?, ?)"
        " ORDER BY stream, id LIMIT ?",
        (partition, stream, id_, limit),
    )
    return [StoredAt(*row) for row in rows]


def _remove_one(connection: Connection, place: tuple[int, str, str]) -> bool:
    """One chunk; whether there was one."""
    return bool(
        connection.execute(
            f"DELETE FROM payloads WHERE rowid = (SELECT rowid FROM payloads WHERE {_PLACE} LIMIT 1)", place
        ).rowcount
    )
