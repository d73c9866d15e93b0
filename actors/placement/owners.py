"""Names of hosts as the store has them, and what such a name says about the process behind it.

    box:4711:f6e08c9d….4026531836.4026531834.88123:h-3      machine : process id : identity : the host's own name

The first two are for people. The *identity* tells whether that process has ended, to another one that can know:

    boot id . pid namespace . time namespace . start of the process, in ticks since the boot

A process id says nothing outside of its pid namespace, and containers may well share the name of their machine; it is
given anew once its process has ended, but not with the same start. Where an identity cannot be had it is empty, and
nothing is ever concluded from one.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """`scope`: within which process ids mean the same. `started`: "" where the system does not say."""

    scope: str
    started: str


def make_owner(unique: str) -> str:
    """A host's name in the store. `unique`: its own, without colons."""
    scope, started = identity(os.getpid())
    return f"{socket.gethostname()}:{os.getpid()}:{scope}.{started}:{unique}"


def host_name(owner: str) -> str:
    """The name a host has among its peers, out of the one it has in the store."""
    return owner.rpartition(":")[2]


def is_gone(owner: str) -> bool:
    """Certain that the owner was a process that this one could see, and has ended. False for names that an older
    version has made, without an identity."""
    try:
        machine, pid_text, both, _ = owner.rsplit(":", 3)
        pid = int(pid_text)
    except ValueError:
        return False
    scope, _, started = both.rpartition(".")
    if not scope or scope != _scope() or machine != socket.gethostname():
        return False
    if not _exists(pid):
        return True
    return bool(started) and identity(pid).started not in (started, "")


def identity(pid: int) -> Identity:
    """Of a process in our own pid namespace."""
    return Identity(_scope(), _started(pid))


def _scope() -> str:
    if sys.platform == "win32":  # nothing there is asked about a process without a risk to it
        return ""
    if not sys.platform.startswith("linux"):
        return sys.platform
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        process_ids = os.stat("/proc/self/ns/pid").st_ino
        seen_as = os.readlink("/proc/self")
    except OSError:
        return ""
    try:
        times = os.stat("/proc/self/ns/time").st_ino
    except OSError:  # a kernel that has none has none for anybody
        times = 0
    if seen_as != str(os.getpid()):  # a /proc of another pid namespace than ours
        return ""
    return f"{boot}.{process_ids}.{times}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    # The name of the program, in parentheses, may hold any bytes; what follows are numbers. Of all fields the 22nd.
    return stat.rpartition(b")")[2].split()[19].decode()
