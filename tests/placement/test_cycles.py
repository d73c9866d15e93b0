"""Deadlocks over several hosts: found by somebody, named, and resolved by the failure of one call."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from actors import Deadlock, LoopClock
from actors.placement.hop import encode_batch
from statestores.model import partition_of
from tests.actors.test_chains import Meeting, Node
from tests.actors.worlds import until
from tests.placement.network import Cluster, cluster_of
from tests.simulation.simloop import SimulatedLoop, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from actors import ActorClient

PARTITIONS = 6
HOSTS = ["one", "two", "three"]
_meetings = itertools.count()


@asynccontextmanager
async def three_hosts(**options: object) -> AsyncIterator[Cluster]:
    """With two partitions each."""
    async with cluster_of(Node, partitions=PARTITIONS) as made:
        for number, name in enumerate(HOSTS):
            await made.add(name, [2 * number, 2 * number + 1], **options)
        yield made


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with three_hosts() as made:
        yield made


def on(host: str, number: int = 0) -> str:
    """An actor of that host."""
    mine = [2 * HOSTS.index(host), 2 * HOSTS.index(host) + 1]
    names = (name for n in itertools.count() if partition_of(f"Node/{(name := f'n{n}')}", PARTITIONS) in mine)
    return next(itertools.islice(names, number, None))


async def ring(cluster: Cluster, names: Sequence[str]) -> list[Any]:
    """Each holds itself and calls the next, from a client of its own at any host; what became of them."""
    party = f"ring {next(_meetings)}"

    def client(position: int) -> ActorClient:
        return cluster.hosts[HOSTS[position % len(HOSTS)]].client

    async with asyncio.timeout(20):
        return await asyncio.gather(
            *(
                client(position)
                .actor(Node, name)
                .run([["meet", party, len(names)], ["call", names[(position + 1) % len(names)], [["add"]]]])
                for position, name in enumerate(names)
            ),
            return_exceptions=True,
        )


def deadlock_of(outcomes: Sequence[Any]) -> Deadlock:
    """The only failure among them."""
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert isinstance(failed, Deadlock)
    return failed


def is_ring(chain: tuple[str, ...], names: Sequence[str]) -> bool:
    """All of them in their order, from one of them back to it."""
    streams = [f"Node/{name}" for name in names]
    start = streams.index(chain[0])
    return list(chain) == [*streams[start:], *streams[:start], chain[0]]


RINGS = [
    pytest.param([on("one"), on("two"), on("three")], id="three hosts"),
    pytest.param([on("one"), on("one", 1), on("two"), on("two", 1)], id="two hosts, neither sees all"),
    pytest.param([on(host, n) for n in range(3) for host in HOSTS], id="nine actors"),
    pytest.param([on("three"), on("two"), on("one"), on("three", 1), on("two", 1)], id="hosts met twice"),
]


@pytest.mark.parametrize("names", RINGS)
async def test_independent_calls_that_wait_for_each_other(cluster: Cluster, names: list[str]) -> None:
    """One of the calls fails and names all of the cycle; the others have their turns, and nobody waits any more."""
    outcomes = await ring(cluster, names)
    assert is_ring(deadlock_of(outcomes).chain, names)
    assert [outcome for outcome in outcomes if not isinstance(outcome, BaseException)] == [1] * (len(names) - 1)
    for name in names:
        assert await cluster.hosts["one"].client.actor(Node, name).look([]) is None
    await until(lambda: not any(known(cluster, host) for host in HOSTS))


def known(cluster: Cluster, host: str) -> list[object]:
    """What is remembered of calls that wait."""
    chaser = cluster.placement(host)._chaser
    return [*chaser._standing, *chaser._followed, *chaser._away, *cluster.hosts[host].waits._edges]


async def test_many_rings_at_once(cluster: Cluster) -> None:
    """Each loses one call."""
    rings = [[on(host, n) for host in HOSTS] for n in range(10)]
    for names, outcomes in zip(rings, await asyncio.gather(*(ring(cluster, names) for names in rings)), strict=True):
        assert is_ring(deadlock_of(outcomes).chain, names)


@pytest.mark.parametrize("seed", range(10))
def test_a_chain_that_ends_at_another_one(seed: int) -> None:
    """Part of the way is one chain of calls, being served: A -> B -> C stands behind a turn of C that waits for A.

    In simulated time: when a process stands still between two looks, both calls may find the cycle often enough to
    fail before either hears of the other's failure."""
    a, b, c = on("one"), on("two"), on("three")
    party = f"chain {next(_meetings)}"

    async def life(_: SimulatedLoop) -> None:
        async with three_hosts(clock=LoopClock()) as cluster, asyncio.timeout(20):
            outcomes = await asyncio.gather(
                cluster.hosts["one"].client.actor(Node, a).run([["call", b, [["meet", party, 2], ["call", c, []]]]]),
                cluster.hosts["one"].client.actor(Node, c).run([["meet", party, 2], ["call", a, []]]),
                return_exceptions=True,
            )
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert len(failed) == 1
        assert "call would deadlock" in str(failed[0])

    run(seed, life)


