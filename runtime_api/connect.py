"""A running server or cluster, used from another process: `Runtime.connect`.

    async with Runtime.connect("http://127.0.0.1:3500") as runtime:          # any server or host, by HTTP
    async with Runtime.connect("ray:auto", app_id="bank") as runtime:        # a cluster, by Ray: from a job of its own
        await runtime.actor(Account, "alice").deposit(10)
        await runtime.workflows.start("salary", "alice", instance_id="june")

Every call carries an idempotency key, its own when it was given none. So it is made again, while its time lasts, when
the server refuses it for now, or is gone without an answer: it takes effect once (INV-8). By Ray go calls of actors;
workflows and messages go by HTTP in both cases, to a host that the cluster names, until that one does not answer.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import httpx

from actors.definition import definition_of
from actors.errors import (
    ActorError,
    ActorFailed,
    Deadlock,
    OutcomeUnknown,
    Retriable,
    UnknownActorType,
    UnknownMethod,
)
from actors.message import Call
from actors.names import check_name, stream_of
from actors.placement.hop import PeerGone, PeerUnsure, asked, decode_error, result_of
from actors.ref import ActorRef, keyed_target_of
from actors.timetext import parse_duration_s
from runtime_api.problems import TABLE
from statestores.codec import decode, encode
from workflow.errors import (
    Failure,
    InstanceNotFound,
    UnknownWorkflow,
    WorkflowError,
    WorkflowFailed,
    WorkflowStalled,
    WorkflowTerminated,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from actors import MakeReference
    from actors.placement.ray import RayCluster, RayHost
    from actors.timetext import Duration
    from workflow.definition import Workflow

PATIENCE_S = 30.0
"""How long a call without a timeout of its own is made again."""

_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_FOR_NOW = frozenset({429, 502, 503, 504})
_TRY_AGAIN = frozenset({429, 503})
_OF_WORKFLOWS = ("/v1.0/workflows/", "/v1.0/mecha/workflows/")
_POLL_S = 5.0
# How long one attempt may take that has no time of its own: the next one finds its receipt, or waits for its turn.
_ATTEMPT_S = 10.0
# Each wait holds a connection: nothing else may have to wait for one.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
# Of several errors with one code the last counts, which is what the others are kinds of.
_ACTOR_ERRORS = {row.code: row.error for row in TABLE if row.code and issubclass(row.error, ActorError)}
_WORKFLOW_ERRORS = {row.code: row.error for row in TABLE if row.code and issubclass(row.error, WorkflowError)}


class Instance(NamedTuple):
    """A workflow instance as it is shown. `failure` is there when the status is FAILED or STALLED."""

    instance_id: str
    name: str
    status: str
    input: Any
    output: Any
    custom_status: Any
    failure: Failure | None


class Connection:
    """Made by `Runtime.connect`; works inside ``async with``."""

    def __init__(self, address: str, *, app_id: str = "mecha", namespace: str = "default", token: str | None = None):
        self._address, self._app_id, self._namespace, self._token = address, app_id, namespace, token
        self._http: _Http | None = None
        self._calls: _Calls | None = None
        self._joined = False

    async def __aenter__(self) -> Connection:
        if self._address.startswith(("http://", "https://")):
            self._http = _Http(self._token, self._address)
            self._calls = _Calls(_OverHttp(self._http).attempt)
        elif self._address.startswith("ray:"):
            await self._join(self._address.removeprefix("ray:"))
        else:
            raise ValueError(f"address {self._address!r}: give http://host:port, or ray:auto or ray:host:port")
        return self

    async def _join(self, address: str) -> None:
        from actors.placement.ray import RayCluster, cluster_namespace, join_ray

        self._joined = join_ray(address)
        cluster = RayCluster(cluster_namespace(self._app_id, self._namespace))
        over_ray = _OverRay(cluster)
        try:
            url = await over_ray.url()
        except BaseException:
            self._leave()
            raise
        self._http = _Http(self._token, url, over_ray.url)
        self._calls = _Calls(over_ray.attempt)

    def _leave(self) -> None:
        if self._joined:
            from actors.placement.ray import stop_ray

            stop_ray()
        self._joined = False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
        self._leave()
        self._http, self._calls = None, None

    @property
    def actor(self) -> MakeReference:
        """References to actors. Calls raise what `actors.errors` lists."""
        return self._actor

    async def send(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """A durable one-way message: ``await runtime.send(runtime.actor(Airport, "JFK").departed, 10)``. Returns when
        it is durably accepted. With a reference that has an idempotency key, however often it is sent, one message."""
        stream, name, payload, key = keyed_target_of(method, args, kwargs)
        actor_type, _, actor_id = stream.partition("/")
        where = f"/v1.0/mecha/actors/{_escaped(actor_type, actor_id)}/send/{_escaped(name)}"
        given, http = key or str(uuid.uuid4()), self._opened
        await _insist(lambda _: http.request("POST", where, payload, given), PATIENCE_S)

    @property
    def workflows(self) -> RemoteWorkflows:
        return RemoteWorkflows(self._opened)

    @property
    def _opened(self) -> _Http:
        if self._http is None:
            raise RuntimeError("not connected: use it inside `async with Runtime.connect(...)`")
        return self._http

    def _actor(
        self,
        actor_type: type[Any] | str,
        actor_id: str,
        *,
        timeout: Duration | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        definition = None if isinstance(actor_type, str) else definition_of(actor_type)
        if definition is None and not isinstance(actor_type, str):
            raise UnknownActorType(f"{actor_type.__qualname__} is not an actor: decorate it with @actor")
        name = definition.name if definition is not None else str(actor_type)
        check_name("actor type", name)
        check_name("actor id", actor_id)
        if self._calls is None:
            raise RuntimeError("not connected: use it inside `async with Runtime.connect(...)`")
        return ActorRef(self._calls, definition, stream_of(name, actor_id), timeout, idempotency_key)


class _Calls:
    """Calls of references, as `actors.ref.Caller` has them, over a way to make one attempt."""

    def __init__(self, attempt: Callable[[Call, float | None], Awaitable[bytes]]) -> None:
        self._attempt = attempt

    def new_call(self, stream: str, method: str) -> Call:
        return Call(stream, method, asyncio.get_running_loop().create_future())

    async def start(self, call: Call, timeout: float | None) -> Any:
        if call.key is None:
            call.key = str(uuid.uuid4())
        if timeout is None:
            answer = await _insist(lambda _: self._attempt(call, None), PATIENCE_S)
        else:
            answer = await _insist(lambda left_s: self._attempt(call, left_s), timeout)
        return result_of(call, answer)


class _Http:
    """A server, at `url`. With `find`, a host that this names: it is asked again when that one does not answer, since
    its node may be gone."""

    def __init__(self, token: str | None, url: str, find: Callable[[], Awaitable[str]] | None = None) -> None:
        headers = {"dapr-api-token": token} if token else {}
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=None, limits=_LIMITS, trust_env=False)
        self._find = find
        self._is_lost = False

    async def close(self) -> None:
        await self._client.aclose()

    async def request(
        self,
        verb: str,
        where: str,
        body: bytes,
        key: str,
        headers: Mapping[str, str] | None = None,
        attempt_s: float = _ATTEMPT_S,
    ) -> bytes:
        """One attempt; the body of a 2xx answer. Raises `OutcomeUnknown` when there is none, else what the answer says
        went wrong."""
        if self._is_lost and self._find is not None:
            self._client.base_url = await self._find()
            self._is_lost = False
        given = {"content-type": "application/json", **(headers or {}), **({"idempotency-key": key} if key else {})}
        try:
            answer = await self._client.request(verb, where, content=body, headers=given, timeout=attempt_s)
        except httpx.HTTPError as error:
            self._is_lost = True
            unknown = f"no answer from {self._client.base_url}: {str(error) or type(error).__name__}"
            raise OutcomeUnknown(unknown) from error
        if answer.is_success:
            return answer.content
        raise _error_of(answer, where)


class _OverHttp:
    def __init__(self, http: _Http) -> None:
        self._http = http

    async def attempt(self, call: Call, timeout: float | None) -> bytes:
        actor_type, _, actor_id = call.stream.partition("/")
        where = f"/v1.0/actors/{_escaped(actor_type, actor_id)}/method/{_escaped(call.method_name)}"
        headers = {} if timeout is None else {"mecha-timeout": f"{timeout:.9f}s"}
        body = asked(call, "", 0.0).payload
        attempt_s = _ATTEMPT_S if timeout is None else timeout + _PAUSE_S
        return await self._http.request("POST", where, body, call.key or "", headers, attempt_s)


class _OverRay:
    """Each call goes to some host that serves, as one call of Ray's."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._hosts: list[RayHost] = []

    async def url(self) -> str:
        """Of some host that serves. Raises `OutcomeUnknown` when the cluster does not say."""
        return str(random.choice(await self._serving())["url"])

    async def attempt(self, call: Call, timeout: float | None) -> bytes:
        try:
            if not self._hosts:
                self._hosts = [await self._cluster.host(host["name"]) for host in await self._serving()]
            host, wanted = random.choice(self._hosts), asked(call, "", 0.0)._replace(left_s=timeout)
            # A frozen host answers nothing, not even that time is over.
            async with asyncio.timeout(_ATTEMPT_S if timeout is None else timeout + _PAUSE_S):
                kind, outcome = await host.request(wanted)
        except (PeerGone, PeerUnsure, TimeoutError) as error:
            self._hosts = []
            raise OutcomeUnknown(f"{call.stream}: no answer from the cluster: {error}") from error
        if kind == "answer":
            return bytes(outcome)
        raise decode_error(outcome)

    async def _serving(self) -> list[dict[str, Any]]:
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                status = await self._cluster.status()
        except (PeerGone, TimeoutError) as error:
            raise OutcomeUnknown(f"the cluster does not say who serves: {error}") from error
        serving = [host for host in status["hosts"] if host["owned"]]
        if not serving:
            raise OutcomeUnknown("no host of the cluster serves yet")
        return serving


