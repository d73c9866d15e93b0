"""Values that JSON has no form of its own for."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PydanticUserError,
    RootModel,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from statestores.codec import CodecError, adapter, encode

if TYPE_CHECKING:
    from collections.abc import Callable

BINARY = b"\x00\xff"
T = TypeVar("T")


@dataclass
class Plain:
    data: bytes


@dataclass
class Configured:
    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


@pydantic_dataclass
class Validated:
    data: bytes


@dataclass
class Outer:
    one: Plain
    more: list[Plain]


@dataclass
class Node:
    data: bytes
    below: list[Node]


@dataclass
class Held(Generic[T]):
    held: T


class Pair(NamedTuple):
    number: int
    plain: Plain


class Entry(TypedDict):
    data: bytes
    plain: Plain


class Box(BaseModel):
    data: bytes


@dataclass
class Shelf:
    box: Box


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


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (bytes, BINARY),
        (Plain, Plain(BINARY)),
        (Outer, Outer(Plain(BINARY), [Plain(BINARY)])),
        (Node, Node(BINARY, [Node(b"", [])])),
        (Pair, Pair(1, Plain(BINARY))),
        (Entry, {"data": BINARY, "plain": Plain(BINARY)}),
        (Shelf, Shelf(Box(data=b"text"))),
        (Box, Box(data=b"text")),
        (Configured, Configured(BINARY)),
        (Validated, Validated(b"text")),
        (Held[Plain], Held(Plain(BINARY))),
    ],
)
def test_bytes(annotation: Any, value: Any) -> None:
    """Any, wherever they stand; in a model, or a dataclass that is configured, those its configuration takes, which
    for a model is text unless it says otherwise."""
    assert adapter(annotation).decode(encode(value)) == value
    assert adapter(list[annotation]).decode(encode([value])) == [value]
    assert adapter(dict[str, annotation]).decode(encode({"x": value})) == {"x": value}
    assert adapter(annotation | None).decode(encode(value)) == value
    assert adapter(tuple[int, annotation]).decode(encode((1, value))) == (1, value)


def test_annotation_that_cannot_be_hashed() -> None:
    """Like any other."""
    assert adapter(Annotated[bytes, ["no hash"]]).decode(encode(BINARY)) == BINARY


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


def test_bytes_that_a_model_cannot_hold() -> None:
    """The error says what to write."""
    with pytest.raises(CodecError, match=r'ConfigDict\(ser_json_bytes="base64", val_json_bytes="base64"\)'):
        encode({"x": Box(data=BINARY)})


class Tagged(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    tags: frozenset[str] = Field(default=frozenset("abcdefg"), alias="labels")
    anything: Any = None


class Tags(RootModel[dict[str, set[str]]]):
    pass


class Computing(BaseModel):
    given: set[str]

    @computed_field
    def doubled(self) -> frozenset[str]:
        return frozenset(2 * item for item in self.given)


class Finding(BaseModel):
    given: list[str]

    @computed_field
    def once(self) -> set[str]:
        return set(self.given)


@pydantic_dataclass
class Deriving:
    given: list[str]

    @computed_field
    def once(self) -> set[str]:
        return set(self.given)


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


@pydantic_dataclass
class Renamed:
    inner: set[str] = Field(alias="outer")


class Foreign:
    pass


@dataclass
class Unknown:
    tags: set[str]
    foreign: Foreign | None = None


class Lenient(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    unknown: Unknown
    tags: set[str]


@dataclass(slots=True)
class Holding:
    by_name: dict[str, Tagged]
    pairs: tuple[set[str], list[set[str]]]


LETTERS = set("abcdefg")
SETS: dict[str, Any] = {
    "a set": LETTERS,
    "numbers": {10, 9, 100},
    "mixed": {1, "a", "b", "c", None, 2.5},
    "sets of sets": {frozenset("abc"), frozenset("bcd"), frozenset("cde")},
    "models": {Tagged(anything=letter) for letter in LETTERS},
    "a model": Tagged.model_validate({"anything": [{"deep": LETTERS}], "more": LETTERS}),
    "a root": Tags({"x": LETTERS}),
    "a dataclass": Holding({"x": Tagged()}, (LETTERS, [LETTERS])),
    "in a list": [Holding({}, (LETTERS, []))],
    "computed": Computing(given=LETTERS),
    "computed alone": [Finding(given=sorted(LETTERS)), Deriving(given=sorted(LETTERS))],
    "another name": Renamed(outer=LETTERS),
    "named like a method": Loose.model_validate({"copy": LETTERS}),
}


def test_sets_are_written_in_the_same_order_by_every_process() -> None:
    """Texts have other hashes in each (INV-8 and INV-10 compare what was written with what is written again)."""
    code = f"import {__name__} as t; print({{what: t.encode(value) for what, value in t.SETS.items()}})"
    written = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(written) == 1, written


def test_sets_in_models_are_read_again() -> None:
    """The order is all that is changed."""
    held = Holding({"x": Tagged(anything=1)}, ({"b", "a"}, [{"d", "c"}]))
    assert adapter(Holding).decode(encode(held)) == held
    assert encode(Tags({"x": {"b", "a"}})) == b'{"x":["a","b"]}'
    tagged = Tagged.model_validate({"labels": {"b", "a"}, "more": {2, 10}})
    assert encode(tagged) == b'{"labels":["a","b"],"anything":null,"more":[10,2]}'


def test_sets_of_what_only_its_model_can_write_are_written() -> None:
    """Their order stays that of the process; it is no reason to refuse the value."""
    lenient = Lenient.model_construct(unknown=Unknown({"a"}), tags={"b", "a"})
    assert encode(lenient) == b'{"unknown":{"tags":["a"],"foreign":null},"tags":["a","b"]}'


class Unfinished(BaseModel):
    later: NotYet | None = None  # type: ignore[name-defined]  # noqa: F821  # defined nowhere


def test_an_annotation_that_is_not_finished_is_no_mistake_in_the_value() -> None:
    """Who decodes is told of the class; the bytes are blameless."""
    with pytest.raises(PydanticUserError, match="not fully defined"):
        adapter(list[Unfinished]).decode(b"[]")


# -- names of fields ---------------------------------------------------------------------------------------------------


class RenamedOnTheWayOut(BaseModel):
    type: int = Field(default=0, serialization_alias="kind")


class RenamedOnTheWayIn(BaseModel):
    size: int = Field(default=0, validation_alias="length")


class FoundDeepInside(BaseModel):
    size: int = Field(default=0, validation_alias=AliasPath("box", 0))


class RenamedByRule(BaseModel):
    model_config = ConfigDict(alias_generator=AliasGenerator(serialization_alias=to_camel))
    the_size: int = 0


class ReadByNameAlone(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
    size: int = Field(default=0, alias="length")


@dataclass
class RenamedPlain:
    size: Annotated[int, Field(serialization_alias="length")] = 0


@pydantic_dataclass
class RenamedValidated:
    size: int = Field(default=0, serialization_alias="length")


class Twice(BaseModel):
    one: int = Field(default=0, alias="x")
    other: int = Field(default=0, alias="x")


class NamedLikeAnother(BaseModel):
    default: int = Field(default=0, alias="metadata")
    metadata: int = 0


BY_SETTINGS = r"ConfigDict\(validate_by_name=True, validate_by_alias=True\)"


@pytest.mark.parametrize(
    ("annotation", "complaint"),
    [
        (RenamedOnTheWayOut, "RenamedOnTheWayOut.type is written as 'kind' and read as 'type', .* with alias='kind'"),
        (RenamedOnTheWayIn, f"size is written as 'size' and read as 'length', .* with {BY_SETTINGS}"),
        (FoundDeepInside, rf"read as 'box\.0', .* with {BY_SETTINGS}"),
        (RenamedByRule, "the_size is written as 'theSize' and read as 'the_size', .* with alias='theSize'"),
        (ReadByNameAlone, f"written as 'length' and read as 'size', .* with {BY_SETTINGS}"),
        (RenamedPlain, "RenamedPlain.size is written as 'length'"),
        (RenamedValidated, "RenamedValidated.size is written as 'length'"),
        (Twice, "Twice.other and one are both written as 'x'"),
        (NamedLikeAnother, "NamedLikeAnother.metadata and default are both written as 'metadata'"),
    ],
)
def test_a_field_that_would_not_be_found_again_is_refused(annotation: Any, complaint: str) -> None:
    """It would take its default without a word: the class is refused, wherever it stands, with what to write."""

    class Around(BaseModel):
        default: list[annotation | None]

    for each in (
        annotation,
        dict[str, list[annotation]],
        annotation | None,
        Annotated[annotation, ["no hash"]],
        Around,
    ):
        with pytest.raises(TypeError, match=complaint):
            adapter(each)
    assert encode(annotation()) != b""  # what nobody means to read as one may be written


class OneNameForBoth(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    the_size: int = 0


class ManyNames(BaseModel):
    size: int = Field(default=0, serialization_alias="width", validation_alias=AliasChoices("length", "width"))


class ReadByEither(BaseModel):
    model_config = ConfigDict(validate_by_name=True)
    size: int = Field(default=0, validation_alias="length")


class NamesOfItsOwn(BaseModel):
    size: int = Field(default=0, serialization_alias="length")

    @model_validator(mode="before")
    @classmethod
    def rename(cls, value: Any) -> Any:
        return {"size": value["length"]} if isinstance(value, dict) and "length" in value else value


class WrittenByItself(BaseModel):
    size: int = Field(default=0, serialization_alias="length")

    @model_serializer
    def write(self) -> dict[str, int]:
        return {"size": self.size}


class Lopsided(BaseModel):
    size: int = Field(default=0, serialization_alias="length")


class ReadAsAWhole(Lopsided):
    @model_validator(mode="wrap")
    @classmethod
    def rename(cls, value: Any, read: Any) -> Any:
        return read({"size": value["length"]} if isinstance(value, dict) and "length" in value else value)


class WritesAPart(BaseModel):
    part: Lopsided

    @field_serializer("part")
    def write(self, part: Lopsided) -> dict[str, int]:
        return {"size": part.size}


class ReadsAPart(BaseModel):
    part: Lopsided

    @field_validator("part", mode="before")
    @classmethod
    def rename(cls, value: Any) -> Any:
        return {"size": value["length"]} if isinstance(value, dict) else value


class LeavesAPartOut(BaseModel):
    size: int = 0
    part: Lopsided | None = Field(default=None, exclude=True)


class Exchanged(BaseModel):
    type: int = Field(default=0, alias="config")
    config: int = Field(default=0, alias="type")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (OneNameForBoth, OneNameForBoth.model_validate({"theSize": 5})),
        (ManyNames, ManyNames.model_validate({"length": 5})),
        (ReadByEither, ReadByEither(size=5)),
        (NamesOfItsOwn, NamesOfItsOwn(size=5)),
        (WrittenByItself, WrittenByItself(size=5)),
        (ReadAsAWhole, ReadAsAWhole(size=5)),
        (WritesAPart, WritesAPart(part=Lopsided(size=5))),
        (ReadsAPart, ReadsAPart(part=Lopsided(size=5))),
        (LeavesAPartOut, LeavesAPartOut(size=5)),
        (Exchanged, Exchanged(config=5, type=6)),
    ],
)
def test_a_field_that_is_found_again_may_have_any_names(annotation: Any, value: Any) -> None:
    """Names for both ways, several to be read under, or whatever the class itself makes of them."""
    assert adapter(list[annotation]).decode(encode([value])) == [value]


def test_many_types_of_one_another_are_looked_at_once_each() -> None:
    """Each way to a type a second time would double the work, over and over."""
    models: list[Any] = [Lopsided]
    for number in range(40):
        parts: dict[str, Any] = {f"part{place}": (model | None, None) for place, model in enumerate(models[-3:])}
        models.append(create_model(f"Model{number}", **parts))
    with pytest.raises(TypeError, match=r"Lopsided\.size is written as 'length'"):
        adapter(models[-1])


class Secretive(BaseModel):
    shown: int = 0
    hidden: int = Field(default=0, exclude=True, serialization_alias="x")


def test_a_field_that_is_meant_to_be_left_out_is() -> None:
    """Its class says that it is not written."""
    assert adapter(Secretive).decode(encode(Secretive(shown=5, hidden=6))) == Secretive(shown=5)
