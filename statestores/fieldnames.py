"""The names that fields of models and dataclasses have in JSON: what is written under one must be read under it.

pydantic lets a field be written under one name and read under another, which suits what only goes out, or only comes
in. What is durable does both: a field that is not found again is lost, or takes its default without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MODELS = {"model": "model-fields", "dataclass": "dataclass-args"}
_SERIALIZER = "serialization"
_BEFORE = frozenset({"function-before", "function-wrap"})
# Parts of a schema that hold no schemas, or such as are looked at where they are used.
_VALUES = frozenset({"cls", "config", "default", "definitions", "expected", "metadata", _SERIALIZER})


def check_field_names(schema: Any) -> None:
    """`schema`: pydantic's core schema of an annotation. Raises `TypeError` for a field, anywhere in it, that is not
    read under the name it is written under, or shares that with another."""
    for model in _models_in(schema):
        owners: dict[str, str] = {}
        for name, field in _fields_of(model["schema"]):
            where = f"{model['cls'].__qualname__}.{name}"
            written = field.get("serialization_alias", name)
            aliases, config = _aliases(field), model.get("config", {})
            read = aliases if config.get("validate_by_alias", True) else []
            if not aliases or config.get("validate_by_name"):
                read = [*read, name]
            if written not in read:
                known = written in (*aliases, name)
                remedy = "ConfigDict(validate_by_name=True, validate_by_alias=True)" if known else f"alias={written!r}"
                raise TypeError(
                    f"{where} is written as {written!r} and read as {' or '.join(map(repr, read))}, so it would be "
                    f"lost: give it one name for both, with {remedy}"
                )
            if written in owners:
                raise TypeError(f"{where} and {owners[written]} are both written as {written!r}, so one would be lost")
            owners[written] = name


def _models_in(root: Any) -> Iterator[Mapping[str, Any]]:
    """Those that are read and written by their fields alone. A serializer of the whole, or a validator that comes
    before the fields, may know names of its own."""
    named: dict[str, Any] = {}
    seen: set[int] = set()  # pydantic puts one and the same schema wherever its type stands

    def walk(part: Any, own_names: bool) -> Iterator[Mapping[str, Any]]:
        if id(part) in seen:
            return
        if isinstance(part, (list, tuple)):
            for each in part:
                yield from walk(each, own_names)
        elif isinstance(part, dict):
            seen.add(id(part))
            kind = part.get("type")
            if not isinstance(kind, str):  # what it holds is under names of its own, "type" perhaps
                for each in part.values():
                    yield from walk(each, own_names)
            elif not part.get("serialization_exclude") and not _has_own_form(part):
                named.update({each["ref"]: each for each in part.get("definitions", ())})
                if kind in _MODELS:
                    if not own_names and part["schema"]["type"] == _MODELS[kind]:
                        yield part
                    own_names = False
                own_names = own_names or kind in _BEFORE
                for name, each in part.items():
                    if name not in _VALUES:
                        yield from walk(each, own_names)
                if kind == "definition-ref":
                    yield from walk(named.get(part["schema_ref"]), own_names)

    return walk(root, False)


def _has_own_form(schema: Mapping[str, Any]) -> bool:
    return str(schema.get(_SERIALIZER, {}).get("type", "")).startswith("function")


def _fields_of(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """By their own names. Left out is what is not written, or not read, because its class says so."""
    fields = schema["fields"]
    named = fields.items() if isinstance(fields, dict) else [(field["name"], field) for field in fields]
    return (
        (name, field) for name, field in named if not field.get("serialization_exclude") and field.get("init", True)
    )


def _aliases(field: Mapping[str, Any]) -> list[str]:
    """It is read under. A way into a value, which one may be, is shown with dots."""
    alias = field.get("validation_alias")
    if alias is None or isinstance(alias, str):
        return [] if alias is None else [alias]
    ways = alias if isinstance(alias[0], list) else [alias]
    return [".".join(map(str, way)) for way in ways]
