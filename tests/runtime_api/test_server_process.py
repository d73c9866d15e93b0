"""`mecha run` as a process: starting, stopping, being killed, and mistakes at the start."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.servers import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

ENTER = "/v1.0/actors/Gate/g/method/enter"
DEPOSIT = "/v1.0/actors/Account/alice/method/deposit"
BALANCE = "/v1.0/actors/Account/alice/method/statement"


def in_flight(url: str, path: str, body: bytes = b"") -> tuple[threading.Thread, list[httpx.Response]]:
    """A call that stays in its turn, known to have reached its actor."""
    answers: list[httpx.Response] = []

    def call() -> None:
        with suppress(httpx.TransportError):
            answers.append(httpx.post(url + path, content=body, timeout=30, **PLAIN))

    caller = threading.Thread(target=call)
    caller.start()
    with httpx.Client(base_url=url, **PLAIN) as client:
        while {"type": "Gate", "count": 1} not in client.get("/v1.0/metadata").json()["actors"]:
            pass
    return caller, answers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_graceful_stop(mecha_process: Callable[..., Any], tmp_path: Path, number: int) -> None:
    """The first signal finishes what is under way, commits, and exits with 0; the next start finds it all."""
    store = f"sqlite:///{tmp_path / 'stop.db'}"
    with mecha_process("--store", store) as server:
        assert httpx.post(server.url + DEPOSIT, content=b"5", **PLAIN).json() == 5
        with httpx.Client(base_url=server.url, **PLAIN) as kept:
            assert kept.get(BALANCE).json() == 5
            caller = threading.Thread(
                target=httpx.post, args=(server.url + DEPOSIT,), kwargs={"content": b"1", **PLAIN}
            )
            caller.start()
            caller.join()
            server.process.send_signal(number)
            assert server.wait() == 0
    with mecha_process("--store", store) as server:
        assert httpx.get(server.url + BALANCE, **PLAIN).json() == 6


def test_stop_waits_for_turns_under_way(mecha_process: Callable[..., Any]) -> None:
    """A call that was being served when the signal came is answered before the end; new connections are refused."""
    with mecha_process("--store", "memory://") as server:
        caller, answers = in_flight(server.url, "/v1.0/actors/Gate/g/method/linger", b"0.7")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        caller.join(30)
        assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"1")]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/v1.0/healthz", **PLAIN)


def test_second_signal(mecha_process: Callable[..., Any]) -> None:
    """The second signal ends the process at once, with 1."""
    with mecha_process("--store", "memory://") as server:
        caller, answers = in_flight(server.url, ENTER)
        # Two signals of one kind could arrive as one.
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 1
        caller.join(30)
        assert answers == []


def test_first_signal_after_a_shutdown_over_http(mecha_process: Callable[..., Any]) -> None:
    """It is no second signal: what the shutdown waits for is answered. Supervisors ask first, then send SIGTERM."""
    with mecha_process("--store", "memory://") as server:
        caller, answers = in_flight(server.url, "/v1.0/actors/Gate/g/method/linger", b"0.7")
        assert httpx.post(f"{server.url}/v1.0/shutdown", **PLAIN).status_code == 204
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        caller.join(30)
        assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"1")]


BLOCKING_APP = Path(__file__).parent / "blocking_app.py"


def block(server: Any, kind: str) -> None:
    """Start a workflow whose activity blocks for ever, and wait until it does."""
    where = f"{server.url}/v1.0/workflows/dapr/blocking/start"
    assert httpx.post(where, json=kind, **PLAIN).status_code == 202
    assert server.process.stdout.readline() == "blocked\n"


@pytest.mark.parametrize("kind", ["plain", "beside", "own"])
def test_the_end_has_its_time_whatever_blocks(mecha_process: Callable[..., Any], kind: str) -> None:
    """Code that blocks for ever, in whatever thread, does not keep a graceful end from ending, with 0."""
    with mecha_process("--store", "memory://", "--drain", "1s", target=str(BLOCKING_APP)) as server:
        block(server, kind)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize(
    ("kind", "number"), [("beside", signal.SIGTERM), ("own", signal.SIGTERM), ("own", signal.SIGINT)]
)
def test_second_signal_at_the_very_end(mecha_process: Callable[..., Any], kind: str, number: int) -> None:
    """The second signal ends the process at once, with 1, also when the runtime has stopped and only threads of the
    application are still there."""
    with mecha_process("--store", "memory://", "--drain", "1000s", target=str(BLOCKING_APP)) as server:
        block(server, kind)
        server.process.send_signal(signal.SIGTERM)
        if kind == "own":
            assert server.process.stdout.readline() == "ending\n"
        else:  # the loop waits for its own threads, and the port is closed
            with suppress(httpx.TransportError):
                while True:
                    httpx.get(f"{server.url}/v1.0/healthz", **PLAIN)
        server.process.send_signal(number)
        assert server.wait() == 1


def test_kill_and_restart(mecha_process: Callable[..., Any], tmp_path: Path) -> None:
    """What was answered before a kill -9 is there after it (INV-7), and a restart does not wait for the lease."""
    store = f"sqlite:///{tmp_path / 'kill.db'}"
    for round_ in range(1, 4):
        with mecha_process("--store", store, "--lease", "60s") as server:
            assert httpx.post(server.url + DEPOSIT, content=b"1", timeout=30, **PLAIN).json() == round_
            server.process.kill()
            assert server.wait() == -signal.SIGKILL


def freeze(server: Any, path: Path) -> None:
    """Not within a transaction of its own, which would keep everybody else out."""
    while True:
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path, timeout=0)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            return
        server.process.send_signal(signal.SIGCONT)


def test_a_frozen_server_serves_again(mecha_process: Callable[..., Any], tmp_path: Path) -> None:
    """What another process has taken over meanwhile is served again, without a restart, once that one has ended."""
    path = tmp_path / "frozen.db"
    options = ("--store", f"sqlite:///{path}", "--lease", "500ms")
    with mecha_process(*options) as server, httpx.Client(base_url=server.url, timeout=30, **PLAIN) as client:
        assert client.post(DEPOSIT, content=b"1").json() == 1
        freeze(server, path)
        with mecha_process(*options) as other:
            assert httpx.post(other.url + DEPOSIT, content=b"1", timeout=30, **PLAIN).json() == 2
            server.process.send_signal(signal.SIGCONT)
            while client.get("/v1.0/healthz").status_code == 204:
                pass
            assert client.post(DEPOSIT, content=b"1").status_code == 503
            other.process.send_signal(signal.SIGTERM)
            assert other.wait() == 0
        while client.get("/v1.0/healthz").status_code != 204:
            pass
        assert client.post(DEPOSIT, content=b"1").json() == 3


def test_shutdown_over_http(mecha_process: Callable[..., Any]) -> None:
    """POST /v1.0/shutdown answers 204 and stops gracefully; forced, the process exits with 1."""
    for headers, code in (({}, 0), ({"dapr-force-shutdown": "true"}, 1)):
        with mecha_process("--store", "memory://") as server:
            assert httpx.post(f"{server.url}/v1.0/shutdown", headers=headers, **PLAIN).status_code == 204
            assert server.wait() == code


def test_drain_limit(mecha_process: Callable[..., Any]) -> None:
    """A turn that does not end in time is rolled back, its caller told so, and the end is still graceful."""
    with mecha_process("--store", "memory://", "--drain", "1s") as server:
        caller, answers = in_flight(server.url, ENTER)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        caller.join(30)
        assert [answer.status_code for answer in answers] == [503]
        assert answers[0].json()["errorCode"].startswith("ERR_ACTOR_")


def test_port_in_use(mecha: Callable[..., Any], sample_app: Path, tmp_path: Path) -> None:
    """A taken port is one clear line, and the store is not touched."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        store = tmp_path / "untouched.db"
        ended = mecha("run", str(sample_app), "--port", port, "--store", f"sqlite:///{store}")
    _one_line(ended, 1, port)
    assert not store.exists()


