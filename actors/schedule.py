"""When a reminder or timer fires: a `Schedule` says which tick comes next. Reads no clock.

A schedule is a *grid* of instants, its ticks. The tick after the one due at `d` is computed from `d` (calendar
periods: from the anchor the schedule began at), never from the moment it happened to fire, so nothing drifts. Whoever
fires does:

    wanted = resolve_misfire(schedule, due_ms, now_ms)   # before firing: == due_ms fire, later: move there, None: ended
    following = next_due_ms(schedule, due_ms, now_ms)    # after firing: commit it together with the turn; None: ended
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, assert_never, get_args

from actors.errors import InvalidSchedule
from actors.period import Calendar, Cron, Every, Period, tick_after
from actors.timetext import Duration, Instant, format_instant, is_absent, parse_due_ms, parse_period

if TYPE_CHECKING:
    from collections.abc import Mapping

Misfire = Literal["all", "latest", "skip"]
"""What to do with ticks that were missed, because the host was down or the actor busy: `all` fires every one, one after
the other; `latest` fires one for all of them, then goes on with the future; `skip`: a tick that is late by a whole
period or more does not fire, nor do the other missed ones; one that is less late fires."""


class Schedule(NamedTuple):
    """What is durable of a schedule, apart from when its pending tick is due."""

    # None: one tick.
    period: Period | None = None
    # How many more times it fires, the pending tick included; None: without end. Counts what fires, not what is missed.
    repeats_left: int | None = None
    # Ticks due at or after this instant do not exist. A tick due before it may fire after it.
    expires_ms: int | None = None
    misfire: Misfire = "latest"


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
    grid, total = parse_period(period, due_ms if due_ms is not None else now_ms)
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
    following = _next_tick(schedule, due_ms, due_ms if schedule.misfire == "all" else max(due_ms, now_ms))
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
    following = tick_after(schedule.period, due_ms, due_ms)
    if following is None or following > now_ms:  # late, but by less than a period; or the only tick there is
        return due_ms
    return _next_tick(schedule, due_ms, now_ms)


def _first_due(grid: Period | None, now_ms: int, immediate: bool) -> int:
    if immediate and not isinstance(grid, Cron):
        return now_ms
    first = tick_after(grid, now_ms, now_ms)
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
    if not is_absent(ttl):
        raise InvalidSchedule("a reminder that fires once cannot have a ttl: give a period as well, e.g. period='1h'")


def _agree_on_repeats(written: int | None, asked: int | None, *, has_period: bool) -> int | None:
    """`written`: what stood before the period (R5/…), `asked`: the parameter. `R5` alone means once, as in Dapr."""
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
    if asked is not None and asked > 1 and not has_period:
        raise InvalidSchedule(f"repeats={asked} needs a period, e.g. period='1h'; without one it fires once")
    return total if has_period else None


def _next_tick(schedule: Schedule, due_ms: int, after_ms: int) -> int | None:
    tick = tick_after(schedule.period, due_ms, after_ms)
    if tick is None or (schedule.expires_ms is not None and tick >= schedule.expires_ms):
        return None
    return tick


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
