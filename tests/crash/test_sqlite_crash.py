"""A commit to SQLite is cut off everywhere; afterwards each turn is there whole or not at all, and can be repeated."""

from __future__ import annotations

import shutil
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from statestores.conformance.journal import NOW_MS, Owner, contents, everything
from statestores.errors import StoreUnavailable
from statestores.model import IndexEntry, NewEvent, OutboxMessage, Receipt, Reminder
from statestores.sqlite import SqliteStore
from statestores.sqlite_journal import SqliteJournal

if TYPE_CHECKING:
    from pathlib import Path

    from statestores.model import TurnCommit
    from statestores.store import Journal

STREAMS = ("a/1", "a/2", "a/3", "a/4", "a/5")


class Fate(NamedTuple):
    """When a connection dies: instead of its statement number `statement`, or (`after`) once that has been done."""

    statement: int
    after: bool


class MortalConnection(sqlite3.Connection):
    """Closed without a word when its fate comes, as by the death of its process: open transactions are lost."""

    fate: Fate | None = None

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if self.fate is None:
            return super().execute(sql, parameters)
        self.fate = self.fate._replace(statement=self.fate.statement - 1)
        if self.fate.statement >= 0:
            return super().execute(sql, parameters)
        if self.fate.after:
            super().execute(sql, parameters)
        self.close()
        raise sqlite3.OperationalError("the connection died")


def connect_mortal(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=MortalConnection
    )


async def history(owner: Owner) -> None:
    """What is there before the commit under test."""
    await owner.record(everything(owner, "a/1"), everything(owner, "a/2"), owner.turn("a/3", 0, "old"))
    sent = tuple(OutboxMessage(f"old-{n}", "a/3", b"") for n in range(3))
    await owner.record(owner.turn("a/3", 1, outbox=sent, reminders_set=(Reminder("a/3", "old", NOW_MS, b""),)))


def every_feature(owner: Owner) -> list[TurnCommit]:
    """A batch without a refusal that uses every field of a turn: one statement."""
    return [
        owner.turn("a/1", 2, "more", snapshot=b"3", listing=IndexEntry("a/1", "n", "done", NOW_MS, NOW_MS + 1)),
        owner.turn("a/1", 3, "and more", receipt=Receipt("other", b"r", NOW_MS)),
        owner.turn("a/2", 2, delete=True),
        owner.turn("a/2", 0, "reborn", outbox=(OutboxMessage("hello", "a/2", b""),)),
        owner.turn("a/3", 1, reminders_cleared=("old",), outbox_done=("old-0",), outbox_dead=(("old-1", "no"),)),
        everything(owner, "a/4"),
    ]


def with_refusals(owner: Owner) -> list[TurnCommit]:
    """The same with refused turns among them: tried, then bisected in one transaction."""
    turns = every_feature(owner)
    return [
        owner.turn("a/1", 7, "conflict"),
        *turns[:3],
        owner.turn("a/5", 0, "stale", epoch=99),
        *turns[3:],
        owner.turn("a/1", 4, "duplicate", receipt=Receipt("key", b"again", NOW_MS)),
    ]


def with_a_large_turn(owner: Owner) -> list[TurnCommit]:
    """More effects than one statement takes: several in a savepoint."""
    many = tuple(NewEvent("e", b"x" * 50) for _ in range(1200))
    return [*every_feature(owner), owner.turn("a/5", 0, events=many)]


def events_and_more(owner: Owner) -> list[TurnCommit]:
    """Many turns with events, and what else a turn has beside them: two statements in a transaction, after a look
    at the epochs."""
    plain = 4 * SqliteJournal.worth_two_statements
    return [
        *(owner.turn("a/1", 2 + n, f"plain {n}") for n in range(plain)),
        owner.turn("a/1", 2 + plain, "more", snapshot=b"3", listing=IndexEntry("a/1", "n", "done", NOW_MS, NOW_MS + 1)),
        owner.turn("a/2", 2, "kept", receipt=Receipt("other", b"r", NOW_MS)),
        owner.turn("a/3", 1, reminders_cleared=("old",), outbox_done=("old-0",), outbox_dead=(("old-1", "no"),)),
        everything(owner, "a/4"),
    ]


BATCHES = {every_feature: 1, with_refusals: 18, with_a_large_turn: 5, events_and_more: 5}
"""With how many statements each of them takes: a batch that goes another way than it says tests nothing of its own."""


async def picture(journal: Journal) -> list[dict[str, object]]:
    return [await contents(journal, stream) for stream in STREAMS]


class Scene(NamedTuple):
    """A file before the commit under test, the commit, and what an undisturbed one does."""

    template: Path
    batch: list[TurnCommit]
    before: list[dict[str, object]]
    after: list[dict[str, object]]
    answers: list[str]
    statements: int


