"""What a host must have to serve actor types: resources and labels of the node it runs on.

    @actor(resources={"num_gpus": 1, "memory": "2GiB", "special": 1}, labels={"zone": "in(a, b)"})

A host serves every type of its application, since each of its partitions may hold actors of all of them. So hosts ask
for what their types ask for together: of each resource the largest amount, and all labels (`combined`). Resources are
counted once for a host, however many actors are in it.

Pure: `HostNeeds.room` says how many hosts a node of such resources and labels can carry. Where there are no nodes, with
placement `local`, nobody asks.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNLIMITED = sys.maxsize
"""The room of a node for hosts that ask for no amount of anything."""

_SIZES = {"": 1, "k": 1000, "ki": 1 << 10, "m": 1000**2, "mi": 1 << 20, "g": 1000**3, "gi": 1 << 30}
_SIZES |= {"t": 1000**4, "ti": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", re.IGNORECASE)
# Ray's names for what it takes by an option of its own.
_OPTIONS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
_INSTEAD = {"CPU": '"num_cpus"', "GPU": '"num_gpus"', "object_store_memory": '"memory"'}
_SMALLEST = 0.0001
_WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_SELECTOR = re.compile(rf"(!?)(?:({_WORD})|in\(({_WORD}(?:, ?{_WORD})*)\))")


class HostNeeds(NamedTuple):
    """`resources`: amounts by name, `num_cpus`, `num_gpus` and `memory` (bytes) among them. `labels`: selectors by
    label: ``a``, ``!a``, ``in(a, b)``, ``!in(a, b)``."""

    resources: tuple[tuple[str, float], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def room(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """How many such hosts a node can carry that has these, in all: resources by Ray's names (`CPU`, `GPU`)."""
        if any(not _selects(selector, labels.get(label)) for label, selector in self.labels):
            return 0
        fitting = (_grains(resources.get(_OPTIONS.get(n, n), 0.0)) // _grains(amount) for n, amount in self.resources)
        return min(fitting, default=UNLIMITED)

    def lacks(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> list[str]:
        """What a node does not have that a host asks for, with what it has instead."""
        return [
            f"{name} {_amount(name, resources.get(_OPTIONS.get(name, name), 0.0))} of {_amount(name, amount)}"
            for name, amount in self.resources
            if not HostNeeds(((name, amount),)).room(resources, labels)
        ] + [
            f"label {label} is {labels.get(label) or 'not set'}, not {selector}"
            for label, selector in self.labels
            if not _selects(selector, labels.get(label))
        ]

    def __str__(self) -> str:
        parts = [f"{name} {_amount(name, amount)}" for name, amount in self.resources]
        return ", ".join([*parts, *(f"label {label}: {selector}" for label, selector in self.labels)])


NOTHING = HostNeeds()


def host_needs(resources: Mapping[str, Any] | None, labels: Mapping[str, Any] | None) -> HostNeeds:
    """Of one actor type, as `@actor` is told. Raises `TypeError`, which says what to write instead."""
    for what, given in (("resources", resources), ("labels", labels)):
        if given is not None and not isinstance(given, dict):
            raise TypeError(f"{what}= takes a dict by name, not {given!r}")
    amounts = {name: checked_amount(name, amount) for name, amount in (resources or {}).items()}
    selectors = {label: _checked_selector(label, selector) for label, selector in (labels or {}).items()}
    return HostNeeds(
        tuple(sorted((name, amount) for name, amount in amounts.items() if amount)), tuple(sorted(selectors.items()))
    )


def combined(needs: Iterable[tuple[str, HostNeeds]]) -> HostNeeds:
    """What a host asks for that serves all these types, given by name. Raises `ValueError` when no host can."""
    resources: dict[str, float] = {}
    labels: dict[str, tuple[str, str]] = {}
    for actor_type, (amounts, selectors) in needs:
        for name, amount in amounts:
            resources[name] = max(amount, resources.get(name, 0.0))
        for label, selector in selectors:
            first, known = labels.setdefault(label, (actor_type, selector))
            if known != selector:
                raise ValueError(
                    f"actor types {first} and {actor_type} ask for different values of label {label} ({known}, "
                    f"{selector}), and every host serves both: give them one value, or serve them as two applications"
                )
    return HostNeeds(
        tuple(sorted(resources.items())), tuple(sorted((label, selector) for label, (_, selector) in labels.items()))
    )


def checked_amount(name: object, amount: object) -> float:
    """Of one resource, as Ray takes it. Raises `TypeError`."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"resources are given by name, as text, not {name!r}")
    if name in _INSTEAD:
        raise TypeError(f"resource {name!r} is given as {_INSTEAD[name]}")
    if name == "memory" and isinstance(amount, str):
        found = _SIZE.fullmatch(amount.strip())
        if found is None:
            raise TypeError(f'memory {amount!r} is not a size: write bytes as a number, or text like "512MiB", "2GiB"')
        return float(round(float(found[1]) * _SIZES[found[2].lower()]))
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
        raise TypeError(f"resource {name!r} is {amount!r}: write a number, 0 or more")
    if 0 < amount < _SMALLEST or (amount > 1 and amount != int(amount)):
        raise TypeError(f"resource {name!r} is {amount!r}: write {_SMALLEST} or more, and above 1 a whole number")
    return float(amount)


def _checked_selector(label: object, selector: object) -> str:
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise TypeError(f"{label!r} is not a label: write a name like 'zone' or 'ray.io/market-type'")
    if not isinstance(selector, str) or not _SELECTOR.fullmatch(selector):
        raise TypeError(f'label {label!r} is {selector!r}: write "a", "!a", "in(a, b)" or "!in(a, b)"')
    return selector


def _selects(selector: str, value: str | None) -> bool:
    """As Ray does: a node without the label is not in anything, and so it has what is asked for by a negation."""
    found = _SELECTOR.fullmatch(selector)
    assert found is not None, "selectors are checked where they come in"
    negated, word, words = found.groups()
    wanted = {word} if word else {each.strip() for each in words.split(",")}
    return (value in wanted) != bool(negated)


def _grains(amount: float) -> int:
    """Ray counts in ten-thousandths."""
    return round(amount / _SMALLEST)


def _amount(name: str, amount: float) -> str:
    if name != "memory":
        return f"{amount:g}"
    return f"{amount / (1 << 30):.3g}GiB" if amount >= 1 << 30 else f"{amount / (1 << 20):.3g}MiB"
