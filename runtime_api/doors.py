"""Doors of one port: several processes listen on it, and who waits at the door of a sleeper, a neighbour lets in.

The kernel spreads new connections over all sockets that listen on a port (`SO_REUSEPORT`), and knows nothing of their
processes: a share of them goes to one that is frozen, and waits there for ever, while clients count their time-outs.
So every process hands its listening socket to the others, and each of them looks now and then whether somebody has
waited at a neighbour's for longer than an event loop takes; whoever has, it lets in itself.

    a process opens its door  ->  its listener goes to all neighbours  ->  each looks every `_LOOK_S`
    someone waits at two looks in a row  ->  the neighbour accepts, and serves

Nothing else depends on it: any host may take any connection. Leases, epochs and owners do not come into it.

Failure cases:

- *A process wakes up again*: it accepts what is there; nobody else finds anyone waiting.
- *A process ends, or stops listening*: its socket would live on with the neighbours. Who ends orderly shuts it for all
  of them. Who dies breaks its line to each neighbour, and they shut it; who waited there is let in before.
- *A process starts while another one sleeps*: it gets to know that door when the other one wakes up, not before.
- *Two neighbours look at the same moment*: one of them accepts, the other one finds nobody.

Neighbours find each other by the abstract addresses of their Unix sockets: these are seen by just those who share the
port, the processes of one network namespace. A line is kept only to a process of the same user. Where there are no such
addresses (not Linux), each is alone with its door, as without all this.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_S = 0.1
_MOST_AT_ONCE = 64
# At least as many as can wait at a door.
_ALL = 4096
_SOCKETS = Path("/proc/net/unix")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_MESSAGE = b"d"


class Doors:
    """Of one process, for one port. `let_in` gets connections that waited elsewhere. Used on one event loop."""

    def __init__(self, port: int, name: str, let_in: Callable[[socket.socket], None]) -> None:
        """`name`: no other process has it."""
        self._prefix = f"@mecha-door-{port}-"
        self._address = f"{self._prefix}{name}"
        self._let_in = let_in
        self._own: socket.socket | None = None
        self._called: socket.socket | None = None
        # Lines to neighbours, and the listener each has sent.
        self._lines: dict[socket.socket, socket.socket | None] = {}
        # Listeners at which someone waited when they were looked at last.
        self._waited: set[socket.socket] = set()
        self._look: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Get to know the neighbours. One that starts at the same moment is met at least once."""
        if not sys.platform.startswith("linux"):
            return
        loop = asyncio.get_running_loop()
        self._called = _unix_socket()
        self._called.bind(_abstract(self._address))
        self._called.listen()
        loop.add_reader(self._called, self._welcome, self._called)
        for address in _neighbours(self._prefix):
            if address != self._address:
                line = _unix_socket()
                try:
                    line.connect(_abstract(address))
                except OSError:  # it has just ended, or is called by too many: then it calls nobody, being frozen
                    line.close()
                else:
                    self._keep(line)
        self._look = loop.call_later(_LOOK_S, self._look_around)

    def open(self, listener: socket.socket) -> None:
        """This process serves from now on what comes to this socket. Until `shut`."""
        self._own = listener
        for line in self._lines:
            self._hand_over(line, listener)

    def shut(self) -> None:
        """Nobody comes to this process's socket any more, whoever else has it. It stays for its owner to close."""
        own, self._own = self._own, None
        if own is not None and self._called is not None:
            _shut(own)

    def stop(self) -> None:
        self.shut()
        if self._called is None:
            return
        assert self._look is not None, "started together"
        self._look.cancel()
        asyncio.get_running_loop().remove_reader(self._called)
        self._called.close()
        self._called = None
        for line in tuple(self._lines):
            self._drop(line)

    # -- neighbours ----------------------------------------------------------------------------------------------------

    def _welcome(self, called: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            line, _ = called.accept()
            line.setblocking(False)
            self._keep(line)

    def _keep(self, line: socket.socket) -> None:
        credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
            line.close()
            return
        self._lines[line] = None
        asyncio.get_running_loop().add_reader(line, self._heard, line)
        if self._own is not None:
            self._hand_over(line, self._own)

    def _hand_over(self, line: socket.socket, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has ended: `_heard` says so as well
            socket.send_fds(line, [_MESSAGE], [listener.fileno()])

    def _heard(self, line: socket.socket) -> None:
        """A neighbour opens its door, or has ended."""
        try:
            message, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        if not message:
            self._drop(line)
        for descriptor in descriptors:
            self._forget(line)
            listener = socket.socket(fileno=descriptor)
            listener.setblocking(False)
            self._lines[line] = listener

    def _drop(self, line: socket.socket) -> None:
        """The neighbour has ended. (Or this process ends: then the neighbour's door is its own affair.)"""
        asyncio.get_running_loop().remove_reader(line)
        listener = self._lines[line]
        if listener is not None and self._called is not None:
            self._take_in(listener, _ALL)
            _shut(listener)
        self._forget(line)
        del self._lines[line]
        line.close()

    def _forget(self, line: socket.socket) -> None:
        listener, self._lines[line] = self._lines[line], None
        if listener is not None:
            self._waited.discard(listener)
            listener.close()

    # -- doors ---------------------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_around)
        waiting = _readable([listener for listener in self._lines.values() if listener is not None])
        for listener in waiting & self._waited:
            self._take_in(listener, _MOST_AT_ONCE)
        self._waited = waiting

    def _take_in(self, listener: socket.socket, most: int) -> None:
        """Only who serves itself can let anyone in."""
        if self._own is None:
            return
        with contextlib.suppress(OSError):  # nobody waits any more; its owner has shut it
            for _ in range(most):
                connection, _ = listener.accept()
                connection.setblocking(False)
                self._let_in(connection)


def _unix_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


def _abstract(address: str) -> str:
    """As the system wants it: shown with an @, it begins with a zero."""
    return "\0" + address.removeprefix("@")


def _neighbours(prefix: str) -> set[str]:
    """Addresses, as the system shows them."""
    try:
        lines = _SOCKETS.read_text().splitlines()
    except OSError:
        return set()
    return {address for line in lines if (address := line.rpartition(" ")[2]).startswith(prefix)}


def _readable(listeners: list[socket.socket]) -> set[socket.socket]:
    poll = select.poll()
    by_number = {listener.fileno(): listener for listener in listeners}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return {by_number[number] for number, seen in poll.poll(0) if seen & select.POLLIN and not seen & select.POLLHUP}


def _shut(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # shut already
        listener.shutdown(socket.SHUT_RDWR)
