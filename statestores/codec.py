"""The one encoding of everything durable and everything on the wire: JSON, by orjson, never pickle.

What survives a round trip is decided by the *annotation* it is read back with: :func:`adapter` makes a validating
decoder (pydantic). Plain JSON types, datetimes, UUIDs and enums are orjson's own; bytes become base64, sets lists,
Decimals strings, timedeltas ISO 8601 durations. Models and dataclasses of pydantic are written under their own
configuration (so bytes in them are UTF-8 text, unless that says ``base64``). A set, wherever it is, is written in an
order that every process repeats.

Refused, with `CodecError`: integers beyond 64 bits, NaN and infinities (JSON has none, and null would be a silent
loss), and objects no rule covers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import traceback
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, PydanticUserError, RootModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypeAliasType

from statestores.fieldnames import check_field_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

ATOMS: frozenset[type] = frozenset({int, str, bool, float, type(None)})
"""Types whose values are immutable and are their own JSON value: these need no copy and no validation beyond the
type."""

_BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_BYTES_AS_BASE64 = (
    "; bytes in a model of pydantic are text, unless its configuration is "
    'ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")'
)

# Of which two of one type are one before the other.
_COMPARABLE = frozenset({int, str, bool, float, bytes})

_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_NON_STR_KEYS

_LOWEST_INT, _HIGHEST_INT = -(2**63), 2**64 - 1
_MOST_DIGITS = len(str(_HIGHEST_INT))
_TOO_LONG = "Integer exceeds 64-bit range"  # orjson says it by this text alone
_AS_TEXT = ": send it as text"
# A text without either of these, once every digit is made a zero, has no integer beyond 64 bits. To look for them takes
# a third of what a regular expression takes, in long texts a tenth.
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_INT, _LONG_NEGATIVE_INT = b"0" * _MOST_DIGITS, b"-" + b"0" * (_MOST_DIGITS - 1)


class CodecError(ValueError):
    """A value cannot be encoded, or bytes are not what the annotation asks for. The message names the offending
    part."""


def encode(value: object) -> bytes:
    """JSON bytes of a value. Raises `CodecError`."""
    if type(value) is float and not math.isfinite(value):
        raise CodecError(f"{value} has no JSON form")
    try:
        data = orjson.dumps(value, _default, _OPTIONS)
    except TypeError as error:  # JSONEncodeError is a TypeError
        raise CodecError(_explain(value, error)) from error
    if b"null" in data and (path := _non_finite(value)) is not None:
        raise CodecError(f"{path.lstrip('.') or 'the value'} is not a finite number, which JSON has no form for")
    return data


def decode(data: bytes | bytearray | memoryview | str) -> Any:
    """The plain JSON value. Raises `CodecError` when it is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise CodecError(f"not valid JSON: {error}") from None


def may_be_rounded(data: bytes) -> bool:
    """Whether this JSON may hold integers beyond 64 bits, which are floats to `decode`. Digits in a text count, too."""
    if len(data) < _MOST_DIGITS:
        return False
    zeros = data.translate(_ZEROS)
    return _LONG_INT in zeros or _LONG_NEGATIVE_INT in zeros


def decode_exactly(data: bytes) -> Any:
    """What `decode` makes of JSON, which has to be let pass by that first; but integers beyond 64 bits stay as they are
    written, for `Adapter.restore`: an annotation may ask for a float, or a Decimal. What asks for neither is found by
    `check_integers`. Raises `CodecError`."""
    return _loads(data, lambda text: int(text) if _has_64_bits(text) else orjson.Fragment(text))


def check_integers(value: object) -> None:
    """Raises `CodecError` for an integer beyond 64 bits, wherever it is in the value."""
    try:
        encode(value)
    except CodecError as error:
        if _TOO_LONG in str(error):
            raise CodecError(f"it has an integer beyond 64 bits{_AS_TEXT}") from None


def check_json_integers(data: bytes) -> None:
    """The same for JSON that `decode` lets pass, and that no annotation will be asked about."""
    if may_be_rounded(data):
        _loads(data, _int_of_64_bits)


