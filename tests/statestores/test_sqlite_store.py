"""What is particular to the SQLite store: its file, its settings, its threads, and several processes."""

# ruff: noqa: ASYNC240 -- tiny files, looked at while nothing else runs

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
import threading
import weakref
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from statestores import sqlite_format
from statestores.conformance.journal import NOW_MS, Owner, everything
from statestores.errors import ComponentError, FormatError, StaleEpoch, StoreUnavailable
from statestores.model import FORMAT_VERSION
from statestores.sqlite import SqliteStore
from statestores.store import KeyQuery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open()
    yield store
    await store.close()


def set_format_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'format_version'", (version,))
    connection.close()


# ---- the file ------------------------------------------------------------------------------------------------------


async def test_a_new_file_is_marked_as_ours(store: SqliteStore, path: Path) -> None:
    """The file says whose it is, of which format, how many partitions, and is in WAL mode with full synchronisation."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA application_id").fetchone() == (sqlite_format.APPLICATION_ID,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert dict(connection.execute("SELECT key, value FROM meta")) == {
        "format_version": FORMAT_VERSION,
        "partitions": 32,
    }
    connection.close()
    assert await store.write(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,)


async def test_partitions_are_part_of_the_data(path: Path) -> None:
    """The number of partitions is decided when the file is made; later wishes are not honoured."""
    for wish in (4, 16):
        store = SqliteStore(path, partitions=wish)
        await store.open()
        assert store.journal.partitions == 4
        await store.close()


@pytest.mark.parametrize(
    ("place", "remedy"),
    [("", "is a directory: name a file in it"), ("nowhere/store.db", "there is no directory .*nowhere: make it")],
)
async def test_a_place_where_no_file_can_be(tmp_path: Path, place: str, remedy: str) -> None:
    """A path that cannot be a file is refused with a `ComponentError` that names it and says what to do."""
    with pytest.raises(ComponentError, match=remedy) as refusal:
        await SqliteStore(tmp_path / place).open()
    assert str(tmp_path / place) in str(refusal.value)


async def test_an_error_of_sqlite_names_the_file(store: SqliteStore, path: Path) -> None:
    """Whoever has several stores must see which one failed."""
    with pytest.raises(StoreUnavailable, match=re.escape(str(path))):
        await store.write(lambda connection: connection.execute("SELECT * FROM nowhere"))


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"x", b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    """A file that is not a SQLite database is refused with a `FormatError` that names it, and left as it was."""
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"store\.db"):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


async def test_a_database_of_another_program(path: Path) -> None:
    """A database that is not ours is refused and left as it was."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE state (key TEXT)")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    with pytest.raises(FormatError, match="another program"):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


async def test_an_empty_file_becomes_a_store(path: Path) -> None:
    """An empty file, as `mktemp` leaves it, belongs to nobody yet."""
    path.touch()
    store = SqliteStore(path)
    await store.open()
    assert await store.journal.owners() == []
    await store.close()


# ---- format versions -----------------------------------------------------------------------------------------------


async def test_a_newer_format_is_refused(store: SqliteStore, path: Path) -> None:
    """A file of a newer format is refused with both versions and what to do, and nothing is written."""
    await store.close()
    set_format_version(path, FORMAT_VERSION + 1)
    content = path.read_bytes()
    with pytest.raises(
        FormatError, match=rf"version {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}.*upgrade the program"
    ):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


async def test_a_file_that_was_migrated_meanwhile_is_not_taken(store: SqliteStore, path: Path) -> None:
    """A program that was frozen while a newer one took its place would write what does not fit: nothing is taken."""
    (taken,) = await store.journal.acquire([0], "one", 0, 1)
    set_format_version(path, FORMAT_VERSION + 1)
    with pytest.raises(FormatError, match="migrated or made anew"):
        await store.journal.acquire([0, 1], "one", 0, 1)
    assert await store.journal.owners() == [taken]


def format_0(path: Path) -> sqlite3.Connection:
    """A file of an invented format 0: like format 1, but events have no trace id."""
    connection = sqlite3.connect(path, isolation_level=None)
    schema = [statement.replace(",\n        trace_id TEXT NOT NULL", "") for statement in sqlite_format.SCHEMA]
    assert schema != [*sqlite_format.SCHEMA]
    sqlite_format.prepare(connection, path, 8, schema=schema)
    connection.execute("INSERT INTO events VALUES ('a/1', 1, 'old', x'', 5, 'turn', 'caller')")
    connection.execute("UPDATE meta SET value = 0 WHERE key = 'format_version'")
    return connection


MIGRATIONS = {0: ("ALTER TABLE events ADD COLUMN trace_id TEXT NOT NULL DEFAULT 'unknown'",)}


