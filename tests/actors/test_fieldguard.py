"""What a turn has left running when it ends may not touch the actor's state (INV-5, INV-6)."""

from __future__ import annotations

import asyncio
import pickle
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import pytest

from actors import ActorFailed, InvalidState, actor, context, event, method
from actors.fieldguard import check_guards
from runtime_api import Runtime
from runtime_api.loader import LoadError
from tests.actors.worlds import definitions, overrun
from workflow import workflow
from workflow.testing import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.actors.worlds import World


class Colour(Enum):
    RED = "red"


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
        raise InvalidState("of a turn that has failed: said here, as nobody else can know")

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
        return repr(self._left.exception())

    @method
    async def add(self) -> int:
        self.count += 1
        return self.count


@pytest.fixture(autouse=True)
def gate() -> asyncio.Event:
    Hall.gate = asyncio.Event()
    return Hall.gate


_CHANGES = ["_assign", "_append", "_change_a_part", "_delete"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("fail_with_a_part_running", how) for how in (*_CHANGES, "_append_to_what_it_holds")),
        *(("fail_at_once", how) for how in _CHANGES),
    ],
)
async def test_failed_turn_leaves_no_trace_though_part_of_it_runs_on(world: World, name: str, how: str) -> None:
    """`gather` fails with its first part, and does not wait for the others (INV-6). It holds for a turn that cannot
    suspend, too, which runs without a task."""
    client = await world.client(Hall)
    hall = client.actor(Hall, "h")
    assert await hall.add() == 1
    with pytest.raises(ActorFailed, match="ValueError"):
        await getattr(hall, name)(how)
    told = await hall.open()
    assert told.startswith("InvalidState(")
    assert "has failed" in told
    assert await hall.add() == 2
    assert await client.state("Hall", "h") == (2, {"count": 2, "names": [], "seat": {"row": 0}, "later": None})


@pytest.mark.parametrize("how", ["_assign", "_delete"])
async def test_part_that_outlives_its_turn_changes_no_other(world: World, how: str) -> None:
    """INV-5: a turn that has caught the failure ends well, and yet has left something behind."""
    client = await world.client(Hall)
    hall = client.actor(Hall, "h")
    await hall.go_on_without(how)
    assert "has ended" in await hall.open()
    assert await hall.add() == 1
    assert await client.state("Hall", "h") == (2, {"count": 1, "names": [], "seat": {"row": 0}, "later": "without"})


async def test_callback_and_thread_of_an_ended_turn_change_nothing(world: World) -> None:
    """All have the turn's context, as tasks have."""
    told: list[str] = []
    begun, go_on, done = threading.Event(), threading.Event(), asyncio.Event()

    @actor
    class Late:
        count: int = 0

        def _assign(self) -> None:
            try:
                self.count = 10
            except InvalidState as error:
                told.append(str(error))

        def _wait_and_assign(self) -> None:
            begun.set()
            go_on.wait(30)
            self._assign()
            loop.call_soon_threadsafe(done.set)

        @method
        async def call_back(self) -> None:
            asyncio.get_running_loop().call_soon(self._assign)

        @method
        async def call_back_after_commit(self) -> None:
            context().after_commit(self._assign)

        @method
        async def run_in_thread(self) -> None:
            await asyncio.to_thread(self._wait_and_assign)

        @method
        async def read(self) -> int:
            return self.count

    loop = asyncio.get_running_loop()
    client = await world.client(Late)
    late = client.actor(Late, "l")
    await late.call_back()
    await late.call_back_after_commit()
    assert await late.read() == 0
    await overrun(lambda timeout_s: client.actor(Late, "l", timeout=timeout_s).run_in_thread(), begun.is_set)
    go_on.set()
    await asyncio.wait_for(done.wait(), 30)
    assert await late.read() == 0
    assert [("has ended" in each, "has failed" in each) for each in told] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert await client.history("Late", "l") == []


async def test_what_outlives_its_turn_may_read_and_call(world: World) -> None:
    """A task that `on_activate` starts lives as long as the actor, and has volatile attributes of its own."""

    @actor
    class Poller:
        polls: int = 0
        names: list[str] = field(default_factory=list)
        _seen: int = 0
        _task: asyncio.Task[None]

        async def on_activate(self) -> None:
            self._task = asyncio.ensure_future(self._poll(context().actor(Poller, context().actor_id).polled))

        async def _poll(self, polled: Callable[[], Coroutine[None, None, None]]) -> None:
            while self._seen < 3:
                await polled()
                self._seen = len(self.names)

        @method
        async def polled(self) -> None:
            self.polls += 1
            self.names.append("poll")

        @method(interleave=True)
        async def three(self) -> int:
            await self._task
            return self.polls

    client = await world.client(Poller)
    assert await client.actor(Poller, "p").three() == 3


