"""The runtime: stores, host and clients, put together. The embedded form is this class and nothing else:

    async with Runtime(store="sqlite:///bank.db") as runtime:
        await runtime.actor(Account, "alice").deposit(10)

`mecha run` starts the same class and puts HTTP in front of it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors import ActorClient, Host, SystemClock
from actors.placement.local import LocalPlacement
from runtime_api import interpreter
from runtime_api.components import StateComponent
from runtime_api.loader import Application, AppSource, find_application
from runtime_api.purging import purge_expired
from runtime_api.startup import DEFAULT_STORE
from runtime_api.wire import duration_s
from statestores.components import actor_component, load_resources, make_store, open_url, store_component
from statestores.errors import StoreError, StoreUnavailable
from statestores.store import Capability
from workflow.engine import Engine
from workflow.payloads import DEFAULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from actors import ActorDefinition, Clock, MakeReference
    from actors.placement import Placement
    from runtime_api.connect import Connection
    from statestores import StateStore
    from statestores.components import Component
    from workflow.activities import Elsewhere
    from workflow.client import WorkflowClient

    PlacementMaker = Callable[[Host], Placement]

OWN_COMPONENT = "statestore"
"""Name of the state component that stands for the runtime's own store, where no resources bring one."""

_log = logging.getLogger("mecha.runtime")
_NOT_RUNNING = "the runtime is not running: use it inside `async with Runtime(...)`, or call start() first"
_COMPONENT_TYPES = {"memory": "in-memory", "rediss": "redis", "unix": "redis"}


