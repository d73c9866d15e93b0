"""Results for people (a table), for the README (markdown) and for programs (JSON)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.model import Measured, Outcome, Verdict

_HEAD = ("series", "median", "min .. max", "ratio to its base", "target", "met")


def number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """A row for every series; one with several targets has a row for each."""
    verdicts = outcome.verdicts()
    found: list[tuple[str, ...]] = []
    for measured in outcome.measured:
        own: list[Verdict | None] = [v for v in verdicts if v.target.series == measured.name]
        own = own or [None]
        for position, verdict in enumerate(own):
            left = _values(measured, outcome.benchmark.unit) if position == 0 else ("", "", "")
            found.append((*left, *_judged(verdict, outcome.benchmark.unit)))
    return found


def _values(measured: Measured, unit: str) -> tuple[str, str, str]:
    if not measured.samples:
        return measured.name, f"({measured.missing})", ""
    detail = f" ({measured.detail})" if measured.detail else ""
    low, high = measured.spread
    return measured.name, f"{number(measured.median)} {unit}{detail}", f"{number(low)} .. {number(high)}"


def _judged(verdict: Verdict | None, unit: str) -> tuple[str, str, str]:
    if verdict is None:
        return "", "", ""
    target = verdict.target
    ratio = f"{verdict.ratio:.2f} x {target.against}" if verdict.ratio is not None and target.against else ""
    return ratio, target.text(unit), {True: "yes", False: "no", None: "not measured"}[verdict.met]


def table(outcome: Outcome) -> Table:
    made = Table(*_HEAD, title=f"{outcome.benchmark.name}: {outcome.benchmark.question}", title_justify="left")
    for row in rows(outcome):
        made.add_row(*row)
    return made


def markdown(facts: Mapping[str, str], outcomes: Sequence[Outcome], command: str) -> str:
    """The results section of the README."""
    parts = [f"Made by `{command}`.\n", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for outcome in outcomes:
        parts.append(f"\n### {outcome.benchmark.name}\n\n{outcome.benchmark.question}\n")
        lines = [_HEAD, tuple("---" for _ in _HEAD), *rows(outcome)]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n".join(parts) + "\n"


def as_json(facts: Mapping[str, str], outcomes: Sequence[Outcome], command: str) -> dict[str, Any]:
    return {"command": command, "machine": dict(facts), "benchmarks": [_outcome(outcome) for outcome in outcomes]}


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.benchmark.name,
        "question": outcome.benchmark.question,
        "unit": outcome.benchmark.unit,
        "series": [
            {"name": m.name, "median": m.median, "samples": [s.value for s in m.samples], "detail": m.detail}
            if m.samples
            else {"name": m.name, "missing": m.missing}
            for m in outcome.measured
        ],
        "targets": [
            {"series": v.target.series, "target": v.target.text(outcome.benchmark.unit), "ratio": v.ratio, "met": v.met}
            for v in outcome.verdicts()
        ],
    }


def with_results(readme: str, section: str) -> str:
    """The README with its generated section replaced."""
    head, found, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not found:
        return f"{readme.rstrip()}\n\n{BEGIN}\n{section}{END}\n"
    return f"{head}{BEGIN}\n{section}{END}{tail}"


BEGIN = "<!-- results: generated, do not edit -->"
END = "<!-- end of results -->"
