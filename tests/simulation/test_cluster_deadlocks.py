"""Chains of calls without deadlines over three simulated hosts: each ends, and none fails that could have gone on.

MECHA_SEED=17 pytest tests/simulation/test_cluster_deadlocks.py -k one_seed
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from actors import ActorError, actor, context, method
from actors.placement.cycles import Chaser
from tests.simulation.clusterworld import DISASTERS, World, run
from tests.simulation.simloop import NodeDied

if TYPE_CHECKING:
    from collections.abc import Sequence


SEEDS = int(os.environ.get("MECHA_CLUSTER_SEEDS", "30")) // 3
CELLS = [f"c{n}" for n in range(7)]
HOSTS = 3
_LONGEST_S = 600.0
# Nobody can answer what a zombie asks, whose own calls wait until it ends; here it does not.
_DISASTERS = [disaster for disaster in DISASTERS if disaster != "zombie"]


@actor
class Cell:
    value: int = 0

    @method
    async def walk(self, way: list[str], pause_s: float) -> int:
        """Hold this one, and go on along the way."""
        await asyncio.sleep(pause_s)
        if way:
            await context().actor(Cell, way[0]).walk(way[1:], pause_s)
        self.value += 1
        return self.value


class Walks:
    """`ordered`: every way goes from smaller to greater names, so no two can wait for each other. `disasters`: what
    happens to hosts meanwhile."""

    def __init__(self, *, ordered: bool, disasters: Sequence[str] = ()) -> None:
        self._ordered = ordered
        self._disasters = disasters
        self.errors: list[str] = []
        self.done = 0

    async def scenario(self, world: World) -> None:
        world.supervise(HOSTS)
        for cell in CELLS:
            await world.insist("", "Cell", cell, "walk", b"[[],0]")
        while sum(bool(m.host.owned()) for m in world.machines.values()) < HOSTS:  # noqa: ASYNC110  # free here
            await asyncio.sleep(0.1)
        trouble = world.loop.create_task(world.trouble(self._disasters)) if self._disasters else None
        driving = asyncio.gather(*(self._drive(world) for _ in range(6)))
        async with asyncio.timeout(_LONGEST_S):
            if trouble is not None:
                await asyncio.sleep(30)
                trouble.cancel()
                await world.heal()
            await driving

    async def _drive(self, world: World) -> None:
        for _ in range(5):
            way = world.luck.sample(CELLS, world.luck.randint(2, 4))
            if self._ordered:
                way.sort()
            body = orjson.dumps([way[1:], world.luck.uniform(0.0, 0.3)])
            while not world.machines:  # noqa: ASYNC110  # free here
                await asyncio.sleep(0.1)
            machine = world.luck.choice(list(world.machines.values()))
            try:
                await world.loop.ask(machine.name, machine.host.client.call("Cell", way[0], "walk", body))
                self.done += 1
            except (ActorError, NodeDied) as error:
                self.errors.append(str(error))
            await asyncio.sleep(world.luck.random() if self._disasters else 0.0)


def run_seed(seed: int, *, ordered: bool, disasters: Sequence[str] = ()) -> Walks:
    walks = Walks(ordered=ordered, disasters=disasters)
    run(seed, [Cell], walks.scenario)
    return walks


def test_every_call_ends() -> None:
    """Whatever waits for each other, without any deadline: all calls are answered, or fail naming the cycle."""
    errors: list[str] = []
    for seed in range(SEEDS):
        walks = run_seed(seed, ordered=False)
        assert walks.done + len(walks.errors) == 30
        errors += walks.errors
    assert errors
    assert all("call would deadlock: Cell/" in error for error in errors), errors


def test_nobody_fails_without_a_cycle() -> None:
    """Ways in one order wait for each other, however long, in no cycle."""
    for seed in range(SEEDS):
        walks = run_seed(seed, ordered=True)
        assert walks.errors == []
        assert walks.done == 30


def test_every_call_ends_though_hosts_do() -> None:
    """Whatever freezes, dies or is cut off between them, with cycles through it: nobody waits for ever."""
    deadlocks = 0
    for seed in range(SEEDS // 3):
        walks = run_seed(seed, ordered=False, disasters=_DISASTERS)
        assert walks.done + len(walks.errors) == 30
        deadlocks += sum("call would deadlock" in error for error in walks.errors)
    assert deadlocks


def test_one_seed() -> None:
    """One seed is one run."""
    seed = int(os.environ.get("MECHA_SEED", "0"))
    assert run_seed(seed, ordered=False).errors == run_seed(seed, ordered=False).errors


def test_without_probes_they_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation would see it if cycles over three hosts were not found."""

    def blind(self: Chaser, *_: Any) -> None:
        self._standing.clear()

    monkeypatch.setattr(Chaser, "look", blind)
    with pytest.raises(TimeoutError):
        test_every_call_ends()
