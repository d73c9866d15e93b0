"""How long a client asks a host, or a store, in trouble: whatever the value's size, whatever the attempts take."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from actors import Host, HostStopping, LoopClock, OutcomeUnknown
from statestores.errors import StoreUnavailable
from statestores.memory import MemoryStore
from tests.actors.worlds import Lever
from tests.simulation.simloop import SimulatedLoop, run
from workflow import Engine, WorkflowClient, wait_event, workflow
from workflow.client import _LONGEST_RETRY_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from statestores.store import Journal, Payloads

LIMIT = 100
PATIENCE_S = 5.0
# Of the host: how long an attempt takes that finds no store.
ATTEMPT_S = 1.5
SMALL, LARGE = "x", "x" * LIMIT


@workflow
async def passes_on(text: str) -> str:
    return text + await wait_event("go", str)


class AwayPayloads:
    """A payloads face whose store may be away. Everything else is the store's."""

    def __init__(self, face: Payloads) -> None:
        self._face = face
        self.down = False

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            if self.down:
                raise StoreUnavailable("away for a moment")
            return await getattr(self._face, name)(*args)

        return call


class World:
    """A host whose store comes and goes, journal and values together."""

    def __init__(self) -> None:
        store = MemoryStore(partitions=1)
        self.lever = Lever(store.journal)
        self.payloads = AwayPayloads(store.payloads)
        payloads = cast("Payloads", self.payloads)
        engine = Engine([passes_on], clock=LoopClock(), payloads=payloads, large_value_bytes=LIMIT)
        journal = cast("Journal", self.lever)
        self.host = Host(
            journal, engine.types, workers=engine.workers, clock=LoopClock(), lease_s=600, store_patience_s=ATTEMPT_S
        )
        engine.attach(self.host.client)
        self.client = WorkflowClient(self.host.client, engine.instance_type, engine._deployment, PATIENCE_S)

    @asynccontextmanager
    async def away(self, seconds: float) -> AsyncIterator[None]:
        """For so long, or as long as the block takes, whichever is shorter."""
        self.turn(True)
        back = asyncio.get_running_loop().call_later(seconds, self.turn, False)
        try:
            yield
        finally:
            back.cancel()
            self.turn(False)

    def turn(self, down: bool) -> None:
        self.lever.down = self.payloads.down = down


def refuse(_: object) -> None:
    raise StoreUnavailable("no room for a moment")


def simulated(program: Callable[[World], Awaitable[None]]) -> None:
    async def life(_: SimulatedLoop) -> None:
        world = World()
        await world.host.start()
        await program(world)
        await world.host.stop(1)

    run(1, life)


@pytest.mark.parametrize("text", [SMALL, LARGE], ids=["small", "large"])
def test_a_moment_without_the_store_passes(text: str) -> None:
    """What is asked for is done when it is back."""

    async def program(world: World) -> None:
        client = world.client
        async with world.away(PATIENCE_S - 1):
            await client.start(passes_on, text, instance_id="one")
        async with world.away(PATIENCE_S - 1):
            await client.raise_event("one", "go", text)
        assert await client.wait("one") == text + text

    simulated(program)


def test_a_moment_without_the_store_hides_no_value() -> None:
    """Large values are read when it is back."""

    async def program(world: World) -> None:
        client = world.client
        await client.start(passes_on, LARGE, instance_id="one")
        await client.raise_event("one", "go", SMALL)
        assert await client.wait("one") == LARGE + SMALL
        async with world.away(PATIENCE_S - 1):
            assert await client.wait("one") == LARGE + SMALL
        async with world.away(PATIENCE_S - 1):
            assert (await client.get("one")).input == LARGE

    simulated(program)


@pytest.mark.parametrize("text", [SMALL, LARGE], ids=["small", "large"])
def test_patience_is_over_when_it_says(text: str) -> None:
    """It counts what the attempts take, and ends with the one that is under way, or comes after a pause. Whoever asked
    may repeat it."""

    async def program(world: World) -> None:
        clock = asyncio.get_running_loop().time
        await world.client.start(passes_on, "", instance_id="one")
        began_s = clock()
        world.lever.on_commit, world.payloads.down = refuse, True
        with pytest.raises(OutcomeUnknown):
            await world.client.raise_event("one", "go", text)
        assert PATIENCE_S <= clock() - began_s <= PATIENCE_S + ATTEMPT_S + _LONGEST_RETRY_S

    simulated(program)


@pytest.mark.parametrize("text", [SMALL, LARGE], ids=["small", "large"])
def test_nobody_waits_for_a_host_that_has_stopped(text: str) -> None:
    """It does not come back: whoever asks it, or waits already, is told at once."""

    async def program(world: World) -> None:
        clock, client = asyncio.get_running_loop().time, world.client
        await client.start(passes_on, text, instance_id="one")
        waiting = asyncio.ensure_future(client.wait("one"))
        await asyncio.sleep(0.1)
        await world.host.stop(1)
        stopped_s = clock()
        for asked in (
            waiting,
            client.get("one"),
            client.wait("one"),
            client.start(passes_on, text),
            client.raise_event("one", "go", text),
            client.terminate("one"),
        ):
            with pytest.raises(HostStopping):
                await asked
        world.turn(True)  # the store is closed after its host
        with pytest.raises(HostStopping):
            await client.start(passes_on, text)
        assert clock() == stopped_s
        world.turn(False)

    simulated(program)
