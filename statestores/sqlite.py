"""A store in one SQLite file: the embedded default.

Threads, each with a connection of its own, because sqlite3 blocks: the *writer* runs what changes the file, one
transaction after the other, the *reader* everything else, but for what looks at very many rows: that is left to the
*scanner*, which starts at its first use, so that nothing short waits behind it. In WAL mode readers wait neither for a
writer nor for each other. A thread with a queue rather than an executor: the hop costs half as much, and a lone turn
pays it whole.

Several processes may use one file. SQLite lets one of them write at a time, the others wait up to `busy_timeout_s`; who
may write what is decided by the epochs (INV-2).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from statestores import sqlite_format
from statestores.errors import ComponentError, FormatError, StoreUnavailable
from statestores.model import DEFAULT_PARTITIONS
from statestores.sqlite_journal import SqliteJournal
from statestores.sqlite_keys import SqliteKeys
from statestores.sqlite_payloads import SqlitePayloads
from statestores.sqlite_settings import settings_of
from statestores.sqlite_transaction import in_transaction
from statestores.store import Capability
from statestores.storeurl import partitions_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    Connect = Callable[[Path, float], sqlite3.Connection]

T = TypeVar("T")

Synchronous = Literal["FULL", "NORMAL", "OFF", "EXTRA"]

_CACHED_STATEMENTS = 256
_CACHE_KIB = 64 * 1024
_CHECKPOINT_PAGES = 4000  # 16 MiB of WAL: a checkpoint writes each page once, however often it changed before
DEFAULT_BUSY_TIMEOUT_S = 5.0


def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode, to be used by one thread at a time. The file is made when it is missing."""
    return sqlite3.connect(
        path,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_CACHED_STATEMENTS,
    )


class SqliteStore:
    """Both faces in the file `path`. Its directory must exist."""

    capabilities = frozenset(Capability) - {Capability.SHARED}

    def __init__(
        self,
        path: str | Path,
        *,
        partitions: int = DEFAULT_PARTITIONS,
        synchronous: Synchronous = "FULL",
        wal: bool = True,
        busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S,
        connect: Connect = connect,
    ) -> None:
        """`partitions` counts only when the file is made. With `synchronous` below FULL a power failure may lose the
        latest turns. `connect` is there for tests."""
        self.path = Path(path)
        self._partitions = partitions
        self._synchronous = synchronous
        self._wal = wal
        self._busy_timeout_s = busy_timeout_s
        self._connect = connect
        self._writer: _Worker | None = None
        self._reader: _Worker | None = None
        self._scanner: _Worker | None = None
        self.journal = SqliteJournal(self)
        self.keys = SqliteKeys(self)
        self.payloads = SqlitePayloads(self)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """``sqlite:///relative.db``, ``sqlite:////absolute.db``, with ``?partitions=8`` for a file still to be made."""
        parts = urlsplit(url)
        path = unquote(parts.path)[1:]
        if not url.partition(":")[2].startswith("///") or not path:
            raise ComponentError(
                f"{url}: write sqlite:///relative.db or sqlite:////absolute.db, with three slashes or four"
            )
        if path == ":memory:":
            raise ComponentError(f"{url}: a store in memory is memory://")
        return cls(path, partitions=partitions_parameter(url))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Dapr's names: connectionString (needed), busyTimeout or timeout, disableWAL."""
        return cls(**settings_of(metadata))

    # ---- life ------------------------------------------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        """How many partitions the file has. Known after `open`."""
        return self._partitions

    async def open(self) -> None:
        """Start the threads; make, check or migrate the file. Raises `ComponentError`, `FormatError`,
        `StoreUnavailable`."""
        if self._writer is not None:
            return
        writer, reader = _Worker("writer", self.path), _Worker("reader", self.path)
        try:
            self._partitions = await writer.run(lambda: self._open_writer(writer))
            await reader.run(lambda: self._connect_reader(reader))
        except BaseException:
            await reader.stop()
            await writer.stop()
            raise
        self._writer, self._reader = writer, reader

    async def close(self) -> None:
        """Finish what is under way, then close the connections and end the threads."""
        workers = (self._scanner, self._reader, self._writer)
        self._scanner = self._reader = self._writer = None
        for worker in workers:  # the last one to close removes the WAL, and a reader could not
            if worker is not None:
                await worker.stop()

    def _open_writer(self, worker: _Worker) -> int:
        sqlite_format.check_place(self.path)
        worker.connection = connection = self._connect(self.path, self._busy_timeout_s)
        if sqlite_format.is_empty(connection, self.path):
            # Made before the switch to WAL, so that whose file it is stands in the file itself and not in its log.
            sqlite_format.prepare(connection, self.path, self._partitions)
        self._set_journal_mode(connection)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        partitions = sqlite_format.prepare(connection, self.path, self._partitions)
        self.journal.prepare_writer(connection)
        return partitions

    def _set_journal_mode(self, connection: sqlite3.Connection) -> None:
        """Changing the mode needs the file alone for a moment, and SQLite does not wait for that by itself."""
        wanted = "wal" if self._wal else "delete"
        give_up = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                (mode,) = connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
            except sqlite3.OperationalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
                continue
            if mode != wanted:
                raise FormatError(f"{self.path} cannot be put into {wanted} mode: is it on a network file system?")
            return

    def _connect_reader(self, worker: _Worker) -> sqlite3.Connection:
        worker.connection = connection = self._connect(self.path, self._busy_timeout_s)
        connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
        connection.execute("PRAGMA query_only = ON")
        return connection

    # ---- for the two faces -----------------------------------------------------------------------------------------

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the writer thread in a transaction: committed when it returns, rolled back when it raises.

        The transaction has the write lock from its start, so what `function` reads stays true until it is committed.
        """
        return await self.run_writer(lambda connection: in_transaction(connection, function))

    async def run_writer(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Like `write`, but `function` sees to its transactions itself and leaves none open."""
        return await _opened(self._writer).run_with_connection(function)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the reader thread. Several statements see one moment only in a transaction of their own."""
        return await _opened(self._reader).run_with_connection(function)

    async def scan(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Like `read`, for what looks at very many rows, on a thread where only others of its kind wait for it."""
        _opened(self._reader)
        if (scanner := self._scanner) is None:
            scanner = self._scanner = _Worker("scanner", self.path)
        return await scanner.run(lambda: function(scanner.connection or self._connect_reader(scanner)))


