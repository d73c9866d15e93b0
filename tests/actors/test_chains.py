"""Calls inside calls: deadlocks are found and named, reentrant types let their own chain in, others may pass."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import field
from typing import TYPE_CHECKING, Any

import pytest

from actors import ActorError, ActorFailed, Deadlock, ReentrancyDepthExceeded, actor, context, method
from tests.actors.worlds import settled

if TYPE_CHECKING:
    from tests.actors.worlds import World


class _Node:
    """Runs programs: ["call", id, program] calls another one, ["meet", n] waits for others, ["add"] writes."""

    async def interpret(self, program: list[Any]) -> Any:
        result: Any = None
        for step in program:
            match step:
                case ["call", other, inner]:
                    result = await context().actor(context().actor_type, other).run(inner)
                case ["read", other, inner]:
                    result = await context().actor(context().actor_type, other).look(inner)
                case ["watch", other, inner]:
                    result = await context().actor(context().actor_type, other).watch(inner)
                case ["meet", party, size]:
                    await Meeting.join(party, size)
                case ["fail"]:
                    raise ValueError("as told")
                case ["add"]:
                    self.value = getattr(self, "value", 0) + 1
                    result = self.value
        return result


class Meeting:
    """Where turns wait for each other, so that a test decides who holds what when."""

    parties: dict[str, list[asyncio.Future[None]]] = {}  # noqa: RUF012  # emptied by every meeting that takes place

    @classmethod
    async def join(cls, party: str, size: int) -> None:
        here = cls.parties.setdefault(party, [])
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        here.append(mine)
        if len(here) == size:
            del cls.parties[party]
            for each in here:
                each.set_result(None)
        await mine


@actor
class Node(_Node):
    value: int = 0

    @method
    async def run(self, program: list[Any]) -> Any:
        return await self.interpret(program)

    @method(read_only=True)
    async def look(self, program: list[Any]) -> Any:
        return await self.interpret(program)

    @method(interleave=True)
    async def watch(self, program: list[Any]) -> Any:
        return await self.interpret(program)


@actor(reentrant=True, max_depth=4)
class Open(_Node):
    value: int = 0

    @method
    async def run(self, program: list[Any]) -> Any:
        return await self.interpret(program)

    @method(read_only=True)
    async def look(self, program: list[Any]) -> Any:
        return await self.interpret(program)

    @method
    async def descend(self, levels: int) -> int:
        self.value += 1
        if levels:
            await context().actor(Open, context().actor_id).descend(levels - 1)
        return self.value

    @method
    async def descend_often(self, times: int) -> int:
        for _ in range(times):
            await context().actor(Open, context().actor_id).descend(2)
        return self.value

    @method
    async def fail_outside(self) -> None:
        await context().actor(Open, context().actor_id).descend(0)
        raise ValueError("the outer turn fails")


async def chain_of(call: Any) -> tuple[str, ...]:
    """The chain of the deadlock a call ends in."""
    with pytest.raises((Deadlock, ActorFailed)) as caught:
        async with asyncio.timeout(5):
            await call
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, Deadlock):
        error = error.__cause__
    assert error is not None
    return error.chain


async def test_actor_that_calls_itself(world: World) -> None:
    """A -> A fails at once."""
    client = await world.client(Node)
    assert await chain_of(client.actor(Node, "a").run([["call", "a", []]])) == ("Node/a", "Node/a")


async def test_chain_that_comes_back(world: World) -> None:
    """A -> B -> A, and longer, fails at once and names the chain; everybody works afterwards."""
    client = await world.client(Node)
    ring = [["call", "b", [["call", "c", [["call", "a", []]]]]]]
    assert await chain_of(client.actor(Node, "a").run(ring)) == ("Node/a", "Node/b", "Node/c", "Node/a")
    tail = [["call", "a", ring]]
    assert await chain_of(client.actor(Node, "x").run(tail)) == ("Node/a", "Node/b", "Node/c", "Node/a")
    for name in "abcx":
        assert await client.actor(Node, name).run([["add"]]) == 1


async def test_two_chains_that_block_each_other(world: World) -> None:
    """A -> B while B -> A: the one that closes the circle fails, the other gets its answer."""
    client = await world.client(Node)
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(
            client.actor(Node, "a").run([["meet", "ab", 2], ["call", "b", [["add"]]]]),
            client.actor(Node, "b").run([["meet", "ab", 2], ["call", "a", [["add"]]]]),
            return_exceptions=True,
        )
    failed = [o for o in outcomes if isinstance(o, Exception)]
    assert len(failed) == 1
    assert "Node/a" in str(failed[0])
    assert "Node/b" in str(failed[0])
    assert [o for o in outcomes if not isinstance(o, Exception)] == [1]


async def test_philosophers(world: World) -> None:
    """Five at a table, each holding its own fork and asking for the next: one is told, the others eat."""
    client = await world.client(Node)
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(
            *(
                client.actor(Node, f"p{i}").run([["meet", "table", 5], ["call", f"p{(i + 1) % 5}", []]])
                for i in range(5)
            ),
            return_exceptions=True,
        )
    failed = [o for o in outcomes if isinstance(o, Exception)]
    assert len(failed) == 1
    cause = failed[0].__cause__ or failed[0]
    assert isinstance(cause, Deadlock)
    assert len(cause.chain) == 6


async def test_busy_actor_is_not_a_deadlock(world: World) -> None:
    """Waiting for an actor that waits for nobody of ours is just waiting."""
    client = await world.client(Node)
    busy = asyncio.ensure_future(client.actor(Node, "b").run([["meet", "later", 2], ["add"]]))
    await settled()
    caller = asyncio.ensure_future(client.actor(Node, "a").run([["call", "b", [["add"]]]]))
    await settled()
    await Meeting.join("later", 2)
    assert [await busy, await caller] == [1, 2]


async def test_read_may_come_back_to_an_actor_that_reads(world: World) -> None:
    """Reads run beside each other, so a chain of reads that comes back waits for nobody."""
    client = await world.client(Node)
    async with asyncio.timeout(5):
        await client.actor(Node, "a").look([["read", "b", [["read", "a", [["read", "b", []]]]]]])


async def test_returning_read_does_not_queue_behind_a_writer_that_waits_for_it(world: World) -> None:
    """The writer waits for the chain's first read: its second one goes ahead."""
    client = await world.client(Node)
    await client.actor(Node, "a").look([])
    read = asyncio.ensure_future(client.actor(Node, "a").look([["meet", "m", 2], ["read", "b", [["read", "a", []]]]]))
    await settled()
    write = asyncio.ensure_future(client.actor(Node, "a").run([["add"]]))
    await settled()
    await Meeting.join("m", 2)
    async with asyncio.timeout(5):
        await read
        assert await write == 1


