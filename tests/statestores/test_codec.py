"""Values that JSON has no form of its own for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from pydantic import ConfigDict

from statestores.codec import CodecError, adapter, encode

BINARY = b"\x00\xff"


@dataclass
class Plain:
    data: bytes


@dataclass
class Configured:
    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


def test_bytes() -> None:
    """Any, by themselves and in containers; in a dataclass those its configuration takes, which is text unless it says
    otherwise."""
    for annotation, value in ((bytes, BINARY), (dict[str, bytes], {"x": BINARY}), (Plain, Plain(b"text"))):
        assert adapter(annotation).decode(encode(value)) == value
    assert adapter(list[Configured]).decode(encode([Configured(BINARY)])) == [Configured(BINARY)]


def test_bytes_that_a_dataclass_cannot_hold() -> None:
    """The error says what to write."""
    with pytest.raises(CodecError, match=r'ConfigDict\(ser_json_bytes="base64", val_json_bytes="base64"\)'):
        encode({"x": Plain(BINARY)})
