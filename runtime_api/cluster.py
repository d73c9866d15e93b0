"""One application on several hosts: the process that stands for the cluster.

mecha run app.py --placement ray     this process: start or join Ray, make the controller, wait, end all of it
  controller                         `actors.placement.ray`: makes hosts, says who owns what
  host ...                           `runtime_api.clusterhost`: a runtime with HTTP in front, on one port a node

What a host is made of is not loaded here: Ray is started the sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import signal
import sys
import time
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from actors.hostneeds import combined
from actors.placement.hop import PeerGone
from actors.placement.supervisor import Wanted, new_version
from runtime_api.loader import LoadError, absolute_target, default_app_id, load_application
from runtime_api.output import write_line
from runtime_api.raytasks import StorePlace, environment, search_path
from runtime_api.startsignals import StartSignals
from runtime_api.startup import StartupError, bind, warn_if_open
from statestores.errors import StoreError
from statestores.store import Capability

if TYPE_CHECKING:
    from actors.hostneeds import HostNeeds
    from actors.placement.ray import HostProcess, RayCluster
    from runtime_api.settings import Settings

LEASE_S = 3.0
"""How long a host that vanished or froze is waited for, unless told otherwise."""

_READY_S = 120.0
_POLL_S = 0.1
_TELL_S = 5.0
_NODES_S = 30.0
_OWN_NODE_S = 3.0


def run_cluster(target: str, settings: Settings) -> None:
    """Serve the application on Ray until told to stop. Raises `StartupError`, `KeyboardInterrupt` when it was told
    before it was up."""
    with StartSignals() as signals:
        try:
            _run(target, settings, signals)
        except SystemExit:  # raised by Ray's handler
            signals.check()
            raise


def _run(target: str, settings: Settings, signals: StartSignals) -> None:
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
            os.environ["PYTHONPATH"] = search_path()
        if not sys.stdout.isatty():
            os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        try:
            try:
                on_ray.start_ray(settings.ray_address or None)
            except (ConnectionError, ValueError) as error:
                raise StartupError(str(error)) from error
            signals.take_back()
            # Hosts have another working directory.
            was_up = asyncio.run(_supervise(absolute_target(target), settings, needs, signals))
        finally:
            on_ray.stop_ray()
        if not was_up:
            raise KeyboardInterrupt


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


async def _supervise(target: str, settings: Settings, needs: HostNeeds, signals: StartSignals) -> bool:
    """Until told to stop. Whether it was up by then."""
    from actors.placement.ray import ClusterSpec, RayCluster, cluster_namespace

    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stopping)
    signals.check()  # those that come now come to the loop
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
    build = functools.partial(_host, target, settings.model_dump())
    found = await _is_there(cluster)
    # What a Ray that was started here runs has our environment. To processes with one of their own Ray would not give
    # those that it has started beforehand, and it would wait for the agent that makes environments.
    own = environment() if settings.ray_address else None
    cluster.start(ClusterSpec(cluster.namespace, pickle.dumps(build), wanted, token_hex(4), own))
    ready = asyncio.create_task(_wait_ready(cluster, settings, found))
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        was_up = ready.done()
        if was_up:
            ready.result()
            telling = asyncio.create_task(_tell_unplaced(cluster))
            await stopped
            telling.cancel()
        ready.cancel()
    except StartupError:
        if found:  # somebody else's, or that of a driver before this one: it may be all right but for a moment
            raise
        await _end(cluster)
        raise
    await _end(cluster)
    return was_up


def _host(target: str, settings: dict[str, Any], name: str, version: str, cluster: RayCluster) -> HostProcess:
    """In the process of a host."""
    from runtime_api.clusterhost import ClusterHost

    return ClusterHost(target, settings, name, version, cluster)


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


async def _tell_unplaced(cluster: RayCluster) -> None:
    """What no node has a place for, hosts or activities: one line whenever that changes. For ever."""
    told = ""
    while True:
        await asyncio.sleep(_TELL_S)
        try:
            unplaced = (await cluster.status())["unplaced"]
        except Exception:  # nobody says just now
            continue
        if unplaced and unplaced != told:
            print(f"mecha: {unplaced}", file=sys.stderr, flush=True)
        told = unplaced


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
            warn_if_open(settings)
            # Spares come later.
            where = f"app-id {settings.app_id}; {status['serving']} hosts on Ray"
            write_line(f"mecha: serving {status['hosts'][0]['url']} ({where})")
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
