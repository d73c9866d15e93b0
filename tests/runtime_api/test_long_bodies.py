"""Long bodies leave the event loop to others while they are read."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from runtime_api import state
from runtime_api.components import StateComponent
from statestores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = b'[{"key":"k","value":1}]'
LONG = b'[{"key":"k","value":"%s"}]' % (b"x" * state.LONG_BODY_BYTES)


def in_transaction(items: bytes) -> bytes:
    return b'{"operations":[{"operation":"upsert","request":%s}]}' % items[1:-1]


@pytest.fixture
def component() -> StateComponent:
    return StateComponent("s", "state.memory", "v1", MemoryStore(), "app||")


@pytest.mark.parametrize("body_of", [bytes, in_transaction])
async def test_a_long_body_is_read_beside_the_loop(
    component: StateComponent, body_of: Callable[[bytes], bytes]
) -> None:
    """A short one at once, which is quicker."""
    api = state.StateApi({"s": component}, "app", lambda: 0, 1_000_000)
    await component.store.open()

    async def write(items: bytes) -> None:
        if body_of is bytes:
            await state.save(component, api.read(partial(state.save_writes, component, {}), items), 0)
        else:
            steps = api.read(partial(state.transaction_steps, component, {}), body_of(items))
            await state.transact(component, steps, 0)

    async def turns_of_the_loop(writing: asyncio.Task[None]) -> int:
        count = 0
        while not writing.done():
            await asyncio.sleep(0)
            count += 1
        await writing
        return count

    assert await turns_of_the_loop(asyncio.create_task(write(SHORT))) == 1
    assert await turns_of_the_loop(asyncio.create_task(write(LONG))) > 1
    item = (await component.store.keys.get(["app||k"], 0))[0]
    assert item is not None
    assert len(item.value) == state.LONG_BODY_BYTES + 2
