"""A real Redis Cluster of three servers holds both faces: the shipped suites, and a node that goes away."""

from __future__ import annotations

from asyncio import gather
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from statestores.conformance.journal import JournalConformance
from statestores.conformance.keys import KeysConformance
from statestores.errors import ComponentError, StoreUnavailable
from statestores.model import NewEvent, TurnCommit, partition_of
from statestores.redis import RedisStore
from statestores.redis_settings import RedisSettings
from tests.servers import RedisCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from statestores.store import StateStore


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


def _store(cluster: RedisCluster, namespace: str, **settings: Any) -> RedisStore:
    given: dict[str, Any] = {"hosts": cluster.hosts, "cluster": True, "namespace": namespace, **settings}
    return RedisStore(RedisSettings(**given))


@pytest.fixture
async def reopen(cluster: RedisCluster) -> AsyncIterator[Callable[[], Awaitable[StateStore]]]:
    namespace = uuid4().hex
    async with AsyncExitStack() as stack:

        async def open_another() -> StateStore:
            store = _store(cluster, namespace)
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield open_another


@pytest.fixture
async def store(reopen: Callable[[], Awaitable[StateStore]]) -> StateStore:
    return await reopen()


class TestJournalOnACluster(JournalConformance):
    """Every invariant of the journal holds when partitions live on different servers."""


async def test_keys_on_a_cluster_agree_with_the_reference(store: StateStore) -> None:
    """Transactions over any keys work: a namespace's keys are in one slot, so the suite's random run is enough."""
    await KeysConformance().test_random_run_agrees_with_the_reference(store, seed=7)


async def test_a_member_of_a_cluster_alone_is_a_wrong_setting(cluster: RedisCluster) -> None:
    """Without redisType cluster the settings are told to be wrong, instead of failing for some of the partitions."""
    elsewhere = next(name for name in map(str, range(100)) if key_slot(f"{{mecha:{name}}}".encode()) > 10_000)
    store = RedisStore(RedisSettings(hosts=cluster.hosts[:1], namespace=elsewhere))
    with pytest.raises(ComponentError, match="redisType"):
        await store.open()


async def test_more_calls_than_connections_are_not_a_server_that_is_down(cluster: RedisCluster) -> None:
    """Who runs out of connections is told so, and not asked whether the server is started."""
    store = _store(cluster, uuid4().hex, max_retries=0)
    await store.open()
    answers = await gather(*(store.keys.get(["k"], 0) for _ in range(1_000)), return_exceptions=True)
    await store.close()
    failures = {str(answer) for answer in answers if isinstance(answer, StoreUnavailable)}
    assert [failure.partition(": ")[2] for failure in failures] == [
        "all connections to it are in use. Make fewer calls at once"
    ]


async def test_scripts_are_brought_to_every_node(cluster: RedisCluster, busy: Busy) -> None:
    """Each node that forgot the scripts is given them again."""
    for server in cluster.servers:
        async with Redis(port=server.port) as node:
            await node.script_flush()
    assert await busy.store.journal.commit(busy.turns) == [None] * len(busy.turns)


async def test_a_node_that_was_killed_comes_back(cluster: RedisCluster, busy: Busy) -> None:
    """INV-8: a commit over all nodes, one of them dead, is unavailable; repeated when it is back, it counts once."""
    cluster.servers[1].kill()
    with pytest.raises(StoreUnavailable):
        await busy.store.journal.commit(busy.turns)
    cluster.servers[1].start()
    cluster.wait_formed()
    assert await busy.store.journal.commit(busy.turns) == [None] * len(busy.turns)
    for turn in busy.turns:
        assert (await busy.store.journal.load(turn.stream)).version == 1


class Busy(NamedTuple):
    """A store that owns all partitions, with a first turn for a stream in each."""

    store: RedisStore
    turns: list[TurnCommit]


@pytest.fixture
async def busy(cluster: RedisCluster) -> AsyncIterator[Busy]:
    store = _store(cluster, uuid4().hex, max_retries=3)
    await store.open()
    count = store.journal.partitions
    epochs = {one.partition: one.epoch for one in await store.journal.acquire(range(count), "host", 0, 60_000)}
    streams = {partition_of(name, count): name for name in (f"Cart/{number}" for number in range(1_000))}
    yield Busy(store, [TurnCommit(p, epochs[p], s, s, 0, 0, events=(NewEvent("e", b""),)) for p, s in streams.items()])
    await store.close()
