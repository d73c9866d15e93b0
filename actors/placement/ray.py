"""Placement on Ray: hosts are async Ray actors, a controller is the supervisor of them. The only file that imports ray.

What Ray is used for: to start processes on nodes, to carry batches between them, and to say that a process has ended.
What it is not trusted with: which host owns what (the store's epochs), and that a host it calls dead is dead (leases).

- Ray never repeats a call here (`max_task_retries=0`): it would repeat side effects. Calls between hosts are repeated
  by `ClusterPlacement`, with their identity.
- A host is asked by the controller in a concurrency group of its own, which Ray runs on a thread of its own: a busy
  event loop still answers, and says how late it is.
- One call that never returns stands at each host: it fails within milliseconds of the end of the process.
- Hosts outlive the controller, and it the driver (detached, found by name). A controller that Ray has started again
  adopts the hosts that are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import socket
import threading
import time
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import ray
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.placement.hop import PeerGone, PeerUnsure, asked_of
from actors.placement.stream import Address, Door, StreamPeer
from actors.placement.supervisor import LONGEST_LAG_S, Node, Report, Supervisor, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from actors.hostneeds import HostNeeds
    from actors.placement.cluster import ClusterPlacement
    from actors.placement.hop import Asked
    from actors.placement.supervisor import HostFacts, HostHandle

    Bytes = bytes | bytearray | memoryview

T = TypeVar("T")

log = logging.getLogger(__name__)

_CONTROLLER = "controller"
_HOST_PREFIX = "host-"
_OWN_DEATH_S = 2.0
_OWN_END_S = 2.0
_LOST = "an object is lost, its durable copy is used: %s"
_START_S = 60.0
_MOST_CALLS = 10_000
_SMALLEST_OBJECT_STORE = 80 << 20
_REACH_S = 5.0
# What a client of HTTP/2 says first, and is answered at once: Ray's control store is a server of gRPC.
_FRAME_HEAD = 9
_SETTINGS = 4
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0))


class TaskDied(Exception):
    """A task's process has ended, killed by its own code, for the memory it took, or from outside."""


class TaskLost(Exception):
    """A task's node has ended, or was taken away."""


class HostProcess(Protocol):
    """What runs inside a host actor, built there by whoever composes runtimes."""

    @property
    def placement(self) -> ClusterPlacement: ...
    async def start(self) -> None: ...
    async def stop(self, timeout_s: float) -> None: ...
    def facts(self) -> HostFacts:
        """Asked on another thread."""


class ClusterSpec(NamedTuple):
    """`namespace`: Ray's, one for each application. `build(name, version, cluster)` makes the process of a host; it is
    sent to the hosts, so it must be importable there. Pickled, it is unpickled by hosts only: the controller, which
    passes it on and which they wait for, does not import what they are made of. `environment`: Ray's runtime_env of
    hosts. `tag`: tells hosts of this cluster from those of another one that uses, or used, the same store."""

    namespace: str
    build: Callable[[str, str, RayCluster], HostProcess] | bytes
    wanted: Wanted
    tag: str
    environment: dict[str, Any] | None = None


# -- hosts -------------------------------------------------------------------------------------------------------------


