"""A server used from another process, by `Runtime.connect`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from actors import (
    ActorError,
    ActorFailed,
    DeadlineExceeded,
    InvalidArguments,
    OutcomeUnknown,
    UnknownActorType,
    UnknownMethod,
)
from runtime_api import Runtime, connect
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


# -- servers that do not answer as they should -------------------------------------------------------------------------


class Door:
    """Accepts connections, and says the next of some answers on each; None: nothing at all."""

    def __init__(self, *answers: str | None) -> None:
        self.knocks = 0
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> str:
        """Its URL."""
        self._server = await asyncio.start_server(self._come_in, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _come_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        answer = self._answers[min(self.knocks, len(self._answers) - 1)]
        self.knocks += 1
        if answer is not None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer.encode())
            writer.close()


def http(status: str, body: str) -> str:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"


async def test_attempts_at_a_silent_server_end() -> None:
    """A frozen host takes connections and answers nothing, not even that time is over: an attempt ends by itself a
    little after the time of its call, and its outcome is unknown."""
    async with asyncio.timeout(30), Door(None) as url, Runtime.connect(url) as runtime:
        with pytest.raises(OutcomeUnknown):
            await runtime.actor("Account", "a", timeout=0.2).deposit(1)


async def test_an_attempt_without_a_time_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one finds its receipt, or waits for its turn."""
    monkeypatch.setattr(connect, "_ATTEMPT_S", 0.2)
    door = Door(None, http("200 OK", "7"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        assert await runtime.actor("Account", "a").deposit(7) == 7
    assert door.knocks == 2


@pytest.mark.parametrize("status", ["429 Too Many", "502 Bad Gateway", "503 Unavailable", "504 Gateway Timeout"])
async def test_what_a_proxy_says_for_now_is_asked_again(status: str) -> None:
    """An answer that is none of ours and says "not now" is as good as none."""
    door = Door(http(status, "<html>wait</html>"), http("200 OK", "7"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        assert await runtime.actor("Account", "a").deposit(7) == 7
    assert door.knocks == 2


async def test_what_a_proxy_says_for_good_is_an_error() -> None:
    """It is not asked again."""
    door = Door(http("403 Forbidden", "<html>no</html>"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        with pytest.raises(ActorError, match="403 <html>no"):
            await runtime.actor("Account", "a").deposit(7)
    assert door.knocks == 1
