"""The application that the tests of the HTTP API and the command line serve."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from actors import actor, context, event, method
from workflow import ActorCallFailed, RetryPolicy, activity, activity_info, send, set_status, wait_event, workflow
from workflow import actor as actor_of


@actor
class Account:
    """The state style; one method for each way a call can go."""

    balance: int = 0
    owner: str = ""
    fired: list[str] = []  # noqa: RUF012  # a durable field: each actor gets a copy

    @method
    async def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @method
    async def rename(self, owner: str, bonus: int = 0) -> str:
        self.owner = owner
        self.balance += bonus
        return f"{owner}:{self.balance}"

    @method(read_only=True)
    async def statement(self) -> int:
        return self.balance

    @method
    async def nothing(self) -> None:
        return None

    @method
    async def fail(self, text: str) -> None:
        self.balance = -1
        raise ValueError(text)

    @method
    async def unserialisable(self) -> Any:
        self.balance = -1
        return object()

    @method
    async def trace(self) -> str:
        return context().trace_id

    @method
    async def echo(self, value: Any) -> Any:
        return value

    async def receive_reminder(self, name: str, data: Any) -> None:
        self.fired.append(f"{name}:{data}")

    @method
    async def on_timer(self, data: Any) -> None:
        self.fired.append(f"timer:{data}")


@actor
class Ledger:
    """The event-sourced style."""

    total: int = 0

    @event
    def posted(self, amount: int) -> None:
        self.total += amount

    @method
    async def post(self, amount: int) -> int:
        self.posted(amount)
        return self.total


@actor(mailbox_limit=1)
class Gate:
    """A call that stays in its turn until another opens the gate."""

    passed: int = 0

    def on_activate(self) -> None:
        self._open = asyncio.Event()

    @method
    async def enter(self) -> int:
        await self._open.wait()
        self.passed += 1
        return self.passed

    @method
    async def linger(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.passed += 1
        return self.passed

    @method(interleave=True)
    async def release(self) -> bool:
        self._open.set()
        return True


@actor(name="Odd.Type-1")
class Odd:
    """Names that need no escaping, only just."""

    @method
    async def get(self) -> str:
        return "odd"


@activity
async def double(value: int) -> int:
    return value * 2


@workflow
async def doubling(value: int = 1) -> int:
    return await double(await double(value))


@activity
def double_in_thread(value: int) -> int:
    return value * 2


@activity(retry=RetryPolicy(max_attempts=3, initial_interval="5ms"))
async def third_time(text: str) -> str:
    if activity_info().attempt < 3:
        raise ConnectionError("not yet")
    return text


@workflow
async def journey(account: str) -> dict[str, Any]:
    """Each kind of durable step."""
    answer: dict[str, Any] = {}
    answer["together"] = await asyncio.gather(double(1), double_in_thread(2), third_time("at last"))
    await asyncio.sleep(0.01)
    try:
        await asyncio.wait_for(wait_event("never"), 0.01)
    except TimeoutError:
        answer["never"] = "did not come"
    answer["balance"] = await actor_of(Account, account).deposit(5)
    try:
        await actor_of(Account, account).fail("no funds")
    except ActorCallFailed as error:
        answer["failed"] = error.error_type
    send(actor_of(Account, account).deposit, 2)
    return answer


@workflow
async def breaking(text: str) -> None:
    raise LookupError(text)


@workflow
async def approval(value: dict[str, Any]) -> dict[str, Any]:
    set_status("waiting")
    answer = await wait_event("approve")
    return {"asked": value, "answer": answer}


@workflow
async def echoing(value: Any) -> Any:
    return value


@workflow
async def clockwatching() -> float:
    """What no replay can repeat: it stalls."""
    return time.time()
