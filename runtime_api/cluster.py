"""One application on several hosts: what a host's process is made of, and the process that stands for the cluster.

mecha run app.py --placement ray     this process: start or join Ray, make the controller, wait, end all of it
  controller                         `actors.placement.ray`: makes hosts, says who owns what
  host ...                           `ClusterHost`: a Runtime with HTTP in front, on one port a node
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import pickle
import signal
import sys
import threading
import time
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.hostneeds import combined
from actors.placement.cluster import ClusterPlacement
from actors.placement.hop import PeerGone
from actors.placement.supervisor import HostFacts, Wanted
from runtime_api.clusterapi import new_version
from runtime_api.doors import Doors
from runtime_api.loader import LoadError, absolute_target, default_app_id, load_application
from runtime_api.runtime import DEFAULT_STORE, Runtime
from runtime_api.server import Server, StartupError, bind, configure_logging, shown_url, warn_if_open
from runtime_api.settings import Settings
from statestores.components import actor_component, load_resources, make_store, open_url
from statestores.errors import ComponentError, StoreError
from statestores.store import Capability
from workflow.activities import Ran, WorkerDied, WorkerLost, run_here
from workflow.payloads import Stored, patiently, read, write
from workflow.raised import Raised, error_of, raised

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from pathlib import Path

    from actors import Host
    from actors.hostneeds import HostNeeds
    from actors.placement.ray import RayCluster, SharedBytes
    from statestores import StateStore
    from statestores.components import Component
    from workflow.definition import Needs
    from workflow.orders import Order
    from workflow.payloads import Data, Keeper

LEASE_S = 3.0
"""How long a host that vanished or froze is waited for, unless told otherwise."""

_READY_S = 120.0
_EVERYWHERE = frozenset({"0.0.0.0", "::"})
_POLL_S = 0.1
_NODES_S = 30.0
_OWN_NODE_S = 3.0
_PROCESSORS_S = 10.0

log = logging.getLogger(__name__)


class ClusterHost:
    """One host of the cluster, inside its process."""

    def __init__(self, target: str, settings: dict[str, Any], name: str, version: str, cluster: RayCluster) -> None:
        self._name = name
        self._settings = Settings(**settings)
        configure_logging(self._settings)
        self._since_ms = time.time_ns() // 1_000_000
        self._made: list[ClusterPlacement] = []
        self._cluster = cluster
        self._runtime = Runtime(
            load_application(target),
            store=self._settings.store or None,
            resources_path=self._settings.resources_path,
            app_id=self._settings.app_id or default_app_id(target),
            namespace=self._settings.namespace,
            lease=self._settings.lease,
            drain_s=self._settings.drain,
            large_value_bytes=self._settings.large_value_bytes,
            placement=self._place,
            host_id=name,
            elsewhere=RayTasks(target, version, self._settings, self._settings.app_id or default_app_id(target)),
        )
        self._server: _HostServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._url = ""

    def _place(self, host: Host) -> ClusterPlacement:
        self._made[:] = [ClusterPlacement(host, self._cluster)]
        return self._made[0]

    @property
    def placement(self) -> ClusterPlacement:
        return self._made[0]

    async def start(self) -> None:
        listener = bind(self._settings.host, self._settings.port, shared=True)
        host, port = listener.getsockname()[:2]
        self._url = f"http://{self._cluster.node_address() if host in _EVERYWHERE else host}:{port}"
        await self._runtime.start()
        self._server = _HostServer(self._runtime, self._settings, self._cluster, port, self._name)
        self._server.doors.start()
        self._serving = asyncio.create_task(self._serve(self._server, listener))

    async def _serve(self, server: _HostServer, listener: socket.socket) -> None:
        """A spare does not listen: every call that came to it would have to go on to another host."""
        with listener:
            await self.placement.serves.wait()
            await server.serve(sockets=[listener])
        if not self._is_stopping:
            # Told to end over HTTP, of which the controller knows nothing. It sees the end of a process, and makes
            # another host; one that lived on without serving would be counted for ever.
            await server.end_runtime()
            os._exit(0)

    async def stop(self, timeout_s: float) -> None:
        self._is_stopping = True
        if self._server is None or self._serving is None:
            return
        if self.placement.serves.is_set():
            self._server.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(self._serving)
        else:
            self._serving.cancel()
        await self._server.end_runtime()

    def facts(self) -> HostFacts:
        host = self._runtime.host
        return HostFacts(
            since_ms=self._since_ms,
            partitions=host.journal.partitions,
            owned={partition: epoch for partition, epoch in enumerate(host.epochs) if epoch},
            activations=len(host.activations),
            url=self._url,
            lease_holds=host.lease_holds(),
            hears_store=self.placement.hears_store(),
        )


class RayTasks:
    """Activities as Ray tasks; see `workflow.activities.Elsewhere`. Used on the host's event loop alone.

    Large values go by Ray's object store: the host puts arguments there, the task leaves its result there. Both are
    durable before, in the state store, where they are read when Ray has lost them. So a result that was hours in the
    making outlives the node it was made on."""

    def __init__(self, target: str, version: str, settings: Settings, app_id: str) -> None:
        self._target = target
        # Ray keeps processes of tasks for the next ones: of this version of the code alone.
        self._environment = _environment(MECHA_CODE_VERSION=version)
        self._processors = 0.0
        self._looked_s = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._store = StorePlace(settings.store, settings.resources_path, app_id, settings.namespace)

    def has_processors(self) -> bool:
        """As Ray said last; it is asked again now and then."""
        now_s = time.monotonic()
        if now_s - self._looked_s > _PROCESSORS_S:
            self._looked_s = now_s
            self._looking = asyncio.create_task(self._look())
        return self._processors >= 1

    async def _look(self) -> None:
        from actors.placement.ray import most_processors

        try:
            self._processors = await most_processors()
        except Exception as error:  # its control store is away: what was known will do
            log.info("the processors of the cluster are not known just now: %s", error)

    async def run(self, order: Order, needs: Needs, keeper: Keeper | None, arguments: Data | None) -> Ran:
        """Each run has an id of its own for its result: one that was given up may still be writing."""
        if keeper is None:
            return await self._run(order, needs, None, arguments)
        id_ = keeper.reserve(order.stream)
        ran: Ran | None = None
        try:
            ran = await self._run(order, needs, (id_, keeper), arguments)
        finally:
            if ran is None or not isinstance(ran.result, Stored):
                keeper.settled(id_)
        return ran

    async def _run(self, order: Order, needs: Needs, keeping: tuple[str, Keeper] | None, arguments: Data | None) -> Ran:
        from actors.placement.ray import TaskDied, TaskLost, run_task, share

        cpus, gpus, resources = needs
        try:
            outcome, data = await run_task(
                run_activity,
                self._target,
                order,
                self._store,
                None if arguments is None else await share(arguments),
                None if keeping is None else (keeping[0], keeping[1].limit),
                cpus=cpus,
                gpus=gpus,
                resources=dict(resources),
                environment=self._environment,
            )
        except TaskDied as error:
            raise WorkerDied(str(error)) from error
        except TaskLost as error:
            raise WorkerLost(str(error)) from error
        if isinstance(outcome, Raised):
            raise error_of(outcome)
        stored = outcome.result if isinstance(outcome.result, Stored) else None
        if stored is not None and keeping is not None and (found := await data.fetch()) is not None:
            keeping[1].hand_over(stored.id, found)
        return outcome


class StorePlace(NamedTuple):
    """Where the actors' store is, for a process that has only this; see `Runtime`."""

    url: str
    resources: tuple[Path, ...]
    app_id: str
    namespace: str

    def make(self) -> StateStore:
        """Not opened yet. Raises `StoreError`."""
        found = self._component()
        if found is None:
            return open_url(self.url or DEFAULT_STORE)
        try:
            return make_store(found)
        except ComponentError as error:
            raise ComponentError(f"{found}: {error}") from error

    def shown(self) -> str:
        found = self._component()
        return f"store {shown_url(self.url)}" if found is None else f"the store of {found}"

    def _component(self) -> Component | None:
        if self.url or not self.resources:
            return None
        return actor_component(load_resources(self.resources, self.app_id, self.namespace))


