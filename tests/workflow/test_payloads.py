"""Large values: beside the history, readable while anything refers to them (PAY-1), gone when nothing does (PAY-2)."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import weakref
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
import pytest

from actors import ActorFailed, Host
from actors.clock import SystemClock
from statestores.errors import StoreUnavailable
from statestores.memory import MemoryStore
from statestores.model import partition_of
from statestores.redis import RedisStore
from statestores.sqlite import SqliteStore
from tests.servers import shared_redis
from workflow import (
    ActivityFailed,
    Engine,
    InstanceNotFound,
    RetryPolicy,
    WorkflowFailed,
    WorkflowStalled,
    WorkflowTerminated,
    activity,
    wait_event,
    workflow,
)
from workflow.advance import Advance
from workflow.errors import PayloadLost
from workflow.history import Start
from workflow.payloads import GRACE_MS, Stored, reference, write
from workflow.program import Program, Wanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from statestores.errors import CommitRefused
    from statestores.model import TurnCommit
    from statestores.store import Journal, Payloads, StateStore, StoredAt
    from workflow import Activity, Workflow, WorkflowClient

LIMIT = 4096
MIB = 1 << 20

ran: list[str] = []


def text_of(size: int, seed: str = "") -> str:
    """Of so many characters, and different for each seed."""
    line = hashlib.sha256(f"{seed}{size}".encode()).hexdigest()
    return (line * (size // 64 + 1))[:size]


class MovedClock(SystemClock):
    """The system's, and however much later the test says."""

    later_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.later_ms


class WatchedPayloads:
    """A payloads face that tells of what it has stored, and fails when told to. Everything else is the store's."""

    def __init__(self, face: Payloads) -> None:
        self._face = face
        self.after_put: Callable[[str, str], None] = lambda stream, id: None
        self.before_get: Callable[[], Awaitable[None]] | None = None
        self.gets = 0
        self.failures = 0

    async def put(self, stream: str, id: str, number: int, chunk: bytes | bytearray | memoryview) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away for a moment")
        await self._face.put(stream, id, number, chunk)
        self.after_put(stream, id)

    async def get(self, stream: str, id: str, number: int) -> bytes | None:
        self.gets += 1
        if (before := self.before_get) is not None:
            self.before_get = None
            await before()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away for a moment")
        return await self._face.get(stream, id, number)

    async def stored(self, partition: int, after: tuple[str, str] | None = None, limit: int = 100) -> list[StoredAt]:
        return await self._face.stored(partition, after, limit)

    async def remove(self, stream: str, id: str) -> None:
        await self._face.remove(stream, id)


