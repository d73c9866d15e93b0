"""Redis and the line to it, killed at every place of a commit that uses every feature: all or nothing, then once.

The oracle is the in-memory store: given the partitions whose part arrived, it says what must be seen.
"""

from __future__ import annotations

import asyncio
import shutil
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from statestores.errors import StoreUnavailable, VersionConflict
from statestores.memory import MemoryJournal
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
from statestores.redis_journal import RedisJournal
from statestores.redis_settings import RedisSettings
from tests.servers import CuttingProxy, RedisServer, shared_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from statestores.errors import CommitRefused
    from statestores.store import Journal

PARTITIONS = 4
LEASE_MS = 60_000


def _stream_in(partition: int, number: int = 0) -> str:
    names = (f"Account/{i}" for i in range(10_000))
    return [name for name in names if partition_of(name, PARTITIONS) == partition][number]


ALICE, BOB, CAROL, DAVE = _stream_in(0), _stream_in(1), _stream_in(2), _stream_in(0, 1)
STREAMS = (ALICE, BOB, CAROL, DAVE)


def _turn(stream: str, turn_id: str, **parts: Any) -> TurnCommit:
    bare = TurnCommit(partition_of(stream, PARTITIONS), 1, stream, turn_id, 1_000, caller="test", trace_id="trace")
    return bare._replace(**parts)


def _born(stream: str, turn_id: str) -> TurnCommit:
    """A first turn that leaves something of every kind behind."""
    return _turn(
        stream,
        turn_id,
        expected_version=0,
        events=(NewEvent("opened", b"\x00\xff\r\n$5"), NewEvent("named", b"")),
        snapshot=b"\x00state",
        listing=IndexEntry(stream, "account", "open", 1, 2),
        reminders_set=(Reminder(stream, "daily", 5_000, b"\x01"), Reminder(stream, "once", 6_000, b"")),
        outbox=tuple(OutboxMessage(f"{turn_id}-{name}", stream, b"\xff" + name.encode()) for name in "abc"),
        receipt=Receipt(f"{turn_id}-key", b"\x00done", 9_000),
    )


BEFORE = [
    _born(BOB, "bob-1"),
    _turn(BOB, "bob-1-dead", outbox_dead=(("bob-1-b", "gave up"),)),
    _born(CAROL, "carol-1"),
    _born(DAVE, "dave-1"),
]

BATCH = [
    _born(ALICE, "alice-1"),
    _turn(BOB, "bob-2", expected_version=2, delete=True, receipt=Receipt("deleted", b"yes", 9_000)),
    _turn(ALICE, "alice-2", expected_version=2, events=(NewEvent("paid", b"1"),), reminders_cleared=("daily",)),
    _turn(CAROL, "carol-2", outbox_done=("carol-1-a",), outbox_dead=(("carol-1-b", "gave up"),)),
    _turn(DAVE, "dave-2", expected_version=7, events=(NewEvent("never", b""),)),
    _turn(CAROL, "carol-3", expected_version=2, snapshot=b"later", reminders_cleared=("daily", "once")),
    _turn(BOB, "bob-3", expected_version=0, events=(NewEvent("reopened", b""),)),
    _turn(DAVE, "dave-3", outbox=(OutboxMessage("dave-3-x", DAVE, b""),)),
]


async def _seen(journal: Journal) -> tuple[object, ...]:
    """Everything that can be read."""
    everywhere = range(PARTITIONS)
    streams = [
        (
            await journal.load(name),
            await journal.events(name),
            await journal.reminders(name),
            await _receipts(journal, name),
        )
        for name in STREAMS
    ]
    outboxes = [await journal.outbox(p, dead=dead) for p in everywhere for dead in (False, True)]
    return streams, outboxes, await journal.due_reminders(everywhere, 10_000, 100), await journal.index(IndexQuery(""))


async def _receipts(journal: Journal, stream: str) -> list[Receipt | None]:
    keys = {turn.receipt.key for turn in [*BEFORE, *BATCH] if turn.receipt is not None}
    return [(await journal.receipts(stream, [key]))[0] for key in sorted(keys)]


async def _own_all(journal: Journal) -> None:
    """Of epoch 1, which the turns of this file carry: the fence on Redis is put back to it."""
    await journal.acquire(range(PARTITIONS), "host", 0, LEASE_MS)
    if isinstance(journal, RedisJournal):
        for keys in journal._keys:
            await journal._link.one(("HSET", keys.meta, "epoch", 1))


async def _prepare(journal: Journal) -> None:
    await _own_all(journal)
    assert await journal.commit(BEFORE) == [None] * len(BEFORE)


async def _oracle(partitions: Sequence[int]) -> tuple[object, ...]:
    """What is seen when the parts of these partitions have arrived."""
    journal = MemoryJournal(PARTITIONS)
    await _prepare(journal)
    await journal.commit([turn for turn in BATCH if turn.partition in partitions])
    return await _seen(journal)


def _subsets() -> Iterator[tuple[int, ...]]:
    touched = sorted({turn.partition for turn in BATCH})
    return chain.from_iterable(combinations(touched, size) for size in range(len(touched) + 1))