def run_activity(
    target: str, order: Order, place: StorePlace, shared: SharedBytes | None, keeping: tuple[str, int] | None
) -> tuple[Ran | Raised, bytes | None]:
    """In the process of a task: load the application, run the activity. `keeping`: the id for a result that is larger
    than so much; it is then durable when this returns, and returned beside where it is."""
    _heed_interrupts()
    found = {activity.name: activity for activity in load_application(target).activities}
    arguments = None
    if order.stored:
        arguments = None if shared is None else shared.fetch_blocking()
        if arguments is None:
            arguments = asyncio.run(_read(place, order))
    try:
        result, busy_s = run_here(found[order.name], order, arguments)
    except KeyboardInterrupt:  # how Ray cancels
        raise
    except BaseException as error:
        return raised(error), None
    if keeping is None or len(result) <= keeping[1]:
        return Ran(result, busy_s), None
    return Ran(asyncio.run(_write(place, order, keeping[0], result)), busy_s), result


def _heed_interrupts() -> None:
    """By SIGINT Ray interrupts a task. What a script starts in the background ignores it, and so does whatever that
    starts in turn: Ray, and its processes."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


async def _read(place: StorePlace, order: Order) -> Data:
    async with _opened(place) as store:
        data: Data = await patiently(lambda: read(store.payloads, order.stream, Stored.parse(order.stored)))
        return data


async def _write(place: StorePlace, order: Order, id_: str, result: bytes) -> Stored:
    async with _opened(place) as store:
        stored: Stored = await patiently(lambda: write(store.payloads, order.stream, id_, result))
        return stored


@contextlib.asynccontextmanager
async def _opened(place: StorePlace) -> AsyncIterator[StateStore]:
    store = place.make()
    await patiently(store.open)
    try:
        yield store
    finally:
        await store.close()


class _HostServer(Server):
    """The server of a host: it begins quietly, and serves connections that wait at a neighbour's door as well."""

    def __init__(self, runtime: Runtime, settings: Settings, cluster: RayCluster, port: int, name: str) -> None:
        super().__init__(runtime, settings, cluster)
        self.doors = Doors(port, name, self._let_in)
        self._letting_in: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.listen(sockets)
        assert sockets is not None, "the port was bound before"
        self.doors.open(sockets[0])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.doors.shut()
        await super().shutdown(sockets)

    async def end_runtime(self) -> None:
        self.doors.stop()
        await super().end_runtime()

    def _let_in(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._letting_in.add(task)
        task.add_done_callback(self._letting_in.discard)

    def _protocol(self) -> asyncio.Protocol:
        """As `uvicorn.Server.startup` makes one for each connection."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # uvicorn says any protocol
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


# -- the process that stands for the cluster ---------------------------------------------------------------------------


def run_cluster(target: str, settings: Settings) -> None:
    """Serve the application on Ray until told to stop. Raises `StartupError`."""
    try:
        application_id = settings.app_id or default_app_id(target)
        application = load_application(target)
    except LoadError as error:
        raise StartupError(str(error)) from error
    try:
        needs = combined((definition.name, definition.options.needs) for definition in application.actors)
    except ValueError as error:
        raise StartupError(f"{target}: {error}") from error
    try:
        from actors.placement import ray as on_ray
    except ImportError as error:
        raise StartupError(f"placement ray needs Ray: pip install 'ray>=2.50' ({error})") from error
    _check_store(StorePlace(settings.store, settings.resources_path, application_id, settings.namespace))
    with bind(settings.host, settings.port, shared=True) as listener:
        # Held until the hosts have it too: with port 0 the kernel has chosen one.
        chosen: dict[str, Any] = {"port": listener.getsockname()[1], "app_id": application_id}
        if "lease" not in settings.model_fields_set:
            chosen["lease"] = LEASE_S
        settings = settings.model_copy(update=chosen)
        if not settings.ray_address:
            os.environ["PYTHONPATH"] = _path()
        on_ray.start_ray(settings.ray_address or None)
        try:
            # Hosts have another working directory.
            asyncio.run(_supervise(absolute_target(target), settings, needs))
        finally:
            on_ray.stop_ray()


def _check_store(place: StorePlace) -> None:
    """Hosts are processes of their own: they must be able to share the store."""
    try:
        store, shown = place.make(), place.shown()
    except StoreError as error:
        raise StartupError(str(error)) from error
    if Capability.SHARED not in store.capabilities:
        raise StartupError(
            f"{shown} belongs to one process: a cluster needs one that all hosts reach, like --store redis://host:6379"
        )


async def _supervise(target: str, settings: Settings, needs: HostNeeds) -> None:
    from actors.placement.ray import ClusterSpec, RayCluster, cluster_namespace

    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stopping)
    cluster = RayCluster(cluster_namespace(settings.app_id, settings.namespace))
    wanted = Wanted(
        settings.hosts,
        settings.hosts_per_node,
        settings.spares,
        new_version(),
        settings.drain,
        needs,
        settings.lease,
    )
    build = functools.partial(ClusterHost, target, settings.model_dump())
    found = await _is_there(cluster)
    # What a Ray that was started here runs has our environment. To processes with one of their own Ray would not give
    # those that it has started beforehand, and it would wait for the agent that makes environments.
    environment = _environment() if settings.ray_address else None
    cluster.start(ClusterSpec(cluster.namespace, pickle.dumps(build), wanted, token_hex(4), environment))
    ready = asyncio.create_task(_wait_ready(cluster, settings, found))
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            await stopped
        ready.cancel()
    except StartupError:
        if found:  # somebody else's, or that of a driver before this one: it may be all right but for a moment
            raise
        await _end(cluster)
        raise
    await _end(cluster)


async def _is_there(cluster: RayCluster) -> bool:
    try:
        await cluster.status()
    except PeerGone:
        return False
    print(f"mecha: {cluster.namespace} runs already and is taken over as it is", file=sys.stderr, flush=True)
    return True


async def _end(cluster: RayCluster) -> None:
    with contextlib.suppress(PeerGone):
        await cluster.stop()


def _on_signal(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        print("mecha: stopped at once", file=sys.stderr, flush=True)
        os._exit(1)
    stopping.set()


async def _wait_ready(cluster: RayCluster, settings: Settings, found: bool) -> None:
    """Raises `StartupError` when no host can be started, or there is no room for those that are to serve: soon, unless
    the application was `found`, and may be waiting for a node that comes back."""
    begun = time.monotonic()
    give_up = begun + _READY_S
    # Nodes can join a cluster; to a Ray that was started here none will.
    give_up_places = give_up if found else begun + (_NODES_S if settings.ray_address else _OWN_NODE_S)
    told = ""
    while True:
        try:
            status = await cluster.status()
        except PeerGone:
            status = {}
        if status.get("settled") and status["serving"] >= status["wanted_serving"]:
            hosts = status["hosts"]
            serving = status["serving"]
            warn_if_open(settings)
            print(
                f"mecha: serving {hosts[0]['url']} (app-id {settings.app_id}; {serving} hosts and "
                f"{len(hosts) - serving} spare on Ray)",
                flush=True,
            )
            return
        if status.get("error") and not status["hosts"]:
            raise StartupError(f"no host starts: {status['error']}")
        if status and status["unplaced"] and status["placeable"] < status["wanted_serving"]:
            if time.monotonic() > give_up_places:
                raise StartupError(f"{status['unplaced']}. Ask for less, or give Ray such nodes")
            if told != status["unplaced"]:
                told = status["unplaced"]
                print(f"mecha: waiting for nodes: {told}", file=sys.stderr, flush=True)
        if time.monotonic() > give_up:
            raise StartupError(f"the cluster is not ready after {_READY_S:g} s: {status or 'no controller'}")
        await asyncio.sleep(_POLL_S)


def _environment(**variables: str) -> dict[str, Any]:
    """Hosts find what this process finds."""
    return {"env_vars": {"PYTHONPATH": _path(), **variables}}


def _path() -> str:
    return os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