class _HostActor:
    """One host: a process of the cluster. Its event loop is that of Ray's default concurrency group."""

    def __init__(self, name: str, version: str, spec: ClusterSpec) -> None:
        self._name, self._version = name, version
        self._cluster = RayCluster(spec.namespace)
        build = pickle.loads(spec.build) if isinstance(spec.build, bytes) else spec.build
        self._process = build(name, version, self._cluster)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: asyncio.Task[None] | None = None
        self._door = Door(self._take)
        self._address: Address | None = None

    async def start(self) -> None:
        """Once, however often it is said: a controller may end between making a host and telling it to start, and the
        one after it tells all it finds."""
        if self._started is None:
            self._started = asyncio.create_task(self._start())
        await self._started

    async def _start(self) -> None:
        await self._process.start()
        self._address = await self._open_door()
        self._loop = asyncio.get_running_loop()
        self._watching = asyncio.create_task(self._end_when_declared_dead())

    async def _open_door(self) -> Address | None:
        if _is_encrypted():
            return None  # Ray encrypts what it carries, the door does not
        try:
            return await self._door.open(self._cluster.node_address())
        except OSError as error:
            log.warning("%s takes batches through Ray alone: %s", self._name, error)
            return None

    async def _end_when_declared_dead(self) -> None:
        """A host whose raylet is gone is dead to Ray, and nobody calls it any more; yet it goes on, for up to a minute,
        to take connections of clients. What it owned is others' by then; it only has to go."""
        while True:
            await asyncio.sleep(_OWN_DEATH_S)
            try:
                await _in_thread(ray.get_actor, self._name, self._cluster.namespace)
            except ValueError:
                log.warning("%s was declared dead, and ends", self._name)
                os._exit(1)
            except Exception as error:  # nobody says that it is dead
                log.info("Ray's control store does not answer: %s", error)

    async def deliver(self, sender: str, batch: bytes) -> None:
        self._door.take_from_detour(sender, batch)

    def _take(self, sender: str, batch: bytes) -> None:
        self._process.placement.receive(sender, batch)

    async def address(self) -> tuple[Any, ...] | None:
        """Of the door for batches, if there is one. Hosts of other releases read it: fields are added at the end."""
        await self.start()
        return None if self._address is None else tuple(self._address)

    async def request(self, wanted: tuple[Any, ...]) -> tuple[str, Any]:
        return await self._process.placement.request(asked_of(wanted))

    async def take(self, partitions: list[int], alive: list[str]) -> None:
        await self._process.placement.take_free(partitions, alive)

    async def give(self, partitions: list[int], timeout_s: float) -> None:
        await self._process.placement.give(partitions, timeout_s)

    async def stop(self, timeout_s: float) -> None:
        await self._process.stop(timeout_s)
        self._address = None
        self._door.close()

    async def report(self) -> Report:
        node = ray.get_runtime_context().get_node_id()
        lag_s = await self._lag_s()
        # After that: a loop that has come to it may have renewed the lease as well.
        facts = self._process.facts()
        return Report(
            name=self._name,
            node=node,
            pid=os.getpid(),
            since_ms=facts.since_ms,
            version=self._version,
            partitions=facts.partitions,
            owned=facts.owned,
            lag_s=lag_s,
            activations=facts.activations,
            url=facts.url,
            lease_holds=facts.lease_holds,
            hears_store=facts.hears_store,
            asked=facts.asked,
        )

    async def _lag_s(self) -> float:
        """How long the host's event loop takes to get to something."""
        assert self._loop is not None, "start() comes first"
        begun = time.monotonic()
        came = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop))
        try:
            async with asyncio.timeout(LONGEST_LAG_S):
                await came
        except TimeoutError:
            return LONGEST_LAG_S
        return min(time.monotonic() - begun, LONGEST_LAG_S)

    async def wait_for_ever(self) -> None:
        await asyncio.Event().wait()


def _host_class() -> Any:
    for name in ("report", "wait_for_ever"):
        setattr(_HostActor, name, ray.method(concurrency_group="control")(getattr(_HostActor, name)))
    return _actor_class(_HostActor, max_restarts=0, concurrency_groups={"control": 64})


def _actor_class(cls: type, **options: Any) -> Any:
    """Ray's class of actors. (Its annotations know fewer options than it takes.)"""
    make: Any = ray.remote
    options |= {"num_cpus": 0, "max_task_retries": 0, "max_concurrency": _MOST_CALLS, "enable_task_events": False}
    return make(**options)(cls)