async def test_an_older_format_is_migrated(path: Path) -> None:
    """The migrations from a file's version on are applied, once, and the data is there in the new format."""
    connection = format_0(path)
    for _ in range(2):
        assert sqlite_format.prepare(connection, path, 99, migrations=MIGRATIONS) == 8
    connection.close()
    store = SqliteStore(path)
    await store.open()
    (event,) = await store.journal.events("a/1")
    assert (event.name, event.trace_id) == ("old", "unknown")
    owner = await Owner.of(store)
    await owner.record(owner.turn("a/1", 1, "new", trace_id="known"))
    assert (await store.journal.load("a/1")).events[1].trace_id == "known"
    await store.close()


async def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    """A migration is one transaction: when a statement of it fails, the file is of the old format still."""
    connection = format_0(path)
    broken = {0: (*MIGRATIONS[0], "ALTER TABLE missing ADD COLUMN x")}
    with pytest.raises(sqlite3.OperationalError):
        sqlite_format.prepare(connection, path, 8, migrations=broken)
    assert sqlite_format.prepare(connection, path, 8, migrations=MIGRATIONS) == 8
    connection.close()


async def test_an_older_format_without_a_migration(path: Path) -> None:
    """A version that no migration starts from is refused with advice."""
    format_0(path).close()
    with pytest.raises(FormatError, match="cannot migrate from version 0"):
        await SqliteStore(path).open()


# ---- URLs and components -------------------------------------------------------------------------------------------


def test_urls() -> None:
    """Three slashes are relative, four absolute; percent signs decode; `partitions` is honoured."""
    assert SqliteStore.from_url("sqlite:///data/x.db").path == Path("data/x.db")
    assert SqliteStore.from_url("sqlite:////var/x.db").path == Path("/var/x.db")
    assert SqliteStore.from_url("sqlite:///a%20b.db?partitions=8").path == Path("a b.db")
    assert SqliteStore.from_url("sqlite:///a%23b.db").path == Path("a#b.db")
    assert SqliteStore.from_url("sqlite:///x.db?partitions=8").partitions == 8


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://x.db",
        "sqlite:x.db",
        "sqlite:/y.db",
        "sqlite:",
        "SQLite:?partitions=2",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///a#b.db",
    ]
    + [
        f"sqlite:///x.db?{query}"
        for query in ("partitions=0", "partitions=x", "partitions=", "partition=8", "mode=ro", "x")
    ],
)
def test_wrong_urls(url: str) -> None:
    """A URL that names no file, or has parameters that mean nothing, is a `ComponentError` that quotes it."""
    with pytest.raises(ComponentError, match="sqlite:"):
        SqliteStore.from_url(url)


async def test_component_metadata(path: Path) -> None:
    """Dapr's metadata names are understood, in any case, and names that are not the store's are left alone."""
    metadata = {
        "connectionString": f"file:{path}?_txlock=immediate",
        "busytimeout": "1500ms",
        "disableWAL": "true",
        "actorStateStore": "true",
    }
    store = SqliteStore.from_metadata(metadata)
    assert store.path == path
    await store.open()
    assert await store.write(lambda c: c.execute("PRAGMA journal_mode").fetchone()) == ("delete",)
    assert await store.write(lambda c: c.execute("PRAGMA busy_timeout").fetchone()) == (1500,)
    owner = await Owner.of(store)
    await owner.record(everything(owner, "a/1"))
    await store.close()


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"connectionString": ":memory:"},
        {"connectionString": "file:x.db?mode=memory"},
        {"connectionString": "file:x.db?mode=ro"},
        {"connectionString": "file:x.db?_txlock=immediate&immutable=1"},
        {"connectionString": "x.db", "busyTimeout": "soon"},
        {"connectionString": "x.db", "disableWAL": "perhaps"},
    ],
)
def test_wrong_component_metadata(metadata: dict[str, str]) -> None:
    """Metadata that cannot be meant is a `ComponentError` that names the field."""
    field = [*metadata][-1] if metadata else "connectionString"
    with pytest.raises(ComponentError, match=field):
        SqliteStore.from_metadata(metadata)


# ---- life and threads ----------------------------------------------------------------------------------------------


async def test_closing_ends_the_threads_and_the_log(path: Path) -> None:
    """After `close` no thread is left, the file stands alone, and the store can be opened again."""
    before = threading.active_count()
    store = SqliteStore(path)
    for _ in range(2):
        await store.open()
        assert threading.active_count() == before + 2
        await store.keys.query(KeyQuery({}), 0)
        assert threading.active_count() == before + 3
        await store.close()
        assert threading.active_count() == before
        assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.journal.load("a/1")


async def test_a_failed_open_leaves_nothing_behind(path: Path) -> None:
    """When `open` raises, its threads have ended."""
    path.write_bytes(b"garbage")
    before = threading.active_count()
    with pytest.raises(FormatError):
        await SqliteStore(path).open()
    assert threading.active_count() == before


async def test_an_idle_thread_keeps_nothing_alive(store: SqliteStore) -> None:
    """What a read gave is its caller's alone: the thread that waits for the next one has let go of it."""

    class Large:
        pass

    gone = threading.Event()
    weakref.finalize(await store.read(lambda _: Large()), gone.set)
    assert await asyncio.to_thread(gone.wait, 10)


