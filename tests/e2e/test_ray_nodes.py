"""Several Ray nodes on one machine, one host on each: nodes come, are drained, and lose their raylet or their GCS."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from actors import UnknownMethod
from runtime_api import Runtime
from tests.e2e.clusters import ClusterProcess
from tests.e2e.test_ray_cluster import Load, wait_hosts, write_app
from tests.placements import ON_RAY
from tests.raynodes import add_node, ray_nodes
from tests.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = ON_RAY


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head node and another one. The GCS writes what it knows to a file, so that it can be started again."""
    storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path_factory.mktemp("gcs"))}
    with ray_nodes(storage) as cluster:
        add_node(cluster)
        yield cluster


@pytest.fixture(scope="module")
def cluster(nodes: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    app = write_app(tmp_path_factory.mktemp("nodes") / "tally_app.py", 1)
    options = ("--ray-address", nodes.address, "--hosts-per-node", "1", "--spares", "0", "--lease", "2s")
    with RedisServer(aof="everysec") as redis, ClusterProcess(app, redis.url, *options) as running:
        yield running


def is_spread(hosts: list[dict[str, Any]], count: int) -> bool:
    """So many hosts, each on a node of its own, with even shares of all partitions."""
    shares = [len(host["owned"]) for host in hosts]
    return (
        len({h["node"] for h in hosts}) == len(hosts) == count and sum(shares) == 32 and max(shares) - min(shares) < 2
    )


async def under_load(port: int, tag: str, disturb: Callable[[], Awaitable[None]]) -> Load:
    async with asyncio.timeout(150):
        async with Load(port).running(tag) as load:
            await disturb()
            await load.wait_round()
    return load


async def test_a_client_by_ray(cluster: ClusterProcess, nodes: Any) -> None:
    """A job of the Ray cluster calls actors by Ray, and finds HTTP for the rest, knowing the application's id alone."""
    await wait_hosts(cluster.port, lambda hosts: is_spread(hosts, 2))
    async with Runtime.connect(f"ray:{nodes.address}", app_id="tally_app") as runtime:
        for key in ("r1", "r2", "r3", "r4"):
            tally: Any = runtime.actor("Tally", key, idempotency_key="one")
            assert await tally.add(3) == 3
            assert await tally.add(3) == 3
        with pytest.raises(UnknownMethod):
            await runtime.actor("Tally", "r1").fly()
        await runtime.send(runtime.actor("Tally", "r1").add, 1)
        while await runtime.actor("Tally", "r1").add(0) < 4:
            pass


async def test_partitions_spread_to_a_node_that_is_added(cluster: ClusterProcess, nodes: Any) -> None:
    """A new node gets a host, and the host its share, without failed calls."""
    await wait_hosts(cluster.port, lambda hosts: is_spread(hosts, 2))

    async def add() -> None:
        add_node(nodes)  # blocks the load for a while: Ray wants the main thread
        await wait_hosts(cluster.port, lambda hosts: is_spread(hosts, 3))

    load = await under_load(cluster.port, "add", add)
    assert [failure for failure in load.failures if failure.startswith("Failed")] == []


async def test_a_drained_node_is_left(cluster: ClusterProcess, nodes: Any) -> None:
    """The host of a node that is drained, or about to be preempted, hands over what it owns, without failed calls."""
    hosts = await wait_hosts(cluster.port, lambda hosts: is_spread(hosts, 3))
    head = nodes.head_node.node_id
    leaving = next(host["node"] for host in hosts if host["node"] != head)

    async def drain() -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
        deadline = ["--deadline-remaining-seconds", "300"]
        await asyncio.to_thread(subprocess.run, [*command, "--node-id", leaving, *reason, *deadline], check=True)
        await wait_hosts(cluster.port, lambda hosts: is_spread(hosts, 2) and leaving not in {h["node"] for h in hosts})

    load = await under_load(cluster.port, "drain", drain)
    assert [failure for failure in load.failures if failure.startswith("Failed")] == []


async def test_a_zombie_changes_nothing(cluster: ClusterProcess, nodes: Any) -> None:
    """A raylet dies and its host lives on, renewing its lease, while Ray calls it dead: its partitions are taken from
    it, and nothing is recorded twice (INV-2, INV-3)."""
    hosts = await wait_hosts(cluster.port, lambda hosts: is_spread(hosts, 2))
    head = nodes.head_node.node_id
    victim = next(host for host in hosts if host["node"] != head)
    node = next(node for node in nodes.worker_nodes if node.node_id == victim["node"])

    async def kill_raylet() -> None:
        # Not reaped: so the host does not notice by Ray's means, and lives on.
        os.kill(node.all_processes["raylet"][0].process.pid, 9)
        await wait_hosts(
            cluster.port, lambda hosts: sum(len(h["owned"]) for h in hosts if h["name"] != victim["name"]) == 32
        )

    await under_load(cluster.port, "zombie", kill_raylet)


async def test_calls_go_on_without_the_gcs(cluster: ClusterProcess, nodes: Any) -> None:
    """While Ray's control store is away calls are served; when it is back, so is the care for hosts."""
    hosts = await wait_hosts(cluster.port, lambda hosts: sum(len(h["owned"]) for h in hosts) == 32)

    async with asyncio.timeout(150), Load(cluster.port).running("gcs") as load:
        nodes.head_node.kill_gcs_server()
        for _ in range(5):
            await load.wait_round()
        nodes.head_node.start_gcs_server()
        await load.wait_round()
    os.kill(hosts[0]["pid"], 9)
    await wait_hosts(cluster.port, lambda now: hosts[0]["name"] not in {h["name"] for h in now} and is_owned(now))


def is_owned(hosts: list[dict[str, Any]]) -> bool:
    return len({p for host in hosts for p in host["owned"]}) == 32
