"""`Turn.go_on`: the turn of a method that cannot suspend, and has to wait once in a while."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from actors import ActorFailed, HostStopping, InvalidState, actor, context, method
from tests.actors.worlds import until

if TYPE_CHECKING:
    from actors import ActorClient
    from tests.actors.worlds import World

gates: dict[str, asyncio.Event] = {}
seen: list[str] = []


@pytest.fixture(autouse=True)
def _afresh() -> None:
    gates.clear()
    seen.clear()


@actor
class Waiter:
    count: int = 0

    @method
    def add(self, amount: int) -> int:
        self.count += amount
        return self.count

    @method
    def add_later(self, amount: int, gate: str) -> str:
        """Once before, once after the gate."""
        self.count += amount
        context().go_on(partial(self._rest, amount, gate))
        return "the method's"

    @method
    def fail_later(self, gate: str) -> None:
        self.count += 100
        context().go_on(partial(self._fail, gate))

    @method(read_only=True)
    def read(self) -> int:
        return self.count

    @method(read_only=True)
    def read_later(self) -> None:
        context().go_on(partial(self._rest, 1, "x"))

    async def _rest(self, amount: int, gate: str) -> None:
        seen.append(gate)
        await gates.setdefault(gate, asyncio.Event()).wait()
        self.count += amount
        if gate == "twice":
            context().go_on(partial(self._rest, amount, "second"))

    async def _fail(self, gate: str) -> None:
        await self._rest(100, gate)
        raise ValueError("no")


def refer(client: ActorClient, actor_id: str) -> Any:
    """Its methods are plain, and awaited all the same."""
    return client.actor(Waiter, actor_id)


async def test_turn_ends_with_its_rest(world: World) -> None:
    """INV-5, INV-7: nothing of the same actor runs meanwhile, and what came is run after it; the answer is the
    method's."""
    client = await world.client(Waiter)
    waiter = refer(client, "w")
    first = asyncio.ensure_future(waiter.add_later(1, "a"))
    await until(lambda: seen == ["a"])
    others = [asyncio.ensure_future(call) for call in (waiter.add(10), waiter.read(), waiter.add(100))]
    assert await refer(client, "other").add(5) == 5
    assert not any(other.done() for other in others)
    gates["a"].set()
    assert await first == "the method's"
    assert await asyncio.gather(*others) == [12, 12, 112]


async def test_rests_one_after_the_other(world: World) -> None:
    """A rest may have a rest; all of it is one turn."""
    host = await world.host(Waiter)
    call = asyncio.ensure_future(refer(host.client, "w").add_later(1, "twice"))
    await until(lambda: seen == ["twice"])
    gates["twice"].set()
    await until(lambda: seen == ["twice", "second"])
    gates["second"].set()
    await call
    assert await refer(host.client, "w").read() == 3
    assert len(await host.client.history("Waiter", "w")) == 1


async def test_failed_rest_leaves_no_trace(world: World) -> None:
    """INV-6: what the method did goes with it."""
    client = await world.client(Waiter)
    waiter = refer(client, "w")
    await waiter.add(1)
    call = asyncio.ensure_future(waiter.fail_later("a"))
    await until(lambda: seen == ["a"])
    gates["a"].set()
    with pytest.raises(ActorFailed, match="no"):
        await call
    assert await waiter.read() == 1
    assert await waiter.add(1) == 2


@pytest.mark.parametrize("begun", [False, True])
async def test_host_that_stops_tells_the_caller(world: World, begun: bool) -> None:
    """Before the rest's first step, or in the middle of it."""
    host = await world.host(Waiter)
    await refer(host.client, "w").add(1)
    call: Any = asyncio.ensure_future(refer(host.client, "w").add_later(1, "a"))
    await until(lambda: host.activations["Waiter/w"].pump is not None)
    if begun:
        await until(lambda: seen == ["a"])
    host.abort()
    with pytest.raises(HostStopping):
        await call
    again = await world.host(Waiter)
    assert await refer(again.client, "w").read() == 1


async def test_from_the_mailbox_and_for_keyed_calls(world: World) -> None:
    """By whatever way the turn is run, its rest is run."""
    client = await world.client(Waiter)
    waiter = refer(client, "w")
    keyed: Any = client.actor(Waiter, "w", idempotency_key="k")
    calls = [
        asyncio.ensure_future(c) for c in (waiter.add_later(1, "a"), waiter.add_later(1, "b"), keyed.add_later(1, "c"))
    ]
    for gate in "abc":
        await until(lambda gate=gate: seen[-1:] == [gate])  # type: ignore[misc]  # mypy sees no default there
        gates[gate].set()
    assert await asyncio.gather(*calls) == ["the method's"] * 3
    assert await keyed.add_later(1, "c") == "the method's"
    assert await waiter.read() == 6


async def test_reads_have_no_rest(world: World) -> None:
    """They run beside each other, and may change nothing."""
    client = await world.client(Waiter)
    with pytest.raises(ActorFailed, match=InvalidState.__name__):
        await refer(client, "w").read_later()
