"""What the OpenAPI page says beyond the routes' signatures: request bodies (endpoints read those themselves), the two
shapes of errors, and no mention of FastAPI's own 422, which this server never sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Header, Path, Query
from fastapi.openapi.utils import get_openapi
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

from runtime_api.wire import unescape

if TYPE_CHECKING:
    from fastapi import FastAPI

_SCHEMA_REF = "#/components/schemas/{model}"
DESCRIPTION = """Virtual actors, durable workflows and application state behind Dapr's v1.0 HTTP protocol.

Paths under `/v1.0/mecha/` are additions. Errors are JSON with `errorCode` and `message`; those of a bad escape in a
path (400) and a wrong token (401) are plain text."""


class ErrorBody(BaseModel):
    """An error; those of the state API carry `details`, too, unless the body could not be read."""

    error_code: str = Field(alias="errorCode", examples=["ERR_ACTOR_INVOKE_METHOD"])
    message: str


class RichErrorBody(ErrorBody):
    details: list[dict[str, Any]] = []


ActorType = Annotated[str, Path(description="Actor type"), AfterValidator(unescape)]
ActorId = Annotated[str, Path(description="Actor id"), AfterValidator(unescape)]
StoreName = Annotated[str, Path(description="Name of a state component"), AfterValidator(unescape)]
Name = Annotated[str, Path(), AfterValidator(unescape)]
InstanceId = Annotated[str, Path(description="Workflow instance id"), AfterValidator(unescape)]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="The call takes effect once and gives its first answer again"),
]
Timeout = Annotated[
    str | None,
    Header(
        alias="Mecha-Timeout", description="Longest wait for the answer: seconds, or a duration as `1.5s` or `PT2M`"
    ),
]
After = Annotated[str, Query(description="`next` of the page before")]
HIGHEST_VERSION = 2**53 - 1
"""Every store and every client can count so far."""
AfterVersion = Annotated[int, Query(ge=0, le=HIGHEST_VERSION, description="What comes after this version")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Longest page")]


def errors(*statuses: int, rich: bool = False) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: these statuses carry an error body. As a reference: of a model FastAPI would make a
    validator, for each of these in each start of a server, although endpoints say themselves what they answer."""
    model = RichErrorBody if rich else ErrorBody
    content = {"application/json": {"schema": {"$ref": _SCHEMA_REF.format(model=model.__name__)}}}
    return {status: {"content": content} for status in statuses}


def takes(shape: TypeAdapter[Any] | None = None, *, media: str = "application/json", text: str = "") -> dict[str, Any]:
    """`openapi_extra` of a route whose endpoint reads the body itself; `shape` None: any value."""
    schema = shape.json_schema(ref_template=_SCHEMA_REF, by_alias=True) if shape is not None else {}
    definitions = schema.pop("$defs", {})
    if schema.get("title") and "properties" in schema:
        definitions[schema["title"]] = schema
        schema = {"$ref": _SCHEMA_REF.format(model=schema["title"])}
    body = {"description": text, "content": {media: {"schema": schema}}, "required": shape is not None}
    return {"requestBody": body, "x-schemas": definitions}


def _parameter(where: str, name: str, description: str) -> dict[str, Any]:
    return {"in": where, "name": name, "description": description, "schema": {"type": "string"}}


IF_MATCH = _parameter("header", "If-Match", "The key is deleted only while it carries this tag")
CONCURRENCY = _parameter("query", "concurrency", "`first-write` or `last-write` (default)")
CONSISTENCY = _parameter("query", "consistency", "`strong` or `eventual`")
TTL = _parameter("query", "metadata.ttlInSeconds", "Of every key that is written, whatever the body says of it")
REENTRANCY_ID = _parameter("header", "Dapr-Reentrancy-Id", "Joins a running turn of the same chain")


def reads(*parameters: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route whose endpoint reads these itself."""
    return {"parameters": list(parameters)}


def describe(app: FastAPI) -> dict[str, Any]:
    """The page, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for operations in document["paths"].values():
            for operation in operations.values():
                schemas.update(operation.pop("x-schemas", {}))
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for model in (ErrorBody, RichErrorBody):
            schemas[model.__name__] = model.model_json_schema(mode="serialization", ref_template=_SCHEMA_REF)
        app.openapi_schema = document
    return app.openapi_schema