async def test_work_under_way_is_finished_by_close(store: SqliteStore, path: Path) -> None:
    """Commits that were called before `close` are answered, and durable."""
    owner = await Owner.of(store)
    commits = [asyncio.create_task(owner.commit(owner.turn(f"a/{n}", 0, "e"))) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*commits) == [[None]] * 20
    await store.open()
    assert [(await store.journal.load(f"a/{n}")).version for n in range(20)] == [1] * 20


async def test_a_cancelled_commit_harms_nobody(store: SqliteStore) -> None:
    """Whoever stops waiting for a commit does not stop it, nor those behind it."""
    owner = await Owner.of(store)
    cancelled = asyncio.create_task(owner.commit(owner.turn("a/1", 0, "e")))
    await asyncio.sleep(0)
    cancelled.cancel()
    await owner.record(owner.turn("a/2", 0, "e"))
    assert (await store.journal.load("a/1")).version == 1


async def test_readers_do_not_wait_for_a_writer(store: SqliteStore, path: Path) -> None:
    """While another process holds the write lock, everything can be read."""
    owner = await Owner.of(store)
    await owner.record(owner.turn("a/1", 0, "e"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert (await store.journal.load("a/1")).version == 1
    other.execute("ROLLBACK")
    other.close()


async def test_a_lock_that_is_held_too_long(path: Path) -> None:
    """When the write lock is not free in time the commit is `StoreUnavailable`, and can be repeated later."""
    store = SqliteStore(path, busy_timeout_s=0.05)
    await store.open()
    owner = await Owner.of(store)
    turn = owner.turn("a/1", 0, "e")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await owner.commit(turn)
    other.execute("ROLLBACK")
    other.close()
    await owner.record(turn)
    await store.close()


async def test_a_full_disk(store: SqliteStore) -> None:
    """A full disk is `StoreUnavailable`: nothing of the commit is there, and with space again it can be repeated."""
    owner = await Owner.of(store)
    (pages,) = await store.run_writer(lambda c: c.execute("PRAGMA page_count").fetchone())
    await store.run_writer(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
    small, large = owner.turn("a/1", 0, "e"), owner.turn("a/2", 0, *(f"{n}" * 500 for n in range(1000)))
    with pytest.raises(StoreUnavailable, match="full"):
        await owner.commit(small, large)
    assert (await store.journal.load("a/1")).version == 0
    await store.run_writer(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
    await owner.record(small, large)


async def test_a_write_that_raises_is_rolled_back(store: SqliteStore) -> None:
    """An exception in a function given to `write` undoes what it did, and the store goes on."""

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM meta")
        raise LookupError("no")

    with pytest.raises(LookupError):
        await store.write(fail)
    assert await store.read(lambda c: c.execute("SELECT count(*) FROM meta").fetchone()) == (2,)


# ---- several processes ---------------------------------------------------------------------------------------------

_OTHER_PROCESS = """
import asyncio, sys
from statestores.conformance.journal import Owner
from statestores.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    owner = await Owner.of(store, "other", force=True)
    for version in range(1, 51):
        await owner.record(owner.turn("a/1", version, f"other-{version}"))
    await store.close()

asyncio.run(main())
"""


async def test_another_process_takes_over(store: SqliteStore, path: Path) -> None:
    """Two processes write one file: the one with the older epoch is refused from the take-over on (INV-2)."""
    owner = await Owner.of(store)
    await owner.record(owner.turn("a/1", 0, "mine"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OTHER_PROCESS, str(path), stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    mine, answer = 0, None
    while answer is None:
        (answer,) = await owner.commit(owner.turn("b/1", mine, "mine", time_ms=NOW_MS + mine))
        mine += answer is None
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert isinstance(answer, StaleEpoch)
    assert (await store.journal.load("a/1")).version == 51
    assert (await store.journal.load("b/1")).version == mine


@pytest.mark.parametrize("statement", [1, 2])
def test_a_file_that_another_one_makes_while_it_is_looked_at(path: Path, statement: int) -> None:
    """Before whichever look: it is ours, and of no other program."""
    looks = count(1)

    class Watched(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            if next(looks) == statement:
                with closing(sqlite3.connect(path, isolation_level=None)) as other:
                    sqlite_format.prepare(other, path, 4)
            return super().execute(*args)

    with closing(sqlite3.connect(path, factory=Watched)) as connection:
        sqlite_format.is_empty(connection, path)
        assert next(looks) > statement
        assert not sqlite_format.is_empty(connection, path)


async def test_two_openers_of_a_new_file(path: Path) -> None:
    """Store objects that open a new file at the same moment agree about it."""
    stores = [SqliteStore(path, partitions=count) for count in (4, 8, 16, 32)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.partitions for store in stores}) == 1
    for store in stores:
        await store.close()
