"""What the routes that are served on more than one path give: an answer that each path sends in its own way.

A path is the protocol before ASGI, plain ASGI before FastAPI, or FastAPI. What is told is decided once, here it is only
written down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import orjson
from fastapi.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime_api.wire import Header

JSON: Header = (b"content-type", b"application/json")


class Answer(NamedTuple):
    """An answer as ASGI wants it, its headers complete."""

    status: int
    headers: list[Header]
    body: bytes


Result: TypeAlias = bytes | Answer
"""Bytes: JSON, status 200, no header of its own. That is what nearly every answer is, and the quickest to send."""


def json_answer(value: Any, status: int, headers: Iterable[Header] = ()) -> Answer:
    body = orjson.dumps(value)
    return Answer(status, [*headers, (b"content-length", b"%d" % len(body)), JSON], body)


def response_of(result: Result) -> Response:
    """The same for FastAPI."""
    if isinstance(result, bytes):
        return Response(result, media_type="application/json")
    return Response(
        result.body, result.status, {name.decode("latin-1"): value.decode("latin-1") for name, value in result.headers}
    )
