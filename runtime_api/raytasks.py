"""Activities as Ray tasks: how a host hands them over, and what happens in the process of a task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.hostneeds import HostNeeds
from runtime_api.loader import load_application
from runtime_api.startup import DEFAULT_STORE, shown_url
from statestores.components import actor_component, load_resources, make_store, open_url
from statestores.errors import ComponentError
from workflow.activities import Ran, WorkerDied, WorkerLost, run_here
from workflow.payloads import Stored, patiently, read, write
from workflow.raised import Raised, error_of, raised

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from actors.placement.ray import Shareable, SharedBytes
    from runtime_api.settings import Settings
    from statestores import StateStore
    from statestores.components import Component
    from workflow.definition import Needs
    from workflow.orders import Order
    from workflow.payloads import Keeper
    from workflow.pieces import Data

_PROCESSORS_S = 10.0

log = logging.getLogger(__name__)


class RayTasks:
    """Activities as Ray tasks; see `workflow.activities.Elsewhere`. Used on the host's event loop, but for
    `asked`.

    Large values go by Ray's object store: the host puts arguments there, the task leaves its result there. Both are
    durable before, in the state store, where they are read when Ray has lost them. So a result that was hours in the
    making outlives the node it was made on."""

    def __init__(self, target: str, version: str, settings: Settings, app_id: str) -> None:
        self._target = target
        # Ray keeps processes of tasks for the next ones: of this version of the code alone.
        self._environment = environment(MECHA_CODE_VERSION=version)
        self._processors = 0.0
        self._looked_s = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._asked: Counter[tuple[str, HostNeeds]] = Counter()
        self._store = StorePlace(settings.store, settings.resources_path, app_id, settings.namespace)

    def has_processors(self) -> bool:
        """As Ray said last; it is asked again now and then."""
        now_s = time.monotonic()
        if now_s - self._looked_s > _PROCESSORS_S:
            self._looked_s = now_s
            self._looking = asyncio.create_task(self._look())
        return self._processors >= 1

    async def _look(self) -> None:
        from actors.placement.ray import most_processors

        try:
            self._processors = await most_processors()
        except Exception as error:  # its control store is away: what was known will do
            log.info("the processors of the cluster are not known just now: %s", error)

    def asked(self) -> tuple[tuple[str, HostNeeds], ...]:
        """What runs, or waits for its place: activities by name, with what each needs. Called on another thread: Python
        makes a tuple of a dict's keys in one go."""
        return tuple(self._asked)

    async def run(self, order: Order, needs: Needs, keeper: Keeper | None, arguments: Data | None) -> Ran:
        """Each run has an id of its own for its result: one that was given up may still be writing."""
        if keeper is None:
            return await self._run(order, needs, None, arguments)
        id_ = keeper.reserve(order.stream)
        ran: Ran | None = None
        try:
            ran = await self._run(order, needs, (id_, keeper), arguments)
        finally:
            if ran is None or not isinstance(ran.result, Stored):
                keeper.settled(id_)
        return ran

    async def _run(self, order: Order, needs: Needs, keeping: tuple[str, Keeper] | None, arguments: Data | None) -> Ran:
        from actors.placement.ray import TaskDied, TaskLost, run_task, share

        cpus, gpus, resources = needs
        amounts = (("num_cpus", cpus), ("num_gpus", gpus), *resources)
        asked = order.name, HostNeeds(tuple((name, amount) for name, amount in amounts if amount))
        self._asked[asked] += 1
        try:
            outcome, data = await run_task(
                run_activity,
                self._target,
                order,
                self._store,
                None if arguments is None else await share(arguments),
                None if keeping is None else (keeping[0], keeping[1].limit),
                cpus=cpus,
                gpus=gpus,
                resources=dict(resources),
                environment=self._environment,
            )
        except TaskDied as error:
            raise WorkerDied(str(error)) from error
        except TaskLost as error:
            raise WorkerLost(str(error)) from error
        finally:
            self._asked[asked] -= 1
            if not self._asked[asked]:
                del self._asked[asked]
        if isinstance(outcome, Raised):
            raise error_of(outcome)
        stored = outcome.result if isinstance(outcome.result, Stored) else None
        if stored is not None and keeping is not None and (found := await data.fetch()) is not None:
            keeping[1].hand_over(stored.id, found)
        return outcome


class StorePlace(NamedTuple):
    """Where the actors' store is, for a process that has only this; see `Runtime`."""

    url: str | None
    resources: tuple[Path, ...]
    app_id: str
    namespace: str

    def make(self) -> StateStore:
        """Not opened yet. Raises `StoreError`."""
        found = self._component()
        if found is None:
            return open_url(DEFAULT_STORE if self.url is None else self.url)
        try:
            return make_store(found)
        except ComponentError as error:
            raise ComponentError(f"{found}: {error}") from error

    def shown(self) -> str:
        found = self._component()
        return f"store {shown_url(self.url)}" if found is None else f"the store of {found}"

    def _component(self) -> Component | None:
        if self.url is not None or not self.resources:
            return None
        return actor_component(load_resources(self.resources, self.app_id, self.namespace))


def run_activity(
    target: str, order: Order, place: StorePlace, shared: SharedBytes | None, keeping: tuple[str, int] | None
) -> tuple[Ran | Raised, Shareable | None]:
    """In the process of a task: load the application, run the activity. `keeping`: the id for a result that is larger
    than so much; it is then durable when this returns, and returned beside where it is."""
    from actors.placement.ray import Shareable

    _heed_interrupts()
    found = {activity.name: activity for activity in load_application(target).activities}
    arguments: Data | None = None
    if order.stored:
        arguments = None if shared is None else shared.fetch_blocking()
        if arguments is None:
            arguments = asyncio.run(_read(place, order))
    try:
        result, busy_s = run_here(found[order.name], order, arguments)
    except KeyboardInterrupt:  # how Ray cancels
        raise
    except BaseException as error:
        return raised(error), None
    if keeping is None or len(result) <= keeping[1]:
        return Ran(result, busy_s), None
    return Ran(asyncio.run(_write(place, order, keeping[0], result)), busy_s), Shareable(result)


def _heed_interrupts() -> None:
    """By SIGINT Ray interrupts a task. What a script starts in the background ignores it, and so does whatever that
    starts in turn: Ray, and its processes."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


async def _read(place: StorePlace, order: Order) -> Data:
    async with _opened(place) as store:
        data: Data = await patiently(lambda: read(store.payloads, order.stream, Stored.parse(order.stored)))
        return data


async def _write(place: StorePlace, order: Order, id_: str, result: bytes) -> Stored:
    async with _opened(place) as store:
        stored: Stored = await patiently(lambda: write(store.payloads, order.stream, id_, result))
        return stored


@contextlib.asynccontextmanager
async def _opened(place: StorePlace) -> AsyncIterator[StateStore]:
    store = place.make()
    await patiently(store.open)
    try:
        yield store
    finally:
        await store.close()


def environment(**variables: str) -> dict[str, Any]:
    """Ray's runtime_env, for processes that find what this one finds."""
    return {"env_vars": {"PYTHONPATH": search_path(), **variables}}


def search_path() -> str:
    """Where this process looks for modules, as PYTHONPATH."""
    return os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
