"""Reads that go beside writing turns: what they may have seen half done is not shown before it is durable (INV-7)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from actors import ActorFailed, DeadlineExceeded, Deadlock, actor, context, event, method
from tests.actors.worlds import settled, until

if TYPE_CHECKING:
    from actors import ActorClient
    from tests.actors.worlds import World


@actor
class Purse:
    left: int = 10
    right: int = 0
    moves: list[int] = []  # noqa: RUF012  # a field's default
    gate: ClassVar[asyncio.Event]
    enough: ClassVar[asyncio.Event]
    looked: ClassVar[int]

    @method
    async def move(self, amount: int, end: str = "") -> str:
        self.left -= amount
        self.moves.append(amount)
        await Purse.gate.wait()
        if end:
            raise ValueError(end)
        self.right += amount
        return "moved"

    @method
    async def think(self) -> None:
        await Purse.gate.wait()

    @method(interleave=True)
    async def look(self) -> list[Any]:
        Purse.looked += 1
        return [self.left, self.right, self.moves]

    @method(interleave=True, consistency="linearizable")
    async def look_surely(self) -> int:
        return self.left

    @method(interleave=True)
    async def check(self) -> None:
        if self.left != 10:
            raise ValueError(f"{self.left} is left")

    @method(interleave=True)
    async def wait_below(self, amount: int) -> int:
        while (seen := self.left) >= amount:  # noqa: ASYNC110  # what waits here is a stand-in for a long poll
            await asyncio.sleep(0.001)
        return seen

    @method(interleave=True)
    async def look_and_wait(self) -> int:
        seen = self.left
        Purse.looked += 1
        await Purse.enough.wait()
        return seen

    @method
    async def look_at_itself(self) -> list[Any]:
        self.left = 1
        return await context().actor(Purse, context().actor_id).look()

    @method
    async def ask(self, other: str) -> int:
        self.left = 0
        await Purse.gate.wait()
        return await context().actor(Purse, other).look_surely()


@actor
class Booked:
    total: int = 0
    gate: ClassVar[asyncio.Event]

    @event
    def booked(self, amount: int) -> None:
        self.total += amount

    @method
    async def book(self, amount: int, end: str = "") -> None:
        self.booked(amount)
        await Booked.gate.wait()
        if end:
            raise ValueError(end)

    @method(interleave=True)
    async def look(self) -> int:
        return self.total


@pytest.fixture(autouse=True)
async def closed_gates() -> None:
    Purse.gate, Purse.enough, Booked.gate = asyncio.Event(), asyncio.Event(), asyncio.Event()
    Purse.looked = 0


async def moving(client: ActorClient, *arguments: Any, actor_id: str = "p") -> asyncio.Future[str]:
    """A turn that stands between its two changes."""
    turn = asyncio.ensure_future(client.actor(Purse, actor_id).move(*arguments))
    await until(lambda: running(client, f"Purse/{actor_id}"))
    return turn


def running(client: ActorClient, stream: str) -> bool:
    activation = client._host.activations.get(stream)
    return activation is not None and activation.running is not None


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_is_half_done_is_shown_when_it_is_durable(world: World, key: str | None) -> None:
    """INV-7: the answer waits for the turn it has looked at, and for its commit. It is of the moment of the read."""
    client = await world.client(Purse)
    turn = await moving(client, 5)
    look = asyncio.ensure_future(client.actor(Purse, "p", idempotency_key=key).look())
    await until(lambda: Purse.looked)
    await settled()
    assert not look.done()
    world.lever.hold()
    Purse.gate.set()
    await settled()
    assert not look.done()
    world.lever.let_go()
    assert await look == [5, 0, [5]]
    assert await turn == "moved"


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_is_rolled_back_is_not_shown(world: World, key: str | None) -> None:
    """INV-7: the turn fails, so the read is run again; a receipt has the same answer."""
    client = await world.client(Purse)
    turn = await moving(client, 5, "no")
    look = asyncio.ensure_future(client.actor(Purse, "p", idempotency_key=key).look())
    surely = asyncio.ensure_future(client.actor(Purse, "p", idempotency_key=key).look_surely())
    check = asyncio.ensure_future(client.actor(Purse, "p", idempotency_key=key).check())
    await until(lambda: Purse.looked)
    await settled()
    Purse.gate.set()
    with pytest.raises(ActorFailed, match="no"):
        await turn
    assert await look == [10, 0, []]
    assert await surely == 10
    await check
    assert await client.actor(Purse, "p", idempotency_key=key).look() == [10, 0, []]


async def test_error_of_what_is_half_done_waits(world: World) -> None:
    """INV-7: an error is an answer, too."""
    client = await world.client(Purse)
    turn = await moving(client, 5)
    check = asyncio.ensure_future(client.actor(Purse, "p").check())
    await settled()
    assert not check.done()
    Purse.gate.set()
    with pytest.raises(ActorFailed, match="5 is left"):
        await check
    await turn


async def test_read_that_saw_what_was_rolled_back_meanwhile(world: World) -> None:
    """INV-7: the turn has ended before the read, which had looked before that."""
    client = await world.client(Purse)
    turn = await moving(client, 5, "no")
    poll = asyncio.ensure_future(client.actor(Purse, "p").look_and_wait())
    await until(lambda: Purse.looked)
    Purse.gate.set()
    with pytest.raises(ActorFailed, match="no"):
        await turn
    Purse.enough.set()
    assert await poll == 10


async def test_long_poll_ends_when_its_condition_is_durable(world: World) -> None:
    """One that failed does not end it, nor does one that is half done; the commit does."""
    client = await world.client(Purse)
    poll = asyncio.ensure_future(client.actor(Purse, "p").wait_below(6))
    for end in ("no", "again"):
        turn = await moving(client, 5, end)
        await settled()
        Purse.gate.set()
        with pytest.raises(ActorFailed, match=end):
            await turn
        Purse.gate.clear()
        await settled()
        assert not poll.done()
    turn = await moving(client, 5)
    Purse.gate.set()
    assert await poll == 5
    await turn


async def test_turn_that_has_changed_nothing_is_not_waited_for(world: World) -> None:
    """It cannot be rolled back to anything else, however long it runs."""
    client = await world.client(Purse)
    turn = asyncio.ensure_future(client.actor(Purse, "p").think())
    await until(lambda: running(client, "Purse/p"))
    assert await client.actor(Purse, "p").look() == [10, 0, []]
    assert not turn.done()
    Purse.gate.set()
    await turn


@pytest.mark.parametrize("end", ["", "no"])
async def test_events_that_are_half_done(world: World, end: str) -> None:
    """INV-7, event-sourced: as state-style, also when the actor is folded again."""
    client = await world.client(Booked)
    turn = asyncio.ensure_future(client.actor(Booked, "b").book(3, end))
    await until(lambda: running(client, "Booked/b"))
    look = asyncio.ensure_future(client.actor(Booked, "b").look())
    await settled()
    assert not look.done()
    Booked.gate.set()
    await asyncio.gather(turn, return_exceptions=True)
    assert await look == (0 if end else 3)


async def test_read_beside_a_turn_that_does_not_end(world: World) -> None:
    """It has a deadline, and a caller who may give up, as any call."""
    client = await world.client(Purse)
    turn = await moving(client, 5)
    with pytest.raises(DeadlineExceeded):
        await client.actor(Purse, "p", timeout=0.02).look()
    look = asyncio.ensure_future(client.actor(Purse, "p").look())
    await settled()
    look.cancel()
    Purse.gate.set()
    assert await turn == "moved"
    assert await client.actor(Purse, "p").look() == [5, 5, [5]]


async def test_read_when_its_actor_is_lost(world: World) -> None:
    """What it waits for is never decided here: it is run again where the actor lives, at once."""
    client = await world.client(Purse)
    turn = await moving(client, 5)
    look = asyncio.ensure_future(client.actor(Purse, "p").look())
    await until(lambda: Purse.looked)
    await settled()
    client._host.activations["Purse/p"].retire()
    assert await look == [10, 0, []]
    assert not turn.done()
    Purse.gate.set()
    assert await turn == "moved"


async def test_turn_reads_its_own_actor(world: World) -> None:
    """The read belongs to the turn's chain: it joins it, so neither waits for the other."""
    client = await world.client(Purse)
    assert await client.actor(Purse, "p").look_at_itself() == [1, 0, []]


async def test_read_of_the_same_chain_that_came_from_outside(world: World) -> None:
    """A turn may have called somebody who knows of its chain no more than its id, and waits for this."""
    client = await world.client(Purse)
    turn = client.invoke_nowait("Purse", "p", "move", b"[5]", chain_id="c")
    await until(lambda: running(client, "Purse/p"))
    assert await client.invoke_nowait("Purse", "p", "look", chain_id="c") == b"[5,0,[5]]"
    assert not turn.done()
    Purse.gate.set()
    assert await turn == b'"moved"'


async def test_turns_that_read_each_other(world: World) -> None:
    """Each of two half-done turns waits for the other: found at once."""
    client = await world.client(Purse)
    turns = [asyncio.ensure_future(client.actor(Purse, one).ask(other)) for one, other in ("ab", "ba")]
    await until(lambda: running(client, "Purse/a") and running(client, "Purse/b"))
    Purse.gate.set()
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*turns, return_exceptions=True)
    assert any(isinstance(outcome, Deadlock) for outcome in outcomes)
    assert all(outcome == 10 or isinstance(outcome, Deadlock) for outcome in outcomes)
