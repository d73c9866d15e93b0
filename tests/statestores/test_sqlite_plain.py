"""The short way into SQLite gives the answers of the general way, and never records part of a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from statestores import sqlite_journal
from statestores.errors import DuplicateTurn, StaleEpoch, VersionConflict
from statestores.model import NewEvent, Receipt, Snapshot, TurnCommit, partition_of
from statestores.sqlite import SqliteStore
from statestores.sqlite_plain import is_plain, rows_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "plain.db", partitions=4)
    await store.open()
    await store.journal.acquire(range(4), "owner", 0, 10_000)
    yield store
    await store.close()


def turn(stream: str, expected: int, turn_id: str, *, events: int = 1, epoch: int = 1) -> TurnCommit:
    facts = tuple(NewEvent("happened", b"%d" % number) for number in range(events))
    return TurnCommit(partition_of(stream, 4), epoch, stream, turn_id, 7, expected, events=facts)


async def versions(store: SqliteStore, stream: str) -> list[int]:
    return [event.version for event in await store.journal.events(stream)]


def test_which_batches_take_it() -> None:
    """A batch whose turns of a stream do not follow each other, or with anything between their events, goes the general
    way."""
    assert rows_of([turn("a/1", 0, "t1"), turn("a/1", 1, "t2", events=2), turn("a/2", 5, "t3")]) is not None
    assert rows_of([turn("a/1", 0, "t1"), turn("a/1", 2, "t2")]) is None
    assert rows_of([turn("a/1", 0, "t1")._replace(snapshot=b"{}"), turn("a/1", 1, "t2")]) is not None
    assert rows_of([turn("a/1", 0, "t1"), turn("a/2", 3, "t2", events=0)]) is not None
    assert rows_of([turn("a/1", 0, "t1"), turn("a/1", 1, "t2", events=0)]) is None
    assert rows_of([turn("a/1", 0, "t1", events=0), turn("a/1", 0, "t2")]) is None
    assert rows_of([turn("a/1", 0, "t1"), turn("a/2", 0, "t2", events=0)._replace(delete=True)]) is None
    assert rows_of([turn("a/1", 0, "t1", events=0)]) is None


def test_what_is_plain() -> None:
    """Events alone are one statement; with anything beside them they are two in a transaction."""
    assert is_plain(turn("a/1", 0, "t1"))
    assert not is_plain(turn("a/1", 0, "t1")._replace(snapshot=b"{}"))
    assert not is_plain(turn("a/1", 0, "t1")._replace(outbox_done=("x",)))
    assert not is_plain(turn("a/1", 0, "t1", events=0))


async def test_a_chain_that_hangs_in_the_air_is_refused_whole(store: SqliteStore) -> None:
    """INV-1, INV-4: when a stream is not where the first of its turns expects it, none of them leaves anything."""
    chain = [turn("a/1", 3, "t1", events=2), turn("a/1", 5, "t2", events=3), turn("a/2", 0, "t3"), turn("a/2", 1, "t4")]
    answers = await store.journal.commit(chain)
    assert [type(answer) for answer in answers] == [VersionConflict, VersionConflict, type(None), type(None)]
    assert await versions(store, "a/1") == []
    assert await versions(store, "a/2") == [1, 2]


async def test_a_version_that_is_taken_refuses_its_turns_alone(store: SqliteStore) -> None:
    """INV-1: at most one event for a version; the neighbours in the batch are recorded all the same, once."""
    assert await store.journal.commit([turn("a/1", 0, "t1", events=2)]) == [None]
    answers = await store.journal.commit([turn("a/2", 0, "u1"), turn("a/1", 1, "u2"), turn("a/3", 0, "u3")])
    assert [type(answer) for answer in answers] == [type(None), VersionConflict, type(None)]
    assert [await versions(store, f"a/{n}") for n in (1, 2, 3)] == [[1, 2], [1], [1]]


async def test_one_refusal_costs_a_large_batch_little(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The general way finds nothing of the batch recorded, and halves it until the refused turn stands alone."""
    applied = 0
    apply = sqlite_journal._apply

    def counting(connection: sqlite3.Connection, effects: list[Any]) -> None:
        nonlocal applied
        applied += 1
        apply(connection, effects)

    monkeypatch.setattr(sqlite_journal, "_apply", counting)
    batch = [turn(f"a/{n}", 3 if n == 77 else 0, f"t{n}") for n in range(256)]
    answers = await store.journal.commit(batch)
    assert [n for n, answer in enumerate(answers) if answer is not None] == [77]
    assert applied <= 2 + 2 * 8


async def test_what_comes_beside_events_is_refused_with_them(store: SqliteStore) -> None:
    """INV-4, INV-8: a receipt that is there already refuses its own turn whole, and no other of a large batch."""
    receipt = Receipt("key", b"first", 99)
    assert await store.journal.commit([turn("a/1", 0, "t0")._replace(receipt=receipt)]) == [None]
    batch = [turn(f"b/{n}", 0, f"u{n}")._replace(snapshot=b"{}" if n % 5 == 0 else None) for n in range(20)]
    again = turn("a/1", 1, "t1")._replace(receipt=receipt, snapshot=b"{}")
    answers = await store.journal.commit([*batch, again])
    assert [type(answer) for answer in answers] == [type(None)] * 20 + [DuplicateTurn]
    assert await versions(store, "a/1") == [1]
    assert [await versions(store, f"b/{n}") for n in range(20)] == [[1]] * 20
    assert (await store.journal.load("b/5")).snapshot == Snapshot(1, b"{}")
    assert (await store.journal.load("a/1")).snapshot is None


async def test_repeats_are_recognised(store: SqliteStore) -> None:
    """INV-8: a batch whose answer was lost succeeds again, without further effect."""
    batch = [turn("a/1", 0, "t1", events=2), turn("a/1", 2, "t2"), turn("a/2", 0, "t3")]
    assert await store.journal.commit(batch) == [None] * 3
    assert await store.journal.commit(batch) == [None] * 3
    assert await versions(store, "a/1") == [1, 2, 3]


async def test_an_epoch_that_another_process_raised_is_seen(store: SqliteStore, tmp_path: Path) -> None:
    """INV-2: epochs remembered by this process do not let it write under an old one."""
    assert await store.journal.commit([turn("a/1", 0, "t1")]) == [None]
    other = SqliteStore(tmp_path / "plain.db")
    await other.open()
    await other.journal.acquire([partition_of("a/1", 4)], "other", 0, 10_000, force=True)
    await other.close()
    answers = await store.journal.commit([turn("a/1", 1, "t2")])
    assert [type(answer) for answer in answers] == [StaleEpoch]
    assert await versions(store, "a/1") == [1]
    assert await store.journal.commit([turn("a/1", 1, "t3", epoch=2)]) == [None]
