"""Temporal: its development server on a SQLite file, and its Python SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.driven import PeerDrive, driven
from benchmarks.peers.installed import binary, python_with
from benchmarks.processes import foreign_environment, free_port, server

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.model import Setting


def three_steps(setting: Setting, in_flight: int) -> PeerDrive:
    """Raises `NotInstalled`, `WrongResult`."""
    python, temporal = python_with("temporalio"), binary("temporal", "venv/bin/temporal")
    port = free_port()
    options = ["--headless", "--ip", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    command: list[str | Path] = [
        temporal,
        "server",
        "start-dev",
        *options,
        "--db-filename",
        setting.directory / "temporal.db",
    ]
    with server(command, port, setting.directory, env=foreign_environment()):
        return driven(python, "temporal_steps.py", port, in_flight, setting)
