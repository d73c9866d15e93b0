"""A cluster in one process: real hosts on one store, and a network between them in a tester's hand."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from actors import Host
from actors.placement.cluster import ClusterPlacement
from actors.placement.hop import PeerGone, PeerUnsure
from statestores.memory import MemoryStore
from statestores.model import partition_of
from tests.actors.worlds import definitions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.placement.hop import Peer
    from statestores.store import Journal

PARTITIONS = 4


class Network:
    """Carries batches between the hosts of one process, in order; each takes a trip through the event loop."""

    def __init__(self) -> None:
        self.placements: dict[str, ClusterPlacement] = {}
        self.frozen: set[str] = set()
        # (sender, receiver) between which nothing arrives.
        self.held: set[tuple[str, str]] = set()
        self.dropping: set[str] = set()
        # So many look-ups of peers fail, without a word about the peer.
        self.failing_lookups = 0
        self.batches: list[tuple[str, str, bytes]] = []
        self._thawed = asyncio.Event()

    async def connect(self, name: str) -> Peer:
        await asyncio.sleep(0)
        if self.failing_lookups:
            self.failing_lookups -= 1
            raise ConnectionError("the name service is away")
        if name not in self.placements:
            raise PeerGone(name)
        return Wire(self, name)

    def freeze(self, name: str) -> None:
        """Batches to this host are taken by nobody, as those to a stopped process."""
        self.frozen.add(name)

    def hold(self, sender: str, receiver: str) -> None:
        self.held.add((sender, receiver))

    def thaw(self, name: str) -> None:
        """Ends `freeze` and `hold`."""
        self.frozen.discard(name)
        self.held = {pair for pair in self.held if name not in pair}
        self._thawed.set()
        self._thawed = asyncio.Event()

    async def wait_passage(self, sender: str, receiver: str) -> None:
        while sender in self.frozen or receiver in self.frozen or (sender, receiver) in self.held:
            await self._thawed.wait()


class Wire:
    spacing_s = 0.003

    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._name = name

    async def deliver(self, sender: str, batch: bytes) -> None:
        network = self._network
        await asyncio.sleep(0)
        await network.wait_passage(sender, self._name)
        if self._name not in network.placements:
            raise PeerGone(self._name)
        network.batches.append((sender, self._name, batch))
        network.placements[self._name].receive(sender, batch)
        if self._name in network.dropping:  # it arrived, and the sender does not hear of it
            network.dropping.discard(self._name)
            raise PeerUnsure(self._name)

    def close(self) -> None:
        """Holds nothing."""


class Cluster:
    """Hosts by name. They own nothing until they are told to."""

    def __init__(self, journal: Journal, *classes: type) -> None:
        self.journal = journal
        self.network = Network()
        self.hosts: dict[str, Host] = {}
        self._classes = classes

    async def add(self, name: str, partitions: list[int] | None = None, **options: object) -> Host:
        made: list[ClusterPlacement] = []

        def placement(host: Host) -> ClusterPlacement:
            made.append(ClusterPlacement(host, self.network, refresh_s=0.05, patience_s=5.0))
            return made[0]

        given: dict[str, Any] = {"lease_s": 1.0, **options}
        host = Host(self.journal, definitions(*self._classes), host_id=name, placement=placement, **given)
        self.network.placements[name] = made[0]
        self.hosts[name] = host
        await host.start()
        if partitions is not None:
            await made[0].take(partitions, force=True)
        return host

    def placement(self, name: str) -> ClusterPlacement:
        return self.network.placements[name]

    def kill(self, name: str) -> None:
        """As `kill -9`: the process is gone, and whoever calls it finds out."""
        del self.network.placements[name]
        self.hosts.pop(name).abort()

    async def close(self) -> None:
        for name in list(self.network.frozen):
            self.network.thaw(name)
        for host in self.hosts.values():
            await host.stop(timeout_s=2)


@asynccontextmanager
async def cluster_of(*classes: type, partitions: int = PARTITIONS) -> AsyncIterator[Cluster]:
    """On a store of its own, in memory."""
    store = MemoryStore(partitions=partitions)
    await store.open()
    made = Cluster(store.journal, *classes)
    yield made
    await made.close()
    await store.close()


def ids_in(partition: int, actor_type: str) -> list[str]:
    """Actor ids of that type in one of `PARTITIONS`."""
    return [n for n in map(str, range(1000)) if partition_of(f"{actor_type}/{n}", PARTITIONS) == partition]