class RayHost:
    """A host as others see it: the detour to a peer, the handle of the supervisor, the way in of clients."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    async def deliver(self, sender: str, batch: bytes) -> None:
        await self._asked_as_peer("deliver", sender, batch)

    async def address(self) -> Address | None:
        """See `Detour`."""
        if not hasattr(self._actor, "address"):  # of a release that has no door
            return None
        fields: tuple[Any, ...] | None = await self._asked_as_peer("address")
        return None if fields is None else Address(*fields[: len(Address._fields)])

    async def _asked_as_peer(self, method: str, *args: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*args)
        except ActorUnavailableError as error:
            raise PeerUnsure(str(error)) from error
        except RayActorError as error:
            raise PeerGone(self.name) from error
        except RayError as error:
            raise PeerUnsure(str(error)) from error

    async def request(self, wanted: Asked) -> tuple[str, Any]:
        """See `ClusterPlacement.request`. Raises `PeerGone`, `PeerUnsure`."""
        try:
            answer: tuple[str, Any] = await self._actor.request.remote(tuple(wanted))
        except RayActorError as error:
            raise PeerGone(self.name) from error
        except RayError as error:
            raise PeerUnsure(str(error)) from error
        return answer

    async def start(self) -> None:
        await self._done(self._actor.start.remote())

    async def report(self) -> Report:
        report: Report = await self._done(self._actor.report.remote())
        return report

    async def take(self, partitions: Sequence[int], alive: Sequence[str]) -> None:
        await self._done(self._actor.take.remote(list(partitions), list(alive)))

    async def give(self, partitions: Sequence[int], timeout_s: float) -> None:
        await self._done(self._actor.give.remote(list(partitions), timeout_s))

    async def stop(self, timeout_s: float) -> None:
        await self._done(self._actor.stop.remote(timeout_s))

    async def wait_gone(self) -> None:
        while True:
            try:
                await self._actor.wait_for_ever.remote()
            except ActorUnavailableError:
                await asyncio.sleep(0.1)
            except RayActorError:
                return

    def kill(self) -> None:
        ray.kill(self._actor, no_restart=True)

    async def _done(self, reference: Any) -> Any:
        try:
            return await reference
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except ActorUnavailableError:
            raise
        except RayActorError as error:
            raise PeerGone(self.name) from error


class RayFleet:
    """Hosts as detached actors of one namespace."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._class = _host_class()

    async def start_host(self, version: str, node: str | None) -> HostHandle:
        name = f"{_HOST_PREFIX}{self._spec.tag}-{token_hex(4)}"
        strategy: Any = "SPREAD" if node is None else NodeAffinitySchedulingStrategy(node, soft=False)
        options: dict[str, Any] = {"name": name, "namespace": self._spec.namespace, "lifetime": "detached"}
        options |= _asking(self._spec.wanted.needs)
        if self._spec.environment:
            options["runtime_env"] = self._spec.environment
        actor = self._class.options(scheduling_strategy=strategy, **options).remote(name, version, self._spec)
        host = RayHost(name, actor)
        try:
            async with asyncio.timeout(_START_S):
                await host.start()
        except TimeoutError as error:
            host.kill()
            raise TimeoutError(await _in_thread(_why_late, self._spec.wanted.needs)) from error
        except BaseException:
            host.kill()
            raise
        return host

    async def existing(self) -> list[HostHandle]:
        found = await _in_thread(_named_hosts, self._spec.namespace)
        for _, actor in found:
            actor.start.remote()
        return [RayHost(name, actor) for name, actor in found]

    async def nodes(self) -> list[Node]:
        return await _in_thread(_nodes)


def _named_hosts(namespace: str) -> list[tuple[str, Any]]:
    found = []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] == namespace and named["name"].startswith(_HOST_PREFIX):
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                found.append((named["name"], ray.get_actor(named["name"], namespace)))
    return found


def _nodes() -> list[Node]:
    from ray._private.state import state

    nodes: list[dict[str, Any]] = state.node_table()  # type: ignore[no-untyped-call]  # Ray's
    draining = state.get_draining_nodes()
    return [
        Node(node["NodeID"], node["NodeID"] in draining, node["Resources"], node["Labels"])
        for node in nodes
        if node["Alive"]
    ]


def _asking(needs: HostNeeds) -> dict[str, Any]:
    """As options of a Ray actor."""
    asked = dict(needs.resources)
    options: dict[str, Any] = {name: asked.pop(name) for name in ("num_cpus", "num_gpus", "memory") if name in asked}
    options |= {"resources": asked} if asked else {}
    return options | ({"label_selector": dict(needs.labels)} if needs.labels else {})


def _why_late(needs: HostNeeds) -> str:
    from ray._private.state import state

    late = f"a host was not up after {_START_S:g} s"
    free: dict[str, dict[str, float]] = state.available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray's
    held = [
        f"node {node.id[:12]} has {', '.join(lacks)} free"
        for node in _nodes()
        if needs.room(node.resources, node.labels) and (lacks := needs.lacks(free.get(node.id, {}), node.labels))
    ]
    return f"{late}. It needs {needs}, and others hold that: {'; '.join(held)}" if held else late


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    """Ray's own look-ups block."""
    return await asyncio.get_running_loop().run_in_executor(None, functools.partial(function, *args))


# -- the controller ----------------------------------------------------------------------------------------------------


