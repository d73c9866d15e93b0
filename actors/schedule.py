"""When a reminder or timer fires: texts become a `Schedule`, a `Schedule` says which tick comes next. Reads no clock.

A schedule is a *grid* of instants, its ticks. The tick after the one due at `d` is computed from `d` (calendar
periods: from the anchor the schedule began at), never from the moment it happened to fire, so nothing drifts. Whoever
fires does:

    wanted = resolve_misfire(schedule, due_ms, now_ms)   # before firing: == due_ms fire, later: move there, None: ended
    following = next_due_ms(schedule, due_ms, now_ms)    # after firing: commit it together with the turn; None: ended

Every answer costs O(1) for fixed periods, O(log) for calendar ones, and one search from `now` for cron, however many
ticks were missed.

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
from bisect import bisect_right
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, assert_never, cast, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from actors.errors import InvalidSchedule

if TYPE_CHECKING:
    from collections.abc import Mapping

Misfire = Literal["all", "latest", "skip"]
"""What to do with ticks that were missed, because the host was down or the actor busy: `all` fires every one, one after
the other; `latest` fires one for all of them, then goes on with the future; `skip`: a tick that is late by a whole
period or more does not fire, nor do the other missed ones; one that is less late fires."""

Duration: TypeAlias = str | int | float | timedelta
Instant: TypeAlias = str | int | float | timedelta | datetime

MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, where `datetime` ends. A tick beyond it never comes."""


class Every(NamedTuple):
    """A fixed period. Invariant: ms >= 1."""

    ms: int


class Calendar(NamedTuple):
    """A period in which months (and years: 12 of them) count: tick n is the anchor plus n times `months`, plus n times
    `ms`. A day that the month lacks is its last day; the next month has it back (31 January, 28 February, 31 March)."""

    months: int
    ms: int
    anchor_ms: int


class Cron(NamedTuple):
    """`timezone` is an IANA name, "" for UTC. A local time that the change to summer time leaves out fires right after
    the gap, one that the change back brings twice fires once; expressions with a wildcard hour fire in both."""

    expression: str
    timezone: str = ""


Period: TypeAlias = Every | Calendar | Cron


class Schedule(NamedTuple):
    """What is durable of a schedule, apart from when its pending tick is due."""

    # None: one tick.
    period: Period | None = None
    # How many more times it fires, the pending tick included; None: without end. Counts what fires, not what is missed.
    repeats_left: int | None = None
    # Ticks due at or after this instant do not exist. A tick due before it may fire after it.
    expires_ms: int | None = None
    misfire: Misfire = "latest"


# -- what happens when -------------------------------------------------------------------------------------------------


def make_schedule(
    due: Instant | None,
    period: Duration | None,
    ttl: Instant | None = None,
    repeats: int | None = None,
    misfire: Misfire = "latest",
    now_ms: int = 0,
    *,
    first_fire_immediate: bool,
) -> tuple[int, Schedule]:
    """When the first tick is due, and the schedule. `ttl` as a duration counts from the first tick.

    `first_fire_immediate`: a timer, which without `due` begins at once; otherwise a reminder, which then begins after
    its first period, must have `due` or `period`, and may have a `ttl` only with a `period`. Cron begins at its first
    point after now in both. A `due` in the past is kept: the misfire policy says what becomes of the ticks since.
    Raises `InvalidSchedule`, also when nothing would ever fire.
    """
    if misfire not in get_args(Misfire):
        raise InvalidSchedule(f"unknown misfire policy {misfire!r}: use 'all', 'latest' or 'skip'")
    due_ms = parse_due_ms(due, now_ms)
    grid, total = _parse_period(period, due_ms if due_ms is not None else now_ms)
    total = _agree_on_repeats(total, repeats, has_period=grid is not None)
    if not first_fire_immediate:
        _refuse_incomplete_reminder(due_ms, grid, ttl)
    if due_ms is None:
        due_ms = _first_due(grid, now_ms, first_fire_immediate)
    return due_ms, Schedule(grid, total, _expiry(ttl, due_ms, now_ms), misfire)


def next_due_ms(schedule: Schedule, due_ms: int, now_ms: int) -> tuple[int, Schedule] | None:
    """The tick after the one due at `due_ms`, which has fired at `now_ms`; None when there is none.

    `all`: the very next point of the grid, however far in the past. `latest` and `skip`: the first one after now.
    """
    if schedule.repeats_left is not None and schedule.repeats_left <= 1:
        return None
    following = _tick_after(schedule, due_ms, due_ms if schedule.misfire == "all" else max(due_ms, now_ms))
    if following is None:
        return None
    left = None if schedule.repeats_left is None else schedule.repeats_left - 1
    return following, schedule._replace(repeats_left=left)


