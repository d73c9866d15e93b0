"""A Redis store and its server in trouble: restarts, lost answers, missing rights, full memory, other formats."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import pytest
from redis import asyncio as aioredis
from redis import exceptions

from statestores import redis as redis_module
from statestores import redis_journal, redis_keys
from statestores.errors import (
    ComponentError,
    ETagMismatch,
    FormatError,
    InvalidRequest,
    StaleEpoch,
    StoreUnavailable,
)
from statestores.groupcommit import GroupCommit
from statestores.model import (
    FORMAT_VERSION,
    IndexEntry,
    IndexQuery,
    NewEvent,
    OutboxMessage,
    Receipt,
    Reminder,
    TurnCommit,
    partition_of,
)
from statestores.redis import RedisStore
from statestores.redis_link import RedisLink
from statestores.redis_settings import RedisSettings, settings_from_url
from statestores.store import DeleteKey, KeyQuery, SetKey
from tests.servers import CuttingProxy, RedisServer, free_port, shared_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from statestores.groupcommit import Outcome
    from statestores.redis_link import Argument, Call

PARTITIONS = 4
T = TypeVar("T")


def _store(port: int | None = None, namespace: str | None = None, **settings: Any) -> RedisStore:
    base: dict[str, Any] = {
        "retry_base_s": 0.005,
        "retry_cap_s": 0.02,
        "namespace": namespace or uuid4().hex,
        "partitions": PARTITIONS,
    }
    hosts = (("127.0.0.1", port or shared_redis().port),)
    return RedisStore(RedisSettings(**{"hosts": hosts, **base, **settings}))


def _turn(stream: str, number: int, **parts: Any) -> TurnCommit:
    events = (NewEvent("added", b"\x00\xff" * 10),)
    turn = TurnCommit(partition_of(stream, PARTITIONS), 1, stream, f"{stream}-{number}", 1_000, number, events=events)
    return turn._replace(**parts)


async def _own_all(store: RedisStore) -> None:
    """Of epoch 1, which the turns of this file carry: the fence is put back to it."""
    await store.journal.acquire(range(PARTITIONS), "host", 0, 60_000)
    for keys in store.journal._keys:
        await store._link.one(("HSET", keys.meta, "epoch", 1))


@pytest.fixture
async def admin() -> AsyncIterator[aioredis.Redis]:
    async with aioredis.Redis(port=shared_redis().port) as client:
        yield client


@pytest.fixture
async def store() -> AsyncIterator[RedisStore]:
    store = _store()
    await store.open()
    await _own_all(store)
    yield store
    await store.close()


# ---- format ----


async def test_a_query_reads_a_bounded_number_of_bytes_at_once(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are read in parts: of many small ones, or of one that is larger than a part; keys that have gone meanwhile
    and values of no bytes are passed over."""
    monkeypatch.setattr(redis_keys, "_BYTES_AT_ONCE", 100)
    sizes = [1, 1, 300, 40, 40, 40, 0, 300, 300, 1]
    values = [b"%d" % 10 ** (size - 1) if size else b"" for size in sizes]
    await store.keys.apply([SetKey(f"k{n}", value) for n, value in enumerate(values)], 0)
    one, lengths = store.keys._link.one, []

    async def noted(call: Any, **options: Any) -> Any:
        answer = await one(call, **options)
        if call[0] == "EVALSHA":
            lengths.append([len(value or b"") for value in answer])
        return answer

    monkeypatch.setattr(store.keys._link, "one", noted)
    found, _ = await store.keys.query(KeyQuery({}), 0)
    assert [item.value for item in found] == [value for value in values if value]
    assert sum(map(len, lengths)) == len(sizes)
    assert all(len(part) == 1 or sum(part) <= 100 for part in lengths)
    await store.keys._link.one(("DEL", store.keys._key("k3")))
    found, _ = await store.keys.query(KeyQuery({}), 0)
    assert [item.key for item in found] == ["k0", "k1", "k2", "k4", "k5", "k7", "k8", "k9"]


async def test_partitions_are_what_the_namespace_was_made_with() -> None:
    """The number of partitions is recorded in the store: a later setting does not change where streams live."""
    namespace = uuid4().hex
    for wanted in (8, 16):
        store = _store(namespace=namespace, partitions=wanted)
        await store.open()
        assert store.journal.partitions == 8
        await store.close()


async def test_namespaces_know_nothing_of_each_other() -> None:
    """Two namespaces on one server share neither streams nor keys."""
    one, other = _store(), _store()
    for store in (one, other):
        await store.open()
        await _own_all(store)
    await one.journal.commit([_turn("Cart/1", 0)])
    await one.keys.apply([SetKey("k", b"v")], 0)
    assert (await other.journal.load("Cart/1")).version == 0
    assert await other.keys.get(["k"], 0) == [None]
    for store in (one, other):
        await store.close()