async def _check_repeat(journal: Journal) -> None:
    """The repeat takes effect exactly once, and refuses what is to be refused."""
    answers = await journal.commit(BATCH)
    assert [type(answer) for answer in answers] == [
        VersionConflict if t.turn_id == "dave-2" else type(None) for t in BATCH
    ]
    assert await _seen(journal) == await _oracle(range(PARTITIONS))


def _store(port: int, namespace: str, **settings: Any) -> RedisStore:
    return RedisStore(
        RedisSettings(hosts=(("127.0.0.1", port),), namespace=namespace, partitions=PARTITIONS, **settings)
    )


@pytest.fixture
async def proxy() -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(shared_redis().port) as proxy:
        yield proxy


async def _passed_by_a_commit(proxy: CuttingProxy) -> dict[str, int]:
    """How many bytes the batch takes in each direction when nothing fails."""
    store = _store(proxy.port, uuid4().hex)
    await store.open()
    await _prepare(store.journal)
    before = dict(proxy.passed)
    await store.journal.commit(BATCH)
    await store.close()
    return {direction: proxy.passed[direction] - count for direction, count in before.items()}


@pytest.mark.parametrize(("direction", "step"), [("requests", 89), ("answers", 5)])
async def test_a_connection_that_dies_anywhere_leaves_whole_turns(
    proxy: CuttingProxy, direction: str, step: int
) -> None:
    """INV-4 and INV-8: cut after k bytes, each turn is there or not, and its repeat counts once."""
    allowed = [await _oracle(subset) for subset in _subsets()]
    total = (await _passed_by_a_commit(proxy))[direction]
    outcomes: set[str | int] = set()
    for count in range(1, total + step, step):
        namespace = uuid4().hex
        unlucky = _store(proxy.port, namespace, max_retries=0)
        lucky = _store(shared_redis().port, namespace)
        await unlucky.open()
        await lucky.open()
        await _prepare(unlucky.journal)
        proxy.cut_after(direction, count)
        try:
            await unlucky.journal.commit(BATCH)
            outcomes.add("answered")
        except StoreUnavailable:
            outcomes.add("unknown")
        seen = await _seen(lucky.journal)
        assert seen in allowed, f"cut after {count} bytes of {direction}"
        outcomes.add(allowed.index(seen))
        proxy.heal()
        await _check_repeat(unlucky.journal)
        await unlucky.close()
        await lucky.close()
    everything = len(allowed) - 1
    assert {"answered", "unknown", everything} <= outcomes, "the cuts cover the whole commit"
    assert direction == "answers" or 0 in outcomes, "the cuts cover the whole commit"


async def test_an_aof_that_ends_anywhere_holds_whole_turns() -> None:
    """INV-4: a server that comes back with its log cut at any place has each turn whole or not at all."""
    allowed = [await _oracle(subset) for subset in _subsets()]
    outcomes = set()
    with RedisServer(aof="always") as server:
        store = _store(server.port, "cut")
        await store.open()
        await _prepare(store.journal)
        [log] = (server.directory / "appendonlydir").glob("*.incr.aof")
        start = log.stat().st_size
        await store.journal.commit(BATCH)
        server.kill()
        await store.close()
        whole = log.parent.with_name("whole")
        shutil.copytree(log.parent, whole)
        end = log.stat().st_size
        for size in {*range(start, end, (end - start) // 12), end}:
            shutil.rmtree(log.parent)
            shutil.copytree(whole, log.parent)
            with log.open("r+b") as file:
                file.truncate(size)
            server.start()
            await store.open()
            seen = await _seen(store.journal)
            assert seen in allowed, f"the log was cut at byte {size} of {start}..{end}"
            outcomes.add(allowed.index(seen))
            await _check_repeat(store.journal)
            await store.close()
            server.kill()
    assert outcomes == {0, len(allowed) - 1}, "a server alone takes the commit in one step"


async def _patiently(journal: Journal, turn: TurnCommit) -> list[CommitRefused | None]:
    """While the server cannot be reached the store waits by itself."""
    while True:
        try:
            return await journal.commit([turn])
        except StoreUnavailable:
            continue


async def test_what_was_acknowledged_survives_kill_9() -> None:
    """INV-7: with appendfsync always, every acknowledged turn is there after the server was killed, and none twice."""
    with RedisServer(aof="always") as server:
        store = _store(server.port, "killed", retry_base_s=0.01, retry_cap_s=0.05)
        await store.open()
        journal = store.journal
        await _own_all(journal)
        acknowledged = dict.fromkeys((_stream_in(p) for p in range(PARTITIONS)), 0)
        first_acknowledged = asyncio.Event()

        async def write(stream: str, turns: int) -> None:
            for version in range(turns):
                turn = _turn(stream, f"{stream}-{version}", expected_version=version, events=(NewEvent("e", b""),))
                assert await _patiently(journal, turn) == [None]
                acknowledged[stream] = version + 1
                if version == 20:
                    first_acknowledged.set()

        writers = [asyncio.create_task(write(stream, 60)) for stream in acknowledged]
        await first_acknowledged.wait()
        server.kill()
        known = dict(acknowledged)
        server.start()
        other = _store(server.port, "killed")
        await other.open()
        for stream, version in known.items():
            assert (await other.journal.load(stream)).version >= version
        await asyncio.gather(*writers)
        for stream in acknowledged:
            assert [event.turn_id for event in await journal.events(stream)] == [f"{stream}-{v}" for v in range(60)]
        await other.close()
        await store.close()
