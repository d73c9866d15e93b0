"""Actors made to be simulated: each effect leaves a *token* in durable state, so effects can be counted one by one.

A token is a text that is unique in a run. What follows from a call leaves a token that follows from the call's: a
suffix says how it came about. So "exactly once" can be read off the final state:

    t     the call itself          t>    a message it sent         t/    a call it made inside its turn
    t~    a tick of its reminder   t@    a tick of its timer       t!    the work it posted, finished
    t=ok, t=error   the outcome of a durable call, whose effect over there is t?
"""

from __future__ import annotations

import asyncio
from dataclasses import field
from typing import Any
from zlib import crc32

from actors import actor, context, event, method, send
from tests.simulation.simloop import SimulationFailed


class Refused(Exception):
    """What the methods here raise on purpose."""


def violation(text: str) -> None:
    """Fail the run from the inside of a turn, where an exception would only fail the turn."""
    asyncio.get_running_loop().call_exception_handler({"exception": SimulationFailed(text)})


def draw(below: int) -> int:
    """A number that is another one for each turn, and the same one whenever a seed is run again."""
    return crc32(context().turn_id.encode()) % below


async def linger() -> None:
    """Wait in the middle of a turn: not at all, for a step of the loop, or for some time."""
    choice = draw(4)
    if choice:
        await asyncio.sleep(0 if choice == 1 else choice * 0.02)


@actor(idle_timeout="1.5s", mailbox_limit=8)
class Register:
    """One value. Its history must be linearizable (INV-3, INV-7)."""

    value: int = 0

    @method(read_only=True)
    def get(self) -> int:
        return self.value

    @method(read_only=True)
    async def slow_get(self) -> int:
        before = self.value
        await linger()
        if self.value != before:
            violation("INV-5: a writer ran beside a read_only turn")
        return before

    @method
    def set(self, value: int) -> None:
        self.value = value

    @method
    async def swap(self, value: int) -> int:
        before, self.value = self.value, value
        await linger()
        if self.value != value:
            violation("INV-5: another turn wrote in the middle of one")
        return before

    @method
    def expect(self, value: int) -> None:
        """An answer that is an exception, and a read."""
        if self.value != value:
            raise Refused(str(self.value))

    @method
    def wipe(self) -> None:
        """Deleting is writing the default."""
        context().delete()


@actor(idle_timeout="1s", mailbox_limit=8, snapshot_every=3)
class Tally:
    """A list of tokens, and every way to add one."""

    tokens: list[str] = field(default_factory=list)

    async def on_activate(self) -> None:
        self._inside = ""
        await linger()

    async def on_deactivate(self) -> None:
        await linger()

    @method(read_only=True)
    def read(self) -> list[str]:
        return self.tokens

    @method(read_only=True)
    async def slow_read(self) -> list[str]:
        before = list(self.tokens)
        await linger()
        if self.tokens != before:
            violation("INV-5: a writer ran beside a read_only turn")
        return before

    @method
    async def add(self, token: str) -> int:
        self.tokens.append(token)
        return len(self.tokens)

    @method
    async def slow_add(self, token: str) -> int:
        if self._inside:
            violation(f"INV-5: the turn of {token} began inside that of {self._inside}")
        self._inside = token
        self.tokens.append(token)
        before = list(self.tokens)
        try:
            await linger()
            if draw(3) == 0:
                await asyncio.sleep(0.3)
        finally:
            self._inside = ""
        if self.tokens != before:
            violation(f"INV-5: another turn wrote in the middle of that of {token}")
        return len(self.tokens)

    @method
    def spoil(self, token: str) -> None:
        self.tokens.append(token)
        context().set_reminder(token, due=0.1)
        send(context().actor(Tally, "a").add, f"{token}>")
        raise Refused(token)

    @method
    async def slow_spoil(self, token: str) -> None:
        self.tokens.append(token)
        await linger()
        raise Refused(token)

    @method
    def tell(self, token: str, target: str) -> None:
        self.tokens.append(token)
        send(context().actor(Tally, target).add, f"{token}>")

    @method
    async def call(self, token: str, target: str) -> None:
        self.tokens.append(token)
        await context().actor(Tally, target).add(f"{token}/")

    @method
    async def circle(self, token: str, target: str) -> None:
        """A call that comes back: fails, naming the circle, unless `target` is not there to answer at all."""
        self.tokens.append(token)
        await context().actor(Tally, target).call(f"{token}/", context().actor_id)

    # -- chores: what goes on after the turn ---------------------------------------------------------------------------

    @method
    def remind(self, token: str, due: float, period: float, repeats: int) -> None:
        self.tokens.append(token)
        context().set_reminder(token, due=due, period=period, repeats=repeats, misfire="all")

    def receive_reminder(self, name: str, data: Any) -> None:
        self.tokens.append(f"{name}~")

    @method
    def time(self, token: str, due: float) -> None:
        self.tokens.append(token)
        context().set_timer(token, due=due)

    def receive_timer(self, name: str, data: Any) -> None:
        self.tokens.append(f"{name}@")

    @method
    def order(self, token: str) -> None:
        self.tokens.append(token)
        context().post("job", f'"{token}"'.encode())

    @method
    def finish(self, message_id: str, token: str) -> None:
        """Work is done at least once, its outcome is recorded once: that is this method's part."""
        context().done(message_id)
        if f"{token}!" not in self.tokens:
            self.tokens.append(f"{token}!")

    @method
    def ask(self, token: str, target_type: str, target: str) -> None:
        self.tokens.append(token)
        payload = f'"{token}?"'.encode()
        context().call_durably(target_type, target, "flaky", payload, reply_method="replied", token=token)

    @method
    def replied(self, token: str, result: Any, error: Any) -> None:
        self.tokens.append(f"{token}={'ok' if error is None else 'error'}")

    @method
    async def flaky(self, token: str) -> int:
        self.tokens.append(token)
        await linger()
        if draw(2):
            raise Refused(token)
        return 1


