"""What a benchmark is: a written question, the series that answer it, and what they must reach.

A benchmark's series are measured in turn, and that as often as asked for (`runs`), so all of them see the same machine
and a slow minute hits them alike. Their medians are compared. Numbers never gate: a missed target is told, nothing
more. A *wrong* result is another matter: a measurement that does not add up raises `WrongResult`.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchmarks.processes import WrongResult, apart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from benchmarks.httpload import Loader


class NotInstalled(Exception):
    """A peer, or a part of the application, is missing here; the text says what."""


def check(what: str, found: object, expected: object) -> None:
    """Raises `WrongResult`."""
    if found != expected:
        raise WrongResult(f"{what}: {found!r}, expected {expected!r}")


def check_between(what: str, found: int, least: int, most: int) -> None:
    """Raises `WrongResult`."""
    if not least <= found <= most:
        raise WrongResult(f"{what}: {found:,}, expected {least:,} to {most:,}")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a measurement needs to know. `directory` is empty, and its alone. `quick`: tiny sizes, to see that it
    runs."""

    directory: Path
    loader: Loader
    quick: bool

    @property
    def seconds(self) -> float:
        """How long a load is kept up."""
        return 0.3 if self.quick else 5.0

    @property
    def warm_up_s(self) -> float:
        return 0.1 if self.quick else 1.0

    @property
    def peer_warm_up_s(self) -> float:
        """Servers of peers take longer to get into their stride: Restate does a third of its later rate in the first
        seconds, and DBOS and Temporal do too little in one to tell anything."""
        return 1.0 if self.quick else 4.0

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def apart(self, function: Callable[..., Mapping[str, Any]], **arguments: Any) -> Mapping[str, Any]:
        """`processes.apart`; a quick look spares itself the interpreter."""
        return function(**arguments) if self.quick else apart(function, **arguments)


class Sample(NamedTuple):
    """One measurement, in the unit of its benchmark. `detail`: what else is worth telling, as short text."""

    value: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One of the things a benchmark measures. `peer`: another project's, left out with ``--no-peers``."""

    name: str
    measure: Callable[[Setting], Sample]
    peer: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """`series` must reach `factor` times the median of `against`; without `against`, `factor` itself."""

    series: str
    relation: Literal[">=", "<="]
    factor: float
    against: str = ""

    def text(self, unit: str) -> str:
        goal = f"{self.factor:g} x {self.against}" if self.against else f"{self.factor:g} {unit}"
        return f"{self.relation} {goal}"


@dataclass(frozen=True, slots=True)
class Benchmark:
    name: str
    question: str
    unit: str
    series: tuple[Series, ...]
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """All samples of a series; none with `missing`, the reason."""

    name: str
    samples: tuple[Sample, ...]
    missing: str = ""

    @property
    def median(self) -> float:
        return statistics.median(sample.value for sample in self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        values = [sample.value for sample in self.samples]
        return min(values), max(values)

    @property
    def detail(self) -> str:
        """Of the sample in the middle."""
        ordered = sorted(self.samples, key=lambda sample: sample.value)
        return ordered[len(ordered) // 2].detail if ordered else ""


class Verdict(NamedTuple):
    """A target beside what came of it. `ratio` is to what it is compared with; None: that was not measured."""

    target: Target
    ratio: float | None
    met: bool | None


@dataclass(frozen=True, slots=True)
class Outcome:
    benchmark: Benchmark
    measured: tuple[Measured, ...]

    def verdicts(self) -> list[Verdict]:
        medians = {m.name: m.median for m in self.measured if m.samples}
        return [_verdict(target, medians) for target in self.benchmark.targets]


def _verdict(target: Target, medians: dict[str, float]) -> Verdict:
    own = medians.get(target.series)
    base = medians.get(target.against) if target.against else 1.0
    if own is None or not base:
        return Verdict(target, None, None)
    ratio = own / base
    return Verdict(target, ratio, ratio >= target.factor if target.relation == ">=" else ratio <= target.factor)
