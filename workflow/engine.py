"""The engine: the workflows and activities of one process, put together for a host.

    engine = Engine([order], [charge])
    host = Host(journal, [*actor_types, *engine.types], workers=engine.workers)
    client = engine.attach(host.client)            # a WorkflowClient
    await host.start()

Activities that a workflow's code names are found by reading it; others (called through a variable, or left over from
former code) are listed.
"""

from __future__ import annotations

import logging
import platform
from typing import TYPE_CHECKING, Any

from actors import SystemClock
from actors.timetext import parse_duration_s
from workflow.activities import ActivityWorker
from workflow.client import WorkflowClient
from workflow.definition import Activity, Workflow
from workflow.deployment import Deployment
from workflow.discard import can_discard
from workflow.instance import MARKER_KIND, ROW_KIND, definition_for, instance_type
from workflow.payloads import DEFAULT_LIMIT, Keeper

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from actors import ActorClient, ActorDefinition, Clock, Worker
    from statestores.store import Payloads
    from workflow.activities import Elsewhere

log = logging.getLogger("workflow")


class Engine:
    """`idle_timeout`: how long an instance without input stays live in memory. `threads`: for plain `def` activities.
    `elsewhere`: where activities run that ask for resources, or compute for long; default: here, like the others.
    `payloads`: where values stand whose JSON is longer than `large_value_bytes`; default: in the history, like others.
    `evict_always`: drop the live program after every turn and replay it for the next; for tests, slow by design.

    Raises `ValueError` when two different workflows, or activities, have one name.
    """

    def __init__(
        self,
        workflows: Iterable[Workflow[Any, Any]],
        activities: Iterable[Activity[Any, Any]] = (),
        *,
        idle_timeout: str | float = "1m",
        threads: int = 32,
        clock: Clock | None = None,
        elsewhere: Elsewhere | None = None,
        payloads: Payloads | None = None,
        large_value_bytes: int = DEFAULT_LIMIT,
        evict_always: bool = False,
    ) -> None:
        self.workflows: dict[str, Workflow[Any, Any]] = {}
        self.activities: dict[str, Activity[Any, Any]] = {}
        for definition in workflows:
            _put(self.workflows, definition, "workflows")
        for activity in (*activities, *self._named_activities()):
            _put(self.activities, activity, "activities")
        clock = clock if clock is not None else SystemClock()
        self.keeper = None if payloads is None else Keeper(payloads, large_value_bytes, clock)
        worker = ActivityWorker(self.activities, clock, threads, elsewhere, self.keeper)
        self._worker = worker
        self._deployment = Deployment(
            self.workflows, worker.begin, worker.cancel, evict_always=evict_always, keeper=self.keeper
        )
        self.instance_type = instance_type(self._deployment, parse_duration_s(idle_timeout))

    @property
    def types(self) -> list[ActorDefinition]:
        """Actor types the host must have."""
        return [definition_for(self.instance_type)]

    @property
    def workers(self) -> Mapping[str, Worker]:
        """Workers the host must have, by kind."""
        return {MARKER_KIND: self._worker.take_marker, ROW_KIND: self._worker.take_row}

    def attach(self, client: ActorClient) -> WorkflowClient:
        """Connect to the host's client, before the host starts. Returns the client for workflows."""
        if self.workflows and not can_discard():
            log.warning(
                "this is %s %s: workflows that leave memory leave their suspended code behind, until the process ends; "
                "use CPython 3.11 to 3.13, or restart from time to time",
                platform.python_implementation(), platform.python_version(),
            )  # fmt: skip
        if self.keeper is not None:
            self.keeper.attach(client)
        self._worker.attach(client, definition_for(self.instance_type).methods)
        client.when_stopped(self._deployment.release)
        client.when_lost(self._deployment.release)
        return WorkflowClient(client, self.instance_type, self._deployment)

    def close(self) -> None:
        """After the host has stopped: let go of the threads."""
        self._worker.close()

    def _named_activities(self) -> Iterable[Activity[Any, Any]]:
        for definition in self.workflows.values():
            for named in definition.scan.named:
                if isinstance(named, Activity):
                    yield named


def _put(known: dict[str, Any], found: Any, what: str) -> None:
    if known.setdefault(found.name, found) is not found:
        raise ValueError(f"two {what} are named {found.name!r}: give one another name=")