async def test_write_that_comes_back_to_a_read_is_a_deadlock(world: World) -> None:
    """A read of A calls B, which writes to A: that write waits for the read."""
    client = await world.client(Node)
    await client.actor(Node, "a").look([])
    assert await chain_of(client.actor(Node, "a").look([["call", "b", [["call", "a", []]]]])) == (
        "Node/b",
        "Node/a",
        "Node/b",
    )


async def test_interleaved_wait_is_not_part_of_a_deadlock(world: World) -> None:
    """An interleaved turn of A that waits for B holds A up for nobody: B may queue at A."""
    client = await world.client(Node)
    await client.actor(Node, "a").look([])
    busy = asyncio.ensure_future(client.actor(Node, "a").run([["meet", "busy", 2]]))
    await settled()
    watch = asyncio.ensure_future(client.actor(Node, "a").watch([["call", "b", [["call", "a", [["add"]]]]]]))
    await settled()
    await Meeting.join("busy", 2)
    async with asyncio.timeout(5):
        await busy
        assert await watch == 1


async def test_deadlock_through_an_interleaved_turn_is_found(world: World) -> None:
    """B waits for an interleaved turn of A, which queues at C, which waits for B: found all the same."""
    client = await world.client(Node)
    await client.actor(Node, "a").look([])
    c = asyncio.ensure_future(client.actor(Node, "c").run([["meet", "bc", 2], ["call", "b", []]]))
    b = asyncio.ensure_future(client.actor(Node, "b").run([["meet", "bc", 2], ["watch", "a", [["call", "c", []]]]]))
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(b, c, return_exceptions=True)
    assert any("deadlock" in str(o) for o in outcomes)


