"""The rules of the state query that Dapr leaves to the store, and queries beside a model a child can read."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statestores.errors import InvalidRequest
from statestores.keyquery import ABSENT, ITEM_BYTES, MAX_DEPTH, compile_filter, equal, find, page
from statestores.store import KeyItem, KeyQuery

if TYPE_CHECKING:
    from collections.abc import Sequence


def items_of(*documents: object) -> list[KeyItem]:
    """Items whose keys count up in the order given."""
    return [KeyItem(f"k{number}", orjson.dumps(document), "1") for number, document in enumerate(documents)]


def keys_of(query: KeyQuery, items: Sequence[KeyItem]) -> list[str]:
    found, token = page(query, items)
    assert token == ""
    return [item.key for item in found]


def token_of(values: object, key: object = "k") -> str:
    return base64.urlsafe_b64encode(orjson.dumps([values, key])).decode()


@pytest.mark.parametrize(
    ("document", "path", "expected"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"a": None}, "a", None),
        ({"a": [{"b": 1}, {"b": 2}]}, "a.1.b", 2),
        ({"0": "name"}, "0", "name"),
        ({"a": [1]}, "a.1", ABSENT),
        ({"a": [1]}, "a.-1", ABSENT),
        ({"a": [1]}, "a.²", ABSENT),
        ({"a": [1]}, "a." + "9" * 5000, ABSENT),
        ({"a": "text"}, "a.0", ABSENT),
        ({"a": 1}, "b", ABSENT),
        (5, "a", ABSENT),
    ],
)
def test_path_leads_to_a_value(document: Any, path: str, expected: object) -> None:
    """Names pick from objects, numbers from arrays; a path that leads nowhere is told from null."""
    assert find(document, tuple(path.split("."))) == expected


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (True, True, True),
        (None, ABSENT, False),
        (None, None, True),
        ("1", 1, False),
        ([1, [True]], [1.0, [True]], True),
        ([1], [True], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1], [1, 2], False),
        ([], {}, False),
    ],
)
def test_equality_is_jsons(left: Any, right: Any, same: bool) -> None:
    """Numbers by value, truth values apart from numbers, containers by content."""
    assert equal(left, right) is same
    assert equal(right, left) is same


MIXED = items_of({"a": 1}, {"a": 2.5}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"b": 1}, 7, "text")


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"GT": {"a": 1}}, ["k1"]),
        ({"GTE": {"a": 1}}, ["k0", "k1"]),
        ({"LT": {"a": 100}}, ["k0", "k1"]),
        ({"LTE": {"a": "2"}}, ["k2"]),
        ({"EQ": {"a": True}}, ["k3"]),
        ({"EQ": {"a": None}}, ["k4"]),
        ({"EQ": {"a": [1]}}, ["k5"]),
        ({"EQ": {"a.0": 1}}, ["k5"]),
        ({"IN": {"a": [None, 1]}}, ["k0", "k4"]),
        ({"NEQ": {"a": 1}}, ["k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"]),
        ({}, [f"k{number}" for number in range(9)]),
    ],
)
def test_comparisons_keep_to_their_type(filter: dict[str, Any], expected: list[str]) -> None:
    """Order compares numbers with numbers and texts with texts; absent paths satisfy nothing but NEQ."""
    assert keys_of(KeyQuery(filter), MIXED) == expected


def test_values_that_are_not_json_are_passed_over() -> None:
    """Raw bytes are no documents, not even for the empty filter."""
    items = [KeyItem("raw", b"\xff\x00", "1"), KeyItem("empty", b"", "1"), KeyItem("json", b" {} ", "1")]
    assert keys_of(KeyQuery({}), items) == ["json"]


def test_sort_orders_types_then_values_then_keys() -> None:
    """Absent, null, false, true, numbers, texts, containers; equal ones by key, also when descending."""
    sorted_by: list[Any] = ["b", 2, None, [1], True, "a", 10, 1.5, False, {}]
    documents = [{"s": value} for value in sorted_by]
    items = items_of(*documents, {}, {"s": 2.0})
    ascending = ["k10", "k2", "k8", "k4", "k7", "k1", "k11", "k6", "k5", "k0", "k3", "k9"]
    assert keys_of(KeyQuery({}, sort=(("s", False),)), items) == ascending
    descending = ["k3", "k9", "k0", "k5", "k6", "k1", "k11", "k7", "k4", "k8", "k2", "k10"]
    assert keys_of(KeyQuery({}, sort=(("s", True),)), items) == descending


def test_pages_do_not_shift_when_items_come_and_go() -> None:
    """The token holds a place: what is deleted before it or added after the fact repeats and skips nothing."""
    items = items_of(*({"n": n} for n in range(6)))
    query = KeyQuery({}, sort=(("n", False),), limit=2)
    first, token = page(query, items)
    assert [item.key for item in first] == ["k0", "k1"]
    changed = [KeyItem("early", b'{"n": -1}', "1"), *items[1:]]
    second, _ = page(query._replace(token=token), changed)
    assert [item.key for item in second] == ["k2", "k3"]


@pytest.mark.parametrize(
    "filter",
    [
        "text",
        [],
        None,
        {"EQ": {"a": 1}, "NEQ": {"a": 2}},
        {"eq": {"a": 1}},
        {"EQ": "a"},
        {"EQ": {"a": 1, "b": 2}},
        {"EQ": {"": 1}},
        {"IN": {"a": "text"}},
        {"AND": []},
        {"OR": {}},
        {"AND": [{"EQ": {"a": 1}}, "text"]},
        {"GT": {"a": True}},
        {"LT": {"a": None}},
        {"LTE": {"a": [1]}},
    ],
)
def test_malformed_filter_is_refused(filter: object) -> None:
    """A filter that cannot mean anything is the caller's error."""
    with pytest.raises(InvalidRequest):
        compile_filter(filter)


