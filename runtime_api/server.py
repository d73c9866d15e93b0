"""The server process: one runtime, HTTP in front of it, and an orderly end.

    load the application -> bind the port -> start the runtime -> serve -> (signal) stop accepting -> finish requests
    -> drain the runtime -> exit 0

The first SIGTERM or SIGINT begins the end, or leaves one that was begun over HTTP to itself; the second ends the
process at once with 1. All of it has one deadline. Shortly before, turns that still run are rolled back, so that there
is time to tell their callers; then connections are cut whose clients neither finish their requests nor take their
answers; and when the interpreter waits for threads that still run (of the application's, or of an activity that uses
`asyncio.to_thread`), the process ends without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn

from runtime_api.app import create_app
from runtime_api.edge import DEFAULT_LIMITS, Limits, Token
from runtime_api.hotprotocol import HotCalls, hot_protocol
from runtime_api.loader import LoadError, default_app_id, load_application
from runtime_api.output import write_line
from runtime_api.runtime import Runtime
from runtime_api.startup import StartupError, bind, shown_url, warn_if_open
from statestores.errors import ComponentError, StoreError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from runtime_api.clusterapi import ClusterControl
    from runtime_api.settings import Settings

_FORCED_EXIT_DELAY_S = 0.1
_LEAST_LEFT_S = 0.1
_ENDING = (signal.SIGTERM, signal.SIGINT)
# Of the time for the end, for telling the callers of what is rolled back; and at most so much of all of it.
_TELLING_S = 2.0
_TELLING_SHARE = 0.25
_log = logging.getLogger("mecha.server")


def run_server(target: str, settings: Settings) -> None:
    """Serve the application at `target` until told to stop; returns after a graceful end. Raises `StartupError`."""
    configure_logging(settings)
    try:
        application = load_application(target)
    except LoadError as error:
        raise StartupError(str(error)) from error
    runtime = Runtime(
        application,
        store=settings.store,
        resources_path=settings.resources_path,
        app_id=settings.app_id or default_app_id(target),
        namespace=settings.namespace,
        lease=settings.lease,
        drain_s=settings.drain,
        large_value_bytes=settings.large_value_bytes,
    )
    with bind(settings.host, settings.port) as listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        left_s = runner.run(_serve(runtime, settings, listener))
        _end_within(left_s)
    # The loop's handlers are gone with it.
    for number in _ENDING:
        signal.signal(number, lambda *_: _end_at_once())


def _end_within(left_s: float) -> None:
    """From now on everything is durable and closed: the process ends after so long, with 0, whatever still runs."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    patience = threading.Timer(left_s, os._exit, (0,))
    patience.daemon = True
    patience.start()


def _end_at_once() -> None:
    print("mecha: stopped at once", file=sys.stderr, flush=True)
    os._exit(1)


def configure_logging(settings: Settings) -> None:
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(runtime: Runtime, settings: Settings, listener: socket.socket) -> float:
    """Returns how much of the time for the end is left, in seconds."""
    try:
        await runtime.start()
    except ComponentError as error:
        raise StartupError(str(error)) from error
    except StoreError as error:
        # A component's errors name it, and the default store, which would be named here, is not the one in trouble.
        brought = settings.resources_path and settings.store is None
        raise StartupError(str(error) if brought else f"store {shown_url(settings.store)}: {error}") from error
    server: Server | None = None
    try:
        server = Server(runtime, settings)
        server.handle_signals()
        await server.serve(sockets=[listener])
    finally:
        await (server.end_runtime() if server is not None else runtime.stop())
    return server.left_s


class Server(uvicorn.Server):
    """uvicorn, its end under our control."""

    def __init__(self, runtime: Runtime, settings: Settings, cluster: ClusterControl | None = None) -> None:
        token = settings.api_token.get_secret_value() if settings.api_token else None
        limits = Limits(settings.max_body_size, max(64 * settings.max_body_size, DEFAULT_LIMITS.bodies))
        app = create_app(runtime, limits=limits, api_token=token, shutdown=self.stop, cluster=cluster)
        calls = HotCalls(app.routes, Token(token), limits.body)
        super().__init__(
            uvicorn.Config(
                app,
                http=hot_protocol(calls),
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                log_level=settings.log_level,
                access_log=settings.access_log,
                server_header=False,
                timeout_keep_alive=max(1, round(settings.keep_alive)),
                timeout_graceful_shutdown=math.ceil(settings.drain),
                limit_concurrency=settings.max_connections,
            )
        )
        if settings.access_log:
            # Asked for by itself, whatever else is logged.
            logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        self._runtime = runtime
        self._settings = settings
        self._drain_s = settings.drain
        self._ends_at: float | None = None
        self._signalled = False
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; only then say so."""
        await self.listen(sockets)
        assert sockets is not None, "the port was bound before"
        announce(self._runtime, self._settings, sockets[0])

    async def listen(self, sockets: list[socket.socket] | None) -> None:
        await super().startup(sockets)

    def stop(self, force: bool = False) -> None:
        """Begin the end, unless it has begun. `force`: end at once, with exit code 1."""
        loop = asyncio.get_running_loop()
        if force:
            loop.call_later(_FORCED_EXIT_DELAY_S, os._exit, 1)
        elif self._ends_at is None:
            self._ends_at = loop.time() + self._drain_s
            self._runtime.begin_stop()
            self.should_exit = True
            # The runtime rolls back what still runs and tells its callers: so every request that was accepted gets an
            # answer, and uvicorn, waiting for them, comes to its end.
            loop.call_at(self._ends_at - self._telling_s, lambda: loop.create_task(self.end_runtime()))
            # After most of that time: uvicorn looks from time to time whether the connections are gone.
            loop.call_at(self._ends_at - self._telling_s / 4, self._cut)

    async def end_runtime(self) -> None:
        """Drain the runtime in what is left of the time. Every caller waits for the one drain."""
        if self._ending is None:
            drain_s = max(min(_LEAST_LEFT_S, self._telling_s / 2), self.left_s - self._telling_s)
            self._ending = asyncio.create_task(self._runtime.stop(drain_s))
        await self._ending

    def _cut(self) -> None:
        """What is left are clients that neither finish their requests nor take their answers."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @property
    def _telling_s(self) -> float:
        return min(_TELLING_S, self._drain_s * _TELLING_SHARE)

    @property
    def left_s(self) -> float:
        """Of the time for the end."""
        if self._ends_at is None:
            return self._drain_s
        return max(_LEAST_LEFT_S, self._ends_at - asyncio.get_running_loop().time())

    def handle_signals(self) -> None:
        """Ours until the loop closes: the second signal must end a drain of the runtime, too."""
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._signalled:
            _end_at_once()
        self._signalled = True
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own handling would raise the signal again at the end, and exit by it instead of with 0."""
        yield


def announce(runtime: Runtime, settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    kinds = {
        "actors": [actor.name for actor in runtime.application.actors],
        "workflows": [workflow.name for workflow in runtime.application.workflows],
        "activities": [activity.name for activity in runtime.application.activities],
    }
    brought = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds.items() if names)
    write_line(f"mecha: serving http://{shown}:{port} (app-id {runtime.app_id}; {brought})")
    warn_if_open(settings)
    # What was made until now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
