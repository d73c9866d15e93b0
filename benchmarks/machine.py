"""The machine and the versions a result belongs to."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.loops import loop_name

_PACKAGES = ("uvicorn", "httptools", "fastapi", "pydantic", "orjson")
_SYNCS = 200


def describe_machine() -> dict[str, str]:
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores for us",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "fdatasync": f"{sync_ms():.2f} ms",
        "load before": load,
        "python": f"{platform.python_implementation()} {platform.python_version()}, {loop_name()}",
        "sqlite": sqlite3.sqlite_version,
        "packages": ", ".join(filter(None, map(_package, _PACKAGES))),
    }


def sync_ms() -> float:
    """Median time to append 4 KiB to a file and have it on disk, where the benchmarks keep their files."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            begin = time.perf_counter()
            os.pwrite(file.fileno(), bytes(4096), 0)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    return sorted(times)[_SYNCS // 2] * 1000


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), sys.platform)


def _package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""
