"""What is recorded and read again: snapshots, upcasters, classes that change, listing, state as of a version."""

from __future__ import annotations

import dis
import functools
import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import pytest
from annotated_types import Gt
from pydantic import BaseModel, Field

from actors import (
    ActorFailed,
    Host,
    InvalidState,
    UnknownActorType,
    UnserializableResult,
    actor,
    context,
    definition_of,
    event,
    method,
)
from actors.definition import _can_suspend
from actors.state import apply_events, new_instance
from statestores.model import Event, IndexQuery
from tests.actors.worlds import until

if TYPE_CHECKING:
    from tests.actors.worlds import World


@actor(snapshot_every=10)
class Meter:
    total: int = 0
    readings: list[int] = field(default_factory=list)

    @method
    async def read(self, value: int) -> int:
        self.total += value
        self.readings = [*self.readings[-2:], value]
        return self.total


@actor(snapshot_every=10)
class Tally:
    total: int = 0
    applied: int = 0

    @event
    def counted(self, amount: int) -> None:
        self.total += amount
        self.applied += 1

    @method
    async def count(self, amount: int) -> int:
        self.counted(amount)
        return self.total


class Wall:
    """A class that no encoding knows."""


class Sent(BaseModel):
    """Written under a name that it is not read under."""

    size: int = Field(default=0, serialization_alias="length")


def receives(self: object, sent: Sent) -> None: ...


def gives(self: object) -> list[Sent]:
    return []


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    name: str
    price: Decimal = Decimal(0)


@dataclass
class Box:
    parts: list[Part]
    made: timedelta


@actor
class Kinds:
    when: datetime | None = None
    span: timedelta = timedelta(0)
    price: Decimal = Decimal("1.10")
    ident: UUID = UUID(int=0)
    colour: Colour = Colour.RED
    raw: bytes = b""
    tags: set[str] = field(default_factory=set)
    box: Box | None = None
    pair: tuple[int, str] = (1, "a")
    table: dict[int, str] = field(default_factory=dict)
    unset: int
    _volatile: int = 0
    unannotated = 5

    @method
    async def fill(self) -> None:
        self.when = datetime.fromisoformat("2024-02-03T04:05:06+00:00")
        self.span = timedelta(seconds=90)
        self.price += Decimal("0.05")
        self.ident = UUID(int=7)
        self.raw = b"\x00\xff"
        self.tags.add("x")
        self.box = Box([Part(name="p", price=Decimal("2.5"))], self.span)
        self.pair = (2, "b")
        self.table[3] = "three"
        self._volatile = 9

    @method(read_only=True)
    async def show(self) -> list[str]:
        definition = definition_of(Kinds)
        assert definition is not None
        shown = [str(getattr(self, f.name)) for f in definition.fields if hasattr(self, f.name)]
        return [*shown, repr(self._volatile)]

    @method
    async def set_unset(self, value: int) -> None:
        self.unset = value

    @method
    async def forget_unset(self) -> None:
        del self.unset


@actor
class Loose:
    number: float = 0.0
    count: int = 0
    numbers: list[float] = field(default_factory=list)
    anything: Any = None

    @method
    async def set(self, name: str, kind: str) -> None:
        values: dict[str, Any] = {
            "nan": float("nan"),
            "text": "text",
            "object": object(),
            "nested": [1.0, float("inf")],
            "huge": 2**70,
            "fine": 3,
        }
        setattr(self, name, values[kind])

    @method
    async def forget_and_set(self, forgotten: str, name: str, kind: str) -> None:
        delattr(self, forgotten)
        await self.set(name, kind)

    @method(read_only=True)
    async def read(self) -> list[Any]:
        return [self.number, self.count, self.numbers, self.anything]


async def test_snapshot_by_policy_and_load_uses_it(world: World) -> None:
    """Every `snapshot_every` events; loading folds what came after the newest one only."""
    host = await world.host(Tally, Meter)
    for _ in range(25):
        await host.client.actor(Tally, "t").count(2)
        await host.client.actor(Meter, "m").read(1)
    for stream in ("Tally/t", "Meter/m"):
        loaded = await world.journal.load(stream)
        assert loaded.snapshot is not None
        assert loaded.snapshot.version == 20
        assert [e.version for e in loaded.events] == [21, 22, 23, 24, 25]
    await world.crash(host)
    client = await world.client(Tally, Meter)
    assert await client.actor(Tally, "t").count(0) == 50
    assert await client.actor(Meter, "m").read(0) == 25


