"""From an exception to what the client is told: one table, two shapes of body, as in Dapr.

*plain* ``{"errorCode", "message"}``: actors, workflows, health, and everything of ours. *rich*: the same with
``details``: state. Where Dapr names the error after the endpoint rather than after its cause, the table leaves the
code open and the endpoint's `Operation` fills it in.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from starlette.responses import PlainTextResponse, Response

from actors import errors as actor
from runtime_api.wire import BadEscape, BadHeader, BadParameter
from statestores import errors as store
from statestores.codec import CodecError
from workflow import errors as workflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RETRY_AFTER = {"retry-after": "1"}
_GOOGLE = "type.googleapis.com/google.rpc."


class Problem(Exception):
    """An answer that is an error: what the client is told, complete. Raised by endpoints, sent by the edge."""

    def __init__(
        self, status: int, code: str, message: str, *, details: list[dict[str, Any]] | None = None, retry: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details, self.retry = status, code, message, details, retry

    @property
    def body(self) -> bytes:
        content: dict[str, Any] = {"errorCode": self.code, "message": self.message}
        if self.details is not None:
            content["details"] = self.details
        # What a client sent may not be encodable (a lone surrogate): the report must get out all the same.
        try:
            return orjson.dumps(content)
        except TypeError:
            content["message"] = self.message.encode(errors="replace").decode()
            return orjson.dumps(content)

    @property
    def response(self) -> Response:
        headers = RETRY_AFTER if self.retry else None
        return Response(self.body, self.status, media_type="application/json", headers=headers)


class PlainText(Problem):
    """The few answers that are text in Dapr: a bad escape (400), a bad token (401)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, "", message)

    @property
    def body(self) -> bytes:
        return self.message.encode(errors="replace")

    @property
    def response(self) -> Response:
        return PlainTextResponse(self.body, self.status)


class Row(NamedTuple):
    """One line of the table. `code` None: the operation's. `text` None: the exception's own words; ``{0}`` is the
    exception."""

    error: type[Exception]
    status: int
    code: str | None
    text: str | None = None


TABLE: tuple[Row, ...] = (
    Row(BadHeader, 400, "ERR_BAD_REQUEST"),
    Row(BadParameter, 400, "ERR_BAD_REQUEST"),
    Row(CodecError, 400, "ERR_MALFORMED_REQUEST"),
    # actors: the caller's fault
    Row(actor.InvalidName, 400, "ERR_BAD_REQUEST"),
    Row(actor.InvalidArguments, 400, "ERR_MALFORMED_REQUEST"),
    Row(actor.UnknownActorType, 500, None),
    Row(actor.UnknownMethod, 500, None),
    Row(actor.InvalidState, 500, None),
    Row(actor.ReminderExists, 409, "ERR_ACTOR_REMINDER_ALREADY_EXISTS"),
    Row(actor.ActorNotActive, 400, "ERR_ACTOR_INSTANCE_MISSING", "actor instance is missing"),
    Row(actor.InvalidSchedule, 500, None),
    Row(actor.CallerError, 400, "ERR_BAD_REQUEST"),
    # actors: the actor's fault
    Row(actor.ActorFailed, 500, None),
    Row(actor.UnserializableResult, 500, "ERR_ACTOR_RESULT_UNSERIALIZABLE"),
    Row(actor.Deadlock, 500, "ERR_ACTOR_DEADLOCK"),
    Row(actor.ReentrancyDepthExceeded, 500, "ERR_ACTOR_STACK_DEPTH", "maximum stack depth exceeded"),
    # actors: nobody's, repeat it
    Row(actor.DeadlineExceeded, 504, "ERR_ACTOR_DEADLINE_EXCEEDED"),
    Row(actor.MailboxFull, 429, "ERR_ACTOR_MAILBOX_FULL"),
    Row(actor.HostStopping, 503, "ERR_ACTOR_RUNTIME_CLOSED"),
    Row(actor.OutcomeUnknown, 503, "ERR_ACTOR_OUTCOME_UNKNOWN"),
    Row(actor.Retriable, 503, "ERR_ACTOR_MOVED"),
    Row(actor.ActorError, 500, None),
    # workflows
    Row(workflow.UnknownWorkflow, 404, "ERR_WORKFLOW_UNKNOWN"),
    Row(workflow.InvalidWorkflowInput, 400, "ERR_MALFORMED_REQUEST"),
    Row(
        workflow.InstanceNotFound,
        404,
        "ERR_INSTANCE_ID_NOT_FOUND",
        "unable to find workflow with the provided instance ID: {0.instance_id}",
    ),
    Row(workflow.WorkflowError, 500, None),
    # state
    Row(store.ETagMismatch, 409, None),
    Row(store.ETagInvalid, 400, None),
    Row(store.StoreError, 500, None),
)
_BY_TYPE = {row.error: row for row in TABLE}