async def test_waiting_is_no_deadlock(cluster: Cluster) -> None:
    """However long it takes and however often it is followed, what waits for somebody who is busy gets its turn."""
    a, b, c = on("one"), on("two"), on("three")
    party = f"busy {next(_meetings)}"
    busy = asyncio.ensure_future(cluster.hosts["one"].client.actor(Node, c).run([["meet", party, 2], ["add"]]))
    await until(lambda: party in Meeting.parties)
    others = [
        asyncio.ensure_future(cluster.hosts[host].client.actor(Node, name).run([["call", following, [["add"]]]]))
        for host, name, following in [("one", b, c), ("two", a, b), ("three", a, c)]
    ]
    rounds = cluster.placement("three")._chaser
    await until(lambda: rounds._numbers >= 2)
    assert not any(other.done() for other in others)
    await Meeting.join(party, 2)
    assert await busy == 1
    assert sorted(await asyncio.gather(*others)) == [1, 2, 3]


async def test_a_cycle_that_is_broken_meanwhile_fails_nobody(cluster: Cluster) -> None:
    """The news of a cycle comes late, when the call has had its turn: nothing happens."""
    a, c = on("one"), on("three")
    chaser = cluster.placement("three")._chaser
    party = f"late {next(_meetings)}"
    busy = asyncio.ensure_future(cluster.hosts["one"].client.actor(Node, c).run([["meet", party, 2]]))
    await until(lambda: party in Meeting.parties)
    after = f"after {next(_meetings)}"
    call = asyncio.ensure_future(
        cluster.hosts["one"].client.actor(Node, a).run([["call", c, [["meet", after, 2], ["add"]]]])
    )
    await until(lambda: chaser._followed)
    (number,) = chaser._followed
    await Meeting.join(party, 2)
    await busy
    await until(lambda: after in Meeting.parties)  # its turn has begun
    chaser.found(number, (f"Node/{a}", f"Node/{c}", f"Node/{a}"))
    await Meeting.join(after, 2)
    assert await call == 1


async def test_one_chain_over_three_hosts(cluster: Cluster) -> None:
    """A -> B -> C -> A of one chain fails at once, without a probe."""
    a, b, c = on("one"), on("two"), on("three")
    program = [["call", b, [["call", c, [["call", a, []]]]]]]
    with pytest.raises(Deadlock, match=f"Node/{a} -> Node/{b} -> Node/{c} -> Node/{a}"):
        await cluster.hosts["two"].client.actor(Node, a).run(program)
    assert all(cluster.placement(host)._chaser._numbers == 0 for host in HOSTS)


async def test_what_another_release_says_is_let_pass(cluster: Cluster) -> None:
    """Items of a kind that this release does not know cost nothing, and those behind them are taken."""
    placement = cluster.placement("one")
    taken: list[object] = []
    placement._chaser.found = lambda number, chain: taken.append((number, chain))  # type: ignore[method-assign]  # watched
    placement.receive("two", encode_batch([("news", (1, 2)), ("cycle", (7, ("A/a", "A/a")))]))
    assert taken == [(7, ("A/a", "A/a"))]