async def test_state_as_of_a_version(world: World) -> None:
    """Any version, before and after a snapshot, of both styles, without activating."""
    host = await world.host(Tally, Meter)
    for i in range(1, 16):
        await host.client.actor(Tally, "t").count(i)
        await host.client.actor(Meter, "m").read(i)
    await world.crash(host)
    client = await world.client(Tally, Meter)
    for version in (1, 5, 10, 11, 15):
        total = version * (version + 1) // 2
        assert await client.state("Tally", "t", at_version=version) == (version, {"total": total, "applied": version})
        found = await client.state("Meter", "m", at_version=version)
        assert found is not None
        assert found[1]["total"] == total
    assert await client.state("Tally", "t", at_version=0) == (0, {"total": 0, "applied": 0})
    assert (await client.state("Tally", "t", at_version=99) or (0,))[0] == 15
    assert await client.state("Tally", "nobody") is None
    assert client.is_active("Tally", "t") is False
    with pytest.raises(UnknownActorType):
        await client.state("Nope", "x")


async def test_history_in_pages(world: World) -> None:
    """Oldest first, from a version on."""
    client = await world.client(Meter)
    for i in range(7):
        await client.actor(Meter, "m").read(i + 1)
    pages = [await client.history("Meter", "m", after=a, limit=3) for a in (0, 3, 6)]
    assert [[e.version for e in page] for page in pages] == [[1, 2, 3], [4, 5, 6], [7]]


async def test_a_listing_takes_a_query(world: World) -> None:
    """The name of a type alone is refused with what to write instead."""
    client = await world.client(Tally)
    with pytest.raises(TypeError, match=r"IndexQuery\('Tally'\)"):
        await client.listing("Tally")  # type: ignore[arg-type]  # what it is about


async def test_listing_with_prefix_and_pages(world: World) -> None:
    """By type, by prefix of the id, page by page."""
    client = await world.client(Meter, Tally)
    for name in ("a1", "a2", "a3", "b1"):
        await client.actor(Meter, name).read(1)
        await client.actor(Tally, name).count(1)
    first = await client.listing(IndexQuery("Meter", id_prefix="a", limit=2))
    second = await client.listing(IndexQuery("Meter", id_prefix="a", limit=2, after=first[-1].stream))
    assert [e.stream for e in first + second] == ["Meter/a1", "Meter/a2", "Meter/a3"]
    await client.delete("Meter", "a2")
    assert [e.stream for e in await client.listing(IndexQuery("Meter"))] == ["Meter/a1", "Meter/a3", "Meter/b1"]


async def test_every_kind_of_field_survives(world: World) -> None:
    """What is read back is what was written, by the annotations; volatile fields start anew."""
    host = await world.host(Kinds)
    await host.client.actor(Kinds, "k").fill()
    before = await host.client.actor(Kinds, "k").show()
    await world.crash(host)
    client = await world.client(Kinds)
    after = await client.actor(Kinds, "k").show()
    assert after[:-1] == before[:-1]
    assert (before[-1], after[-1]) == ("9", "0")


async def test_field_without_default_can_be_set_and_deleted(world: World) -> None:
    """It is absent until it is assigned, and after `del`."""
    host = await world.host(Kinds)
    kinds = host.client.actor(Kinds, "k")
    await kinds.set_unset(4)
    assert (await host.client.state("Kinds", "k") or (0, {}))[1]["unset"] == 4
    await kinds.forget_unset()
    await world.crash(host)
    client = await world.client(Kinds)
    assert "unset" not in (await client.state("Kinds", "k") or (0, {}))[1]


@actor(snapshot_every=4)
class Page:
    body: dict[str, Any] = field(default_factory=dict)
    title: str = "untitled"
    draft: dict[str, Any] | None = None

    @method
    async def put(self, body: dict[str, Any]) -> None:
        self.body = body

    @method
    async def drop(self, names: list[str], body: dict[str, Any]) -> None:
        for name in names:
            delattr(self, name)
        self.body = body

    @method
    async def touch(self) -> None:
        self.draft = {"n": (self.draft or {"n": 0})["n"] + 1}

    @method(read_only=True)
    async def get(self) -> dict[str, Any]:
        return self.body


