"""Workloads that Durable Functions' Netherite engine is measured by: time until the last of so many workflows has
ended.

Sizes are theirs where they fit one machine with two cores (FanOutFanIn: 20 instead of 200 workflows).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import apps
from benchmarks.driving import spread
from benchmarks.model import Benchmark, Sample, Series, Setting, check
from benchmarks.workflows import completed
from runtime_api import Runtime

if TYPE_CHECKING:
    from pathlib import Path

_AT_A_TIME = 200
_PARTITIONS = 32
_HELLO = ["Hello Tokyo!", "Hello Seattle!", "Hello London!", "Hello Amsterdam!", "Hello Mumbai!"]


def hello_sequence(file: str, count: int) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:

            async def one() -> None:
                result = await runtime.workflows.run(apps.hello_sequence_5)
                check("greetings", result, _HELLO)

            return {"seconds": await spread(iter([one] * count), _AT_A_TIME)}

    return asyncio.run(run())


def bank(file: str, count: int) -> dict[str, Any]:
    """Transfer number i takes from account i + 1 and gives to account i + 2, both modulo 32: neighbours conflict."""

    async def run() -> dict[str, Any]:
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:

            async def one(number: int) -> None:
                pair = tuple(f"account-{(number + step) % _PARTITIONS}" for step in (1, 2))
                result = await runtime.workflows.run(apps.transfer, pair)
                check("transferred", result, True)

            seconds = await spread(iter([partial(one, number) for number in range(count)]), _AT_A_TIME)
            balances = [await runtime.actor(apps.Account, f"account-{n}").show() for n in range(_PARTITIONS)]
            return {"seconds": seconds, "balances": balances}

    return asyncio.run(run())


def fan_out_fan_in(file: str, count: int, width: int) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with Runtime(apps, store=f"sqlite:///{file}") as runtime:

            async def one() -> None:
                result = await runtime.workflows.run(apps.fan_out_fan_in, width)
                check("greetings", result, width)

            return {"seconds": await spread(iter([one] * count), _AT_A_TIME)}

    return asyncio.run(run())


def _measure_hello(setting: Setting) -> Sample:
    count, file = setting.size(10_000, 20), setting.directory / "hello.db"
    seconds: float = setting.apart(hello_sequence, file=str(file), count=count)["seconds"]
    return _sample(seconds, count, count * 5, "activities", file)


def _measure_bank(setting: Setting) -> Sample:
    count, file = setting.size(3000, 64), setting.directory / "bank.db"
    result = setting.apart(bank, file=str(file), count=count)
    check("sum of all balances", sum(result["balances"]), 0)
    check("every balance", result["balances"], expected_balances(count))
    return _sample(result["seconds"], count, count * 3, "actor calls", file)


def _measure_fan_out(setting: Setting) -> Sample:
    count, width, file = setting.size(20, 2), setting.size(1000, 20), setting.directory / "fan.db"
    seconds: float = setting.apart(fan_out_fan_in, file=str(file), count=count, width=width)["seconds"]
    return _sample(seconds, count, count * width, "activities", file)


def expected_balances(transfers: int) -> list[int]:
    balances = [0] * _PARTITIONS
    for number in range(transfers):
        balances[(number + 1) % _PARTITIONS] -= 1000
        balances[(number + 2) % _PARTITIONS] += 1000
    return balances


def _sample(seconds: float, workflows: int, steps: int, what: str, file: Path) -> Sample:
    check("workflows completed after reopening", asyncio.run(completed(file)), workflows)
    return Sample(seconds, f"{workflows / seconds:,.0f} workflows/s, {steps / seconds:,.0f} {what}/s")


HELLO = Benchmark(
    name="hello-sequence",
    question="How long do 10,000 workflows of five activities in sequence take, 200 at a time?",
    unit="s",
    series=(Series("HelloSequence5 x 10,000", _measure_hello),),
)

BANK = Benchmark(
    name="bank",
    question="How long do 3,000 transfers between neighbours of 32 accounts take, 200 at a time? Each is three"
    " exactly-once calls.",
    unit="s",
    series=(Series("Bank x 3,000", _measure_bank),),
)

FAN_OUT = Benchmark(
    name="fan-out-fan-in",
    question="How long do 20 workflows take that run 1,000 activities each in parallel and wait for all?",
    unit="s",
    series=(Series("FanOutFanIn 1,000 x 20", _measure_fan_out),),
)
