"""Values that JSON has no form of its own for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict

from statestores.codec import CodecError, adapter, encode

if TYPE_CHECKING:
    from collections.abc import Callable

BINARY = b"\x00\xff"


@dataclass
class Plain:
    data: bytes


@dataclass
class Configured:
    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({math.nan: 1}, "nan"),
        ({"x": [{"y": 1}, {-math.inf: 1}]}, r"x\.1\.-inf"),
        (Open.model_validate({"more": math.inf}), "more"),
        ({"x": [Open.model_validate({"more": {"y": math.nan}})]}, r"x\.0\.more\.y"),
    ],
)
def test_no_number_becomes_null_unseen(value: object, place: str) -> None:
    """JSON has no NaN and no infinity: they are refused wherever they stand, in keys and in what a model's class does
    not name too, and the error says where."""
    with pytest.raises(CodecError, match=f"^{place} is not a finite number"):
        encode(value)


def test_bytes() -> None:
    """Any, by themselves and in containers; in a dataclass those its configuration takes, which is text unless it says
    otherwise."""
    for annotation, value in ((bytes, BINARY), (dict[str, bytes], {"x": BINARY}), (Plain, Plain(b"text"))):
        assert adapter(annotation).decode(encode(value)) == value
    assert adapter(list[Configured]).decode(encode([Configured(BINARY)])) == [Configured(BINARY)]


def half_a_pair(value: str) -> str:
    raise ValueError("caf\udce9")


@pytest.mark.parametrize(
    ("validate", "message"),
    [
        ({"x": 1}.__getitem__, "KeyError: 'y'"),
        (lambda x: 1 // 0, "ZeroDivisionError"),
        (half_a_pair, "UnicodeEncodeError"),
    ],
)
def test_whatever_a_validator_raises_is_a_mistake_in_the_value(validate: Callable[[str], object], message: str) -> None:
    """Also what pydantic lets pass, or cannot tell."""
    with pytest.raises(CodecError, match=message):
        adapter(Annotated[str, AfterValidator(validate)]).decode(b'"y"')


def test_bytes_that_a_dataclass_cannot_hold() -> None:
    """The error says what to write."""
    with pytest.raises(CodecError, match=r'ConfigDict\(ser_json_bytes="base64", val_json_bytes="base64"\)'):
        encode({"x": Plain(BINARY)})
