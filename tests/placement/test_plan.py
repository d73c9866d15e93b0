"""The plan: everything gets an owner, loads get even, and then nothing moves any more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.placement.plan import HostView, plan


def after(partitions: int, hosts: list[HostView], wanted: int) -> list[HostView]:
    """The hosts once the orders have been carried out."""
    orders = plan(partitions, hosts, wanted)
    changed = []
    for host in hosts:
        owned = host.owned | set(orders.take.get(host.name, ())) - set(orders.give.get(host.name, ()))
        changed.append(host._replace(owned=frozenset(owned - set(orders.give.get(host.name, ())))))
    return changed


@st.composite
def clusters(draw: st.DrawFn) -> tuple[int, list[HostView], int]:
    partitions = draw(st.integers(1, 40))
    count = draw(st.integers(1, 6))
    owners = draw(st.lists(st.integers(-1, count - 1), min_size=partitions, max_size=partitions))
    leaving = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    hosts = [
        HostView(f"h{n}", frozenset(p for p, owner in enumerate(owners) if owner == n), n, leaving[n])
        for n in range(count)
    ]
    return partitions, hosts, draw(st.integers(1, 6))


@given(clusters())
def test_the_plan_converges(cluster: tuple[int, list[HostView], int]) -> None:
    """After a few rounds every partition has one owner that serves, shares differ by at most one, and nothing moves."""
    partitions, hosts, wanted = cluster
    staying = [host for host in hosts if not host.leaving]
    for _ in range(4):
        hosts = after(partitions, hosts, wanted)
    orders = plan(partitions, hosts, wanted)
    assert orders.is_empty
    if not staying:
        return
    serving = [host for host in hosts if host.name in orders.serving]
    assert len(serving) == min(wanted, len(staying))
    assert sorted(p for host in serving for p in host.owned) == list(range(partitions))
    assert max(len(host.owned) for host in serving) - min(len(host.owned) for host in serving) <= 1


@given(clusters())
def test_nothing_is_taken_that_somebody_claims(cluster: tuple[int, list[HostView], int]) -> None:
    """A partition is given back before another host is told to take it, so a hand-over fails no call."""
    partitions, hosts, wanted = cluster
    orders = plan(partitions, hosts, wanted)
    claimed = {p for host in hosts for p in host.owned}
    assert not claimed & {p for taken in orders.take.values() for p in taken}


def test_a_spare_takes_the_place_of_the_dead() -> None:
    """The partitions of a host that has gone all go to the spare, and no others move."""
    hosts = [HostView("a", frozenset({0, 1, 2, 3}), 1), HostView("spare", frozenset(), 3)]
    orders = plan(8, hosts, wanted=2)
    assert orders.take == {"spare": [4, 5, 6, 7]}
    assert orders.give == {}


def test_nobody_left_to_serve_keeps_what_there_is() -> None:
    """When every host is leaving, partitions stay where they are until somebody comes."""
    assert plan(2, [HostView("a", frozenset({0, 1}), 1, leaving=True)], wanted=2).is_empty
