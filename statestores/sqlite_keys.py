"""The keys face on SQLite: one table, whose row id is the ETag.

Every write inserts a new row in place of the old one, and AUTOINCREMENT never gives an id twice, not even that of a row
which is gone: so a tag read once can never match a key that was deleted and made again.

Prefix ranges compare against the prefix followed by the byte 0xFF, which no UTF-8 text contains: it is above every key
that starts with the prefix and below every other.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from sqlite3 import OperationalError
from typing import TYPE_CHECKING

from statestores import keyquery, keyrules
from statestores.errors import StoreUnavailable
from statestores.sqlite_transaction import in_transaction
from statestores.store import KeyItem, SetKey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from sqlite3 import Connection, Cursor

    from statestores.errors import StoreError
    from statestores.sqlite import SqliteStore
    from statestores.store import DeleteKey, KeyQuery

    Write = Callable[[Connection, Sequence[SetKey | DeleteKey], int], list[StoreError | None]]

SCHEMA: tuple[str, ...] = (
    """CREATE TABLE keys (
        etag INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        value BLOB NOT NULL,
        expires_ms INTEGER
    )""",
    "CREATE INDEX keys_by_expiry ON keys (expires_ms) WHERE expires_ms IS NOT NULL",
)

_OPERATIONS_PER_COMMIT = 500  # a bound on how long a turn of an actor has to wait for its own commit
_KEYS_PER_SELECT = 500  # SQLite takes at least 999 parameters in one statement, in every build there is

_LIVE = "(expires_ms IS NULL OR expires_ms > ?)"
_WITH_PREFIX = "key >= CAST(? AS TEXT) AND key < CAST(? AS TEXT)"


class SqliteKeys:
    """Values by key, in the store's file. Each call is one transaction (`apply` of very many operations is several), in
    which its conditions are checked too; calls that come while the disk is busy share a commit."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._waiting: deque[_Request] = deque()

    async def get(self, keys: Sequence[str], now_ms: int) -> list[KeyItem | None]:
        found = await self._store.read(lambda connection: _read(connection, keys, now_ms))
        return [found.get(key) for key in keys]

    async def apply(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> list[StoreError | None]:
        answers: list[StoreError | None] = []
        for start in range(0, len(operations), _OPERATIONS_PER_COMMIT):
            answers += await self._write(_apply_each, operations[start : start + _OPERATIONS_PER_COMMIT], now_ms)
        return answers

    async def transact(self, operations: Sequence[SetKey | DeleteKey], now_ms: int) -> None:
        if operations:
            await self._write(_apply_all, operations, now_ms)

    async def query(self, query: KeyQuery, now_ms: int) -> tuple[list[KeyItem], str]:
        """Reads every live document under the prefix and filters in Python, like every store does: JSON1 compares
        across types by rules of its own, and without an index on the path it parses every document as well."""
        return await self._store.scan(lambda connection: _page(connection, query, now_ms))

    async def delete_prefix(self, prefix: str) -> int:
        prefix = keyrules.children_prefix(prefix)
        return await self._store.write(lambda connection: _delete_children(connection, prefix))

    async def purge_expired(self, now_ms: int, limit: int) -> int:
        return await self._store.write(lambda connection: _purge(connection, now_ms, limit))

    async def _write(
        self, function: Write, operations: Sequence[SetKey | DeleteKey], now_ms: int
    ) -> list[StoreError | None]:
        """Run `function` whole or not at all, in one commit with the writes that wait for the writer beside it.

        Requests and the calls that serve them stand in the same order, because nothing awaits between the two lines:
        so the call of a request finds it either done, by a call before it, or first in line.
        """
        request = _Request(function, operations, now_ms)
        self._waiting.append(request)
        try:
            return await self._store.run_writer(lambda connection: self._serve(connection, request))
        except StoreUnavailable:
            if not request.is_done:  # the store is closed: no call will come to serve it
                self._waiting.remove(request)
            raise

    def _serve(self, connection: Connection, request: _Request) -> list[StoreError | None]:
        if not request.is_done:
            together = self._take()
            assert together[0] is request
            _commit(connection, together)
        if request.error is not None:
            raise request.error
        return request.answer

    def _take(self) -> list[_Request]:
        """The first requests in line, one at least, that share a commit."""
        taken = [self._waiting.popleft()]
        left = _OPERATIONS_PER_COMMIT - len(taken[0].operations)
        while self._waiting and (left := left - len(self._waiting[0].operations)) >= 0:
            taken.append(self._waiting.popleft())
        return taken


@dataclass(slots=True, eq=False)
class _Request:
    """A write, and what came of it: valid once `is_done`, which is set after the commit."""

    function: Write
    operations: Sequence[SetKey | DeleteKey]
    now_ms: int
    answer: list[StoreError | None] = field(default_factory=list)
    error: Exception | None = None
    is_done: bool = False


def _commit(connection: Connection, requests: list[_Request]) -> None:
    """One transaction for all. A request that fails is undone by itself; when the commit fails, all have failed."""

    def run_each(connection: Connection) -> None:
        for request in requests:
            _run(connection, request)

    try:
        in_transaction(connection, run_each)
    except Exception as error:
        for request in requests:
            request.error = error
    for request in requests:
        request.is_done = True


def _run(connection: Connection, request: _Request) -> None:
    connection.execute("SAVEPOINT request")
    try:
        request.answer = request.function(connection, request.operations, request.now_ms)
    except OperationalError:
        raise  # the disk's or the file's trouble, not the request's
    except Exception as error:
        request.error = error
        connection.execute("ROLLBACK TO request")
    connection.execute("RELEASE request")


def _read(connection: Connection, keys: Sequence[str], now_ms: int) -> dict[str, KeyItem]:
    wanted = [key for key in dict.fromkeys(keys) if keyrules.key_fault(key) is None]
    if len(wanted) <= _KEYS_PER_SELECT:
        return _read_chunk(connection, wanted, now_ms)
    found = {}
    connection.execute("BEGIN")  # so that all chunks see the same moment
    try:
        for start in range(0, len(wanted), _KEYS_PER_SELECT):
            found.update(_read_chunk(connection, wanted[start : start + _KEYS_PER_SELECT], now_ms))
    finally:
        connection.execute("ROLLBACK")
    return found


def _read_chunk(connection: Connection, keys: list[str], now_ms: int) -> dict[str, KeyItem]:
    places = ",".join("?" * len(keys))
    rows = connection.execute(
        f"SELECT key, value, etag, expires_ms FROM keys WHERE key IN ({places}) AND {_LIVE}", (*keys, now_ms)
    )
    return {key: KeyItem(key, value, str(etag), expires_ms) for key, value, etag, expires_ms in rows}


def _page(connection: Connection, query: KeyQuery, now_ms: int) -> tuple[list[KeyItem], str]:
    """The cursor is closed before anything is raised: an error's traceback would keep it, and with it the connection's
    read transaction, so that later reads would not see later writes. (The cursor itself: closing a generator around it
    that nobody has begun to read lets go of it in Python 3.11 only.)"""
    with closing(_with_prefix(connection, query.prefix, now_ms)) as rows:
        items = (KeyItem(key, value, str(etag), expires_ms) for key, value, etag, expires_ms in rows)
        return keyquery.page(query, items)


def _with_prefix(connection: Connection, prefix: str, now_ms: int) -> Cursor:
    return connection.execute(
        f"SELECT key, value, etag, expires_ms FROM keys WHERE {_WITH_PREFIX} AND {_LIVE}",
        (*_prefix_range(prefix), now_ms),
    )


def _apply_one(connection: Connection, operation: SetKey | DeleteKey, now_ms: int) -> StoreError | None:
    if (error := keyrules.malformed(operation)) is not None:
        return error
    if keyrules.is_conditional(operation):
        error = keyrules.refusal(operation, _current_etag(connection, operation.key, now_ms))
        if error is not None:
            return error
    if isinstance(operation, SetKey):
        connection.execute(
            "INSERT OR REPLACE INTO keys (key, value, expires_ms) VALUES (?, ?, ?)",
            (operation.key, operation.value, keyrules.expiry_ms(operation, now_ms)),
        )
    else:
        connection.execute("DELETE FROM keys WHERE key = ?", (operation.key,))
    return None


def _apply_each(
    connection: Connection, operations: Sequence[SetKey | DeleteKey], now_ms: int
) -> list[StoreError | None]:
    return [_apply_one(connection, operation, now_ms) for operation in operations]


def _apply_all(
    connection: Connection, operations: Sequence[SetKey | DeleteKey], now_ms: int
) -> list[StoreError | None]:
    for operation in operations:
        if (error := _apply_one(connection, operation, now_ms)) is not None:
            raise error  # and the request is rolled back
    return []


def _current_etag(connection: Connection, key: str, now_ms: int) -> str | None:
    row = connection.execute(f"SELECT etag FROM keys WHERE key = ? AND {_LIVE}", (key, now_ms)).fetchone()
    return None if row is None else str(row[0])


def _delete_children(connection: Connection, prefix: str) -> int:
    """Blobs, because `substr` on text ends at a NUL character, which keys may contain."""
    low, high = _prefix_range(prefix)
    return connection.execute(
        f"DELETE FROM keys WHERE {_WITH_PREFIX} AND instr(substr(CAST(key AS BLOB), ?), ?) = 0",
        (low, high, len(low) + 1, keyrules.SEPARATOR.encode()),
    ).rowcount


def _purge(connection: Connection, now_ms: int, limit: int) -> int:
    return connection.execute(
        "DELETE FROM keys WHERE etag IN"
        " (SELECT etag FROM keys WHERE expires_ms IS NOT NULL AND expires_ms <= ? ORDER BY expires_ms LIMIT ?)",
        (now_ms, limit),
    ).rowcount


def _prefix_range(prefix: str) -> tuple[bytes, bytes]:
    start = prefix.encode(errors="surrogatepass")
    return start, start + b"\xff"
