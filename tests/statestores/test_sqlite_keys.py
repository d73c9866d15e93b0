"""What the keys face on SQLite promises beyond the suite: it lasts, is all or nothing, and finds keys by index."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from statestores import keyquery, sqlite_keys
from statestores.conformance.keys import NOW_MS, read, values, write
from statestores.errors import ETagMismatch, StoreUnavailable
from statestores.sqlite import SqliteStore
from statestores.store import DeleteKey, KeyItem, KeyQuery, SetKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

OPERATIONS = (SetKey("a", b"2"), DeleteKey("b"), SetKey("c", b"2", ttl_s=9), SetKey("d", b"2", first_write=True))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "keys.db")
    await store.open()
    yield store
    await store.close()


async def reopened(store: SqliteStore) -> SqliteStore:
    """The same file, as another process finds it."""
    await store.close()
    other = SqliteStore(store.path)
    await other.open()
    return other


async def test_keys_and_tags_survive_a_restart(store: SqliteStore) -> None:
    """Values, tags and expiry are the same after reopening, and no tag from before is given again."""
    await write(store, SetKey("kept", b"\x00\xff", ttl_s=60), SetKey("deleted", b"1"))
    kept, deleted = await read(store, "kept"), await read(store, "deleted")
    await write(store, DeleteKey("deleted"))
    other = await reopened(store)
    try:
        assert await read(other, "kept") == kept
        await write(other, SetKey("deleted", b"1"))
        assert (await read(other, "deleted")).etag not in (kept.etag, deleted.etag)
        with pytest.raises(ETagMismatch):
            await write(other, SetKey("deleted", b"2", etag=deleted.etag))
        await write(other, SetKey("kept", b"2", etag=kept.etag))
    finally:
        await other.close()


class DyingConnection(sqlite3.Connection):
    """Dies before the statement that comes after `alive` more of them."""

    alive: int | None = None

    def execute(self, *args: Any) -> sqlite3.Cursor:
        if self.alive is not None:
            if self.alive == 0:
                raise sqlite3.OperationalError("the process died here")
            self.alive -= 1
        return super().execute(*args)


def connect_dying(path: Path, busy_timeout_s: float) -> DyingConnection:
    return sqlite3.connect(
        path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=DyingConnection
    )


async def kill_in(store: SqliteStore, alive: int) -> None:
    """Let the writer die after `alive` statements from now."""

    def arm(connection: sqlite3.Connection) -> None:
        assert isinstance(connection, DyingConnection)
        connection.alive = alive

    await store.run_writer(arm)


@pytest.mark.parametrize("method", ["transact", "apply"])
async def test_death_at_every_statement_leaves_all_or_nothing(tmp_path: Path, method: str) -> None:
    """Killed before any statement of a transaction or a bulk write, and reopened: nothing of it is there; when it was
    not killed, everything is (INV-4 for keys)."""
    outcomes = []
    for alive in range(20):
        store = SqliteStore(tmp_path / f"{alive}.db", connect=connect_dying)
        await store.open()
        await write(store, SetKey("a", b"1"), SetKey("b", b"1"))
        before = await store.keys.get("abcd", NOW_MS)
        await kill_in(store, alive)
        call: Callable[..., Awaitable[object]] = getattr(store.keys, method)
        died = False
        try:
            await call(OPERATIONS, NOW_MS)
        except StoreUnavailable:
            died = True
        other = await reopened(store)
        if died:
            assert await other.keys.get("abcd", NOW_MS) == before
        else:
            assert await values(other, *"abcd") == [b"2", None, b"2", b"2"]
        await other.close()
        outcomes.append(died)
    assert outcomes == sorted(outcomes, reverse=True)
    assert len(OPERATIONS) < sum(outcomes) < len(outcomes)


async def test_reads_of_thousands_of_keys_see_one_moment(store: SqliteStore) -> None:
    """A read that takes several statements still sees the keys as of one commit, and leaves no transaction open."""
    keys = [f"k{number}" for number in range(1200)]
    await store.keys.transact([SetKey(key, b"1") for key in keys], NOW_MS)
    assert set(await values(store, *keys)) == {b"1"}
    assert await store.read(lambda connection: connection.in_transaction) is False


async def wait_together(store: SqliteStore, writes: Iterable[Awaitable[object]]) -> None:
    """All of them stand in line before the first one is served, however quick the disk is."""
    begins = threading.Event()
    held = asyncio.create_task(store.run_writer(lambda _: begins.wait(10)))
    await asyncio.sleep(0)
    asked = asyncio.gather(*writes)
    await asyncio.sleep(0)
    begins.set()
    await asyncio.gather(held, asked)


async def test_concurrent_writes_share_commits(store: SqliteStore) -> None:
    """Writes that wait for the disk at the same time are committed together, none before it was answered for."""
    statements: list[str] = []
    await store.write(lambda connection: connection.set_trace_callback(statements.append))
    await wait_together(store, (write(store, SetKey(f"k{number}", b"1")) for number in range(400)))
    assert statements.count("COMMIT") < 100
    assert await values(store, *(f"k{number}" for number in range(400))) == [b"1"] * 400


async def test_a_turn_does_not_wait_for_a_bulk_write(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bulk write is done in parts, in order, and what the writer is asked for meanwhile comes between them."""
    monkeypatch.setattr(sqlite_keys, "_OPERATIONS_PER_COMMIT", 4)
    bulk = asyncio.create_task(store.keys.apply([SetKey(f"k{n // 2}", b"%d" % n) for n in range(39)], NOW_MS))
    await asyncio.sleep(0)  # it stands in line now
    assert await store.write(lambda connection: connection.execute("SELECT count(*) FROM keys").fetchone()) == (2,)
    assert await bulk == [None] * 39
    assert await values(store, "k0", "k18", "k19") == [b"1", b"37", b"38"]


