"""The names that fields of models and dataclasses have in JSON: what is written under one must be read under it.

pydantic lets a field be written under one name and read under another, which suits what only goes out, or only comes
in. What is durable does both: a field that is not found again is lost, or takes its default without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MODELS = {"model": "model-fields", "dataclass": "dataclass-args"}
# Parts of a schema that hold values, not schemas.
_SERIALIZER = "serialization"
_VALUES = frozenset({"cls", "config", "default", "expected", "metadata", _SERIALIZER})


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


def _models_in(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Those that are read and written by their fields alone. A serializer of the whole, or a validator that comes
    before the fields, may know names of its own."""
    if isinstance(schema, (list, tuple)):
        for part in schema:
            yield from _models_in(part)
    elif isinstance(schema, dict):
        kind = schema.get("type")
        is_schema = isinstance(kind, str)  # else what it holds is under names of its own, "type" perhaps
        if is_schema and kind in _MODELS and schema["schema"]["type"] == _MODELS[kind] and not schema.get(_SERIALIZER):
            yield schema
        for name, part in schema.items():
            if not is_schema or name not in _VALUES:
                yield from _models_in(part)


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
