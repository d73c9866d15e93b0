"""The actors and workflows that are measured. Ordinary application code: `mecha run benchmarks.apps` serves it."""

from __future__ import annotations

import asyncio
import os
from typing import get_args

from actors import actor, context, method
from workflow import activity, wait_event, workflow
from workflow import actor as actor_of
from workflow.definition import Place

GATE = "BENCH_GATE"
"""Set to "closed" in the environment: the activity `pass_gate` never ends."""


@actor
class Counter:
    """What every other system's counter is: one number, one durable event per call."""

    value: int = 0

    @method
    async def add(self, by: int) -> int:
        self.value += by
        return self.value


@actor
class Caller:
    """Calls counters, as many at once as it is given, for a time."""

    @method
    async def drive(self, counters: list[str], seconds: float) -> int:
        """How many calls were answered."""
        turn, clock = context(), asyncio.get_running_loop()
        end = clock.time() + seconds

        async def drive_one(counter: str) -> int:
            made = 0
            while clock.time() < end:
                await turn.actor(Counter, counter).add(1)
                made += 1
            return made

        return sum(await asyncio.gather(*map(drive_one, counters)))


@actor(idle_timeout="1h")
class Reading:
    """Three fields of state, to be activated and held."""

    sensor: str = ""
    value: float = 0.0
    count: int = 0

    @method
    async def record(self, sensor: str, value: float) -> int:
        self.sensor = sensor
        self.value = value
        self.count += 1
        return self.count

    @method(read_only=True)
    async def show(self) -> int:
        return self.count


@actor
class Account:
    """For transfers inside a critical section: who holds the lock, and who waits for it."""

    balance: int = 0

    @method
    async def change(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @method(read_only=True)
    async def show(self) -> int:
        return self.balance


@activity
async def add_one(number: int) -> int:
    return number + 1


@activity
async def say_hello(city: str) -> str:
    return f"Hello {city}!"


@activity
async def pass_gate() -> None:
    if os.environ.get(GATE) == "closed":
        await asyncio.Event().wait()


@workflow
async def three_steps(number: int) -> int:
    number = await add_one(number)
    number = await add_one(number)
    return await add_one(number)


@workflow
async def hello_sequence_5() -> list[str]:
    return [await say_hello(city) for city in ("Tokyo", "Seattle", "London", "Amsterdam", "Mumbai")]


@workflow
async def fan_out_fan_in(width: int) -> int:
    return len(await asyncio.gather(*(say_hello(f"City{number}") for number in range(width))))


async def _greet(city: str) -> str:
    return f"Hello {city}!"


def _grind(number: int) -> int:
    """About 100 ms of Python."""
    for step in range(1_300_000):
        number = (number * 31 + step) % 1_000_003
    return number


TINY = {place: activity(name=f"greet_{place}", place=place)(_greet) for place in get_args(Place)}
HEAVY = {place: activity(name=f"grind_{place}", place=place)(_grind) for place in get_args(Place)}
# What is served is found by its name in the module.
greet_here, greet_spread, greet_auto = TINY["here"], TINY["spread"], TINY["auto"]
grind_here, grind_spread, grind_auto = HEAVY["here"], HEAVY["spread"], HEAVY["auto"]


@workflow
async def greet_all(order: tuple[str, int]) -> int:
    """So many tiny activities at once, of the place that is named."""
    place, width = order
    return len(await asyncio.gather(*(TINY[place](f"City{number}") for number in range(width))))


@workflow
async def grind_all(order: tuple[str, int]) -> int:
    """So many that compute for long."""
    place, width = order
    return len(await asyncio.gather(*(HEAVY[place](number) for number in range(width))))


@workflow
async def transfer(pair: tuple[str, str]) -> bool:
    """Read one balance, then take from it and give to the other: three durable calls, each exactly once."""
    source, destination = (actor_of(Account, name) for name in pair)
    await source.show()
    await source.change(-1000)
    await destination.change(1000)
    return True


passed: set[int] = set()
"""Numbers of the workflows `gated` that have gone on behind the gate, in this process."""


@activity
async def go_on(number: int) -> int:
    passed.add(number)
    return number + 1


@workflow
async def gated(number: int) -> int:
    """Unfinished for as long as the gate is closed."""
    await pass_gate()
    return await go_on(number)


@workflow
async def long_history(rounds: int) -> int:
    """A history of about 100 events per round: 50 activities at a time, then 50 external events."""
    total = 0
    for _ in range(rounds):
        total += sum(await asyncio.gather(*(add_one(0) for _ in range(50))))
        for _ in range(50):
            total += await wait_event("tick", int)
    return total + await wait_event("end", int)
