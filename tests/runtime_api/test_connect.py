"""The Python surface, whatever is behind it: a runtime of this test, a server, or a cluster, which is
reached by HTTP or by Ray.

The tests from `test_a_server_in_another_process` on are local: they are about the client and its connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import httpx
import pytest

from actors import (
    ActorError,
    ActorFailed,
    CallerError,
    DeadlineExceeded,
    Deadlock,
    InvalidArguments,
    InvalidName,
    OutcomeUnknown,
    UnknownActorType,
    UnknownMethod,
)
from runtime_api import Runtime, connect
from runtime_api.connect import Connection
from runtime_api.problems import problem_of
from tests.actors.worlds import until
from tests.placements import ON_RAY
from tests.runtime_api import sample_app
from tests.runtime_api.sample_app import Account, Gate, approval, breaking, doubling, journey
from tests.servers import PLAIN
from workflow.errors import (
    InstanceNotFound,
    InvalidWorkflowInput,
    UnknownWorkflow,
    WorkflowError,
    WorkflowFailed,
    WorkflowTerminated,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.runtime_api.conftest import Sample

Served: TypeAlias = Runtime | Connection


@pytest.fixture(scope="module")
def joined(ray_address: str) -> Iterator[str]:
    """This process is a program of the session's Ray, for all tests of this file: joining takes a second."""
    from actors.placement.ray import join_ray, stop_ray

    assert join_ray(ray_address), "another test has left this process in a Ray"
    yield ray_address
    stop_ray()


@pytest.fixture(
    params=["embedded", "local", pytest.param("ray", marks=ON_RAY), pytest.param("ray by ray", marks=ON_RAY)]
)
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """Of the sample application."""
    if request.param == "embedded":
        async with Runtime(sample_app, store="memory://") as embedded:
            yield embedded
        return
    if request.param == "ray by ray":
        request.getfixturevalue("sample_ray")
        connection = Runtime.connect(f"ray:{request.getfixturevalue('joined')}", app_id="sample")
    else:
        connection = Runtime.connect(request.getfixturevalue(f"sample_{request.param}"))
    async with connection:
        yield connection


@pytest.fixture
def name() -> str:
    """An id nobody else uses."""
    return uuid4().hex


async def test_actors_are_called_by_typed_references(runtime: Served, name: str) -> None:
    """A reference from outside is as good as one inside: typed, validated, with results of the annotated types."""
    account = runtime.actor(Account, name)
    assert await account.deposit(5) == 5
    assert await account.rename("Ada", bonus=2) == "Ada:7"
    assert await runtime.actor("Account", name).statement() == 7


async def test_a_call_takes_effect_once(runtime: Served, name: str) -> None:
    """A call that is made again with its idempotency key gets the first answer (INV-8), also when others came
    between."""
    for _ in range(3):
        assert await runtime.actor(Account, name, idempotency_key="a").deposit(5) == 5
        await runtime.actor(Account, name).deposit(1)
    assert await runtime.actor(Account, name).statement() == 8


async def test_errors_arrive_as_what_they_are(runtime: Served, name: str) -> None:
    """What went wrong over there is raised here, as the same kind of error."""
    account: Any = runtime.actor("Account", name)
    with pytest.raises(ActorFailed, match="ValueError: no luck"):
        await account.fail("no luck")
    with pytest.raises(UnknownMethod):
        await account.fly()
    with pytest.raises(InvalidArguments):
        await account.deposit("much")
    with pytest.raises(UnknownActorType):
        await runtime.actor("Nobody", "x").do()
    with pytest.raises(DeadlineExceeded):
        await runtime.actor(Gate, name, timeout=0.05).enter()
    assert await account.statement() == 0


async def test_messages_are_accepted(runtime: Served, name: str) -> None:
    """A one-way message from outside is durable when `send` returns, and takes effect."""
    account = runtime.actor(Account, name)
    await runtime.send(account.deposit, 4)
    assert await account.deposit(1) in (1, 5)
    while await account.statement() < 5:
        pass


async def test_messages_under_a_key(runtime: Served, name: str) -> None:
    """INV-8: sent again through a reference with the same idempotency key, it is the same message."""
    keyed = runtime.actor(Account, name, idempotency_key="once")
    for _ in range(3):
        await runtime.send(keyed.deposit, 4)
    await runtime.send(runtime.actor(Account, name, idempotency_key="last").deposit, 1)
    while await runtime.actor(Account, name).statement() % 4 != 1:
        pass
    assert await runtime.actor(Account, name).statement() == 5


