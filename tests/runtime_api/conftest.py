"""A real server on a free port: in a thread, in a process of its own, or on the hosts of a cluster; and clients for it.

The suites of the HTTP API and of the command line run on each placement: `sample` is the sample application here or on
Ray, and `api` a client of it. Tests that stop or kill servers, set options of their own, or hold a store or a component
of this process use `serve` or `mecha_process`, and so are local.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from runtime_api.loader import load_application
from runtime_api.runtime import Runtime
from runtime_api.server import Server
from runtime_api.settings import Settings, load_settings
from runtime_api.startup import bind
from tests.placements import ON_RAY, cluster_on
from tests.servers import PLAIN

SAMPLE_APP = Path(__file__).with_name("sample_app.py")
ROOT = SAMPLE_APP.parents[2]
_READY = re.compile(r"http://127\.0\.0\.1:\d+")


class ServerThread:
    """`mecha run` without the process: the same server and runtime on a loop in a thread."""

    def __init__(self, target: str, **settings: Any) -> None:
        self.settings: Settings = load_settings({"port": 0, "store": "memory://", "drain": 5.0, **settings})
        self.target = target
        self._up = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._main)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        settings = self.settings
        self.loop = asyncio.get_running_loop()
        self.runtime = Runtime(
            load_application(self.target),
            store=settings.store,
            resources_path=settings.resources_path,
            app_id=settings.app_id or "sample",
            lease=settings.lease,
        )
        with bind("127.0.0.1", 0) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with self.runtime:
                self.server = Server(self.runtime, settings)
                self.loop.call_soon(self._signal_when_listening)
                await self.server.serve(sockets=[listener])

    def _signal_when_listening(self) -> None:
        if self.server.started:
            self._up.set()
        else:
            self.loop.call_later(0.005, self._signal_when_listening)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        assert self._up.wait(30)
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._failed is not None:
            raise self._failed


ServerFactory = Callable[..., ServerThread]


@pytest.fixture(scope="session")
def sample_app() -> Path:
    return SAMPLE_APP


@pytest.fixture
def serve() -> ServerFactory:
    """Makes a server; use it as a context manager."""
    return lambda **settings: ServerThread(str(SAMPLE_APP), **settings)


BODY_LIMIT = 262_144


class Sample(NamedTuple):
    """The sample application as it is served for all tests that leave it as they found it: each uses actors and keys
    of its own."""

    placement: str
    url: str


@pytest.fixture(scope="session")
def sample_local() -> Iterator[str]:
    with ServerThread(str(SAMPLE_APP), max_body_size=BODY_LIMIT) as server:
        yield server.url


@pytest.fixture(scope="session")
def sample_ray(ray_address: str) -> Iterator[str]:
    with cluster_on(ray_address, SAMPLE_APP, "sample", "--max-body-size", str(BODY_LIMIT)) as cluster:
        yield cluster.url


@pytest.fixture
def sample(placement: str, request: pytest.FixtureRequest) -> Sample:
    return Sample(placement, request.getfixturevalue(f"sample_{placement}"))


@pytest.fixture
def api(sample: Sample) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sample.url, timeout=30, **PLAIN) as client:
        yield client


class ServerProcess:
    """`mecha run` as users run it."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def wait(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)


def mecha_command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "runtime_api.cli", *arguments]


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MECHA_", "DAPR_"))}
    return {**kept, "COLUMNS": "200", **extra}


ProcessFactory = Callable[..., Any]


@pytest.fixture
def mecha_process(tmp_path: Path) -> ProcessFactory:
    """Starts `mecha run` on a free port and waits until it serves; use it as a context manager."""

    @contextmanager
    def start(*arguments: str, target: str = str(SAMPLE_APP), **environment: str) -> Iterator[ServerProcess]:
        process = subprocess.Popen(
            mecha_command("run", target, "--port", "0", *arguments),
            cwd=ROOT,
            env=clean_environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            ready = _READY.search(line)
            if ready is None:
                raise AssertionError(f"not serving: {line!r} {process.communicate(timeout=30)!r}")
            yield ServerProcess(process, ready[0])
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=30)

    return start


CliRun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def mecha() -> CliRun:
    """Runs one `mecha` command to its end."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            mecha_command(*arguments),
            cwd=ROOT,
            env=clean_environment(**environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def state_memory() -> Iterator[str]:
    with ServerThread(str(SAMPLE_APP), store="memory://") as server:
        yield server.url


@pytest.fixture(scope="session")
def state_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ServerThread(str(SAMPLE_APP), store=f"sqlite:///{tmp_path_factory.mktemp('state') / 'state.db'}") as server:
        yield server.url


@pytest.fixture(params=["state_memory", "state_sqlite", pytest.param("sample_ray", marks=ON_RAY)])
def state(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A client of a server whose own store serves as the component `statestore`: on each embedded store, and on Ray
    with Redis."""
    with httpx.Client(base_url=request.getfixturevalue(request.param), timeout=30, **PLAIN) as client:
        yield client
