"""Cutting values out of a JSON text."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_api import rawjson

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
layouts = st.sampled_from([{"indent": None}, {"indent": 2}, {"separators": (",", ":")}, {"separators": (" , ", " : ")}])


@settings(max_examples=50, deadline=None)
@given(st.lists(values), layouts)
def test_items_of_an_array(value: list[object], layout: dict[str, object]) -> None:
    """Each element's text is that element."""
    text = json.dumps(value, **layout)  # type: ignore[arg-type]  # drawn options
    assert [json.loads(item) for item in rawjson.items(text)] == value


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), values), layouts, st.booleans())
def test_members_of_an_object(value: dict[str, object], layout: dict[str, object], ascii_only: bool) -> None:
    """Each member's text is that member, under its unescaped key."""
    text = json.dumps(value, ensure_ascii=ascii_only, **layout)  # type: ignore[arg-type]  # drawn options
    assert {key: json.loads(raw) for key, raw in rawjson.members(text).items()} == value


def test_text_is_kept_as_it_was() -> None:
    """Nothing is rounded, reordered or reformatted."""
    text = '[{"value" : {"b": 1.00, "a" :123456789012345678901234567890, "s":"\\u0041]}"} , "k":1}]'
    assert rawjson.member(rawjson.items(text)[0], "VALUE") == (
        '{"b": 1.00, "a" :123456789012345678901234567890, "s":"\\u0041]}"}'
    )


def test_brackets_inside_strings_are_none() -> None:
    """Nor do the quotes between them end a string that they are escaped in."""
    text = r'[["]", "\"]", "\\"], {"}": "{"}, "]"]'
    assert rawjson.items(text) == [r'["]", "\"]", "\\"]', '{"}": "{"}', '"]"']


def test_the_last_of_a_repeated_key_wins() -> None:
    """As in Go, whatever the case."""
    assert rawjson.member('{"value":1,"Value":2,"other":3}', "value") == "2"
    assert rawjson.member('{"a":1}', "value") is None
