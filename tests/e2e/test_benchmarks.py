"""The benchmarks run: each of them, tiny, as a user would start them."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]  # has no types
import pytest

from benchmarks import httpload, report
from benchmarks.catalogue import BENCHMARKS
from benchmarks.model import Benchmark, Measured, NotInstalled, Outcome, Sample, Series, Target
from benchmarks.processes import WrongResult
from benchmarks.run import run
from tests.placements import ON_RAY

if TYPE_CHECKING:
    from benchmarks.model import Setting

# One of them is of a cluster.
pytestmark = ON_RAY
ROOT = Path(__file__).parents[2]
# Of the clusters, which take long to start, one stands for all: the others are made and measured in the same way.
NAMES = [name for name in BENCHMARKS if not name.startswith("cluster-") or name == "cluster-hops"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one quick run of everything wrote."""
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--runs", "1", "--no-peers", "--load", "own"]
    only = ["--only", ",".join(NAMES)]
    done = subprocess.run([*command, *only, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    written: dict[str, Any] = json.loads(file.read_text())
    return written


@pytest.mark.parametrize("name", NAMES)
def test_answers_its_question(results: dict[str, Any], name: str) -> None:
    """Every benchmark measures each of its series that is ours, and its own checks of the results hold."""
    found = next(benchmark for benchmark in results["benchmarks"] if benchmark["name"] == name)
    ours = {series.name for series in BENCHMARKS[name].series if not series.peer}
    assert {s["name"] for s in found["series"] if "missing" not in s} == ours
    # A few activations weigh less than what the interpreter happens to take or give back meanwhile.
    least = -math.inf if name == "memory" else 0
    assert all(len(s["samples"]) == 1 and s["median"] >= least for s in found["series"] if s["name"] in ours)


def test_the_machine_is_told(results: dict[str, Any]) -> None:
    """A figure without its machine, versions and command says nothing."""
    assert {"processor", "python", "sqlite", "fdatasync", "HTTP load"} <= results["machine"].keys()
    assert results["command"].startswith("python -m benchmarks --quick")


def test_every_target_names_series_of_its_benchmark() -> None:
    """A misspelt series in a target would read as "not measured" for ever."""
    for benchmark in BENCHMARKS.values():
        names = {series.name for series in benchmark.series}
        for target in benchmark.targets:
            assert target.series in names
            assert target.against in names | {""}


def _outcome(own: float, peer: float | None) -> Outcome:
    benchmark = Benchmark("b", "How many?", "calls/s", (), (Target("ours", ">=", 8, "peer"), Target("ours", "<=", 5)))
    measured = Measured("peer", () if peer is None else (Sample(peer),), "not installed" if peer is None else "")
    return Outcome(benchmark, (Measured("ours", (Sample(own - 1), Sample(own), Sample(own + 90))), measured))


def test_targets_are_judged_by_medians() -> None:
    """A target compares medians, and a limit without base is the figure itself."""
    against_peer, limit = _outcome(80.0, 10.0).verdicts()
    assert (against_peer.ratio, against_peer.met) == (8.0, True)
    assert (limit.ratio, limit.met) == (80.0, False)


def test_a_peer_that_is_missing_is_told_not_judged() -> None:
    """Nothing is compared with what was not measured, and the report says so."""
    outcome = _outcome(80.0, None)
    assert outcome.verdicts()[0].met is None
    text = report.markdown({"processor": "x"}, [outcome], "python -m benchmarks")
    assert "| not measured |" in text
    assert "(not installed)" in text


def _ignore(text: str) -> None: ...


def test_a_wrong_result_stops_the_run_and_a_missing_peer_does_not() -> None:
    """Numbers never gate; results that do not add up do."""

    def absent(setting: Setting) -> Sample:
        raise NotInstalled("it is not there")

    def wrong(setting: Setting) -> Sample:
        raise WrongResult("2 + 2 = 5")

    loader = httpload.Loader("own")
    told = run(Benchmark("b", "?", "s", (Series("p", absent),)), loader, runs=2, quick=True, peers=True, tell=_ignore)
    assert told.measured[0].missing == "it is not there"
    with pytest.raises(WrongResult):
        run(Benchmark("b", "?", "s", (Series("w", wrong),)), loader, runs=1, quick=True, peers=True, tell=_ignore)


def test_what_is_ended_leaves_no_servers() -> None:
    """A benchmark that is told to end ends the servers it has started."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--runs", "1", "--no-peers", "--only", "http-calls"]
    benchmarks = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    servers: list[psutil.Process] = []
    try:
        while not servers and benchmarks.poll() is None:
            servers = [child for child in benchmarks.children() if "runtime_api.cli" in _command_of(child)]
        assert servers, "it has ended before it was told to"
        benchmarks.terminate()
        assert benchmarks.wait(60) == 128 + signal.SIGTERM
        gone, left = psutil.wait_procs(servers, timeout=30)
        assert (gone, left) == (servers, [])
    finally:
        for process in (benchmarks, *servers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _command_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def test_results_replace_the_former_ones_in_the_readme() -> None:
    """What people wrote around the generated section stays."""
    once = report.with_results("# Benchmarks\n\nBy hand.\n", "first\n")
    assert report.with_results(once + "More by hand.\n", "second\n").count("second") == 1
    assert "first" not in report.with_results(once, "second\n")
    assert report.with_results(once, "second\n").startswith("# Benchmarks\n\nBy hand.\n")
