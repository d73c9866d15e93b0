"""How a request is read: paths, parameters, headers, durations. Pure functions, by Dapr's rules.

Path parameters stay percent-encoded until a route has matched, so that an encoded slash cannot move a route's borders;
then each is *query*-unescaped on its own (``%2F`` is a slash, ``+`` a blank).
"""

from __future__ import annotations

import posixpath
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Header: TypeAlias = tuple[bytes, bytes]

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SLASHES = re.compile(rb"//+")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
_BAGGAGE_MEMBER = re.compile(rf"\s*{_TOKEN}\s*=\s*{_VALUE}\s*(?:;\s*{_TOKEN}\s*(?:=\s*{_VALUE}\s*)?)*")
_GO_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_GO_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|us|µs|μs|ns|m|s)")
_GO_DURATION = re.compile(rf"(?:{_GO_PART.pattern})+")
_METADATA = "metadata."
_METHOD_FORBIDDEN = re.compile(r"[#?\x00-\x1f\x7f]")
PLAIN = ":@!$&'()*,;=~-._"
"""What may stand in a path parameter as it is, beside letters and digits."""
_ALLOWED_RAW = PLAIN + "/%+"

DURATIONS = "1.5s, 1h30m or PT1H30M (of ISO 8601 whole numbers only, neither years nor months)"
"""What `duration_s` reads, in errors."""

LONGEST_WAIT_S = 365 * 86_400.0
"""A year: of timeouts, and of all other times somebody waits for."""


class BadEscape(ValueError):
    """A path holds a percent sign that begins no escape, or escapes that are not UTF-8."""


class BadHeader(ValueError):
    """A header has a value that its definition does not allow."""


class BadParameter(ValueError):
    """A query parameter has a value that its definition does not allow."""


class CallOptions(NamedTuple):
    """What headers say about one call, named as `ActorClient.invoke_nowait` names it. `timeout` in seconds, None: the
    type's own. `chain_id`: Dapr's reentrancy id. See `call_options` for the headers."""

    idempotency_key: str | None = None
    timeout: float | None = None
    trace_id: str = ""
    chain_id: str | None = None


PLAIN_CALL = CallOptions()
CALL_HEADERS = frozenset({b"idempotency-key", b"mecha-timeout", b"traceparent", b"baggage", b"dapr-reentrancy-id"})


def normal_path(raw_path: bytes) -> str:
    """The path a route is looked up by: repeated slashes collapsed, a trailing one dropped, escapes kept.

    Bytes that are not ASCII become escapes, as the client should have sent them. Raises `BadEscape`.
    """
    if _BAD_ESCAPE.search(raw_path):
        raise BadEscape(f"invalid URL escape in {raw_path.decode('latin-1')!r}")
    path = _SLASHES.sub(b"/", raw_path)
    if len(path) > 1 and path.endswith(b"/"):
        path = path[:-1]
    text = path.decode() if path.isascii() else quote_from_bytes(path, safe=_ALLOWED_RAW)
    if "%" in text:
        unescape(text)
    return text


def unescape(text: str) -> str:
    """One path parameter, query-unescaped. Raises `BadEscape`."""
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise BadEscape(f"the escapes in {text!r} are not UTF-8") from None


def query_of(query_string: bytes) -> dict[str, str]:
    """Query parameters, the first of a name wins (as Go's ``Query().Get``); what cannot be read is left out."""
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, errors="replace")
    query: dict[str, str] = {}
    for name, value in pairs:
        query.setdefault(name, value)
    return query


def metadata_of(query: dict[str, str]) -> dict[str, str]:
    """The request metadata: query parameters ``metadata.<key>=value``."""
    return {name.removeprefix(_METADATA): value for name, value in query.items() if name.startswith(_METADATA)}


def header(headers: Iterable[Header], name: bytes) -> bytes | None:
    """The first value of a header; `name` in lower case, as ASGI gives them."""
    return next((value for key, value in headers if key == name), None)


