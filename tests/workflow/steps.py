"""Activities and actors that several workflow tests use. In rehearsals the test itself answers for the activities."""

from __future__ import annotations

from dataclasses import dataclass

from actors import actor, event, method
from workflow import activity


@dataclass
class Order:
    card: str
    cents: int


@dataclass
class Receipt:
    number: str
    cents: int


@activity
async def charge(card: str, cents: int) -> str:
    return f"{card}:{cents}"


@activity
async def double(number: int) -> int:
    return 2 * number


@activity
def double_in_thread(number: int) -> int:
    return 2 * number


@activity
async def issue(order: Order) -> Receipt:
    return Receipt(f"receipt-{order.card}", order.cents)


@actor
class Ledger:
    """An event-sourced account: every booking is in its history, so a test can count them."""

    total: int = 0

    @event
    def booked(self, amount: int) -> None:
        self.total += amount

    @method
    async def book(self, amount: int) -> int:
        if amount < 0:
            raise ValueError("no negative bookings")
        self.booked(amount)
        return self.total

    @method(read_only=True)
    async def read(self) -> int:
        return self.total
