"""An order as a workflow: charge the card, wait for the warehouse, and give the money back when nothing comes.

Run it with ``python -m examples.orders``. Stop it while an order waits, run it again: the order goes on where it was.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Literal

from actors import actor, method
from runtime_api import Runtime
from workflow import RetryPolicy, activity, activity_info, set_status, wait_event, workflow
from workflow import actor as actor_of


@dataclass(frozen=True)
class Order:
    item: str
    quantity: int
    cents: int
    patience_s: float = 60.0


@dataclass(frozen=True)
class Outcome:
    result: Literal["shipped", "refunded", "sold out"]
    detail: str


@actor
class Stock:
    """What is left of an item."""

    left: int = 10

    @method
    async def take(self, quantity: int) -> bool:
        if quantity > self.left:
            return False
        self.left -= quantity
        return True

    @method
    async def put_back(self, quantity: int) -> int:
        self.left += quantity
        return self.left


class CardDeclined(Exception):
    """Nothing that a further attempt would change."""


@activity(retry=RetryPolicy(max_attempts=3, initial_interval="20ms", non_retriable=(CardDeclined,)))
async def charge(cents: int) -> str:
    """Would call a payment service, with `activity_id` as the idempotency key: it is the same for every attempt."""
    if activity_info().attempt == 1:
        raise ConnectionError("the payment service does not answer")  # the first attempt always fails, to show a retry
    return f"charge-{activity_info().instance_id}"


@activity
async def refund(charged: str) -> str:
    return f"refund of {charged}"


@workflow
async def fulfil(order: Order) -> Outcome:
    """Plain asyncio: every await is a step that is recorded, and not repeated after a crash."""
    stock = actor_of(Stock, order.item)
    if not await stock.take(order.quantity):
        return Outcome("sold out", order.item)
    charged = await charge(order.cents)
    set_status("waiting for the warehouse")
    try:
        parcel = await wait_event("shipped", str, timeout=order.patience_s)
    except TimeoutError:
        given_back, _ = await asyncio.gather(refund(charged), stock.put_back(order.quantity))
        return Outcome("refunded", given_back)
    return Outcome("shipped", parcel)


async def main(store: str) -> None:
    async with Runtime(store=store) as runtime:
        sent = await runtime.workflows.handle(fulfil, Order("kettle", 1, 3999))
        await sent.raise_event("shipped", "parcel 17")
        forgotten = await runtime.workflows.handle(fulfil, Order("kettle", 2, 7998, patience_s=0.2))
        too_many = await runtime.workflows.handle(fulfil, Order("kettle", 1000, 1))
        for handle in (sent, forgotten, too_many):
            outcome = await handle.result()
            print(f"{outcome.result}: {outcome.detail.replace(handle.instance_id, '…')}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///orders.db"))
