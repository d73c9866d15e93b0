"""Who is to own what: a pure function from what hosts say to what they are told.

    orders = plan(32, hosts, wanted=2)

It is run again and again, on fresh answers. It needs no memory and holds no truth: hosts say what they own, which they
have from the store; an order that is lost, late or wrong is corrected by the next run, and cannot hurt (INV-2, INV-3).

The rules, in order:

1. *Serving* are the hosts that own something already, then the oldest, until there are `wanted`; further ones are
   spares, ready to take over in the time of a commit.
2. A partition nobody claims goes to the serving host that has the fewest.
3. A host that leaves, or is not serving, gives all it has; one that has more than its share gives the surplus. What is
   given is taken in the next run, when nobody claims it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class HostView(NamedTuple):
    """What one host says of itself. Hosts that do not answer are left out: nobody claims what is theirs, and the store
    keeps others from taking it while their lease runs. `since`: orders hosts by age. `leaving`: it is to end soon."""

    name: str
    owned: frozenset[int]
    since: int = 0
    leaving: bool = False


class Orders(NamedTuple):
    """By host name, the partitions it is to take, and to give back."""

    take: dict[str, list[int]]
    give: dict[str, list[int]]
    serving: list[str]

    @property
    def is_empty(self) -> bool:
        return not (self.take or self.give)


def plan(partitions: int, hosts: Iterable[HostView], wanted: int) -> Orders:
    """`wanted`: how many hosts are to serve; the others stay spare."""
    known = sorted(hosts, key=lambda host: (not host.owned, host.since, host.name))
    serving = [host for host in known if not host.leaving][:wanted]
    names = [host.name for host in serving]
    loads = {host.name: len(host.owned) for host in serving}
    give = {host.name: sorted(host.owned) for host in known if host.name not in loads and host.owned}
    if not serving:
        return Orders({}, {}, [])  # nobody could take anything: whoever has it keeps it
    claimed = frozenset().union(*(host.owned for host in known))
    take: dict[str, list[int]] = {}
    for partition in range(partitions):
        if partition not in claimed:
            name = min(names, key=loads.__getitem__)
            take.setdefault(name, []).append(partition)
            loads[name] += 1
    give |= _surplus(serving, loads, partitions)
    return Orders(take, give, names)


def _surplus(serving: Sequence[HostView], loads: dict[str, int], partitions: int) -> dict[str, list[int]]:
    """What hosts have beyond a fair share while others, what is on its way to them counted, have less than theirs."""
    fewest, rest = divmod(partitions, len(serving))
    by_load = sorted(serving, key=lambda host: -loads[host.name])
    # The fullest `rest` hosts may keep one more than the others.
    shares = {host.name: fewest + (place < rest) for place, host in enumerate(by_load)}
    given: dict[str, list[int]] = {}
    for host in by_load:
        surplus = loads[host.name] - shares[host.name]
        if surplus > 0 and host.owned:
            given[host.name] = sorted(host.owned)[-surplus:]
    return given
