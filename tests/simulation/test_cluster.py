"""A whole cluster in a simulated world (`clusterworld`): nothing is lost or doubled.

A failing seed prints the command that runs it again:

    MECHA_SEED=17 pytest tests/simulation/test_cluster.py -k one_seed

``MECHA_CLUSTER_SEEDS=10000`` runs more of them than the default.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from actors import actor, context, method, send
from actors.placement.cluster import ClusterPlacement
from tests.simulation.clusterworld import DISASTERS, ROBBERY, World, run

if TYPE_CHECKING:
    from collections.abc import Callable


SEEDS = int(os.environ.get("MECHA_CLUSTER_SEEDS", "30"))
CHUNK = 50
CELLS = [f"c{n}" for n in range(6)]


@actor
class Cell:
    """Counts, and has another one count the same."""

    value: int = 0
    heard: int = 0

    @method
    async def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    @method
    async def add_and_tell(self, other: str) -> int:
        send(context().actor(Cell, other).hear)
        self.value += 1
        return self.value

    @method
    async def add_and_ask(self, other: str) -> int:
        await context().actor(Cell, other).hear()
        self.value += 1
        return self.value

    @method
    async def hear(self) -> int:
        self.heard += 1
        return self.heard

    @method(read_only=True)
    async def told(self) -> int:
        return self.heard

    @method(read_only=True)
    async def read(self) -> int:
        return self.value


async def scenario(world: World) -> None:
    world.supervise()
    answers: dict[str, list[int]] = {cell: [] for cell in CELLS}
    told = dict.fromkeys(CELLS, 0)

    async def drive(number: int) -> None:
        for round_ in range(8):
            cell, other = world.luck.sample(CELLS, 2)
            # Only in one direction: two that ask each other at the same time are a deadlock, and fail.
            name = world.luck.choice(["add", "add", "add_and_tell", "add_and_ask"])
            if name == "add_and_ask" and cell > other:
                cell, other = other, cell
            body = b"1" if name == "add" else orjson.dumps(other)
            answers[cell].append(await world.insist(f"{number}-{round_}", "Cell", cell, name, body))
            told[other] += name != "add"
            await asyncio.sleep(world.luck.random())

    trouble = world.loop.create_task(world.trouble([*DISASTERS, ROBBERY]))
    await asyncio.gather(*(drive(number) for number in range(6)))
    trouble.cancel()
    await world.heal()
    for cell in CELLS:
        # Exactly once, each: no answer was given twice, none is missing, and nothing more was recorded.
        assert sorted(answers[cell]) == list(range(1, len(answers[cell]) + 1)), f"{cell} answered {answers[cell]}"
        assert await world.insist("", "Cell", cell, "read", b"") == len(answers[cell])
    async with asyncio.timeout(120):
        for cell in CELLS:
            while (heard := await world.insist("", "Cell", cell, "told", b"")) < told[cell]:  # noqa: ASYNC110  # free here
                await asyncio.sleep(0.5)
            assert heard == told[cell], f"{cell} heard {heard} times, was told {told[cell]} times"


def run_seed(seed: int) -> tuple[int, float]:
    return run(seed, [Cell], scenario)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_nothing_is_lost_or_doubled(first: int) -> None:
    """INV-1 to INV-9 over several hosts, whatever freezes, dies, is robbed or cut off."""
    for seed in range(first, min(first + CHUNK, SEEDS)):
        run_seed(seed)


def test_one_seed() -> None:
    """One seed is one run."""
    seed = int(os.environ.get("MECHA_SEED", "0"))
    assert run_seed(seed) == run_seed(seed)


# -- planted bugs ------------------------------------------------------------------------------------------------------


def without_receipts_of_hops(patch: pytest.MonkeyPatch) -> None:
    """A call between hosts is made again as if it had never been made."""
    again = ClusterPlacement._again

    def forgetful(self: ClusterPlacement, sent: Any, *, redelivered: bool) -> None:
        sent.call.key = None
        again(self, sent, redelivered=False)

    patch.setattr(ClusterPlacement, "_again", forgetful)


@pytest.mark.parametrize("plant", [without_receipts_of_hops])
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation would see it if a rule were broken."""
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_nothing_is_lost_or_doubled(0)