async def test_what_is_made_of_a_turn_is_made_of_the_actor_as_it_is(world: World) -> None:
    """Results and errors may be looked at when the method has returned, and callbacks come after the commit: they may
    read."""
    seen: list[list[str]] = []

    @actor
    class Shelf:
        names: list[str] = field(default_factory=lambda: ["a", "b"])

        def __repr__(self) -> str:
            return f"Shelf of {self.names}"

        @method
        async def lazily(self) -> Any:
            await asyncio.sleep(0)
            return map(str.upper, (name for name in self.names))

        @method
        async def fail(self) -> None:
            await asyncio.sleep(0)
            raise LookupError(self)

        @method(read_only=True)
        async def look(self) -> None:
            context().after_commit(lambda: seen.append(self.names))
            await asyncio.sleep(0)

    shelf = (await world.client(Shelf)).actor(Shelf, "s")
    assert await shelf.lazily() == ["A", "B"]
    with pytest.raises(ActorFailed, match=r"Shelf of \['a', 'b'\]"):
        await shelf.fail()
    await shelf.look()
    assert seen == [["a", "b"]]


async def test_what_cannot_be_changed_may_be_read_by_what_a_failed_turn_leaves(world: World) -> None:
    """It is the value that counts, whatever the annotation allows."""

    @actor
    class Plain:
        some: str | None = "some"
        colour: Colour = Colour.RED
        when: datetime = datetime(2030, 1, 31, tzinfo=UTC)
        key: UUID = UUID(int=1)
        thing: Any = 1
        things: list[int] = field(default_factory=list)
        _left: asyncio.Task[list[Any]]

        async def _look(self) -> list[Any]:
            await asyncio.sleep(0)
            found = [self.some, self.colour, self.when, self.key, self.thing]
            with suppress(InvalidState):
                found.append(self.things)
            return found

        @method
        async def fail(self) -> None:
            self._left = asyncio.ensure_future(self._look())
            raise ValueError("no")

        @method
        async def left(self) -> int:
            return len(await self._left)

    plain = (await world.client(Plain)).actor(Plain, "p")
    with pytest.raises(ActorFailed, match="ValueError"):
        await plain.fail()
    assert await plain.left() == 5


async def test_snapshot_holds_nothing_of_a_failed_turn(world: World) -> None:
    """An event-sourced actor that has recorded nothing in the turn keeps its object: what is left of that turn has it,
    too."""

    @actor(snapshot_every=2)
    class Log:
        lines: list[int] = field(default_factory=list)
        _left: asyncio.Task[None]

        @event
        def added(self, line: int) -> None:
            self.lines.append(line)

        @method
        async def add(self, line: int) -> None:
            self.added(line)

        async def _late(self) -> None:
            await asyncio.sleep(0)
            self.lines.append(999)

        @method
        async def fail(self) -> None:
            self._left = asyncio.ensure_future(self._late())
            raise ValueError("no")

        @method
        async def wait(self) -> str:
            await asyncio.wait([self._left])
            return repr(self._left.exception())

    host = await world.host(Log)
    log = host.client.actor(Log, "l")
    await log.add(1)
    with pytest.raises(ActorFailed):
        await log.fail()
    assert "cannot read lines" in await log.wait()
    await log.add(2)
    await world.crash(host)
    client = await world.client(Log)
    assert await client.state("Log", "l") == (2, {"lines": [1, 2]})


async def test_index_of_an_actor_outlives_failures_that_changed_nothing(world: World) -> None:
    """What a field holds stays the same object: volatile attributes may refer to it."""

    @actor
    class Stock:
        seats: list[Seat] = field(default_factory=lambda: [Seat(1), Seat(2)])
        count: int = 0
        _by_row: dict[int, Seat]

        async def on_activate(self) -> None:
            self._by_row = {seat.row: seat for seat in self.seats}

        @method
        async def move(self, row: int, to: int) -> int:
            self.count += 1
            self._by_row[row].row = to
            return self._by_row[row].row

        @method(read_only=True)
        async def look(self, row: int) -> int:
            await asyncio.sleep(0)
            return self._by_row[row].row

    client = await world.client(Stock)
    stock = client.actor(Stock, "s")
    for fails in (stock.look(9), stock.move(9, 10)):
        with pytest.raises(ActorFailed, match="KeyError"):
            await fails
    assert await stock.move(1, 5) == 5
    assert await client.state("Stock", "s") == (1, {"seats": [{"row": 5}, {"row": 2}], "count": 1})


