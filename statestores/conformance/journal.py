"""What every journal must do: derive a test class from `JournalConformance` and give it two fixtures.

    class TestMyJournal(JournalConformance):
        @pytest.fixture
        async def store(self) -> AsyncIterator[StateStore]: ...   # opened, and empty for each test

        @pytest.fixture
        def reopen(self) -> Callable[[], Awaitable[StateStore]]: ...

`reopen` opens another store object on the same data, as a second process would, while the first one stays open; the
fixture closes it. For a store that is not durable it returns the object of `store`.

Time is a number that the cases pass in. It lies in the future, so that a server's own clock never expires things first.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from statestores.errors import (
    DuplicateTurn,
    ImpossibleTurn,
    InvalidRequest,
    LeaseHeld,
    StaleEpoch,
    VersionConflict,
)
from statestores.groupcommit import GroupCommit
from statestores.model import (
    IndexEntry,
    IndexQuery,
    NewEvent,
    OutboxMessage,
    Receipt,
    Reminder,
    Snapshot,
    TurnCommit,
    partition_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from statestores.errors import CommitRefused
    from statestores.groupcommit import Outcome
    from statestores.model import Ownership
    from statestores.store import Journal, StateStore

    Reopen = Callable[[], Awaitable[StateStore]]

NOW_MS = 4_000_000_000_000
LEASE_MS = 10_000

_turn_numbers = count(1)

WEIRD_IDS = (
    "plain",
    "",
    "with/slash",
    "//",
    "%",
    "_",
    "100%_sure",
    "[a-z]*?",
    "quote'\"`",
    "back\\slash",
    "new\nline",
    "nul\x00inside",
    "{hash}tag",
    "white space ",
    "ÄÖÜ-ß",
    "日本語",
    "emoji-🙂",
    "private-\uffff",
    "last-\U0010ffff",
    "e\u0301",
    "\u00e9",
    "x" * 500,
)


class Owner:
    """A host as the journal sees it: it owns every partition, and makes turns that carry the right epochs."""

    def __init__(self, journal: Journal, owned: Sequence[Ownership]) -> None:
        self.journal = journal
        self.epochs = {ownership.partition: ownership.epoch for ownership in owned}

    @classmethod
    async def of(cls, store: StateStore, name: str = "host-a", *, force: bool = False) -> Owner:
        journal = store.journal
        return cls(journal, await journal.acquire(range(journal.partitions), name, NOW_MS, LEASE_MS, force=force))

    def partition(self, stream: str) -> int:
        return partition_of(stream, self.journal.partitions)

    def turn(self, stream: str, expected_version: int | None = None, *events: str, **fields: Any) -> TurnCommit:
        """A turn with a fresh id; `events` are names, their data is derived from the name."""
        partition = self.partition(stream)
        given = {
            "partition": partition,
            "epoch": self.epochs[partition],
            "turn_id": f"turn-{next(_turn_numbers)}",
            "time_ms": NOW_MS,
            "events": tuple(NewEvent(name, name.encode()) for name in events),
            **fields,
        }
        return TurnCommit(stream=stream, expected_version=expected_version, **given)

    async def commit(self, *turns: TurnCommit) -> list[CommitRefused | None]:
        return await self.journal.commit(turns)

    async def record(self, *turns: TurnCommit) -> None:
        """Commit turns that must all succeed."""
        assert await self.commit(*turns) == [None] * len(turns)


def everything(owner: Owner, stream: str, expected_version: int = 0, **fields: Any) -> TurnCommit:
    """A turn that uses every field which adds something."""
    effects = {
        "snapshot": b"state",
        "listing": IndexEntry(stream, "name", "running", NOW_MS, NOW_MS),
        "reminders_set": (Reminder(stream, "wake", NOW_MS + 5, b"up"),),
        "outbox": (OutboxMessage(f"{stream}>1", stream, b"one"), OutboxMessage(f"{stream}>2", stream, b"two")),
        "receipt": Receipt("key", b"reply", NOW_MS + 100),
        "caller": "client",
        "trace_id": "trace",
        **fields,
    }
    return owner.turn(stream, expected_version, "opened", "changed", **effects)


async def contents(journal: Journal, stream: str) -> dict[str, object]:
    """All that can be read about a stream."""
    partition = partition_of(stream, journal.partitions)
    messages = [*await journal.outbox(partition), *await journal.outbox(partition, dead=True)]
    return {
        "state": await journal.load(stream),
        "events": await journal.events(stream),
        "receipt": (await journal.receipts(stream, ["key"]))[0],
        "outbox": [message for message in messages if message.stream == stream],
        "reminders": await journal.reminders(stream),
        "index": [entry for entry in await journal.index(IndexQuery("", limit=10_000)) if entry.stream == stream],
    }


async def ids_in_outbox(journal: Journal, partition: int, **filters: Any) -> list[str]:
    return [message.id for message in await journal.outbox(partition, **filters)]


async def names_of(journal: Journal, stream: str) -> list[str]:
    return [event.name for event in await journal.events(stream)]


async def grouped(journal: Journal, turns: Sequence[TurnCommit]) -> list[Outcome]:
    """The outcomes of turns that a host commits together."""
    group = GroupCommit(journal)
    outcomes: list[Outcome] = []
    group.start()
    for turn in turns:
        group.submit(turn, outcomes.append)
    await group.close()
    return outcomes


def same_partition(owner: Owner, stream: str, count_: int) -> list[str]:
    """Other streams that live in the partition of `stream`."""
    candidates = (f"peer/{number}" for number in count())
    found: list[str] = []
    while len(found) < count_:
        if owner.partition(candidate := next(candidates)) == owner.partition(stream):
            found.append(candidate)
    return found


class JournalConformance:
    """Cases on the fixtures `store` and `reopen`. See the module's text for how to use it."""

    # ---- ownership -------------------------------------------------------------------------------------------------

    async def test_a_new_store_has_no_owners(self, store: StateStore) -> None:
        """Nobody owns anything in an empty store, and it has at least one partition."""
        assert await store.journal.owners() == []
        assert store.journal.partitions >= 1

    async def test_acquire_gives_an_epoch_and_a_lease(self, store: StateStore) -> None:
        """A taken partition is owned by the taker until now + lease, and listed by `owners`."""
        (owned,) = await store.journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        assert owned.epoch >= 1
        assert owned == (0, owned.epoch, "host-a", NOW_MS + LEASE_MS)
        assert await store.journal.owners() == [owned]

    async def test_acquire_answers_in_the_order_asked(self, store: StateStore) -> None:
        """One ownership per partition, in order of the request; `owners` is ordered by partition."""
        asked = [*reversed(range(store.journal.partitions))]
        assert [o.partition for o in await store.journal.acquire(asked, "host-a", NOW_MS, LEASE_MS)] == asked
        assert [o.partition for o in await store.journal.owners()] == [*range(store.journal.partitions)]

    async def test_epochs_only_grow(self, store: StateStore) -> None:
        """Every take-over, also by the owner itself, by force, or after a release, has a newer epoch (INV-2)."""
        journal = store.journal
        (first,) = await journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        (again,) = await journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        (forced,) = await journal.acquire([0], "host-b", NOW_MS, LEASE_MS, force=True)
        await journal.release([(0, forced.epoch)])
        (released,) = await journal.acquire([0], "host-c", NOW_MS, LEASE_MS)
        assert first.epoch < again.epoch < forced.epoch < released.epoch

    async def test_a_living_lease_is_respected(self, store: StateStore) -> None:
        """Another owner's unexpired lease is `LeaseHeld`, names the holder, and nothing at all is taken."""
        last = store.journal.partitions - 1
        (held,) = await store.journal.acquire([last], "host-a", NOW_MS, LEASE_MS)
        with pytest.raises(LeaseHeld) as refusal:
            await store.journal.acquire(range(last + 1), "host-b", NOW_MS + LEASE_MS - 1, LEASE_MS)
        assert refusal.value.holder == held
        assert await store.journal.owners() == [held]

    async def test_an_expired_lease_is_free(self, store: StateStore) -> None:
        """At the end of its lease a partition can be taken without force."""
        await store.journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        (taken,) = await store.journal.acquire([0], "host-b", NOW_MS + LEASE_MS, LEASE_MS)
        assert (taken.owner, taken.lease_until_ms) == ("host-b", NOW_MS + 2 * LEASE_MS)

    async def test_renew_extends_what_is_still_owned(self, store: StateStore) -> None:
        """A pair with the newest epoch is extended; one with an older epoch, or another's, is missing."""
        journal = store.journal
        (old,) = await journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        (new,) = await journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        later = NOW_MS + 1000
        assert await journal.renew([(0, old.epoch)], "host-a", later, LEASE_MS) == []
        assert await journal.renew([(0, new.epoch)], "host-b", later, LEASE_MS) == []
        assert await journal.owners() == [new]
        renewed = new._replace(lease_until_ms=later + LEASE_MS)
        assert await journal.renew([(0, old.epoch), (0, new.epoch)], "host-a", later, LEASE_MS) == [renewed]
        assert await journal.owners() == [renewed]

    async def test_release_ends_the_lease_and_keeps_the_epoch(self, store: StateStore) -> None:
        """A released partition can be taken at once, with a newer epoch; a stale release changes nothing."""
        journal = store.journal
        (first,) = await journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        (second,) = await journal.acquire([0], "host-a", NOW_MS, LEASE_MS)
        await journal.release([(0, first.epoch)])
        assert await journal.owners() == [second]
        await journal.release([(0, second.epoch)])
        ((_, epoch, _, lease_until_ms),) = await journal.owners()
        assert (epoch, lease_until_ms <= NOW_MS) == (second.epoch, True)
        await journal.acquire([0], "host-b", NOW_MS, LEASE_MS)

    @pytest.mark.parametrize("beyond", [-1, 0, 1000])
    async def test_partitions_that_do_not_exist(self, store: StateStore, beyond: int) -> None:
        """Taking a partition outside 0..n-1 is `InvalidRequest` and takes nothing."""
        partition = beyond if beyond < 0 else store.journal.partitions + beyond
        with pytest.raises(InvalidRequest):
            await store.journal.acquire([0, partition], "host-a", NOW_MS, LEASE_MS)
        assert await store.journal.owners() == []

    # ---- fencing ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("difference", [-1, 1])
    async def test_only_the_newest_epoch_may_write(self, store: StateStore, difference: int) -> None:
        """A commit with an older or an invented epoch is `StaleEpoch`, nothing of it is recorded (INV-2, INV-4)."""
        owner = await Owner.of(store)
        owner = await Owner.of(store)
        partition = owner.partition("a/1")
        carried = owner.epochs[partition] + difference
        (refusal,) = await owner.commit(everything(owner, "a/1", epoch=carried))
        assert isinstance(refusal, StaleEpoch)
        assert (refusal.partition, refusal.epoch, refusal.newest) == (partition, carried, owner.epochs[partition])
        await self.assert_empty(store, "a/1")

    @pytest.mark.parametrize("epoch", [0, 1])
    async def test_without_an_owner_nobody_writes(self, store: StateStore, epoch: int) -> None:
        """A partition that never had an owner refuses every epoch."""
        partition = partition_of("a/1", store.journal.partitions)
        turn = TurnCommit(partition, epoch, "a/1", "turn-x", NOW_MS, 0, events=(NewEvent("e", b""),))
        (refusal,) = await store.journal.commit([turn])
        assert isinstance(refusal, StaleEpoch)
        assert refusal.newest == 0

    async def test_a_taken_over_host_is_fenced(self, store: StateStore, reopen: Reopen) -> None:
        """After a take-over through another store object, the old owner's commits are refused, not the new one's."""
        old = await Owner.of(store)
        await old.record(old.turn("a/1", 0, "by-old"))
        new = await Owner.of(await reopen(), "host-b", force=True)
        (refusal,) = await old.commit(old.turn("a/1", 1, "too-late"))
        assert isinstance(refusal, StaleEpoch)
        await new.record(new.turn("a/1", 1, "by-new"))
        assert await names_of(store.journal, "a/1") == ["by-old", "by-new"]

    async def test_a_repeat_is_fenced_too(self, store: StateStore) -> None:
        """The epoch is checked before anything else: also for a turn that was recorded."""
        owner = await Owner.of(store)
        turn = owner.turn("a/1", 0, "e")
        await owner.record(turn)
        await Owner.of(store, "host-b", force=True)
        (refusal,) = await owner.commit(turn)
        assert isinstance(refusal, StaleEpoch)

    # ---- versions --------------------------------------------------------------------------------------------------

    async def test_events_are_recorded_as_given(self, store: StateStore) -> None:
        """Events of a turn get consecutive versions and carry name, data, time, turn id, caller and trace id."""
        owner = await Owner.of(store)
        turn = owner.turn("a/1", 0, "one", "two", time_ms=NOW_MS + 7, turn_id="T", caller="b/2", trace_id="00-1")
        await owner.record(turn)
        await owner.record(owner.turn("a/1", 2, "three"))
        first, second, third = await store.journal.events("a/1")
        assert first == (1, "one", b"one", NOW_MS + 7, "T", "b/2", "00-1")
        assert second == (2, "two", b"two", NOW_MS + 7, "T", "b/2", "00-1")
        assert (third.version, third.name) == (3, "three")

    @pytest.mark.parametrize("expected", [0, 1, 3, 1000])
    async def test_a_wrong_version_is_a_conflict(self, store: StateStore, expected: int) -> None:
        """An expected version below or above the head is `VersionConflict`, nothing of the turn is recorded (INV-1)."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", 0, "one", "two"))
        before = await contents(store.journal, "a/1")
        (refusal,) = await owner.commit(everything(owner, "a/1", expected))
        assert isinstance(refusal, VersionConflict)
        assert (refusal.stream, refusal.expected, refusal.actual) == ("a/1", expected, 2)
        assert await contents(store.journal, "a/1") == before

    async def test_a_version_is_checked_without_events_too(self, store: StateStore) -> None:
        """A turn without events that expects a wrong version is refused, with all it wants done."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", 0, "one"))
        (refusal,) = await owner.commit(owner.turn("a/1", 0, outbox=(OutboxMessage("m", "a/1", b""),)))
        assert isinstance(refusal, VersionConflict)
        assert await ids_in_outbox(store.journal, owner.partition("a/1")) == []
        await owner.record(owner.turn("a/1", 1, outbox=(OutboxMessage("m", "a/1", b""),)))
        assert await ids_in_outbox(store.journal, owner.partition("a/1")) == ["m"]

    async def test_without_an_expected_version_none_is_checked(self, store: StateStore) -> None:
        """Bookkeeping carries no version and is recorded whatever the head is."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", 0, "one", outbox=(OutboxMessage("m", "a/1", b""),)))
        await owner.record(owner.turn("a/1", outbox_done=("m",)))
        assert await ids_in_outbox(store.journal, owner.partition("a/1")) == []

    async def test_turns_of_a_stream_chain_in_one_batch(self, store: StateStore) -> None:
        """Each turn sees those before it in the batch, several per stream and streams interleaved."""
        owner = await Owner.of(store)
        turns = [owner.turn(stream, version, f"e{version}") for version in range(5) for stream in ("a/1", "a/2")]
        await owner.record(*turns)
        for stream in ("a/1", "a/2"):
            assert await names_of(store.journal, stream) == [f"e{version}" for version in range(5)]

    async def test_a_refusal_does_not_harm_its_neighbours(self, store: StateStore) -> None:
        """Refused turns at the start, in the middle and at the end of a batch: all others are recorded, in order."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", 0, "one", receipt=Receipt("seen", b"first", NOW_MS)))
        answers = await owner.commit(
            owner.turn("a/1", 5, "refused"),
            owner.turn("a/2", 0, "kept"),
            owner.turn("a/1", 1, "two"),
            owner.turn("a/1", 2, "refused", receipt=Receipt("seen", b"second", NOW_MS)),
            owner.turn("a/3", 0, "refused", epoch=owner.epochs[owner.partition("a/3")] + 1),
            owner.turn("a/1", 2, "three"),
            owner.turn("a/2", 0, "refused"),
        )
        kinds = [type(answer) for answer in answers]
        none = type(None)
        assert kinds == [VersionConflict, none, none, DuplicateTurn, StaleEpoch, none, VersionConflict]
        assert await names_of(store.journal, "a/1") == ["one", "two", "three"]
        assert await names_of(store.journal, "a/2") == ["kept"]
        assert await names_of(store.journal, "a/3") == []

    async def test_a_chain_breaks_at_its_first_refusal(self, store: StateStore) -> None:
        """When a turn is refused, those of its stream that built on it are refused as well."""
        owner = await Owner.of(store)
        answers = await owner.commit(
            owner.turn("a/1", 0, "one"), owner.turn("a/1", 2, "gap"), owner.turn("a/1", 3, "on the gap")
        )
        assert [type(answer) for answer in answers] == [type(None), VersionConflict, VersionConflict]
        assert await names_of(store.journal, "a/1") == ["one"]

    async def test_a_large_batch(self, store: StateStore) -> None:
        """A batch of 600 turns over 50 streams, each with an outbox message, is recorded whole."""
        owner = await Owner.of(store)
        turns = [
            owner.turn(f"a/{n % 50}", n // 50, f"e{n}", outbox=(OutboxMessage(f"m{n}", f"a/{n % 50}", b""),))
            for n in range(600)
        ]
        await owner.record(*turns)
        for stream in range(50):
            assert await names_of(store.journal, f"a/{stream}") == [f"e{n}" for n in range(stream, 600, 50)]
        found = [await ids_in_outbox(store.journal, partition) for partition in range(store.journal.partitions)]
        assert sorted(id_ for ids in found for id_ in ids) == sorted(f"m{n}" for n in range(600))

    async def test_one_refusal_in_a_large_batch(self, store: StateStore) -> None:
        """One conflict among 300 turns is found, and only that one."""
        owner = await Owner.of(store)
        turns = [owner.turn(f"a/{n}", 1 if n == 217 else 0, "e") for n in range(300)]
        answers = await owner.commit(*turns)
        assert [place for place, answer in enumerate(answers) if answer is not None] == [217]

    async def test_a_turn_with_very_many_effects(self, store: StateStore) -> None:
        """One turn may record more events than any statement or message of the store holds; it stays atomic (INV-4)."""
        owner = await Owner.of(store)
        names = [f"e{n}" for n in range(2000)]
        (refusal,) = await owner.commit(owner.turn("a/1", 1, *names))
        assert isinstance(refusal, VersionConflict)
        assert await names_of(store.journal, "a/1") == []
        await owner.record(owner.turn("a/1", 0, *names))
        assert [event.name for event in (await store.journal.load("a/1")).events] == names

    async def test_an_empty_batch(self, store: StateStore) -> None:
        """Committing nothing succeeds."""
        assert await store.journal.commit([]) == []

    @pytest.mark.parametrize(
        "data", [b"", b"\x00", bytes(range(256)), b"x" * (1 << 20)], ids=["empty", "nul", "all", "MiB"]
    )
    async def test_payloads_are_exact(self, store: StateStore, data: bytes) -> None:
        """Event data, snapshots, replies, messages and reminder bodies come back byte for byte."""
        owner = await Owner.of(store)
        effects = everything(
            owner,
            "a/1",
            events=(NewEvent("e", data),),
            snapshot=data,
            reminders_set=(Reminder("a/1", "r", NOW_MS, data),),
            outbox=(OutboxMessage("m", "a/1", data),),
            receipt=Receipt("key", data, NOW_MS),
        )
        await owner.record(effects)
        found = await contents(store.journal, "a/1")
        assert await store.journal.load("a/1") == (1, Snapshot(1, data), [])
        (event,) = await store.journal.events("a/1")
        assert event.data == data
        assert found["reminders"] == [Reminder("a/1", "r", NOW_MS, data)]
        assert found["outbox"] == [OutboxMessage("m", "a/1", data)]
        assert found["receipt"] == Receipt("key", data, NOW_MS)

    @pytest.mark.parametrize("id_", WEIRD_IDS)
    async def test_weird_names(self, store: StateStore, id_: str) -> None:
        """Any text may stand in ids and names: nothing is quoted, cut, normalised or taken for a pattern."""
        owner = await Owner.of(store)
        stream = f"a/{id_}"
        await owner.record(
            owner.turn(
                stream,
                0,
                id_,
                turn_id=f"t{id_}",
                caller=id_,
                trace_id=id_,
                listing=IndexEntry(stream, id_, id_, 1, 2),
                reminders_set=(Reminder(stream, id_, NOW_MS, b"r"),),
                outbox=(OutboxMessage(f"m{id_}", stream, b"m"),),
                receipt=Receipt(id_, b"reply", NOW_MS),
            )
        )
        journal = store.journal
        assert await journal.events(stream) == [(1, id_, id_.encode(), NOW_MS, f"t{id_}", id_, id_)]
        assert (await journal.receipts(stream, [id_]))[0] == Receipt(id_, b"reply", NOW_MS)
        assert await journal.reminders(stream) == [Reminder(stream, id_, NOW_MS, b"r")]
        assert await journal.outbox(owner.partition(stream)) == [OutboxMessage(f"m{id_}", stream, b"m")]
        found = await journal.index(IndexQuery("a", id_prefix=id_, name=id_, statuses=(id_,) if id_ else ()))
        assert found == [IndexEntry(stream, id_, id_, 1, 2)]

    # ---- atomic turns ----------------------------------------------------------------------------------------------

    async def test_a_turn_is_visible_whole(self, store: StateStore) -> None:
        """Events, snapshot, index entry, reminders, outbox and receipt of one turn are all there (INV-4)."""
        owner = await Owner.of(store)
        await owner.record(everything(owner, "a/1"))
        found = await contents(store.journal, "a/1")
        assert [event.name for event in await store.journal.events("a/1")] == ["opened", "changed"]
        assert found["state"] == (2, Snapshot(2, b"state"), [])
        assert found["receipt"] == Receipt("key", b"reply", NOW_MS + 100)
        assert found["outbox"] == [OutboxMessage("a/1>1", "a/1", b"one"), OutboxMessage("a/1>2", "a/1", b"two")]
        assert found["reminders"] == [Reminder("a/1", "wake", NOW_MS + 5, b"up")]
        assert found["index"] == [IndexEntry("a/1", "name", "running", NOW_MS, NOW_MS)]

    async def test_a_duplicate_leaves_no_trace(self, store: StateStore) -> None:
        """A turn that is refused for its receipt has none of its other effects (INV-4, INV-8)."""
        owner = await Owner.of(store)
        await owner.record(everything(owner, "a/1"))
        before = await contents(store.journal, "a/1")
        (refusal,) = await owner.commit(
            owner.turn(
                "a/1",
                2,
                "again",
                snapshot=b"other",
                listing=IndexEntry("a/1", "other", "other", 1, 1),
                reminders_cleared=("wake",),
                outbox=(OutboxMessage("new", "a/1", b""),),
                outbox_done=("a/1>1",),
                outbox_dead=(("a/1>2", "no"),),
                receipt=Receipt("key", b"other", NOW_MS + 999),
            )
        )
        assert isinstance(refusal, DuplicateTurn)
        assert await contents(store.journal, "a/1") == before

    @pytest.mark.parametrize(
        "fields",
        [
            {"events": (NewEvent("e", b""),)},
            {"snapshot": b"s"},
            {"expected_version": -1},
            {"expected_version": 0, "delete": True, "events": (NewEvent("e", b""),)},
            {"expected_version": 0, "delete": True, "snapshot": b"s"},
            {"listing": IndexEntry("a/2", "", "", 0, 0)},
            {"reminders_set": (Reminder("a/2", "r", 0, b""),)},
            {"outbox_dead": (("m", ""),)},
        ],
        ids=lambda fields: "+".join(fields),
    )
    async def test_impossible_turns(self, store: StateStore, fields: dict[str, Any]) -> None:
        """A turn that contradicts itself is `InvalidRequest`, and nothing of the whole call is recorded."""
        owner = await Owner.of(store)
        impossible = owner.turn("a/1")._replace(**fields)
        with pytest.raises(InvalidRequest):
            await owner.commit(owner.turn("b/1", 0, "neighbour"), impossible)
        await self.assert_empty(store, "a/1")
        await self.assert_empty(store, "b/1")

    async def test_a_value_that_cannot_be_held_is_one_turns_fault(self, store: StateStore) -> None:
        """A store that cannot hold a value says `InvalidRequest`, and nothing of the call is recorded; in a group only
        that turn fails, for good (INV-4)."""
        owner = await Owner.of(store)
        good, bad, next_ = (owner.turn(f"a/{number}", 0, "e") for number in range(3))
        bad = bad._replace(listing=IndexEntry("a/1", "n", "\ud800", 1, 1))
        turns = [good, bad, next_]
        try:
            assert await store.journal.commit(turns) == [None] * 3
        except InvalidRequest:
            assert [await store.journal.events(turn.stream) for turn in turns] == [[], [], []]
            outcomes = await grouped(store.journal, turns)
            assert [type(outcome) for outcome in outcomes] == [type(None), ImpossibleTurn, type(None)]
            assert [len(await store.journal.events(turn.stream)) for turn in turns] == [1, 0, 1]

    async def test_a_turn_in_a_wrong_partition(self, store: StateStore) -> None:
        """A stream can only be written in the partition it lives in: anywhere else it would never be found again."""
        owner = await Owner.of(store)
        turn = owner.turn("a/1", 0, "e")
        wrong = (turn.partition + 1) % store.journal.partitions
        with pytest.raises(InvalidRequest):
            await owner.commit(turn._replace(partition=wrong, epoch=owner.epochs[wrong]))
        await self.assert_empty(store, "a/1")

    # ---- receipts --------------------------------------------------------------------------------------------------

    async def test_a_key_is_consumed_once(self, store: StateStore) -> None:
        """A second turn with the key is `DuplicateTurn` with the first answer, whatever version it expects (INV-8)."""
        owner = await Owner.of(store)
        first = Receipt("key", b"first", NOW_MS + 100)
        await owner.record(owner.turn("a/1", 0, "one", receipt=first))
        for expected in (0, 1, None):
            (refusal,) = await owner.commit(
                owner.turn("a/1", expected, receipt=Receipt("key", b"second", NOW_MS + 999))
            )
            assert isinstance(refusal, DuplicateTurn)
            assert (refusal.stream, refusal.receipt) == ("a/1", first)
        assert (await store.journal.receipts("a/1", ["key"]))[0] == first

    async def test_a_key_belongs_to_its_stream(self, store: StateStore) -> None:
        """The same key on another stream, and another key on the same stream, are not duplicates."""
        owner = await Owner.of(store)
        await owner.record(
            owner.turn("a/1", 0, "e", receipt=Receipt("key", b"1", NOW_MS)),
            owner.turn("a/2", 0, "e", receipt=Receipt("key", b"2", NOW_MS)),
            owner.turn("a/1", 1, "e", receipt=Receipt("other", b"3", NOW_MS)),
        )
        assert (await store.journal.receipts("a/2", ["other"]))[0] is None

    async def test_duplicates_within_one_batch(self, store: StateStore) -> None:
        """Of two turns with one key in a batch the first is recorded, the second gets its answer."""
        owner = await Owner.of(store)
        first, second = Receipt("key", b"1", NOW_MS), Receipt("key", b"2", NOW_MS)
        answers = await owner.commit(
            owner.turn("a/1", 0, "e", receipt=first), owner.turn("a/1", 1, "e", receipt=second)
        )
        assert answers[0] is None
        assert isinstance(answers[1], DuplicateTurn)
        assert answers[1].receipt == first

    async def test_purging_receipts(self, store: StateStore) -> None:
        """Purging takes the expired receipts of one partition, at most `limit`, and keeps the others."""
        owner = await Owner.of(store)
        for number in range(5):
            await owner.record(owner.turn("a/1", receipt=Receipt(f"k{number}", b"", NOW_MS + number)))
        journal, here = store.journal, owner.partition("a/1")
        assert await journal.purge_receipts((here + 1) % journal.partitions, NOW_MS + 2, 10) == 0
        assert await journal.purge_receipts(here, NOW_MS - 1, 10) == 0
        assert await journal.purge_receipts(here, NOW_MS + 2, 2) == 2
        assert await journal.purge_receipts(here, NOW_MS + 2, 10) == 1
        left = [number for number in range(5) if (await journal.receipts("a/1", [f"k{number}"]))[0] is not None]
        assert left == [3, 4]
        await owner.record(owner.turn("a/1", receipt=Receipt("k0", b"anew", NOW_MS)))

    async def test_a_receipt_outlives_its_message(self, store: StateStore) -> None:
        """While a message stands in the outbox, alive or dead, its receipt is kept, however old (INV-8)."""
        owner = await Owner.of(store)
        journal, there, here = store.journal, owner.partition("sender/1"), owner.partition("a/1")
        messages = tuple(OutboxMessage(id_, "sender/1", b"") for id_ in ("m1", "m2"))
        await owner.record(owner.turn("sender/1", 0, "e", outbox=messages))
        await owner.record(*(owner.turn("a/1", receipt=Receipt(m.id, b"", NOW_MS, there)) for m in messages))
        await owner.record(owner.turn("a/1", receipt=Receipt("client", b"", NOW_MS)))
        await owner.record(owner.turn("sender/1", outbox_dead=(("m2", "gave up"),)))
        assert await journal.purge_receipts(here, NOW_MS + 1, 10) == 1
        assert (await journal.receipts("a/1", ["client"]))[0] is None
        await owner.record(owner.turn("sender/1", outbox_done=("m1",)))
        assert await journal.purge_receipts(here, NOW_MS + 1, 10) == 1
        assert (await journal.receipts("a/1", ["m2"]))[0] is not None
        await owner.record(owner.turn("sender/1", outbox_done=("m2",)))
        assert await journal.purge_receipts(here, NOW_MS + 1, 10) == 1

    async def test_a_clients_key_that_looks_like_a_message(self, store: StateStore) -> None:
        """A client's key is purged by its age alone, even when a message has the same id."""
        owner = await Owner.of(store)
        message = OutboxMessage("same", "a/1", b"")
        await owner.record(owner.turn("a/1", 0, "e", outbox=(message,), receipt=Receipt("same", b"", NOW_MS)))
        assert await store.journal.purge_receipts(owner.partition("a/1"), NOW_MS, 10) == 1

    # ---- lost answers ----------------------------------------------------------------------------------------------

    async def test_a_repeated_call_changes_nothing(self, store: StateStore) -> None:
        """A call repeated because its answer was lost has the same answers, without a second effect (INV-8)."""
        owner = await Owner.of(store)
        batch = [
            everything(owner, "a/1"),
            owner.turn("a/2", 0, "one"),
            owner.turn("a/2", 7, "refused"),
            owner.turn("a/2", 1, "two"),
            owner.turn("a/3", receipt=Receipt("key", b"", NOW_MS)),
            owner.turn("a/3", receipt=Receipt("key", b"refused", NOW_MS)),
        ]
        first = await owner.commit(*batch)
        before = [await contents(store.journal, f"a/{n}") for n in (1, 2, 3)]
        second = await owner.commit(*batch)
        assert [type(answer) for answer in second] == [type(answer) for answer in first]
        assert [await contents(store.journal, f"a/{n}") for n in (1, 2, 3)] == before

    async def test_a_repeated_turn_with_others(self, store: StateStore) -> None:
        """A recorded turn with events or a receipt is recognised in another company, too, and later turns stay."""
        owner = await Owner.of(store)
        with_events = owner.turn("a/1", 0, "one")
        with_receipt = owner.turn("a/1", 1, receipt=Receipt("key", b"", NOW_MS))
        await owner.record(with_events, with_receipt)
        await owner.record(owner.turn("a/1", 1, "two"))
        await owner.record(owner.turn("a/2", 0, "new"), with_receipt, with_events, owner.turn("a/1", 2, "three"))
        assert await names_of(store.journal, "a/1") == ["one", "two", "three"]

    async def test_a_repeat_of_turns_that_leave_no_event(self, store: StateStore) -> None:
        """A turn that only sends, then one that records, repeated together: both are recognised, it is sent once."""
        owner = await Owner.of(store)
        batch = [
            owner.turn("a/1", 0, outbox=(OutboxMessage("m", "a/1", b""),)),
            owner.turn("a/1", 0, "one"),
            owner.turn("a/1", 1, reminders_set=(Reminder("a/1", "r", NOW_MS, b""),)),
            owner.turn("a/1", 1, "two"),
        ]
        await owner.record(*batch)
        await owner.record(*batch)
        assert await names_of(store.journal, "a/1") == ["one", "two"]
        assert await ids_in_outbox(store.journal, owner.partition("a/1")) == ["m"]

    async def test_a_repeat_of_turns_that_expect_no_version(self, store: StateStore) -> None:
        """A repeat does not bring back what a turn without a version set or sent, and one behind it ended."""
        owner = await Owner.of(store)
        reminder, message = Reminder("a/1", "r", NOW_MS, b""), OutboxMessage("m", "a/1", b"")
        entry = IndexEntry("a/1", "name", "first", NOW_MS, NOW_MS)
        batch = [
            owner.turn("a/1", reminders_set=(reminder, reminder._replace(name="kept")), outbox=(message,)),
            owner.turn("a/1", listing=entry),
            owner.turn("a/1", 0, "one", reminders_cleared=("r",), outbox_done=("m",)),
            owner.turn("a/1", reminders_cleared=("kept",)),
            owner.turn("a/1", 1, "two", reminders_set=(reminder._replace(name="kept"),)),
            owner.turn("a/1", 2, "three", listing=entry._replace(status="second")),
        ]
        await owner.record(*batch)
        before = await contents(store.journal, "a/1")
        await owner.record(*batch)
        assert await contents(store.journal, "a/1") == before
        assert [reminder.name for reminder in await store.journal.reminders("a/1")] == ["kept"]
        assert await ids_in_outbox(store.journal, owner.partition("a/1")) == []

    async def test_a_repeat_across_a_deletion(self, store: StateStore) -> None:
        """Record, delete, record anew in one call, repeated: recognised, and the new stream stands."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", 0, "old"))
        batch = [
            owner.turn("a/1", 1, "last"),
            owner.turn("a/1", 2, delete=True),
            owner.turn("a/1", 0, "reborn"),
            owner.turn("a/1", 9, "refused"),
        ]
        for _ in range(2):
            answers = await owner.commit(*batch)
            assert [type(answer) for answer in answers] == [type(None)] * 3 + [VersionConflict]
            assert await names_of(store.journal, "a/1") == ["reborn"]

    async def test_a_repeat_through_another_store_object(self, store: StateStore, reopen: Reopen) -> None:
        """Repeats are recognised from what is durable: also after the process that made the first call is gone."""
        owner = await Owner.of(store)
        batch = [owner.turn("a/1", 0, outbox=(OutboxMessage("m", "a/1", b""),)), owner.turn("a/1", 0, "one")]
        await owner.record(*batch)
        assert await (await reopen()).journal.commit(batch) == [None, None]
        assert await names_of(store.journal, "a/1") == ["one"]

    # ---- streams ---------------------------------------------------------------------------------------------------

    async def test_an_absent_stream(self, store: StateStore) -> None:
        """A stream that was never written is at version 0, and empty in every respect."""
        await self.assert_empty(store, "a/1")
        assert await store.journal.load("a/1", 5) == (0, None, [])

    async def test_load_starts_from_the_snapshot(self, store: StateStore) -> None:
        """The state is the newest snapshot and the events after it; a later snapshot replaces it."""
        owner = await Owner.of(store)
        await owner.record(
            owner.turn("a/1", 0, "one", "two", snapshot=b"at 2"),
            owner.turn("a/1", 2, "three"),
            owner.turn("a/1", 3, "four"),
        )
        state = await store.journal.load("a/1")
        assert (state.version, state.snapshot) == (4, Snapshot(2, b"at 2"))
        assert [(event.version, event.name) for event in state.events] == [(3, "three"), (4, "four")]
        await owner.record(owner.turn("a/1", 4, snapshot=b"at 4"))
        assert await store.journal.load("a/1") == (4, Snapshot(4, b"at 4"), [])
        assert len(await store.journal.events("a/1")) == 4

    async def test_many_loads_at_once(self, store: StateStore) -> None:
        """Each gets its own stream, however many are wanted at the same time: awkward ids and bytes, snapshots, streams
        without events after theirs, absent ones, the same one twice."""
        owner = await Owner.of(store)
        ids = [f"a/{name}" for name in WEIRD_IDS] + [f"b/{n}" for n in range(300)]
        for position, stream in enumerate(ids):
            facts = tuple(NewEvent(f"{n} of {stream}", bytes(range(256)) * (n % 2)) for n in range(position % 4))
            if facts:
                snapshot = b"at 0\x00\xff" if position % 8 == 3 else None
                await owner.record(owner.turn(stream, 0, events=facts, snapshot=snapshot))
                if position % 16 == 3:
                    await owner.record(owner.turn(stream, 3, "after"))
        wanted = [*ids, "absent/1", *ids[:5]]
        found = await asyncio.gather(*map(store.journal.load, wanted))
        for stream, state in zip(wanted, found, strict=True):
            assert state == await store.journal.load(stream)
            assert state.version == len(await store.journal.events(stream))

    @pytest.mark.parametrize("at_version", [*range(8), 2**53 - 1])
    async def test_load_as_of_a_version(self, store: StateStore, at_version: int) -> None:
        """At any version, snapshot and events together hold exactly the history up to it, also before a snapshot."""
        owner = await Owner.of(store)
        for version in range(6):
            snapshot = f"at {version + 1}".encode() if version in {1, 3} else None
            await owner.record(owner.turn("a/1", version, f"e{version + 1}", snapshot=snapshot))
        state = await store.journal.load("a/1", at_version)
        assert state.version == min(at_version, 6)
        base = 0
        if state.snapshot is not None:
            base = state.snapshot.version
            assert state.snapshot.data == f"at {base}".encode()
        assert base <= state.version
        assert [event.name for event in state.events] == [f"e{n}" for n in range(base + 1, state.version + 1)]

    async def test_events_are_read_in_pages(self, store: StateStore) -> None:
        """`events` gives those after a version, in order, at most `limit`."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", 0, *(f"e{n}" for n in range(1, 13))))
        page = await store.journal.events("a/1", 3, 4)
        assert [event.version for event in page] == [4, 5, 6, 7]
        assert [event.version for event in await store.journal.events("a/1", 11)] == [12]
        for beyond in (12, 2**53 - 1):
            assert await store.journal.events("a/1", beyond) == []

    # ---- deletion --------------------------------------------------------------------------------------------------

    async def test_deletion_removes_all_that_a_stream_owns(self, store: StateStore) -> None:
        """A deletion leaves no state, history, reminder or listing, and its neighbours in name and partition as they
        were."""
        owner = await Owner.of(store)
        neighbours = ["a/10", "a/1/1", "a", "aa/1", "a/", *same_partition(owner, "a/1", 2)]
        await owner.record(*(everything(owner, stream) for stream in ["a/1", *neighbours] if "/" in stream))
        before = [await contents(store.journal, stream) for stream in neighbours]
        of_others = {what: (await contents(store.journal, "a/1"))[what] for what in ("receipt", "outbox")}
        await owner.record(owner.turn("a/1", 2, delete=True))
        nothing = await contents(store.journal, "never/was")
        assert await contents(store.journal, "a/1") == {**nothing, **of_others}
        assert [await contents(store.journal, stream) for stream in neighbours] == before

    async def test_what_a_deleted_stream_sent_still_leaves(self, store: StateStore) -> None:
        """A deletion keeps the messages of its stream, in their order, until each is done with or given up (INV-9)."""
        owner = await Owner.of(store)
        journal, here = store.journal, owner.partition("a/1")
        before = tuple(OutboxMessage(f"m{n}", "a/1", b"body") for n in range(4))
        await owner.record(owner.turn("a/1", 0, "e", outbox=before), owner.turn("a/1", outbox_dead=(("m1", "no"),)))
        await owner.record(owner.turn("a/1", 1, delete=True, outbox=(OutboxMessage("farewell", "a/1", b""),)))
        assert await ids_in_outbox(journal, here) == ["m0", "m2", "m3", "farewell"]
        assert await ids_in_outbox(journal, here, dead=True) == ["m1"]
        await owner.record(owner.turn("a/1", outbox_done=("m0", "m1", "farewell"), outbox_dead=(("m2", "no"),)))
        assert await ids_in_outbox(journal, here) == ["m3"]
        assert await ids_in_outbox(journal, here, dead=True) == ["m2"]

    async def test_what_a_deleted_stream_consumed_stays_consumed(self, store: StateStore) -> None:
        """A deletion keeps receipts: a message or a keyed call that comes again finds the first answer, and has no
        effect on the stream's successor. They are purged as if nothing had happened (INV-8)."""
        owner = await Owner.of(store)
        journal, there, here = store.journal, owner.partition("sender/1"), owner.partition("a/1")
        await owner.record(owner.turn("sender/1", 0, "e", outbox=(OutboxMessage("m", "sender/1", b""),)))
        kept = [Receipt("m", b"", NOW_MS, there), Receipt("key", b"first", NOW_MS + 100)]
        await owner.record(*(owner.turn("a/1", n, f"e{n}", receipt=receipt) for n, receipt in enumerate(kept)))
        await owner.record(owner.turn("a/1", 2, delete=True))
        for head in (0, 1):
            answers = await owner.commit(*(owner.turn("a/1", head, "again", receipt=r) for r in kept))
            assert [isinstance(a, DuplicateTurn) and a.receipt for a in answers] == kept
            if head == 0:
                await owner.record(owner.turn("a/1", 0, "successor"))
        assert await journal.purge_receipts(here, NOW_MS, 10) == 0
        await owner.record(owner.turn("sender/1", outbox_done=("m",)))
        assert await journal.purge_receipts(here, NOW_MS, 10) == 1
        assert await journal.purge_receipts(here, NOW_MS + 100, 10) == 1
        assert await names_of(journal, "a/1") == ["successor"]

    async def test_deletion_comes_before_the_rest_of_its_turn(self, store: StateStore) -> None:
        """Reminders of the deleting turn stay, those from before do not; its receipt and messages join the others."""
        owner = await Owner.of(store)
        await owner.record(everything(owner, "a/1"))
        await owner.record(
            owner.turn(
                "a/1",
                2,
                delete=True,
                outbox=(OutboxMessage("farewell", "a/1", b""),),
                reminders_set=(Reminder("a/1", "later", NOW_MS, b""),),
                receipt=Receipt("deletion", b"gone", NOW_MS),
            )
        )
        assert await store.journal.load("a/1") == (0, None, [])
        assert await ids_in_outbox(store.journal, owner.partition("a/1")) == ["a/1>1", "a/1>2", "farewell"]
        assert [reminder.name for reminder in await store.journal.reminders("a/1")] == ["later"]
        assert (await store.journal.receipts("a/1", ["deletion"]))[0] == Receipt("deletion", b"gone", NOW_MS)
        assert await store.journal.index(IndexQuery("a")) == []

    async def test_a_deleted_stream_can_begin_anew(self, store: StateStore) -> None:
        """The head is 0 after a deletion, in the same batch and later."""
        owner = await Owner.of(store)
        await owner.record(everything(owner, "a/1"), owner.turn("a/1", 2, delete=True), owner.turn("a/1", 0, "reborn"))
        assert await names_of(store.journal, "a/1") == ["reborn"]
        assert (await store.journal.load("a/1")).snapshot is None
        await owner.record(owner.turn("a/1", 1, delete=True))
        (refusal,) = await owner.commit(owner.turn("a/1", 1, "e"))
        assert isinstance(refusal, VersionConflict)
        assert refusal.actual == 0
        again = [OutboxMessage(f"a/1>{n}", "a/1", b"") for n in (3, 4)]
        await owner.record(everything(owner, "a/1", outbox=tuple(again), receipt=Receipt("new", b"", NOW_MS)))

    async def test_deleting_the_absent(self, store: StateStore) -> None:
        """Deleting what is not there succeeds, with an expected version of 0 or none."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", delete=True), owner.turn("a/1", 0, delete=True))
        await self.assert_empty(store, "a/1")

    async def test_a_deletion_can_be_refused(self, store: StateStore) -> None:
        """A deletion with a wrong version, or a key that is consumed, is refused and removes nothing."""
        owner = await Owner.of(store)
        await owner.record(everything(owner, "a/1"))
        before = await contents(store.journal, "a/1")
        answers = await owner.commit(
            owner.turn("a/1", 1, delete=True),
            owner.turn("a/1", 2, delete=True, receipt=Receipt("key", b"other", NOW_MS)),
        )
        assert [type(answer) for answer in answers] == [VersionConflict, DuplicateTurn]
        assert await contents(store.journal, "a/1") == before

    # ---- reminders -------------------------------------------------------------------------------------------------

    async def test_due_reminders_come_soonest_first(self, store: StateStore) -> None:
        """Reminders due by a time, over all streams, in order of due time, at most `limit`."""
        owner = await Owner.of(store)
        times = [50, 10, 40, 20, 30]
        for number, due in enumerate(times):
            stream = f"a/{number}"
            await owner.record(owner.turn(stream, reminders_set=(Reminder(stream, "r", NOW_MS + due, b""),)))
        everywhere = range(store.journal.partitions)
        due_by_40 = await store.journal.due_reminders(everywhere, NOW_MS + 40, 10)
        assert [reminder.due_ms - NOW_MS for reminder in due_by_40] == [10, 20, 30, 40]
        assert [r.stream for r in await store.journal.due_reminders(everywhere, NOW_MS + 99, 2)] == ["a/1", "a/3"]
        assert await store.journal.due_reminders(everywhere, NOW_MS + 9, 10) == []

    async def test_due_reminders_of_some_partitions(self, store: StateStore) -> None:
        """Only reminders of the partitions asked for are found."""
        owner = await Owner.of(store)
        streams = [f"a/{n}" for n in range(20)]
        for stream in streams:
            await owner.record(owner.turn(stream, reminders_set=(Reminder(stream, "r", NOW_MS, b""),)))
        found: list[str] = []
        for partition in range(store.journal.partitions):
            here = await store.journal.due_reminders([partition], NOW_MS, 100)
            assert {owner.partition(reminder.stream) for reminder in here} <= {partition}
            found += [reminder.stream for reminder in here]
        assert sorted(found) == sorted(streams)
        assert await store.journal.due_reminders([], NOW_MS, 100) == []

    async def test_setting_and_clearing_reminders(self, store: StateStore) -> None:
        """Setting a name again replaces it, clearing removes it, clearing comes first; unknown names are fine."""
        owner = await Owner.of(store)
        everywhere = range(store.journal.partitions)

        def reminder(name: str, due_ms: int) -> Reminder:
            return Reminder("a/1", name, due_ms, name.encode())

        await owner.record(owner.turn("a/1", reminders_set=(reminder("b", 5), reminder("a", 6), reminder("c", 7))))
        await owner.record(
            owner.turn(
                "a/1", reminders_set=(reminder("b", 9), reminder("c", 8)), reminders_cleared=("c", "a", "unknown")
            )
        )
        assert await store.journal.reminders("a/1") == [reminder("b", 9), reminder("c", 8)]
        assert await store.journal.due_reminders(everywhere, 100, 10) == [reminder("c", 8), reminder("b", 9)]
        await owner.record(owner.turn("a/1", reminders_cleared=("b", "c")))
        assert await store.journal.reminders("a/1") == []
        assert await store.journal.due_reminders(everywhere, 100, 10) == []

    # ---- outbox ----------------------------------------------------------------------------------------------------

    async def test_the_outbox_keeps_the_order_of_commits(self, store: StateStore) -> None:
        """Messages of a partition are scanned in the order of their turns, and in a turn as given."""
        owner = await Owner.of(store)
        first, second = "a/1", same_partition(owner, "a/1", 1)[0]
        here = owner.partition(first)
        turns = [
            owner.turn(first, outbox=(OutboxMessage("z", first, b""), OutboxMessage("b", first, b""))),
            owner.turn(second, outbox=(OutboxMessage("a", second, b""),)),
        ]
        await owner.record(*turns)
        await owner.record(owner.turn(first, outbox=(OutboxMessage("m", first, b""),)))
        assert await ids_in_outbox(store.journal, here) == ["z", "b", "a", "m"]
        for partition in range(store.journal.partitions):
            if partition != here:
                assert await ids_in_outbox(store.journal, partition) == []

    async def test_the_outbox_is_read_in_pages(self, store: StateStore) -> None:
        """A scan continues after an id, takes at most `limit`, and restarts when that message is gone."""
        owner = await Owner.of(store)
        here = owner.partition("a/1")
        ids = [f"m{number}" for number in range(12)]
        await owner.record(owner.turn("a/1", outbox=tuple(OutboxMessage(id_, "a/1", b"") for id_ in ids)))
        assert await ids_in_outbox(store.journal, here, limit=5) == ids[:5]
        assert await ids_in_outbox(store.journal, here, after="m4", limit=5) == ids[5:10]
        assert await ids_in_outbox(store.journal, here, after="m11") == []
        await owner.record(owner.turn("a/1", outbox_done=("m4",)))
        assert await ids_in_outbox(store.journal, here, after="m4", limit=3) == ids[:3]

    async def test_messages_that_are_done_or_dead(self, store: StateStore) -> None:
        """Done messages are gone; dead ones leave the scan for work, keep their reason, and can be done with later."""
        owner = await Owner.of(store)
        here = owner.partition("a/1")
        ids = ["m0", "m1", "m2", "m3", "m4"]
        await owner.record(owner.turn("a/1", outbox=tuple(OutboxMessage(id_, "a/1", b"x") for id_ in ids)))
        dead = (("m3", "no such actor"), ("m1", "timeout"), ("unknown", "?"))
        await owner.record(owner.turn("a/1", outbox_done=("m0", "unknown"), outbox_dead=dead))
        assert await ids_in_outbox(store.journal, here) == ["m2", "m4"]
        assert await store.journal.outbox(here, dead=True) == [
            OutboxMessage("m1", "a/1", b"x", "timeout"),
            OutboxMessage("m3", "a/1", b"x", "no such actor"),
        ]
        assert await ids_in_outbox(store.journal, here, dead=True, limit=1) == ["m1"]
        assert await ids_in_outbox(store.journal, here, dead=True, after="m1") == ["m3"]
        await owner.record(owner.turn("a/1", outbox_done=("m1",)))
        assert await ids_in_outbox(store.journal, here, dead=True) == ["m3"]
        await owner.record(owner.turn("a/1", outbox=(OutboxMessage("m5", "a/1", b""),)))
        assert await ids_in_outbox(store.journal, here) == ["m2", "m4", "m5"]

    async def test_only_its_own_partition_can_finish_a_message(self, store: StateStore) -> None:
        """A commit under one partition's epoch cannot touch messages of another: that is what the fence protects."""
        owner = await Owner.of(store)
        here = owner.partition("a/1")
        other = next(f"b/{n}" for n in count() if owner.partition(f"b/{n}") != here)
        await owner.record(owner.turn("a/1", outbox=(OutboxMessage("m", "a/1", b""), OutboxMessage("n", "a/1", b""))))
        await owner.record(owner.turn(other, outbox_done=("m",), outbox_dead=(("n", "no"),)))
        assert await ids_in_outbox(store.journal, here) == ["m", "n"]

    async def test_sent_and_done_in_one_batch(self, store: StateStore) -> None:
        """Turns apply in order: a message may be sent by one turn and finished by a later one of the same batch."""
        owner = await Owner.of(store)
        await owner.record(
            owner.turn("a/1", 0, "e", outbox=(OutboxMessage("m", "a/1", b""), OutboxMessage("n", "a/1", b""))),
            owner.turn("a/1", outbox_done=("m",)),
        )
        assert await ids_in_outbox(store.journal, owner.partition("a/1")) == ["n"]

    # ---- index -----------------------------------------------------------------------------------------------------

    async def test_the_index_is_ordered_and_paged(self, store: StateStore) -> None:
        """Entries come by stream in code point order, over all partitions, and pages join without gap or repetition."""
        owner = await Owner.of(store)
        streams = sorted(f"a/{id_}" for id_ in WEIRD_IDS)
        await owner.record(*(owner.turn(s, listing=IndexEntry(s, "n", "s", 1, 1)) for s in reversed(streams)))
        assert [entry.stream for entry in await store.journal.index(IndexQuery("a"))] == streams
        found: list[str] = []
        while page := await store.journal.index(IndexQuery("a", after=found[-1] if found else "", limit=3)):
            assert len(page) <= 3
            found += [entry.stream for entry in page]
        assert found == streams

    async def test_the_index_filters_by_type_and_prefix(self, store: StateStore) -> None:
        """The type matches exactly, the prefix literally; an empty type lists all."""
        owner = await Owner.of(store)
        ids = ["", "a", "ab", "aB", "a%", "a_", "a*", "b", "a/b", "a\U0010ffff", "a\U0010ffffz", "á"]
        streams = sorted(f"{type_}/{id_}" for type_ in ("T", "Ta", "T!", "t") for id_ in ids)
        await owner.record(*(owner.turn(s, listing=IndexEntry(s, "", "", 1, 1)) for s in streams))

        async def listed(type_: str, prefix: str = "") -> list[str]:
            return [e.stream for e in await store.journal.index(IndexQuery(type_, prefix, limit=1000))]

        assert await listed("") == streams
        for type_ in ("T", "Ta", "T!", "t", "Tx", "T/a"):
            for prefix in ["", *ids, "a\U0010ffffzz", "%", "/"]:
                expected = [s for s in streams if s.partition("/")[0] == type_ and s.startswith(f"{type_}/{prefix}")]
                assert await listed(type_, prefix) == expected, (type_, prefix)
        assert await listed("", "ab") == sorted(f"{type_}/ab" for type_ in ("T", "Ta", "T!", "t"))

    async def test_the_index_filters_by_name_status_and_time(self, store: StateStore) -> None:
        """Name and statuses match exactly; creation times from (inclusive) and to (exclusive); filters combine."""
        owner = await Owner.of(store)
        entries = [
            IndexEntry(
                f"w/{n}", name=f"n{n % 2}", status=("running", "done", "failed")[n % 3], created_ms=n, updated_ms=99
            )
            for n in range(10)
        ]
        await owner.record(*(owner.turn(entry.stream, listing=entry) for entry in entries))

        async def listed(**filters: Any) -> list[int]:
            return [entry.created_ms for entry in await store.journal.index(IndexQuery("w", **filters))]

        assert await listed(name="n1") == [1, 3, 5, 7, 9]
        assert await listed(name="n") == []
        assert await listed(statuses=("done",)) == [1, 4, 7]
        assert await listed(statuses=("done", "failed")) == [1, 2, 4, 5, 7, 8]
        assert await listed(created_from_ms=4) == [4, 5, 6, 7, 8, 9]
        assert await listed(created_to_ms=4) == [0, 1, 2, 3]
        assert await listed(created_from_ms=0, created_to_ms=0) == []
        assert await listed(name="n1", statuses=("done",), created_from_ms=2, created_to_ms=9) == [7]
        assert await listed(name="n1", limit=2, after="w/3") == [5, 7]

    async def test_an_index_entry_is_replaced(self, store: StateStore) -> None:
        """A later entry takes the place of the earlier one, is found by its new values alone, and was created first."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("w/1", listing=IndexEntry("w/1", "n", "running", 1, 1)))
        await owner.record(owner.turn("w/1", listing=IndexEntry("w/1", "m", "done", 2, 2)))
        assert await store.journal.index(IndexQuery("w", statuses=("running",))) == []
        assert await store.journal.index(IndexQuery("w", created_from_ms=2)) == []
        assert await store.journal.index(IndexQuery("w", name="m")) == [IndexEntry("w/1", "m", "done", 1, 2)]

    async def test_an_index_entry_without_a_name(self, store: StateStore) -> None:
        """An empty name keeps the recorded name and status; where there is no entry it is taken as it is."""
        owner = await Owner.of(store)
        await owner.record(
            owner.turn("w/1", listing=IndexEntry("w/1", "n", "running", 1, 1)),
            owner.turn("w/1", listing=IndexEntry("w/1", "", "ignored", 2, 2)),
            owner.turn("w/2", listing=IndexEntry("w/2", "", "active", 3, 3)),
        )
        assert await store.journal.index(IndexQuery("w")) == [
            IndexEntry("w/1", "n", "running", 1, 2),
            IndexEntry("w/2", "", "active", 3, 3),
        ]
        await owner.record(owner.turn("w/1", delete=True, listing=IndexEntry("w/1", "", "new", 9, 9)))
        assert await store.journal.index(IndexQuery("w", name="n")) == []

    # ---- several at once -------------------------------------------------------------------------------------------

    async def test_racing_store_objects(self, store: StateStore, reopen: Reopen) -> None:
        """Two store objects race for each version of a stream: for every version exactly one wins (INV-1)."""
        owner = await Owner.of(store)
        other = Owner(
            (await reopen()).journal, [o for o in await store.journal.owners() if o.epoch == owner.epochs[o.partition]]
        )
        for version in range(10):
            answers = await asyncio.gather(
                owner.commit(owner.turn("a/1", version, "by-a")), other.commit(other.turn("a/1", version, "by-b"))
            )
            assert sorted(type(answer).__name__ for (answer,) in answers) == ["NoneType", "VersionConflict"]
        assert [event.version for event in await store.journal.events("a/1")] == [*range(1, 11)]

    async def test_racing_take_overs(self, store: StateStore, reopen: Reopen) -> None:
        """Take-overs that race get different epochs, and the newest alone may write (INV-2, INV-3)."""
        hosts = [store, await reopen()]
        owners = await asyncio.gather(
            *(Owner.of(host, f"host-{n % 2}", force=True) for n, host in enumerate(hosts * 3))
        )
        partition = partition_of("a/1", store.journal.partitions)
        assert len({owner.epochs[partition] for owner in owners}) == 6
        newest = max(owners, key=lambda owner: owner.epochs[partition])
        for owner in owners:
            (answer,) = await owner.commit(owner.turn("a/1", 0, "e"))
            assert (answer is None) is (owner is newest)

    async def test_concurrent_commits_and_reads(self, store: StateStore) -> None:
        """Commits of different streams in flight together all succeed, and what was answered can be read (INV-7)."""
        owner = await Owner.of(store)

        async def deposit(stream: str) -> None:
            for version in range(10):
                await owner.record(owner.turn(stream, version, f"e{version}"))
                assert (await store.journal.load(stream)).version == version + 1

        await asyncio.gather(*(deposit(f"a/{n}") for n in range(10)))

    async def test_another_store_object_sees_everything(self, store: StateStore, reopen: Reopen) -> None:
        """What one store object has acknowledged is there for another on the same data, epochs included."""
        owner = await Owner.of(store)
        await owner.record(everything(owner, "a/1"))
        other = (await reopen()).journal
        assert other.partitions == store.journal.partitions
        assert await other.owners() == await store.journal.owners()
        assert await contents(other, "a/1") == await contents(store.journal, "a/1")

    async def test_close_can_be_repeated(self, store: StateStore, reopen: Reopen) -> None:
        """Closing a store object twice is fine, and leaves another one on the same data in order."""
        owner = await Owner.of(store)
        await owner.record(owner.turn("a/1", 0, "e"))
        again = await reopen()
        await again.close()
        await again.close()
        assert await names_of(store.journal, "a/1") == ["e"]

    async def assert_empty(self, store: StateStore, stream: str) -> None:
        assert await contents(store.journal, stream) == {
            "state": (0, None, []),
            "events": [],
            "receipt": None,
            "outbox": [],
            "reminders": [],
            "index": [],
        }