async def test_a_commit_has_a_bounded_number_of_operations(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes share a commit as long as it stays short, whatever their number; a transaction alone is as long as it
    is."""
    monkeypatch.setattr(sqlite_keys, "_OPERATIONS_PER_COMMIT", 4)
    statements: list[str] = []
    await store.write(lambda connection: connection.set_trace_callback(statements.append))
    sizes = [1, 1, 3, 3, 2, 2, 6, 1]
    operations = [[SetKey(f"k{n}{m}", b"") for m in range(size)] for n, size in enumerate(sizes)]
    await wait_together(store, (store.keys.transact(some, NOW_MS) for some in operations))
    commits = " ".join(line.split()[0] for line in statements).split("COMMIT")
    assert [commit.count("INSERT") for commit in commits if "INSERT" in commit] == [2, 3, 3, 4, 6, 1]


async def test_a_turn_does_not_wait_for_a_query(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a query goes through all keys, streams are loaded and keys are read; other queries wait for it."""
    may_end = threading.Event()
    page = keyquery.page

    def slow(query: KeyQuery, items: Iterable[KeyItem]) -> tuple[list[KeyItem], str]:
        may_end.wait(10)
        return page(query, items)

    await write(store, SetKey("k", b"1"))
    monkeypatch.setattr(keyquery, "page", slow)
    queries = [asyncio.create_task(store.keys.query(KeyQuery({}), NOW_MS)) for _ in range(2)]
    await asyncio.sleep(0)  # they stand in line now
    assert (await store.journal.load("a/1")).version == 0
    assert await values(store, "k") == [b"1"]
    assert [query.done() for query in queries] == [False, False]
    may_end.set()
    assert [[item.key for item in items] for items, _ in await asyncio.gather(*queries)] == [["k"], ["k"]]


async def test_neighbours_of_a_failed_write_succeed(store: SqliteStore) -> None:
    """Of writes that share a commit, one that fails is undone alone: refused, or broken half-way."""
    broken: Any = [SetKey("x", b"1"), SetKey("x", object())]  # type: ignore[arg-type]  # what breaks half-way
    refused = [SetKey("y", b"1"), SetKey("a", b"9", etag="77")]
    answers = await asyncio.gather(
        write(store, SetKey("a", b"1")),
        store.keys.transact(refused, NOW_MS),
        store.keys.apply(broken, NOW_MS),
        store.keys.transact([SetKey("b", b"1"), SetKey("c", b"1")], NOW_MS),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [type(None), ETagMismatch, sqlite3.ProgrammingError, type(None)]
    assert await values(store, *"abcxy") == [b"1", b"1", b"1", None, None]


async def test_cancelled_write_holds_up_nobody(store: SqliteStore) -> None:
    """A caller that goes away leaves the line in order: the writes behind it are served."""
    going = [asyncio.create_task(write(store, SetKey(f"gone{number}", b"1"))) for number in range(3)]
    await asyncio.sleep(0)  # they stand in line now
    for task in going:
        task.cancel()
    await asyncio.gather(*(write(store, SetKey(f"k{number}", b"1")) for number in range(3)))
    assert await values(store, "k0", "k1", "k2") == [b"1"] * 3


async def test_write_to_a_closed_store_never_happens(store: SqliteStore) -> None:
    """A write that was refused because the store is closed does not come back when it is opened again."""
    await store.close()
    with pytest.raises(StoreUnavailable):
        await write(store, SetKey("late", b"1"))
    await store.open()
    await write(store, SetKey("k", b"1"))
    assert await values(store, "late", "k") == [None, b"1"]


async def test_no_search_reads_the_whole_table(store: SqliteStore) -> None:
    """Reading by key, by prefix and by expiry goes over an index, however many keys there are."""
    statements: list[str] = []
    for run in (store.read, store.scan, store.write):
        await run(lambda connection: connection.set_trace_callback(statements.append))
    await write(store, SetKey("a||k", b"1", ttl_s=1), SetKey("b", b"1", first_write=True))
    await store.keys.get(["a||k"], NOW_MS)
    await store.keys.query(KeyQuery({}, prefix="a||"), NOW_MS)
    await store.keys.delete_prefix("a")
    await store.keys.purge_expired(NOW_MS, 10)
    for run in (store.read, store.scan, store.write):
        await run(lambda connection: connection.set_trace_callback(None))
    searches = [statement for statement in statements if statement.startswith(("SELECT", "DELETE"))]
    assert len(searches) == 5
    for statement in searches:
        plan = await store.read(partial(_plan, statement))
        assert plan
        assert not [step for step in plan if "SCAN" in step], statement


def _plan(statement: str, connection: sqlite3.Connection) -> list[str]:
    return [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
