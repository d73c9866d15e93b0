"""Several Ray nodes on one machine, for tests that add nodes, drain them and take them away: in the test's own process
(`ray_nodes`), or in another one (`RayNodes`, which ``python -m tests.raynodes`` is behind)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

# Without the processes that scale a cluster, and that carry lines of its logs to drivers.
SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
# A node that is gone refuses each check at once and is given up after the fifth. Ray's own 3 s between two would have
# tests wait for 15 s; one that is merely slow still has 10 s to answer each.
_CHECKED = {"RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "500"}
_SAID = "nodes: "
_STOP_S = 60.0


@contextmanager
def ray_nodes(environment: dict[str, str] | None = None) -> Iterator[Any]:
    """A Ray of its own with a head node that has nothing special. `environment`: settings of Ray's processes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **_CHECKED, **(environment or {})}.items():
            patch.setenv(name, value)
        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL})
        try:
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Any, **options: Any) -> Any:
    """Another small node. Blocks until Ray knows it."""
    return cluster.add_node(num_cpus=1, **options, **SMALL)


class RayNodes:
    """A Ray of several small nodes in a process of its own, since Ray's node processes want a main thread for a while.
    A context manager; each method returns when it is done, which may take seconds."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        # One order at a time: a caller that was cancelled leaves a thread behind that waits for its answer.
        self._ordering = threading.Lock()
        self.address = ""
        # Ids, without the head's and those that have lost their raylet.
        self.workers: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.raynodes"],
            cwd=Path(__file__).parents[1],
            # Those who join it could not guess the token that Ray would think of.
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.address = self._line()
            for _ in range(self._workers):
                self.add()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._ordering:
            self._process.communicate(timeout=_STOP_S)

    def add(self) -> None:
        self.workers.append(self._order("add"))

    def kill_raylet(self, node: str) -> None:
        """kill -9. It is not reaped: so the node's other processes do not notice by Ray's means, and live on."""
        self.workers.remove(node)
        self._order(f"kill {node}")

    def bury(self, node: str) -> None:
        """End whatever Ray itself still has running there."""
        self._order(f"bury {node}")

    def _order(self, order: str) -> str:
        assert self._process.stdin is not None
        with self._ordering:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
            return self._line()

    def _line(self) -> str:
        """What is said to us: Ray itself may say something as well."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_SAID):
                return line.removeprefix(_SAID).strip()
        raise RuntimeError("the process of Ray's nodes has ended")


def _say(text: str) -> None:
    print(_SAID + text, flush=True)


def main() -> None:
    """Obeys standard input, and ends with it."""
    with ray_nodes() as cluster:
        _say(cluster.address)
        found: dict[str, Any] = {}
        for line in sys.stdin:
            order, *names = line.split()
            if order == "add":
                node = add_node(cluster)
                found[node.node_id] = node
                _say(node.node_id)
            elif order == "kill":
                os.kill(found[names[0]].all_processes["raylet"][0].process.pid, signal.SIGKILL)
                _say("done")
            else:
                cluster.remove_node(found.pop(names[0]), allow_graceful=False)
                _say("done")


if __name__ == "__main__":
    main()
