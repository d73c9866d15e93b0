"""``python -m tests.relay PORT``: a bad road to the server on that port of this machine. It prints the port it listens
on, obeys the lines of its standard input, answers each with one line, and ends with that input. For use by
`tests.servers.Relay`, which has it as a process of its own: so it takes nothing from the loop of a test.

    drop        from now on requests arrive and answers are lost
    cut         every connection breaks; new ones are good
    hold PID    what this process sends stays on the way; others are not touched
    release     what was held arrives after all, also when its sender has given it up

There is no back-pressure: who asks waits for answers, so little is ever on the way.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Road:
    """What holds for all connections."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.connections: set[Connection] = set()
        self.is_dropping = False
        self.held_pid = 0

    def drop(self) -> None:
        self.is_dropping = True

    def cut(self) -> None:
        self.is_dropping = False
        for connection in tuple(self.connections):
            connection.cut()

    def hold(self, pid: int) -> None:
        self.held_pid = pid
        ports = ports_of(pid)
        for connection in self.connections:
            connection.is_held = connection.port in ports

    def release(self) -> None:
        self.held_pid = 0
        for connection in tuple(self.connections):
            connection.release()


class Connection:
    """A client's connection and the one to the server that stands for it."""

    def __init__(self, road: Road, client: asyncio.Transport) -> None:
        self.road, self.client = road, client
        peer = client.get_extra_info("peername")  # None: it has gone already
        self.port = int(peer[1]) if peer else 0
        self.server: asyncio.Transport | None = None
        self.waiting: list[bytes] = []
        self.is_held = bool(road.held_pid) and self.port in ports_of(road.held_pid)
        road.connections.add(self)
        self.connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            make = partial(End, opened=self._opened, got=self._answer, lost=self.cut)
            await asyncio.get_running_loop().create_connection(make, "127.0.0.1", self.road.target)
        except OSError:  # the server is down
            self.cut()

    def _opened(self, server: asyncio.Transport) -> None:
        self.server = server
        self._pass_on()

    def request(self, data: bytes) -> None:
        self.waiting.append(data)
        self._pass_on()

    def _pass_on(self) -> None:
        if self.server is not None and not self.is_held:
            waiting, self.waiting = self.waiting, []
            self.server.writelines(waiting)
            if self.client.is_closing():
                self.server.close()

    def _answer(self, data: bytes) -> None:
        if not self.road.is_dropping:
            self.client.write(data)

    def client_lost(self) -> None:
        """What it has sent and is held will arrive all the same."""
        if not self.is_held:
            self._leave()
            if self.server is not None:
                self.server.close()

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self._pass_on()
            if self.client.is_closing():
                self._leave()

    def cut(self) -> None:
        self._leave()
        self.client.abort()
        if self.server is not None:
            self.server.abort()

    def _leave(self) -> None:
        self.road.connections.discard(self)


class End(asyncio.Protocol):
    """One end of the road."""

    def __init__(
        self,
        *,
        opened: Callable[[asyncio.Transport], None],
        got: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._opened, self._got, self._lost = opened, got, lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._opened(transport)

    def data_received(self, data: bytes) -> None:
        self._got(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


def client_end(road: Road) -> End:
    made: list[Connection] = []
    return End(
        opened=lambda transport: made.append(Connection(road, transport)),
        got=lambda data: made[0].request(data),
        lost=lambda: made[0].client_lost(),
    )


def ports_of(pid: int) -> set[int]:
    """The local ports of a process' TCP connections over IPv4."""
    inodes = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                shown = os.readlink(descriptor)
            except FileNotFoundError:
                continue
            if shown.startswith("socket:["):
                inodes.add(shown[8:-1])
    except FileNotFoundError:  # the process has ended
        return set()
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes:
            ports.add(int(fields[1].partition(":")[2], 16))
    return ports


async def main(target: int) -> None:
    road, loop = Road(target), asyncio.get_running_loop()
    server = await loop.create_server(lambda: client_end(road), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    orders = {"drop": road.drop, "cut": road.cut, "release": road.release}
    async for line in lines:
        order, *arguments = line.decode().split()
        if order == "hold":
            road.hold(int(arguments[0]))
        else:
            orders[order]()
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