async def test_workflows(runtime: Served, name: str) -> None:
    """Workflows are started, awaited, looked at and forgotten; a start with one id is one start."""
    assert await runtime.workflows.run(doubling, 21) == 84
    assert await runtime.workflows.start("doubling", 4, instance_id=name) == name
    assert await runtime.workflows.wait(name) == 16
    shown = await runtime.workflows.get(name)
    assert (shown.name, shown.status, shown.input, shown.output) == ("doubling", "COMPLETED", 4, 16)
    await runtime.workflows.purge(name)
    with pytest.raises(InstanceNotFound):
        await runtime.workflows.get(name)
    with pytest.raises(WorkflowFailed, match="bad day"):
        await runtime.workflows.run(breaking, "bad day")


async def test_a_workflow_of_every_step(runtime: Served, name: str) -> None:
    """Activities side by side, in threads and with retries, timers, events that do not come, calls of actors and
    messages to them: each takes effect once, wherever workflow and actor live."""
    for number in range(8):  # spread over what hosts there are
        account = f"{name}-{number}"
        assert await runtime.workflows.run(journey, account) == {
            "together": [2, 4, "at last"],
            "never": "did not come",
            "balance": 5,
            "failed": "ValueError",
        }
        while (balance := await runtime.actor(Account, account).statement()) == 5:
            pass
        assert balance == 7


async def test_a_workflow_that_waits(runtime: Served, name: str) -> None:
    """An instance shows that it waits, can be waited for with a limit, is paused and goes on, and ends by its event."""
    await runtime.workflows.start(approval, {"n": 1}, instance_id=name)
    for limit in (0.01, "10ms"):
        with pytest.raises(TimeoutError):
            await runtime.workflows.wait(name, limit)
    await runtime.workflows.pause(name)
    shown = await runtime.workflows.get(name)
    assert (shown.status, shown.custom_status) == ("SUSPENDED", "waiting")
    await runtime.workflows.raise_event(name, "approve", {"by": "me"})
    await runtime.workflows.resume(name)
    assert await runtime.workflows.wait(name) == {"asked": {"n": 1}, "answer": {"by": "me"}}


async def test_a_workflow_that_is_ended(runtime: Served, name: str) -> None:
    """A terminated instance says so to who waits for it; only an ended one can be purged."""
    await runtime.workflows.start(approval, {}, instance_id=name)
    with pytest.raises(WorkflowError):
        await runtime.workflows.purge(name)
    await runtime.workflows.terminate(name)
    with pytest.raises(WorkflowTerminated):
        await runtime.workflows.wait(name)
    await runtime.workflows.purge(name)


async def test_wrong_starts(runtime: Served, name: str) -> None:
    """An id in use, an unfit input and an unknown name are errors of workflows, and start nothing."""
    await runtime.workflows.start(approval, {}, instance_id=name)
    with pytest.raises(WorkflowError, match="already exists"):
        await runtime.workflows.start(approval, {}, instance_id=name)
    await runtime.workflows.terminate(name)
    with pytest.raises(InvalidWorkflowInput):
        await runtime.workflows.start(doubling, "much", instance_id=f"{name}-2")
    with pytest.raises(WorkflowError, match="no workflow named 'nix'"):
        await runtime.workflows.start("nix", instance_id=f"{name}-2")
    with pytest.raises(InstanceNotFound):
        await runtime.workflows.get(f"{name}-2")


async def test_a_start_takes_effect_once(runtime: Served, name: str) -> None:
    """A start that is repeated with its key is the first one, while the instance runs and when it has ended (INV-8)."""

    async def start() -> None:
        await runtime.workflows.start(approval, {}, instance_id=name, idempotency_key="k")

    await start()
    await start()
    await runtime.workflows.raise_event(name, "approve", 1)
    assert await runtime.workflows.wait(name) == {"asked": {}, "answer": 1}
    await start()
    assert (await runtime.workflows.get(name)).status == "COMPLETED"
    started = {await runtime.workflows.start(doubling, 1, idempotency_key=name) for _ in range(2)}
    assert len(started | {await runtime.workflows.start(doubling, 1)}) == 2


async def test_a_message_that_is_sent_again_is_one_message(sample: Sample, name: str) -> None:
    """`send` over HTTP heeds the idempotency key, so that a client whose answer was lost can repeat it (INV-8)."""
    async with httpx.AsyncClient(base_url=sample.url, **PLAIN) as http, Runtime.connect(sample.url) as runtime:
        where = f"/v1.0/mecha/actors/Account/{name}/send/deposit"
        for _ in range(3):
            sent = await http.post(where, content=b"4", headers={"idempotency-key": "one"})
            assert sent.status_code == 202
        last = await http.post(where, content=b"1")
        assert last.status_code == 202
        account = runtime.actor(Account, name)
        while (balance := await account.statement()) < 5:
            pass
        assert balance == 5


