"""The two places where an application can run, for suites that hold on both: here, and on the hosts of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.e2e.clusters import ClusterProcess
from tests.servers import end_with_parent, shared_redis

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).parents[1]
# Whatever starts a Ray, or uses the one of the session, is run by one worker of pytest, in turn: so there is but
# one of the session, and tests of leases share the processors with one other test at the most.
ON_RAY = pytest.mark.xdist_group("ray")
PLACEMENTS = ("local", pytest.param("ray", marks=ON_RAY))
_STOP_S = 60.0


class RayHead:
    """The one Ray of a session, in a process of its own: clusters join it by its `address`."""

    def __enter__(self) -> Self:
        """Returns when it is up."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rayhead"],
            cwd=ROOT,
            # Those who join it could not guess the token that Ray would think of.
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ray: "):
                self.address = line.removeprefix("ray: ").strip()
                return self
        raise RuntimeError(f"Ray did not start: exit code {self._process.wait(_STOP_S)}")

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=_STOP_S)


def cluster_on(ray_address: str, app: Path, app_id: str, *options: str) -> ClusterProcess:
    """`app` on two hosts of that Ray, over a namespace of its own in the session's Redis. A context manager."""
    store = f"{shared_redis().url}?namespace={uuid4().hex}"
    joined = ("--ray-address", ray_address, "--app-id", app_id, "--hosts", "2", "--spares", "0")
    return ClusterProcess(app, store, *joined, *options)