def _loads(data: bytes, parse_int: Callable[[str], Any]) -> Any:
    try:
        return json.loads(data, parse_int=parse_int)
    except RecursionError:
        raise CodecError("not valid JSON: nested too deeply") from None


def _int_of_64_bits(text: str) -> int:
    if not _has_64_bits(text):
        raise CodecError(f"{text} is an integer beyond 64 bits{_AS_TEXT}")
    return int(text)


def _has_64_bits(text: str) -> bool:
    return len(text) <= _MOST_DIGITS and _LOWEST_INT <= int(text) <= _HIGHEST_INT


class Adapter(Generic[T]):
    """Decodes JSON into the annotated type, or says what is wrong with it."""

    __slots__ = ("_adapter", "annotation", "atom")

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        # Values of exactly this type pass unexamined; None: no such shortcut.
        self.atom: type | None = annotation if isinstance(annotation, type) and annotation in ATOMS else None
        self._adapter: TypeAdapter[T] = _type_adapter(annotation)

    def decode(self, data: bytes | bytearray) -> T:
        """Raises `CodecError` with pydantic's account of every mismatch, or with what a validator raised that pydantic
        lets pass (whatever is no `ValueError`); `PydanticUserError` while a class that the annotation names is not
        there yet."""
        try:
            return self._adapter.validate_json(data)
        except ValidationError as error:
            raise CodecError(_explain_validation(error)) from None
        except PydanticUserError:  # the annotation is at fault, and not the bytes
            raise
        except Exception as error:
            raise CodecError("".join(traceback.format_exception_only(error)).strip()) from error

    def restore(self, value: Any) -> T:
        """The typed value of an already parsed JSON value."""
        if type(value) is self.atom:
            return cast("T", value)
        return self.decode(encode(value))


class _OrNone(Adapter[T | None]):
    """Of what has None as its default, whatever its annotation says."""

    __slots__ = ()

    def decode(self, data: bytes | bytearray) -> T | None:
        return None if data == b"null" else super().decode(data)


@lru_cache(maxsize=4096)
def _cached_adapter(kind: type) -> Adapter[Any]:
    """Of a dataclass, to write it: nobody may mean to read it again."""
    return Adapter(kind)


def adapter(annotation: Any, default: Any = ...) -> Adapter[Any]:
    """The adapter of an annotation. Raises `TypeError` when pydantic has no rule for it, or what is written would not
    be found again (`check_field_names`). None fits where it is the `default` (``x: int = None``)."""
    kind = _OrNone if default is None else Adapter
    try:
        return _cached_checked_adapter(annotation, kind)
    except TypeError:  # unhashable annotation (Annotated with a list, say)
        return _checked_adapter(annotation, kind)


def _checked_adapter(annotation: Any, kind: type[Adapter[Any]]) -> Adapter[Any]:
    made = kind(annotation)
    check_field_names(made._adapter.core_schema)
    return made


_cached_checked_adapter = lru_cache(maxsize=4096)(_checked_adapter)


def _type_adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        try:
            return TypeAdapter(annotation, config=_BASE64)
        except PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
        # What may have a configuration of its own is given none from here. By another name it is, as it is in a
        # container: it takes what it does not have.
        named: Any = TypeAliasType("Named", annotation)
        return TypeAdapter(named, config=_BASE64)
    except PydanticUserError as error:
        raise TypeError(f"no encoding for annotation {annotation!r}: {error}") from error


def _default(value: Any) -> Any:
    if isinstance(value, BaseModel):
        dumped = value.model_dump(mode="json", by_alias=True)
        return _ordered_within(value, dumped) if _holds_sets(value) else dumped
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        dumped = _cached_adapter(type(value))._adapter.dump_python(value, mode="json", by_alias=True)
        return _ordered_within(value, dumped) if _holds_sets(value) else dumped
    if isinstance(value, (set, frozenset)):
        return _ordered(value)
    try:
        return to_jsonable_python(value, bytes_mode="base64", timedelta_mode="iso8601")
    except PydanticSerializationError as error:
        raise TypeError(str(error)) from None


