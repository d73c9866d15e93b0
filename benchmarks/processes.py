"""Other processes: servers that end with the benchmark, and functions that are measured in an interpreter of their
own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

ROOT = Path(__file__).parent.parent
_START_S = 60.0
_STOP_S = 30.0
_ENDS = (signal.SIGTERM, signal.SIGHUP)
# Settings of whoever runs the benchmarks would change what is measured.
_FOREIGN = ("MECHA_", "DAPR_", "RESTATE_", "DBOS_", "TEMPORAL_")
# Nor is what was installed to be compiled at each start, which some images have for a tree like this one.
_OURS = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}


class WrongResult(Exception):
    """What was measured did not do what it should have done."""


def end_on_signals() -> None:
    """From now on SIGTERM and SIGHUP end this process by `SystemExit`, as Ctrl-C does by `KeyboardInterrupt`: so that
    whoever has started a server, or a cluster, comes to end it. They are heard once; ending takes its time."""
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    for heard in _ENDS:
        signal.signal(heard, lambda *_: None)  # not SIG_IGN, which processes started from here would have, too
    raise SystemExit(128 + number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    """For processes of ours."""
    return {**foreign_environment(), "PYTHONPATH": str(ROOT), **more}


def foreign_environment(**more: str) -> dict[str, str]:
    """For processes that are not to see our packages."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN) and name not in _OURS}
    return {**own, "DO_NOT_TRACK": "1", **more}


@contextlib.contextmanager
def server(
    command: Sequence[str | Path],
    port: int,
    directory: Path,
    *,
    env: Mapping[str, str] | None = None,
    kill: bool = False,
) -> Iterator[None]:
    """A server process, from when it takes connections on `port`; its output goes to a log in `directory`. At the
    end it is told to stop, or killed. Raises `WrongResult` when it does not start."""
    log = directory / f"{Path(command[0]).name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=directory, env=env or environment(), stdout=output, stderr=output
        )
    try:
        wait_for_port(port, process, log)
        yield
    finally:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        wait_for_listener(port, lambda: process.poll() is None)
    except WrongResult as error:
        process.kill()
        raise WrongResult(f"{process.args!r}: {error}:\n{log.read_text(errors='replace')[-2000:]}") from None


def wait_for_listener(port: int, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Returns when `port` takes connections. Raises `WrongResult`."""
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up and goes_on():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.02)
    raise WrongResult(f"nothing listens on port {port}")


def apart(function: Callable[..., Mapping[str, Any]], **arguments: Any) -> dict[str, Any]:
    """`function(**arguments)`, run in a fresh interpreter: no collector, cache or thread of an earlier measurement
    is in its way. Arguments and result go as JSON. Raises `WrongResult` with what it raised."""
    target = f"{function.__module__}:{function.__qualname__}"
    command = [sys.executable, "-m", "benchmarks.apart", target, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WrongResult(f"{target} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
