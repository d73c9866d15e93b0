"""A real cluster on Ray and a real Redis: hosts die, freeze, are replaced, and nothing is lost, doubled or refused.

The first cluster is on the Ray of the session. The last one, which faults hurt at random, has one of its own, as
`mecha run` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from actors.placement.hop import encode_batch
from actors.placement.stream import Stream
from statestores.model import partition_of
from tests.e2e import linearizability
from tests.e2e.clusters import ClusterProcess, Connection, hosts_of, pid_of_controller
from tests.e2e.verifier import FAULTS, Verifier, victim
from tests.e2e.zombies import Zombies
from tests.placements import ON_RAY
from tests.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.e2e.verifier import Victim

pytestmark = ON_RAY

APP = """
import os
import signal
import time
from pathlib import Path

from actors import actor, method
from workflow import ActivityFailed, RetryPolicy, activity, activity_info, workflow

@activity(num_cpus=1)
def apart(text: str) -> list:
    return [os.getpid(), text, activity_info().name]

@activity(num_cpus=1)
async def apart_and_wrong(text: str) -> str:
    raise ValueError(text)

class Odd(Exception):
    def __init__(self, *, text: str) -> None:
        super().__init__(text)

@activity(num_cpus=1)
def apart_and_odd(text: str) -> str:
    raise Odd(text=text)

@activity(num_cpus=1)
def apart_and_gone(text: str) -> str:
    raise SystemExit(text)

@activity(place="spread")
async def version_apart() -> int:
    return VERSION

@activity
def burns() -> int:
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass
    return os.getpid()

@activity
def sips() -> int:
    return os.getpid()

@workflow
async def ask_version() -> int:
    return await version_apart()

@workflow
async def burn() -> list:
    return [[await burns() for _ in range(3)], [await sips() for _ in range(3)]]

@workflow
async def measure(text: str) -> list:
    errors = []
    for wrong in (apart_and_wrong, apart_and_odd, apart_and_gone):
        try:
            await wrong(text)
        except Exception as error:
            errors.append(str(error))
    return [*await apart(text), errors]

@activity(num_cpus=1)
def kills_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

@activity(num_cpus=1)
def runs_on(mark: str) -> None:
    Path(mark + ".begun").touch()
    try:
        while True:
            time.sleep(0.05)
    finally:
        Path(mark + ".ended").touch()

@activity(num_cpus=1, retry=RetryPolicy(max_attempts=20, timeout=4.0))  # the first may end before its process is there
def runs_too_long(mark: str) -> None:
    runs_on.function(mark)

@activity(resources={"nobodys": 1})
def has_no_place() -> None: ...

@workflow
async def waits_for_a_node() -> None:
    await has_no_place()

@workflow
async def doomed() -> list:
    try:
        await kills_itself()
    except ActivityFailed as failed:
        return [failed.error_type, failed.message]

@workflow
async def terminated(mark: str) -> None:
    await runs_on(mark)

@workflow
async def late(mark: str) -> None:
    await runs_too_long(mark)

@actor
class Tally:
    count: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.count += amount
        return self.count

    @method(read_only=True)
    async def version(self) -> int:
        return VERSION

    @method
    async def block(self, mark: str) -> None:
        if not Path(mark + ".begun").exists():
            Path(mark + ".begun").touch()
            while not Path(mark + ".over").exists():
                time.sleep(0.05)