@pytest.fixture(params=BATCHES, ids=lambda batch: batch.__name__)
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    template = tmp_path / "template.db"
    store = SqliteStore(template)
    await store.open()
    owner = await Owner.of(store)
    await history(owner)
    before = await picture(store.journal)
    await store.close()
    shutil.copy(template, tmp_path / "undisturbed.db")
    undisturbed = SqliteStore(tmp_path / "undisturbed.db")
    await undisturbed.open()
    batch = request.param(owner)
    answers = [type(answer).__name__ for answer in await undisturbed.journal.commit(batch)]
    after = await picture(undisturbed.journal)
    await undisturbed.close()
    assert after != before
    return Scene(template, batch, before, after, answers, BATCHES[request.param])


async def assert_recovers(scene: Scene, path: Path) -> bool:
    """After the crash all of the batch is there, or nothing; repeating it completes it, once. Returns which it was."""
    store = SqliteStore(path)
    await store.open()
    found = await picture(store.journal)
    assert found in (scene.before, scene.after)
    answers = [type(answer).__name__ for answer in await store.journal.commit(scene.batch)]
    assert answers == scene.answers
    assert await picture(store.journal) == scene.after
    await store.close()
    return found == scene.after


@pytest.mark.parametrize("after", [False, True], ids=["instead of", "after"])
async def test_a_connection_that_dies_at_any_statement(scene: Scene, tmp_path: Path, after: bool) -> None:
    """Death before or after any statement leaves all or nothing (INV-4), and a lost answer is no harm (INV-8)."""
    outcomes = []
    for statement in range(200):
        path = tmp_path / f"{statement}.db"
        shutil.copy(scene.template, path)
        connections: list[MortalConnection] = []

        def connect(
            path: Path, busy_timeout_s: float, made: list[MortalConnection] = connections
        ) -> sqlite3.Connection:
            connection = connect_mortal(path, busy_timeout_s)
            assert isinstance(connection, MortalConnection)
            made.append(connection)
            return connection

        store = SqliteStore(path, connect=connect)
        await store.open()
        writer = connections[0]
        writer.fate = Fate(statement, after)
        try:
            await store.journal.commit(scene.batch)
        except StoreUnavailable:
            outcomes.append(await assert_recovers(scene, path))
        else:
            break
        finally:
            await store.close()
    else:
        pytest.fail("the commit never came to its end")
    assert len(outcomes) == scene.statements
    assert outcomes[:-1] == [False] * (len(outcomes) - 1)
    assert outcomes[-1] is after  # the answer that is lost after the last statement, and that one alone


async def test_a_log_that_is_torn_anywhere(scene: Scene, tmp_path: Path) -> None:
    """Whatever part of a commit had reached the disk, after a power failure it is there whole or not at all (INV-4)."""
    path, torn = tmp_path / "full.db", tmp_path / "torn.db"
    shutil.copy(scene.template, path)
    store = SqliteStore(path)
    await store.open()
    log = tmp_path / "full.db-wal"
    start = log.stat().st_size
    await store.journal.commit(scene.batch)
    database, frames = path.read_bytes(), log.read_bytes()
    await store.close()
    step = max(1, (len(frames) - start) // 23)
    outcomes = []
    for end in [*range(start, len(frames), step), len(frames)]:
        torn.write_bytes(database)
        torn.with_name("torn.db-wal").write_bytes(frames[:end])
        outcomes.append(await assert_recovers(scene, torn))
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True


async def test_a_statement_that_is_cut_off(scene: Scene, tmp_path: Path) -> None:
    """Interrupted at any of its machine steps, a commit has done nothing (INV-4)."""
    interrupted = 0
    for instructions in (int(50 * 1.6**n) for n in range(40)):
        path = tmp_path / f"{instructions}.db"
        shutil.copy(scene.template, path)
        connections: list[sqlite3.Connection] = []

        def connect(
            path: Path, busy_timeout_s: float, made: list[sqlite3.Connection] = connections
        ) -> sqlite3.Connection:
            made.append(connect_mortal(path, busy_timeout_s))
            return made[-1]

        store = SqliteStore(path, connect=connect)
        await store.open()
        connections[0].set_progress_handler(lambda: True, instructions)
        try:
            await store.journal.commit(scene.batch)
        except StoreUnavailable:
            interrupted += 1
            connections[0].set_progress_handler(None, 0)
            assert await picture(store.journal) == scene.before
            assert await assert_recovers(scene, path) is False
        else:
            break
        finally:
            await store.close()
    assert interrupted >= 5