def _ordered(values: set[Any] | frozenset[Any]) -> list[Any]:
    """A set in an order that each process repeats, so that an unchanged set encodes to unchanged bytes."""
    kinds = set(map(type, values))
    return sorted(values, key=None if len(kinds) == 1 and kinds <= _COMPARABLE else encode)


def _ordered_within(value: Any, dumped: Any) -> Any:
    """What pydantic made of a value, with the sets in it in such an order; it writes them as they come, which is by
    hashes that differ from process to process. Where shapes differ (a serializer of its own), it stays."""
    if isinstance(value, RootModel):
        return _ordered_within(value.root, dumped)
    if isinstance(value, (set, frozenset)) and _is_list_of(len(value), dumped):
        return sorted(map(_ordered_within, value, dumped), key=_text_of)
    if isinstance(value, (list, tuple)) and _is_list_of(len(value), dumped):
        return list(map(_ordered_within, value, dumped))
    if not isinstance(dumped, dict):
        return dumped
    if isinstance(value, dict):
        same = len(value) == len(dumped)
        return dict(zip(dumped, map(_ordered_within, value.values(), dumped.values()), strict=True)) if same else dumped
    settled = dict(dumped)
    for name, item in _named_parts(value, dumped):
        settled[name] = _ordered_within(item, dumped[name])
    return settled


def _is_list_of(length: int, dumped: Any) -> bool:
    return isinstance(dumped, list) and len(dumped) == length


def _text_of(dumped: Any) -> bytes:
    return orjson.dumps(dumped, option=orjson.OPT_SORT_KEYS)


def _named_parts(value: Any, dumped: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a model or a dataclass consists of, computed fields too, under the names it is dumped with: by position,
    since names of their own (aliases) are known to pydantic alone."""
    if isinstance(value, BaseModel):
        own = value.model_dump(mode="json", by_alias=False)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        try:
            own = _cached_adapter(type(value))._adapter.dump_python(value, mode="json", by_alias=False)
        except TypeError:  # only the model that it is in knows how
            return
    else:
        return
    if isinstance(own, dict) and len(own) == len(dumped):
        extra = getattr(value, "model_extra", None) or {}  # may be named like a method of every model
        for name, alias in zip(own, dumped, strict=True):
            yield alias, extra[name] if name in extra else getattr(value, name, None)


def _holds_sets(value: Any) -> bool:
    """Every model that is written comes by here: no generators, and no look into what cannot hold any."""
    if isinstance(value, (set, frozenset)):
        return True
    parts: Iterable[Any] = ()
    if isinstance(value, (list, tuple)):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, BaseModel):
        extra = value.model_extra
        parts = value.__dict__.values() if not extra else [*value.__dict__.values(), *extra.values()]
        if computed := type(value).model_computed_fields:
            parts = [*parts, *(getattr(value, name) for name in computed)]
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, part.name, None) for part in dataclasses.fields(value)]
        if decorators := getattr(value, "__pydantic_decorators__", None):
            parts = [*parts, *(getattr(value, name) for name in decorators.computed_fields)]
    for part in parts:  # noqa: SIM110  # any() of a generator takes twice as long
        if type(part) not in ATOMS and _holds_sets(part):
            return True
    return False


def _non_finite(value: Any) -> str | None:
    """Where a NaN or an infinity is, which orjson would write as null; None: nowhere."""
    if isinstance(value, float):
        return None if math.isfinite(value) else ""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = enumerate(value)
    elif isinstance(value, BaseModel):
        items = {**value.__dict__, **(value.model_extra or {})}.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    for name, item in items:
        if isinstance(name, float) and not math.isfinite(name):
            return f".{name}"
        if item is not None and (path := _non_finite(item)) is not None:
            return f".{name}{path}"
    return None


def _explain(value: object, error: Exception) -> str:
    cause = error.__cause__ or error
    remedy = _BYTES_AS_BASE64 if isinstance(cause, UnicodeDecodeError) else _AS_TEXT if str(cause) == _TOO_LONG else ""
    return f"a value of type {type(value).__qualname__} cannot be written as JSON: {cause}{remedy}"


def _explain_validation(error: ValidationError) -> str:
    faults = error.errors(include_url=False)[:5]
    return "; ".join(": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"]))) for fault in faults)