class _ControllerActor:
    """The supervisor, in an actor that Ray starts again when it dies; on an event loop of its own."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._loop = asyncio.new_event_loop()
        self._supervisor = Supervisor(RayFleet(spec), spec.wanted)
        threading.Thread(target=self._loop.run_forever, daemon=True, name="supervisor").start()
        self._running = asyncio.run_coroutine_threadsafe(self._supervisor.run(), self._loop)
        # `stop` cancels it. Any other end is one that Ray must see, to start another controller.
        self._running.add_done_callback(lambda ended: None if ended.cancelled() else os._exit(1))

    async def status(self) -> dict[str, Any]:
        return await self._there(self._status())

    async def roll(self, version: str) -> None:
        await self._there(self._roll(version))

    async def stop(self) -> None:
        self._running.cancel()
        await self._there(self._supervisor.stop_hosts())

    async def _roll(self, version: str) -> None:
        self._supervisor.roll(version)

    async def _status(self) -> dict[str, Any]:
        supervisor = self._supervisor
        return {
            "pid": os.getpid(),
            "wanted": supervisor.wanted._asdict() | {"needs": str(supervisor.wanted.needs)},
            "settled": supervisor.is_settled,
            "serving": sum(bool(report.owned) for report in supervisor.reports()),
            "wanted_serving": supervisor.wanted_serving,
            "error": supervisor.last_error,
            "placeable": supervisor.placeable,
            "unplaced": supervisor.unplaced,
            "silent": supervisor.silent(),
            "hosts": [_shown(report) for report in supervisor.reports()],
        }

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


def _shown(report: Report) -> dict[str, Any]:
    """As JSON values."""
    shown = report._asdict() | {"owned": {str(partition): epoch for partition, epoch in report.owned.items()}}
    del shown["asked"]
    return shown


class RayCluster:
    """One application's cluster, by its namespace, from anywhere in Ray: transport of its hosts, and its controls."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def start(self, spec: ClusterSpec) -> None:
        """Make the controller, which makes the hosts; returns at once. One that is there already stays."""
        made = _actor_class(_ControllerActor, max_restarts=-1)
        made.options(name=_CONTROLLER, namespace=self.namespace, lifetime="detached", get_if_exists=True).remote(spec)

    async def connect(self, name: str) -> StreamPeer:
        """The peer of that name. Raises `PeerGone`."""
        return StreamPeer(name, await self.host(name))

    async def host(self, name: str) -> RayHost:
        """Raises `PeerGone`."""
        try:
            return RayHost(name, await _in_thread(ray.get_actor, name, self.namespace))
        except ValueError as error:
            raise PeerGone(name) from error

    async def end_own_host(self, name: str) -> None:
        """End this process, which is that host: as Ray ends one that is meant to end, since of any other it would tell
        the driver at length. Does not return."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_OWN_END_S):
                (await self.host(name)).kill()
                await asyncio.Event().wait()
        os._exit(0)

    async def status(self) -> dict[str, Any]:
        """What the controller (`pid`) sees: hosts with their partitions, epochs, lag and activations. Raises `PeerGone`
        while there is no controller."""
        status: dict[str, Any] = await self._ask("status")
        return status

    def node_address(self) -> str:
        """Of this process's node, as others reach it."""
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's

    async def roll(self, version: str) -> None:
        await self._ask("roll", version)

    async def stop(self) -> None:
        """Drain and end all hosts, then the controller."""
        await self._ask("stop")
        ray.kill(await _in_thread(ray.get_actor, _CONTROLLER, self.namespace), no_restart=True)

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            controller = await _in_thread(ray.get_actor, _CONTROLLER, self.namespace)
            return await getattr(controller, method).remote(*args)
        except (ValueError, RayActorError) as error:
            raise PeerGone(f"no controller of {self.namespace} answers: {error}") from error


class SharedBytes:
    """Bytes in Ray's object store, for processes on any node. They are there for as long as Ray keeps its word: who
    needs them for certain has another copy."""

    def __init__(self, reference: Any) -> None:
        # Inside something, a reference travels to a task as it is: Ray does not wait for it, and starts the task
        # although the object is lost.
        self.reference = reference

    async def fetch(self) -> memoryview | None:
        """A view of the shared memory, there as long as the view is. None: the object is lost, with a node or a
        process."""
        try:
            found: memoryview = await self.reference
        except RayError as error:
            log.warning(_LOST, error)
            return None
        return found

    def fetch_blocking(self) -> memoryview | None:
        """`fetch`, in a task."""
        try:
            found: memoryview = ray.get(self.reference)
        except RayError as error:
            log.warning(_LOST, error)
            return None
        return found


class Shareable:
    """Bytes on their way into Ray's object store; out of it comes a view. Ray would copy plain bytes while it holds the
    interpreter, twice on the way in and once on the way out: these go beside its message, by the C++ of it."""

    def __init__(self, data: Bytes) -> None:
        self._data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return memoryview, (pickle.PickleBuffer(self._data),)


async def share(data: Bytes) -> SharedBytes:
    """Put bytes where the tasks of any node can read them. For as long as this process holds the result."""
    return SharedBytes(await _in_thread(ray.put, Shareable(data)))


