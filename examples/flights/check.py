"""The comparison: what the actors hold durably, with the totals straight from the file, exactly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from examples.flights.feed import instance_of
from statestores.model import IndexQuery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from examples.flights.data import Totals
    from runtime_api import Runtime

_PAGE = 1000
_TOGETHER = 64
_POLL_S = 0.1
_GIVE_UP_S = 60.0


class Comparison(NamedTuple):
    """`differences`: a line each, empty when everything is equal. `outcomes`: ends of workflows, with how often."""

    aircraft: int
    airports: int
    workflows: int
    outcomes: Counter[str]
    differences: list[str]


async def settle(runtime: Runtime, totals: Totals) -> None:
    """Wait until the airports have heard everything and every workflow has ended; or until nothing moves any more,
    which the comparison will then show."""
    seen: Any = None
    moved = time.monotonic()
    while time.monotonic() - moved < _GIVE_UP_S:
        messages = await _heard(runtime)
        unfinished = await runtime.workflows.listing(statuses=("PENDING", "RUNNING"), limit=1)
        if messages == _to_hear(totals) and not unfinished:
            return
        now = (messages, [entry.stream for entry in unfinished])
        if now != seen:
            seen, moved = now, time.monotonic()
        await asyncio.sleep(_POLL_S)


async def _heard(runtime: Runtime) -> int:
    states = await _states(runtime, "Airport", await _ids(runtime, "Airport"))
    return sum(s["departures"] + s["arrivals"] + s["escalations"] for s in states.values())


def _to_hear(totals: Totals) -> int:
    return sum(a.departures + a.arrivals + a.escalations for a in totals.airports.values())


async def compare(runtime: Runtime, totals: Totals) -> Comparison:
    """Everything is read from the store, not from the memory of activations."""
    aircraft = await _states(runtime, "Aircraft", await _ids(runtime, "Aircraft"))
    airports = await _states(runtime, "Airport", await _ids(runtime, "Airport"))
    outcomes, wrong = await _compare_workflows(runtime, totals)
    return Comparison(
        len(aircraft),
        len(airports),
        sum(outcomes.values()),
        outcomes,
        [
            *_differences("aircraft", {i: asdict(t) for i, t in totals.aircraft.items()}, aircraft),
            *_differences("airport", {i: asdict(t) for i, t in totals.airports.items()}, airports),
            *wrong,
        ],
    )


def _differences(
    kind: str, expected: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]
) -> Iterable[str]:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{kind} {name}: missing"
        elif name not in expected:
            yield f"{kind} {name}: is in the store, not in the file"
        else:
            for total, value in expected[name].items():
                if found[name][total] != value:
                    yield f"{kind} {name}: {total} is {found[name][total]}, the file says {value}"


async def _compare_workflows(runtime: Runtime, totals: Totals) -> tuple[Counter[str], list[str]]:
    """Every overdue departure has exactly one instance, it has ended, and in the way the file says."""
    expected = {instance_of(row): in_time for row, in_time in totals.overdue.items()}
    found = await _ids(runtime, "mecha.workflow")
    wrong = [f"workflow {i}: missing" for i in expected.keys() - set(found)]
    outcomes: Counter[str] = Counter()
    for batch in _batches(found):
        for state in await asyncio.gather(*(runtime.workflows.get(i) for i in batch)):
            outcome = str(state.output) if state.status == "COMPLETED" else state.status
            outcomes[outcome] += 1
            if state.instance_id not in expected:
                wrong.append(f"workflow {state.instance_id}: is in the store, not in the file")
            elif outcome.startswith("closed") != expected[state.instance_id] or state.status != "COMPLETED":
                wrong.append(f"workflow {state.instance_id}: {outcome}")
    return outcomes, sorted(wrong)


async def _ids(runtime: Runtime, actor_type: str) -> list[str]:
    found: list[str] = []
    after = ""
    while True:
        page = await runtime.actors.listing(IndexQuery(actor_type, after=after, limit=_PAGE))
        found += [entry.stream.partition("/")[2] for entry in page]
        if len(page) < _PAGE:
            return found
        after = page[-1].stream


async def _states(runtime: Runtime, actor_type: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for batch in _batches(ids):
        states = await asyncio.gather(*(runtime.actors.state(actor_type, actor_id) for actor_id in batch))
        found.update({i: state[1] for i, state in zip(batch, states, strict=True) if state is not None})
    return found


def _batches(items: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(items), _TOGETHER):
        yield items[start : start + _TOGETHER]
