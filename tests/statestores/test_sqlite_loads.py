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


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[StreamState]]]:
    """How many streams each statement for many was asked for, and what came of it."""
    calls: list[tuple[int, list[StreamState]]] = []
    load_some = sqlite_loads.load_some

    def counting(connection: sqlite3.Connection, streams: Sequence[str]) -> dict[int, StreamState]:
        states = load_some(connection, streams)
        calls.append((len(streams), [*states.values()]))
        return states

    monkeypatch.setattr(sqlite_loads, "load_some", counting)
    return calls


async def versions(store: SqliteStore, streams: Sequence[str]) -> list[int]:
    return [state.version for state in await asyncio.gather(*map(store.journal.load, streams))]


async def test_what_queues_up_goes_together(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone load goes by itself; those that come while one is under way go together, up to a limit."""
    calls = counted(monkeypatch)
    assert await versions(store, STREAMS[:1]) == [0]
    assert calls == []
    assert await versions(store, STREAMS) == list(range(40))
    assert [asked for asked, _ in calls] == [16, 23]
    assert [len(states) for _, states in calls] == [16, 23]


async def test_large_histories_go_in_smaller_company(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many bytes are loaded together, and what was too much waits for the next time. A history that is
    too long for any company is loaded by itself."""
    for most_events in (100, 10):
        monkeypatch.setattr(sqlite_loads, "_MOST_BYTES", most_events * (sqlite_loads._EVENT_BYTES + 2))
        calls = counted(monkeypatch)
        assert await versions(store, STREAMS) == list(range(40))
        loaded = [[state.version for state in states] for _, states in calls]
        assert all(len(together) == 1 or sum(together) <= most_events for together in loaded)
        assert any(len(together) > 1 for together in loaded)
        assert max(asked for asked, _ in calls[-3:]) <= 3, "the next ones ask for less"


@pytest.mark.parametrize("where", ["event", "snapshot"])
async def test_large_values_are_loaded_as_they_are(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """JSON would hold them twice over, and more than that: no stream with a large value goes by it."""
    value = bytes(range(256)) * 40
    for stream in STREAMS[5:40:7]:
        turn = TurnCommit(partition_of(stream, 4), 1, stream, f"large {stream}", 7, int(stream[2:]))
        grown = turn._replace(events=(NewEvent("grew", value),)) if where == "event" else turn._replace(snapshot=value)
        assert await store.journal.commit([grown]) == [None]
    rows: list[str] = []
    states = sqlite_loads._states

    def measured(count: int, snapshots: str, events: str) -> list[StreamState]:
        rows.extend((snapshots, events))
        return states(count, snapshots, events)

    monkeypatch.setattr(sqlite_loads, "_states", measured)
    found = await asyncio.gather(*map(store.journal.load, STREAMS))
    assert rows
    assert not any(value.hex().upper() in row for row in rows)
    for number, state in enumerate(found):
        assert state.version == number + (where == "event" and number % 7 == 5)
        kept = state.snapshot.data if state.snapshot else state.events[-1].data if state.events else b""
        assert (kept == value) is (number % 7 == 5)


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
