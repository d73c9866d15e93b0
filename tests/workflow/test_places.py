"""Where activities run on a cluster: by what they say, by what they are, by what they have been measured to take."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from workflow import RetryPolicy, activity, workflow
from workflow.activities import Ran, run_here
from workflow.definition import ONE_CPU, Needs
from workflow.places import AWAY_ABOVE_S, BACK_BELOW_S, Places

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.workflow.conftest import World
    from workflow import Activity
    from workflow.orders import Order
    from workflow.payloads import Keeper
    from workflow.pieces import Data

LARGE_S, SMALL_S, BETWEEN_S = 2 * AWAY_ABOVE_S, BACK_BELOW_S / 10, (AWAY_ABOVE_S + BACK_BELOW_S) / 2


def compute(busy_s: float) -> None:
    """Until this thread has used the processor so long, whatever else the machine does."""
    end = time.thread_time() + busy_s
    while time.thread_time() < end:
        pass


class Others:
    """Other processes, for tests: threads of this one. What ran there, with what it asked for, is known."""

    def __init__(self, *activities: Activity[Any, Any], has_processors: bool = True) -> None:
        self._has_processors = has_processors
        self.ran: list[tuple[str, Needs]] = []
        self._activities = {each.name: each for each in activities}

    def has_processors(self) -> bool:
        return self._has_processors

    async def run(self, order: Order, needs: Needs, keeper: Keeper | None, arguments: Data | None) -> Ran:
        self.ran.append((order.name, needs))
        return Ran(*await asyncio.to_thread(run_here, self._activities[order.name], order, arguments))


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_what_is_not_known_yet_runs_here() -> None:
    """Only a measurement sends an activity away."""
    assert not Places().is_away("any")


def test_a_large_one_goes_away_and_its_name_alone() -> None:
    """One measurement above the limit is enough to begin with; other names are other activities."""
    places = Places()
    places.measured("large", LARGE_S)
    places.measured("small", SMALL_S)
    assert places.is_away("large")
    assert not places.is_away("small")


def test_one_that_proves_small_comes_back() -> None:
    """After some small ones, and goes away again after some large ones."""
    places = Places()
    for busy_s, away in ((LARGE_S, True), (SMALL_S, False), (LARGE_S, True)):
        for _ in range(20):
            places.measured("any", busy_s)
        assert places.is_away("any") is away


@pytest.mark.parametrize("first_s", [LARGE_S, SMALL_S])
def test_between_the_limits_nothing_moves(first_s: float) -> None:
    """An activity that is neither stays where it is, however long that goes on."""
    places = Places()
    places.measured("any", first_s)
    for _ in range(100):
        places.measured("any", BETWEEN_S)
        assert places.is_away("any") is (first_s is LARGE_S)


def test_one_odd_measurement_changes_little() -> None:
    """The mean of the latest ones counts: one that was twice the limit, among small ones, sends nothing away."""
    places = Places()
    for _ in range(10):
        places.measured("any", SMALL_S)
    places.measured("any", 2 * AWAY_ABOVE_S)
    assert not places.is_away("any")


# -- what activities say -----------------------------------------------------------------------------------------------


def test_what_is_measured() -> None:
    """A plain def that says nothing: not a coroutine, not one with a place, needs, or a timeout of its attempts."""

    def plain() -> None: ...
    async def waits() -> None:
        await asyncio.sleep(0)

    async def quick() -> None: ...

    assert activity(plain).is_measured
    assert activity(place="auto")(plain).is_measured
    assert not activity(waits).is_measured
    assert not activity(place="here")(plain).is_measured
    assert not activity(place="spread")(plain).is_measured
    assert not activity(num_gpus=1)(plain).is_measured
    assert not activity(retry=RetryPolicy(timeout="1s"))(plain).is_measured
    assert activity(quick).is_quick
    assert activity(place="here")(quick).is_quick
    assert not activity(place="spread")(quick).is_quick


def test_needs_of_places() -> None:
    """`spread` asks for one processor, unless the activity says what it needs."""

    def plain() -> None: ...

    assert activity(plain).needs is None
    assert activity(place="here")(plain).needs is None
    assert activity(place="spread")(plain).needs == ONE_CPU
    assert activity(place="spread", num_gpus=1)(plain).needs == Needs(gpus=1)


def test_places_that_cannot_be() -> None:
    """Refused at decoration."""
    with pytest.raises(TypeError, match="unknown place 'there': use auto, here, spread"):
        activity(place="there")  # type: ignore[call-overload]  # what a checker refuses as well
    with pytest.raises(TypeError, match='cannot have place="here"'):
        activity(place="here", num_cpus=1)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"num_cpus": -1}, "resource 'num_cpus' is -1: write a number, 0 or more"),
        ({"num_gpus": "1"}, "resource 'num_gpus' is '1': write a number, 0 or more"),
        ({"num_cpus": None}, "resource 'num_cpus' is None: write a number, 0 or more"),
        ({"num_cpus": 1.5}, "above 1 a whole number"),
        ({"resources": {"tpu": float("nan")}}, "resource 'tpu' is nan: write a number, 0 or more"),
        ({"resources": {"GPU": 1}}, 'is given as "num_gpus"'),
        ({"resources": {"num_cpus": 1}}, "resources= takes custom ones, not 'num_cpus'"),
        ({"resources": {"memory": "1GiB"}}, "resources= takes custom ones, not 'memory'"),
        ({"resources": {"object_store_memory": 1}}, "resources= takes custom ones, not 'object_store_memory'"),
        ({"resources": [("tpu", 1)]}, "resources= takes a dict by name"),
    ],
)
def test_needs_that_cannot_be(asked: dict[str, Any], expected: str) -> None:
    """Ray would refuse them at every attempt: refused at decoration."""
    with pytest.raises(TypeError, match=expected):
        activity(**asked)


# -- what the worker does ----------------------------------------------------------------------------------------------


async def run_some(world: World, others: Others | None, *activities: Activity[Any, Any], times: int = 1) -> list[Any]:
    """Results of each of them, one after the other, `times` over."""

    @workflow
    async def all_of_them(_: None) -> list[Any]:
        return [await each() for _ in range(times) for each in activities]

    client = await world.start([all_of_them], activities, elsewhere=others)
    result: list[Any] = await client.run(all_of_them)
    return result


def make(size_s: Callable[[], float], name: str = "plain", **options: Any) -> Activity[[], str]:
    """A plain activity that computes for so long, and says in which thread."""

    @activity(name=name, **options)
    def plain() -> str:
        compute(size_s())
        return threading.current_thread().name.partition("_")[0]

    found: Activity[[], str] = plain
    return found


HERE = "mecha-activity"


async def test_a_large_one_is_spread_from_the_second_on(world: World) -> None:
    """The first one is measured here; the others run elsewhere, with a processor each."""
    large = make(lambda: LARGE_S)
    others = Others(large)
    threads = await run_some(world, others, large, times=3)
    assert [thread == HERE for thread in threads] == [True, False, False]
    assert others.ran == [("plain", ONE_CPU)] * 2


async def test_one_that_gets_small_comes_back(world: World) -> None:
    """Measured elsewhere as well: the same name with small data runs here again."""
    sizes = iter([LARGE_S] + [0.0] * 19)
    changing = make(lambda: next(sizes))
    others = Others(changing)
    threads = await run_some(world, others, changing, times=20)
    assert threads[0] == HERE
    assert threads[1] != HERE
    assert threads[-1] == HERE


async def test_those_that_wait_for_a_thread_go_where_the_first_ones_were_measured_to_belong(world: World) -> None:
    """A wide fan-out of large ones that nobody knows yet: only as many run here as there are threads."""
    large = make(lambda: LARGE_S)

    @workflow
    async def fan_out(_: None) -> list[str]:
        return await asyncio.gather(*(large() for _ in range(8)))

    others = Others(large)
    client = await world.start([fan_out], [large], elsewhere=others, threads=2)
    threads = await client.run(fan_out)
    assert threads.count(HERE) == 2
    assert len(others.ran) == 6


@pytest.mark.parametrize("options", [{"place": "here"}, {"retry": RetryPolicy(timeout="60s")}])
async def test_what_stays_here(world: World, options: dict[str, Any]) -> None:
    """Said to, or limited in time: however large."""
    large = make(lambda: LARGE_S, **options)
    others = Others(large)
    assert await run_some(world, others, large, times=3) == [HERE] * 3
    assert others.ran == []


async def test_small_ones_stay_here(world: World) -> None:
    """A plain def that computes little, and coroutines."""
    small = make(lambda: 0.0)

    @activity
    async def quick() -> str:
        return "quick"

    others = Others(small, quick)
    assert await run_some(world, others, small, quick, times=3) == [HERE, "quick"] * 3
    assert others.ran == []


async def test_spread_ones_run_elsewhere_at_once(world: World) -> None:
    """Plain or not, small or not."""
    small = make(lambda: 0.0, place="spread")

    @activity(place="spread")
    async def quick() -> bool:
        return threading.current_thread() is threading.main_thread()

    others = Others(small, quick)
    assert HERE not in await run_some(world, others, small, quick)
    assert others.ran == [("plain", ONE_CPU), ("quick", ONE_CPU)]


async def test_without_processors_elsewhere_all_stay_here(world: World) -> None:
    """A cluster of nodes that have no processors to give: nothing that did not ask for one waits for ever."""
    large = make(lambda: LARGE_S)
    others = Others(large, has_processors=False)
    assert await run_some(world, others, large, times=3) == [HERE] * 3


async def test_without_elsewhere_all_run_here(world: World) -> None:
    """Placement local: whatever an activity says."""
    large, spread = make(lambda: LARGE_S), make(lambda: 0.0, "spread", place="spread")
    assert await run_some(world, None, large, spread, times=2) == [HERE] * 4


async def test_a_failure_is_a_measurement_too(world: World) -> None:
    """One that computes long and fails is spread from the second attempt on."""

    @activity(retry=RetryPolicy(max_attempts=3, initial_interval=0.001))
    def fails() -> str:
        compute(LARGE_S)
        if threading.current_thread().name.startswith(HERE):
            raise ValueError
        return "elsewhere"

    others = Others(fails)
    assert await run_some(world, others, fails) == ["elsewhere"]
