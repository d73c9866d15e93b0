"""Several doors of one port: who waits at the door of a sleeper is let in by a neighbour, and no door outlives its
process. Each `Doors` here stands for a process; the sockets are real."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from runtime_api.doors import Doors
from tests.actors.worlds import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="neighbours are found on Linux")


class Process:
    """It listens on a port that it shares, and accepts nothing by itself."""

    def __init__(self, name: str, port: int = 0, known_as: int = 0) -> None:
        """`known_as`: the port of the neighbourhood, if it is to be another one than it listens on."""
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.let_in: list[socket.socket] = []
        self.doors = Doors(known_as or self.port, name, self.let_in.append)
        self.doors.start()

    def serve(self) -> None:
        self.listener.listen()
        self.doors.open(self.listener)

    def close(self) -> None:
        self.doors.stop()
        self.listener.close()
        for connection in self.let_in:
            connection.close()

    def die(self) -> None:
        """As `kill -9`: the kernel closes what it had."""
        for line, listener in self.doors._lines.items():
            asyncio.get_running_loop().remove_reader(line)
            line.close()
            if listener is not None:
                listener.close()
        self.doors._lines.clear()
        self.listener.close()


@pytest.fixture
async def two() -> AsyncIterator[tuple[Process, Process]]:
    """The second one listens elsewhere, so that the kernel leads everybody to the first."""
    first = Process("first")
    second = Process("second", known_as=first.port)
    yield first, second
    first.close()
    second.close()


async def knows(process: Process, doors: int = 1) -> None:
    await until(lambda: sum(listener is not None for listener in process.doors._lines.values()) == doors)


def client(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port))
    made.setblocking(False)
    return made


def is_refused(port: int) -> bool:
    try:
        client(port).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_who_waits_at_a_sleepers_door_is_let_in(two: tuple[Process, Process]) -> None:
    """A neighbour that serves accepts the connection, and what is said on it arrives."""
    sleeper, awake = two
    sleeper.serve()
    awake.serve()
    await knows(awake)
    with client(sleeper.port) as guest:
        await asyncio.get_running_loop().sock_sendall(guest, b"hello")
        await until(lambda: awake.let_in)
        assert await asyncio.get_running_loop().sock_recv(awake.let_in[0], 5) == b"hello"


async def test_who_does_not_serve_lets_nobody_in(two: tuple[Process, Process]) -> None:
    """A spare host leaves the guest to those who serve; when it serves itself, it lets the guest in."""
    sleeper, spare = two
    sleeper.serve()
    await knows(spare)
    with client(sleeper.port):
        await until(lambda: spare.doors._waited)
        spare.doors._look_around()
        assert not spare.let_in
        spare.serve()
        await until(lambda: spare.let_in)


async def test_who_is_awake_is_left_alone(two: tuple[Process, Process]) -> None:
    """Whoever is accepted before the second look comes to nobody else."""
    first, second = two
    first.serve()
    second.serve()
    await knows(second)
    for _ in range(5):
        with client(first.port):
            second.doors._look_around()
            first.listener.accept()[0].close()
            second.doors._look_around()
    assert not second.let_in


async def test_a_door_that_is_shut_is_shut_for_all(two: tuple[Process, Process]) -> None:
    """A process that stops listening gets no more connections, although its neighbour holds the socket too."""
    first, second = two
    first.serve()
    second.serve()
    await knows(second)
    first.doors.shut()
    assert is_refused(first.port)


async def test_the_door_of_the_dead_is_shut(two: tuple[Process, Process]) -> None:
    """Its neighbour lets in who waited there, and shuts it: nobody comes to a door behind which there is nobody."""
    dead, awake = two
    dead.serve()
    awake.serve()
    await knows(awake)
    with client(dead.port):
        dead.die()
        await until(lambda: awake.let_in)
    await knows(awake, doors=0)
    assert is_refused(dead.port)


async def test_everybody_who_waits_at_the_door_of_the_dead_is_let_in(two: tuple[Process, Process]) -> None:
    """However many they are: who was left there would be cut off when the door is shut."""
    dead, awake = two
    dead.serve()
    awake.serve()
    await knows(awake)
    with contextlib.ExitStack() as guests:
        for _ in range(100):
            guests.enter_context(client(dead.port))
        dead.die()
        await knows(awake, doors=0)
        assert len(awake.let_in) == 100


async def test_a_door_opened_before_its_neighbour_came(two: tuple[Process, Process]) -> None:
    """Who starts later hears of the doors that are open."""
    first, _ = two
    first.serve()
    third = Process("third", known_as=first.port)
    with contextlib.closing(third):
        await knows(third)


async def test_leaving_shuts_no_other_door(two: tuple[Process, Process]) -> None:
    """A process that ends lets go of its neighbours' sockets, and leaves them open."""
    first, second = two
    first.serve()
    await knows(second)
    second.doors.stop()
    client(first.port).close()
