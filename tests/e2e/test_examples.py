"""The small examples run as their first lines say, and print what they promise.

The guestbook is an application to be served, so it is on each placement. The others are programs with a runtime inside,
which is local by its nature.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from examples import guestbook
from tests.placements import cluster_on
from tests.servers import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 60


def run_example(name: str, store: str) -> list[str]:
    """The lines it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}", store],
        cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_bank_keeps_its_money(tmp_path: Path) -> None:
    """Payments are sent exactly once: two runs put 200 in, and 200 are there, half of the payments with each run."""
    store = f"sqlite:///{tmp_path / 'bank.db'}"
    first, second = ([line for line in run_example("bank", store) if "way" not in line] for _ in range(2))
    assert first == [
        "alice has 70 after paying 30 to bob",
        "bob was refused: 1000000 is more than 30",
        "together they have 100",
        'alice, event 1: received {"amount":100,"sender":""}',
        'alice, event 2: paid {"amount":30,"to":"bob"}',
    ]
    assert second[0] == "alice has 140 after paying 30 to bob"
    assert second[2] == "together they have 200"


def test_orders_end_in_each_way(tmp_path: Path) -> None:
    """One order is shipped, one given up and refunded after a retry of its payment, one finds too little in stock."""
    assert run_example("orders", f"sqlite:///{tmp_path / 'orders.db'}") == [
        "shipped: parcel 17",
        "refunded: refund of charge-…",
        "sold out: kettle",
    ]


def curl_lines() -> Iterator[tuple[list[str], Any]]:
    """(arguments of curl, what it answers) of the example's own text; of an object with "..." some fields are given."""
    assert guestbook.__doc__ is not None
    for command, answer in re.findall(r"^    \$ curl (.*)\n    (.*)$", guestbook.__doc__, re.MULTILINE):
        yield shlex.split(command), json.loads(answer.replace(", ...}", "}"))


def request_of(arguments: list[str], server: str) -> httpx.Request:
    """What curl would send."""
    given = iter(arguments)
    method, url, body = "", "", None
    for argument in given:
        if argument == "-X":
            method = next(given)
        elif argument == "-d":
            body = next(given)
        else:
            url = argument.replace("http://127.0.0.1:3500", server)
    return httpx.Request(method or ("GET" if body is None else "POST"), url, content=body)


@contextlib.contextmanager
def guestbook_here(tmp_path: Path) -> Iterator[str]:
    """`mecha run`; it ends gracefully, with exit code 0."""
    command = [sys.executable, "-m", "runtime_api.cli", "run", "examples/guestbook.py", "--port", "0"]
    store = f"sqlite:///{tmp_path / 'guestbook.db'}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MECHA_", "DAPR_"))}
    server = subprocess.Popen([*command, "--store", store], cwd=ROOT, env=kept, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ready = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert ready is not None
        yield ready[0]
        server.terminate()
        assert server.wait(_TIMEOUT_S) == 0
    finally:
        server.kill()
        server.communicate(timeout=_TIMEOUT_S)


@contextlib.contextmanager
def guestbook_on(ray_address: str) -> Iterator[str]:
    """`mecha run --placement ray`; it ends gracefully, with exit code 0."""
    with cluster_on(ray_address, ROOT / "examples" / "guestbook.py", "guestbook") as cluster:
        yield cluster.url
        assert cluster.stop() == 0


def test_guestbook_answers_as_its_text_says(placement: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every curl line of the guestbook's text gets the answer printed below it, from a real server and from a real
    cluster."""
    local = placement == "local"
    served = guestbook_here(tmp_path) if local else guestbook_on(request.getfixturevalue("ray_address"))
    with served as url, httpx.Client(**PLAIN, timeout=_TIMEOUT_S) as client:
        lines = list(curl_lines())
        assert len(lines) == 5
        for arguments, expected in lines:
            answer = client.send(request_of(arguments, url)).raise_for_status().json()
            given = {name: answer[name] for name in expected} if isinstance(expected, dict) else answer
            assert given == expected