@pytest.mark.parametrize("kind", ["node", "cluster"])
async def test_a_server_that_is_not_there_is_named_with_a_remedy(kind: str) -> None:
    """Where it was looked for, what went wrong, and what to look at."""
    store = RedisStore.from_url(f"redis://127.0.0.1:1?maxRetries=0&redisType={kind}")
    remedy = r"Is the server started, and is that its address\?"
    with pytest.raises(StoreUnavailable, match=rf"^redis at 127\.0\.0\.1:1 does not answer: .+[^.]\. {remedy}$"):
        await store.open()
    await store.close()


async def test_a_cluster_without_all_its_slots_is_not_taken_for_one_that_is_down() -> None:
    """Its servers answer: what is missing is said, not asked whether they are started."""
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    with RedisServer(options=options) as server:
        store = RedisStore.from_url(f"{server.url}?maxRetries=0&redisType=cluster")
        remedy = "See what redis-cli --cluster check says of it"
        with pytest.raises(StoreUnavailable, match=rf"is a cluster that lacks slots: .*0 of 16384.*[^.]\. {remedy}$"):
            await store.open()
        await store.close()


async def test_what_the_caller_is_handling_is_no_failure_of_the_cluster() -> None:
    """The error of a call that is made while another one is handled has that one as its context."""

    class Line:
        sent = 0

        async def send(self, calls: Sequence[Any]) -> list[Any]:
            self.sent += 1
            if self.sent < 3:
                raise exceptions.RedisClusterException("All slots are not covered")
            return ["there"] * len(calls)

        async def reset(self) -> None:
            """Nothing to do."""

    link = RedisLink(settings_from_url("redis://h:1?redisType=cluster"), [])
    link._line = Line()  # type: ignore[assignment]  # as much of one as is needed
    try:
        raise KeyError("a key of the caller's")
    except KeyError:
        assert await link.one(("GET", "x")) == "there"


async def test_a_server_of_its_own_is_no_cluster(admin: aioredis.Redis) -> None:
    """The settings are told to be wrong; also those of a user who may not ask for a cluster's slots."""
    url = f"redis://127.0.0.1:{shared_redis().port}?maxRetries=0&redisType=cluster"
    with pytest.raises(ComponentError, match="is no cluster: set redisType to node"):
        await RedisStore.from_url(url).open()
    await admin.acl_setuser("slotless", enabled=True, passwords="+secret", keys="*", commands=["+@all", "-cluster"])
    with pytest.raises(ComponentError, match=r"refuses us: .*cluster"):
        await RedisStore.from_url(url.replace("//", "//slotless:secret@")).open()


async def test_a_newer_format_is_refused(admin: aioredis.Redis) -> None:
    """A namespace of a newer program is refused with what to do about it, and left alone."""
    namespace = uuid4().hex
    await admin.hset(f"{{mecha:{namespace}}}:meta", mapping={"format": FORMAT_VERSION + 1, "partitions": 4})
    store = _store(namespace=namespace)
    with pytest.raises(FormatError, match="upgrade the program"):
        await store.open()
    await admin.hset(f"{{mecha:{namespace}}}:meta", mapping={"format": "x"})
    with pytest.raises(FormatError, match="something else: give the store another namespace"):
        await store.open()


async def test_an_older_format_is_migrated(admin: aioredis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrations run one after the other up to this program's format, which is then recorded."""
    namespace = uuid4().hex
    meta = f"{{mecha:{namespace}}}:meta"
    await admin.hset(meta, mapping={"format": FORMAT_VERSION - 1, "partitions": 4})
    store = _store(namespace=namespace)
    with pytest.raises(FormatError, match="cannot migrate from 0: migrate it with an earlier release"):
        await store.open()

    async def migrate(link: RedisLink, settings: RedisSettings) -> None:
        await link.one(("HSET", meta, "migrated", settings.namespace))

    monkeypatch.setitem(redis_module.MIGRATIONS, FORMAT_VERSION - 1, migrate)
    await store.open()
    await store.close()
    assert await admin.hget(meta, "migrated") == namespace.encode()
    assert await admin.hget(meta, "format") == str(FORMAT_VERSION).encode()


async def test_a_namespace_that_is_gone_is_made_again_as_it_was(admin: aioredis.Redis) -> None:
    """A host that takes again what a flushed server has forgotten brings the namespace's record back: the next one to
    open it has the same partitions, whatever it was told. Epochs go on growing (INV-2)."""
    namespace = uuid4().hex
    store = _store(namespace=namespace, partitions=4)
    await store.open()
    (before,) = await store.journal.acquire([3], "one", 0, 1)
    await admin.unlink(*[key async for key in admin.scan_iter(f"{{mecha:{namespace}*")])
    assert await store.journal.renew([(3, before.epoch)], "one", 0, 1) == []
    (after,) = await store.journal.acquire([3], "one", 0, 1)
    assert after.epoch > before.epoch
    other = _store(namespace=namespace, partitions=16)
    await other.open()
    assert other.journal.partitions == 4
    await other.close()
    await store.close()


async def test_a_namespace_that_has_become_another_one_is_not_taken(admin: aioredis.Redis) -> None:
    """Made anew with another number of partitions, or migrated by a newer program, since this one has opened it."""
    namespace = uuid4().hex
    store = _store(namespace=namespace, partitions=4)
    await store.open()
    for format, partitions in ((FORMAT_VERSION, 5), (FORMAT_VERSION + 1, 4)):
        await admin.hset(f"{{mecha:{namespace}}}:meta", mapping={"format": format, "partitions": partitions})
        with pytest.raises(FormatError, match="migrated or made anew"):
            await store.journal.acquire([3], "one", 0, 1)
        assert await store.journal.owners() == []
    await store.close()


async def test_opening_leaves_nothing_of_the_rehearsal(store: RedisStore, admin: aioredis.Redis) -> None:
    """The rehearsal at open cleans up after itself."""
    assert [key async for key in admin.scan_iter("*rehearsal*")] == []


_STEPS_OF_OPEN = 8


async def _open_with(store: RedisStore, step: int, happens: Callable[[], Awaitable[None]]) -> None:
    """Open the store; between a step of it and the next, this happens."""
    one, steps = store._link.one, count(1)

    async def noted(call: Call, **options: Any) -> Any:
        answer = await one(call, **options)
        if next(steps) == step:
            await happens()
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._link, "one", noted)
        await store.open()
    await store.close()
    assert next(steps) > _STEPS_OF_OPEN