class RemoteWorkflows:
    """Workflows of the other side. Methods raise `WorkflowError`, `ActorError`."""

    def __init__(self, http: _Http) -> None:
        self._http = http

    async def start(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = None,
        *,
        instance_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Start an instance; its id. It is durable when this returns. With a key, and without an id, that follows from
        the key."""
        name = workflow if isinstance(workflow, str) else workflow.name
        where = f"/v1.0/workflows/dapr/{_escaped(name)}/start"
        if instance_id is not None or idempotency_key is None:
            where += f"?instanceID={quote(instance_id or str(uuid.uuid4()), safe='')}"
        body = b"" if input is None else encode(input)
        answer = await self._insist("POST", where, body, idempotency_key or str(uuid.uuid4()))
        return str(decode(answer)["instanceID"])

    async def get(self, instance_id: str) -> Instance:
        """Raises `InstanceNotFound`."""
        return _instance(await self._insist("GET", f"/v1.0/mecha/workflows/{_escaped(instance_id)}"))

    async def wait(self, instance_id: str, timeout: Duration | None = None) -> Any:
        """The result, as JSON, once there is one. Raises `WorkflowFailed`, `WorkflowTerminated`, `WorkflowStalled`,
        `InstanceNotFound`; `TimeoutError` after `timeout` (seconds, or a duration as text)."""
        async with asyncio.timeout(None if timeout is None else parse_duration_s(timeout)):
            while True:
                where = f"/v1.0/mecha/workflows/{_escaped(instance_id)}/result?timeout={_POLL_S:g}s"
                found = _instance(await self._insist("GET", where))
                match found.status:
                    case "COMPLETED":
                        return found.output
                    case "TERMINATED":
                        raise WorkflowTerminated(instance_id, found.output)
                    case "FAILED":
                        raise WorkflowFailed(instance_id, found.failure or Failure("Unknown", ""))
                    case "STALLED":
                        raise WorkflowStalled(instance_id, found.failure or Failure("Unknown", ""))

    async def run(self, workflow: Workflow[Any, Any] | str, input: Any = None, **options: Any) -> Any:
        """`start` and `wait`; `options` as for `start`."""
        return await self.wait(await self.start(workflow, input, **options))

    async def raise_event(
        self, instance_id: str, name: str, payload: Any = None, *, idempotency_key: str | None = None
    ) -> None:
        """It arrives once; with a key, however often it is raised. Kept until the workflow waits for it."""
        where = f"/v1.0/workflows/dapr/{_escaped(instance_id)}/raiseEvent/{_escaped(name)}"
        await self._post(where, payload, idempotency_key or str(uuid.uuid4()))

    async def pause(self, instance_id: str) -> None:
        await self._post(f"/v1.0/workflows/dapr/{_escaped(instance_id)}/pause")

    async def resume(self, instance_id: str) -> None:
        await self._post(f"/v1.0/workflows/dapr/{_escaped(instance_id)}/resume")

    async def terminate(self, instance_id: str) -> None:
        await self._post(f"/v1.0/workflows/dapr/{_escaped(instance_id)}/terminate")

    async def purge(self, instance_id: str) -> None:
        await self._post(f"/v1.0/workflows/dapr/{_escaped(instance_id)}/purge", key=str(uuid.uuid4()))

    async def _post(self, where: str, value: Any = None, key: str = "") -> None:
        await self._insist("POST", where, b"" if value is None else encode(value), key)

    async def _insist(self, verb: str, where: str, body: bytes = b"", key: str = "") -> bytes:
        return await _insist(lambda _: self._http.request(verb, where, body, key), PATIENCE_S)


# -- leaves ------------------------------------------------------------------------------------------------------------


async def _insist(attempt: Callable[[float], Awaitable[bytes]], patience_s: float) -> bytes:
    """The answer, asked for again while it is refused for now, or is missing. An attempt is told how much of the time
    is left, in seconds."""
    loop = asyncio.get_running_loop()
    give_up, pause_s, left_s = loop.time() + patience_s, _PAUSE_S, patience_s
    while True:
        try:
            return await attempt(left_s)
        except ActorError as error:
            if not error.retriable or loop.time() + pause_s > give_up:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        left_s = max(_PAUSE_S, give_up - loop.time())  # a pause may last longer than it should


def _error_of(answer: httpx.Response, where: str) -> Exception:
    try:
        problem = answer.json()
        code, message = str(problem["errorCode"]), str(problem["message"])
    except (ValueError, KeyError, TypeError):
        kind = OutcomeUnknown if answer.status_code in _FOR_NOW else ActorError
        return kind(f"{answer.status_code} {answer.text[:500]}")
    match code:
        case "ERR_ACTOR_INVOKE_METHOD":
            return _invoke_error(message)
        case "ERR_ACTOR_DEADLOCK":
            return Deadlock(tuple(message.partition(": ")[2].rpartition(" (")[0].split(" -> ")))
        case "ERR_INSTANCE_ID_NOT_FOUND":
            return InstanceNotFound(message.rpartition(": ")[2])
        case "ERR_WORKFLOW_UNKNOWN":
            name, _, known = message.removeprefix("no workflow named ").partition(" is served here; there is ")
            return UnknownWorkflow(name[1:-1], known.split(", "))
    of_workflows = where.startswith(_OF_WORKFLOWS)
    if of_workflows and code in _WORKFLOW_ERRORS:
        return _WORKFLOW_ERRORS[code](message)
    if code in _ACTOR_ERRORS:
        return _ACTOR_ERRORS[code](message)
    if answer.status_code in _TRY_AGAIN:
        return Retriable(f"{code}: {message}")
    return WorkflowError(message) if of_workflows else ActorError(f"{code}: {message}")


def _invoke_error(message: str) -> ActorError:
    """What Dapr's one code for failed calls was about."""
    _, failed, reason = message.partition("error from actor service: (500) ")
    if failed:
        kind, _, text = reason.partition(": ")
        return ActorFailed(kind, text)
    if "actor method not found" in message:
        return UnknownMethod(message)
    if "did not find address" in message:
        return UnknownActorType(message)
    return ActorError(message)


def _instance(data: bytes) -> Instance:
    shown = decode(data)
    failure = shown.get("failure")
    return Instance(
        shown["instanceID"],
        shown["workflowName"],
        shown["runtimeStatus"],
        shown["input"],
        shown["output"],
        shown["customStatus"],
        None if failure is None else Failure(**failure),
    )


def _escaped(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)