async def test_a_server_in_another_process(mecha_process: Callable[..., Any]) -> None:
    """What is served by `mecha run` is reached in the same way."""
    with mecha_process("--store", "memory://") as server:
        async with Runtime.connect(server.url) as runtime:
            assert await runtime.actor(Account, "far").deposit(5) == 5
            assert await runtime.workflows.run(doubling, 1) == 4


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
        self.heads: list[list[str]] = []
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
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n"))
            writer.write(answer.encode())
            writer.close()

    def told(self, header: str) -> list[str]:
        """The values of a header, of one request after the other."""
        lines = (line.partition(": ") for head in self.heads for line in head)
        return [value for name, _, value in lines if name == header]


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
        asked = asyncio.ensure_future(runtime.actor("Account", "a").deposit(7))
        await until(lambda: door.knocks == 1)
        monkeypatch.setattr(connect, "_ATTEMPT_S", 20.0)
        assert await asked == 7
    assert door.knocks == 2


@pytest.mark.parametrize("status", ["429 Too Many", "502 Bad Gateway", "503 Unavailable", "504 Gateway Timeout"])
async def test_what_a_proxy_says_for_now_is_asked_again(status: str) -> None:
    """An answer that is none of ours and says "not now" is as good as none."""
    door = Door(http(status, "<html>wait</html>"), http("200 OK", "7"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        assert await runtime.actor("Account", "a").deposit(7) == 7
    assert door.knocks == 2


@pytest.mark.parametrize("verb", ["raise_event", "purge"])
async def test_what_is_to_be_done_once_is_asked_under_one_key(verb: str) -> None:
    """All attempts at one event, or one purge, carry one key (INV-8); the next one has another."""
    arguments = ("a", "go", 1) if verb == "raise_event" else ("a",)
    door = Door(http("503 Unavailable", ""), http("202 Accepted", "{}"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        for _ in range(2):
            await getattr(runtime.workflows, verb)(*arguments)
    first, again, other = door.told("idempotency-key")
    assert first == again
    assert other != first


async def test_a_key_of_the_callers_is_the_key() -> None:
    """Whoever raises an event by a key of his own can raise it again, from another process."""
    door = Door(http("202 Accepted", "{}"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        await runtime.workflows.raise_event("a", "go", 1, idempotency_key="mine")
    assert door.told("idempotency-key") == ["mine"]


async def test_attempts_share_the_time_of_their_call() -> None:
    """Each is given what the ones before it have left."""
    refused = http("503 Unavailable", "")
    door = Door(refused, refused, http("200 OK", "7"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        assert await runtime.actor("Account", "a", timeout=20).deposit(7) == 7
    first, second, third = (float(told.removesuffix("s")) for told in door.told("mecha-timeout"))
    assert 20 == first > second > third > 0


async def test_waits_leave_connections_to_calls() -> None:
    """However many wait for workflows, a call is sent at once."""
    door = Door(*[None] * 120, http("200 OK", "7"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        waiting = asyncio.gather(*(runtime.workflows.wait(str(number)) for number in range(120)))
        await until(lambda: door.knocks == 120)
        assert await runtime.actor("Account", "a").deposit(7) == 7
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


WORKFLOW_UNKNOWN = UnknownWorkflow("nix", ["one", "two"])
DEADLOCK = Deadlock(("A/1", "B/2", "A/1"))


@pytest.mark.parametrize(
    ("error", "path"),
    [
        (InvalidName("actor id '.' cannot be one"), "actor"),
        (CallerError("no"), "actor"),
        (CallerError("no"), "workflow"),
        (InvalidArguments("no"), "actor"),
        (InvalidWorkflowInput("no"), "workflow"),
        (InstanceNotFound("i"), "workflow"),
        (WORKFLOW_UNKNOWN, "workflow"),
        (DEADLOCK, "actor"),
    ],
)
async def test_errors_keep_their_class(error: Exception, path: str) -> None:
    """What the server tells is raised as the error it was told of, or as what several with one code are kinds of."""
    problem = problem_of(error)
    assert problem is not None
    door = Door(http(f"{problem.status} No", problem.body.decode()))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        with pytest.raises((ActorError, WorkflowError)) as raised:
            await (runtime.actor("A", "1").do() if path == "actor" else runtime.workflows.start("nix"))
    kind = CallerError if isinstance(error, InvalidName) else type(error)
    assert type(raised.value) is kind
    assert str(raised.value) == str(error)
    assert vars(raised.value) == vars(error)


async def test_what_a_proxy_says_for_good_is_an_error() -> None:
    """It is not asked again."""
    door = Door(http("403 Forbidden", "<html>no</html>"))
    async with asyncio.timeout(30), door as url, Runtime.connect(url) as runtime:
        with pytest.raises(ActorError, match="403 <html>no"):
            await runtime.actor("Account", "a").deposit(7)
    assert door.knocks == 1
