"""A method's parameters: from JSON or from Python values to validated arguments, and back to JSON.

Arguments cross actors by value. Immutable JSON values of exactly the annotated type pass as they are; everything else
goes through its JSON form, so a call behaves the same whether the target is in this process or across the network.
"""

from __future__ import annotations

import functools
import inspect
import typing
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import PydanticUserError

from actors.errors import InvalidArguments, UnserializableResult
from statestores.codec import (
    ATOMS,
    Adapter,
    CodecError,
    adapter,
    check_integers,
    decode,
    decode_exactly,
    encode,
    may_be_rounded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_REQUIRED = inspect.Parameter.empty


class Parameter(NamedTuple):
    name: str
    adapter: Adapter[Any]
    default: Any

    def from_json(self, value: Any) -> Any:
        if type(value) is self.adapter.atom:
            return value
        try:
            return self.adapter.restore(value)
        except CodecError as error:
            raise InvalidArguments(f"argument {self.name!r}: {error}") from None


class Signature:
    """Parameters and result of one function, `self` left out. Made once per function."""

    __slots__ = (
        "_names",
        "_required",
        "_single_atom",
        "atoms",
        "function_name",
        "parameters",
        "plain_results",
        "result",
    )

    def __init__(self, function: Callable[..., Any], *, bound: bool = True) -> None:
        self.function_name = function.__qualname__
        hints = _type_hints(function)
        declared = list(inspect.signature(function).parameters.values())[1 if bound else 0 :]
        for parameter in declared:
            if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                raise TypeError(
                    f"{self.function_name}: *{parameter.name} cannot be called over the wire; name every parameter"
                )
        self.parameters = tuple(
            Parameter(p.name, adapter(hints.get(p.name, Any), p.default), p.default) for p in declared
        )
        for p in self.parameters:
            if p.default is not _REQUIRED:
                check_default(f"{self.function_name}({p.name}=…)", p.adapter, p.default)
        self.result = adapter(hints.get("return", Any))
        # Results of these types are what the annotation asks for, and need no copy. (A float may be infinite.)
        self.plain_results = _plain_results(self.result) - {float}
        self.atoms = tuple(p.adapter.atom for p in self.parameters)
        self._names = {p.name: i for i, p in enumerate(self.parameters)}
        self._required = sum(p.default is _REQUIRED for p in self.parameters)
        self._single_atom = self.atoms[0] if len(self.atoms) == 1 else None

    def bind_json(self, payload: bytes) -> tuple[Any, ...]:
        """Arguments of a request body: one parameter takes the JSON value itself, several an object by name or an array
        by position, none an empty body. Raises `InvalidArguments`."""
        if not payload:
            return self._bind_values([]) if self._required == 0 else self._missing(self._required_names())
        try:
            value = decode(payload)
        except CodecError as error:
            raise InvalidArguments(f"the body is {error}") from None
        if self._single_atom is not None and type(value) is self._single_atom:
            return (value,)
        if may_be_rounded(payload):
            return self._bind_exactly(payload)
        return self._bind_json_value(value)

    def bind_python(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Arguments of a call in Python. Raises `InvalidArguments`."""
        if not kwargs and len(args) == len(self.atoms):
            if self._single_atom is not None and type(args[0]) is self._single_atom:
                return args
            for value, atom in zip(args, self.atoms, strict=True):
                if type(value) is not atom:
                    break
            else:
                return args
        return tuple(
            p.from_json(_by_value(value, p.name)) if value is not p.default else value
            for p, value in zip(self.parameters, self._arrange(args, kwargs), strict=True)
        )

    def encode_named(self, bound: tuple[Any, ...]) -> bytes:
        """Bound arguments as a JSON object by parameter name. Raises `InvalidArguments`."""
        try:
            return encode(dict(zip(self._names, bound, strict=True)))
        except CodecError as error:
            raise InvalidArguments(f"{self.function_name}: {error}") from None

    def bind_recorded(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Arguments from what `encode_named` wrote, perhaps by an older version of the function: names it no longer has
        are left out, new ones take their defaults."""
        if len(values) == len(self.parameters):
            try:
                return tuple(
                    v if type(v := values[p.name]) is p.adapter.atom else p.from_json(v) for p in self.parameters
                )
            except KeyError:
                pass
        missing = [p.name for p in self.parameters if p.default is _REQUIRED and p.name not in values]
        if missing:
            return self._missing(missing)
        return tuple(p.from_json(values[p.name]) if p.name in values else p.default for p in self.parameters)

    def encode_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The request body of a call: what `bind_json` turns back into these arguments. Raises `InvalidArguments`."""
        return self.encode_bound(self.bind_python(args, kwargs))

    def encode_bound(self, bound: tuple[Any, ...]) -> bytes:
        if not bound:
            return b""
        try:
            return encode(bound[0] if len(bound) == 1 else bound)
        except CodecError as error:
            raise InvalidArguments(f"{self.function_name}: {error}") from None

    def encode_result(self, result: Any) -> bytes:
        """Raises `UnserializableResult`, also when the annotation refuses the result."""
        data = self._encode_any(result)
        if type(result) not in self.plain_results and self.result.annotation is not Any:
            self.decode_result(data)
        return data

    def _encode_any(self, result: Any) -> bytes:
        try:
            return encode(result)
        except CodecError as error:
            raise UnserializableResult(
                f"{self.function_name} returned something that cannot be sent: {error}"
            ) from None

    def copy_result(self, result: Any) -> Any:
        """The caller's own copy of a result, as it would arrive from another process."""
        if type(result) in self.plain_results:
            return result
        return self.decode_result(self._encode_any(result))

    def decode_result(self, data: bytes) -> Any:
        try:
            return self.result.decode(data)
        except CodecError as error:
            raise UnserializableResult(
                f"{self.function_name} returned something its annotation refuses: {error}"
            ) from None

    def _bind_exactly(self, payload: bytes) -> tuple[Any, ...]:
        """Arguments of JSON with integers that are perhaps beyond 64 bits: a float or a Decimal takes them."""
        bound = self._bind_json_value(decode_exactly(payload))
        for parameter, value in zip(self.parameters, bound, strict=True):
            try:
                check_integers(value)
            except CodecError as error:
                raise InvalidArguments(f"argument {parameter.name!r}: {error}") from None
        return bound

    def _bind_json_value(self, value: Any) -> tuple[Any, ...]:
        if len(self.parameters) == 1:
            return self._bind_single(value)
        if isinstance(value, list):
            return self._bind_values(value)
        if isinstance(value, dict):
            return self._bind_named(value)
        if value is None and self._required == 0:
            return self._bind_values([])
        if len(self.parameters) > 1 and self._required <= 1:
            return self._bind_values([value])
        if not self.parameters:
            raise InvalidArguments(f"{self.function_name} takes no arguments: send an empty body")
        raise InvalidArguments(
            f"{self.function_name} takes {self._describe()}: send a JSON object by name or an array by position"
        )

    def _bind_single(self, value: Any) -> tuple[Any, ...]:
        parameter = self.parameters[0]
        try:
            return (parameter.from_json(value),)
        except InvalidArguments:
            # Some SDKs always send the array of arguments, and a call by keyword is an object. Accepted only where the
            # value itself does not fit; what is wrong is told of that, which is what was sent.
            with suppress(InvalidArguments):
                if isinstance(value, list) and len(value) == 1:
                    return (parameter.from_json(value[0]),)
                if isinstance(value, dict) and value.keys() == {parameter.name}:
                    return (parameter.from_json(value[parameter.name]),)
            raise

    def _bind_values(self, values: list[Any]) -> tuple[Any, ...]:
        if len(values) > len(self.parameters):
            raise InvalidArguments(f"{self.function_name} takes {self._describe()}, got {len(values)} arguments")
        missing = [p.name for p in self.parameters[len(values) :] if p.default is _REQUIRED]
        if missing:
            return self._missing(missing)
        given = [p.from_json(v) for p, v in zip(self.parameters, values, strict=False)]
        return (*given, *(p.default for p in self.parameters[len(values) :]))

    def _bind_named(self, values: dict[str, Any]) -> tuple[Any, ...]:
        if unknown := values.keys() - self._names.keys():
            raise InvalidArguments(f"{self.function_name} takes {self._describe()}, not {', '.join(sorted(unknown))}")
        missing = [p.name for p in self.parameters if p.default is _REQUIRED and p.name not in values]
        if missing:
            return self._missing(missing)
        return tuple(p.from_json(values[p.name]) if p.name in values else p.default for p in self.parameters)

    def _arrange(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        if len(args) > len(self.parameters):
            raise InvalidArguments(f"{self.function_name} takes {self._describe()}, got {len(args)} arguments")
        values = [*args, *(p.default for p in self.parameters[len(args) :])]
        for name, value in kwargs.items():
            position = self._names.get(name)
            if position is None or position < len(args):
                again = "" if position is None else " again"
                raise InvalidArguments(f"{self.function_name} takes {self._describe()}, not {name}{again}")
            values[position] = value
        missing = [p.name for p, v in zip(self.parameters, values, strict=True) if v is _REQUIRED]
        if missing:
            self._missing(missing)
        return values

    def _missing(self, names: list[str]) -> tuple[Any, ...]:
        raise InvalidArguments(f"{self.function_name} takes {self._describe()}; missing: {', '.join(names)}")

    def _required_names(self) -> list[str]:
        return [p.name for p in self.parameters if p.default is _REQUIRED]

    def _describe(self) -> str:
        return f"({', '.join(self._names)})" if self.parameters else "no arguments"


def check_default(where: str, found: Adapter[Any], default: Any) -> None:
    """Raises `TypeError` for what could not be written, or not read again as what the annotation asks for."""
    try:
        found.decode(encode(default))
    except PydanticUserError:  # refers to what its module defines later
        return
    except CodecError as error:
        raise TypeError(f"{where} cannot have this default: {error}") from None


def _plain_results(result: Adapter[Any]) -> frozenset[type]:
    if result.annotation is Any:
        return ATOMS
    if result.annotation in (None, type(None)):
        return frozenset({type(None)})
    return frozenset() if result.atom is None else frozenset({result.atom})


def by_position(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function such that every parameter can be given by position, as bound arguments are."""
    parameters = list(inspect.signature(function).parameters.values())
    named = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if not named:
        return function
    first = len(parameters) - len(named)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args[:first], **dict(zip(named, args[first:], strict=True)))

    return call


def _by_value(value: Any, name: str) -> Any:
    if type(value) in ATOMS:
        return value
    try:
        return decode(encode(value))
    except CodecError as error:
        raise InvalidArguments(f"argument {name!r}: {error}") from None


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolved annotations. Classes made inside functions may name types that cannot be resolved from outside: said
    so."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{function.__qualname__}: annotation cannot be resolved ({error}); "
            "import the type at module level (not under TYPE_CHECKING)"
        ) from error