class World:
    """Hosts on one store, one after the other: of one name, so that none waits for the lease of the one before it."""

    def __init__(self, store: StateStore, *, evict_always: bool) -> None:
        self.store = store
        self.payloads = WatchedPayloads(store.payloads)
        self.clock = MovedClock()
        self.host: Host | None = None
        self.engine: Engine | None = None
        self._evict_always = evict_always
        self.client: WorkflowClient

    async def start(
        self,
        workflows: list[Workflow[Any, Any]],
        activities: list[Activity[Any, Any]] | None = None,
        limit: int = LIMIT,
    ) -> WorkflowClient:
        self.engine = Engine(
            workflows,
            activities or (),
            clock=self.clock,
            evict_always=self._evict_always,
            payloads=self.payloads,
            large_value_bytes=limit,
        )
        host = Host(
            self.store.journal,
            self.engine.types,
            host_id="one",
            clock=self.clock,
            workers=self.engine.workers,
            lease_s=0.2,
        )
        self.client = self.engine.attach(host.client)
        await host.start()
        self.host = host
        return self.client

    async def stop(self) -> None:
        host, self.host = self.host, None
        if host is not None:
            await host.stop(5)
        if self.engine is not None:
            self.engine.close()

    def crash(self) -> None:
        """As kill -9 would."""
        assert self.host is not None
        self.host.abort()
        self.host = None

    async def stored(self, instance_id: str) -> list[str]:
        """Ids of what is stored for an instance."""
        stream = f"mecha.workflow/{instance_id}"
        partition = partition_of(stream, self.store.journal.partitions)
        return [at.id for at in await self.store.payloads.stored(partition, None, 1000) if at.stream == stream]

    async def lose_all(self, instance_id: str) -> None:
        """Of the values of an instance: a store that has lost what it had acknowledged."""
        for id_ in await self.stored(instance_id):
            await self.store.payloads.remove(f"mecha.workflow/{instance_id}", id_)

    async def recorded(self, instance_id: str) -> bytes:
        return b"\n".join(event.data for event in await self.store.journal.events(f"mecha.workflow/{instance_id}"))

    async def check(self, instance_id: str) -> None:
        """PAY-1: what is referred to is there, and whole."""
        known: dict[str, str] = {}
        for event in await self.store.journal.events(f"mecha.workflow/{instance_id}"):
            known |= orjson.loads(event.data).get("p", {})
        there = await self.stored(instance_id)
        assert set(known.values()) <= set(there)

    async def sweep_later(self) -> int:
        """All that is stored, when the grace of whatever is stored now is over."""
        assert self.engine is not None
        assert self.engine.keeper is not None
        self.clock.later_ms += GRACE_MS + 1000
        return await self.engine.keeper.sweep(10_000)


@pytest.fixture(params=["memory", "memory-evicted", "sqlite", "redis"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kind, _, mode = str(request.param).partition("-")
    store: StateStore
    if kind == "memory":
        store = MemoryStore(partitions=4)
    elif kind == "sqlite":
        store = SqliteStore(tmp_path / "store.db", partitions=4)
    else:
        store = RedisStore.from_url(f"{shared_redis().url}?namespace={uuid4().hex}&partitions=4")
    ran.clear()
    async with AsyncExitStack() as stack:
        await store.open()
        stack.push_async_callback(store.close)
        made = World(store, evict_always=mode == "evicted")
        stack.push_async_callback(made.stop)
        yield made


async def eventually(holds: Callable[[], Awaitable[bool]], limit_s: float = 10) -> None:
    """Ask until it is so. Used where the thing waited for has no one to tell us."""
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@activity
async def make(size: int, seed: str = "") -> str:
    ran.append("make")
    return text_of(size, seed)


@activity
async def make_bytes(size: int) -> bytes:
    return text_of(size).encode()


@activity
def measure_bytes(data: bytes) -> int:
    return len(data)


@activity
async def measure(text: str) -> tuple[int, str]:
    ran.append("measure")
    return len(text), text[:8]


@workflow
async def there_and_back(size: int) -> tuple[int, str]:
    return await measure(await make(size))


@workflow
async def in_bytes(size: int) -> int:
    return await measure_bytes(await make_bytes(size))


@workflow
async def echo(text: str) -> str:
    return text


@workflow
async def passes_on(text: str) -> str:
    return text + await wait_event("go", str)


@workflow
async def remembers(size: int) -> list[Any]:
    text = await make(size)
    event = await wait_event("go")
    return [len(text), text[:8], len(event)]


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, LIMIT - 3, LIMIT - 2, LIMIT - 1, LIMIT, 100_000, 20 * MIB])
async def test_result_and_argument_of_any_size(world: World, size: int) -> None:
    """Around the limit and far beyond it the code gets what the activity gave, and the activity what the code gave."""
    client = await world.start([there_and_back])
    instance = await client.start(there_and_back, size)
    assert tuple(await client.wait(instance, 60)) == (size, text_of(size)[:8])
    # The result is its JSON, two quotes longer than the text; the arguments have brackets as well.
    assert len(await world.stored(instance)) == (size + 2 > LIMIT) + (size + 4 > LIMIT)
    assert len(await world.recorded(instance)) < 4 * LIMIT
    await world.check(instance)


