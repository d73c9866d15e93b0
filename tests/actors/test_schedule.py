"""Schedules: what can be written, what is refused and why, when ticks fall, and what becomes of missed ones."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import InvalidSchedule
from actors.period import MAX_MS, Calendar, Cron, Every
from actors.schedule import (
    Misfire,
    Schedule,
    decode_schedule,
    encode_schedule,
    make_schedule,
    next_due_ms,
    resolve_misfire,
)
from actors.timetext import format_instant, format_period, parse_due_ms, parse_duration_s

S = 1000
DAY = 86_400 * S
NOW = 1_700_000_000_000

spans_ms = st.integers(1, 400 * DAY)
instants_ms = st.integers(0, 4_000_000_000_000)
misfires = st.sampled_from(get_args(Misfire))
crons = st.sampled_from(
    [
        "* * * * *",
        "*/7 3 * * *",
        "0 9 * * 1-5",
        "0 0 29 2 *",
        "30 2 * * *",
        "*/10 * * * * *",
        "0 0 L * *",
        "0 0 * * 5#2",
    ]
)
zones = st.sampled_from(["", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
periods = st.one_of(
    st.builds(Every, spans_ms),
    st.builds(Calendar, st.integers(1, 30), st.integers(0, 40).map(lambda days: days * DAY), instants_ms),
    st.builds(Cron, crons, zones),
)
schedules = st.builds(Schedule, st.none() | periods, st.none() | st.integers(1, 9), st.none() | instants_ms, misfires)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def reminder(now_ms: int = NOW, **given: Any) -> tuple[int, Schedule]:
    return make_schedule(
        given.get("due"),
        given.get("period"),
        given.get("ttl"),
        given.get("repeats"),
        given.get("misfire", "latest"),
        now_ms,
        first_fire_immediate=False,
    )


def timer(now_ms: int = NOW, **given: Any) -> tuple[int, Schedule]:
    return make_schedule(
        given.get("due"),
        given.get("period"),
        given.get("ttl"),
        given.get("repeats"),
        given.get("misfire", "latest"),
        now_ms,
        first_fire_immediate=True,
    )


def punctual_ticks(made: tuple[int, Schedule], limit: int = 20) -> list[int]:
    """The ticks of a host that is never late."""
    pending: tuple[int, Schedule] | None = made
    ticks: list[int] = []
    while pending is not None and len(ticks) < limit:
        due_ms, schedule = pending
        assert resolve_misfire(schedule, due_ms, due_ms) == due_ms
        ticks.append(due_ms)
        pending = next_due_ms(schedule, due_ms, due_ms)
    return ticks


def ticks_after_downtime(made: tuple[int, Schedule], up_ms: int, until_ms: int) -> list[tuple[int, int]]:
    """(due, fired at) of a host that comes up at `up_ms` and fires at once from then on, up to `until_ms`."""
    pending: tuple[int, Schedule] | None = made
    fired = []
    while pending is not None:
        due_ms, schedule = pending
        now_ms = max(up_ms, due_ms)
        if now_ms > until_ms:
            break
        wanted = resolve_misfire(schedule, due_ms, now_ms)
        if wanted is None:
            break
        if wanted != due_ms:
            assert wanted > now_ms
            pending = wanted, schedule
            continue
        fired.append((due_ms, now_ms))
        pending = next_due_ms(schedule, due_ms, now_ms)
    return fired


# -- durations and instants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("250ms", 0.25),
        ("7us", 7e-6),
        ("7\u00b5s", 7e-6),
        ("7\u03bcs", 7e-6),
        ("9ns", 9e-9),
        ("0h0m9s0ms0\u03bcs", 9.0),
        ("+2m", 120.0),
        ("0", 0.0),
        ("0s", 0.0),
        ("PT1H30M", 5400.0),
        ("pt1h30m", 5400.0),
        ("P2W", 14 * 86400.0),
        ("P1DT12H", 1.5 * 86400),
        ("p1d", 86400.0),
        (" 10m ", 600.0),
        (2, 2.0),
        (0.25, 0.25),
        (0.1, 0.1),
        (timedelta(minutes=1, microseconds=5), 60.000005),
    ],
)
def test_durations_in_every_notation(text: str | float | timedelta, seconds: float) -> None:
    """Go durations (both micro signs, decimals), ISO durations of either case, numbers and timedeltas mean seconds."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("-1s", "negative"),
        (-1, "negative"),
        (timedelta(seconds=-1), "negative"),
        ("5", "Go duration"),
        ("", "Go duration"),
        ("1h 30m", "Go duration"),
        ("1H", "Go duration"),
        ("PT1.5S", "'PT1.5S' has a fraction, .* whole numbers only: write '1.5s' or '200ms'"),
        ("P0,5D", "has a fraction, .* whole numbers only"),
        ("P1DT.2S", "has a fraction"),
        ("P1.5X", "no duration"),
        ("P", "ISO 8601"),
        ("PT", "ISO 8601"),
        ("P1DT", "ISO 8601"),
        ("P1H", "ISO 8601"),
        ("-PT1S", "ISO 8601"),
        ("P1M", "no fixed length"),
        ("P1Y", "no fixed length"),
        ("R5/PT1S", "no duration"),
        ("soon", "no duration"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (10**400, "finite"),
        (True, "no duration"),
        (b"1s", "a bytes is no duration"),
        (date(2030, 1, 1), "a date is no duration"),
        ("9" * 300 + "s", "too long"),
        ("\u0661s", "no duration"),
    ],
)
def test_what_is_no_duration_is_refused_with_a_reason(value: Any, complaint: str) -> None:
    """A duration that cannot be meant says what is wrong with it and what would be right."""
    with pytest.raises(InvalidSchedule, match=complaint):
        parse_duration_s(value)