@pytest.mark.parametrize("body", [{"$absent": True}, {"$absent": True, "a": 1}, {"$absent": ["body"]}])
@pytest.mark.parametrize("touches", [0, 5])
async def test_values_that_look_like_a_deletion_are_values(world: World, body: dict[str, Any], touches: int) -> None:
    """INV-9: whatever a field holds is there after a restart, from events and from a snapshot, beside deleted ones."""
    host = await world.host(Page)
    page, other = host.client.actor(Page, "p"), host.client.actor(Page, "q")
    await page.put(body)
    await other.drop(["title"], body)
    for _ in range(touches):
        await page.touch()
        await other.touch()
    await world.crash(host)
    client = await world.client(Page)
    assert await client.actor(Page, "p").get() == body
    assert await client.actor(Page, "q").get() == body
    assert (await client.state("Page", "p") or (0, {}))[1]["title"] == "untitled"
    assert "title" not in (await client.state("Page", "q") or (0, {}))[1]


async def test_deletion_and_a_value_that_cannot_be_stored(world: World) -> None:
    """INV-6: a turn that deletes a field and sets another to what no store can hold fails and leaves both."""
    loose = (await world.client(Loose)).actor(Loose, "l")
    with pytest.raises(UnserializableResult, match=r"Loose\.count"):
        await loose.forget_and_set("anything", "count", "huge")
    assert await loose.read() == [0.0, 0, [], None]


def test_deletions_as_they_were_first_recorded() -> None:
    """Records of the first form, which marked a deleted field by its value, are read as they were meant."""
    definition = definition_of(Page)
    assert definition is not None
    old = [b'{"body":{"a":1},"draft":{"n":1}}', b'{"draft":{"$absent":true},"body":{"$absent":true,"b":2}}']
    events = tuple(Event(n, "state", data, 0, "", "", "") for n, data in enumerate(old, 1))
    instance = new_instance(definition)
    apply_events(definition, instance, events)
    assert instance.__dict__ == {"body": {"$absent": True, "b": 2}, "title": "untitled"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("number", "nan"),
        ("anything", "nan"),
        ("anything", "object"),
        ("numbers", "nested"),
        ("anything", "nested"),
        ("count", "huge"),
        ("count", "text"),
        ("numbers", "text"),
        ("number", "object"),
    ],
)
async def test_state_that_could_not_be_read_again_is_refused(world: World, name: str, kind: str) -> None:
    """INV-6: the turn fails, names the field, and the actor works on, now and after a restart."""
    host = await world.host(Loose)
    loose = host.client.actor(Loose, "l")
    with pytest.raises((UnserializableResult, ActorFailed), match=rf"Loose\.{name}"):
        await loose.set(name, kind)
    assert await loose.read() == [0.0, 0, [], None]
    await loose.set("count", "fine")
    await world.crash(host)
    assert await (await world.client(Loose)).actor(Loose, "l").read() == [0.0, 3, [], None]


# -- classes that change -----------------------------------------------------------------------------------------------


async def redeployed(world: World, before: type, work: Any, after: type) -> Host:
    """A host with the new class, on what the old one left."""
    host = await world.host(before)
    await work(host)
    await world.crash(host)
    return await world.host(after)


async def test_field_added_and_removed(world: World) -> None:
    """A new field starts with its default, a removed one is left out: neither needs an upcaster."""

    @actor(name="Doc")
    class Old:
        text: str = ""
        old: int = 0

        @method
        async def write(self, text: str) -> None:
            self.text, self.old = text, 7

    @actor(name="Doc")
    class New:
        text: str = ""
        tags: list[str] = field(default_factory=lambda: ["none"])

        @method
        async def tag(self, tag: str) -> list[str]:
            self.tags.append(tag)
            return [self.text, *self.tags]

    host = await redeployed(world, Old, lambda h: h.client.actor(Old, "d").write("hi"), New)
    assert await host.client.actor(New, "d").tag("x") == ["hi", "none", "x"]
    assert await host.client.state("Doc", "d") == (2, {"text": "hi", "tags": ["none", "x"]})