async def test_bytes_of_any_size(world: World) -> None:
    """Bytes are base64 in JSON, however many."""
    client = await world.start([in_bytes])
    for size in (10, LIMIT * 3 // 4, 9 * MIB):
        assert await client.wait(await client.start(in_bytes, size), 60) == size


async def test_input_output_and_events(world: World) -> None:
    """They are stored beside the history like results, and shown as what they are."""
    client = await world.start([echo, remembers])
    text = text_of(9 * MIB)
    handle = await client.handle(echo, text)
    assert await handle.result(60) == text
    state = await handle.state()
    assert (state.input, state.output, state.status) == (text, text, "COMPLETED")
    assert len(await world.recorded(handle.instance_id)) < 2000
    assert len(await world.stored(handle.instance_id)) == 1, "input and output are the same value"
    instance = await client.start(remembers, 100_000)
    await client.raise_event(instance, "GO", text)
    assert await client.wait(instance, 60) == [100_000, text_of(100_000)[:8], len(text)]
    assert len(await world.recorded(instance)) < 3000


async def test_delayed_start_with_large_input(world: World) -> None:
    """The input is read when the code begins."""
    client = await world.start([echo])
    text = text_of(LIMIT * 2)
    assert await client.wait(await client.start(echo, text, delay=0.05), 10) == text


# -- replay ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_then", [LIMIT, 64, 1 << 40])
async def test_replay_after_a_restart(world: World, limit_then: int) -> None:
    """A program that lost its memory gets the recorded value again, whatever the limit is by then."""
    client = await world.start([remembers])
    instance = await client.start(remembers, 100_000)
    await eventually(lambda: has_recorded(world, instance, '"done"'))
    world.crash()
    client = await world.start([remembers], limit=limit_then)
    await client.raise_event(instance, "go", "xyz")
    assert await client.wait(instance, 10) == [100_000, text_of(100_000)[:8], 3]
    assert ran == ["make"]
    await world.check(instance)


async def test_only_turns_that_read_wait_for_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that has had a large value, and is live, takes small inputs as any other does."""
    read: list[Any] = []
    reading = Advance._run_reading

    async def watched(self: Advance, arrived: Any) -> None:
        read.extend(item[0] for item in self._inputs)
        await reading(self, arrived)

    monkeypatch.setattr(Advance, "_run_reading", watched)

    @workflow
    async def collects(size: int) -> list[int]:
        found = [len(await make(size))]
        while event := await wait_event("go"):
            found.append(len(event) + (await measure("a"))[0])
        return found

    client = await world.start([collects], [make, measure])
    instance = await client.start(collects, 100_000)
    await eventually(lambda: has_recorded(world, instance, '"done"'))
    read.clear()
    for payload in ("xyz", text_of(LIMIT * 2), "x"):
        await client.raise_event(instance, "go", payload)
    await client.pause(instance)
    await client.raise_event(instance, "go", text_of(LIMIT * 2))
    await client.resume(instance)
    await client.raise_event(instance, "go", "")
    assert await client.wait(instance, 10) == [100_000, 4, LIMIT * 2 + 1, 2, LIMIT * 2 + 1]
    if not world._evict_always:
        assert read == ["event", "event", "resumed"]
    await world.check(instance)


async def has_recorded(world: World, instance: str, what: str) -> bool:
    return any(
        what in orjson.loads(event.data)["i"]
        for event in await world.store.journal.events(f"mecha.workflow/{instance}")
    )


async def test_paused_instance_reads_when_it_resumes(world: World) -> None:
    """Values that came while it was paused are fed when it goes on, in another process, too."""
    client = await world.start([remembers, there_and_back])
    instance = await client.start(remembers, 5)
    await eventually(lambda: has_recorded(world, instance, '"done"'))
    await client.pause(instance)
    await client.raise_event(instance, "go", text_of(50_000))
    world.crash()
    client = await world.start([remembers, there_and_back])
    await client.resume(instance)
    assert await client.wait(instance, 10) == [5, text_of(5)[:8], 50_000]


async def test_changed_large_argument_stalls(world: World) -> None:
    """INV-10 sees into what is only referred to: another argument is another command."""

    def version(seed: str) -> Workflow[Any, Any]:
        @workflow(name="changing")
        async def changing(size: int) -> Any:
            await measure(text_of(size, seed))
            return await wait_event("go")

        return changing

    client = await world.start([version("a")], [measure])
    instance = await client.start("changing", 50_000)
    await eventually(lambda: has_recorded(world, instance, '"done"'))
    world.crash()
    client = await world.start([version("b")], [measure])
    await client.raise_event(instance, "go", 1)
    with pytest.raises(WorkflowStalled, match="no longer does what the history says"):
        await client.wait(instance, 10)
    world.crash()
    client = await world.start([version("a")], [measure])
    await client.resume(instance)
    assert await client.wait(instance, 10) == 1


async def test_retry_with_large_arguments(world: World) -> None:
    """Each attempt gets them; they are stored once."""

    @activity(retry=RetryPolicy(max_attempts=3, initial_interval=0.01))
    async def picky(text: str) -> int:
        ran.append("picky")
        if len(ran) < 3:
            raise ValueError("not yet")
        return len(text)

    @workflow
    async def patient(size: int) -> int:
        return await picky(text_of(size))

    client = await world.start([patient], [picky])
    instance = await client.start(patient, 50_000)
    assert await client.wait(instance, 10) == 50_000
    assert ran == ["picky"] * 3
    assert len(await world.stored(instance)) == 1


# -- what was stored and not recorded ----------------------------------------------------------------------------------


async def test_crash_between_storing_and_commit(world: World) -> None:
    """PAY-2: the value of a result that was never recorded goes; the one that was recorded stays."""
    client = await world.start([there_and_back])
    instance = str(uuid4())
    crashed: list[str] = []

    def crash(stream: str, id: str) -> None:
        if not crashed:
            crashed.append(id)
            world.crash()

    world.payloads.after_put = crash
    await client.start(there_and_back, 100_000, instance_id=instance)
    await eventually(lambda: truth(bool(crashed)))
    client = await world.start([there_and_back])
    assert tuple(await client.wait(instance, 10)) == (100_000, text_of(100_000)[:8])
    assert crashed[0] in await world.stored(instance)
    assert ran == ["make", "make", "measure"]
    assert await world.sweep_later() == 1
    there = await world.stored(instance)
    assert crashed[0] not in there
    assert len(there) == 2
    await world.check(instance)
    assert tuple(await client.wait(instance, 10)) == (100_000, text_of(100_000)[:8])


async def truth(value: bool) -> bool:
    return value


async def test_half_a_value_goes(world: World) -> None:
    """PAY-2: a crash between two chunks leaves something that is found."""
    stream = "mecha.workflow/gone"
    await world.store.payloads.put(stream, "0.5.abc", 1, b"x")
    await world.start([echo])
    assert await world.sweep_later() == 1
    assert await world.stored("gone") == []


async def test_purge_removes_values(world: World) -> None:
    """An instance leaves nothing behind."""
    client = await world.start([there_and_back])
    instance = await client.start(there_and_back, 100_000)
    await client.wait(instance, 10)
    assert len(await world.stored(instance)) == 2
    await client.purge(instance)
    await eventually(lambda: has_none(world, instance))


async def has_none(world: World, instance: str) -> bool:
    return not await world.stored(instance)


async def test_crash_between_purge_and_removal(world: World) -> None:
    """PAY-2: values whose history has gone are swept, those of the next instance of that id are not."""
    client = await world.start([there_and_back, echo])
    instance = await client.start(there_and_back, 100_000, instance_id="again")
    await client.wait(instance, 10)
    left = await world.stored(instance)
    await world.store.payloads.put("mecha.workflow/again", "1.7.crashed-before-it-went", 0, b"x")
    await client.start(echo, text_of(20_000), instance_id="again")
    await client.wait(instance, 10)
    await world.sweep_later()
    assert len(await world.stored(instance)) == 1
    assert not set(left) & set(await world.stored(instance))
    assert await client.wait(instance, 10) == text_of(20_000)


async def test_values_in_flight_are_left_alone(world: World) -> None:
    """PAY-1: however long it takes from storing to recording, no sweep comes in between."""
    client = await world.start([there_and_back])
    assert world.engine is not None
    keeper = world.engine.keeper
    assert keeper is not None
    stored = await keeper.keep("mecha.workflow/x", b"y" * 10_000)
    assert await world.sweep_later() == 0
    assert await world.stored("x") == [stored.id]
    keeper.settled(stored.id)
    assert await world.sweep_later() == 1
    assert await world.stored("x") == []
    assert client is not None


async def test_a_sweep_lets_go_of_turns_that_are_over(world: World) -> None:
    """A turn and its instance are not kept in memory by a value of theirs for as long as the value is young."""

    class Turn:
        def is_over(self) -> bool:
            return True

    await world.start([echo])
    assert world.engine is not None
    assert world.engine.keeper is not None
    turn = Turn()
    await world.engine.keeper.keep("mecha.workflow/x", b"y" * 10_000, turn.is_over)
    held = weakref.ref(turn)
    del turn
    assert held() is not None
    assert await world.engine.keeper.sweep() == 0
    gc.collect()
    assert held() is None


async def test_deposed_host_sweeps_nothing_of_its_successor(world: World) -> None:
    """PAY-1: whoever does not know that it has lost the partition leaves alone what is of a later epoch."""
    await world.start([echo])
    stream = "mecha.workflow/x"
    assert world.host is not None
    epoch = world.host.client.epoch(stream)
    assert epoch > 0
    await world.store.payloads.put(stream, f"{epoch + 1}.5.abc", 0, b"x")
    assert await world.sweep_later() == 0
    assert await world.stored("x") == [f"{epoch + 1}.5.abc"]


async def test_sweeps_are_bounded_and_come_round(world: World) -> None:
    """PAY-2: each looks at so many values at most, and goes on where the last one stopped."""
    await world.start([echo])
    assert world.engine is not None
    assert world.engine.keeper is not None
    for number in range(20):
        await world.store.payloads.put(f"mecha.workflow/{number}", f"0.{number}.abc", 0, b"x")
    removed = [await world.engine.keeper.sweep(6) for _ in range(5)]
    assert max(removed) <= 6
    assert sum(removed) == 20


# -- the rule of epochs ------------------------------------------------------------------------------------------------


async def test_value_of_another_epoch_is_stored_again(world: World) -> None:
    """A host that does not have the partition stores what it gives; the owner records an id of its own epoch only."""
    client = await world.start([remembers])
    instance = await client.start(remembers, 5)
    stream = f"mecha.workflow/{instance}"
    foreign = await write(world.store.payloads, stream, "0.5.abc", orjson.dumps(text_of(30_000)))
    assert await client._ask(instance, "raise_event", "go", str(foreign), True) == ""
    assert await client.wait(instance, 10) == [5, text_of(5)[:8], 30_000]
    assert world.host is not None
    facts = [orjson.loads(event.data) for event in await world.store.journal.events(stream)]
    recorded = [id_ for fact in facts for id_ in fact.get("p", {}).values()]
    assert [id_.partition(".")[0] for id_ in recorded] == [str(world.host.client.epoch(stream))]
    await world.sweep_later()
    await world.check(instance)
    assert foreign.id not in await world.stored(instance)


async def test_value_that_is_gone_is_not_recorded(world: World) -> None:
    """PAY-1: one of another epoch that was swept before it came is refused, and the history is as it was."""
    client = await world.start([remembers])
    instance = await client.start(remembers, 5)
    await eventually(lambda: has_recorded(world, instance, '"done"'))
    lost = Stored("0" * 64, 50_000, "0.5.abc")
    with pytest.raises(ActorFailed, match="is not in the store"):
        await client._ask(instance, "raise_event", "go", str(lost), True)
    await client.raise_event(instance, "go", "ab")
    assert await client.wait(instance, 10) == [5, text_of(5)[:8], 2]


# -- stores that fail --------------------------------------------------------------------------------------------------


async def test_store_that_is_away_fails_no_activity(world: World) -> None:
    """The result is stored when the store is back; the activity ran once."""
    client = await world.start([there_and_back])
    world.payloads.failures = 2
    instance = await client.start(there_and_back, 100_000)
    assert tuple(await client.wait(instance, 20)) == (100_000, text_of(100_000)[:8])
    assert ran == ["make", "measure"]


async def test_damaged_value_stalls_the_instance(world: World) -> None:
    """A store that lost what it had acknowledged: the instance says so, and goes on when it is back."""
    client = await world.start([remembers])
    instance = await client.start(remembers, 100_000)
    await eventually(lambda: has_recorded(world, instance, '"done"'))
    (id_,) = await world.stored(instance)
    stream = f"mecha.workflow/{instance}"
    chunk = await world.store.payloads.get(stream, id_, 0)
    assert chunk is not None
    world.crash()
    await world.store.payloads.put(stream, id_, 0, b"?" + chunk[1:])
    client = await world.start([remembers])
    await client.raise_event(instance, "go", "xyz")
    with pytest.raises(WorkflowStalled, match="is not what was stored"):
        await client.wait(instance, 10)
    await world.store.payloads.put(stream, id_, 0, chunk)
    await client.resume(instance)
    assert await client.wait(instance, 10) == [100_000, text_of(100_000)[:8], 3]


async def test_instance_stalled_by_a_lost_value_can_be_seen_and_ended(world: World) -> None:
    """Whoever is to mend it sees what there is, and the id can be used again."""
    client = await world.start([passes_on])
    text = text_of(LIMIT * 2)
    await client.start(passes_on, text, instance_id="one")
    world.crash()
    await world.lose_all("one")
    client = await world.start([passes_on])
    await client.raise_event("one", "go", "!")
    with pytest.raises(WorkflowStalled, match="is not in the store"):
        await client.wait("one", 10)
    for state in (await client.get("one"), await client.wait_state("one", 10)):
        assert (state.status, state.name, state.input) == ("STALLED", "passes_on", None)
        assert state.failure is not None
        assert state.failure.type == "PayloadLost"
    await client.terminate("one", "given up")
    with pytest.raises(WorkflowTerminated) as ended:
        await client.wait("one", 10)
    assert ended.value.output == "given up"
    await client.start(passes_on, text, instance_id="one")
    await client.raise_event("one", "go", "!")
    assert await client.wait("one", 10) == text + "!"


async def test_result_that_is_lost(world: World) -> None:
    """It is no result, and no other instance is kept from its id by it."""
    client = await world.start([echo])
    await client.start(echo, text_of(LIMIT * 2), instance_id="one")
    await client.wait("one", 10)
    await world.lose_all("one")
    with pytest.raises(PayloadLost, match="is not in the store"):
        await client.wait("one", 10)
    state = await client.get("one")
    assert (state.status, state.input, state.output) == ("COMPLETED", None, None)
    await client.start(echo, "b", instance_id="one")
    assert await client.wait("one", 10) == "b"


async def test_only_what_is_shown_is_read(world: World) -> None:
    """A large input is not read to say that its instance has failed, nor to use its id again."""

    @workflow
    async def refuses(text: str) -> None:
        raise ValueError(len(text))

    client = await world.start([refuses])
    state = await (await client.handle(refuses, text_of(LIMIT * 2), instance_id="one")).state()
    before = world.payloads.gets
    assert (await client.wait_state("one", 10)).input == state.input == text_of(LIMIT * 2)
    assert world.payloads.gets > before, "reads are counted"
    before = world.payloads.gets
    with pytest.raises(WorkflowFailed):
        await client.wait("one", 10)
    await client.start(refuses, "", instance_id="one")
    assert world.payloads.gets == before


async def test_values_that_went_with_their_instance(world: World) -> None:
    """Who looks meanwhile is told so, and sees nothing as lost that is only over."""
    client = await world.start([echo])
    for again, told in ((False, InstanceNotFound), (True, PayloadLost)):
        await client.start(echo, text_of(LIMIT * 2), instance_id="one")
        await client.wait("one", 10)

        async def purge(again: bool = again) -> None:
            await client.purge("one")
            await eventually(lambda: has_none(world, "one"))
            if again:
                await client.start(echo, "b", instance_id="one")

        world.payloads.before_get = purge
        with pytest.raises(told):
            await client.get("one")


async def test_order_that_outlives_its_workflow_keeps_its_arguments(world: World) -> None:
    """PAY-1: a message that refers to a value counts like a record, although the instance was purged."""
    gate = asyncio.Event()

    @activity
    async def slow(text: str) -> int:
        ran.append(f"slow {len(text)}")
        await gate.wait()
        return len(text)

    @workflow
    async def leaves(size: int) -> str:
        task = asyncio.create_task(slow(text_of(size)))
        await make(1)
        assert not task.done()
        return "left"

    client = await world.start([leaves], [slow])
    instance = await client.start(leaves, 50_000)
    assert await client.wait(instance, 10) == "left"
    await eventually(lambda: truth("slow 50000" in ran))
    await client.purge(instance)
    world.crash()
    ran.clear()
    await world.start([leaves], [slow])
    await world.sweep_later()
    assert len(await world.stored(instance)) == 1
    await eventually(lambda: truth(ran == ["slow 50000"]))
    gate.set()

    async def swept() -> bool:
        await world.sweep_later()
        return await has_none(world, instance)

    await eventually(swept)


async def test_result_that_does_not_fit_its_annotation(world: World) -> None:
    """Is the step's failure, however large it is."""

    @activity
    async def wrong(size: int) -> int:
        return text_of(size)  # type: ignore[return-value]  # the mistake

    @workflow
    async def trusting(size: int) -> str:
        try:
            await wrong(size)
        except ActivityFailed as error:
            return error.error_type
        return ""

    client = await world.start([trusting], [wrong])
    assert await client.wait(await client.start(trusting, 50_000), 10) == "CodecError"


class MortalJournal:
    """A journal, and what tells of each commit, before and after. Everything else is the journal's."""

    def __init__(self, journal: Journal, step: Callable[[], None]) -> None:
        self._journal = journal
        self._step = step

    async def commit(self, turns: Sequence[TurnCommit]) -> list[CommitRefused | None]:
        self._step()
        answers = await self._journal.commit(turns)
        self._step()
        return answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


@workflow
async def whole_life(size: int) -> str:
    """Every kind of large value."""
    text = await make(size, "a")
    await measure(text + "b")
    event = await wait_event("go")
    await measure(event)
    return f"{text}c"


@pytest.mark.parametrize("evict", [False, True])
async def test_crash_at_every_step(evict: bool) -> None:
    """PAY-1, PAY-2: wherever a host dies, after any chunk or around any commit, the instance goes on to its end,
    reads what it refers to, and nothing is left but that; when it is purged, nothing."""
    died = 0
    while True:
        store = MemoryStore(partitions=1)
        world = World(store, evict_always=evict)
        left = died
        crashed = asyncio.Event()

        def step(world: World = world, crashed: asyncio.Event = crashed) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                world.crash()
                crashed.set()

        world.payloads.after_put = lambda stream, id, step=step: step()  # type: ignore[misc]  # mypy sees no default there
        store.journal = MortalJournal(store.journal, step)  # type: ignore[assignment]  # passes everything on
        living = asyncio.create_task(live(await world.start([whole_life])))
        death = asyncio.create_task(crashed.wait())
        await asyncio.wait({living, death}, return_when=asyncio.FIRST_COMPLETED)
        for task in (living, death):
            task.cancel()
        await asyncio.gather(living, death, return_exceptions=True)
        if crashed.is_set():
            await live(await world.start([whole_life]))
        else:
            living.result()
        left += 1 << 40  # from here on it lives
        await world.sweep_later()
        await world.check("one")
        assert len(await world.stored("one")) == len(set(await referred(world, "one"))) == 5, f"died at step {died}"
        assert world.engine is not None
        assert world.engine.keeper is not None
        client = world.client
        await client.purge("one")
        await world.sweep_later()
        assert await world.stored("one") == [], f"died at step {died}"
        await world.stop()
        if not crashed.is_set():
            break
        died += 1
    assert died > 10, "the steps are no longer counted"


async def live(client: WorkflowClient) -> None:
    """Start it if it is not there, tell it once, wait for its end. May be done again."""
    await client.start(whole_life, 10_000, instance_id="one", idempotency_key="one")
    if (await client.get("one")).status == "RUNNING":
        await client.raise_event("one", "go", text_of(20_000, "event"))
    assert await client.wait("one", 10) == text_of(10_000, "a") + "c"


async def referred(world: World, instance: str) -> list[str]:
    facts = [orjson.loads(event.data) for event in await world.store.journal.events(f"mecha.workflow/{instance}")]
    return [id_ for fact in facts for id_ in fact.get("p", {}).values()]


@pytest.mark.slow
async def test_a_gigabyte(world: World) -> None:
    """There is no size at which it stops working."""
    size = 1 << 30
    client = await world.start([there_and_back])
    instance = await client.start(there_and_back, size)
    assert tuple(await client.wait(instance, 1200)) == (size, text_of(size)[:8])
    assert len(await world.recorded(instance)) < 4 * LIMIT
    await world.check(instance)
    await client.purge(instance)
    await eventually(lambda: has_none(world, instance), 600)


class Watched(bytearray):
    """Of which it can be told whether somebody has it still."""


@activity
async def lines() -> str:
    return ""


@workflow
async def counting() -> int:
    count = 0
    for _ in range(3):
        count += len(await lines())
    await wait_event("go on")
    return count


def test_what_the_code_has_seen_is_let_go_of() -> None:
    """A live program does not hold the JSON of large results it was given."""
    program = Program(counting, "i")
    commands = program.apply(1, [Start("i", "e", "counting", None, None, "", LIMIT).to_input()])
    given = []
    for _ in range(3):
        data = Watched(orjson.dumps(text_of(2 * LIMIT)))
        given.append(weakref.ref(data))
        digest, size = hashlib.sha256(data).hexdigest(), len(data)
        program.supply(Wanted(reference(digest, size), None), data)
        del data
        commands = program.apply(1, [("done", commands[0][1], None, reference(digest, size))])
    assert [held() for held in given] == [None, None, None]
    program.close()


@pytest.mark.parametrize("begun", [True, False], ids=["parked", "with the recovery"])
def test_a_large_input_that_was_parked_is_wanted(begun: bool) -> None:
    """A delayed start whose code was not there is recorded unapplied; when the code is there, so is its input."""
    data = orjson.dumps(text_of(2 * LIMIT))
    refers = reference(hashlib.sha256(data).hexdigest(), len(data))
    started = Start("i", "e", "echo", None, 100, "", LIMIT, refers).to_input()
    program = Program(echo, "i")
    assert program.apply(1, [("stalled", "UnknownWorkflow", "no workflow named 'echo'"), started]) == []
    if begun:
        assert program.apply(100, [("begun",)]) == []
    inputs: list[Any] = [("recovered",)] if begun else [("recovered",), ("begun",)]
    (wanted,) = program.wanted(inputs)
    assert wanted.reference == refers
    program.supply(wanted, data)
    ((kind, *_),) = program.apply(101, inputs)
    assert kind == "completed"
    program.close()
