"""What Ray says of a task that ends before its time: by its own doing, with its node, or since nobody waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from actors.placement.ray import TaskDied, TaskLost, run_task, stop_ray
from tests.actors.worlds import until
from tests.placements import ON_RAY
from tests.raynodes import add_node, ray_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = ON_RAY
THERE = "there"


def run_for_ever(mark: str) -> tuple[str, None]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, when tests are run in the background
    Path(mark + ".begun").touch()
    try:
        while True:
            time.sleep(0.05)
    finally:
        Path(mark + ".ended").touch()


def kill_itself(mark: str) -> tuple[str, None]:
    os.kill(os.getpid(), signal.SIGKILL)
    return "", None


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head node for this program, and another one for tasks."""
    import ray

    with ray_nodes() as cluster:
        add_node(cluster, resources={THERE: 1})
        # Tasks import this file as the tests do.
        environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}}
        ray.init(cluster.address, log_to_driver=False, configure_logging=False, runtime_env=environment)
        yield cluster
        stop_ray()


async def run_there(function: Callable[[str], tuple[str, None]], mark: Path) -> None:
    await run_task(function, str(mark), cpus=0, gpus=0, resources={THERE: 1}, environment=None)


@pytest.mark.usefixtures("nodes")
async def test_a_task_that_kills_its_process(tmp_path: Path) -> None:
    """That is its own doing, as far as anybody knows."""
    with pytest.raises(TaskDied, match="died unexpectedly"):
        await run_there(kill_itself, tmp_path / "task")


@pytest.mark.usefixtures("nodes")
async def test_a_task_that_is_cancelled(tmp_path: Path) -> None:
    """It is interrupted, as by a person at the keyboard."""
    mark = tmp_path / "task"
    running = asyncio.create_task(run_there(run_for_ever, mark))
    await until(mark.with_suffix(".begun").exists, timeout_s=60)
    running.cancel()
    await until(mark.with_suffix(".ended").exists, timeout_s=60)
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_task_whose_node_is_lost(nodes: Any, tmp_path: Path) -> None:
    """That is told apart from a process that died alone."""
    mark = tmp_path / "task"
    running = asyncio.create_task(run_there(run_for_ever, mark))
    await until(mark.with_suffix(".begun").exists, timeout_s=60)
    (node,) = nodes.worker_nodes
    await asyncio.to_thread(nodes.remove_node, node, False)
    async with asyncio.timeout(120):
        with pytest.raises(TaskLost):
            await running
