"""Many loads by one statement: what happens beside the good case. (That the answers are right, the conformance suite
sees for every store.)"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from statestores import sqlite_loads
from statestores.errors import StoreUnavailable
from statestores.model import NewEvent, TurnCommit, partition_of
from statestores.sqlite import SqliteStore

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from statestores.model import StreamState

STREAMS = [f"a/{number}" for number in range(40)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Stream `a/n` has n events."""
    store = SqliteStore(tmp_path / "loads.db", partitions=4)
    await store.open()
    await store.journal.acquire(range(4), "owner", 0, 10_000)
    turns = [
        TurnCommit(partition_of(s, 4), 1, s, f"turn {s}", 7, 0, events=(NewEvent("happened", b"{}"),) * number)
        for number, s in enumerate(STREAMS)
        if number
    ]
    assert await store.journal.commit(turns) == [None] * len(turns)
    yield store
    await store.close()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many streams each statement for many was asked for."""
    sizes: list[int] = []
    load_many = sqlite_loads.load_many

    def counting(connection: sqlite3.Connection, streams: Sequence[str]) -> list[StreamState]:
        sizes.append(len(streams))
        return load_many(connection, streams)

    monkeypatch.setattr(sqlite_loads, "load_many", counting)
    return sizes


async def versions(store: SqliteStore, streams: Sequence[str]) -> list[int]:
    return [state.version for state in await asyncio.gather(*map(store.journal.load, streams))]


async def test_what_queues_up_goes_together(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = counted(monkeypatch)
    assert await versions(store, STREAMS[:1]) == [0]
    assert sizes == []
    assert await versions(store, STREAMS) == list(range(40))
    assert sizes == [39]


async def test_long_histories_go_in_smaller_company(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement makes more than so many rows into one: what is too much is halved, and the next ones ask for less.
    A history that is too long for any company is loaded by itself."""
    monkeypatch.setattr(sqlite_loads, "_MOST_EVENTS", 100)
    sizes = counted(monkeypatch)
    assert await versions(store, STREAMS) == list(range(40))
    assert sizes[:3] == [39, 19, 9]
    sizes.clear()
    assert await versions(store, STREAMS[20:]) == list(range(20, 40))
    assert max(sizes) <= 2
    monkeypatch.setattr(sqlite_loads, "_MOST_EVENTS", 10)
    assert await versions(store, STREAMS) == list(range(40))


async def test_who_gives_up_leaves_the_others_alone(store: SqliteStore) -> None:
    """Also the first one, whose statement the others wait for, and one that was never begun."""
    loads = [asyncio.ensure_future(store.journal.load(stream)) for stream in STREAMS]
    await asyncio.sleep(0)
    for given_up in (0, 7, 39):
        loads[given_up].cancel()
    found = await asyncio.gather(*loads, return_exceptions=True)
    for number, state in enumerate(found):
        if number in (0, 7, 39):
            assert isinstance(state, asyncio.CancelledError)
        else:
            assert not isinstance(state, BaseException)
            assert state.version == number
    assert await versions(store, STREAMS) == list(range(40))


async def test_a_failure_is_everybody_s_and_passes(store: SqliteStore) -> None:
    """`StoreUnavailable` reaches all who waited; the next load is a new attempt."""
    read = store.read

    async def unavailable(function: Callable[[sqlite3.Connection], object]) -> object:
        await asyncio.sleep(0)
        raise StoreUnavailable("away")

    store.journal._loads._read = unavailable
    found = await asyncio.gather(*map(store.journal.load, STREAMS), return_exceptions=True)
    assert [type(each) for each in found] == [StoreUnavailable] * 40
    store.journal._loads._read = read
    assert await versions(store, STREAMS) == list(range(40))
