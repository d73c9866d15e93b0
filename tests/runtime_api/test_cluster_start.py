"""What keeps a cluster from being started, and signals that end its start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from runtime_api import Runtime
from runtime_api.cluster import run_cluster
from runtime_api.settings import Settings
from runtime_api.startsignals import StartSignals
from runtime_api.startup import StartupError
from tests.placements import ON_RAY, ROOT
from tests.servers import free_port, shared_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = "tests.runtime_api.sample_app"
COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: mine}}
spec:
  type: {type}
  version: v1
  metadata:
    - {{name: connectionString, value: "{tmp}/mine.db"}}
    - {{name: actorStateStore, value: "{actors}"}}
"""


def component(tmp_path: Path, kind: str, actors: str = "true") -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(COMPONENT.format(type=kind, tmp=tmp_path, actors=actors))
    return file


@pytest.mark.parametrize("url", [None, "memory://", "sqlite:///mine.db"])
def test_a_store_of_one_process_is_refused(url: str | None) -> None:
    """Hosts could not see what others of them have recorded. The default store is such a one."""
    with pytest.raises(StartupError, match="belongs to one process: a cluster needs one that all hosts reach"):
        run_cluster(APP, Settings.model_validate({"store": url, "port": 0}))


@pytest.mark.parametrize("kind", ["state.sqlite", "state.in-memory"])
def test_so_it_is_when_a_component_brings_it(tmp_path: Path, kind: str) -> None:
    """The error names the component."""
    file = component(tmp_path, kind)
    with pytest.raises(StartupError, match=r"the store of .*mine.* belongs to one process"):
        run_cluster(APP, Settings.model_validate({"resources_path": (file,), "port": 0}))


def test_a_component_without_actors_does_not_count(tmp_path: Path) -> None:
    """Then actors live in the default store, which is refused by its own name."""
    file = component(tmp_path, "state.sqlite", "false")
    with pytest.raises(StartupError, match=r"store sqlite:///mecha.db belongs to one process"):
        run_cluster(APP, Settings.model_validate({"resources_path": (file,), "port": 0}))


def test_a_component_that_is_wrong_is_refused(tmp_path: Path) -> None:
    """Before hosts are started, each of which would say so. The file and the component are named."""
    file = component(tmp_path, "state.nonsense")
    with pytest.raises(StartupError, match=r"mine\.yaml.*mine.*state\.nonsense"):
        run_cluster(APP, Settings.model_validate({"resources_path": (file,), "port": 0}))


def ray_address_is_refused(address: str, match: str) -> None:
    with pytest.raises(StartupError, match=match):
        run_cluster(APP, Settings.model_validate({"store": shared_redis().url, "port": 0, "ray_address": address}))


@pytest.mark.parametrize("address", ["nonsense", "local", "ray://127.0.0.1:10001", "host:port", ":6379", "host:0"])
async def test_a_ray_address_of_another_form_is_refused(address: str) -> None:
    """The error says what to write, to a client as well."""
    pytest.importorskip("ray")
    ray_address_is_refused(address, "give host:port, or auto for the Ray that runs on this machine")
    with pytest.raises(ValueError, match="give host:port, or auto"):
        async with Runtime.connect(f"ray:{address}"):
            pass


async def test_a_ray_that_nobody_answers_for_is_refused() -> None:
    """Without the quarter of an hour that Ray itself would try for."""
    pytest.importorskip("ray")
    address = f"127.0.0.1:{free_port()}"
    ray_address_is_refused(address, f"no Ray answers at {address}: .*refused")
    with pytest.raises(ConnectionError, match=f"no Ray answers at {address}"):
        async with Runtime.connect(f"ray:{address}"):
            pass


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_ray_that_listens_and_says_nothing_is_refused(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes connections for a process that is frozen."""
    on_ray = pytest.importorskip("actors.placement.ray")
    monkeypatch.setattr(on_ray, "_REACH_S", 0.1)
    ray_address_is_refused(f"127.0.0.1:{listener.getsockname()[1]}", "no Ray answers at .*timed out")


def test_what_is_no_ray_is_refused(listener: socket.socket) -> None:
    """Redis, say, which listens on what is Ray's port by default."""
    pytest.importorskip("ray")

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"-ERR unknown command")

    answering = threading.Thread(target=answer)
    answering.start()
    ray_address_is_refused(f"127.0.0.1:{listener.getsockname()[1]}", "what answers at .* is no Ray")
    answering.join()


def test_auto_is_looked_at_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may mean a Ray that has ended, or what the environment says."""
    pytest.importorskip("ray")
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    ray_address_is_refused("auto", rf"no Ray answers at auto \(.*:{port}\)")


def test_what_ray_says_becomes_one_line() -> None:
    """With the end of its cause, which says what was wrong: Ray puts a traceback before that."""
    on_ray = pytest.importorskip("actors.placement.ray")
    error = ConnectionError("Failed to\n  connect")
    assert on_ray._in_one_line(error) == "Failed to connect"
    error.__cause__ = RuntimeError("Traceback:\n  somewhere\nAuthenticationError: no token\n")
    assert on_ray._in_one_line(error) == "Failed to connect: AuthenticationError: no token"
    assert on_ray._in_one_line(ConnectionError()) == "ConnectionError"


def test_a_signal_ends_a_start() -> None:
    """SIGTERM as SIGINT does, and afterwards it is what it was."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StartSignals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_somebody_else_handled_is_not_lost(number: signal.Signals) -> None:
    """As Ray does, or Python where nothing can be raised."""
    before = signal.getsignal(number)
    with StartSignals() as signals:
        signals.check()
        signal.signal(number, lambda *_: None)
        try:
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                signals.check()
        finally:
            signal.signal(number, before)


LOST = """
def after_fork():
    handler = signal.getsignal(signal.SIGTERM)
    if "sigterm_handler" in getattr(handler, "__qualname__", "") and "DRIVER" not in os.environ:  # Ray's
        os.environ["DRIVER"] = ""
        os.kill(os.getpid(), signal.SIGTERM)

os.register_at_fork(after_in_parent=after_fork)
"""
LATE = """
if "DRIVER" in os.environ:  # here is a host
    os.kill(int(os.environ["DRIVER"]), signal.SIGTERM)
else:
    os.environ["DRIVER"] = str(os.getpid())
"""


@ON_RAY
@pytest.mark.parametrize("when", [LOST, LATE], ids=["while Ray starts, and raised in vain", "while hosts start"])
def test_sigterm_ends_a_start(when: str, tmp_path: Path) -> None:
    """At any time before it serves: one line, exit code 1, and nothing is left."""
    pytest.importorskip("ray")
    app = tmp_path / "signalled.py"
    app.write_text(f"import os, signal\nfrom actors import actor\n{when}\n@actor\nclass Account:\n    n: int = 0\n")
    command = [sys.executable, "-m", "runtime_api.cli", "run", str(app), "--placement", "ray", "--hosts", "1"]
    command += ["--port", "0", "--store", shared_redis().url + "?namespace=signalled"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    *noise, last = ended.stderr.splitlines()
    assert last == "mecha: stopped before it was up"
    assert when is LOST or not noise
