"""Several Ray nodes on one machine, for tests that add nodes, drain them and take them away."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False}
# A node that is gone refuses each check at once and is given up after the fifth. Ray's own 3 s between two would have
# tests wait for 15 s; one that is merely slow still has 10 s to answer each.
_CHECKED = {"RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "500"}


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
