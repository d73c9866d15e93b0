"""What a host believes to own, and until when: a renewal speaks for what it named and for nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from actors.ownership import Ownership
from statestores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestores.model import Ownership as Owned


class HandClock:
    """Both clocks in a tester's hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds


class SlowRenewals:
    """A journal that has answered a renewal, and keeps the answer until it is told to let it go."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.partitions: int = inner.partitions
        self.answered, self.go = asyncio.Event(), asyncio.Event()

    async def renew(self, owned: Sequence[tuple[int, int]], owner: str, now_ms: int, lease_ms: int) -> list[Owned]:
        kept: list[Owned] = await self._inner.renew(owned, owner, now_ms, lease_ms)
        self.answered.set()
        await self.go.wait()
        return kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
async def world() -> tuple[Ownership, SlowRenewals, HandClock]:
    store = MemoryStore(partitions=2)
    await store.open()
    journal, clock = SlowRenewals(store.journal), HandClock()
    made: Any = journal
    return Ownership(made, "host:1:one", clock, 10.0, lambda _: None), journal, clock


async def test_a_renewal_does_not_extend_what_it_did_not_name(
    world: tuple[Ownership, SlowRenewals, HandClock],
) -> None:
    """A partition that is taken over while a renewal is under way has its own, earlier lease: reads of it may not be
    served on the renewal's (INV-7)."""
    ownership, journal, clock = world
    await ownership.acquire([0], force=False)
    asked_early = clock.seconds
    await ownership.acquire([1], force=False)  # asked for now, and heard of only after the renewal below was sent
    epoch, ownership.epochs[1] = ownership.epochs[1], 0
    clock.seconds += 8
    confirming = asyncio.create_task(ownership.confirm())
    await journal.answered.wait()
    ownership.epochs[1] = epoch
    journal.go.set()
    assert await confirming == {(0, ownership.epochs[0])}
    clock.seconds = asked_early + 9.5  # partition 1 is anybody's soon, partition 0 is ours until 18
    assert not ownership.lease_holds()


async def test_a_take_over_begins_a_lease_when_nothing_was_owned(
    world: tuple[Ownership, SlowRenewals, HandClock],
) -> None:
    """A lease that ended long ago, of partitions that were given away, says nothing of what is taken now."""
    ownership, _, clock = world
    await ownership.acquire([0], force=False)
    await ownership.release([0])
    clock.seconds += 60
    await ownership.acquire([1], force=False)
    assert ownership.lease_holds()
    clock.seconds += 8
    await ownership.acquire([0], force=False)
    clock.seconds += 1.5
    assert not ownership.lease_holds()  # of partition 1


async def test_a_bug_does_not_end_the_renewals(
    world: tuple[Ownership, SlowRenewals, HandClock], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever one renewal fails with (here: whoever is told of a loss), the next one is made."""
    _, journal, clock = world
    made: Any = journal
    told = asyncio.Event()

    def lost(_: int) -> None:
        told.set()
        raise ZeroDivisionError

    ownership = Ownership(made, "host:1:one", clock, 0.03, lost)
    journal.go.set()
    ownership.epochs[0] = 77  # which the store knows nothing of
    ownership.start_renewing()
    await told.wait()
    journal.answered.clear()
    ownership.epochs[1] = 77
    await journal.answered.wait()
    ownership.stop()
    assert "trying again" in caplog.text


async def test_a_confirmation_is_of_the_partition_it_was_asked_for(
    world: tuple[Ownership, SlowRenewals, HandClock],
) -> None:
    """Who wants proof for a partition that the question under way does not name gets it from the next question."""
    ownership, journal, _ = world
    await ownership.acquire([0], force=False)
    first = asyncio.create_task(ownership.confirm_now(0))
    await journal.answered.wait()
    await ownership.acquire([1], force=False)
    journal.answered.clear()
    second = asyncio.create_task(ownership.confirm_now(1))
    journal.go.set()
    await asyncio.gather(first, second)
    assert journal.answered.is_set()


async def test_what_is_said_of_an_old_epoch_does_not_end_a_new_one(
    world: tuple[Ownership, SlowRenewals, HandClock],
) -> None:
    """A refusal that was under way while the partition was taken over anew is about its former epoch."""
    ownership, _, _ = world
    await ownership.acquire([0], force=False)
    former = ownership.epochs[0]
    await ownership.acquire([0], force=False)
    present = ownership.epochs[0]
    ownership.lose(0, former)
    assert ownership.epochs[0] == present
    ownership.lose(0, present)
    assert not ownership.epochs[0]
