"""Random histories on a journal, beside a model a child can read.

Another store is one more subclass of `JournalMachine` with its own `open_store`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statestores.errors import LeaseHeld
from statestores.memory import MemoryStore
from statestores.model import (
    IndexEntry,
    IndexQuery,
    NewEvent,
    OutboxMessage,
    Receipt,
    Reminder,
    TurnCommit,
    partition_of,
)
from statestores.redis import RedisStore
from statestores.sqlite import SqliteStore
from tests.servers import shared_redis

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from statestores.store import StateStore

T = TypeVar("T")

PARTITIONS = 2
STREAMS = ("a/0", "a/1", "a/2", "b/0")
HOSTS = ("host-a", "host-b")
FOREVER_MS = 10**12


class Wish(NamedTuple):
    """What a host would like to commit; the version is relative to the head the model knows."""

    stream: str
    version_off: int | None
    events: int
    snapshot: bool
    key: str
    sends: bool
    reminder: str
    done: bool
    gives_up: bool
    delete: bool


def wishes() -> st.SearchStrategy[Wish]:
    return st.builds(
        Wish,
        stream=st.sampled_from(STREAMS),
        version_off=st.sampled_from([0, 0, 0, 0, 0, 1, -1, None]),
        events=st.integers(0, 2),
        snapshot=st.booleans(),
        key=st.sampled_from(["", "", "k1", "k2"]),
        sends=st.booleans(),
        reminder=st.sampled_from(["", "set", "clear"]),
        done=st.booleans(),
        gives_up=st.booleans(),
        delete=st.sampled_from([False] * 9 + [True]),
    )


class Model:
    """What a journal is: a few dictionaries."""

    def __init__(self) -> None:
        self.epochs = [0] * PARTITIONS
        self.streams: dict[str, list[str]] = {stream: [] for stream in STREAMS}
        self.receipts: dict[tuple[str, str], bytes] = {}
        self.reminders: set[str] = set()
        self.listed: set[str] = set()
        self.outbox: list[OutboxMessage] = []
        self.recorded: set[str] = set()

    def commit(self, turn: TurnCommit) -> str:
        if turn.epoch != self.epochs[turn.partition] or turn.epoch == 0:
            return "StaleEpoch"
        if turn.turn_id in self.recorded:
            return "NoneType"
        if turn.receipt is not None and (turn.stream, turn.receipt.key) in self.receipts:
            return "DuplicateTurn"
        if turn.expected_version not in (None, len(self.streams[turn.stream])):
            return "VersionConflict"
        self.recorded.add(turn.turn_id)
        self.apply(turn)
        return "NoneType"

    def apply(self, turn: TurnCommit) -> None:
        if turn.delete:
            self.streams[turn.stream] = []
            self.reminders.discard(turn.stream)
            self.listed.discard(turn.stream)
        self.streams[turn.stream] += [event.name for event in turn.events]
        self.reminders -= {turn.stream} if turn.reminders_cleared else set()
        self.reminders |= {turn.stream} if turn.reminders_set else set()
        self.listed |= {turn.stream} if turn.listing else set()
        self.outbox += turn.outbox
        self.outbox = [message for message in self.outbox if message.id not in turn.outbox_done]
        dead = dict(turn.outbox_dead)
        self.outbox = [message._replace(dead=dead.get(message.id, message.dead)) for message in self.outbox]
        if turn.receipt is not None:
            self.receipts[turn.stream, turn.receipt.key] = turn.receipt.reply


class JournalMachine(RuleBasedStateMachine):
    """Hosts take partitions from each other, commit, lose answers and repeat, delete; then everything is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.epochs: dict[str, list[int]] = {host: [0] * PARTITIONS for host in HOSTS}
        self.holders: list[str | None] = [None] * PARTITIONS
        self.latest: dict[str, list[TurnCommit]] = {}
        self.turns = 0
        self.store = self.open_store()
        self.run(self.store.open())

    def open_store(self) -> StateStore:
        """A store object on this run's data, which is empty at first and survives a reopening."""
        raise NotImplementedError

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.directory)

    def turn(self, host: str, wish: Wish, heads: dict[str, int]) -> TurnCommit:
        """A possible turn out of a wish. `heads` are the versions as the host believes them to be."""
        self.turns += 1
        id_, partition = f"t{self.turns}", partition_of(wish.stream, PARTITIONS)
        expected = None if wish.version_off is None else max(0, heads[wish.stream] + wish.version_off)
        events = (
            () if wish.delete or expected is None else tuple(NewEvent(f"{id_}.{n}", b"") for n in range(wish.events))
        )
        here = [m.id for m in self.model.outbox if partition_of(m.stream, PARTITIONS) == partition]
        heads[wish.stream] = 0 if wish.delete else heads[wish.stream] + len(events)
        return TurnCommit(
            partition,
            self.epochs[host][partition],
            wish.stream,
            id_,
            self.turns,
            expected,
            events=events,
            snapshot=id_.encode() if wish.snapshot and events else None,
            listing=IndexEntry(wish.stream, "n", "s", 1, self.turns) if wish.snapshot else None,
            reminders_set=(Reminder(wish.stream, "r", self.turns, b""),) if wish.reminder == "set" else (),
            reminders_cleared=("r",) if wish.reminder == "clear" else (),
            outbox=(OutboxMessage(f"m-{id_}", wish.stream, b""),) if wish.sends else (),
            outbox_done=tuple(here[:1]) if wish.done else (),
            outbox_dead=tuple((id_, "gave up") for id_ in here[-1:]) if wish.gives_up else (),
            receipt=Receipt(wish.key, id_.encode(), FOREVER_MS) if wish.key else None,
            delete=wish.delete,
        )

    def commit(self, turns: list[TurnCommit]) -> None:
        expected = [self.model.commit(turn) for turn in turns]
        answers = self.run(self.store.journal.commit(turns))
        assert [type(answer).__name__ for answer in answers] == expected

    @rule(host=st.sampled_from(HOSTS), partition=st.integers(0, PARTITIONS - 1), force=st.booleans())
    def take_over(self, host: str, partition: int, force: bool) -> None:
        try:
            taken = self.run(self.store.journal.acquire([partition], host, 0, FOREVER_MS, force=force))
        except LeaseHeld:
            taken = []
        assert bool(taken) is (force or self.holders[partition] in {None, host})
        if not taken:
            return
        self.holders[partition] = host
        [ownership] = taken
        assert ownership.epoch > self.model.epochs[partition]
        self.model.epochs[partition] = self.epochs[host][partition] = ownership.epoch

    @rule(host=st.sampled_from(HOSTS), batch=st.lists(wishes(), min_size=1, max_size=6))
    def decide(self, host: str, batch: list[Wish]) -> None:
        heads = {stream: len(events) for stream, events in self.model.streams.items()}
        turns = [self.turn(host, wish, heads) for wish in batch]
        self.latest[host] = turns
        self.commit(turns)

    @precondition(lambda self: self.latest)
    @rule(data=st.data())
    def repeat_because_the_answer_was_lost(self, data: st.DataObject) -> None:
        self.commit(self.latest[data.draw(st.sampled_from(sorted(self.latest)))])

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.open_store()
        self.run(self.store.open())

    @invariant()
    def histories_agree(self) -> None:
        journal = self.store.journal
        for stream, names in self.model.streams.items():
            assert [event.name for event in self.run(journal.events(stream))] == names
            state = self.run(journal.load(stream))
            folded = state.snapshot.version if state.snapshot else 0
            assert state.version == len(names)
            assert [event.name for event in state.events] == names[folded:]
            for key in ("k1", "k2"):
                receipt = self.run(journal.receipts(stream, [key]))[0]
                assert (receipt and receipt.reply) == self.model.receipts.get((stream, key))

    @invariant()
    def scans_agree(self) -> None:
        journal = self.store.journal
        for partition in range(PARTITIONS):
            here = [m for m in self.model.outbox if partition_of(m.stream, PARTITIONS) == partition]
            assert self.run(journal.outbox(partition)) == [message for message in here if not message.dead]
            assert self.run(journal.outbox(partition, dead=True)) == [message for message in here if message.dead]
        due = self.run(journal.due_reminders(range(PARTITIONS), FOREVER_MS, 100))
        assert {reminder.stream for reminder in due} == self.model.reminders
        assert due == sorted(due, key=lambda reminder: reminder.due_ms)
        assert [entry.stream for entry in self.run(journal.index(IndexQuery("")))] == sorted(self.model.listed)