@functools.cache
def _task_of(function: Callable[..., tuple[Any, Shareable | None]]) -> Any:
    """Made once: Ray keeps every function that it is given."""
    return ray.remote(num_returns=2)(function)


async def most_processors() -> float:
    """That one node has, of those that stay: in all, whoever uses them."""
    nodes = await _in_thread(_nodes)
    return max((node.resources.get("CPU", 0.0) for node in nodes if not node.leaving), default=0.0)


async def run_task(
    function: Callable[..., tuple[T, Shareable | None]],
    *args: Any,
    cpus: float,
    gpus: float,
    resources: dict[str, float],
    environment: dict[str, Any] | None,
) -> tuple[T, SharedBytes]:
    """What the function returns, from a Ray task that has so much for itself: something small, and bytes that stay in
    Ray's object store until they are fetched. Raises what it raised, `TaskDied`, `TaskLost`. Cancelled, the task is
    cancelled too: interrupted where it is Python, else when it ends."""
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": resources, "max_retries": 0}
    if environment:
        options["runtime_env"] = environment
    reference, data = _task_of(function).options(**options).remote(*args)
    try:
        result: T = await reference
    except asyncio.CancelledError:
        ray.cancel(reference)
        raise
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except (NodeDiedError, LocalRayletDiedError) as error:
        raise TaskLost(str(error)) from error
    except RayError as error:
        raise TaskDied(str(error)) from error
    return result, SharedBytes(data)


def cluster_namespace(app_id: str, namespace: str) -> str:
    """Ray's namespace of one application."""
    return f"mecha-{namespace}-{app_id}"


def start_ray(address: str | None, cpus: int | None = None) -> None:
    """Connect to a cluster, or (address None) start a small one here, which ends with this process: no dashboard, no
    usage reports, no log forwarding. Raises `ConnectionError`, in one line, when that cannot be; `ValueError` for an
    address that is none."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    if address is not None:
        _check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except Exception as error:
            raise ConnectionError(f"Ray at {address} cannot be joined: {_in_one_line(error)}") from error
        return
    # That Ray asks for a token is no news: the pages say so.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers are the servers here: Ray would have them stand back behind everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Processes that tasks run in take seconds to start. Ray keeps them for one host alone, and ends them after a second
    # when others use the processors: hosts that take turns would have to start them each time.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    try:
        ray.init(
            address="local",  # not one that happens to run here
            include_dashboard=False,
            num_cpus=cpus,
            object_store_memory=_SMALLEST_OBJECT_STORE,
            log_to_driver=False,
            configure_logging=False,
        )
    except Exception as error:
        raise ConnectionError(f"Ray cannot be started here: {_in_one_line(error)}") from error


def _check_answers(address: str) -> None:
    """Ray itself would try for a quarter of an hour, whatever is wrong."""
    where = _head_of(address)
    at = address if address != "auto" else f"auto ({where[0]}:{where[1]})"
    try:
        with socket.create_connection(where, _REACH_S) as connection:
            if _is_encrypted():
                return
            connection.sendall(_HELLO)
            head = connection.makefile("rb").read(_FRAME_HEAD)
    except OSError as error:
        raise ConnectionError(f"no Ray answers at {at}: {error}") from error
    if head[3:4] != bytes((_SETTINGS,)):
        raise ConnectionError(f"what answers at {at} is no Ray: give the port of its control store (GCS)")


def _head_of(address: str) -> tuple[str, int]:
    """Where its control store is, for `auto` too. Raises `ConnectionError`, `ValueError`."""
    if address == "auto":
        from ray._private import services

        # Ray remembers what it has seen, and forgets it when it starts.
        getattr(services.find_gcs_addresses, "cache_clear", lambda: None)()
        try:
            address = str(services.canonicalize_bootstrap_address("auto"))
        except ConnectionError:
            raise ConnectionError("Ray address auto: no Ray runs on this machine") from None
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"Ray address {address!r}: give host:port, or auto for the Ray that runs on this machine")
    return host.strip("[]"), int(port)


def _is_encrypted() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _in_one_line(error: BaseException) -> str:
    """Of a cause, whose text may hold a whole traceback, the end."""
    said = " ".join(str(error).split()) or type(error).__name__
    cause = [] if error.__cause__ is None else str(error.__cause__).strip().splitlines()
    return f"{said}: {cause[-1].strip()}" if cause else said


def join_ray(address: str) -> bool:
    """Connect this program to a cluster. False: it is connected already, and whoever did that ends it. Raises as
    `start_ray`."""
    if ray.is_initialized():
        return False
    start_ray(address)
    return True


def stop_ray() -> None:
    ray.shutdown()
