"""What the name of an owner says about its process: that it has ended is said only when it is certain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from actors.placement.owners import host_name, identity, is_gone, make_owner

ROOT = Path(__file__).parents[2]
MACHINE = socket.gethostname()
SCOPE, STARTED = identity(os.getpid())


def owner(pid: int, scope: str = SCOPE, started: str = STARTED, machine: str = MACHINE) -> str:
    return f"{machine}:{pid}:{scope}.{started}:h-1"


def an_ended_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_process_of_ours_that_has_ended_is_gone() -> None:
    """No process has its id any more."""
    assert is_gone(owner(an_ended_pid()))


def test_the_living_are_not_gone() -> None:
    """Ourselves and our parent live."""
    assert not is_gone(make_owner("x"))
    assert not is_gone(owner(os.getppid(), started=identity(os.getppid()).started))


def test_an_id_that_was_given_anew_is_another_process() -> None:
    """A process of that id lives, and began at another time: the owner has ended. One that was ourselves, too."""
    assert identity(os.getppid()).started not in ("", "1")
    assert is_gone(owner(os.getppid(), started="1"))
    assert is_gone(owner(os.getpid(), started="1"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a name in /proc")
def test_a_process_may_have_any_name() -> None:
    """The kernel keeps 15 bytes of it, which may end in the middle of a character."""
    program = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, 'vierzehn-bytes\u00fc)'.encode(), 0, 0, 0)\n"
        "from actors.placement.owners import is_gone, make_owner; sys.exit(is_gone(make_owner('x')))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "scope",
    [
        pytest.param(f"{'0' * 8}-{SCOPE.partition('-')[2]}", id="of another boot"),
        pytest.param(".".join((SCOPE.split(".")[0], "1", SCOPE.split(".")[2])), id="of another pid namespace"),
        pytest.param(".".join((*SCOPE.split(".")[:2], "1")), id="of another time namespace"),
        pytest.param("", id="without identity"),
    ],
)
def test_what_cannot_be_seen_from_here_is_not_gone(scope: str) -> None:
    """Containers may share the name of a machine: an id says nothing about a process of another namespace or boot."""
    for pid in (an_ended_pid(), os.getppid()):
        assert not is_gone(owner(pid, scope=scope, started="1"))


def test_another_machine_is_not_judged() -> None:
    """Nor a name of another form, as older versions made them."""
    ended = an_ended_pid()
    assert not is_gone(owner(ended, machine="elsewhere"))
    for name in ("nonsense", f"{MACHINE}:{ended}:x", f"{MACHINE}:{ended}::x", f"{MACHINE}:pid:{SCOPE}.1:x", "deposed:"):
        assert not is_gone(name)


def test_a_process_without_start_is_judged_by_its_id_alone() -> None:
    """Where the system does not say when a process began, only one that is not there has ended."""
    assert is_gone(owner(an_ended_pid(), started=""))
    assert not is_gone(owner(os.getppid(), started=""))


def test_the_host_is_named_last() -> None:
    """Peers call each other by the name behind the last colon; nobody has none."""
    assert host_name(make_owner("host-a-1")) == "host-a-1"
    assert host_name("box:1:x") == "x"
    assert host_name("deposed:") == ""


def test_a_container_of_the_same_name_is_not_gone() -> None:
    """A process in a real pid namespace of its own, under the same machine's name, is not judged from outside, nor we
    from there; inside it judges itself."""
    code = "import sys; from actors.placement.owners import *; print(make_owner('in')); print(is_gone(sys.argv[1]))"
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no pid namespaces for us here: {error}")
    said = subprocess.run(
        [*inside, sys.executable, "-c", code, owner(an_ended_pid())],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    machine, pid, both, _ = said[0].split(":")
    assert machine == MACHINE
    assert int(pid) < 100  # of its own namespace
    assert both.split(".")[0] == SCOPE.split(".")[0]
    assert not is_gone(said[0])
    assert said[1] == "False"
