"""The exact bytes of values inside a JSON text.

State values are stored as the bytes the client sent. Parsing and writing them again would change them (big integers,
``1.0`` and ``1.00``, key order of duplicates), so the values are cut out of the text instead. Every function expects
text that a JSON parser has already accepted: it only finds borders, it does not check grammar.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import orjson

_BLANK = " \t\n\r"
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
# A bracket, and before it all that is none: one step of Python's for each bracket, however much stands between them.
_STRUCTURE = re.compile(rf"""(?:[^"\[\]{{}}]++|{_STRING.pattern})*+[\[\]{{}}]""")
_SCALAR_END = re.compile(r"[,\]}\s]")


def fragment(value: bytes) -> Any:
    """Stored bytes as part of a JSON answer (for `orjson.dumps`): themselves when they are JSON, else base64 text."""
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return base64.b64encode(value).decode()
    return orjson.Fragment(value)


def items(text: str) -> list[str]:
    """The elements of an array, each as its text."""
    position = _skip(text, _skip(text, 0) + 1)
    found: list[str] = []
    while text[position] != "]":
        end = _value_end(text, position)
        found.append(text[position:end])
        position = _after_comma(text, end)
    return found


def members(text: str) -> dict[str, str]:
    """The members of an object: key to the text of its value; the last of a repeated key wins."""
    position = _skip(text, _skip(text, 0) + 1)
    found: dict[str, str] = {}
    while text[position] != "}":
        key_end = _value_end(text, position)
        start = _skip(text, _skip(text, key_end) + 1)
        end = _value_end(text, start)
        found[orjson.loads(text[position:key_end])] = text[start:end]
        position = _after_comma(text, end)
    return found


def member(text: str, name: str) -> str | None:
    """The text of one member, its key compared without case; the last one that is not null wins, as in
    `bodies.ClassicBody`. None: there is none."""
    value = None
    for key, raw in members(text).items():
        if key.lower() == name.lower() and raw != "null":
            value = raw
    return value


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _after_comma(text: str, position: int) -> int:
    position = _skip(text, position)
    return _skip(text, position + 1) if text[position] == "," else position


def _value_end(text: str, start: int) -> int:
    if text[start] == '"':
        string = _STRING.match(text, start)
        assert string is not None, "the text was accepted by a JSON parser"
        return string.end()
    if text[start] in "[{":
        return _container_end(text, start)
    scalar = _SCALAR_END.search(text, start)
    return scalar.start() if scalar else len(text)


def _container_end(text: str, start: int) -> int:
    depth = 0
    for token in _STRUCTURE.finditer(text, start):
        if text[token.end() - 1] in "[{":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return token.end()
    raise AssertionError("the text was accepted by a JSON parser")