async def test_reentrant_type_lets_its_own_chain_in(world: World) -> None:
    """Per type: the call joins the turn that started the chain, sees its changes, and is committed with it."""
    client = await world.client(Open)
    assert await client.actor(Open, "a").run([["add"], ["call", "b", [["call", "a", [["add"]]]]], ["add"]]) == 3
    assert len(await client.history("Open", "a")) == 1


async def test_reentrancy_has_a_depth(world: World) -> None:
    """At most `max_depth` on the stack; the whole turn is rolled back when it fails of it."""
    client = await world.client(Open)
    assert await client.actor(Open, "a").descend(3) == 4
    with pytest.raises(ReentrancyDepthExceeded, match="maximum stack depth exceeded"):
        await client.actor(Open, "a").descend(4)
    assert await client.state("Open", "a") == (1, {"value": 4})
    assert await client.actor(Open, "b").descend_often(5) == 15, "one after the other is no depth"


async def test_joined_call_is_rolled_back_with_its_turn(world: World) -> None:
    """What a call that joined did stands or falls with the outer turn."""
    client = await world.client(Open)
    with pytest.raises(ActorFailed, match="the outer turn fails"):
        await client.actor(Open, "a").fail_outside()
    assert await client.actor(Open, "a").look([]) is None
    assert await client.state("Open", "a") is None


@actor(reentrant=True)
class Inn:
    value: int = 0
    notes: list[str] = field(default_factory=list)

    @method
    async def go(self, name: str, timeout: float | None = None) -> str:
        self.value = 1
        try:
            await context().actor(Guest, "g", timeout=timeout).come_back(context().actor_id, name)
        except ActorError as failure:
            return f"{failure} notes={self.notes}"
        return f"value={self.value} notes={self.notes}"

    @method
    async def go_without_oneself(self) -> list[str]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as self._limit:
                await context().actor(Inn, context().actor_id).hang_on()
        return list(self.notes)

    @method
    async def go_with_a_sibling(self, party: str) -> list[Any]:
        """What became of a call to the guest that fails, and that is given up while it does; then, of one beside it."""
        here = context().actor_id
        failing = asyncio.ensure_future(context().actor(Guest, "g").fail(party))
        beside = asyncio.ensure_future(context().actor(Guest, "g").come_back_to(here, ["one", "two"]))
        await Meeting.join(party, 2)  # it fails, and the other one is begun
        await Meeting.join("one", 2)
        await settled()
        failing.cancel()
        await settled()
        still = failing.done()
        await Meeting.join("one left", 2)
        await Meeting.join("two", 2)
        await settled()
        at_last = failing.done()
        await Meeting.join("two left", 2)
        return [still, at_last, await beside]

    @method
    async def go_until_cleaned_up(self) -> list[str]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as self._limit:
                await context().actor(Guest, "g").clean_up(context().actor_id)
        return list(self.notes)

    @method
    async def meet(self, party: str) -> None:
        await Meeting.join(party, 2)
        await Meeting.join(f"{party} left", 2)
        self.notes.append(party)

    @method
    async def tidy(self) -> None:
        for _ in range(3):
            await settled()
        self.notes.append("tidy")

    @method(read_only=True)
    async def peek(self) -> int:
        return self.value

    @method(read_only=True)
    async def assign(self) -> None:
        self.value = 7

    @method(read_only=True)
    async def change(self) -> None:
        self.notes.append("changed")

    @method(read_only=True)
    def change_and_fail(self) -> None:
        self.notes.append("changed")
        raise ValueError("no")

    @method(read_only=True)
    async def remind(self) -> None:
        await asyncio.sleep(0)
        context().set_reminder("r", due=60)

    @method(timeout="10ms")
    async def hang(self) -> None:
        await asyncio.Event().wait()

    @method
    async def hang_on(self) -> None:
        if hasattr(self, "_limit"):  # which is over when this has begun
            self._limit.reschedule(asyncio.get_running_loop().time())
        try:
            await asyncio.Event().wait()
        finally:
            await settled()
            self.notes.append("let go")


