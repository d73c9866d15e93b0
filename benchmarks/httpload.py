"""Load over HTTP/1.1: closed loops, one request in flight per connection, no pipelining.

`wrk` makes it when it is on the PATH, else `benchmarks.httpclient` in a process of its own, which takes more of the
machine for itself. What consists of more than one request per connection in order (start a workflow, wait for it)
is always made by the latter.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import ROOT, WrongResult, environment

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("keys.lua")


class Request(NamedTuple):
    """``%d`` in `path` becomes the number of a key, chosen at random for each request."""

    method: str
    path: str
    body: str = ""


class Load(NamedTuple):
    """What came of it. `requests` were answered with 2xx; up to `connections` more may have been under way at the
    end."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def detail(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms"


class Loader:
    """`name`: "wrk" or "own"."""

    def __init__(self, name: str = "") -> None:
        self.name = name or ("wrk" if shutil.which("wrk") else "own")

    def run(self, port: int, request: Request, keys: int, seconds: float, connections: int = CONNECTIONS) -> Load:
        """Raises `WrongResult` when an answer was not 2xx or a connection failed."""
        if self.name == "wrk":
            return _finished(_wrk(port, request, keys, seconds, connections))
        return run_script(port, [request], keys, seconds, connections)


def run_script(port: int, script: list[Request], keys: int, seconds: float, connections: int = CONNECTIONS) -> Load:
    """Each connection makes the requests of `script` in order, again and again; a whole round counts as one. ``%i``
    in a path is a number that no other round has."""
    order = json.dumps([port, script, keys, seconds, connections])
    return _finished([sys.executable, "-m", "benchmarks.httpclient", order])


def _wrk(port: int, request: Request, keys: int, seconds: float, connections: int) -> list[str]:
    # wrk takes whole seconds only.
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(_SCRIPT)]
    return ["wrk", *options, f"http://127.0.0.1:{port}", "--", request.method, request.path, str(keys), request.body]


def _finished(command: list[str]) -> Load:
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode != 0 or not lines:
        raise WrongResult(f"{command[0]} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    result = json.loads(lines[-1].removeprefix("RESULT "))
    if result.pop("failed"):
        raise WrongResult(f"requests failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return Load(**result)