@actor(idle_timeout="1s", snapshot_every=4)
class Ledger:
    """Event-sourced money. Transfers are sent, so the sum of all ledgers is the same once all have arrived (INV-4)."""

    balance: int = 100
    tokens: list[str] = field(default_factory=list)

    @event
    def moved(self, token: str, amount: int) -> None:
        self.balance += amount
        self.tokens = [*self.tokens, token]

    @method(read_only=True)
    def read(self) -> list[str]:
        return self.tokens

    @method
    def pay(self, token: str, target: str, amount: int) -> int:
        if amount > self.balance:
            raise Refused(str(self.balance))
        self.moved(token, -amount)
        send(context().actor(Ledger, target).receive, f"{token}>", amount)
        return self.balance

    @method
    async def slow_pay(self, token: str, target: str, amount: int) -> int:
        if amount > self.balance:
            raise Refused(str(self.balance))
        await linger()
        return self.pay(token, target, amount)

    @method
    def receive(self, token: str, amount: int) -> None:
        self.moved(token, amount)

    @method
    async def spoil(self, token: str, target: str, amount: int) -> None:
        self.moved(token, -amount)
        send(context().actor(Ledger, target).receive, f"{token}>", amount)
        await linger()
        raise Refused(token)

    @method
    async def flaky(self, token: str) -> int:
        self.moved(token, 0)
        await linger()
        if draw(2):
            raise Refused(token)
        return 1


@actor(reentrant=True, idle_timeout="1s")
class Pair:
    """Two of these call each other: what comes back joins the turn that is waiting, and stands or falls with it."""

    tokens: list[str] = field(default_factory=list)

    @method(read_only=True)
    def read(self) -> list[str]:
        return self.tokens

    @method
    async def begin(self, token: str, other: str) -> None:
        self.tokens.append(token)
        await linger()
        await context().actor(Pair, other).bounce(f"{token}/", context().actor_id)

    @method
    async def begin_and_fail(self, token: str, other: str) -> None:
        await self.begin(token, other)
        raise Refused(token)

    @method
    async def bounce(self, token: str, back: str) -> None:
        self.tokens.append(token)
        await context().actor(Pair, back).add(f"{token}/")

    @method
    async def add(self, token: str) -> None:
        await linger()
        self.tokens.append(token)


TYPES = (Register, Tally, Ledger, Pair)