@actor
class Guest:
    @method
    async def come_back(self, to: str, name: str) -> None:
        await getattr(context().actor(Inn, to), name)()

    @method
    async def come_back_to(self, to: str, parties: list[str]) -> str:
        for party in parties:
            await context().actor(Inn, to).meet(party)
        return "well"

    @method
    async def fail(self, party: str) -> None:
        await Meeting.join(party, 2)
        raise ValueError("as told")

    @method
    async def clean_up(self, to: str) -> None:
        try:
            await context().actor(Inn, to).hang_on()
        finally:
            await context().actor(Inn, to).tidy()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("peek", "value=1 notes=[]"),
        ("assign", "is read_only: it cannot set value"),
        ("change", "is read_only, but changed notes"),
        ("change_and_fail", "is read_only, but changed notes"),
        ("remind", "is read_only: it cannot set_reminder"),
        ("hang", "ran longer than 0.01 s"),
    ],
)
async def test_joined_calls_keep_to_what_their_methods_say(world: World, name: str, said: str) -> None:
    """`read_only` and `timeout` hold for a call that joins a turn; what it may not have changed is as it was."""
    client = await world.client(Inn, Guest)
    assert said in await client.actor(Inn, "a").go(name)
    assert await client.state("Inn", "a") == (1, {"value": 1, "notes": []})
    assert await client.reminders("Inn", "a") == []


async def test_joined_call_ends_when_it_is_given_up(world: World) -> None:
    """INV-5: a turn whose call has failed goes on alone, when what had joined it by way of that has let go."""
    client = await world.client(Inn, Guest)
    for timeout_s in (0.1, 1.0, 5.0):
        said = await client.actor(Inn, f"with {timeout_s}").go("hang_on", timeout_s)
        if "notes=[]" not in said:  # it had begun by then
            break
    assert "was not answered before its deadline" in said
    assert "notes=['let go']" in said


async def test_joined_call_of_ones_own_ends_when_it_is_given_up(world: World) -> None:
    """The same for a call that an actor makes to itself, and stops waiting for."""
    client = await world.client(Inn, Guest)
    async with asyncio.timeout(10):
        assert await client.actor(Inn, "a").go_without_oneself() == ["let go"]


async def test_call_that_is_given_up_may_come_back_to_clean_up(world: World) -> None:
    """INV-5: what joins a turn by way of a call that is being cancelled is waited for as well."""
    client = await world.client(Inn, Guest)
    async with asyncio.timeout(10):
        assert await client.actor(Inn, "a").go_until_cleaned_up() == ["let go", "tidy"]


async def test_failed_call_leaves_alone_what_joined_by_way_of_another(world: World) -> None:
    """Two calls to the same actor: when one fails, what the other one has let join is not cancelled, nor is more waited
    for than what was there."""
    client = await world.client(Inn, Guest)
    async with asyncio.timeout(10):
        assert await client.actor(Inn, "a").go_with_a_sibling("fails") == [False, True, "well"]
    assert await client.state("Inn", "a") == (1, {"value": 0, "notes": ["one", "two"]})


async def test_other_chains_wait_for_a_reentrant_actor(world: World) -> None:
    """INV-5: reentrancy is for the same chain only."""
    client = await world.client(Open)
    first = asyncio.ensure_future(client.actor(Open, "a").run([["add"], ["meet", "r", 2], ["call", "a", [["add"]]]]))
    await settled()
    second = asyncio.ensure_future(client.actor(Open, "a").run([["add"]]))
    await settled()
    assert not second.done()
    await Meeting.join("r", 2)
    assert [await first, await second] == [2, 3]
