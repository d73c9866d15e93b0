"""Dapr's state query as a pure function: (query, items) -> a page. Every store with `QUERY_API` answers by it.

    filter := {} | {"EQ"|"NEQ"|"GT"|"GTE"|"LT"|"LTE": {path: value}} | {"IN": {path: [value, …]}}
                 | {"AND"|"OR": [filter, …]}
    path   := names joined by dots; a number also picks an element of an array

Rules, where Dapr leaves them to the database behind it:
- Only values that are JSON documents are looked at. `{}` matches every document.
- Equality is JSON equality: 1 equals 1.0, true equals no number, objects compare whole. NEQ is its exact complement, so
  it holds where the path is absent; every other comparison fails there.
- GT, GTE, LT, LTE compare a number with a number or a text (by code point) with a text; any other pair fails.
- Sorting orders absent < null < false < true < numbers < texts < arrays and objects; equals are ordered by key, and so
  are arrays and objects among each other.
- A page's token holds the place of its last item, not a count: items that come or go elsewhere between two pages make
  no item appear twice or be passed over.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter, ge, gt, le, lt
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import orjson

from statestores.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from statestores.store import KeyItem, KeyQuery

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
Predicate: TypeAlias = Callable[[Json], bool]
SortValue: TypeAlias = tuple[int, float | str]
"""Kind of value, then the value: only values of one kind are ever compared."""

ITEM_BYTES = 200
"""What an item costs beside its key and value, about: so that a page of many tiny ones is bounded, too."""

MAX_DEPTH = 32
"""Of AND and OR inside each other, and of a value to compare with: a bound on what one request can make us recurse."""


class Absent(Enum):
    """What a path that leads nowhere finds; not null, which is a value."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Descending:
    """A sort value that orders the other way round."""

    value: SortValue

    def __lt__(self, other: Descending) -> bool:
        return other.value < self.value


Order: TypeAlias = "tuple[SortValue | Descending | str, ...]"


class Place(NamedTuple):
    """An item and what orders it: one sort value per sort key, then its own key, so that no two are equal."""

    order: Order
    item: KeyItem


_BY_ORDER: Callable[[Place], Any] = attrgetter("order")


def page(query: KeyQuery, items: Iterable[KeyItem]) -> tuple[list[KeyItem], str]:
    """The query's page over `items` (live ones under its prefix, each once, in any order) and the token of the next.

    Raises `InvalidRequest` for a malformed query.
    """
    found = Page(query)
    found.add(items)
    return found.result()


class Page:
    """The same for a store that reads its items in parts. Memory is bounded by the query's `limit` and `max_bytes`, as
    far as it has them. Raises `InvalidRequest` for a malformed query."""

    def __init__(self, query: KeyQuery) -> None:
        if query.limit < 0:
            raise InvalidRequest(f"page.limit is {query.limit}: give a positive number, or leave it out")
        self._after = _decode_token(query) if query.token else None
        self._matches = compile_filter(query.filter)
        self._sort = [(_split(name), descending) for name, descending in query.sort]
        self._most_items = query.limit or sys.maxsize
        self._most_bytes = query.max_bytes or sys.maxsize
        self._places: list[Place] = []
        self._bytes = 0
        # Where the page ends at the latest: the first place that did not fit. Invariant: of all that was added,
        # `_places` are those before it. It only moves towards the beginning, as what stands before it becomes more.
        self._end: Order | None = None

    def add(self, items: Iterable[KeyItem]) -> None:
        for item in items:
            place = self._place(item)
            if place is not None:
                self._places.append(place)
                self._bytes += _size(place)
                # At twice the size, so that sorting costs little for each item.
                if len(self._places) > 2 * self._most_items or self._bytes > 2 * self._most_bytes:
                    self._cut()

    def result(self) -> tuple[list[KeyItem], str]:
        """Once, at the end."""
        self._cut()
        return [place.item for place in self._places], _encode_token(self._places[-1]) if self._end is not None else ""

    def _place(self, item: KeyItem) -> Place | None:
        try:
            document = orjson.loads(item.value)
        except orjson.JSONDecodeError:
            return None
        if not self._matches(document):
            return None
        values = ((sort_value(find(document, path)), descending) for path, descending in self._sort)
        order = (*(Descending(value) if descending else value for value, descending in values), item.key)
        is_after = self._after is None or self._after < order
        return Place(order, item) if is_after and (self._end is None or order < self._end) else None

    def _cut(self) -> None:
        """Keep the first ones, as many as the page may have."""
        self._places.sort(key=_BY_ORDER)
        kept = kept_bytes = 0
        for place in self._places[: self._most_items]:
            if kept and kept_bytes + _size(place) > self._most_bytes:
                break
            kept += 1
            kept_bytes += _size(place)
        if kept < len(self._places):
            self._end = self._places[kept].order
            del self._places[kept:]
        self._bytes = kept_bytes


def _size(place: Place) -> int:
    return ITEM_BYTES + len(place.item.key) + len(place.item.value)