def _opened(worker: _Worker | None) -> _Worker:
    if worker is None:
        raise StoreUnavailable("the store is not open")
    return worker


class _Worker:
    """A thread that runs functions one after the other, and the connection that only it uses."""

    def __init__(self, role: str, path: Path) -> None:
        self.connection: sqlite3.Connection | None = None
        self._path = path
        self._queue: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        # A daemon: a program that forgets to close the store can still end, and loses nothing that was acknowledged.
        self._thread = Thread(target=self._work, name=f"sqlite {role} {path.name}", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[], T]) -> T:
        """Run it after everything queued before. When the caller is cancelled it runs nevertheless."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put((function, answer))
        return await answer

    async def run_with_connection(self, function: Callable[[sqlite3.Connection], T]) -> T:
        connection = self.connection
        assert connection is not None
        return await self.run(lambda: function(connection))

    async def stop(self) -> None:
        """Close the connection after everything queued before, and end the thread."""
        await self.run(self._close)
        self._queue.put(None)
        self._thread.join()

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            function, answer = job
            try:
                result = function()
            except sqlite3.OperationalError as error:
                _answer(answer, _fail, _unavailable(self._path, error))
            except BaseException as error:
                _answer(answer, _fail, error)
            else:
                _answer(answer, _succeed, result)
            del job, function, answer  # while it waits, a thread keeps nothing alive
            result = None


def _unavailable(path: Path, error: sqlite3.OperationalError) -> StoreUnavailable:
    unavailable = StoreUnavailable(f"SQLite on {path}: {error}")
    unavailable.__cause__ = error
    return unavailable


def _answer(answer: asyncio.Future[Any], how: Callable[[asyncio.Future[Any], Any], None], value: object) -> None:
    try:
        answer.get_loop().call_soon_threadsafe(how, answer, value)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more


def _succeed(answer: asyncio.Future[Any], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
