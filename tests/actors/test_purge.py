"""Expired receipts go, however many there are, and nobody waits long for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from actors import Host
from actors import host as host_module
from statestores.memory import MemoryJournal
from statestores.model import Receipt, TurnCommit, partition_of

if TYPE_CHECKING:
    import pytest

COUNT = 1_777


class CountingJournal(MemoryJournal):
    def __init__(self) -> None:
        super().__init__(2)
        self.gone: list[int] = []
        self.all_gone = asyncio.Event()

    async def purge_receipts(self, partition: int, now_ms: int, limit: int) -> int:
        self.gone.append(await super().purge_receipts(partition, now_ms, limit))
        if sum(self.gone) == COUNT:
            self.all_gone.set()
        return self.gone[-1]


async def test_all_that_has_expired_goes_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of the purge leaves nothing behind, and no step of it is long: commits wait behind it."""
    journal = CountingJournal()
    owned = await journal.acquire(range(2), "former", 0, 1)
    turns = [
        TurnCommit(partition, owned[partition].epoch, stream, f"turn-{n}", 0, receipt=Receipt(f"key-{n}", b"", 1))
        for n in range(COUNT)
        for stream in [f"Account/{n}"]
        for partition in [partition_of(stream, 2)]
    ]
    assert await journal.commit(turns) == [None] * COUNT
    monkeypatch.setattr(host_module, "_PURGE_EVERY_S", 0.0)
    host = Host(journal, [])
    await host.start()
    await journal.all_gone.wait()
    await host.stop()
    assert max(journal.gone) <= 500
    ends = [place for place, gone in enumerate(journal.gone) if gone < 500]
    assert sum(journal.gone[: ends[1] + 1]) == COUNT, "each partition in one go"