def compile_filter(tree: object, depth: int = 0) -> Predicate:
    """A filter tree as a predicate over documents. Raises `InvalidRequest` naming the part that is wrong."""
    if tree == {}:
        return lambda document: True
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"the filter nests deeper than {MAX_DEPTH} levels")
    operator, operand = _single(tree, "a filter", "one operator")
    if operator in ("AND", "OR"):
        return _compile_junction(operator, operand, depth)
    if operator in ("EQ", "NEQ", "IN"):
        return _compile_membership(operator, operand)
    if operator in _ORDERS:
        path, bound = _single(operand, operator, "one path and its value")
        return _compile_order(_ORDERS[operator], _split(path), bound)
    raise InvalidRequest(f"unknown filter operator {operator!r}: use one of EQ NEQ GT GTE LT LTE IN AND OR")


def find(document: Json, path: tuple[str, ...]) -> Json | Absent:
    """What `path` leads to in `document`."""
    here: Json = document
    for name in path:
        if isinstance(here, dict) and name in here:
            here = here[name]
        elif isinstance(here, list) and _is_index(name) and int(name) < len(here):
            here = here[int(name)]
        else:
            return ABSENT
    return here


def equal(left: Json | Absent, right: Json | Absent) -> bool:
    """JSON equality: like Python's, but for truth values, which Python counts among the numbers."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    return left == right


def _compile_junction(operator: str, operand: object, depth: int) -> Predicate:
    if not isinstance(operand, list) or not operand:
        raise InvalidRequest(f"{operator} takes a list of filters, got {_show(operand)}")
    parts = [compile_filter(part, depth + 1) for part in operand]
    if operator == "AND":
        return lambda document: all(part(document) for part in parts)
    return lambda document: any(part(document) for part in parts)


def _compile_membership(operator: str, operand: object) -> Predicate:
    name, value = _single(operand, operator, "one path and its value")
    path = _split(name)
    _check_depth(value, MAX_DEPTH)
    if operator == "EQ":
        return lambda document: equal(find(document, path), value)
    if operator == "NEQ":
        return lambda document: not equal(find(document, path), value)
    if not isinstance(value, list):
        raise InvalidRequest(f"IN takes a list of values for {name!r}, got {_show(value)}")
    return lambda document: any(equal(find(document, path), candidate) for candidate in value)


def _compile_order(compare: Compare, path: tuple[str, ...], bound: Json) -> Predicate:
    kind = _ordered_kind(bound)
    if kind is None:
        raise InvalidRequest(f"GT, GTE, LT and LTE compare with a number or a text, got {_show(bound)}")

    def holds(document: Json) -> bool:
        value = find(document, path)
        return _ordered_kind(value) is kind and compare(value, bound)

    return holds


def _ordered_kind(value: Json | Absent) -> type | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float
    return str if isinstance(value, str) else None


Compare: TypeAlias = Callable[[Any, Any], bool]

_ORDERS: dict[str, Compare] = {"GT": gt, "GTE": ge, "LT": lt, "LTE": le}


def sort_value(value: Json | Absent) -> SortValue:
    """Where `value` stands among all JSON values."""
    match value:
        case Absent():
            return (0, 0)
        case None:
            return (1, 0)
        case bool():
            return (2, int(value))
        case int() | float():
            return (3, value)
        case str():
            return (4, value)
        case _:
            return (5, 0)


def _encode_token(place: Place) -> str:
    *sorts, key = place.order
    values = [part.value if isinstance(part, Descending) else part for part in sorts]
    return base64.urlsafe_b64encode(orjson.dumps([values, key])).decode()


def _decode_token(query: KeyQuery) -> Order:
    try:
        values, key = orjson.loads(base64.b64decode(query.token, altchars=b"-_", validate=True))
        parts = [_checked_sort_value(kind, value) for kind, value in values]
    except (binascii.Error, ValueError, TypeError):
        raise InvalidRequest("page.token is not one that this query returned: start again without a token") from None
    if len(parts) != len(query.sort) or not isinstance(key, str):
        raise InvalidRequest("page.token belongs to a query with another sort: start again without a token")
    directed = zip(parts, query.sort, strict=True)
    return (*(Descending(part) if descending else part for part, (_, descending) in directed), key)


def _checked_sort_value(kind: object, value: object) -> SortValue:
    """The pair, when comparing it with a real one of its kind cannot fail."""
    right_type = isinstance(value, str) if kind == 4 else isinstance(value, int | float)
    if not isinstance(kind, int) or not right_type:
        raise ValueError(kind)
    return (kind, value)  # type: ignore[return-value]  # checked above


def _split(path: str) -> tuple[str, ...]:
    if not path:
        raise InvalidRequest("a path in a query must not be empty")
    return tuple(path.split("."))


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10


def _single(node: object, what: str, content: str) -> tuple[str, Any]:
    """The only name and value of an object."""
    if not isinstance(node, dict) or len(node) != 1:
        raise InvalidRequest(f"{what} takes an object with {content}, got {_show(node)}")
    return next(iter(node.items()))


def _check_depth(value: Json, left: int) -> None:
    if left < 0:
        raise InvalidRequest(f"a value in the filter nests deeper than {MAX_DEPTH} levels")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, left - 1)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
