"""Expired keys leave the store for good while a runtime runs, in simulated time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from actors import LoopClock
from runtime_api import Runtime
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
