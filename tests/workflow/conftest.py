"""A whole host around workflows: two stores, hot and always-evict."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from actors import Host, definition_of
from statestores.memory import MemoryStore
from statestores.sqlite import SqliteStore
from tests.workflow.steps import Ledger
from workflow import Engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from actors.clock import Clock
    from statestores.store import StateStore
    from workflow import Activity, Workflow, WorkflowClient


class World:
    """Hosts on one store, one after the other: of one name, so that none waits for the lease of the one before it.
    `crash` drops a host without drain, as kill -9 would."""

    def __init__(self, store: StateStore, *, evict_always: bool) -> None:
        self.store = store
        self.evict_always = evict_always
        self.host: Host | None = None
        self._engines: list[Engine] = []

    async def start(
        self,
        workflows: Iterable[Workflow[Any, Any]],
        activities: Iterable[Activity[Any, Any]] = (),
        clock: Clock | None = None,
        **options: Any,
    ) -> WorkflowClient:
        engine = Engine(workflows, activities, evict_always=self.evict_always, clock=clock, **options)
        ledger = definition_of(Ledger)
        assert ledger is not None
        types = [ledger, *engine.types]
        self.host = Host(self.store.journal, types, host_id="one", clock=clock, workers=engine.workers, lease_s=0.2)
        client = engine.attach(self.host.client)
        self._engines.append(engine)
        await self.host.start()
        return client

    async def stop(self) -> None:
        if self.host is not None:
            await self.host.stop(5)
            self.host = None

    async def crash(self) -> None:
        assert self.host is not None
        self.host.abort()
        self.host = None

    async def ledger(self, name: str) -> int:
        assert self.host is not None
        return int(await self.host.client.actor(Ledger, name).read())

    async def ledger_history(self, name: str) -> int:
        assert self.host is not None
        return len(await self.host.client.history("Ledger", name))

    async def close(self) -> None:
        await self.stop()
        for engine in self._engines:
            engine.close()


@pytest.fixture(params=["memory-hot", "memory-evicted", "sqlite-hot", "sqlite-evicted"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kind, _, mode = str(request.param).partition("-")
    store: StateStore = MemoryStore() if kind == "memory" else SqliteStore(str(tmp_path / "store.db"))
    async with AsyncExitStack() as stack:
        await store.open()
        stack.push_async_callback(store.close)
        made = World(store, evict_always=mode == "evicted")
        stack.push_async_callback(made.close)
        yield made
