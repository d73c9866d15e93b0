"""Run benchmarks: every series in turn, as often as asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.model import Measured, NotInstalled, Outcome, Sample, Series, Setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.httpload import Loader
    from benchmarks.model import Benchmark

    Tell = Callable[[str], None]


def run(benchmark: Benchmark, loader: Loader, *, runs: int, quick: bool, peers: bool, tell: Tell) -> Outcome:
    """Raises `WrongResult`."""
    samples: dict[str, list[Sample]] = {series.name: [] for series in benchmark.series}
    missing = {series.name: "left out" for series in benchmark.series if series.peer and not peers}
    for number in range(1, runs + 1):
        for series in benchmark.series:
            if series.name in missing:
                continue
            tell(f"{benchmark.name}: {series.name}, run {number} of {runs}")
            try:
                samples[series.name].append(_measure(series, loader, quick))
            except NotInstalled as reason:
                missing[series.name] = str(reason)
    measured = [Measured(name, tuple(taken), missing.get(name, "")) for name, taken in samples.items()]
    return Outcome(benchmark, tuple(measured))


def _measure(series: Series, loader: Loader, quick: bool) -> Sample:
    with tempfile.TemporaryDirectory(prefix="mecha-bench-") as directory:
        return series.measure(Setting(Path(directory), loader, quick))
