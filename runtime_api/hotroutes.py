"""Which requests are hot, and what is done for each: actor calls, reads of a state key, and what a client does with a
workflow from its start to its result.

One table for both hot paths, `hotprotocol` (before ASGI) and `hotpath` (before FastAPI). A request is found by its
request line alone. Only plain ones are: segments that need neither unescaping nor checking, and of the query what
stands in the pattern. Anything else is left to the general path, which carries the same routes and gives the same
answers, only later: FastAPI takes 300 to 500 µs of CPU for a request, this table 2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from runtime_api.problems import Problem, invoke_problem, problem_of
from runtime_api.wire import PLAIN_CALL, CallOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine

    from runtime_api.answers import Answer, Result
    from runtime_api.workflows import WorkflowApi

    Invoke = Callable[..., Awaitable[bytes]]
    ReadState = Callable[[str, str], Coroutine[Any, Any, Answer] | None]

Arguments: TypeAlias = tuple[str, ...]

# "." and ".." are names that need checking. What stands in a query unread must only be plain enough to end there.
_SEGMENT = r"((?!\.\.?[/ ?])[A-Za-z0-9_.~:@$!*'(),;=&-]+)"
_ANY_QUERY = r"(?:\?[A-Za-z0-9_.~:@$!*'(),;=&+%/-]*)?"
_INSTANCE_ID = r"(?:\?instanceID=([A-Za-z0-9_-]+))?"
_TIMEOUT = r"(?:\?timeout=([0-9a-z.]+))?"
_WORKFLOWS = rf"(/v1\.0(?:-beta1|-alpha1)?/workflows/{_SEGMENT[1:-1]})"


def _line(verbs: str, target: str) -> re.Pattern[bytes]:
    return re.compile(rf"(?:{verbs}) {target} HTTP/1\.1\r\n".encode())


ACTOR_METHOD = _line("POST|PUT|GET|DELETE", rf"/v1\.0/actors/{_SEGMENT}/{_SEGMENT}/method/{_SEGMENT}{_ANY_QUERY}")
STATE_KEY = _line("GET", rf"/v1\.0/state/{_SEGMENT}/{_SEGMENT}{_ANY_QUERY}")
START = _line("POST", rf"{_WORKFLOWS}/{_SEGMENT}/start{_INSTANCE_ID}")
RESULT = _line("GET", rf"/v1\.0/mecha/workflows/{_SEGMENT}/result{_TIMEOUT}")
RUN = _line("POST", rf"/v1\.0/mecha/workflows/{_SEGMENT}/run{_INSTANCE_ID}")
STATUS = _line("GET", rf"{_WORKFLOWS}/{_SEGMENT}")
RAISE_EVENT = _line("POST", rf"{_WORKFLOWS}/{_SEGMENT}/raiseEvent/{_SEGMENT}")


class HotRoute(NamedTuple):
    """`line` matches a request line, what its groups match are the arguments; "" for what is not there.

    `begin` gives the work, or None when the general path has to answer; it does not raise. `problem`: what is told of
    an error of the work, None for our bugs. `waits`: the work is only for the client, and is cancelled when it
    leaves."""

    line: re.Pattern[bytes]
    begin: Callable[[Arguments, bytes, CallOptions], Awaitable[Result] | None]
    problem: Callable[[BaseException, Arguments], Problem | None]
    waits: bool = False


class HotRoutes:
    """`types`: the application's actor types. `invoke`: `ActorClient.invoke_nowait`. `read_state`: a read of a key,
    None for a store it does not know."""

    def __init__(self, types: Container[str], invoke: Invoke, read_state: ReadState, workflows: WorkflowApi) -> None:
        self._types = types
        self._invoke = invoke
        self._read_state = read_state
        self._workflows = workflows
        self._routes = (
            HotRoute(ACTOR_METHOD, self._call, _call_problem),
            HotRoute(STATE_KEY, self._read, _problem),
            HotRoute(START, self._start, _problem),
            HotRoute(RESULT, self._result, _problem, waits=True),
            HotRoute(RUN, self._run, _problem, waits=True),
            HotRoute(STATUS, self._status, _problem),
            HotRoute(RAISE_EVENT, self._raise_event, _problem),
        )

    def find(self, data: bytes) -> tuple[HotRoute, re.Match[bytes]] | None:
        """What is asked by a request that begins with this line."""
        for route in self._routes:
            found = route.line.match(data)
            if found is not None:
                return route, found
        return None

    def _call(self, names: Arguments, body: bytes, options: CallOptions) -> Awaitable[bytes] | None:
        if names[0] not in self._types:
            return None
        if options is PLAIN_CALL:
            return self._invoke(*names, body)
        return self._invoke(*names, body, **options._asdict())

    def _read(self, names: Arguments, body: bytes, options: CallOptions) -> Awaitable[Answer] | None:
        return self._read_state(*names)

    def _start(self, names: Arguments, body: bytes, options: CallOptions) -> Awaitable[Answer]:
        base, name, instance_id = names
        return self._workflows.start(base, name, body, options.idempotency_key, instance_id)

    def _result(self, names: Arguments, body: bytes, options: CallOptions) -> Awaitable[Result]:
        return self._workflows.result(*names)

    def _run(self, names: Arguments, body: bytes, options: CallOptions) -> Awaitable[Result]:
        name, instance_id = names
        return self._workflows.run(name, body, options.idempotency_key, instance_id)

    def _status(self, names: Arguments, body: bytes, options: CallOptions) -> Awaitable[bytes]:
        return self._workflows.status(names[1])

    def _raise_event(self, names: Arguments, body: bytes, options: CallOptions) -> Awaitable[Answer]:
        return self._workflows.raise_event(names[1], names[2], body, options.idempotency_key)


def arguments_of(found: re.Match[bytes]) -> Arguments:
    return tuple(map(bytes.decode, found.groups(b"")))


def _call_problem(error: BaseException, names: Arguments) -> Problem | None:
    return invoke_problem(error, *names)


def _problem(error: BaseException, names: Arguments) -> Problem | None:
    return problem_of(error)
