"""What the verifier runs: actors and workflows in three layers, which carry out small programs.

A program is a list of steps, each a list, the kind first:

    ["inc"]                     add one to this actor's counter
    ["maybe"]                   add one to the counter of what may be lost
    ["set", key, value]  ["clear", key]
    ["get", key, value]         null: it must not be there; without a value anything will do
    ["call", id, program]       an actor of the next layer runs it; wait for that
    ["fail", id, program]       the same, but at its end it raises: nothing of it may remain
    ["send", id, program]       the same, as a one-way message
    ["later", ms, program]      by a reminder, here
    ["soon", ms, program]       by a timer, here: it is gone when the host is

and those of workflows

    ["call", actor, program]  ["fail", actor, program]  ["send", actor, program]
    ["step", failures]          an activity that fails so often before it succeeds
    ["sleep", ms]

A `get` that finds something else is written down by its actor.
"""

from __future__ import annotations

import asyncio
from typing import Any

from actors import actor, context, method, send
from tests.ledger import Ledger  # noqa: F401  # served, for `zombies`
from workflow import RetryPolicy, activity, activity_info, workflow
from workflow import actor as actor_of

Program = list[Any]


class _Interpreter:
    counter: int = 0
    maybe: int = 0
    values: dict[str, int] = {}  # noqa: RUF012  # a field: its default is copied
    wrong: list[str] = []  # noqa: RUF012

    async def carry_out(self, program: Program) -> int:
        turn = context()
        following = f"Layer{int(turn.actor_type[-1]) + 1}"
        for place, (kind, *rest) in enumerate(program):
            if kind == "inc":
                self.counter += 1
            elif kind == "maybe":
                self.maybe += 1
            elif kind == "set":
                self.values[rest[0]] = rest[1]
            elif kind == "get":
                self._check(place, *rest)
            elif kind == "clear":
                self.values.pop(rest[0], None)
            elif kind == "call":
                await turn.actor(following, rest[0]).run(rest[1])
            elif kind == "fail":
                await _refused(turn.actor(following, rest[0]), rest[1])
            elif kind == "send":
                send(turn.actor(following, rest[0]).run, rest[1])
            elif kind == "later":
                turn.set_reminder(f"{turn.turn_id}-{place}", due=rest[0] / 1000, data=rest[1], callback="run")
            elif kind == "soon":
                turn.set_timer(f"{turn.turn_id}-{place}", due=rest[0] / 1000, data=rest[1], callback="run")
        return self.counter

    def _check(self, place: int, key: str, *expected: int | None) -> None:
        found = self.values.get(key)
        if expected and found != expected[0]:
            self.wrong.append(f"step {place} of {context().turn_id}: {key} is {found}, must be {expected[0]}")

    def shown(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.values.items() if key.startswith("w")}
        return {"counter": self.counter, "maybe": self.maybe, "kept": kept, "wrong": self.wrong}


class Meant(Exception):
    """A failure that the program asked for."""


async def _refused(other: Any, program: Program) -> None:
    try:
        await other.run_and_fail(program)
    except Exception as error:
        if "Meant" not in str(error):
            raise


@actor
class Layer0(_Interpreter):
    counter: int = 0
    maybe: int = 0
    values: dict[str, int] = {}  # noqa: RUF012
    wrong: list[str] = []  # noqa: RUF012

    @method
    async def run(self, program: Program) -> int:
        return await self.carry_out(program)

    @method(read_only=True)
    async def look(self) -> dict[str, Any]:
        return self.shown()


@actor
class Layer1(_Interpreter):
    counter: int = 0
    maybe: int = 0
    values: dict[str, int] = {}  # noqa: RUF012
    wrong: list[str] = []  # noqa: RUF012

    @method
    async def run(self, program: Program) -> int:
        return await self.carry_out(program)

    @method
    async def run_and_fail(self, program: Program) -> None:
        await self.carry_out(program)
        raise Meant

    @method(read_only=True)
    async def look(self) -> dict[str, Any]:
        return self.shown()


@actor
class Layer2(_Interpreter):
    counter: int = 0
    maybe: int = 0
    values: dict[str, int] = {}  # noqa: RUF012
    wrong: list[str] = []  # noqa: RUF012

    @method
    async def run(self, program: Program) -> int:
        return await self.carry_out(program)

    @method
    async def run_and_fail(self, program: Program) -> None:
        await self.carry_out(program)
        raise Meant

    @method(read_only=True)
    async def look(self) -> dict[str, Any]:
        return self.shown()


@actor
class Register:
    value: int = 0

    @method
    async def write(self, value: int) -> None:
        self.value = value

    @method(read_only=True)
    async def read(self) -> int:
        return self.value

    @method
    async def swap(self, expected: int, value: int) -> bool:
        if self.value != expected:
            return False
        self.value = value
        return True


@activity(retry=RetryPolicy(max_attempts=0, initial_interval="10ms", max_interval="50ms"))
async def step(failures: int) -> int:
    if activity_info().attempt <= failures:
        raise Meant
    return failures


@workflow
async def verify(program: Program) -> int:
    """Runs the steps itself; what is left of them is done by actors."""
    done = 0
    for kind, *rest in program:
        if kind == "step":
            await step(rest[0])
        elif kind == "sleep":
            await asyncio.sleep(rest[0] / 1000)
        else:
            other = actor_of(*rest[0].split("/"))
            if kind == "call":
                await other.run(rest[1])
            elif kind == "fail":
                await _refused(other, rest[1])
            elif kind == "send":
                send(other.run, rest[1])
        done += 1
    return done
