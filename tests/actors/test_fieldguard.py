"""What a turn has left running when it ends may not touch the actor's state (INV-5, INV-6)."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pytest

from actors import ActorFailed, actor, context, method

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.actors.worlds import World


@dataclass
class Seat:
    row: int = 0


@actor
class Hall:
    """Its turns leave parts of theirs behind, which go on when `gate` opens."""

    count: int = 0
    names: list[str] = field(default_factory=list)
    seat: Seat = Seat()
    later: str | None = None
    gate: ClassVar[asyncio.Event]
    _left: asyncio.Task[None]

    async def _fail(self) -> None:
        raise ValueError("no")

    async def _assign(self) -> None:
        await self.gate.wait()
        self.count += 10

    async def _append(self) -> None:
        await self.gate.wait()
        self.names.append("late")

    async def _append_to_what_it_holds(self) -> None:
        names = self.names
        await self.gate.wait()
        names.append("late")

    async def _change_a_part(self) -> None:
        await self.gate.wait()
        self.seat.row = 10

    async def _delete(self) -> None:
        await self.gate.wait()
        del self.later

    async def _change(self, how: str) -> None:
        change: Coroutine[None, None, None] = getattr(self, how)()
        await change

    @method
    async def fail_with_a_part_running(self, how: str) -> None:
        self._left = asyncio.ensure_future(self._change(how))
        await asyncio.gather(self._fail(), self._left)

    @method
    async def fail_at_once(self, how: str) -> None:
        self._left = asyncio.ensure_future(self._change(how))
        raise ValueError("no")

    @method
    async def go_on_without(self, how: str) -> None:
        self._left = asyncio.ensure_future(self._change(how))
        try:
            await asyncio.gather(self._fail(), self._left)
        except ValueError:
            self.later = "without"

    @method
    async def open(self) -> str:
        """Meanwhile the part that was left goes on: inside another turn."""
        self.gate.set()
        await asyncio.wait([self._left])
        error = None if self._left.cancelled() else self._left.exception()
        return "" if error is None else f"{type(error).__name__}: {error}"

    @method
    async def add(self) -> int:
        self.count += 1
        return self.count


@pytest.fixture(autouse=True)
def gate() -> asyncio.Event:
    Hall.gate = asyncio.Event()
    return Hall.gate


_CHANGES = ["_assign", "_append", "_change_a_part", "_delete"]


@pytest.mark.parametrize("how", [*_CHANGES, "_append_to_what_it_holds"])
@pytest.mark.parametrize("name", ["fail_with_a_part_running", "fail_at_once"])
async def test_failed_turn_leaves_no_trace_though_part_of_it_runs_on(world: World, name: str, how: str) -> None:
    """`gather` fails with its first part, and does not wait for the others (INV-6)."""
    client = await world.client(Hall)
    hall = client.actor(Hall, "h")
    assert await hall.add() == 1
    with pytest.raises(ActorFailed, match="ValueError"):
        await getattr(hall, name)(how)
    told = await hall.open()
    assert told.startswith("RuntimeError: the turn of Hall/h this code belongs to has ended") or "it_holds" in how
    assert await hall.add() == 2
    assert await client.state("Hall", "h") == (2, {"count": 2, "names": [], "seat": {"row": 0}, "later": None})


@pytest.mark.parametrize("how", _CHANGES)
async def test_part_that_outlives_its_turn_changes_no_other(world: World, how: str) -> None:
    """INV-5: a turn that has caught the failure ends well, and yet has left something behind."""
    client = await world.client(Hall)
    hall = client.actor(Hall, "h")
    await hall.go_on_without(how)
    assert "has ended" in await hall.open()
    assert await hall.add() == 1
    assert await client.state("Hall", "h") == (2, {"count": 1, "names": [], "seat": {"row": 0}, "later": "without"})


async def test_callback_and_thread_of_an_ended_turn_change_nothing(world: World) -> None:
    """Both have the turn's context, as tasks have: asyncio hands it on."""
    told: list[BaseException] = []
    go_on, done = threading.Event(), asyncio.Event()

    @actor
    class Late:
        count: int = 0

        def _assign(self) -> None:
            try:
                self.count = 10
            except RuntimeError as error:
                told.append(error)

        def _wait_and_assign(self) -> None:
            go_on.wait(30)
            self._assign()
            loop.call_soon_threadsafe(done.set)

        @method
        async def call_back(self) -> None:
            asyncio.get_running_loop().call_soon(self._assign)

        @method(timeout=0.01)
        async def run_in_thread(self) -> None:
            await asyncio.to_thread(self._wait_and_assign)

        @method
        async def read(self) -> int:
            return self.count

    loop = asyncio.get_running_loop()
    client = await world.client(Late)
    late = client.actor(Late, "l")
    await late.call_back()
    assert await late.read() == 0
    with pytest.raises(Exception, match="ran longer"):
        await late.run_in_thread()
    go_on.set()
    await asyncio.wait_for(done.wait(), 30)
    assert await late.read() == 0
    assert len(told) == 2
    assert await client.history("Late", "l") == []


async def test_what_outlives_its_turn_may_call_and_keep_what_is_volatile(world: World) -> None:
    """A task that `on_activate` starts lives as long as the actor."""

    @actor
    class Poller:
        polls: int = 0
        _seen: int = 0
        _task: asyncio.Task[None]

        async def on_activate(self) -> None:
            self._task = asyncio.ensure_future(self._poll(context().actor(Poller, context().actor_id).polled))

        async def _poll(self, polled: Callable[[], Coroutine[None, None, None]]) -> None:
            while self._seen < 3:
                await polled()
                self._seen = self.polls

        @method
        async def polled(self) -> None:
            self.polls += 1

        @method(interleave=True)
        async def three(self) -> int:
            await self._task
            return self.polls

    client = await world.client(Poller)
    assert await client.actor(Poller, "p").three() == 3


async def test_long_wait_goes_on_after_another_turn_has_failed(world: World) -> None:
    """It sees the actor as it is, also what changes in place."""

    @actor
    class Board:
        notes: list[str] = field(default_factory=list)
        _changed: asyncio.Event

        async def on_activate(self) -> None:
            self._changed = asyncio.Event()

        @method(interleave=True)
        async def next_note(self) -> str:
            await self._changed.wait()
            return self.notes[-1]

        @method
        async def write(self, note: str) -> None:
            self.notes.append(note)
            await asyncio.sleep(0)
            if note == "bad":
                raise ValueError(note)
            self._changed.set()

    board = (await world.client(Board)).actor(Board, "b")
    waiting = asyncio.ensure_future(board.next_note())
    with pytest.raises(ActorFailed):
        await board.write("bad")
    await board.write("good")
    assert await asyncio.wait_for(waiting, 30) == "good"


async def test_guarded_fields_are_else_attributes_like_any() -> None:
    @actor
    class Plain:
        names: list[str] = ["a"]  # noqa: RUF012  # a default of the class is what is looked at
        unset: dict[str, int]

        def __getattr__(self, name: str) -> str:
            return f"no {name}"

    plain = Plain()
    assert plain.names == Plain.names == ["a"]
    assert str(plain.unset) == "no unset"
    plain.unset = {"one": 1}
    assert vars(plain) == {"unset": {"one": 1}}
    plain.names = ["b"]
    del plain.names
    assert plain.names == ["a"]
    with pytest.raises(AttributeError, match="names"):
        del plain.names
    with pytest.raises(AttributeError, match="unset"):
        _ = Plain.unset