def test_deep_filters_are_refused() -> None:
    """No request can make the evaluation recurse without bound: junctions and values have a depth limit."""
    deep: Any = {"EQ": {"a": 1}}
    value: Any = 1
    for _ in range(MAX_DEPTH):
        deep, value = {"AND": [deep]}, [value]
    assert compile_filter(deep)({"a": 1})
    assert compile_filter({"EQ": {"a": value}})({"a": value})
    for too_deep in ({"AND": [deep]}, {"EQ": {"a": [value]}}):
        with pytest.raises(InvalidRequest, match=f"deeper than {MAX_DEPTH} levels"):
            compile_filter(too_deep)


def test_deep_documents_are_compared() -> None:
    """A document may nest as deep as its parser lets it."""
    deep = b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"
    item = KeyItem("k", deep, "1")
    assert page(KeyQuery({"EQ": {"a": [[]]}}, sort=(("a", False),)), [item]) == ([], "")
    assert page(KeyQuery({"NEQ": {"a": [[]]}}, sort=(("a", False),), limit=1), [item]) == ([item], "")


@pytest.mark.parametrize(
    "token",
    [
        "junk!",
        "anVuaw==",
        token_of([]),
        token_of([[3, 1], [3, 1]]),
        token_of([[3, "text"]]),
        token_of([[4, 1]]),
        token_of([["x", 1]]),
        token_of([[3]]),
        token_of([[3, 1]], key=5),
        token_of(7),
        base64.urlsafe_b64encode(b"5").decode(),
        "é",
    ],
)
def test_foreign_token_is_refused(token: str) -> None:
    """A token that this query did not give is the caller's error, whatever it holds."""
    with pytest.raises(InvalidRequest, match=r"page\.token"):
        page(KeyQuery({}, sort=(("a", False),), limit=1, token=token), MIXED)


values = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.5, 1.0]) | st.sampled_from(["", "a", "b"])
documents = st.lists(st.dictionaries(st.sampled_from("xy"), values | st.lists(values, max_size=2)), max_size=8)
sorts = st.lists(st.tuples(st.sampled_from("xy"), st.booleans()), max_size=2).map(tuple)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.dictionaries(st.sampled_from("xy"), values), st.sampled_from((0, 9, 3 * ITEM_BYTES)))),
    sorts,
    st.integers(0, 4),
    st.sampled_from((0, 1, 4 * ITEM_BYTES)),
)
@example([({}, 0), ({}, 600), ({}, 600), ({}, 600), ({}, 0), ({}, 0)], (), 0, 4 * ITEM_BYTES)
def test_pages_join_to_the_whole(
    contents: list[tuple[dict[str, Any], int]], sort: tuple[tuple[str, bool], ...], limit: int, max_bytes: int
) -> None:
    """For any documents, sort and limits: following the tokens gives what one query without a limit gives, in whatever
    order the store brings the items; and every page is as long as it may be."""
    items = items_of(*({**document, "padding": "p" * padding} for document, padding in contents))
    whole, _ = page(KeyQuery({}, sort=sort), items)
    query = KeyQuery({}, sort=sort, limit=limit, max_bytes=max_bytes)
    joined, token = page(query, reversed(items))
    assert (joined, token) == page(query, items)
    assert len(joined) == _longest_page(whole, query)
    while token:
        more, token = page(query._replace(token=token), items)
        assert len(more) == _longest_page(whole[len(joined) :], query)
        joined += more
    assert joined == whole


def _longest_page(items: list[KeyItem], query: KeyQuery) -> int:
    """The same in the plainest way."""
    sizes = [ITEM_BYTES + len(item.key) + len(item.value) for item in items]
    fitting = [n for n in range(len(items) + 1) if not query.max_bytes or n <= 1 or sum(sizes[:n]) <= query.max_bytes]
    return min(max(fitting), query.limit or len(items))


@settings(deadline=None)
@given(documents, st.sampled_from("xy"), values)
def test_operators_relate(contents: list[dict[str, Any]], path: str, value: Any) -> None:
    """NEQ is what EQ is not; IN of one is EQ; where order applies, GTE is GT or EQ, and exactly one of LT, EQ, GT holds
    of a value of the same type."""
    for document in contents:
        holds = {name: compile_filter({name: {path: value}})(document) for name in ("EQ", "NEQ")}
        assert holds["NEQ"] is not holds["EQ"]
        assert compile_filter({"IN": {path: [value]}})(document) is holds["EQ"]
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        less, more = (compile_filter({name: {path: value}})(document) for name in ("LT", "GT"))
        assert compile_filter({"LTE": {path: value}})(document) is (less or holds["EQ"])
        assert compile_filter({"GTE": {path: value}})(document) is (more or holds["EQ"])
        assert less + more + holds["EQ"] <= 1
