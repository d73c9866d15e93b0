"""Actor types that ask for resources and labels, on real Ray nodes that have them, or not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from actors.hostneeds import host_needs
from actors.placement import ray as on_ray
from actors.placement.supervisor import Wanted
from tests.e2e.clusters import ROOT, ClusterProcess, Connection
from tests.e2e.test_ray_cluster import wait_hosts
from tests.placements import ON_RAY
from tests.raynodes import add_node, ray_nodes
from tests.servers import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = ON_RAY

APP = """
from actors import actor, method

@actor(resources={"special": AMOUNT, "memory": "1MiB"}, labels={"zone": "in(a, b)"})
class Model:
    count: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.count += amount
        return self.count

@actor
class Plain:
    @method
    async def hello(self) -> str:
        return "hello"
"""


def write_app(path: Path, amount: int) -> Path:
    path.write_text(APP.replace("AMOUNT", str(amount)))
    return path


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head node that has nothing special."""
    with ray_nodes() as cluster:
        yield cluster


async def test_hosts_wait_for_a_node_that_has_what_they_need(nodes: Any, tmp_path: Path) -> None:
    """The driver says what is lacking; when a suitable node has come all hosts run there, none on the other one."""
    app = write_app(tmp_path / "model_app.py", 1)
    options = ("--ray-address", nodes.address, "--hosts", "2", "--spares", "1", "--lease", "2s")
    with RedisServer(aof="everysec") as redis:
        running = ClusterProcess(app, redis.url, *options)
        starting = asyncio.create_task(asyncio.to_thread(running.__enter__))
        try:
            async with asyncio.timeout(60):
                while not any("waiting for nodes" in line for line in running.said):  # noqa: ASYNC110  # of a process
                    await asyncio.sleep(0.05)
            told = next(line for line in running.said if "waiting for nodes" in line)
            assert "3 of 3 hosts have no place. Each needs memory 1MiB, special 1, label zone: in(a, b)." in told
            assert "special 0 of 1, label zone is not set, not in(a, b)" in told
            # Room for two: they serve, and the spare is missing.
            node = add_node(nodes, resources={"special": 2}, labels={"zone": "a"})
            await starting
            hosts = await wait_hosts(running.port, lambda hosts: [len(host["owned"]) for host in hosts] == [16, 16])
            assert {host["node"] for host in hosts} == {node.node_id}
            connection = Connection(running.port)
            assert await connection.insist("POST", "/v1.0/actors/Model/m/method/add", b"2", key="k") == 2
            assert await connection.insist("POST", "/v1.0/actors/Plain/p/method/hello") == "hello"
            status = await connection.insist("GET", "/v1.0/mecha/cluster")
            connection.close()
            assert (status["placeable"], status["wanted_serving"]) == (2, 2)
            assert status["unplaced"].startswith("1 of 3 hosts have no place.")
            shown = _mecha("cluster", "status", "--url", f"http://127.0.0.1:{running.port}")
            assert "1 of 3 hosts have no place." in shown.stdout
        finally:
            await asyncio.gather(starting, return_exceptions=True)
            await asyncio.to_thread(running.__exit__)


@pytest.mark.slow
async def test_what_others_hold_is_told(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has what a host needs, and has given it away: the host is given up, and what is free is told."""
    add_node(nodes, resources={"special": 1}, labels={"zone": "a"})
    monkeypatch.setattr(on_ray, "_START_S", 5.0)
    from ray.util.placement_group import placement_group

    needs = host_needs({"special": 1}, {"zone": "a"})
    on_ray.start_ray(nodes.address)
    try:
        held = placement_group([{"special": 1}])
        assert await asyncio.to_thread(held.wait, 60)
        spec = on_ray.ClusterSpec("needs", never_built, Wanted(needs=needs), "tag")
        with pytest.raises(TimeoutError) as told:
            await on_ray.RayFleet(spec).start_host("1", None)
    finally:
        on_ray.stop_ray()
    assert "It needs special 1, label zone: a, and others hold that: node" in str(told.value)
    assert str(told.value).endswith(" has special 0 of 1 free")


def never_built(name: str, version: str, cluster: on_ray.RayCluster) -> on_ray.HostProcess:
    raise AssertionError("it has no place")


def test_what_no_node_has_ends_the_start(tmp_path: Path) -> None:
    """On a Ray of its own no node will come: one line says what is lacking, and the exit code is 1."""
    app = write_app(tmp_path / "model_app.py", 5)
    with RedisServer(aof="everysec") as redis:
        port = str(free_port())
        ended = _mecha("run", str(app), "--placement", "ray", "--store", redis.url, "--port", port)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert "3 of 3 hosts have no place" in last
    assert "special 0 of 5, label zone is not set, not in(a, b)" in last


def test_types_that_no_host_can_serve_together(tmp_path: Path) -> None:
    """Different values for one label end the start, before Ray is asked for anything."""
    app = tmp_path / "torn_app.py"
    app.write_text(
        "from actors import actor\n\n\n"
        '@actor(labels={"zone": "a"})\nclass One:\n    pass\n\n\n'
        '@actor(labels={"zone": "b"})\nclass Two:\n    pass\n'
    )
    ended = _mecha("run", str(app), "--placement", "ray", "--store", "redis://127.0.0.1:1")
    assert ended.returncode == 1
    assert "One and Two ask for different values of label zone (a, b)" in ended.stderr


def _mecha(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runtime_api.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