@pytest.mark.parametrize("step", range(1, _STEPS_OF_OPEN))
async def test_stores_that_open_at_once_do_not_disturb_each_other(step: int, admin: aioredis.Redis) -> None:
    """Others that open the same namespace between two steps of an open, whichever: all open, and nothing is left."""
    stores = [_store(namespace=f"met-{step}") for _ in range(4)]

    async def meet() -> None:
        for one in stores[1:]:
            await one.open()
            await one.close()

    await _open_with(stores[0], step, meet)
    assert [key async for key in admin.scan_iter(f"*met-{step}:rehearsal*")] == []


@pytest.mark.parametrize("step", range(1, _STEPS_OF_OPEN))
async def test_what_a_cut_open_leaves_is_cleared_by_the_next(step: int, admin: aioredis.Redis) -> None:
    """A process that dies in its rehearsal, or is given up there, leaves nothing for ever."""

    async def die() -> None:
        raise asyncio.CancelledError

    namespace = f"cut-{step}"
    with pytest.raises(asyncio.CancelledError):
        await _open_with(_store(namespace=namespace), step, die)
    next_store = _store(namespace=namespace)
    await next_store.open()
    await next_store.close()
    assert [key async for key in admin.scan_iter(f"*{namespace}:rehearsal*")] == []


# ---- epochs ----


async def test_epochs_a_server_has_forgotten_are_not_given_out_again(admin: aioredis.Redis) -> None:
    """INV-2: a server that lost its tail (a replica was promoted that lagged) gives the next owner an epoch that the
    one it has forgotten never had, so that this one is fenced."""
    stores = [_store(namespace="forgotten", partitions=1) for _ in range(3)]
    for one in stores:
        await one.open()
    remembered, forgotten, newest = (one.journal for one in stores)
    await remembered.acquire([0], "remembered", 0, 1)
    keys = [key async for key in admin.scan_iter("{mecha:forgotten*")]
    before = {key: await admin.dump(key) or b"" for key in keys}
    [lost] = await forgotten.acquire([0], "forgotten", 10, 1)
    for key, kept in before.items():
        await admin.restore(key, 0, kept, replace=True)
    [owned] = await newest.acquire([0], "newest", 20, 1)
    assert owned.epoch > lost.epoch
    turns = [TurnCommit(0, one.epoch, "Cart/1", f"turn-{one.owner}", 0) for one in (lost, owned)]
    assert [type(answer) for answer in await newest.commit(turns)] == [StaleEpoch, type(None)]
    assert await newest.owners() == [owned]
    for one in stores:
        await one.close()


async def test_tags_a_server_has_forgotten_are_not_given_out_again(store: RedisStore, admin: aioredis.Redis) -> None:
    """A server that lost its tail gives no tag again: who read the value that it has forgotten, changes no other one
    by mistake."""

    async def tag() -> str:
        [found] = await store.keys.get(["k"], 0)
        assert found is not None
        return found.etag

    await store.keys.apply([SetKey("k", b"first")], 0)
    pattern = f"*{store.journal._namespace}:keys*"
    before = {key: await admin.dump(key) or b"" async for key in admin.scan_iter(pattern)}
    await store.keys.apply([SetKey("k", b"forgotten"), SetKey("k", b"forgotten too")], 0)
    forgotten = await tag()
    async for key in admin.scan_iter(pattern):
        await admin.delete(key)
    for key, kept in before.items():
        await admin.restore(key, 0, kept)
    await store.keys.transact([SetKey("k", b"second"), SetKey("k", b"third")], 0)
    assert int(await tag()) > int(forgotten)
    [answer] = await store.keys.apply([SetKey("k", b"lost update", etag=forgotten)], 0)
    assert isinstance(answer, ETagMismatch)
    assert await store.keys.apply([DeleteKey("k", etag=await tag())], 0) == [None]


