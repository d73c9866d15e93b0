"""The supervisor on a fleet of hosts that do nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from actors.hostneeds import HostNeeds
from actors.placement import supervisor as supervisor_module
from actors.placement.supervisor import Node, Report, Supervisor, Wanted
from tests.actors.worlds import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from actors.placement.supervisor import HostHandle


class Idle:
    """A host that owns nothing. It is too busy for the first `deaf` questions."""

    def __init__(self, name: str, node: str, deaf: int) -> None:
        self._name, self._node, self._deaf = name, node, deaf
        self.asked = 0
        self.activities: tuple[tuple[str, HostNeeds], ...] = ()

    @property
    def name(self) -> str:
        return self._name

    async def report(self) -> Report:
        self.asked += 1
        if self.asked <= self._deaf:
            raise TimeoutError
        return Report(
            name=self._name,
            node=self._node,
            pid=1,
            since_ms=0,
            version="1",
            partitions=4,
            owned={},
            lag_s=0.0,
            activations=0,
            url="",
            lease_holds=False,
            hears_store=True,
            asked=self.activities,
        )

    async def take(self, partitions: Sequence[int], alive: Sequence[str]) -> None: ...
    async def give(self, partitions: Sequence[int], timeout_s: float) -> None: ...
    async def stop(self, timeout_s: float) -> None: ...
    def kill(self) -> None: ...

    async def wait_gone(self) -> None:
        await asyncio.Event().wait()


class Idlers:
    """A fleet of them, on two nodes. Each is there when `may_start` is set."""

    def __init__(self, deaf: int) -> None:
        self.hosts: list[Idle] = []
        self.ordered = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.resources: dict[str, float] = {"CPU": 2}
        self._deaf = deaf

    async def start_host(self, version: str, node: str | None) -> HostHandle:
        self.ordered += 1
        await self.may_start.wait()
        self.hosts.append(Idle(f"h{len(self.hosts)}", node or "", self._deaf))
        return self.hosts[-1]

    async def existing(self) -> list[HostHandle]:
        return []

    async def nodes(self) -> list[Node]:
        return [Node("n1", False, self.resources), Node("n2", False)]


async def test_a_host_that_is_slow_to_answer_is_not_started_again() -> None:
    """One host on each node is one host on each node, also when the first questions to it are not answered in time."""
    fleet = Idlers(deaf=3)
    supervisor = Supervisor(fleet, Wanted(per_node=1, spares=0))
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(supervisor.reports()) >= 2, timeout_s=20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert sorted(report.node for report in supervisor.reports()) == ["n1", "n2"]
    assert len(fleet.hosts) == 2


async def test_spares_do_not_delay_those_that_serve() -> None:
    """At the beginning a spare host is started when those that serve are there, not beside them."""
    fleet = Idlers(deaf=0)
    fleet.may_start.clear()
    supervisor = Supervisor(fleet, Wanted(hosts=2, spares=1))
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.ordered == 2)
    await supervisor._look()
    assert fleet.ordered == 2
    fleet.may_start.set()
    await until(lambda: len(supervisor.reports()) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(fleet.hosts) == 3


async def test_activities_that_no_node_can_run_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """They wait for ever, perhaps: `unplaced` says so, and one line of the log, until there is such a node."""
    fleet = Idlers(deaf=0)
    supervisor = Supervisor(fleet, Wanted(hosts=1, spares=0))
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(supervisor.reports()) == 1)
    fleet.hosts[0].activities = (
        ("small", HostNeeds((("num_cpus", 2.0),))),
        ("train", HostNeeds((("num_gpus", 1.0), ("tpu", 0.5)))),
    )
    await until(lambda: supervisor.unplaced == "Activity train waits for a node with num_gpus 1, tpu 0.5")
    fleet.resources |= {"GPU": 1, "tpu": 1}
    await until(lambda: supervisor.unplaced == "")
    await until(lambda: "everything has its place" in caplog.text)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert caplog.text.count("Activity train waits for a node") == 1


async def test_starts_that_have_failed_for_hours_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a host could not be started: when what was wrong has been put right, the next one serves."""
    monkeypatch.setattr(supervisor_module, "_LONGEST_BACKOFF_S", 0.0)
    fleet = Idlers(deaf=0)
    supervisor = Supervisor(fleet, Wanted(hosts=1, spares=0))
    supervisor._failures = 5_000
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(supervisor.reports()) == 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert fleet.ordered == 1