class Runtime:
    """Actors and workflows of one application, over one store.

    `app`: a module, a namespace, or a list of decorated classes and functions; default: the module that makes the
    runtime. `store`: a URL or a store (which stays the caller's to close). Default: the component with
    `actorStateStore` in `resources_path`, else ``sqlite:///mecha.db``. `app_id` goes before the keys of the state API.
    `lease`: seconds or a duration like ``"10s"``; how long a host that vanished from another machine is waited for.
    `drain_s`: how long `stop` waits for what is under way. `large_value_bytes`: values of workflows whose JSON is
    longer are stored beside the history (see `workflow.payloads`). `placement`, `host_id` and `elsewhere` make it one
    host of several, see `runtime_api.cluster`.

    While it runs, Python's garbage collector is made to look less often, and threads to make room for each other sooner
    (`runtime_api.collector` and `runtime_api.switching` say why); so it stays until the last runtime of the process has
    stopped.

    Between `start` and `stop` (or inside ``async with``) everything works; before and after, calls raise
    `RuntimeError`.
    """

    def __init__(
        self,
        app: Application | AppSource | None = None,
        *,
        store: str | StateStore | None = None,
        resources_path: Path | str | Sequence[Path | str] = (),
        app_id: str = "mecha",
        namespace: str = "default",
        lease: str | float = 10.0,
        drain_s: float = 30.0,
        large_value_bytes: int = DEFAULT_LIMIT,
        clock: Clock | None = None,
        placement: PlacementMaker | None = None,
        host_id: str | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        if not isinstance(store, str | None) and not hasattr(store, "capabilities"):
            raise TypeError(f"store= takes a URL such as sqlite:///app.db, or a store, not {store!r}")
        source = app if app is not None else sys._getframe(1).f_globals
        self.application = source if isinstance(source, Application) else find_application(source)
        self.application_types: dict[str, ActorDefinition] = {d.name: d for d in self.application.actors}
        self.app_id = app_id
        self.namespace = namespace
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.components: dict[str, StateComponent] = {}
        self._placement = placement
        self._host_id = host_id
        self._elsewhere = elsewhere
        self._given_store = store
        self._resources = _paths(resources_path)
        self._lease_s = duration_s(lease) if isinstance(lease, str) else float(lease)
        self._drain_s = drain_s
        self._large_value_bytes = large_value_bytes
        self._opened: list[StateStore] = []
        self._starting = False
        self._store: StateStore | None = None
        self._host: Host | None = None
        self._engine: Engine | None = None
        self._workflows: WorkflowClient | None = None
        self._purging: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        # The one end of the last start.
        self._ending: asyncio.Task[None] | None = None

    @staticmethod
    def connect(
        address: str, *, app_id: str = "mecha", namespace: str = "default", token: str | None = None
    ) -> Connection:
        """A runtime that runs elsewhere, used from here: ``async with Runtime.connect(address) as runtime``. `address`:
        ``http://host:port`` of a server or of any host of a cluster; ``ray:auto`` or ``ray:host:port``, the Ray cluster
        on which `app_id` runs. `token`: the server's API token."""
        from runtime_api.connect import Connection

        return Connection(address, app_id=app_id, namespace=namespace, token=token)

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the stores, take the partitions over, find what was left unfinished.

        Raises `StoreError`, by its kinds: `StoreInUse` for a store with another living owner, `FormatError` for one
        written by a newer version, `ComponentError` for resources that cannot be used. What was opened until then is
        closed again.
        """
        if self._host is not None or self._starting:
            raise RuntimeError("this runtime has been started already")
        if self._ending is not None and not self._ending.done():
            raise RuntimeError("this runtime is still stopping")
        self._starting = True
        try:
            await self._open_stores()
            engine = Engine(
                self.application.workflows,
                self.application.activities,
                clock=self.clock,
                elsewhere=self._elsewhere,
                payloads=self.store.payloads if Capability.PAYLOADS in self.store.capabilities else None,
                large_value_bytes=self._large_value_bytes,
            )
            host = self._make_host(engine)
            workflows = engine.attach(host.client)
            await host.start()
        except BaseException:
            await self._close_stores()
            raise
        finally:
            self._starting = False
        self._host, self._engine, self._workflows = host, engine, workflows
        interpreter.TUNING.begin()
        self._stopping.clear()
        self._ending = None
        self._purging = asyncio.create_task(purge_expired(self.components.values(), self.clock))

    def begin_stop(self) -> None:
        """Say that `stop` will come soon: not ready any more, and whoever only waits (for a workflow's end) is let
        go. Calls are still served."""
        self._stopping.set()

    async def wait_stopping(self) -> None:
        """Returns when `stop` has begun, or will soon."""
        await self._stopping.wait()

    async def stop(self, timeout_s: float | None = None) -> None:
        """Finish the turns under way, commit, give the partitions back, close the stores. What has not finished after
        `timeout_s` (default: `drain_s`) is rolled back. Durable work goes on at the next start.

        Idempotent: there is one end, begun by the first call, with its time; all calls return when it is over. It goes
        on when a caller is cancelled."""
        self.begin_stop()
        if self._ending is None:
            self._ending = asyncio.create_task(self._stop(self._drain_s if timeout_s is None else timeout_s))
        await asyncio.shield(self._ending)

    async def _stop(self, timeout_s: float) -> None:
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.gather(self._purging, return_exceptions=True)
            self._purging = None
        host, self._host = self._host, None
        try:
            if host is not None:
                interpreter.TUNING.end()
                await host.stop(timeout_s)
        finally:
            if self._engine is not None:
                self._engine.close()
            await self._close_stores()

    async def __aenter__(self) -> Runtime:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- use ---------------------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether every actor can be called: it runs, does not stop, and no other host has what is this one's."""
        host = self._host
        return host is not None and not (host.draining or self._stopping.is_set() or host.placement.lacks)

    @property
    def host(self) -> Host:
        if self._host is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._host

    @property
    def store(self) -> StateStore:
        """Where actors and workflows live."""
        if self._store is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._store

    @property
    def actors(self) -> ActorClient:
        return self.host.client

    @property
    def workflows(self) -> WorkflowClient:
        if self._workflows is None or self._host is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._workflows

    @property
    def actor(self) -> MakeReference:
        """A reference to an actor, typed when it is given by its class. See `ActorClient.actor`."""
        return self.actors.actor

    async def send(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """A durable one-way message: ``await runtime.send(runtime.actor(Airport, "JFK").departed, 10)``. Returns
        when it is durably accepted; it takes effect exactly once, later."""
        await self.actors.send(method, *args, **kwargs)

    def hosts(self, actor_type: str) -> bool:
        """Whether the application brings this actor type."""
        return actor_type in self.application_types

    # -- how it is put together --------------------------------------------------------------------------------------

    def _make_host(self, engine: Engine) -> Host:
        types = [*self.application.actors, *engine.types]
        return Host(
            self.store.journal,
            types,
            clock=self.clock,
            host_id=self._host_id,
            lease_s=self._lease_s,
            workers=engine.workers,
            placement=self._placement or LocalPlacement,
        )

    async def _open_stores(self) -> None:
        components = load_resources(self._resources, self.app_id, self.namespace) if self._resources else []
        actors_in = actor_component(components) if self._given_store is None else None
        self.components = {}
        for component in components:
            if component.is_state:
                await self._open_component(component, is_needed=component is actors_in)
        if self._resources and not components and self._given_store is None:
            _log.warning(
                "no component in %s is meant for app-id %s: everything goes to %s",
                ", ".join(map(str, self._resources)), self.app_id, DEFAULT_STORE,
            )  # fmt: skip
        if actors_in is not None:
            self._store = self.components[actors_in.name].store
        else:
            self._store = await self._open_own()
        if not self.components:
            kind = _component_type(self._given_store)
            self.components[OWN_COMPONENT] = StateComponent(OWN_COMPONENT, kind, "v1", self._store, f"{self.app_id}||")

    async def _open_own(self) -> StateStore:
        if not isinstance(self._given_store, str | None):
            await self._given_store.open()
            return self._given_store
        return await self._open(open_url(DEFAULT_STORE if self._given_store is None else self._given_store))

    async def _open_component(self, component: Component, *, is_needed: bool) -> None:
        facts = store_component(component, self.app_id, self.namespace)
        try:
            store = await self._open_in_time(component)
        except StoreError as error:
            if is_needed or not component.ignore_errors:
                raise type(error)(f"{component}: {error}") from error
            _log.warning("%s is left out: %s", component, error)
            return
        self.components[component.name] = StateComponent(
            component.name,
            component.type,
            component.version,
            store,
            facts.key_prefix,
            facts.purge_every_s,
            facts.ttl_s,
        )

    async def _open_in_time(self, component: Component) -> StateStore:
        try:
            async with asyncio.timeout(component.init_timeout_s):
                return await self._open(make_store(component))
        except TimeoutError as error:
            limit = f"its initTimeout, {component.init_timeout_s:g} s"
            raise StoreUnavailable(f"did not open within {limit}: is its server running, and to be reached?") from error

    async def _open(self, store: StateStore) -> StateStore:
        self._opened.append(store)
        await store.open()
        return store

    async def _close_stores(self) -> None:
        while self._opened:
            await self._opened.pop().close()
        self._store = None


def _paths(given: Path | str | Sequence[Path | str]) -> list[Path]:
    return [Path(given)] if isinstance(given, Path | str) else [Path(path) for path in given]


def _component_type(store: str | StateStore | None) -> str:
    if store is None or isinstance(store, str):
        scheme = (DEFAULT_STORE if store is None else store).partition(":")[0].lower()
        return "state." + _COMPONENT_TYPES.get(scheme, scheme)
    return "state." + type(store).__name__.removesuffix("Store").lower()