def call_options(headers: Sequence[Header]) -> CallOptions:
    """``Idempotency-Key``, ``Mecha-Timeout`` (see `duration_s`), ``Dapr-Reentrancy-Id``, and the trace id
    out of ``traceparent``.

    Raises `BadHeader`. A malformed traceparent is ignored, as its specification asks; malformed baggage is refused.
    """
    check_baggage(headers)
    key = header(headers, b"idempotency-key")
    timeout = header(headers, b"mecha-timeout")
    return CallOptions(
        _idempotency_key(key) if key is not None else None,
        _timeout_s(timeout) if timeout is not None else None,
        trace_id(header(headers, b"traceparent")),
        (header(headers, b"dapr-reentrancy-id") or b"").decode("latin-1") or None,
    )


def _idempotency_key(value: bytes) -> str:
    text = value.decode("latin-1").strip()
    if not text or len(text) > 255 or not text.isprintable():
        raise BadHeader("Idempotency-Key must have 1 to 255 printable characters of ISO 8859-1 (Latin-1)")
    return text


def _timeout_s(value: bytes) -> float:
    text = value.decode("latin-1")
    try:
        seconds = duration_s(text)
    except ValueError as error:
        raise BadHeader(f"Mecha-Timeout {error}") from None
    if not 0 < seconds <= LONGEST_WAIT_S:
        raise BadHeader(f"Mecha-Timeout {text!r} must be more than zero and at most a year")
    return seconds


def trace_id(traceparent: bytes | None) -> str:
    """The trace id of a W3C ``traceparent``, "" when there is none or it is malformed."""
    match = traceparent and _TRACEPARENT.fullmatch(traceparent.decode("latin-1").strip())
    return match[1] if match else ""


def check_baggage(headers: Iterable[Header]) -> None:
    """Raises `BadHeader` when ``baggage`` is not a list of ``key=value;property`` members: the values of all headers
    together, as in Dapr, where an empty one is no baggage."""
    baggage = b",".join([value for name, value in headers if name == b"baggage"]).strip()
    if baggage and not all(map(_BAGGAGE_MEMBER.fullmatch, baggage.decode("latin-1").split(","))):
        raise BadHeader("malformed baggage header")


def duration_s(text: str) -> float:
    """Seconds out of a plain number (``10``, ``0.5``), a Go duration (``1h30m``, ``1.5s``, ``200ms``), or one of ISO
    8601 whose length is fixed (``PT1H30M``). Raises ValueError."""
    stripped = text.strip()
    if _GO_DURATION.fullmatch(stripped):
        return sum(float(number) * _GO_UNITS_S[unit] for number, unit in _GO_PART.findall(stripped))
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", stripped, re.ASCII):
        return float(stripped)
    # Brings all of actors: the command line does without, most times.
    from actors.timetext import parse_duration_s

    try:
        return parse_duration_s(stripped)
    except ValueError:
        raise ValueError(f"{text!r} is neither seconds nor a duration such as {DURATIONS}") from None


def normal_method(name: str) -> str:
    """An actor method's name by Dapr's rule: ``#``, ``?`` and control characters are refused with ValueError,
    then it is cleaned like a path, leading ``../`` stripped."""
    if bad := _METHOD_FORBIDDEN.search(name):
        raise ValueError(f"method {name!r} contains {bad.group()!r}: '#', '?' and control characters are not allowed")
    if "/" not in name:
        return name
    return posixpath.normpath("/" + name).lstrip("/")


def instant(text: str) -> datetime | None:
    """An RFC 3339 instant, None for "". Raises `BadParameter`."""
    if not text:
        return None
    try:
        # A plus in a query that was not escaped has become a blank.
        found = datetime.fromisoformat(text.replace(" ", "+"))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadParameter(f"{text!r} is no RFC 3339 instant such as 2030-01-31T09:00:00Z") from None


def millis(text: str) -> int | None:
    """The same in milliseconds since the epoch."""
    found = instant(text)
    return None if found is None else round(found.timestamp() * 1000)
