"""Grids of instants: fixed periods, calendar periods, cron. Which of its points comes next. Reads no clock.

Instants are milliseconds since 1970 in UTC. Every answer costs O(1) for fixed periods, O(log) for calendar ones, and
one search for cron, however many points lie between.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias, assert_never
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from actors.errors import InvalidSchedule

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
MIN_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MS
MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, where `datetime` ends. A tick beyond it never comes."""
_SHORTEST_MONTH_MS = 28 * 86_400_000


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


def tick_after(period: Period | None, due_ms: int, after_ms: int) -> int | None:
    """The first point later than `after_ms` (which is >= due_ms) of the grid that `due_ms` lies on."""
    if period is None:
        return None
    if isinstance(period, Every):
        tick = due_ms + ((after_ms - due_ms) // period.ms + 1) * period.ms
        return tick if tick <= MAX_MS else None
    if isinstance(period, Calendar):
        return _calendar_after(period, after_ms)
    if isinstance(period, Cron):
        return cron_after(period, after_ms)
    assert_never(period)


def _calendar_after(period: Calendar, after_ms: int) -> int | None:
    shortest_ms = period.months * _SHORTEST_MONTH_MS + period.ms
    beyond = max(0, after_ms - period.anchor_ms) // shortest_ms + 2  # this tick is surely later than after_ms
    n = bisect_right(range(beyond), after_ms, key=lambda n: _calendar_tick(period, n))
    tick = _calendar_tick(period, n)
    return tick if tick <= MAX_MS else None


def _calendar_tick(period: Calendar, n: int) -> int:
    """Strictly growing in n, and more than MAX_MS for every tick that the calendar cannot express."""
    return add_months(period.anchor_ms, n * period.months) + n * period.ms


def add_months(instant_ms: int, months: int) -> int:
    start = from_ms(instant_ms)
    year, month0 = divmod(start.year * 12 + start.month - 1 + months, 12)
    if year > 9999:
        return MAX_MS + 1 + months  # beyond the calendar: any growing number will do
    day = min(start.day, monthrange(year, month0 + 1)[1])
    return to_ms(start.replace(year=year, month=month0 + 1, day=day))


def cron_after(period: Cron, after_ms: int) -> int | None:
    try:
        zone = ZoneInfo(period.timezone) if period.timezone else UTC
    except (KeyError, OSError, ValueError) as error:  # not in the database, a directory of it, not a name at all
        raise InvalidSchedule(
            f"unknown time zone {period.timezone!r}: use an IANA name, e.g. CRON_TZ=Europe/Berlin"
        ) from error
    try:
        found = next(CronSim(period.expression, from_ms(after_ms).astimezone(zone)))
    except CronSimError as error:
        raise InvalidSchedule(
            f"cron expression {period.expression!r}: {error}; five fields 'minute hour day month weekday', "
            "e.g. '0 9 * * 1-5', or six with seconds first"
        ) from error
    except (StopIteration, OverflowError):  # no point within 50 years, or beyond the year 9999
        return None
    return to_ms(found)


def from_ms(instant_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=instant_ms)


def to_ms(instant: datetime) -> int:
    return (instant - _EPOCH) // _MS