class Operation(NamedTuple):
    """What an endpoint was about to do: Dapr's error code for its failure, and how the message begins.

    `status` forces one status for every failure that the table leaves to the operation (state transactions). Errors
    of the kinds in `owns` are the operation's own 500, whatever the table says.
    """

    code: str
    prefix: str = ""
    status: int | None = None
    details: Callable[[str], list[dict[str, Any]]] | None = None
    owns: tuple[type[Exception], ...] = ()


UNKNOWN = Operation("ERROR")
INVOKE = Operation("ERR_ACTOR_INVOKE_METHOD", "error invoke actor method: ")


def problem_of(error: BaseException, operation: Operation = UNKNOWN) -> Problem | None:
    """What to tell the client, or None for an exception that is no part of any contract: our bug, 500 ``ERROR``."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BadEscape):
        return PlainText(400, str(error))
    if isinstance(error, operation.owns):
        return Problem(500, operation.code, operation.prefix + str(error))
    row = next((_BY_TYPE[kind] for kind in type(error).__mro__ if kind in _BY_TYPE), None)
    if row is None:
        return None
    retry = row.status in (429, 503)
    if row.code is not None:
        return Problem(row.status, row.code, row.text.format(error) if row.text else str(error), retry=retry)
    details = operation.details(operation.code) if operation.details else None
    return Problem(
        operation.status or row.status, operation.code, operation.prefix + str(error), details=details, retry=retry
    )


@contextmanager
def failing_as(operation: Operation) -> Iterator[None]:
    """Inside, whatever fails is told as a failure of `operation`; what is no part of any contract passes as it is."""
    try:
        yield
    except Exception as error:
        problem = problem_of(error, operation)
        if problem is None:
            raise
        raise problem from error


def invoke_problem(error: BaseException, actor_type: str, actor_id: str, method: str) -> Problem | None:
    """`problem_of` for an actor call: the inner texts that Dapr's clients and tests look for."""
    match error:
        case actor.UnknownActorType():
            return Problem(500, INVOKE.code, INVOKE.prefix + no_address(actor_type, actor_id))
        case actor.UnknownMethod():
            where = f"actors/{actor_type}/{actor_id}/method/{method}"
            return Problem(500, INVOKE.code, f"{INVOKE.prefix}actor method not found: {where}")
        case actor.ActorFailed():
            return Problem(500, INVOKE.code, f"{INVOKE.prefix}error from actor service: (500) {error}")
        case _:
            return problem_of(error, INVOKE)


def no_address(actor_type: str, actor_id: str) -> str:
    return (
        "failed to lookup actor: api error: code = FailedPrecondition desc = "
        f"did not find address for actor '{actor_type}/{actor_id}'"
    )


def internal(error: BaseException) -> Problem:
    """Anything unclassified. The text names the kind of error only: what is inside belongs in the log."""
    return Problem(500, "ERROR", f"internal error: {type(error).__name__}")


def malformed(reason: str, details: list[dict[str, Any]] | None = None) -> Problem:
    return Problem(400, "ERR_MALFORMED_REQUEST", reason, details=details)


def unknown_route() -> Problem:
    message = "failed getting app id either from the URL path or the header dapr-app-id"
    return Problem(404, "ERR_DIRECT_INVOKE", message)


def body_too_large(limit: int) -> Problem:
    return Problem(413, "ERR_BODY_TOO_LARGE", f"the request body is longer than the limit of {limit} bytes")


def head_too_large(limit: int) -> Problem:
    return Problem(431, "ERR_HEAD_TOO_LARGE", f"path and headers are longer than the limit of {limit} bytes")


def error_info(reason: str, metadata: dict[str, str] | None = None) -> dict[str, Any]:
    return {"@type": _GOOGLE + "ErrorInfo", "reason": reason, "domain": "dapr.io", "metadata": metadata}


def resource_info(kind: str, name: str) -> dict[str, Any]:
    return {
        "@type": _GOOGLE + "ResourceInfo",
        "resource_type": kind,
        "resource_name": name,
        "owner": "",
        "description": "",
    }


def bad_field(field: str, description: str) -> dict[str, Any]:
    return {"@type": _GOOGLE + "BadRequest", "field_violations": [{"field": field, "description": description}]}