async def test_field_whose_type_changed_needs_an_upcaster(world: World) -> None:
    """Without one the actor cannot be loaded, and the error says what to do; nothing is lost."""

    @actor(name="Doc")
    class Old:
        price: str = ""

        @method
        async def write(self, price: str) -> None:
            self.price = price

    @actor(name="Doc")
    class Careless:
        price: int = 0

        @method
        async def read(self) -> int:
            return self.price

    @actor(name="Doc", schema=2, upcasters={1: lambda name, data: (name, {"price": int(data["price"][:-1])})})
    class Careful:
        price: int = 0

        @method
        async def read(self) -> int:
            self.price += 1
            return self.price

    host = await redeployed(world, Old, lambda h: h.client.actor(Old, "d").write("12€"), Careless)
    with pytest.raises(ActorFailed, match="add an upcaster"):
        await host.client.actor(Careless, "d").read()
    await world.crash(host)
    host = await world.host(Careful)
    assert await host.client.actor(Careful, "d").read() == 13
    await world.crash(host)
    host = await world.host(Careful)
    assert await host.client.actor(Careful, "d").read() == 14
    await world.crash(host)
    host = await world.host(Old)
    with pytest.raises(ActorFailed, match="deploy the newer class"):
        await host.client.actor(Old, "d").write("1€")