"""
KEYS = [f"k{n}" for n in range(24)]
# Between two calls of a caller. Hosts that are to start while all of them call need a processor, too.
_PAUSE_S = 0.02


def write_app(path: Path, version: int) -> Path:
    path.write_text(APP.replace("VERSION", str(version)))
    return path


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer(aof="everysec") as server:
        yield server


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_app(tmp_path_factory.mktemp("cluster") / "tally_app.py", 1)


@pytest.fixture(scope="module")
def cluster(redis: RedisServer, app: Path, ray_address: str) -> Iterator[ClusterProcess]:
    """Two hosts that serve and one spare, with the reaction times of a small lease."""
    with ClusterProcess(app, redis.url + "?namespace=tally", "--lease", "2s", "--ray-address", ray_address) as running:
        yield running


class Load:
    """Every key counted up by one caller at a time, over a connection of its own, each call until it is answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = dict.fromkeys(KEYS, 0)
        self.connections = {key: Connection(port) for key in KEYS}
        self._stopping = False

    @property
    def failures(self) -> list[str]:
        return [failure for connection in self.connections.values() for failure in connection.failures]

    async def drive(self, key: str, tag: str) -> None:
        while not self._stopping:
            name = f"{tag}-{key}-{self.answered[key]}"
            await self.connections[key].insist("POST", f"/v1.0/actors/Tally/{key}/method/add", b"1", key=name)
            self.answered[key] += 1
            await asyncio.sleep(_PAUSE_S)

    async def wait_round(self) -> None:
        """Returns when every key has been answered once more from now on."""
        before = dict(self.answered)
        while any(self.answered[key] == before[key] for key in KEYS):  # noqa: ASYNC110  # counted over HTTP
            await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def running(self, tag: str) -> AsyncIterator[Load]:
        """At the end every counter shows exactly the calls that were answered."""
        reader = Connection(self.port)
        before = {key: await self._count(reader, key) for key in KEYS}
        tasks = [asyncio.create_task(self.drive(key, tag)) for key in KEYS]
        try:
            await self.wait_round()
            yield self
            await self.wait_round()
            self._stopping = True
            await asyncio.gather(*tasks)
            after = {key: await self._count(reader, key) for key in KEYS}
            assert {key: after[key] - before[key] for key in KEYS} == self.answered
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for connection in (reader, *self.connections.values()):
                connection.close()

    async def _count(self, connection: Connection, key: str) -> int:
        count: int = await connection.insist("POST", f"/v1.0/actors/Tally/{key}/method/add", b"0")
        return count