async def test_read_that_assigns_is_refused_where_it_does(world: World) -> None:
    """Its neighbours, which read at the same time, have nothing to do with it."""

    @actor
    class Pair:
        count: int = 0
        gate: ClassVar[asyncio.Event] = asyncio.Event()

        @method(read_only=True)
        async def bad(self) -> None:
            self.count = 5

        @method(read_only=True)
        async def good(self) -> int:
            await self.gate.wait()
            return self.count

    pair = (await world.client(Pair)).actor(Pair, "p")
    good = asyncio.ensure_future(pair.good())
    with pytest.raises(ActorFailed, match="bad is read_only: it cannot set count"):
        await pair.bad()
    Pair.gate.set()
    assert await good == 0


async def test_actor_without_a_field_does_not_get_what_others_share(world: World) -> None:
    """The default of a class is one object: an actor that has deleted the field would change it for all."""

    @actor
    class Bag:
        names: list[str] = ["a"]  # noqa: RUF012  # a default of the class is what is looked at
        made: list[str] = field(default_factory=list)
        name: str | None = "b"

        @method
        async def drop(self) -> list[Any]:
            del self.names, self.made, self.name
            return [hasattr(self, "names"), hasattr(self, "made"), self.name]

        @method
        async def add(self) -> None:
            self.names.append("b")

    client = await world.client(Bag)
    assert await client.actor(Bag, "one").drop() == [False, False, "b"]
    with pytest.raises(ActorFailed, match="no attribute 'names'"):
        await client.actor(Bag, "one").add()
    await client.actor(Bag, "other").add()
    assert await client.state("Bag", "other") == (1, {"names": ["a", "b"], "made": [], "name": "b"})


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
    """An object of the class that is nobody's actor, in a unit test say, does not know of turns."""

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


class _Short:
    """A field of the user's own making."""

    def __get__(self, instance: Any, owner: type) -> Any:
        return [] if instance is None else vars(instance)["names"]

    def __set__(self, instance: Any, value: list[str]) -> None:
        if len(value) > 1:
            raise ValueError("too long")
        vars(instance)["names"] = value


def test_descriptors_of_the_user_stay() -> None:
    """They are asked, and guarded as far as assignments go."""

    @actor
    class Described:
        names: list[str] = _Short()  # type: ignore[assignment]  # as a descriptor does

    described = Described()
    described.names = ["a"]
    assert described.names == ["a"]
    with pytest.raises(ValueError, match="too long"):
        described.names = ["a", "b"]


def test_decorator_above_that_takes_guards_off_is_refused() -> None:
    """Else a failed turn could leave a trace, and nobody would know (INV-6)."""

    @dataclass
    @actor
    class Below:
        names: list[str] = field(default_factory=list)

    @actor
    @dataclass
    class Above:
        names: list[str] = field(default_factory=list)

    above, below = definitions(Above, Below)
    check_guards(above)
    with pytest.raises(TypeError, match=r"Below\.names has lost.*put @actor above"):
        check_guards(below)
    with pytest.raises(LoadError, match=r"Below\.names has lost"):
        Runtime([Below])


def test_class_is_the_same_in_another_process() -> None:
    """Ray sends classes of `__main__` by value: what stands for no default is known there, too."""

    @actor
    class Sent:
        unset: list[str]

    class There:
        unset = pickle.loads(pickle.dumps(vars(Sent)["unset"]))

    assert not hasattr(There(), "unset")


def test_workflow_may_use_the_class_as_a_plain_one() -> None:
    """In a workflow no turn runs, and what stands in for one is not asked."""

    @actor
    class Sum:
        total: int = 0
        parts: list[int] = field(default_factory=list)

    @workflow
    async def adds(_: None) -> list[int]:
        total = Sum()
        total.parts = [1, 2]
        total.total += sum(total.parts)
        return [total.total, *total.parts]

    assert Rehearsal(adds).summary.output == [3, 1, 2]