async def test_event_upcast_over_two_versions(world: World) -> None:
    """Each upcaster takes a fact one version further: renamed, reshaped, or dropped; snapshots too."""

    @actor(name="Log", snapshot_every=3)
    class V1:
        lines: list[str] = field(default_factory=list)

        @event
        def added(self, line: str) -> None:
            self.lines.append(line)

        @event
        def noted(self, what: str) -> None:
            pass

        @method
        async def add(self, line: str) -> None:
            self.noted("x")
            self.added(line)

    def to_2(name: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        if name == "noted":
            return None
        return ("written", {"text": data["line"]}) if name == "added" else (name, data)

    def to_3(name: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return (
            (name, {**data, "level": 1}) if name == "written" else (name, {"lines": [f"1:{x}" for x in data["lines"]]})
        )

    @actor(name="Log", schema=3, upcasters={1: to_2, 2: to_3})
    class V3:
        lines: list[str] = field(default_factory=list)

        @event
        def written(self, text: str, level: int) -> None:
            self.lines.append(f"{level}:{text}")

        @method
        async def write(self, text: str) -> list[str]:
            self.written(text, 2)
            return self.lines

    async def work(host: Host) -> None:
        for line in "abc":
            await host.client.actor(V1, "l").add(line)

    host = await redeployed(world, V1, work, V3)
    assert (await host.client.state("Log", "l", at_version=2) or (0, {}))[1] == {"lines": ["1:a"]}
    assert await host.client.actor(V3, "l").write("d") == ["1:a", "1:b", "1:c", "2:d"]
    await world.crash(host)
    host = await world.host(V3)
    assert await host.client.actor(V3, "l").write("e") == ["1:a", "1:b", "1:c", "2:d", "2:e"]


async def test_snapshot_that_cannot_be_upcast(world: World) -> None:
    """The error says what could not be read, and what to do, as for an event."""

    @actor(name="Log", snapshot_every=1)
    class Old:
        lines: int = 0

        @event
        def added(self) -> None:
            self.lines += 1

        @method
        async def add(self) -> None:
            self.added()

    @actor(name="Log", schema=2, upcasters={1: lambda name, data: (name, {"count": data["line"]})})
    class Careless:
        count: int = 0

        @method
        async def read(self) -> int:
            return self.count

    host = await redeployed(world, Old, lambda h: h.client.actor(Old, "l").add(), Careless)
    with pytest.raises(ActorFailed, match=r"snapshot at version 1: KeyError\('line'\); add an upcaster"):
        await host.client.actor(Careless, "l").read()
    with pytest.raises(InvalidState, match="snapshot at version 1"):
        await host.client.state("Log", "l")


async def test_message_to_an_actor_that_cannot_be_loaded_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A faulty deployment does not turn messages into dead letters at the first attempt."""

    @actor(name="Doc")
    class Old:
        price: str = ""

        @method
        async def write(self, price: str) -> None:
            self.price = price

    @actor(name="Doc")
    class Careless:
        price: int = 0

        @method
        async def write(self, price: str) -> None:
            self.price = int(price)

    @actor(name="Relay")
    class Relay:
        @method
        async def relay(self) -> None:
            context().send_raw("Doc", "d", "write", b'"5"')

    monkeypatch.setattr("actors.outbox._FIRST_RETRY_S", 0.05)
    host = await redeployed(world, Old, lambda h: h.client.actor(Old, "d").write("x"), Careless)
    await world.crash(host)
    host = await world.host(Careless, Relay)
    await host.client.actor(Relay, "r").relay()
    with pytest.raises(InvalidState):
        await host.client.state("Doc", "d")
    await until(lambda: any(d.attempts > 1 for d in host.outbox._in_flight.values()))
    assert await host.client.dead_letters() == []
    await world.crash(host)
    host = await world.host(Old, Relay)
    await until(lambda: any(c.stream == "Doc/d" and c.receipt for c in world.lever.commits))
    assert await host.client.state("Doc", "d") == (2, {"price": "5"})


@actor(snapshot_every=2)
class Holder:
    held: Any = None
    count: int = 0

    @event
    def counted(self) -> None:
        self.count += 1
        self.held = object()

    @method
    async def add(self) -> int:
        self.counted()
        return self.count


async def test_event_sourced_state_without_json_form_needs_no_snapshot(world: World) -> None:
    """It is the fold of its events: snapshots are left out, turns go on, a restart works."""
    host = await world.host(Holder)
    assert [await host.client.actor(Holder, "h").add() for _ in range(5)] == [1, 2, 3, 4, 5]
    await world.crash(host)
    assert await (await world.client(Holder)).actor(Holder, "h").add() == 6


# -- classes that cannot be actors -------------------------------------------------------------------------------------


def test_field_names_are_identifiers() -> None:
    """No field can be named like an entry of a record that is not a field's."""
    with pytest.raises(TypeError, match=r"cannot be named '\$absent'"):
        actor(type("Odd", (), {"__annotations__": {"$absent": int}}))


@pytest.mark.parametrize(
    ("annotation", "default"),
    [(dict[str, int], {"a": "x"}), (float, math.inf), (int, "zero"), (Annotated[int, Gt(0)], 0), (Any, object())],
)
@pytest.mark.parametrize("as_field", [False, True])
def test_defaults_that_could_not_be_read_again(annotation: Any, default: Any, as_field: bool) -> None:
    """A snapshot would hold them, and a turn that has failed would have to put them back."""
    given = field(default=default) if as_field and type(default).__hash__ is not None else default
    with pytest.raises(TypeError, match=r"Odd\.x cannot have this default"):
        actor(type("Odd", (), {"__annotations__": {"x": annotation}, "x": given}))


class Unfinished(BaseModel):
    later: NotYet | None = None  # type: ignore[name-defined]  # noqa: F821  # defined nowhere


def test_a_default_whose_model_is_finished_later_is_taken() -> None:
    """The module may define it further down."""
    made = actor(type("Early", (), {"__annotations__": {"x": list[Unfinished]}, "x": []}))
    definition = definition_of(made)
    assert definition is not None
    assert definition.fields[0].default == []


@pytest.mark.parametrize("name", ["", "user@login", "caf\udce9", "state", "snapshot", 5])
def test_event_names_that_could_not_be_read_again(name: Any) -> None:
    """Behind an @ comes the schema version, under two names upcasters are given something else."""
    with pytest.raises(TypeError, match="an event cannot be named"):
        event(name=name)(lambda self: None)


class Connected:
    def __init__(self) -> None:
        self._connected = True


async def test_what_a_class_inherits_may_be_made_in_on_activate(world: World) -> None:
    """Where there is an `on_activate`, `__init__` of a base is its affair. What `@dataclass` makes is nobody's, and the
    factories it keeps to itself are found."""

    @actor
    @dataclass
    class Inherits(Connected):
        names: list[str] = field(default_factory=list)
        count: int = field(default_factory=int)

        async def on_activate(self) -> None:
            Connected.__init__(self)

        @method
        async def add(self) -> bool:
            self.names.append("a")
            self.count += len(self.names)
            return self._connected

    client = await world.client(Inherits)
    assert await client.actor(Inherits, "i").add()
    assert await client.state("Inherits", "i") == (1, {"names": ["a"], "count": 1})


def test_mistakes_are_found_at_decoration() -> None:
    """The class is refused, and the message says where and why."""
    with pytest.raises(TypeError, match="cannot be called over the wire"):

        @actor
        class Varargs:
            @method
            def run(self, *args: int) -> None: ...

    with pytest.raises(TypeError, match="cannot have __slots__"):

        @actor
        class Slotted:
            __slots__ = ("x",)

    with pytest.raises(TypeError, match="cannot be a pydantic model"):

        @actor
        class Model(BaseModel):
            number: int = 0

    with pytest.raises(TypeError, match="cannot be a frozen dataclass"):

        @actor
        @dataclass(frozen=True)
        class Frozen:
            number: int = 0

    with pytest.raises(TypeError, match=r"so __init__ of .*Made would not be called.*begin in on_activate"):

        @actor
        class Made:
            def __init__(self, number: int) -> None: ...

    with pytest.raises(TypeError, match=r"so __init__ of .*Connected would not be called"):

        @actor
        class Inherited(Connected):
            number: int = 0

    with pytest.raises(TypeError, match="applied, not awaited"):

        @actor
        class AsyncEvent:
            @event
            async def happened(self) -> None: ...

    with pytest.raises(TypeError, match=r"no upcaster for schema version\(s\) \[2\]"):

        @actor(schema=3, upcasters={1: lambda n, d: (n, d)})
        class Gap:
            pass

    with pytest.raises(TypeError, match="no encoding for annotation"):

        @actor
        class Odd:
            thing: Wall

    with pytest.raises(TypeError, match=r"Sent\.size is written as 'length'"):

        @actor
        class Forgetful:
            sent: Sent

    for attribute in (receives, gives):
        with pytest.raises(TypeError, match=r"Sent\.size is written as 'length'"):
            actor(type("Forgetful", (), {"run": method(attribute)}))
    with pytest.raises(TypeError, match=r"Sent\.size is written as 'length'"):
        actor(type("Forgetful", (), {"run": event(receives)}))

    with pytest.raises(TypeError, match=r"upcasters \[1\] lead from no version before schema=1"):

        @actor(upcasters={1: lambda n, d: (n, d)})
        class Forgotten:
            pass

    with pytest.raises(TypeError, match=r"upcaster of version 1 is 'v1': write a function of \(name, data\)"):

        @actor(schema=2, upcasters={1: "v1"})  # type: ignore[dict-item]  # the mistake
        class Named:
            pass

    with pytest.raises(TypeError, match="size is both a field and a method"):

        @actor
        class Twice:
            size: int = 0

            @method  # type: ignore[no-redef]  # the mistake
            async def size(self) -> int:  # noqa: F811
                return 0

    with pytest.raises(TypeError, match="makes a class an actor type"):
        actor(lambda: None)  # type: ignore[call-overload]  # the mistake


@pytest.mark.parametrize("name", ["mailbox_limit", "max_depth", "snapshot_every", "schema"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_options_that_cannot_be(name: str, value: Any) -> None:
    """A limit under which no call could ever be taken, and the like, are refused at decoration."""
    with pytest.raises(TypeError, match=f"{name} is .*: write a whole number, 1 or more"):
        actor(**{name: value})


def test_timeouts_of_nothing_are_refused() -> None:
    """No turn that waits for anything could end."""
    with pytest.raises(TypeError, match="@actor: timeout must be longer than 0"):
        actor(timeout="0s")
    with pytest.raises(TypeError, match=r"Hasty\.run: timeout must be longer than 0"):

        @actor
        class Hasty:
            @method(timeout=0)
            async def run(self) -> None: ...


@pytest.mark.parametrize("is_async", [True, False])
def test_methods_that_are_generators_are_refused(is_async: bool) -> None:
    """They would fail at every call: what they give is no value."""

    async def later(self: Any) -> Any:
        yield 1

    def now(self: Any) -> Any:
        yield 1

    with pytest.raises(TypeError, match="a generator gives no one result"):
        actor(type("Stream", (), {"run": method(later if is_async else now)}))
    with pytest.raises(TypeError, match="it can be no event"):  # it would be recorded, and change nothing
        actor(type("Stream", (), {"ran": event(later if is_async else now)}))


@pytest.mark.parametrize("mark", [method, event])
@pytest.mark.parametrize("other", [classmethod, staticmethod, functools.cache, property, functools.partial])
def test_marks_on_what_is_no_plain_function_are_refused(mark: Any, other: Any) -> None:
    """It would be no method, or no event, and nobody would hear of it."""
    with pytest.raises(TypeError, match=f"^@{mark.__name__} is for plain functions of self, not for a "):
        mark(other(lambda self: None))


@pytest.mark.parametrize("mark", [method, event])
@pytest.mark.parametrize(
    "other",
    [classmethod, staticmethod, functools.cache, property, functools.cached_property, functools.partialmethod],
)
def test_plain_functions_that_are_made_something_else_are_refused(mark: Any, other: Any) -> None:
    """The same with the decorators in the other order, and in a class that inherits."""

    def run(self: Any) -> None: ...

    base = type("Base", (), {"run": other(mark(run))})
    for cls in (base, type("Odd", (base,), {})):
        with pytest.raises(TypeError, match=rf"^{cls.__name__}\.run: @{mark.__name__} is for plain functions of self"):
            actor(cls)


@pytest.mark.parametrize("hook", ["on_activate", "receive_reminder"])
def test_hooks_that_are_no_plain_functions_are_refused(hook: str) -> None:
    """They would never be called."""
    for other in (classmethod, property):
        odd = type("Odd", (), {hook: other(lambda self: None)})
        with pytest.raises(TypeError, match=rf"^Odd\.{hook} is for plain .* not for a {other.__name__}:"):
            actor(odd)


@pytest.mark.parametrize("option", ["reentrant", "read_only", "interleave"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_flags_are_true_or_false(option: str, value: Any) -> None:
    """The text "no" would be true."""
    decorator: Any = actor if option == "reentrant" else method
    with pytest.raises(TypeError, match=f"{option} is .*: write True or False"):
        decorator(**{option: value})


def test_upcasters_are_given_by_version() -> None:
    """A list of them says nothing of where each begins."""
    with pytest.raises(TypeError, match=r"upcasters is .*: write a dict by version, \{1: upcaster\}"):
        actor(schema=2, upcasters=[lambda name, data: (name, data)])  # type: ignore[call-overload]  # the mistake


@pytest.mark.parametrize(
    ("annotation", "default"),
    [(int, "a"), (list[int], {}), (bool, 2), (Annotated[int, Gt(0)], 0), (float, float("inf")), (Any, object())],
)
@pytest.mark.parametrize("mark", [method, event])
def test_defaults_of_parameters_that_do_not_fit_are_refused(mark: Any, annotation: Any, default: Any) -> None:
    """A call without the argument would be taken here, and refused where it comes over the wire."""

    def run(self: Any, x: Any = default) -> None: ...

    run.__annotations__["x"] = annotation
    with pytest.raises(TypeError, match=r"run\(x=…\) cannot have this default: "):
        actor(type("Odd", (), {"run": mark(run)}))


def test_defaults_of_parameters_that_fit_are_kept() -> None:
    """None fits everywhere; what can be read as the type is as good as the type; of a class that is not there yet
    nothing is known."""

    @actor
    class Fine:
        @method
        def run(
            self,
            a: int = None,  # type: ignore[assignment]  # noqa: RUF013  # as many write it
            b: float = 1,
            c: Unfinished = (),  # type: ignore[assignment]  # whatever it is
            d: tuple[int, ...] = (1, 2),
        ) -> list[Any]:
            return [a, b, c, d]

    definition = definition_of(Fine)
    assert definition is not None
    assert definition.methods["run"].signature.bind_json(b"") == (None, 1, (), (1, 2))


def test_annotation_that_cannot_be_resolved_is_explained() -> None:
    """Names under TYPE_CHECKING, or local ones, say what to do."""
    with pytest.raises(TypeError, match="import the type at module level"):

        @actor
        class Field:
            x: NotThere  # type: ignore[name-defined]  # noqa: F821  # the mistake

    with pytest.raises(TypeError, match="import the type at module level"):

        @actor
        class Argument:
            @method
            def run(self, x: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # the mistake


def test_two_types_of_one_name_are_refused(world: World) -> None:
    """A host cannot tell them apart."""

    @actor(name="Meter")
    class Other:
        pass

    with pytest.raises(ValueError, match="two actor types are named 'Meter'"):
        Host(world.journal, [made for made in map(definition_of, (Meter, Other)) if made is not None])


def test_code_that_can_suspend_is_recognised() -> None:
    """A method runs without a task only when it holds nothing that could suspend, on any version of Python."""

    async def plain(x: int) -> int:
        return x + 1

    async def awaits(x: Any) -> Any:
        return await x

    async def loops(x: Any) -> None:
        async for _ in x:
            pass

    async def enters(x: Any) -> None:
        async with x:
            pass

    async def comprehends(x: Any) -> list[Any]:
        return [y async for y in x]

    async def nested(x: Any) -> Any:
        async def inner() -> Any:
            return await x

        return inner

    assert not _can_suspend(plain)
    assert not _can_suspend(nested)
    for function in (awaits, loops, enters, comprehends):
        assert _can_suspend(function), [i.opname for i in dis.get_instructions(function)]
