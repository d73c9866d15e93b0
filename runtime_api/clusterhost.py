"""One host of a cluster: a runtime with HTTP in front of it, on one port with the other hosts of its node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from actors.placement.cluster import ClusterPlacement
from actors.placement.supervisor import HostFacts
from runtime_api.doors import Doors
from runtime_api.loader import default_app_id, load_application
from runtime_api.raytasks import RayTasks
from runtime_api.runtime import Runtime
from runtime_api.server import Server, configure_logging
from runtime_api.settings import Settings
from runtime_api.startup import bind

if TYPE_CHECKING:
    import socket

    from actors import Host
    from actors.placement.ray import RayCluster

_EVERYWHERE = frozenset({"0.0.0.0", "::"})


class ClusterHost:
    """One host of the cluster, inside its process."""

    def __init__(self, target: str, settings: dict[str, Any], name: str, version: str, cluster: RayCluster) -> None:
        self._name = name
        self._settings = Settings(**settings)
        configure_logging(self._settings)
        self._since_ms = time.time_ns() // 1_000_000
        self._made: list[ClusterPlacement] = []
        self._cluster = cluster
        app_id = self._settings.app_id or default_app_id(target)
        self._tasks = RayTasks(target, version, self._settings, app_id)
        self._runtime = Runtime(
            load_application(target),
            store=self._settings.store,
            resources_path=self._settings.resources_path,
            app_id=app_id,
            namespace=self._settings.namespace,
            lease=self._settings.lease,
            drain_s=self._settings.drain,
            large_value_bytes=self._settings.large_value_bytes,
            placement=self._place,
            host_id=name,
            elsewhere=self._tasks,
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
            await self._cluster.end_own_host(self._name)

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
            asked=self._tasks.asked(),
        )


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
