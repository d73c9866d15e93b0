"""DBOS: a library, on a SQLite file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.driven import PeerDrive, driven
from benchmarks.peers.installed import python_with

if TYPE_CHECKING:
    from benchmarks.model import Setting


def three_steps(setting: Setting, in_flight: int) -> PeerDrive:
    """Raises `NotInstalled`, `WrongResult`."""
    return driven(python_with("dbos"), "dbos_steps.py", setting.directory / "dbos.sqlite", in_flight, setting)