@settings(deadline=None)  # a busy machine is no defect
@given(st.text(alphabet="PTRYMWDHSZ0123456789.+-:/@ hmsuµnμcrone*", max_size=30))
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Whatever text comes in, it is a schedule or an InvalidSchedule, never another error."""
    for parse in (lambda: parse_duration_s(text), lambda: parse_due_ms(text, NOW), lambda: timer(period=text)):
        with suppress(InvalidSchedule):
            parse()


@settings(deadline=None)  # a busy machine is no defect
@given(st.integers(0, 10**9), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_go_durations_add_up(hours: int, minutes: int, seconds: int, millis: int) -> None:
    """A Go duration is the sum of its parts."""
    text = f"{hours}h{minutes}m{seconds}s{millis}ms"
    assert parse_duration_s(text) == ((hours * 60 + minutes) * 60 + seconds) + millis / 1000


@pytest.mark.parametrize(
    ("value", "instant"),
    [
        ("2030-01-31T09:00:00Z", "2030-01-31T09:00:00+00:00"),
        ("2030-01-31T09:00:00.250Z", "2030-01-31T09:00:00.250+00:00"),
        ("2030-01-31T09:00:00.250999999Z", "2030-01-31T09:00:00.250+00:00"),
        ("2030-01-31t09:00:00z", "2030-01-31T09:00:00+00:00"),
        ("2030-01-31T09:00:00+02:00", "2030-01-31T07:00:00+00:00"),
        (datetime(2030, 1, 31, 9), "2030-01-31T09:00:00+00:00"),
        (datetime(2030, 1, 31, 9, tzinfo=timezone(timedelta(hours=1))), "2030-01-31T08:00:00+00:00"),
    ],
)
def test_instants_are_absolute(value: str | datetime, instant: str) -> None:
    """RFC 3339 texts and datetimes (naive: UTC) do not depend on now."""
    assert parse_due_ms(value, NOW) == parse_due_ms(value, 0) == ms(instant)


def test_durations_are_relative_to_now() -> None:
    """A due time as a duration counts from now, months by the calendar, and is never early."""
    assert (
        parse_due_ms("1.5s", NOW) == parse_due_ms(1.5, NOW) == parse_due_ms(timedelta(seconds=1.5), NOW) == NOW + 1500
    )
    assert parse_due_ms("100us", NOW) == NOW + 1
    assert parse_due_ms("P1M", ms("2023-01-31T10:00:00+00:00")) == ms("2023-02-28T10:00:00+00:00")
    assert parse_due_ms(None, NOW) is None
    assert parse_due_ms("", NOW) is None


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("2030-02-30T00:00:00Z", "no instant"),
        ("2030-01-31T09:00:60Z", "no instant"),
        ("2030-01-31T09:00:00", "no duration"),
        ("2030-01-31", "no duration"),
        ("0 9 * * *", "no duration"),
        ("P9999Y", "after the year 9999"),
        ("99999999999999h", "after the year 9999"),
    ],
)
def test_what_is_no_due_time_is_refused(value: str, complaint: str) -> None:
    """Instants need a zone and must exist; cron is no due time."""
    with pytest.raises(InvalidSchedule, match=complaint):
        parse_due_ms(value, NOW)


# -- the combination table ---------------------------------------------------------------------------------------------


def test_due_and_period_fire_at_due_then_every_period() -> None:
    """With both, timers and reminders fire at the due time and then every period."""
    for make in (timer, reminder):
        assert punctual_ticks(make(due="2s", period="PT3S"), 3) == [NOW + 2 * S, NOW + 5 * S, NOW + 8 * S]


def test_due_only_fires_once() -> None:
    """With a due time only, timers and reminders fire once; a period of zero length is no period."""
    for make in (timer, reminder):
        assert punctual_ticks(make(due="2s")) == [NOW + 2 * S]
        assert punctual_ticks(make(due="0h0m0s0ms0\u03bcs", period="0h0m0s0ms0\u03bcs")) == [NOW]


def test_period_only() -> None:
    """With a period only a timer fires at once, a reminder one period after its registration."""
    assert punctual_ticks(timer(period="2s"), 3) == [NOW, NOW + 2 * S, NOW + 4 * S]
    assert punctual_ticks(reminder(period="2s"), 3) == [NOW + 2 * S, NOW + 4 * S, NOW + 6 * S]


def test_neither_due_nor_period() -> None:
    """With neither a timer fires once, at once; a reminder is refused."""
    assert punctual_ticks(timer()) == punctual_ticks(timer(due="", period="")) == [NOW]
    with pytest.raises(InvalidSchedule, match="needs a due time or a period"):
        reminder()
    with pytest.raises(InvalidSchedule, match="needs a due time or a period"):
        reminder(period="R5")


def test_ttl_counts_from_the_first_tick() -> None:
    """A ttl ends a schedule: as a duration counted from the first tick, as an instant by itself."""
    assert punctual_ticks(timer(due="2s", period="2s", ttl="3s")) == [NOW + 2 * S, NOW + 4 * S]
    assert punctual_ticks(reminder(due="1s", period="2s", ttl="1s")) == [NOW + S]
    assert punctual_ticks(reminder(due="1s", period="2s", ttl="2s")) == [NOW + S]
    ends = datetime.fromtimestamp((NOW + 6 * S) / 1000, UTC)
    assert punctual_ticks(reminder(due="1s", period="2s", ttl=ends)) == [NOW + S, NOW + 3 * S, NOW + 5 * S]
    assert punctual_ticks(timer(due="1s", ttl="5s")) == [NOW + S]


def test_a_ttl_that_leaves_nothing_is_refused() -> None:
    """A ttl that has passed, or ends before the first tick, or belongs to a reminder that fires once, is an error."""
    with pytest.raises(InvalidSchedule, match="already passed"):
        timer(due="1s", period="1s", ttl="2001-01-01T00:00:00Z")
    with pytest.raises(InvalidSchedule, match="already passed"):
        reminder(due="2001-01-01T00:00:00Z", period="1s", ttl="1h")
    with pytest.raises(InvalidSchedule, match="nothing would fire"):
        timer(due="1h", period="1s", ttl=format_instant(NOW + S))
    with pytest.raises(InvalidSchedule, match="cannot have a ttl"):
        reminder(due="1s", ttl="5s")


def test_repeats_count_fires() -> None:
    """`R5/` and repeats=5 both fire exactly five times; `R5` alone is no period and fires once."""
    for made in (timer(period="R5/PT1S"), timer(period="1s", repeats=5), timer(period="r5/1s", repeats=5)):
        assert punctual_ticks(made) == [NOW + n * S for n in range(5)]
    assert len(punctual_ticks(reminder(period="R3/0 9 * * *"))) == 3
    assert punctual_ticks(timer(period="R5")) == punctual_ticks(timer(period="R5/")) == [NOW]
    assert punctual_ticks(timer(period="R1/PT1S")) == [NOW]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"period": "R0/PT1S"}, "zero repetitions"),
        ({"period": "R0"}, "zero repetitions"),
        ({"period": "1s", "repeats": 0}, "zero repetitions"),
        ({"period": "1s", "repeats": -1}, "zero repetitions"),
        ({"period": "1s", "repeats": 2.5}, "whole number"),
        ({"period": "1s", "repeats": True}, "whole number"),
        ({"period": "R5/1s", "repeats": 4}, "contradicts"),
        ({"due": "1s", "repeats": 3}, "needs a period"),
        ({"period": "R" + "9" * 40 + "/1s"}, "too many"),
        ({"period": "R/PT1S"}, "no duration"),
        ({"period": "R-1/PT1S"}, "no duration"),
        ({"period": "R5/soon"}, "no duration"),
        ({"period": "@every"}, "no duration"),
        ({"period": "R5/PT0.2S"}, "'PT0.2S' has a fraction"),
        ({"period": "@fortnightly"}, "no duration"),
        ({"period": "-1s"}, "negative"),
        ({"period": "61 * * * *"}, "minute"),
        ({"period": "0 9 * *"}, "five fields"),
        ({"period": "0 0 30 2 *"}, "day-of-month"),
        ({"period": "CRON_TZ=Mars/Olympus 0 9 * * *"}, "unknown time zone"),
        ({"period": "CRON_TZ=../../etc/passwd 0 9 * * *"}, "unknown time zone"),
        ({"period": "TZ=Europe 0 9 * * *"}, "unknown time zone"),
        ({"period": "P20000Y"}, "longer than the calendar"),
        ({"period": 1e15}, "longer than the calendar"),
        ({"period": "* " * 200}, "too long"),
        ({"period": "1s", "misfire": "never"}, "misfire"),
    ],
)
def test_what_is_no_schedule_is_refused_with_a_reason(given: dict[str, Any], complaint: str) -> None:
    """A schedule that cannot be meant says what is wrong with it, for timers and reminders alike."""
    for make in (timer, reminder):
        with pytest.raises(InvalidSchedule, match=complaint):
            make(**given)


# -- the grid ----------------------------------------------------------------------------------------------------------


def test_months_keep_their_day() -> None:
    """A monthly schedule of the 31st fires on the last day of short months and on the 31st again afterwards."""
    start = ms("2023-12-31T10:00:00+00:00")
    made = reminder(start, period="P1M")
    assert [format_instant(tick)[:10] for tick in punctual_ticks(made, 4)] == [
        "2024-01-31",
        "2024-02-29",
        "2024-03-31",
        "2024-04-30",
    ]
    assert [format_instant(tick) for tick in punctual_ticks(timer(start, due="P1D", period="P1Y2M1DT1H"), 3)] == [
        "2024-01-01T10:00:00Z",
        "2025-03-02T11:00:00Z",
        "2026-05-03T12:00:00Z",
    ]


def test_days_are_accepted_in_reminder_periods() -> None:
    """Days and weeks are fixed lengths, in periods of reminders too."""
    assert reminder(period="P1W")[1].period == Every(7 * DAY)
    assert reminder(period="p1dt2h")[1].period == Every(DAY + 2 * 3600 * S)


def test_the_calendar_ends() -> None:
    """A tick after the year 9999 does not come, instead of an error."""
    late = ms("9999-06-01T00:00:00+00:00")
    for period in ("P1Y", "P400D", "0 0 1 1 *"):
        due_ms, schedule = timer(late, due="1s", period=period)
        assert next_due_ms(schedule, due_ms, due_ms) is None
        with pytest.raises(InvalidSchedule, match="after the year 9999"):
            reminder(late, period=period)


def test_cron_in_utc_and_in_a_time_zone() -> None:
    """Cron fires at the wall time of its zone, UTC by default; it starts after now in timers and reminders alike."""
    friday = ms("2026-01-02T12:00:00+00:00")
    for make in (timer, reminder):
        assert [format_instant(tick) for tick in punctual_ticks(make(friday, period="0 9 * * 1-5"), 2)] == [
            "2026-01-05T09:00:00Z",
            "2026-01-06T09:00:00Z",
        ]
    berlin = reminder(friday, period="CRON_TZ=Europe/Berlin 0 9 * * *")
    assert format_instant(berlin[0]) == "2026-01-03T08:00:00Z"
    assert [format_instant(tick) for tick in punctual_ticks(reminder(friday, period="*/20 * * * * *"), 2)] == [
        "2026-01-02T12:00:20Z",
        "2026-01-02T12:00:40Z",
    ]
    assert format_instant(reminder(friday, period="@daily")[0]) == "2026-01-03T00:00:00Z"
    assert [format_instant(tick) for tick in punctual_ticks(reminder(friday, due="1s", period="@hourly"), 2)] == [
        "2026-01-02T12:00:01Z",
        "2026-01-02T13:00:00Z",
    ]


def test_cron_when_the_clocks_change() -> None:
    """A daily local time fires once a day when the clocks change: after the gap, not twice in the overlap."""
    spring = reminder(ms("2026-03-28T12:00:00+00:00"), period="CRON_TZ=Europe/Berlin 30 2 * * *")
    assert [format_instant(tick) for tick in punctual_ticks(spring, 2)] == [
        "2026-03-29T01:00:00Z",
        "2026-03-30T00:30:00Z",
    ]
    autumn = reminder(ms("2026-10-24T12:00:00+00:00"), period="CRON_TZ=Europe/Berlin 30 2 * * *")
    assert [format_instant(tick) for tick in punctual_ticks(autumn, 2)] == [
        "2026-10-25T00:30:00Z",
        "2026-10-26T01:30:00Z",
    ]


@settings(deadline=None)  # a busy machine is no defect
@given(crons, zones, instants_ms)
def test_cron_goes_forward(expression: str, zone: str, after_ms: int) -> None:
    """The next cron tick is later than the last one, on a whole second, and there is none between the two."""
    schedule = Schedule(Cron(expression, zone), misfire="all")
    first = next_due_ms(schedule, after_ms, after_ms)
    assert first is not None
    assert first[0] > after_ms
    assert first[0] % S == 0
    between = next_due_ms(schedule, (after_ms + first[0]) // 2, 0)
    assert between == first
    if expression == "30 2 * * *":
        local = datetime.fromtimestamp(first[0] / 1000, ZoneInfo(zone or "UTC"))
        assert (local.hour, local.minute) == (2, 30) or local.utcoffset() != (local - timedelta(hours=2)).utcoffset()


@settings(deadline=None)  # a busy machine is no defect
@given(st.integers(1, 30), st.integers(0, 40), instants_ms, st.integers(0, 200))
def test_calendar_ticks_are_the_anchor_plus_n_periods(months: int, days: int, anchor_ms: int, n: int) -> None:
    """Stepping tick by tick and jumping there at once give the same grid; no tick drifts from its anchor."""
    schedule = Schedule(Calendar(months, days * DAY, anchor_ms), misfire="all")
    due_ms = anchor_ms
    for _ in range(n):
        step = next_due_ms(schedule, due_ms, due_ms)
        assert step is not None
        due_ms = step[0]
    anchor, tick = (datetime.fromtimestamp(t / 1000, UTC) for t in (anchor_ms, due_ms - n * days * DAY))
    assert (tick.year - anchor.year) * 12 + tick.month - anchor.month == n * months
    assert tick.day == anchor.day or tick.day < anchor.day <= 31
    assert (tick.hour, tick.minute, tick.second) == (anchor.hour, anchor.minute, anchor.second)
    jump = next_due_ms(schedule._replace(misfire="latest"), anchor_ms, due_ms - 1)
    assert n == 0 or (jump is not None and jump[0] == due_ms)


@settings(deadline=None)  # a busy machine is no defect
@given(schedules, instants_ms, st.integers(0, 10 * 365 * DAY))
def test_the_next_tick_is_later_and_in_bounds(schedule: Schedule, due_ms: int, late_ms: int) -> None:
    """After a tick comes a later one, before the schedule expires, with one repeat less; or none."""
    now_ms = due_ms + late_ms
    following = next_due_ms(schedule, due_ms, now_ms)
    if following is None:
        return
    tick, left = following
    assert due_ms < tick <= MAX_MS
    assert schedule.misfire == "all" or tick > now_ms
    assert schedule.expires_ms is None or tick < schedule.expires_ms
    if schedule.repeats_left is not None:
        assert left.repeats_left == schedule.repeats_left - 1
        assert left.repeats_left >= 1
    assert left._replace(repeats_left=None) == schedule._replace(repeats_left=None)


@settings(deadline=None)  # a busy machine is no defect
@given(spans_ms, instants_ms, st.integers(0, 10 * 365 * DAY), misfires)
def test_fixed_periods_never_drift(period_ms: int, due_ms: int, late_ms: int, misfire: Misfire) -> None:
    """However late a tick fires, the next ones lie a whole number of periods after it was due."""
    following = next_due_ms(Schedule(Every(period_ms), misfire=misfire), due_ms, due_ms + late_ms)
    assert following is not None
    assert (following[0] - due_ms) % period_ms == 0
    if misfire != "all":
        assert following[0] - period_ms <= due_ms + late_ms < following[0]


# -- missed ticks ------------------------------------------------------------------------------------------------------


def test_misfire_all_fires_every_missed_tick() -> None:
    """`all`: after a downtime every missed tick fires, in order, then the grid goes on."""
    fired = ticks_after_downtime(reminder(0, period="10s", misfire="all"), up_ms=35 * S, until_ms=50 * S)
    assert fired == [(10 * S, 35 * S), (20 * S, 35 * S), (30 * S, 35 * S), (40 * S, 40 * S), (50 * S, 50 * S)]


def test_misfire_latest_fires_one_for_all_missed_ticks() -> None:
    """`latest`: after a downtime one tick fires for all missed ones, then the grid goes on."""
    fired = ticks_after_downtime(reminder(0, period="10s"), up_ms=35 * S, until_ms=50 * S)
    assert fired == [(10 * S, 35 * S), (40 * S, 40 * S), (50 * S, 50 * S)]


def test_misfire_skip_drops_missed_ticks() -> None:
    """`skip`: ticks missed by a whole period are dropped, a tick that is less late fires."""
    made = reminder(0, period="10s", misfire="skip")
    assert ticks_after_downtime(made, up_ms=35 * S, until_ms=50 * S) == [(40 * S, 40 * S), (50 * S, 50 * S)]
    assert ticks_after_downtime(made, up_ms=20 * S, until_ms=30 * S) == [(30 * S, 30 * S)]
    assert ticks_after_downtime(made, up_ms=19 * S, until_ms=20 * S) == [(10 * S, 19 * S), (20 * S, 20 * S)]


def test_skipped_and_collapsed_ticks_are_not_repeats() -> None:
    """R3 fires three times even when ticks before were missed: the count is of fires."""
    for misfire in ("latest", "skip"):
        made = reminder(0, period="R3/PT10S", misfire=misfire)
        assert len(ticks_after_downtime(made, up_ms=95 * S, until_ms=10**6 * S)) == 3


def test_a_missed_single_tick_fires_whatever_the_policy() -> None:
    """A reminder without a period has no whole period to be late by: it fires, however late."""
    for misfire in get_args(Misfire):
        made = reminder(0, due="10s", misfire=misfire)
        assert ticks_after_downtime(made, up_ms=365 * DAY, until_ms=400 * DAY) == [(10 * S, 365 * DAY)]


def test_skip_ends_with_the_ttl() -> None:
    """`skip` after the ttl has ended fires nothing; `latest` still delivers the tick that was due before the end."""
    skip = reminder(0, period="10s", ttl="30s", misfire="skip")
    assert resolve_misfire(skip[1], skip[0], 100 * S) is None
    latest = reminder(0, period="10s", ttl="30s")
    assert ticks_after_downtime(latest, up_ms=100 * S, until_ms=10**6 * S) == [(10 * S, 100 * S)]


@settings(deadline=None)  # a busy machine is no defect
@given(periods, instants_ms, st.integers(0, 5 * 365 * DAY))
def test_skip_fires_less_than_a_period_late_and_only_then(period: Any, due_ms: int, late_ms: int) -> None:
    """`skip` fires the pending tick exactly when the one after it is not due yet, else waits for one after now."""
    if isinstance(period, Calendar):
        due_ms = period.anchor_ms
    schedule = Schedule(period, misfire="skip")
    now_ms = due_ms + late_ms
    following = next_due_ms(schedule, due_ms, due_ms)
    assert following is not None
    wanted = resolve_misfire(schedule, due_ms, now_ms)
    if following[0] > now_ms:
        assert wanted == due_ms
    else:
        assert wanted is not None
        assert wanted > now_ms


def test_a_year_of_missed_milliseconds_is_arithmetic() -> None:
    """A period of 1 ms after a year, and a monthly one after a thousand, cost no more than any other."""
    year_ms = 365 * DAY
    started = time.process_time()
    for misfire in get_args(Misfire):
        due_ms, schedule = timer(0, period="1ms", misfire=misfire)
        for _ in range(100):
            assert next_due_ms(schedule, due_ms, year_ms) is not None
            assert resolve_misfire(schedule, due_ms, year_ms) is not None
        due_ms, schedule = timer(0, period="P1M", misfire=misfire)
        assert next_due_ms(schedule, due_ms, 1000 * year_ms) is not None
        assert resolve_misfire(schedule, due_ms, 1000 * year_ms) is not None
    assert time.process_time() - started < 2


# -- texts and the durable form ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "text"),
    [
        ("1s", "@every 1s"),
        (90, "@every 1m30s"),
        ("PT1H", "@every 1h0m0s"),
        ("1.5s", "@every 1.5s"),
        ("250ms", "@every 250ms"),
        ("P1D", "@every 24h0m0s"),
        ("R5/1s", "@every 1s"),
        ("0 9 * * mon-fri", "0 9 * * MON-FRI"),
        ("@daily", "0 0 * * *"),
        ("CRON_TZ=Europe/Berlin  0 9 * * *", "CRON_TZ=Europe/Berlin 0 9 * * *"),
        ("P1Y2M3DT4S", "P1Y2M3DT4S"),
        ("P18M", "P1Y6M"),
    ],
)
def test_periods_are_shown_as_dapr_shows_them(period: str | float, text: str) -> None:
    """A fixed period reads back as `@every`, in Go's notation, and what is shown can be set again."""
    schedule = reminder(period=period)[1]
    assert format_period(schedule.period) == text
    assert reminder(period=text)[1].period == schedule.period


