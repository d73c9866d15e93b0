"""What every payloads face must do: derive a test class from `PayloadsConformance` and give it two fixtures.

    class TestMyPayloads(PayloadsConformance):
        @pytest.fixture
        async def store(self) -> AsyncIterator[StateStore]: ...              # opened, and empty for each test

        @pytest.fixture
        async def reopen(self) -> Callable[[], Awaitable[StateStore]]: ...   # opens another store on the same data

A store without `Capability.PAYLOADS` is not for this suite.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from statestores.model import partition_of
from statestores.store import Capability, StoredAt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from statestores.store import StateStore

    Reopen = Callable[[], Awaitable[StateStore]]

MIB = 1 << 20
STREAM = "mecha.workflow/one"


async def listed(store: StateStore, stream: str) -> list[str]:
    """Ids of a stream's payloads, as the listing of its partition shows them."""
    found = await store.payloads.stored(partition_of(stream, store.journal.partitions), None, 10_000)
    return [at.id for at in found if at.stream == stream]


class PayloadsConformance:
    def test_capability_is_declared(self, store: StateStore) -> None:
        """Who has the face says so."""
        assert Capability.PAYLOADS in store.capabilities

    @pytest.mark.parametrize("size", [0, 1, 255, 256 * 1024, 8 * MIB])
    async def test_chunk_of_any_size_comes_back(self, store: StateStore, reopen: Reopen, size: int) -> None:
        """A chunk is the bytes that were stored, for every later opener of the store."""
        chunk = random.Random(size).randbytes(size)
        await store.payloads.put(STREAM, "a", 0, chunk)
        assert await store.payloads.get(STREAM, "a", 0) == chunk
        again = await reopen()
        if Capability.DURABLE in again.capabilities:
            assert await again.payloads.get(STREAM, "a", 0) == chunk

    async def test_chunks_are_told_apart(self, store: StateStore) -> None:
        """By stream, id and number; what was never stored is None."""
        payloads = store.payloads
        places = [(STREAM, "a", 0), (STREAM, "a", 1), (STREAM, "b", 0), (STREAM + "1", "a", 0)]
        for place in places:
            await payloads.put(*place, repr(place).encode())
        for place in places:
            assert await payloads.get(*place) == repr(place).encode()
        for missing in [(STREAM, "a", 2), (STREAM, "c", 0), ("mecha.workflow/on", "ea", 0)]:
            assert await payloads.get(*missing) is None

    async def test_views_are_stored_as_they_are_now(self, store: StateStore) -> None:
        """A view of a buffer may be reused when `put` returns."""
        buffer = bytearray(b"abc")
        await store.payloads.put(STREAM, "a", 0, memoryview(buffer)[:2])
        buffer[:] = b"xyz"
        assert await store.payloads.get(STREAM, "a", 0) == b"ab"

    async def test_put_may_be_repeated(self, store: StateStore) -> None:
        """A call whose answer was lost is made again."""
        for _ in range(2):
            await store.payloads.put(STREAM, "a", 0, b"same")
        assert await store.payloads.get(STREAM, "a", 0) == b"same"
        assert await listed(store, STREAM) == ["a"]

    async def test_listing_shows_each_payload_once_in_pages(self, store: StateStore) -> None:
        """Of one partition only, in order, without gaps or repeats at the ends of pages."""
        payloads, partitions = store.payloads, store.journal.partitions
        wanted = []
        for number in range(23):
            stream = f"mecha.workflow/{number % 7}ü"
            for chunk in range(1 + number % 3):
                await payloads.put(stream, f"id-{number}", chunk, b"x")
            wanted.append(StoredAt(stream, f"id-{number}"))
        found: list[StoredAt] = []
        for partition in range(partitions):
            after: StoredAt | None = None
            mine: list[StoredAt] = []
            while page := await payloads.stored(partition, after, 2):
                assert len(page) <= 2
                mine += page
                after = page[-1]
            assert mine == sorted(mine)
            assert all(partition_of(at.stream, partitions) == partition for at in mine)
            found += mine
        assert sorted(found) == sorted(wanted)

    async def test_removed_is_gone(self, store: StateStore) -> None:
        """All its chunks, and no other payload's; removing what is not there is fine."""
        for id_ in ("a", "b"):
            for number in range(5):
                await store.payloads.put(STREAM, id_, number, b"x" * 1000)
        await store.payloads.remove(STREAM, "a")
        await store.payloads.remove(STREAM, "a")
        await store.payloads.remove("mecha.workflow/nobody", "a")
        assert [await store.payloads.get(STREAM, "a", number) for number in range(5)] == [None] * 5
        assert await store.payloads.get(STREAM, "b", 4) == b"x" * 1000
        assert await listed(store, STREAM) == ["b"]

    async def test_chunk_that_comes_late_is_found(self, store: StateStore) -> None:
        """A writer that was overtaken by the removal leaves nothing that no listing shows."""
        await store.payloads.put(STREAM, "a", 0, b"x")
        await asyncio.gather(
            store.payloads.remove(STREAM, "a"), *(store.payloads.put(STREAM, "a", number, b"x") for number in range(9))
        )
        left = [number for number in range(9) if await store.payloads.get(STREAM, "a", number) is not None]
        assert await listed(store, STREAM) == (["a"] if left else [])
        await store.payloads.put(STREAM, "a", 9, b"x")
        assert await listed(store, STREAM) == ["a"]

    async def test_journal_and_keys_do_not_see_payloads(self, store: StateStore) -> None:
        """They stand beside the streams and the application's keys, not among them."""
        await store.payloads.put(STREAM, "a", 0, b"x")
        assert (await store.journal.load(STREAM)).version == 0
        assert await store.keys.get(["a", STREAM, f"{STREAM}||a"], 0) == [None, None, None]