class MemoryMachine(JournalMachine):
    memory: MemoryStore | None = None

    def open_store(self) -> StateStore:
        self.memory = self.memory or MemoryStore(partitions=PARTITIONS)
        return self.memory


class SqliteMachine(JournalMachine):
    def open_store(self) -> StateStore:
        return SqliteStore(self.directory / "model.db", partitions=PARTITIONS, synchronous="OFF")


class SqliteApartMachine(JournalMachine):
    """Events go apart from what turns do beside them, however few they are."""

    def open_store(self) -> StateStore:
        store = SqliteStore(self.directory / "model.db", partitions=PARTITIONS, synchronous="OFF")
        store.journal.worth_two_statements = 1
        return store


class RedisMachine(JournalMachine):
    def open_store(self) -> StateStore:
        return RedisStore.from_url(f"{shared_redis().url}?namespace={self.directory.name}&partitions={PARTITIONS}")


_modest = settings(
    deadline=None, max_examples=25, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow], database=None
)

TestMemoryJournal = MemoryMachine.TestCase
TestMemoryJournal.settings = _modest
TestSqliteJournal = SqliteMachine.TestCase
TestSqliteJournal.settings = _modest
TestSqliteApartJournal = SqliteApartMachine.TestCase
TestSqliteApartJournal.settings = _modest
TestRedisJournal = RedisMachine.TestCase
TestRedisJournal.settings = _modest