def _one_line(ended: Any, code: int, *told: str) -> None:
    assert ended.returncode == code, ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("mecha: ")
    for text in told:
        assert text in lines[0]
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere.py"], 1, "nowhere.py"),
        (["SAMPLE", "--store", "nonsense"], 1, "store"),
        (["SAMPLE", "--store", "oracle://x"], 1, "oracle"),
        (["SAMPLE", "--port", "99999"], 2, "port"),
        (["SAMPLE", "--max-body-size", "much"], 2, "max_body_size"),
        (["SAMPLE", "--lease", "soon"], 2, "lease"),
        (["SAMPLE", "--host", "256.0.0.1"], 1, "256.0.0.1"),
        (["SAMPLE", "--store", "memory://", "--resources-path", "nowhere"], 1, "mecha: nowhere does not exist"),
        (["SAMPLE", "--settings", "nowhere.yaml"], 2, "nowhere.yaml"),
    ],
)
def test_mistakes_at_the_start(
    mecha: Callable[..., Any], sample_app: Path, arguments: list[str], code: int, told: str
) -> None:
    """Each is one line that names what is wrong, an exit code, and no traceback."""
    given = [str(sample_app) if argument == "SAMPLE" else argument for argument in arguments]
    _one_line(mecha("run", *given, *([] if "--port" in given else ["--port", "0"])), code, told)


