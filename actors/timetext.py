"""Times as people write them: durations, instants, periods.

What can be written (all durations: a number is seconds, `timedelta` is taken as it is, "" and None are absent):

- Go duration        ``1h30m`` ``1.5s`` ``250ms``      units h m s ms us µs μs ns; no negative ones
- ISO 8601 duration  ``PT1H30M`` ``P1M`` ``P2W``       whole numbers; lower case is accepted too
- repeats            ``R5/PT1S`` ``R5/0 9 * * *``      a prefix of a period: how often it fires in total
- cron               ``0 9 * * 1-5``                   five fields, or six with seconds first; UTC unless it starts with
                     ``CRON_TZ=Europe/Berlin 0 9 * * *`` (or ``TZ=``); also ``@hourly @daily @weekly @monthly @yearly``
- every              ``@every 1s``                     the form in which Dapr shows a fixed period
- instant            ``2030-01-31T09:00:00Z``          RFC 3339; a naive `datetime` is UTC
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple, TypeAlias, assert_never, cast

from actors.errors import InvalidSchedule
from actors.period import MAX_MS, MIN_MS, Calendar, Cron, Every, Period, add_months, cron_after, from_ms, to_ms

Duration: TypeAlias = str | int | float | timedelta
Instant: TypeAlias = str | int | float | timedelta | datetime


class _Span(NamedTuple):
    """A length of time: months have no fixed number of nanoseconds."""

    months: int
    ns: int


_NS_PER_S = 1_000_000_000
_GO_UNITS_NS = {
    "h": 3600 * _NS_PER_S,
    "m": 60 * _NS_PER_S,
    "s": _NS_PER_S,
    "ms": 1_000_000,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu, which several clients write
    "ns": 1,
}
_GO_PART = re.compile("([0-9]+\\.?[0-9]*|\\.[0-9]+)(h|ms|m|s|us|\u00b5s|\u03bcs|ns)")
_GO = re.compile(rf"\+?(?:{_GO_PART.pattern})+")
_ISO = re.compile(
    r"P(?=[0-9T])(?:([0-9]+)Y)?(?:([0-9]+)M)?(?:([0-9]+)W)?(?:([0-9]+)D)?"
    r"(?:T(?=[0-9])(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+)S)?)?"
)
_FRACTION = re.compile(r"[0-9]*[.,][0-9]+")
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_REPEATS = re.compile(r"[Rr]([0-9]+)(?:/(.*))?", re.DOTALL)
_ZONE = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.*)", re.DOTALL)
_CRON_NAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MAX_TEXT = 256
_MAX_NUMBER_S = 1e18
_DURATION_EXAMPLES = "write a Go duration ('1h30m', '1.5s') or an ISO 8601 one with whole numbers ('PT1H30M', 'P10D')"


def parse_duration_s(value: Duration) -> float:
    """Seconds. For options such as ``idle_timeout="10m"``. Years and months have no fixed length and are refused."""
    span = _parse_span(value)
    if span.months:
        raise InvalidSchedule(f"{value!r} has no fixed length: use days or smaller units, e.g. 'P30D'")
    return span.ns / _NS_PER_S


def parse_due_ms(value: Instant | None, now_ms: int) -> int | None:
    """The instant meant by a duration from now, an RFC 3339 text or a `datetime` (naive: UTC). None and "": None."""
    if is_absent(value):
        return None
    if isinstance(value, datetime):
        return _within_calendar(value, value if value.tzinfo is not None else value.replace(tzinfo=UTC))
    if isinstance(value, str) and _RFC3339.fullmatch(value.strip()):
        try:
            found = datetime.fromisoformat(value.strip().upper())
        except ValueError as error:
            raise InvalidSchedule(f"{value!r} is no instant: {error}; e.g. '2030-01-31T09:00:00Z'") from error
        return _within_calendar(value, found)
    span = _parse_span(cast("Duration", value), also="or an instant ('2030-01-31T09:00:00Z')")
    instant_ms = add_months(now_ms, span.months) + _ceil_ms(span.ns)
    if instant_ms > MAX_MS:
        raise InvalidSchedule(f"{value!r} ends after the year 9999")
    return instant_ms


def _within_calendar(value: object, instant: datetime) -> int:
    """Near its ends, an instant that its own zone can write need not be one in UTC."""
    instant_ms = to_ms(instant)
    if not MIN_MS <= instant_ms <= MAX_MS:
        raise InvalidSchedule(f"{value!r} is not between the years 1 and 9999 in UTC")
    return instant_ms


def parse_period(period: Duration | None, anchor_ms: int) -> tuple[Period | None, int | None]:
    """Grid and total of fires. A period of zero length, or a lone ``R5``, is no period: it fires once."""
    if is_absent(period):
        return None, None
    if not isinstance(period, str):
        return _grid_of(_parse_span(cast("Duration", period)), anchor_ms), None
    text, total = _short(period).strip(), None
    if match := _REPEATS.fullmatch(text):
        # A count of more digits than this is refused with the other ones that are too large.
        text, total = (match[2] or "").strip(), int(match[1])
    if not text:
        return None, total
    cron = _parse_cron(text)
    if cron is not None:
        return cron, total
    span = _parse_span(_without_every(text), also="or cron ('0 9 * * 1-5'), each with R5/ before it to fire five times")
    return _grid_of(span, anchor_ms), total


def _without_every(text: str) -> str:
    return text.removeprefix("@every").strip() if text.startswith("@every") else text


def _parse_cron(text: str) -> Cron | None:
    """None: it is something else. Raises `InvalidSchedule` when it is a cron expression that means nothing."""
    zone = ""
    if match := _ZONE.fullmatch(text):
        zone, text = match[1], match[2].strip()
    text = _CRON_NAMES.get(text, text)
    looks_like_cron = bool(zone) or (len(text.split()) > 1 and not text.startswith("@every"))
    if not looks_like_cron:
        return None
    cron = Cron(" ".join(text.upper().split()), zone)
    if cron_after(cron, 0) is None:
        raise InvalidSchedule(f"cron expression {text!r} never fires")
    return cron


def _grid_of(span: _Span, anchor_ms: int) -> Period | None:
    ms = _ceil_ms(span.ns)
    if ms > MAX_MS or span.months > 12 * 9999:
        raise InvalidSchedule("the period is longer than the calendar")
    if span.months:
        return Calendar(span.months, ms, anchor_ms)
    return Every(ms) if ms else None


def _parse_span(value: Duration, also: str = "") -> _Span:
    if isinstance(value, bool):
        raise InvalidSchedule(f"{value!r} is no duration: {_DURATION_EXAMPLES}")
    if isinstance(value, timedelta):
        return _not_negative(value, (value // timedelta(microseconds=1)) * 1_000)
    if isinstance(value, int | float):
        if not -_MAX_NUMBER_S < value < _MAX_NUMBER_S:  # NaN compares false too
            raise InvalidSchedule(f"a duration is a finite number of seconds below {_MAX_NUMBER_S:g}")
        return _not_negative(value, round(Decimal(str(value)) * _NS_PER_S))
    if not isinstance(value, str):
        raise InvalidSchedule(f"a {type(value).__name__} is no duration: {_DURATION_EXAMPLES}")
    span = _parse_span_text(_short(value).strip())
    if span is None:
        raise InvalidSchedule(f"{value!r} is no duration: {_DURATION_EXAMPLES}{also and ', '}{also}")
    return span


def _parse_span_text(text: str) -> _Span | None:
    if match := _ISO.fullmatch(text.upper()):
        years, months, weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        whole_s = (((weeks * 7 + days) * 24 + hours) * 60 + minutes) * 60 + seconds
        return _Span(years * 12 + months, whole_s * _NS_PER_S)
    if _ISO.fullmatch(_FRACTION.sub("1", text.upper())):
        raise InvalidSchedule(
            f"{text!r} has a fraction, and ISO 8601 durations are read with whole numbers only: "
            "write '1.5s' or '200ms', or smaller units ('PT12H')"
        )
    if text == "0":  # Go's one duration without a unit
        return _Span(0, 0)
    if text.startswith("-") and _GO.fullmatch(text[1:]):
        raise InvalidSchedule(f"{text!r} is negative: a duration is zero or more, e.g. {text[1:]!r}")
    if _GO.fullmatch(text):
        return _Span(0, sum(int(Decimal(number) * _GO_UNITS_NS[unit]) for number, unit in _GO_PART.findall(text)))
    return None


def _not_negative(value: object, ns: int) -> _Span:
    if ns < 0:
        raise InvalidSchedule(f"{value!r} is negative: a duration is zero or more")
    return _Span(0, ns)


def _short(text: str) -> str:
    if len(text) > _MAX_TEXT:
        raise InvalidSchedule(f"a schedule of {len(text)} characters is too long: at most {_MAX_TEXT}")
    return text


def is_absent(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _ceil_ms(ns: int) -> int:
    """Rounded up: nothing fires early, and no period shrinks to nothing."""
    return -(-ns // 1_000_000)


def format_instant(instant_ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds only when there are any."""
    spec = "milliseconds" if instant_ms % 1000 else "seconds"
    return from_ms(instant_ms).replace(tzinfo=None).isoformat(timespec=spec) + "Z"


