"""The graph of who waits for whom, by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from actors.message import Call
from actors.waits import Waits

_compared: list[object] = []


class Stream(str):
    """One that notes each comparison."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        _compared.append(other)
        return str.__eq__(self, other)


def awaited(waiter: str, target: str, future: asyncio.Future[Any]) -> Call:
    return Call(target, "method", future, waiter=waiter)


async def test_a_turn_that_awaits_an_actor_twice_waits_for_it_until_both_are_answered() -> None:
    """Each call is an edge of its own."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    first, second, other = (awaited("A/1", target, future) for target in ("B/1", "B/1", "C/1"))
    waits = Waits()
    for call in (first, second, other):
        waits.add(call)
    waits.remove(first)
    assert [*waits.targets("A/1")] == ["B/1", "C/1"]
    assert waits.cycle("B/1", "A/1") == ("B/1", "A/1", "B/1")
    waits.remove(second)
    assert waits.cycle("B/1", "A/1") is None
    waits.remove(other)
    assert [*waits.targets("A/1")] == []


async def test_answers_in_any_order_cost_the_same() -> None:
    """A turn that awaits thousands of calls at once does not search for each answer among all of them."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    calls = [awaited("A/1", Stream(f"B/{number}"), future) for number in range(100)]
    waits = Waits()
    for call in calls:
        waits.add(call)
    _compared.clear()
    for call in reversed(calls):
        waits.remove(call)
    assert _compared == []