# ---- repeats ----


async def test_an_answer_that_was_lost_is_asked_for_again() -> None:
    """INV-8: commit succeeds, the answer is lost; the caller is told so, repeats it, and the turn counts once."""
    async with CuttingProxy(shared_redis().port) as proxy:
        store = _store(proxy.port)
        await store.open()
        await _own_all(store)
        proxy.cut_after("answers", 1)
        commit = asyncio.create_task(store.journal.commit([_turn("Cart/1", 0)]))
        await proxy.wait_cut()
        proxy.heal()
        with pytest.raises(StoreUnavailable):
            await commit
        assert await store.journal.commit([_turn("Cart/1", 0)]) == [None]
        assert len(await store.journal.events("Cart/1")) == 1
        await store.close()


async def test_a_recorded_commit_is_never_called_refused() -> None:
    """INV-8: commit succeeds, the answer is lost, then the partition is: its outcome is unknown. Were it told as
    refused for its epoch, the turn would be run again, and take effect twice."""
    async with CuttingProxy(shared_redis().port) as proxy:
        store, other = _store(proxy.port, "taken"), _store(namespace="taken")
        for one in (store, other):
            await one.open()
        await _own_all(store)
        group = GroupCommit(store.journal)
        group.start()
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        proxy.cut_after("answers", 1)
        group.submit(_turn("Cart/1", 0), outcome.set_result)
        await proxy.wait_cut()
        await other.journal.acquire(range(PARTITIONS), "other", 0, 60_000, force=True)
        proxy.heal()
        assert isinstance(await outcome, StoreUnavailable)
        assert len(await other.journal.events("Cart/1")) == 1
        await group.close()
        for one in (store, other):
            await one.close()


async def test_a_commit_that_was_never_sent_is_refused_for_its_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes no connection has recorded nothing: the store tries again by itself, and the refusal that
    comes of it is one, so that the turn may be run again."""
    with RedisServer(aof="always") as server:
        store, other = _store(server.port, "away", max_retries=10_000), _store(server.port, "away")
        for one in (store, other):
            await one.open()
        await _own_all(store)
        await other.journal.acquire(range(PARTITIONS), "other", 0, 60_000, force=True)
        await store._link._reset()
        tried = asyncio.Event()
        compute = store._link._backoff.compute

        def noting(failures: int) -> float:
            tried.set()
            return compute(failures)

        monkeypatch.setattr(store._link._backoff, "compute", noting)
        server.kill()
        commit = asyncio.create_task(store.journal.commit([_turn("Cart/1", 0)]))
        await tried.wait()
        server.start()
        assert [type(answer) for answer in await commit] == [StaleEpoch]
        for one in (store, other):
            await one.close()


async def test_a_conditional_write_whose_answer_was_lost_succeeds() -> None:
    """A repeated keys request is recognised: a condition that held the first time is not tried a second time."""
    async with CuttingProxy(shared_redis().port) as proxy:
        store = _store(proxy.port)
        await store.open()
        for remove in (False, True):
            [found] = await store.keys.get(["k"], 0)
            operations: list[SetKey | DeleteKey] = [
                SetKey("k", b"1", first_write=True),
                SetKey("k", b"2", etag="9"),
            ]
            if remove:
                assert found is not None
                operations = [DeleteKey("k", etag=found.etag)]
            proxy.cut_after("answers", 1)
            write = asyncio.create_task(store.keys.apply(operations, 0))
            await proxy.wait_cut()
            proxy.heal()
            answers = await write
            assert [type(answer) for answer in answers] == [type(None), ETagMismatch][: len(operations)]
        await store.close()


async def test_a_turn_is_recognised_long_after(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: once a turn's id was dropped from the partition's memory, its event or its receipt still shows it."""
    monkeypatch.setattr(redis_journal, "TURNS_REMEMBERED", 2)
    old = [_turn("Cart/1", 0), _turn("Cart/1", 1, events=(), turn_id="keyed", receipt=Receipt("key", b"", 9_000))]
    assert await store.journal.commit(old) == [None, None]
    for number in range(1, 9):
        assert await store.journal.commit([_turn("Cart/1", number)]) == [None]
    assert await store.journal.commit(old) == [None, None]
    assert len(await store.journal.events("Cart/1")) == 9


async def test_a_batch_of_thousands_in_one_partition_keeps_its_order(store: RedisStore) -> None:
    """A commit too large for one call is several, each after the one before."""
    turns = [_turn("Cart/1", number, outbox=(OutboxMessage(f"m{number}", "Cart/1", b""),)) for number in range(2_500)]
    assert await store.journal.commit(turns) == [None] * 2_500
    outbox = await store.journal.outbox(partition_of("Cart/1", PARTITIONS), limit=5_000)
    assert [message.id for message in outbox] == [f"m{number}" for number in range(2_500)]


# ---- size ----


