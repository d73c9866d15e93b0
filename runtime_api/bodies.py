"""The JSON bodies of requests, as models: they validate what comes in and describe it on the OpenAPI page.

Dapr's classic endpoints read JSON the way Go does: keys match without case, unknown keys are ignored, ``null``
stands for "not given", a value of the wrong type is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from runtime_api.problems import Problem, malformed
from statestores.codec import CodecError, check_json_integers

T = TypeVar("T")

MOST_ITEMS = 10_000
"""Of any list in a body. Items are much dearer than bytes: 4 MB of the smallest took ten seconds to read."""

Items: TypeAlias = Annotated[list[T], Field(max_length=MOST_ITEMS)]


class ClassicBody(BaseModel):
    """Base of all request bodies: keys without case, strict types."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _fold_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        # By alias, so that an error names the key as the client writes it.
        known = {(field.alias or name).lower(): field.alias or name for name, field in cls.model_fields.items()}
        # Of several spellings the last one counts that is not null: `rawjson.member` has the same rule, or the text
        # that is stored could be another member's than the one that was checked.
        return {known[key.lower()]: item for key, item in value.items() if key.lower() in known and item is not None}


class StateOptions(ClassicBody):
    concurrency: str = Field("", description="`first-write` or `last-write` (default)")
    consistency: str = Field("", description="`strong` or `eventual`")


class StateItem(ClassicBody):
    key: str
    value: Any = None
    etag: str | None = Field(None, description="The write succeeds only while the key carries this tag")
    metadata: dict[str, str] = Field({}, description="`ttlInSeconds`: when the key expires; `-1`: never")
    options: StateOptions = Field(default_factory=lambda: StateOptions.model_validate({}))
    content_type: str = Field("", alias="contentType", description="`application/octet-stream`: value is base64 text")


class BulkGet(ClassicBody):
    keys: Items[str] = []
    parallelism: int = 10
    metadata: dict[str, str] = {}


class StateOperation(ClassicBody):
    operation: str = Field(description="`upsert` or `delete`")
    request: StateItem


class StateTransaction(ClassicBody):
    operations: Items[StateOperation] = []
    metadata: dict[str, str] = {}


class SortKey(ClassicBody):
    key: str
    order: str = Field("ASC", description="`ASC` or `DESC`")


class Page(ClassicBody):
    limit: int = Field(
        0, description="Longest page; default: 1000. It may be shorter: a `token` says that there is more"
    )
    token: str = Field("", description="`token` of the page before")


class StateQuery(ClassicBody):
    filter: dict[str, Any] = Field({}, description="A tree of EQ NEQ GT GTE LT LTE IN AND OR")
    sort: Items[SortKey] = []
    page: Page = Field(default_factory=lambda: Page.model_validate({}))


class ActorStateRequest(ClassicBody):
    key: str = Field("", description="A durable field of the actor")
    value: Any = None
    etag: str | None = None
    metadata: dict[str, str] = {}


class ActorStateOperation(ClassicBody):
    operation: str = Field(description="`upsert` or `delete`")
    request: ActorStateRequest = Field(default_factory=lambda: ActorStateRequest.model_validate({}))


class ReminderRequest(ClassicBody):
    due_time: str = Field("", alias="dueTime", description="Go duration, ISO-8601 duration or RFC 3339 instant")
    period: str = Field("", description="Go or ISO-8601 duration, with `Rn/` in front for n fires, or cron")
    ttl: str = Field("", description="Duration after the first fire, or an instant")
    data: Any = Field(None, description="Any JSON value, handed to the actor")
    overwrite: bool = Field(True, description="false: 409 when the reminder exists")


class TimerRequest(ClassicBody):
    due_time: str = Field("", alias="dueTime", description="Go duration, ISO-8601 duration or RFC 3339 instant")
    period: str = Field("", description="Go or ISO-8601 duration, with `Rn/` in front for n fires, or cron")
    ttl: str = Field("", description="Duration after the first fire, or an instant")
    data: Any = Field(None, description="Any JSON value, handed to the actor")
    callback: str = Field("", description="Method to call; empty: `receive_timer`")


STATE_ITEMS = TypeAdapter(Items[StateItem])
ACTOR_OPERATIONS = TypeAdapter(Items[ActorStateOperation])
BULK_GET = TypeAdapter(BulkGet)
STATE_TRANSACTION = TypeAdapter(StateTransaction)
STATE_QUERY = TypeAdapter(StateQuery)
REMINDER = TypeAdapter(ReminderRequest)
TIMER = TypeAdapter(TimerRequest)


def read(body: bytes, shape: TypeAdapter[T]) -> T:
    """The body as `shape`. Raises `Problem` 400 ``ERR_MALFORMED_REQUEST`` that says what is wrong, and where."""
    try:
        return shape.validate_python(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise _malformed(str(error) if body else "the body is empty") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        if first["type"] == "too_long":
            raise _malformed(f"{where}: more than {MOST_ITEMS} items: send them in several requests") from None
        raise _malformed(f"{where}: {first['msg']}") from None


def read_values(body: bytes, shape: TypeAdapter[T]) -> T:
    """`read` where values in the body are kept as they were parsed, so that numbers may not have been rounded."""
    found = read(body, shape)
    try:
        check_json_integers(body)
    except CodecError as error:
        raise _malformed(str(error)) from None
    return found


def json_text(body: bytes) -> bytes:
    """The body, once it is known to be JSON or empty. Raises `Problem` 400 ``ERR_MALFORMED_REQUEST``."""
    if body:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _malformed(str(error)) from None
    return body


def _malformed(reason: str) -> Problem:
    return malformed(f"failed deserializing HTTP body: {reason}")