@settings(deadline=None)  # a busy machine is no defect
@given(periods)
def test_shown_periods_read_back(period: Any) -> None:
    """Every period survives being shown and set again."""
    anchor_ms = period.anchor_ms if isinstance(period, Calendar) else NOW
    text = format_period(period)
    assert timer(anchor_ms, due="0s", period=text)[1].period == period


def test_instants_are_shown_in_rfc3339() -> None:
    """Instants read back as RFC 3339 in UTC, and no period as nothing."""
    assert format_instant(NOW) == "2023-11-14T22:13:20Z"
    assert format_instant(NOW + 5) == "2023-11-14T22:13:20.005Z"
    assert parse_due_ms(format_instant(NOW + 5), 0) == NOW + 5
    assert format_period(None) == ""


@settings(deadline=None)  # a busy machine is no defect
@given(schedules)
def test_schedules_survive_their_durable_form(schedule: Schedule) -> None:
    """Through JSON and back a schedule is the same, of the same types."""
    back = decode_schedule(json.loads(json.dumps(encode_schedule(schedule))))
    assert back == schedule
    assert type(back.period) is type(schedule.period)


def test_the_durable_form_is_pinned() -> None:
    """What is written today is what a later version must read."""
    assert encode_schedule(Schedule()) == {}
    assert encode_schedule(Schedule(Every(1000), 5, NOW, "all")) == {"e": 1000, "n": 5, "x": NOW, "m": "all"}
    assert encode_schedule(Schedule(Calendar(1, 0, 7))) == {"c": [1, 0, 7]}
    assert encode_schedule(Schedule(Cron("0 9 * * *"), misfire="skip")) == {"k": ["0 9 * * *"], "m": "skip"}
    assert encode_schedule(Schedule(Cron("0 9 * * *", "Europe/Berlin"))) == {"k": ["0 9 * * *", "Europe/Berlin"]}


@pytest.mark.parametrize("encoded", [{"e": 1, "z": 2}, {"c": [1]}, {"e": 1, "k": ["x"]}, {"k": 5}, {"n": None}])
def test_other_dicts_are_no_schedules(encoded: dict[str, Any]) -> None:
    """What another program wrote is refused, not guessed at."""
    with pytest.raises(InvalidSchedule, match="not a stored schedule"):
        decode_schedule(encoded)
