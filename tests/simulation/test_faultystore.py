"""The faulty journal: every fault it can show happens, none that it may not, and the truth behind it stays whole."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from statestores.errors import LeaseHeld, StaleEpoch, StoreUnavailable
from statestores.memory import MemoryJournal
from statestores.model import IndexQuery, NewEvent, TurnCommit, partition_of
from tests.simulation.faultystore import Faults, FaultyJournal
from tests.simulation.simloop import SimulatedLoop, run

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from statestores.errors import CommitRefused

STREAM = "Counter/a"
PARTITIONS = 4
HOME = partition_of(STREAM, PARTITIONS)


def turn(number: int, epoch: int = 1) -> TurnCommit:
    """The turn that records event `number` of the stream."""
    return TurnCommit(
        partition=HOME,
        epoch=epoch,
        stream=STREAM,
        turn_id=f"turn-{epoch}-{number}",
        time_ms=number,
        expected_version=number - 1,
        events=(NewEvent("added", b"%d" % number),),
    )


async def owned(epochs: int = 1) -> MemoryJournal:
    inner = MemoryJournal(PARTITIONS)
    for epoch in range(epochs):
        await inner.acquire([HOME], f"host-{epoch + 1}", 0, 1000, force=True)
    return inner


async def numbers(inner: MemoryJournal) -> list[int]:
    return [int(event.data) for event in await inner.events(STREAM)]


async def until_answered(journal: FaultyJournal, turns: list[TurnCommit]) -> list[CommitRefused | None]:
    while True:
        with suppress(StoreUnavailable):
            return await journal.commit(turns)


async def hangs(call: Awaitable[object]) -> bool:
    done, pending = await asyncio.wait([asyncio.ensure_future(call)], timeout=1e6)
    for task in pending:
        task.cancel()
    return not done


def test_without_faults_it_is_the_journal_behind_it() -> None:
    """Without faults every method gives what the inner journal gives, errors included."""

    async def program(loop: SimulatedLoop) -> None:
        inner = MemoryJournal(PARTITIONS)
        journal = FaultyJournal(inner, loop.random_for("faults"))
        assert journal.partitions == PARTITIONS
        assert [each.epoch for each in await journal.acquire([HOME], "a", 0, 1000)] == [1]
        with pytest.raises(LeaseHeld):
            await journal.acquire([HOME], "b", 0, 1000)
        assert await journal.commit([turn(1), turn(2)]) == [None, None]
        assert [type(each) for each in await journal.commit([turn(3, epoch=9)])] == [StaleEpoch]
        assert await journal.events(STREAM) == await inner.events(STREAM)
        assert await journal.load(STREAM) == await inner.load(STREAM)
        assert await journal.renew([(HOME, 1)], "a", 5, 1000) == await inner.owners() == await journal.owners()
        assert (await journal.receipts(STREAM, ["none"]))[0] is None
        assert await journal.purge_receipts(HOME, 0, 10) == 0
        assert await journal.outbox(HOME) == []
        assert await journal.due_reminders([HOME], 0, 10) == []
        assert await journal.reminders(STREAM) == []
        assert await journal.index(IndexQuery("Counter")) == []
        await journal.release([(HOME, 1)])
        assert [each.epoch for each in await journal.acquire([HOME], "b", 6, 1000)] == [2]
        assert loop.time() == 0

    run(0, program)


@pytest.mark.parametrize(
    ("faults", "applied"),
    [
        (Faults(fail=1.0), []),
        (Faults(lose_answer=1.0), [1, 2]),
        (Faults(tear_batch=1.0), [1]),
        (Faults(late=1.0), [1, 2]),
    ],
)
def test_each_fault_leaves_its_own_mark(faults: Faults, applied: list[int]) -> None:
    """A lost request is not applied, a lost answer is, a torn batch in part, and a late one after its error."""

    async def program(loop: SimulatedLoop) -> None:
        inner = await owned()
        journal = FaultyJournal(inner, loop.random_for("faults"), faults)
        with pytest.raises(StoreUnavailable, match="simulated"):
            await journal.commit([turn(1), turn(2)])
        if faults.late:
            assert await numbers(inner) == []
        await asyncio.sleep(10)
        assert await numbers(inner) == applied

    for seed in range(20):
        run(seed, program)


def test_every_mix_of_faults_is_survived_by_repeating() -> None:
    """Commits that are repeated until they are answered take effect once and in order, whatever goes wrong (INV-1)."""
    fates: set[str] = set()

    async def program(loop: SimulatedLoop) -> None:
        inner = await owned()
        faults = Faults(delay_s=0.01, slow=0.1, slow_s=2, fail=0.2, lose_answer=0.2, tear_batch=0.3, late=0.1)
        journal = FaultyJournal(inner, loop.random_for("faults"), faults, host="h")
        for number in range(1, 40, 2):
            assert await until_answered(journal, [turn(number), turn(number + 1)]) == [None, None]
        await asyncio.sleep(20)
        assert await numbers(inner) == list(range(1, 41))
        fates.update(call.fate for call in journal.calls)
        assert journal.calls[0].host == "h"

    for seed in range(100):
        run(seed, program)
    assert fates == {"answer", "fail", "lose_answer", "late"}


def test_calls_take_time_and_overtake_each_other() -> None:
    """Delays are within their bounds, and of two calls either may arrive first."""

    async def program(loop: SimulatedLoop) -> str:
        journal = FaultyJournal(await owned(), loop.random_for("faults"), Faults(delay_s=1.0))
        finished: list[str] = []

        async def read(label: str) -> None:
            await journal.owners()
            finished.append(label)

        await asyncio.gather(read("first"), read("second"))
        assert 0 < loop.time() <= 2
        return finished[0]

    assert {run(seed, program) for seed in range(20)} == {"first", "second"}


def test_a_cancelled_commit_may_still_happen() -> None:
    """Cancelling a call does not call it back: the store applies what is on its way."""

    async def program(loop: SimulatedLoop) -> None:
        inner = await owned()
        journal = FaultyJournal(inner, loop.random_for("faults"), Faults(delay_s=10.0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(journal.commit([turn(1)]), 1e-6)
        assert await numbers(inner) == []
        await asyncio.sleep(10)
        assert await numbers(inner) == [1]

    run(0, program)


def test_after_a_crash_no_call_returns() -> None:
    """After `crash` calls under way and new ones hang for ever, while another life of the host works on."""

    async def program(loop: SimulatedLoop) -> bool:
        inner = await owned()
        first = FaultyJournal(inner, loop.random_for("first"), Faults(delay_s=1.0))
        under_way = asyncio.create_task(hangs(first.commit([turn(1)])))
        await asyncio.sleep(1e-6)
        first.crash()
        assert await hangs(first.owners())
        assert await under_way
        arrived = await numbers(inner) == [1]
        second = FaultyJournal(inner, loop.random_for("second"))
        await second.acquire([HOME], "host-2", 0, 1000, force=True)
        assert await second.commit([turn(2 if arrived else 1, epoch=2)]) == [None]
        return arrived

    assert {run(seed, program) for seed in range(20)} == {True, False}


def test_a_zombies_commit_is_fenced() -> None:
    """What a dead host had sent arrives after its successor took over, and is refused by the store (INV-2, INV-3)."""

    async def program(loop: SimulatedLoop) -> None:
        inner = await owned()
        zombie = FaultyJournal(inner, loop.random_for("zombie"), Faults(delay_s=100.0))
        loop.spawn("host-1", zombie.commit([turn(1)]))
        await asyncio.sleep(0)
        loop.kill("host-1")
        await inner.acquire([HOME], "host-2", 0, 1000, force=True)
        await asyncio.sleep(1000)
        assert await numbers(inner) == []

    for seed in range(20):
        run(seed, program)


def test_an_outage_ends() -> None:
    """During an outage every call fails, afterwards none does."""

    async def program(loop: SimulatedLoop) -> None:
        journal = FaultyJournal(await owned(), loop.random_for("faults"))
        journal.outage(10)
        with pytest.raises(StoreUnavailable):
            await journal.owners()
        await asyncio.sleep(10)
        assert await journal.commit([turn(1)]) == [None]

    run(0, program)