async def wait_hosts(port: int, ready: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The hosts, once they are so."""
    async with asyncio.timeout(90):
        while not ready(hosts := await hosts_of(port)):  # noqa: ASYNC110  # of other processes
            await asyncio.sleep(0.05)
    return hosts


def is_whole(hosts: list[dict[str, Any]]) -> bool:
    """Two serve half of it each, and a spare is there."""
    return [len(host["owned"]) for host in hosts] == [16, 16, 0]


def owned_by_others(hosts: list[dict[str, Any]], victim: dict[str, Any]) -> int:
    return sum(len(host["owned"]) for host in hosts if host["name"] != victim["name"])


async def settled(port: int) -> list[dict[str, Any]]:
    return await wait_hosts(port, is_whole)


async def under_load(port: int, tag: str, disturb: Callable[[], Awaitable[None]]) -> Load:
    await settled(port)
    async with asyncio.timeout(120):
        async with Load(port).running(tag) as load:
            await disturb()
            await load.wait_round()
    return load


async def test_every_host_serves_every_actor(cluster: ClusterProcess) -> None:
    """A call that comes in anywhere finds its actor; partitions are spread evenly, and a spare is ready."""
    hosts = await settled(cluster.port)
    assert {p for host in hosts for p in host["owned"]} == {str(p) for p in range(32)}

    async def nothing() -> None:
        pass

    load = await under_load(cluster.port, "calm", nothing)
    assert load.failures == []


async def test_hosts_have_doors_for_each_other(cluster: ClusterProcess, ray_address: str) -> None:
    """Ray tells where they are, and what comes in there is taken, but not from whoever was not told."""
    from actors.placement.ray import RayCluster, cluster_namespace, join_ray, stop_ray

    names = [host["name"] for host in await settled(cluster.port) if host["owned"]]
    assert join_ray(ray_address)
    try:
        peers = RayCluster(cluster_namespace("tally_app", "default"))
        for name in names:
            address = await (await peers.host(name)).address()
            assert address is not None
            with pytest.raises(ConnectionError):
                await Stream.connect(address._replace(secret=bytes(32)), "a stranger")
            stream = await Stream.connect(address, "a guest")
            await stream.deliver(encode_batch([("cancel", "nothing")]))
            stream.close()
    finally:
        stop_ray()


async def test_activities_with_needs_run_as_tasks(cluster: ClusterProcess) -> None:
    """An activity that asks for processors runs in a process of its own; its result and its error are as anywhere, also
    when the error cannot be pickled, or would end the process."""
    hosts = await settled(cluster.port)
    connection = Connection(cluster.port, answer_s=60.0)
    shown = await connection.insist("POST", "/v1.0/mecha/workflows/measure/run?timeout=60s", b'"hello"', key="measure")
    connection.close()
    pid, text, name, errors = shown["output"]
    assert (text, name) == ("hello", "apart")
    kinds = ("ValueError: hello", "Odd: hello", "SystemExit: hello")
    assert [kind in error for kind, error in zip(kinds, errors, strict=True)] == [True] * 3
    assert pid not in {host["pid"] for host in hosts}


async def unplaced(connection: Connection) -> str:
    return str((await connection.insist("GET", "/v1.0/mecha/cluster"))["unplaced"])


async def test_an_activity_that_no_node_can_run_is_named(cluster: ClusterProcess) -> None:
    """It waits for such a node. Meanwhile `mecha cluster status` says so, and the driver, once."""
    await settled(cluster.port)
    connection = Connection(cluster.port)
    await connection.insist("POST", "/v1.0/workflows/dapr/waits_for_a_node/start?instanceID=waits")
    text = "Activity has_no_place waits for a node with nobodys 1"
    async with asyncio.timeout(60):
        while await unplaced(connection) != text:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.1)
        while f"mecha: {text}\n" not in cluster.said:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.1)
        await connection.insist("POST", "/v1.0/workflows/dapr/waits/terminate")
        while await unplaced(connection):  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.1)
    connection.close()
    assert cluster.said.count(f"mecha: {text}\n") == 1


async def test_an_activity_that_kills_its_process_fails(cluster: ClusterProcess) -> None:
    """After a few repeats its attempt has failed, and the workflow hears why."""
    await settled(cluster.port)
    connection = Connection(cluster.port, answer_s=90.0)
    shown = await connection.insist("POST", "/v1.0/mecha/workflows/doomed/run?timeout=90s", b"", key="doomed")
    connection.close()
    kind, message = shown["output"]
    assert kind == "WorkerDied"
    assert message.startswith("the process of kills_itself has died 4 times; the last time: The worker died")


@pytest.mark.parametrize("name", ["terminated", "late"])
async def test_a_task_that_nobody_waits_for_is_cancelled(cluster: ClusterProcess, tmp_path: Path, name: str) -> None:
    """The timeout of an attempt and the end of its workflow reach the task, which is interrupted."""
    await settled(cluster.port)
    mark = tmp_path / "task"
    connection = Connection(cluster.port)
    start = f"/v1.0/workflows/dapr/{name}/start?instanceID={name}"
    await connection.insist("POST", start, json.dumps(str(mark)).encode())
    terminate = f"/v1.0/workflows/dapr/{name}/terminate"
    async with asyncio.timeout(120):
        while not mark.with_suffix(".begun").exists():  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.05)
        if name == "terminated":
            await connection.insist("POST", terminate)
        while not mark.with_suffix(".ended").exists():  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.05)
    if name == "late":
        await connection.insist("POST", terminate)
    connection.close()


async def test_activities_that_compute_run_as_tasks(cluster: ClusterProcess) -> None:
    """A plain activity that takes a processor for long runs in a process of its own from the second time on; one that
    does not runs in the host, which has measured both."""
    hosts = {host["pid"] for host in await settled(cluster.port)}
    connection = Connection(cluster.port, answer_s=60.0)
    shown = await connection.insist("POST", "/v1.0/mecha/workflows/burn/run?timeout=60s", b"", key="burn")
    connection.close()
    burnt, sipped = shown["output"]
    assert [pid in hosts for pid in burnt] == [True, False, False]
    assert set(sipped) <= hosts


async def test_a_killed_host_is_replaced(cluster: ClusterProcess) -> None:
    """After kill -9 of a host under load every call is answered by its successor, once (INV-8), and a spare is made."""
    killed: list[str] = []

    async def kill() -> None:
        victim = (await hosts_of(cluster.port))[0]
        os.kill(victim["pid"], signal.SIGKILL)
        killed.append(victim["name"])

    await under_load(cluster.port, "kill", kill)
    hosts = await settled(cluster.port)
    assert killed[0] not in {host["name"] for host in hosts}


async def test_a_host_that_is_told_to_end_is_replaced(cluster: ClusterProcess) -> None:
    """POST /v1.0/shutdown ends the host that gets it, as it ends a server: gracefully, without failed calls; another
    one takes its place. Ray has nothing to say about it."""
    said = len(cluster.said)
    before = {host["name"] for host in await settled(cluster.port)}

    async def end() -> None:
        connection = Connection(cluster.port)
        await connection.request("POST", "/v1.0/shutdown")
        connection.close()
        await wait_hosts(cluster.port, lambda hosts: len(before - {host["name"] for host in hosts}) == 1)

    load = await under_load(cluster.port, "end", end)
    assert [failure for failure in load.failures if failure.startswith("Failed")] == []
    await settled(cluster.port)
    assert [line for line in cluster.said[said:] if "raylet" in line] == []


async def test_a_frozen_host_is_passed_by(cluster: ClusterProcess) -> None:
    """A stopped host (SIGSTOP) loses what it owns when its lease ends; awake again it changes nothing (INV-2)."""

    async def freeze() -> None:
        victim = (await hosts_of(cluster.port))[0]
        os.kill(victim["pid"], signal.SIGSTOP)
        try:
            await wait_hosts(cluster.port, lambda hosts: owned_by_others(hosts, victim) == 32)
        finally:
            os.kill(victim["pid"], signal.SIGCONT)

    await under_load(cluster.port, "freeze", freeze)


async def test_a_host_whose_loop_is_blocked_is_passed_by(cluster: ClusterProcess, tmp_path: Path) -> None:
    """Code that blocks the event loop loses the host's actors when its lease ends, as being frozen does, although the
    controller is still answered. What it has not recorded is run again elsewhere."""
    mark = tmp_path / "turn"

    async def block() -> None:
        partition = str(partition_of(f"Tally/{KEYS[0]}", 32))
        victim = next(host for host in await hosts_of(cluster.port) if partition in host["owned"])
        connection = Connection(cluster.port, answer_s=60.0)
        path = f"/v1.0/actors/Tally/{KEYS[0]}/method/block"
        blocking = asyncio.create_task(connection.insist("POST", path, json.dumps(str(mark)).encode(), key="block"))
        try:
            while not mark.with_suffix(".begun").exists():  # noqa: ASYNC110  # of another process
                await asyncio.sleep(0.05)
            await wait_hosts(cluster.port, lambda hosts: owned_by_others(hosts, victim) == 32)
            assert not mark.with_suffix(".over").exists()
        finally:
            mark.with_suffix(".over").touch()
        await blocking
        connection.close()

    await under_load(cluster.port, "block", block)


async def test_a_host_that_is_frozen_for_good_is_replaced(cluster: ClusterProcess) -> None:
    """Others have what it had, and it never comes back: it is ended, and a spare is there again."""
    victim = (await settled(cluster.port))[0]
    os.kill(victim["pid"], signal.SIGSTOP)
    try:
        await wait_hosts(cluster.port, lambda hosts: is_whole(hosts) and owned_by_others(hosts, victim) == 32)
    except BaseException:
        os.kill(victim["pid"], signal.SIGCONT)
        raise


async def test_a_killed_controller_comes_back(cluster: ClusterProcess) -> None:
    """Calls go on without a controller; Ray starts it again, and it repairs what broke meanwhile."""

    async def kill_both() -> None:
        victim = (await hosts_of(cluster.port))[0]
        os.kill(await pid_of_controller(cluster.port), signal.SIGKILL)
        os.kill(victim["pid"], signal.SIGKILL)

    await under_load(cluster.port, "controller", kill_both)
    await settled(cluster.port)


async def test_a_store_that_is_away_for_a_while(cluster: ClusterProcess, redis: RedisServer) -> None:
    """While the store does not answer, calls wait; nobody loses what it owns, and nothing is lost or doubled."""
    before = {host["name"]: host["owned"] for host in await settled(cluster.port)}

    async def away() -> None:
        redis.pause()
        await asyncio.sleep(5)
        redis.resume()

    await under_load(cluster.port, "away", away)
    assert {host["name"]: host["owned"] for host in await settled(cluster.port)} == before


async def test_rolling_to_new_code(cluster: ClusterProcess, app: Path) -> None:
    """Hosts are replaced one at a time by ones that load the application anew; both versions serve meanwhile, and no
    call is refused."""
    connection = Connection(cluster.port, answer_s=60.0)
    old = {host["name"] for host in await settled(cluster.port)}
    ask = "/v1.0/mecha/workflows/ask_version/run?timeout=60s"
    assert (await connection.insist("POST", ask, key="v1"))["output"] == 1
    write_app(app, 2)

    async def roll() -> None:
        await connection.insist("POST", "/v1.0/mecha/cluster/roll")
        await wait_hosts(cluster.port, lambda hosts: is_whole(hosts) and not old & {h["name"] for h in hosts})

    load = await under_load(cluster.port, "roll", roll)
    # A connection is closed with its host: to send again over another one is the client's part.
    assert [failure for failure in load.failures if failure.startswith("Failed")] == []
    versions = {await connection.insist("POST", f"/v1.0/actors/Tally/{key}/method/version") for key in KEYS}
    assert versions == {2}
    # Nor does a process of tasks go on with the code it has loaded.
    assert (await connection.insist("POST", ask, key="v2"))["output"] == 2
    connection.close()


def test_it_stops_gracefully(cluster: ClusterProcess) -> None:
    """SIGTERM drains all hosts and exits with 0."""
    assert cluster.stop() == 0


@pytest.fixture(scope="module")
def hurt() -> Iterator[Victim]:
    """A cluster for faults at random."""
    with victim(FAULTS, "--lease", "2s") as running:
        yield running


@pytest.mark.parametrize("seed", [1])
async def test_random_programs_while_it_is_hurt(hurt: Victim, seed: int) -> None:
    """Random programs over three layers of actors and workflows, faults at random: at the end every counter and every
    value is what a model says: nothing lost, nothing doubled."""
    assert await Verifier(hurt, seed, programs=1500).run() == {}


async def test_zombies_record_nothing(hurt: Victim) -> None:
    """INV-2, INV-3, INV-8: of a host that was stopped, and of one that was cut off from the store, until others had all
    of it, the store refuses what it has decided; histories, answers and receipts agree."""
    await settled(hurt.port)
    zombies = Zombies(hurt, seed=1)
    await zombies.run(2)
    assert min(zombies.refused) > 0


async def test_registers_are_linearizable_while_it_is_hurt(hurt: Victim) -> None:
    """INV-7: whatever clients were answered by registers, asked without keys, while hosts are killed and frozen, the
    store is restarted and answers are lost, one register that does one thing at a time would have answered too."""
    await settled(hurt.port)
    await linearizability.play(hurt, seconds=8, seed=1)
