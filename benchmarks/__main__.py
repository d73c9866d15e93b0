"""``python -m benchmarks``: answer the questions, and say by which command and on which machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.catalogue import BENCHMARKS
from benchmarks.httpload import Loader
from benchmarks.machine import describe_machine
from benchmarks.peers.installed import describe_peers
from benchmarks.processes import end_on_signals
from benchmarks.run import run

README = Path(__file__).with_name("README.md")


def main(
    only: Annotated[str, typer.Option(help=f"Names, with commas: {', '.join(BENCHMARKS)}")] = "",
    runs: Annotated[int, typer.Option(min=1, help="How often each series is measured; medians are told")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes: does everything run? The figures mean nothing")
    ] = False,
    peers: Annotated[
        bool, typer.Option(help="Measure other projects, too (python -m benchmarks.peers install)")
    ] = True,
    load: Annotated[str, typer.Option(help="Who makes the load over HTTP: wrk or own; default: wrk where it is")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here, too")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Put the results into benchmarks/README.md")] = False,
) -> None:
    """Answer the written questions of benchmarks/README.md.

    A figure that is missed fails nothing; a wrong result does."""
    end_on_signals()
    console = Console()
    loader = Loader(load)
    facts = {**describe_machine(), "HTTP load": loader.name, **(describe_peers() if peers else {})}
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    for name, value in facts.items():
        console.print(f"{name}: {value}", highlight=False)
    outcomes = []
    for name in _chosen(only):
        with console.status("") as status:
            tell = status.update if console.is_terminal else lambda text: console.print(text, style="dim")
            outcomes.append(run(BENCHMARKS[name], loader, runs=runs, quick=quick, peers=peers, tell=tell))
        console.print(report.table(outcomes[-1]))
        # After each: what was measured in an hour must not be lost with the last benchmark.
        if json_file is not None:
            json_file.write_text(json.dumps(report.as_json(facts, outcomes, command), indent=1) + "\n")
        if readme:
            section = report.markdown(facts, outcomes, command)
            README.write_text(report.with_results(README.read_text() if README.exists() else "", section))


def _chosen(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: there is {', '.join(BENCHMARKS)}", param_hint="--only")
    return names or list(BENCHMARKS)


if __name__ == "__main__":
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    application.command()(main)
    application()
