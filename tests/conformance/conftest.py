"""The stores under the suite. A new one is one more entry in `OPENERS`."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from statestores.memory import MemoryStore
from statestores.redis import RedisStore
from statestores.sqlite import SqliteStore
from tests.servers import shared_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from statestores.store import StateStore

    Opener = Callable[[], StateStore]


def _memory(directory: Path) -> Opener:
    store = MemoryStore()
    return lambda: store


def _sqlite(directory: Path) -> Opener:
    return lambda: SqliteStore(directory / "store.db")


def _redis(directory: Path) -> Opener:
    url = f"{shared_redis().url}?namespace={uuid4().hex}"
    return lambda: RedisStore.from_url(url)


OPENERS: dict[str, Callable[[Path], Opener]] = {"memory": _memory, "sqlite": _sqlite, "redis": _redis}
"""By kind: what gives a factory of store objects that all share the data of one test."""


@pytest.fixture(params=OPENERS)
async def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[StateStore]]]:
    make = OPENERS[request.param](tmp_path)
    async with AsyncExitStack() as stack:

        async def open_another() -> StateStore:
            store = make()
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield open_another


@pytest.fixture
async def store(reopen: Callable[[], Awaitable[StateStore]]) -> StateStore:
    return await reopen()
