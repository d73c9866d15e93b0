"""A bank: a payment leaves one account and reaches the other exactly once, whatever happens in between.

Run it with ``python -m examples.bank``, again and again: the balances stay in ``ledger.db``, no money is made or lost.
"""

from __future__ import annotations

import asyncio
import sys

from actors import ActorFailed, actor, context, event, method, send
from runtime_api import Runtime


class NotEnough(Exception):
    """The account does not hold what is to be paid."""


@actor
class Account:
    """Event-sourced: only the `@event` methods change fields, and each is a line of the account's history."""

    balance: int = 0

    @method
    async def deposit(self, amount: int) -> int:
        if amount <= 0:
            raise ValueError("an amount is more than 0")
        self.received(amount, context().caller)
        return self.balance

    @method
    async def pay(self, to: str, amount: int) -> int:
        """The withdrawal and the message are one commit: both happen, or neither."""
        if amount > self.balance:
            raise NotEnough(f"{amount} is more than {self.balance}")
        self.paid(amount, to)
        send(context().actor(Account, to).deposit, amount)
        return self.balance

    @method(read_only=True)
    async def statement(self) -> int:
        return self.balance

    @event
    def received(self, amount: int, sender: str) -> None:
        self.balance += amount

    @event
    def paid(self, amount: int, to: str) -> None:
        self.balance -= amount


async def main(store: str) -> None:
    async with Runtime(store=store) as runtime:
        alice = runtime.actor(Account, "alice")  # to a type checker this is an Account
        bob = runtime.actor(Account, "bob")
        await alice.deposit(100)
        before = await alice.statement() + await bob.statement()

        print("alice has", await alice.pay("bob", 30), "after paying 30 to bob")
        try:
            await bob.pay("alice", 1_000_000)
        except ActorFailed as refused:
            print("bob was refused:", refused.message)

        while (together := await alice.statement() + await bob.statement()) != before:
            print("30 are on their way")  # sent for good, and not yet received
            await asyncio.sleep(0.01)
        print("together they have", together)

        for entry in (await runtime.actors.history("Account", "alice"))[-2:]:
            print(f"alice, event {entry.version}: {entry.name} {entry.data.decode()}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///ledger.db"))