def test_component_in_trouble(mecha: Callable[..., Any], sample_app: Path, tmp_path: Path) -> None:
    """What is wrong with a component is said of that component, not of the store that would have been the default."""
    (tmp_path / "store.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: orders}\nspec:\n  type: state.sqlite\n"
        f"  metadata:\n  - {{name: connectionString, value: {tmp_path}/missing/x.db}}\n"
        "  - {name: actorStateStore, value: 'true'}\n"
    )
    ended = mecha("run", str(sample_app), "--port", "0", "--resources-path", str(tmp_path))
    _one_line(ended, 1, "store.yaml: component 'orders': ", "there is no directory")
    assert "mecha.db" not in ended.stderr


def test_broken_application(mecha: Callable[..., Any], tmp_path: Path) -> None:
    """An application that cannot be imported is named with the line that fails."""
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\nimport nothing_of_that_name\n")
    _one_line(mecha("run", str(broken)), 1, "nothing_of_that_name", "line 2")


def test_newer_store(
    mecha_process: Callable[..., Any], mecha: Callable[..., Any], sample_app: Path, tmp_path: Path
) -> None:
    """A store of a newer format is refused with a clear message."""
    import sqlite3

    file = tmp_path / "newer.db"
    with mecha_process("--store", f"sqlite:///{file}") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    connection = sqlite3.connect(file)
    assert connection.execute("UPDATE meta SET value = 99 WHERE key = 'format_version'").rowcount == 1
    connection.commit()
    connection.close()
    ended = mecha("run", str(sample_app), "--port", "0", "--store", f"sqlite:///{file}")
    _one_line(ended, 1, "newer.db", "99")


def test_store_in_use(
    mecha_process: Callable[..., Any], mecha: Callable[..., Any], sample_app: Path, tmp_path: Path
) -> None:
    """Two servers on one store: the second is refused, the first goes on."""
    store = f"sqlite:///{tmp_path / 'shared.db'}"
    with mecha_process("--store", store, "--lease", "1s") as server:
        ended = mecha("run", str(sample_app), "--port", "0", "--store", store, "--lease", "1s")
        assert ended.returncode == 1
        assert "in use" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert httpx.post(server.url + DEPOSIT, content=b"5", **PLAIN).json() == 5


def test_settings_from_environment_and_file(mecha_process: Callable[..., Any], tmp_path: Path) -> None:
    """MECHA_… variables and a YAML file reach the server."""
    file = tmp_path / "mecha.yaml"
    file.write_text("app_id: from-file\nmax_body_size: 1Ki\n")
    with mecha_process("--settings", str(file), MECHA_STORE="memory://", MECHA_API_TOKEN="t") as server:
        assert httpx.get(f"{server.url}/v1.0/metadata", **PLAIN).status_code == 401
        headers = {"dapr-api-token": "t"}
        assert httpx.get(f"{server.url}/v1.0/metadata", headers=headers, **PLAIN).json()["id"] == "from-file"
        long = httpx.post(server.url + DEPOSIT, content=b"1" * 2000, headers=headers, **PLAIN)
        assert long.status_code == 413
