"""A world to run actors in, once on each embedded store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from statestores.memory import MemoryStore
from statestores.sqlite import SqliteStore
from tests.actors.worlds import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from statestores.store import StateStore


@pytest.fixture(params=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    store: StateStore = (
        MemoryStore(partitions=4) if request.param == "memory" else SqliteStore(tmp_path / "actors.db", partitions=4)
    )
    await store.open()
    made = World(store.journal)
    yield made
    await made.close()
    await store.close()
