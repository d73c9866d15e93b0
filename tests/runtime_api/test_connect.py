"""A server used from another process, by `Runtime.connect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from actors import ActorFailed, DeadlineExceeded, InvalidArguments, UnknownActorType, UnknownMethod
from runtime_api import Runtime
from tests.runtime_api.sample_app import Account, Gate, breaking, doubling
from workflow.errors import InstanceNotFound, WorkflowFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def url(mecha_process: Callable[..., Any]) -> Iterator[str]:
    with mecha_process("--store", "memory://") as server:
        yield server.url


async def test_actors_are_called_by_typed_references(url: str) -> None:
    """A reference from outside is as good as one inside: typed, validated, with results of the annotated types."""
    async with Runtime.connect(url) as runtime:
        account = runtime.actor(Account, "far")
        assert await account.deposit(5) == 5
        assert await account.rename("Ada", bonus=2) == "Ada:7"
        assert await runtime.actor("Account", "far").statement() == 7


async def test_a_call_takes_effect_once(url: str) -> None:
    """An idempotency key given through a reference is the server's (INV-8)."""
    async with Runtime.connect(url) as runtime:
        for _ in range(3):
            assert await runtime.actor(Account, "once", idempotency_key="a").deposit(5) == 5


async def test_errors_arrive_as_what_they_are(url: str) -> None:
    """What went wrong over there is raised here, as the same kind of error."""
    async with Runtime.connect(url) as runtime:
        account: Any = runtime.actor("Account", "wrong")
        with pytest.raises(ActorFailed, match="ValueError: no luck"):
            await account.fail("no luck")
        with pytest.raises(UnknownMethod):
            await account.fly()
        with pytest.raises(InvalidArguments):
            await account.deposit("much")
        with pytest.raises(UnknownActorType):
            await runtime.actor("Nobody", "x").do()
        with pytest.raises(DeadlineExceeded):
            await runtime.actor(Gate, "slow", timeout=0.05).enter()
        assert await account.statement() == 0


async def test_messages_are_accepted(url: str) -> None:
    """A one-way message from outside is durable when `send` returns, and takes effect."""
    async with Runtime.connect(url) as runtime:
        account = runtime.actor(Account, "sent")
        await runtime.send(account.deposit, 4)
        assert await account.deposit(1) in (1, 5)
        while await account.statement() < 5:
            pass


async def test_a_message_that_is_sent_again_is_one_message(url: str) -> None:
    """`send` over HTTP heeds the idempotency key, so that a client whose answer was lost can repeat it (INV-8)."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http, Runtime.connect(url) as runtime:
        for _ in range(3):
            sent = await http.post(
                "/v1.0/mecha/actors/Account/told/send/deposit", content=b"4", headers={"idempotency-key": "one"}
            )
            assert sent.status_code == 202
        last = await http.post("/v1.0/mecha/actors/Account/told/send/deposit", content=b"1")
        assert last.status_code == 202
        account = runtime.actor(Account, "told")
        while (balance := await account.statement()) < 5:
            pass
        assert balance == 5


async def test_workflows(url: str) -> None:
    """Workflows are started, awaited and looked at; a start with one id is one start."""
    async with Runtime.connect(url) as runtime:
        assert await runtime.workflows.run(doubling, 21) == 84
        assert await runtime.workflows.start("doubling", 4, instance_id="four") == "four"
        assert await runtime.workflows.wait("four") == 16
        assert (await runtime.workflows.get("four")).status == "COMPLETED"
        await runtime.workflows.purge("four")
        with pytest.raises(InstanceNotFound):
            await runtime.workflows.get("four")
        with pytest.raises(WorkflowFailed, match="bad day"):
            await runtime.workflows.run(breaking, "bad day")


async def test_addresses_are_checked() -> None:
    """What is no address is refused with the forms there are; outside `async with` nothing works."""
    with pytest.raises(ValueError, match="http://host:port, or ray:auto"):
        async with Runtime.connect("localhost:3500"):
            pass
    with pytest.raises(RuntimeError, match="async with"):
        Runtime.connect("http://localhost:1").actor("Account", "a")
