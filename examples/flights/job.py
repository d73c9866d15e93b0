"""All departures from New York in 2013, entered into durable actors and compared with the file.

Stopped at any moment, in whatever way, it goes on when it is run again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from actors import ActorFailed
from examples.flights import app
from examples.flights.app import Feed
from examples.flights.check import Comparison, compare, settle
from examples.flights.data import ALL_ROWS, DataMissing, Totals, count, departures, fingerprint
from examples.flights.feed import FEED_ID, Feeder
from runtime_api import Runtime
from statestores.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN_DIFFERENCES = 20
_LONGEST_PATIENCE_S = 3600
_REFRESH_S = 0.1

console = Console()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.flights", description=__doc__)
    parser.add_argument("--rows", type=int, default=ALL_ROWS, metavar="N", help="only the first N rows of the file")
    parser.add_argument("--store", default="sqlite:///flights.db", metavar="URL", help="default: %(default)s")
    parser.add_argument(
        "--patience", type=float, default=2.0, metavar="S", help="seconds an overdue flight is waited for; default: 2"
    )
    parsed = parser.parse_args()
    if not 0 < parsed.rows <= ALL_ROWS:
        parser.error(f"--rows: between 1 and {ALL_ROWS}")
    if not 0 <= parsed.patience <= _LONGEST_PATIENCE_S:
        parser.error(f"--patience: between 0 and {_LONGEST_PATIENCE_S} seconds")
    return parsed


async def run(store: str, rows: int, patience_s: float) -> bool:
    """Enter the rows that are missing, and compare. True: all equal."""
    async with Runtime(app, store=store) as runtime:
        asked = rows
        entered, rows = await runtime.actor(Feed, FEED_ID).begin(fingerprint(), asked)
        console.print(_greeting(store, entered, rows, asked))
        if entered < rows:
            await _feed(runtime, entered, rows, patience_s)
        with console.status("waiting for the last messages and workflows"):
            totals = count(departures(last=rows))
            await settle(runtime, totals)
        with console.status("comparing with the file"):
            result = await compare(runtime, totals)
    _report(rows, totals, result)
    return not result.differences


def _greeting(store: str, entered: int, rows: int, asked: int) -> str:
    if entered >= rows:
        return f"{store} is complete, {rows:,} rows are in: comparing again"
    if rows > asked:
        return f"{store} has some of {rows:,} rows, of a run that was stopped: going on to all of them"
    if entered:
        return f"{store} has {entered:,} rows already: going on to {rows:,}"
    return f"{rows:,} rows into {store}"


async def _feed(runtime: Runtime, entered: int, rows: int, patience_s: float) -> None:
    done, begin = 0, time.monotonic()

    def on_entered() -> None:
        nonlocal done
        done += 1

    feeder = Feeder(runtime, patience_s, on_entered)
    missing = sum(1 for _ in departures(entered + 1, rows))
    columns = (
        TextColumn("departures"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        shown = bar.add_task("departures", total=missing, rate=0.0)
        showing = asyncio.create_task(_show(bar, shown, lambda: (done, done / (time.monotonic() - begin))))
        try:
            await feeder.run(departures(entered + 1, rows), rows)
        finally:
            showing.cancel()
            elapsed_s = time.monotonic() - begin
            bar.update(shown, completed=done, rate=done / elapsed_s, refresh=True)
    console.print(
        f"{done:,} departures in {elapsed_s:,.1f} s: {done / elapsed_s:,.0f}/s, "
        f"up to {feeder.most_in_flight} calls in flight"
    )


async def _show(bar: Progress, shown: TaskID, state: Callable[[], tuple[int, float]]) -> None:
    while True:
        completed, rate = state()
        bar.update(shown, completed=completed, rate=rate, refresh=True)
        await asyncio.sleep(_REFRESH_S)


def _report(rows: int, totals: Totals, result: Comparison) -> None:
    table = Table("", "file", "runtime", title=f"{totals.departures:,} departures in {rows:,} rows")
    table.add_row("aircraft", f"{len(totals.aircraft):,}", f"{result.aircraft:,}")
    table.add_row("airports", f"{len(totals.airports):,}", f"{result.airports:,}")
    table.add_row("overdue, a workflow each", f"{len(totals.overdue):,}", f"{result.workflows:,}")
    in_time = sum(totals.overdue.values())
    table.add_row("  in time, closed", f"{in_time:,}", f"{_closed(result):,}")
    table.add_row("  not in time, escalated", f"{len(totals.overdue) - in_time:,}", f"{result.outcomes['escalated']:,}")
    console.print(table)
    for line in result.differences[:_SHOWN_DIFFERENCES]:
        console.print(f"[red]differs[/red] {line}", highlight=False)
    if result.differences:
        console.print(f"[red]{len(result.differences):,} differences[/red]")
    else:
        console.print("[green]exact: every total of every aircraft, airport and workflow equals the file's[/green]")


def _closed(result: Comparison) -> int:
    return sum(times for outcome, times in result.outcomes.items() if outcome.startswith("closed"))


def main() -> int:
    """The exit code: 0 when all is equal, 1 when not, 2 when it could not be found out."""
    given = arguments()
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    try:
        return 0 if asyncio.run(run(given.store, given.rows, given.patience)) else 1
    except (DataMissing, StoreError, ActorFailed) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