def format_period(period: Period | None) -> str:
    """The period as Dapr shows it when a reminder is read back: ``@every 1m30s``, cron, ISO 8601 where months count; ""
    when there is none. `make_schedule` reads it back as the same period."""
    if period is None:
        return ""
    if isinstance(period, Every):
        return f"@every {_go_text(period.ms)}"
    if isinstance(period, Calendar):
        return _iso_text(period)
    if isinstance(period, Cron):
        return f"CRON_TZ={period.timezone} {period.expression}" if period.timezone else period.expression
    assert_never(period)


def _go_text(ms: int) -> str:
    """As Go prints it: ``250ms``, ``1.5s``, ``1m30s``, ``1h0m0s``."""
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, fraction = divmod(rest_ms, 1000)
    seconds = f"{whole}.{fraction:03d}".rstrip("0") if fraction else str(whole)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}s"


def _iso_text(period: Calendar) -> str:
    """ISO 8601. Only ISO texts have months, and these are in whole seconds."""
    years, months = divmod(period.months, 12)
    days, rest_s = divmod(period.ms // 1000, 86_400)
    date = "".join(f"{n}{unit}" for n, unit in ((years, "Y"), (months, "M"), (days, "D")) if n)
    return f"P{date}T{rest_s}S" if rest_s else f"P{date}"
