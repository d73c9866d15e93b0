"""Expired keys leave the store for good while a runtime runs, in simulated time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from actors import LoopClock
from runtime_api import Runtime
from runtime_api.components import StateComponent
from runtime_api.purging import purge_expired
from statestores.memory import MemoryStore
from statestores.memory_keys import MemoryKeys
from statestores.store import SetKey
from tests.simulation.simloop import SimulatedLoop, run

if TYPE_CHECKING:
    from pathlib import Path

COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: store}}
spec:
  type: state.in-memory
  metadata:
  - {{name: actorStateStore, value: true}}
  - {{name: cleanupInterval, value: "{}"}}
"""
KEYS = 10_001  # more than one step of a purge


@pytest.mark.parametrize(
    ("interval", "after_s"), [("", 60), ("90s", 90), ("1h", 3600), ("0", None), ("0s", None), ("-1s", None)]
)
def test_expired_keys_are_purged_when_their_component_says(tmp_path: Path, interval: str, after_s: int | None) -> None:
    """Every `cleanupInterval`, a minute by default, whatever has expired goes, however much it is; never at zero."""
    (tmp_path / "store.yaml").write_text(COMPONENT.format(interval))

    async def left(loop: SimulatedLoop) -> list[int]:
        """Keys in the store just before the purge that is expected, and after it; a purged one is not back when the
        clock is set back."""
        clock = LoopClock()
        async with Runtime([], resources_path=tmp_path, clock=clock) as runtime:
            begin_ms, keys = clock.now_ms(), runtime.components["store"].store.keys
            names = [f"k{number}" for number in range(KEYS)]
            await keys.apply([SetKey(name, b"", ttl_s=1) for name in names], begin_ms)
            counts = []
            for wait_s in ((after_s or 7200) - 1, 2):
                await asyncio.sleep(wait_s)
                counts.append(sum(item is not None for item in await keys.get(names, begin_ms)))
            return counts

    assert run(1, left) == [KEYS, 0 if after_s else KEYS]


class WatchedKeys(MemoryKeys):
    """Sees when it is asked to purge, and when others run: something of theirs becomes ready each time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def purge_expired(self, now_ms: int, limit: int) -> int:
        self.seen.append("purge")
        asyncio.get_running_loop().call_soon(self.seen.append, "others")
        return await super().purge_expired(now_ms, limit)


class BrokenKeys(MemoryKeys):
    """Fails the first purge, by no error of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = True

    async def purge_expired(self, now_ms: int, limit: int) -> int:
        if self.is_broken:
            self.is_broken = False
            raise OSError("the disk is gone")
        return await super().purge_expired(now_ms, limit)


def component(name: str, keys: MemoryKeys) -> StateComponent:
    store = MemoryStore()
    store.keys = keys
    return StateComponent(name, "state.in-memory", "v1", store, "", purge_every_s=60.0)


def test_others_run_between_the_steps_of_a_purge() -> None:
    """A store that never waits for anything does not keep the event loop to itself until all is gone."""

    async def seen(loop: SimulatedLoop) -> list[str]:
        clock, keys = LoopClock(), WatchedKeys()
        await keys.apply([SetKey(f"k{number}", b"", ttl_s=1) for number in range(KEYS)], clock.now_ms())
        purging = asyncio.create_task(purge_expired([component("store", keys)], clock))
        await asyncio.sleep(61)
        purging.cancel()
        return keys.seen

    assert run(1, seen) == ["purge", "others", "purge", "others"]


def test_store_that_fails_a_purge_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """An error that no store should raise is logged, and stops the purges neither of its component nor of others."""

    async def left(loop: SimulatedLoop) -> list[list[bool]]:
        """Whether the key of each component is there, after one purge and after two."""
        clock, stores = LoopClock(), [BrokenKeys(), MemoryKeys()]
        begin_ms = clock.now_ms()
        for keys in stores:
            await keys.apply([SetKey("k", b"", ttl_s=1)], begin_ms)
        components = [component(name, keys) for name, keys in zip(("broken", "sound"), stores, strict=True)]
        purging = asyncio.create_task(purge_expired(components, clock))
        found = []
        for _ in range(2):
            await asyncio.sleep(61)
            found.append([await keys.get(["k"], begin_ms) != [None] for keys in stores])
        purging.cancel()
        return found

    with caplog.at_level(logging.ERROR, "mecha.runtime"):
        assert run(1, left) == [[True, False], [False, False]]
    (record,) = caplog.records
    assert "expired keys of broken" in record.getMessage()
    assert record.exc_info is not None
