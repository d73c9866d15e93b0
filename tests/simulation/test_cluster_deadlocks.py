"""Chains of calls without deadlines over three simulated hosts: each ends, and none fails that could have gone on.

MECHA_SEED=17 pytest tests/simulation/test_cluster_deadlocks.py -k one_seed
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from actors import ActorError, actor, context, method
from actors.placement.cycles import Chaser
from tests.simulation.clusterworld import World, run

if TYPE_CHECKING:
    from collections.abc import Iterator


SEEDS = int(os.environ.get("MECHA_CLUSTER_SEEDS", "60")) // 3
CELLS = [f"c{n}" for n in range(7)]
HOSTS = 3
_LONGEST_S = 600.0


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


@pytest.fixture(autouse=True)
def _hush() -> Iterator[None]:
    logging.disable(logging.NOTSET if "MECHA_SEED" in os.environ else logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


class Walks:
    """`ordered`: every way goes from smaller to greater names, so no two can wait for each other."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self.errors: list[str] = []
        self.done = 0

    async def scenario(self, world: World) -> None:
        world.supervise(HOSTS)
        for cell in CELLS:
            await world.insist("", "Cell", cell, "walk", b"[[],0]")
        while sum(bool(m.host.owned()) for m in world.machines.values()) < HOSTS:  # noqa: ASYNC110  # free here
            await asyncio.sleep(0.1)
        async with asyncio.timeout(_LONGEST_S):
            await asyncio.gather(*(self._drive(world) for _ in range(6)))

    async def _drive(self, world: World) -> None:
        for _ in range(5):
            way = world.luck.sample(CELLS, world.luck.randint(2, 4))
            if self._ordered:
                way.sort()
            body = orjson.dumps([way[1:], world.luck.uniform(0.0, 0.3)])
            machine = world.luck.choice(list(world.machines.values()))
            try:
                await world.loop.ask(machine.name, machine.host.client.call("Cell", way[0], "walk", body))
                self.done += 1
            except ActorError as error:
                self.errors.append(str(error))


def run_seed(seed: int, *, ordered: bool) -> Walks:
    walks = Walks(ordered=ordered)
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