async def test_a_commit_sends_a_bounded_number_of_bytes_at_once(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server must take in a call and answer it within the read timeout: large turns go out a few at a time, in order,
    and answers find their turns."""
    monkeypatch.setattr(redis_journal, "_BYTES_PER_CALL", 10_000)
    all_, sizes = store._link.all, []

    async def noted(calls: Sequence[Call], **how: bool) -> list[Any]:
        sizes.append(sum(len(argument) for call in calls for argument in call if not isinstance(argument, int)))
        return await all_(calls, **how)

    monkeypatch.setattr(store._link, "all", noted)
    large = (NewEvent("added", b"x" * 4_000),)
    turns = [_turn("Cart/1", number, events=large) for number in range(20)]
    turns.insert(10, _turn("Cart/1", 3, turn_id="refused"))
    answers = await store.journal.commit(turns)
    monkeypatch.undo()
    assert [place for place, answer in enumerate(answers) if answer is not None] == [10]
    assert [event.turn_id for event in await store.journal.events("Cart/1")] == [f"Cart/1-{n}" for n in range(20)]
    assert len(sizes) == 7
    assert max(sizes) < 10_000 + 4_000 + 1_000


async def test_a_bulk_write_is_several_scripts(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that runs a script serves nobody else: very many keys are written a page at a time, in order."""
    monkeypatch.setattr(redis_keys, "_PAGE", 4)
    one, written = store.keys._link.one, []

    async def noted(call: Any, **options: Any) -> Any:
        written.append(call[2] - 5)
        return await one(call, **options)

    operations = [SetKey(f"k{n // 2}", b"%d" % n, first_write=n in (7, 12)) for n in range(15)]
    operations.insert(2, SetKey("", b"malformed"))
    monkeypatch.setattr(store.keys._link, "one", noted)
    answers = await store.keys.apply(operations, 0)
    monkeypatch.undo()
    assert written == [4, 4, 4, 3]
    refused = [type(answer) for answer in answers]
    assert [(n, what) for n, what in enumerate(refused) if what is not type(None)] == [
        (2, InvalidRequest),
        (8, ETagMismatch),
    ]
    found = await store.keys.get([f"k{n}" for n in range(8)], 0)
    assert [item and item.value for item in found] == [b"1", b"3", b"5", b"6", b"9", b"11", b"13", b"14"]


async def test_long_streams_are_read_in_pages(store: RedisStore) -> None:
    """A stream longer than one answer loads whole, in order."""
    events = tuple(NewEvent("added", str(number).encode()) for number in range(12_000))
    assert await store.journal.commit([_turn("Cart/1", 0, events=events)]) == [None]
    state = await store.journal.load("Cart/1")
    assert [event.data for event in state.events] == [event.data for event in events]
    assert [event.version for event in state.events] == list(range(1, 12_001))
    assert len((await store.journal.load("Cart/1", 11_000)).events) == 11_000
    assert [event.version for event in await store.journal.events("Cart/1", 11_998, 10)] == [11_999, 12_000]


async def test_a_rare_entry_is_found_among_many(store: RedisStore) -> None:
    """A listing whose filter fits few entries goes on past the most that one call looks at."""
    names = [f"Cart/{number:05}" for number in range(6_000)]
    entries = [IndexEntry(name, "cart", "rare" if name.endswith("99") else "common", 1, 1) for name in names]
    turns = [_turn(entry.stream, 0, listing=entry, events=()) for entry in entries]
    assert await store.journal.commit(turns) == [None] * 6_000
    rare = [name for name in names if name.endswith("99")]
    found: list[str] = []
    while page := await store.journal.index(
        IndexQuery("Cart", statuses=("rare",), limit=7, after=found[-1] if found else "")
    ):
        found += [entry.stream for entry in page]
    assert found == rare
    assert [entry.stream for entry in await store.journal.index(IndexQuery("Cart", limit=9_000))] == names


async def test_the_soonest_reminders_are_found_wherever_they_are(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that holds more than its share is asked again, the others are not; nothing is asked for as many as
    all of them could hold."""
    names = [f"Cart/{number}" for number in range(2_000)]
    crowded = [name for name in names if partition_of(name, PARTITIONS) == 0]
    due_ms = {name: number // 3 if name in set(crowded) else 300 + number for number, name in enumerate(names)}
    turns = [_turn(n, 0, events=(), reminders_set=(Reminder(n, "r", due_ms[n], b"{}"),)) for n in names]
    assert await store.journal.commit(turns) == [None] * len(turns)
    rows = 0
    all_ = store._link.all

    async def counting(calls: Sequence[Call], **how: bool) -> list[Any]:
        nonlocal rows
        answers = await all_(calls, **how)
        rows += sum(len(a) // 2 for c, a in zip(calls, answers, strict=True) if c[0] == "ZRANGEBYSCORE")
        return answers

    monkeypatch.setattr(store._link, "all", counting)
    in_order = sorted(names, key=lambda name: (due_ms[name], name))
    for limit, most_rows in ((1, 4), (7, 60), (100, 500), (400, 1_400), (1_900, 4_000)):
        rows = 0
        found = await store.journal.due_reminders(range(PARTITIONS), 10_000, limit)
        assert [reminder.stream for reminder in found] == in_order[:limit]
        assert rows <= most_rows
    assert len(await store.journal.due_reminders(range(PARTITIONS), 100, 2_000)) == sum(
        d <= 100 for d in due_ms.values()
    )


async def test_receipts_that_must_stay_do_not_hide_those_that_may_go(store: RedisStore) -> None:
    """The purge reaches expired receipts behind any number that are kept for their messages."""
    partition = partition_of("Cart/1", PARTITIONS)
    other = (partition + 1) % PARTITIONS
    sender = TurnCommit(
        other, 1, "Sender/1", "sent", 0, outbox=tuple(OutboxMessage(f"m{n}", "Sender/1", b"") for n in range(1_500))
    )
    kept = [
        _turn("Cart/1", 0, turn_id=f"t{n}", events=(), receipt=Receipt(f"m{n}", b"", 1, other)) for n in range(1_500)
    ]
    free = [_turn("Cart/1", 0, turn_id=f"f{n}", events=(), receipt=Receipt(f"f{n}", b"", 2)) for n in range(3)]
    assert await store.journal.commit([sender, *kept, *free]) == [None] * 1_504
    assert await store.journal.purge_receipts(partition, 2, 2) == 2
    assert await store.journal.purge_receipts(partition, 2, 10) == 1
    done = TurnCommit(other, 1, "Sender/1", "done", 0, outbox_done=("m7",))
    assert await store.journal.commit([done]) == [None]
    assert await store.journal.purge_receipts(partition, 2, 10) == 1
    assert (await store.journal.receipts("Cart/1", ["m7"]))[0] is None
    assert (await store.journal.receipts("Cart/1", ["m8"]))[0] is not None


async def test_a_receipt_renewed_during_the_purge_stays(store: RedisStore) -> None:
    """INV-8: what had expired when the candidates were read, and was replaced since, is not purged."""
    partition = partition_of("Cart/1", PARTITIONS)
    turn = _turn("Cart/1", 0, events=(), receipt=Receipt("key", b"", 9_000))
    assert await store.journal.commit([turn]) == [None]
    candidate = [(b"Cart/1", b"key")]
    keys = store.journal._keys[partition]
    assert await store.journal._purge(keys, candidate, now_ms=8_999) == 0
    assert (await store.journal.receipts("Cart/1", ["key"]))[0] == turn.receipt
    assert await store.journal._purge(keys, candidate, now_ms=9_000) == 1


async def test_streams_that_differ_by_a_nul_are_kept_apart(store: RedisStore) -> None:
    """NUL separates names in the layout, and may stand in them all the same."""
    names = sorted(["a", "a\0", "a\0b", "a\0\0b"])
    turns = [
        TurnCommit(
            partition_of(name, PARTITIONS),
            1,
            name,
            f"t-{name}",
            0,
            0,
            reminders_set=(Reminder(name, "b", 1, b""), Reminder(name, "\0b", 1, b"")),
            receipt=Receipt("b", name.encode(), 1),
            outbox=(OutboxMessage(f"{name}-m", name, b""),),
        )
        for name in names
    ]
    assert await store.journal.commit(turns) == [None] * 4
    due = await store.journal.due_reminders(range(PARTITIONS), 1, 100)
    assert [(reminder.stream, reminder.name) for reminder in due] == [(n, r) for n in names for r in ("\0b", "b")]
    delete = turns[0]._replace(turn_id="delete", delete=True, reminders_set=(), receipt=None, outbox=())
    assert await store.journal.commit([delete]) == [None]
    assert {reminder.stream for reminder in await store.journal.due_reminders(range(PARTITIONS), 1, 100)} == set(
        names[1:]
    )
    gone = [await store.journal.purge_receipts(p, 1, 10) for p in range(PARTITIONS)]
    assert sum(gone) == 4


async def test_what_a_stream_owns_is_kept_where_it_lives(store: RedisStore) -> None:
    """A turn that would put a stream's receipt into another partition is refused, instead of hiding it there."""
    wrong = (partition_of("Cart/1", PARTITIONS) + 1) % PARTITIONS
    for partition in (wrong, PARTITIONS):
        turn = TurnCommit(partition, 1, "Cart/1", "t", 0, receipt=Receipt("k", b"", 1))
        with pytest.raises(InvalidRequest, match="partition"):
            await store.journal.commit([turn])


async def test_values_with_a_ttl_expire_physically_too(store: RedisStore, admin: aioredis.Redis) -> None:
    """When nobody ever purges, the server deletes a value itself, well after it was hidden."""
    await store.keys.apply([SetKey("k", b"v", ttl_s=60)], now_ms=5)
    [key] = [key async for key in admin.scan_iter(f"*{store.journal._namespace}*:k:k")]
    assert 60_000 < await admin.pttl(key) <= 60_000 + 3_600_000
    await store.keys.apply([SetKey("k", b"v")], now_ms=5)
    assert await admin.pttl(key) == -1


# ---- trouble ----


async def test_a_restart_of_the_server_is_ridden_out() -> None:
    """Connections are made anew and scripts brought again: callers see nothing of a restart but the time it takes."""
    with RedisServer(aof="always") as server:
        store = _store(server.port)
        await store.open()
        await _own_all(store)
        assert await store.journal.commit([_turn("Cart/1", 0)]) == [None]
        server.restart()
        loads = await asyncio.gather(*(store.journal.load("Cart/1") for _ in range(20)))
        assert {state.version for state in loads} == {1}
        server.restart()
        group = GroupCommit(store.journal)
        group.start()
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        group.submit(_turn("Cart/1", 1), outcome.set_result)
        assert await outcome is None
        await group.close()
        await store.close()


async def test_forgotten_scripts_are_brought_again(store: RedisStore, admin: aioredis.Redis) -> None:
    """SCRIPT FLUSH by somebody else costs a round trip, no more."""
    await admin.script_flush()
    turns = [_turn(f"Cart/{number}", 0) for number in range(20)]
    assert await store.journal.commit(turns) == [None] * 20


async def test_a_new_server_needs_no_retries() -> None:
    """Bringing the scripts is not a failure: a store without retries opens on a server that never saw them."""
    with RedisServer() as server:
        store = _store(server.port, max_retries=0)
        await store.open()
        await store.close()


async def test_a_server_that_is_away_is_unavailable() -> None:
    """After a bounded number of retries the caller is told, and that the outcome is unknown."""
    with RedisServer() as server:
        store = _store(server.port, max_retries=2)
        await store.open()
        await _own_all(store)
        server.kill()
        with pytest.raises(StoreUnavailable):
            await store.journal.commit([_turn("Cart/1", 0)])
        with pytest.raises(StoreUnavailable):
            await store.keys.get(["k"], 0)
        await store.close()


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Again, when a machine that is busy has not answered within a timeout that is short."""
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreUnavailable):
                return await ask()


async def test_a_server_that_hangs_is_unavailable() -> None:
    """A stopped process keeps its connections open and says nothing: the read timeout ends the wait."""
    with RedisServer() as server:
        store = _store(server.port, max_retries=1, read_timeout_s=0.1)
        await _patiently(store.open)
        await _patiently(lambda: _own_all(store))
        server.pause()
        with pytest.raises(StoreUnavailable):
            await store.journal.commit([_turn("Cart/1", 0)])
        server.resume()
        assert await _patiently(lambda: store.journal.commit([_turn("Cart/1", 0)])) == [None]
        assert (await _patiently(lambda: store.journal.load("Cart/1"))).version == 1
        await store.close()


async def test_a_cancelled_call_does_not_spoil_the_next() -> None:
    """The answer to a cancelled call is never taken for that of the next one."""
    with RedisServer() as server:
        store = _store(server.port, pool_size=1)
        await store.open()
        await _own_all(store)
        server.pause()
        load = asyncio.create_task(store.journal.load("Cart/1"))
        await asyncio.sleep(0)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        server.resume()
        assert (await store.journal.receipts("Cart/1", ["k"]))[0] is None
        await store.close()


async def test_tls_to_a_server_without_it_is_unavailable() -> None:
    """A handshake that comes to nothing ends like any connection that cannot be made, for one server and a cluster."""
    for cluster in (False, True):
        store = _store(tls=True, cluster=cluster, max_retries=1, connect_timeout_s=0.5, read_timeout_s=0.5)
        with pytest.raises(StoreUnavailable):
            await store.open()


async def test_wrong_credentials_are_named() -> None:
    """A wrong password is a wrong setting: said at once, without retries."""
    with RedisServer(options=["--requirepass", "right"]) as server:
        for password in ("", "wrong"):
            for cluster in (False, True):
                with pytest.raises(ComponentError, match="redisPassword"):
                    await _store(server.port, password=password, cluster=cluster).open()
        store = _store(server.port, password="right")
        await store.open()
        await store.close()


async def test_missing_rights_are_found_at_open(admin: aioredis.Redis) -> None:
    """INV-4: a user who may not run one of the commands is refused at open, before a real turn could fail half-way."""
    for missing in ("zadd", "hsetnx", "rename", "zrem", "pexpire", "time"):
        await admin.acl_setuser(
            "narrow", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", f"-{missing}"]
        )
        with pytest.raises(ComponentError, match="rights"):
            await _store(username="narrow", password="pw").open()


async def test_full_memory_records_nothing(store: RedisStore, admin: aioredis.Redis) -> None:
    """INV-4: under maxmemory without eviction a commit fails whole; when there is room again it goes through."""
    with RedisServer() as server:
        store = _store(server.port)
        await store.open()
        await _own_all(store)
        async with aioredis.Redis(port=server.port) as admin:
            await admin.config_set("maxmemory", "1mb")
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await store.journal.commit([_turn("Cart/1", 0)])
            assert (await store.journal.load("Cart/1")).version == 0
            await admin.config_set("maxmemory", "0")
        assert await store.journal.commit([_turn("Cart/1", 0)]) == [None]
        await store.close()


async def test_a_replica_takes_no_commits_until_it_is_the_primary() -> None:
    """READONLY passes with the failover: the commit is repeated, and told as unavailable when it lasts."""
    with RedisServer() as server:
        store = _store(server.port, max_retries=2)
        patient = _store(server.port, namespace="patient", max_retries=1_000)
        for one in (store, patient):
            await one.open()
            await _own_all(one)
        async with aioredis.Redis(port=server.port) as admin:
            await admin.replicaof("127.0.0.1", "1")
            with pytest.raises(StoreUnavailable, match="read only"):
                await store.journal.commit([_turn("Cart/1", 0)])
            commit = asyncio.create_task(patient.journal.commit([_turn("Cart/1", 0)]))
            await admin.replicaof("NO", "ONE")
            assert await commit == [None]
        for one in (store, patient):
            await one.close()


async def test_waiting_for_the_aof() -> None:
    """With waitAOF a commit returns when the log is on disk, its repeat too; without a log it is refused at open."""
    with RedisServer(aof="everysec") as server:
        store = _store(server.port, wait_aof=True)
        await store.open()
        await _own_all(store)
        for _ in range(2):
            assert await store.journal.commit([_turn("Cart/1", 0)]) == [None]
        await store.close()
    with pytest.raises(ComponentError, match="appendonly"):
        await _store(wait_aof=True).open()


async def test_whatever_counts_as_written_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With waitAOF everything that a caller relies on is on disk when the call returns: leases and removals too."""
    with RedisServer(aof="everysec") as server:
        store = _store(server.port, wait_aof=True)
        await store.open()
        [owned] = await store.journal.acquire([0], "host", 0, 60_000)
        await store.keys.apply([SetKey("a||b", b""), SetKey("c", b"", ttl_s=1)], 0)
        line = store._link._line
        assert line is not None
        sent: list[list[Argument]] = []
        send = line.send

        async def noting(calls: Sequence[Call]) -> list[Any]:
            sent.append([call[0] if call[0] != "EVALSHA" else call[1] for call in calls])
            return await send(calls)

        monkeypatch.setattr(line, "send", noting)
        assert len(await store.journal.renew([(0, owned.epoch)], "host", 0, 60_000)) == 1
        assert await store.keys.delete_prefix("a") == 1
        assert await store.keys.purge_expired(5_000, 10) == 1
        await store.journal.release([(0, owned.epoch)])
        renew, remove = redis_journal.SCRIPTS["renew"].sha, redis_keys.SCRIPTS["remove"].sha
        writes = [names for names in sent if {renew, remove} & {*names}]
        assert writes == [[renew, "WAITAOF"], [remove, "WAITAOF"], [remove, "WAITAOF"], [renew, "WAITAOF"]]
        await store.close()


@pytest.mark.parametrize("script", ["write", "remove"])
async def test_a_repeat_writes_too(script: str) -> None:
    """WAITAOF waits for a connection's last write: a repeat on a new connection that wrote nothing would not wait."""
    with RedisServer() as server:
        store = _store(server.port)
        await store.open()
        keys = [store.keys._meta] if script == "write" else []
        keys += [store.keys._names, store.keys._expiry, *store.keys._requests, store.keys._key("a")]
        arguments = ("each", "request", 0, "a", "s", "", 0, 0, b"") if script == "write" else ("request", "", "a")
        call = redis_keys.SCRIPTS[script].call(keys, *arguments)
        answers = []
        async with aioredis.Redis(port=server.port) as admin:
            for _ in range(2):
                before = (await admin.info("persistence"))["rdb_changes_since_last_save"]
                answers.append(await store._link.one(call))
                assert (await admin.info("persistence"))["rdb_changes_since_last_save"] > before
        assert answers[0] == answers[1]
        await store.close()


async def test_waiting_for_replicas_that_are_not_there() -> None:
    """With waitReplicas a commit that no replica has taken is unavailable, though it may have been recorded."""
    with pytest.raises(StoreUnavailable, match="replicas"):
        await _store(wait_replicas=1, read_timeout_s=0.2).open()


async def test_a_server_that_may_forget_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """No AOF, or an evicting memory policy, is said in the log when the store is opened."""
    options = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    with caplog.at_level(logging.WARNING), RedisServer(options=options) as server:
        store = _store(server.port)
        await store.open()
        await store.close()
    assert "appendonly yes" in caplog.text
    assert "noeviction" in caplog.text


async def test_a_closed_store_says_so(store: RedisStore) -> None:
    """Closing is idempotent; calls after it are refused, and it can be opened again."""
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.journal.load("Cart/1")
    await store.open()
    assert (await store.journal.load("Cart/1")).version == 0


async def test_a_unix_socket_will_do() -> None:
    """A store on the same machine can be reached through a socket in the file system."""
    with RedisServer(options=["--unixsocket", "redis.sock"]) as server:
        store = RedisStore.from_url(f"unix://{server.directory}/redis.sock?namespace=sock")
        await store.open()
        assert await store.keys.apply([SetKey("k", b"v")], 0) == [None]
        await store.close()
