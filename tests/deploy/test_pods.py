"""What Kubernetes does to Pods, done to real Ray nodes: they are told to end, and the driver beside the head is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.clusters import Connection, hosts_of
from tests.e2e.test_ray_cluster import Load, wait_hosts, write_app
from tests.placements import ON_RAY
from tests.servers import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

pytest.importorskip("ray")
pytestmark = ON_RAY
ROOT = Path(__file__).parents[2]
SMALL = ("--num-cpus=1", "--object-store-memory=80000000")
ENVIRONMENT = os.environ | {
    "RAY_USAGE_STATS_ENABLED": "0",
    # As KubeRay sets it, for a cluster with authOptions.mode: token.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a-token-of-thirty-two-characters",
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


class RayNode:
    """`ray start --block`, which is what KubeRay has a Pod's container run."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options, *SMALL]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "will now block" in line:
                return
        raise RuntimeError("the Ray node did not start:\n" + "".join(said))

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        end_of(self.process)


def end_of(process: subprocess.Popen[str]) -> int:
    """The exit code of a process that has been told to end."""
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


class Driver:
    """The container beside the head: what `deploy/driver.sh` prints and does."""

    def __init__(self, pid_file: Path, *options: str) -> None:
        self._pid_file = pid_file
        self.process = subprocess.Popen(
            ["/bin/sh", str(ROOT / "deploy" / "driver.sh"), *options],
            cwd=ROOT,
            env=ENVIRONMENT | {"PID_FILE": str(pid_file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.wait_said("mecha: serving")

    def wait_said(self, what: str) -> None:
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if what in line:
                return
        raise RuntimeError(f"the driver has not said {what!r}, but:\n" + "".join(said))

    def mecha(self) -> int:
        """The process id of `mecha run`."""
        return int(self._pid_file.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """As the container runtime does it."""
        self.process.send_signal(signal.SIGTERM)
        assert end_of(self.process) == 0 or kind is not None


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a Ray cluster with a head only."""
    port = free_port()
    # Short: names of sockets are made from it.
    directory = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")
    with directory, RayNode("--head", f"--port={port}", f"--temp-dir={directory.name}", "--include-dashboard=false"):
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def started(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[str]]]:
    """The port, and the driver's options."""
    port = free_port()
    app = write_app(tmp_path_factory.mktemp("pods") / "tally_app.py", 1)
    with RedisServer(aof="everysec") as redis:
        where = ["--ray-address", address, "--store", redis.url, "--port", str(port), "--lease", "2s"]
        yield port, [str(app), "--placement", "ray", *where, "--hosts", "1", "--hosts-per-node", "1", "--spares", "0"]


async def test_the_driver_of_the_next_pod_finds_the_application(started: tuple[int, list[str]], tmp_path: Path) -> None:
    """The end of the driver's container leaves hosts and controller as they are; the next driver takes them over."""
    port, options = started
    with Driver(tmp_path / "pid", *options):
        before = await hosts_of(port)
    connection = Connection(port)
    assert await connection.request("POST", "/v1.0/actors/Tally/k/method/add", b"1") == b"1"
    connection.close()
    with Driver(tmp_path / "pid", *options):
        assert [host["name"] for host in await hosts_of(port)] == [host["name"] for host in before]


async def test_a_node_that_is_told_to_end_hands_over_first(
    address: str, started: tuple[int, list[str]], tmp_path: Path
) -> None:
    """SIGTERM, which is how a Pod ends, drains a Ray node: its host hands over what it owns, and no call fails."""
    port, options = started
    with Driver(tmp_path / "pid", *options), RayNode(f"--address={address}") as node:
        hosts = await wait_hosts(port, lambda hosts: len(hosts) == 2 and all(host["owned"] for host in hosts))
        newer = max(hosts, key=lambda host: host["since_ms"])
        async with asyncio.timeout(120), Load(port).running("pod") as load:
            node.end()
            await wait_hosts(port, lambda hosts: newer["name"] not in {host["name"] for host in hosts})
            await load.wait_round()
        assert [failure for failure in load.failures if failure.startswith("Failed")] == []


async def test_the_application_can_be_ended(started: tuple[int, list[str]], tmp_path: Path) -> None:
    """`mecha run` itself, told to end, ends every host; its container stays, so that nothing is started again."""
    port, options = started
    with Driver(tmp_path / "pid", *options) as driver:
        os.kill(driver.mecha(), signal.SIGTERM)
        await asyncio.to_thread(driver.wait_said, "the application has been ended")
        with pytest.raises(ConnectionRefusedError):
            await Connection(port).request("GET", "/v1.0/healthz")
