"""Restate: its server, and its Python SDK behind it."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.installed import binary, python_with
from benchmarks.processes import WrongResult, foreign_environment, free_port, server, wait_for_listener

if TYPE_CHECKING:
    from collections.abc import Iterator

_APP = Path(__file__).parent / "programs" / "restate_services.py"
_READY_S = 60.0


def server_binary() -> Path:
    """Raises `NotInstalled`."""
    return binary("restate-server", "node_modules/@restatedev/restate-server-*/bin/restate-server")


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[int]:
    """Server and application, registered; the port of its ingress. Raises `NotInstalled`, `WrongResult`."""
    python, restate_server = python_with("restate-sdk"), server_binary()
    ingress, admin, fabric, app = (free_port() for _ in range(4))
    settings = foreign_environment(
        RESTATE_INGRESS__BIND_ADDRESS=f"127.0.0.1:{ingress}",
        RESTATE_ADMIN__BIND_ADDRESS=f"127.0.0.1:{admin}",
        RESTATE_BIND_ADDRESS=f"127.0.0.1:{fabric}",
        RESTATE_BASE_DIR=str(directory / "restate"),
        # Its default of 24 is for clusters. On two (busy) cores one did most: 336 calls and 168 workflows a second,
        # four 298 and 138, the default 303 and 131.
        RESTATE_DEFAULT_NUM_PARTITIONS="1",
        RESTATE_DISABLE_TELEMETRY="true",
        RESTATE_LOG_FILTER="warn",
    )
    with (
        server([python, _APP, str(app)], app, directory, env=foreign_environment()),
        server([restate_server], ingress, directory, env=settings),
    ):
        wait_for_listener(admin)
        _post(f"http://127.0.0.1:{admin}/deployments", {"uri": f"http://127.0.0.1:{app}"})
        yield ingress


def counter(port: int, key: str) -> int:
    """The value of one counter."""
    value: int = _post(f"http://127.0.0.1:{port}/Counter/{key}/get", None)
    return value


def _post(url: str, body: object) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"} if data else {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_READY_S) as answer:
            content = json.loads(answer.read() or b"null")
    except OSError as error:
        raise WrongResult(f"{url}: {error}") from error
    return content if isinstance(content, int) else 0
