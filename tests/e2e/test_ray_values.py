"""Large values and Ray: they go by its object store, and what it loses is read from the state store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from runtime_api import Runtime
from runtime_api.loader import load_application
from runtime_api.raytasks import RayTasks, StorePlace, run_activity
from runtime_api.settings import load_settings
from statestores.components import open_url
from tests.placements import ON_RAY
from tests.raynodes import add_node, ray_nodes
from tests.servers import RedisServer
from workflow.activities import Ran
from workflow.orders import Order
from workflow.payloads import Stored, read, write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from statestores import StateStore

pytestmark = ON_RAY

APP = """
import os

from workflow import activity, workflow

@activity(num_cpus=1)
def grow(data: bytes, times: int) -> bytes:
    return data * times

@activity(num_cpus=1)
def where() -> int:
    return os.getpid()

@activity(resources={"far": 1})
def far(data: bytes) -> bytes:
    return data[::-1]

@workflow
async def growing(size: int) -> list:
    grown = await grow(await grow(b"x" * size, 3), 2)
    return [len(grown), grown[:3].decode(), await where()]
"""
SIZE = 1 << 20
STREAM = "mecha.workflow/lost"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head node, which this process has joined, and one that can be lost."""
    from actors.placement.ray import join_ray, stop_ray

    with ray_nodes() as cluster:
        add_node(cluster, resources={"far": 1})
        joined = join_ray(cluster.address)
        yield cluster
        if joined:
            stop_ray()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("values") / "values_app.py"
    path.write_text(APP)
    return str(path)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer(aof="everysec") as server:
        yield server


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[StateStore]:
    opened = open_url(redis.url)
    await opened.open()
    yield opened
    await opened.close()


def order_of(name: str, stored: Stored) -> Order:
    order = Order("lost", "x", "step", name, b"null", 1, 0)
    order.stored = str(stored)
    return order


async def test_large_values_go_to_tasks_and_back(nodes: Any, app: str, redis: RedisServer) -> None:
    """Arguments and results of tasks are stored beside the history, and reach the code and the activities."""
    settings = load_settings({"store": redis.url})
    tasks = RayTasks(app, "1", settings, "values_app")
    async with Runtime(load_application(app), store=redis.url, elsewhere=tasks, app_id="values_app") as runtime:
        instance = await runtime.workflows.start("growing", SIZE)
        length, start, pid = await runtime.workflows.wait(instance, 120)
        assert (length, start) == (6 * SIZE, "xxx")
        assert pid != os.getpid()
        history = await runtime.workflows.history(instance)
        assert len(orjson.dumps([[list(entry.inputs), list(entry.commands)] for entry in history])) < 10_000
        assert len(nodes.list_all_nodes()) == 2


async def test_lost_objects_are_read_from_the_store(
    nodes: Any, app: str, redis: RedisServer, store: StateStore
) -> None:
    """A node ends when a task on it has, and takes the object with it that holds the result: it is in the store. A task
    that is given a lost object for its arguments finds those there, too."""
    from actors.placement.ray import run_task

    place = StorePlace(redis.url, (), "values_app", "default")
    arguments = await write(store.payloads, STREAM, "1.1.far", orjson.dumps(["YWJj" * SIZE]))
    ran, object_ = await run_task(
        run_activity,
        app, order_of("far", arguments), place, None, ("1.1.result", 1024),
        cpus=0, gpus=0, resources={"far": 1}, environment=None,
    )  # fmt: skip
    (lost,) = nodes.worker_nodes
    nodes.remove_node(lost, allow_graceful=False)
    assert await object_.fetch() is None, "the object was still there: this test says nothing"
    assert isinstance(ran, Ran)
    made = ran.result
    assert isinstance(made, Stored)
    assert made.id == "1.1.result"
    assert orjson.loads(await read(store.payloads, STREAM, made)) == "Y2Jh" * SIZE

    arguments = await write(store.payloads, STREAM, "1.1.near", orjson.dumps(["YWJj" * SIZE, 1]))
    ran, _ = await run_task(
        run_activity,
        app, order_of("grow", arguments), place, object_, None,
        cpus=1, gpus=0, resources={}, environment=None,
    )  # fmt: skip
    assert isinstance(ran, Ran)
    assert isinstance(ran.result, bytes)
    assert orjson.loads(ran.result) == "YWJj" * SIZE