def resolve_misfire(schedule: Schedule, due_ms: int, now_ms: int) -> int | None:
    """The tick that should fire in place of the pending one, asked right before firing it.

    `due_ms` itself: fire now. A later instant: do not fire, wait until then (same schedule, a skipped tick is not
    counted as a repeat). None: do not fire, and nothing is left to fire.
    """
    if schedule.misfire != "skip" or now_ms <= due_ms:
        return due_ms
    following = _grid_after(schedule.period, due_ms, due_ms)
    if following is None or following > now_ms:  # late, but by less than a period; or the only tick there is
        return due_ms
    return _tick_after(schedule, due_ms, now_ms)


def _first_due(grid: Period | None, now_ms: int, immediate: bool) -> int:
    if immediate and not isinstance(grid, Cron):
        return now_ms
    first = _grid_after(grid, now_ms, now_ms)
    if first is None:
        raise InvalidSchedule("the first tick would be after the year 9999")
    return first


def _expiry(ttl: Instant | None, due_ms: int, now_ms: int) -> int | None:
    expires_ms = parse_due_ms(ttl, due_ms)
    if expires_ms is None:
        return None
    if expires_ms <= now_ms:
        raise InvalidSchedule(f"ttl {ttl!r} has already passed: it ended at {format_instant(expires_ms)}")
    if expires_ms <= due_ms:
        raise InvalidSchedule(
            f"ttl {ttl!r} ends at {format_instant(expires_ms)}, not after the first tick at {format_instant(due_ms)}: "
            "nothing would fire"
        )
    return expires_ms


def _refuse_incomplete_reminder(due_ms: int | None, grid: Period | None, ttl: Instant | None) -> None:
    if grid is not None:
        return
    if due_ms is None:
        raise InvalidSchedule("a reminder needs a due time or a period, e.g. due='10s' or period='1h'")
    if not _absent(ttl):
        raise InvalidSchedule("a reminder that fires once cannot have a ttl: give a period as well, e.g. period='1h'")


def _agree_on_repeats(written: int | None, asked: int | None, *, has_period: bool) -> int | None:
    """`written`: what stood before the period (R5/…), `asked`: the parameter. Without a period all of it means once."""
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int)):
        raise InvalidSchedule(f"repeats must be a whole number, not {asked!r}")
    if asked is not None and written is not None and asked != written:
        raise InvalidSchedule(f"repeats={asked} contradicts the period, which says R{written}/: give one of them")
    total = written if asked is None else asked
    if total is None:
        return None
    if total < 1:
        raise InvalidSchedule("it has zero repetitions: the number counts every fire, so R1/PT1S fires once")
    if total >= 2**53:
        raise InvalidSchedule(f"{total} repetitions are too many to count: leave the number out for no end")
    return total if has_period else None


def _tick_after(schedule: Schedule, due_ms: int, after_ms: int) -> int | None:
    tick = _grid_after(schedule.period, due_ms, after_ms)
    if tick is None or (schedule.expires_ms is not None and tick >= schedule.expires_ms):
        return None
    return tick


def _grid_after(period: Period | None, due_ms: int, after_ms: int) -> int | None:
    """The first point later than `after_ms` (which is >= due_ms) of the grid that `due_ms` lies on."""
    if period is None:
        return None
    if isinstance(period, Every):
        tick = due_ms + ((after_ms - due_ms) // period.ms + 1) * period.ms
        return tick if tick <= MAX_MS else None
    if isinstance(period, Calendar):
        return _calendar_after(period, after_ms)
    if isinstance(period, Cron):
        return _cron_after(period, after_ms)
    assert_never(period)


# -- calendar and cron -------------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_MIN_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MS
_SHORTEST_MONTH_MS = 28 * 86_400_000


def _calendar_after(period: Calendar, after_ms: int) -> int | None:
    shortest_ms = period.months * _SHORTEST_MONTH_MS + period.ms
    beyond = max(0, after_ms - period.anchor_ms) // shortest_ms + 2  # this tick is surely later than after_ms
    n = bisect_right(range(beyond), after_ms, key=lambda n: _calendar_tick(period, n))
    tick = _calendar_tick(period, n)
    return tick if tick <= MAX_MS else None


def _calendar_tick(period: Calendar, n: int) -> int:
    """Strictly growing in n, and more than MAX_MS for every tick that the calendar cannot express."""
    return _add_months(period.anchor_ms, n * period.months) + n * period.ms


def _add_months(instant_ms: int, months: int) -> int:
    start = _from_ms(instant_ms)
    year, month0 = divmod(start.year * 12 + start.month - 1 + months, 12)
    if year > 9999:
        return MAX_MS + 1 + months  # beyond the calendar: any growing number will do
    day = min(start.day, monthrange(year, month0 + 1)[1])
    return _to_ms(start.replace(year=year, month=month0 + 1, day=day))


def _cron_after(period: Cron, after_ms: int) -> int | None:
    try:
        zone = ZoneInfo(period.timezone) if period.timezone else UTC
    except (KeyError, OSError, ValueError) as error:  # not in the database, a directory of it, not a name at all
        raise InvalidSchedule(
            f"unknown time zone {period.timezone!r}: use an IANA name, e.g. CRON_TZ=Europe/Berlin"
        ) from error
    try:
        found = next(CronSim(period.expression, _from_ms(after_ms).astimezone(zone)))
    except CronSimError as error:
        raise InvalidSchedule(
            f"cron expression {period.expression!r}: {error}; five fields 'minute hour day month weekday', "
            "e.g. '0 9 * * 1-5', or six with seconds first"
        ) from error
    except (StopIteration, OverflowError):  # no point within 50 years, or beyond the year 9999
        return None
    return _to_ms(found)


def _from_ms(instant_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=instant_ms)


def _to_ms(instant: datetime) -> int:
    return (instant - _EPOCH) // _MS


# -- texts -------------------------------------------------------------------------------------------------------------


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
_DURATION_EXAMPLES = "write a Go duration ('1h30m', '1.5s') or an ISO 8601 one with whole numbers ('PT1H30M')"


def parse_duration_s(value: Duration) -> float:
    """Seconds. For options such as ``idle_timeout="10m"``. Years and months have no fixed length and are refused."""
    span = _parse_span(value)
    if span.months:
        raise InvalidSchedule(f"{value!r} has no fixed length: use days or smaller units, e.g. 'P30D'")
    return span.ns / _NS_PER_S


def parse_due_ms(value: Instant | None, now_ms: int) -> int | None:
    """The instant meant by a duration from now, an RFC 3339 text or a `datetime` (naive: UTC). None and "": None."""
    if _absent(value):
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
    instant_ms = _add_months(now_ms, span.months) + _ceil_ms(span.ns)
    if instant_ms > MAX_MS:
        raise InvalidSchedule(f"{value!r} ends after the year 9999")
    return instant_ms


def _within_calendar(value: object, instant: datetime) -> int:
    """Near its ends, an instant that its own zone can write need not be one in UTC."""
    instant_ms = _to_ms(instant)
    if not _MIN_MS <= instant_ms <= MAX_MS:
        raise InvalidSchedule(f"{value!r} is not between the years 1 and 9999 in UTC")
    return instant_ms


def _parse_period(period: Duration | None, anchor_ms: int) -> tuple[Period | None, int | None]:
    """Grid and total of fires. A period of zero length, or a lone ``R5``, is no period: it fires once."""
    if _absent(period):
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
    if _cron_after(cron, 0) is None:
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


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _ceil_ms(ns: int) -> int:
    """Rounded up: nothing fires early, and no period shrinks to nothing."""
    return -(-ns // 1_000_000)


def format_instant(instant_ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds only when there are any."""
    spec = "milliseconds" if instant_ms % 1000 else "seconds"
    return _from_ms(instant_ms).replace(tzinfo=None).isoformat(timespec=spec) + "Z"


def format_period(schedule: Schedule) -> str:
    """The period as Dapr shows it when a reminder is read back: ``@every 1m30s``, cron, ISO 8601 where months count; ""
    when there is none. `make_schedule` reads it back as the same period."""
    period = schedule.period
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


# -- durable form ------------------------------------------------------------------------------------------------------


def encode_schedule(schedule: Schedule) -> dict[str, Any]:
    """A plain, compact, JSON-able dict; what has its default value is left out. Part of the durable format."""
    encoded = _encode_period(schedule.period)
    if schedule.repeats_left is not None:
        encoded["n"] = schedule.repeats_left
    if schedule.expires_ms is not None:
        encoded["x"] = schedule.expires_ms
    if schedule.misfire != "latest":
        encoded["m"] = schedule.misfire
    return encoded


def decode_schedule(encoded: Mapping[str, Any]) -> Schedule:
    """The schedule that `encode_schedule` wrote. Raises `InvalidSchedule` when the dict has another shape."""
    schedule = Schedule(_decode_period(encoded), encoded.get("n"), encoded.get("x"), encoded.get("m", "latest"))
    if encode_schedule(schedule) != dict(encoded):
        raise InvalidSchedule(f"not a stored schedule: {dict(encoded)!r}")
    return schedule


def _encode_period(period: Period | None) -> dict[str, Any]:
    if period is None:
        return {}
    if isinstance(period, Every):
        return {"e": period.ms}
    if isinstance(period, Calendar):
        return {"c": [period.months, period.ms, period.anchor_ms]}
    if isinstance(period, Cron):
        return {"k": [period.expression, period.timezone] if period.timezone else [period.expression]}
    assert_never(period)


def _decode_period(encoded: Mapping[str, Any]) -> Period | None:
    try:
        if "e" in encoded:
            return Every(encoded["e"])
        if "c" in encoded:
            return Calendar(*encoded["c"])
        if "k" in encoded:
            return Cron(*encoded["k"])
    except TypeError as error:
        raise InvalidSchedule(f"not a stored schedule: {dict(encoded)!r}") from error
    return None
