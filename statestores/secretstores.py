"""The two local secret stores of Dapr, from which components take what should not stand in their YAML.

A secret has a name and holds one or several (key, text) pairs; a single-valued one has its own name for a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import orjson

from statestores.errors import ComponentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class SecretStore(Protocol):
    def secret(self, name: str) -> Mapping[str, str] | None:
        """The pairs of a secret, None when there is none of that name."""

    def secrets(self) -> Mapping[str, Mapping[str, str]]:
        """All of them, by name."""


def is_protected_variable(name: str) -> bool:
    """Whether an environment variable belongs to the runtime itself: neither components nor applications get at it."""
    return name.upper() == "APP_API_TOKEN" or name.upper().startswith("DAPR_")


@dataclass(frozen=True, slots=True, repr=False)
class EnvironmentSecrets:
    """`secretstores.local.env`: environment variables, seen without `prefix`."""

    environ: Mapping[str, str]
    prefix: str = ""

    def secret(self, name: str) -> Mapping[str, str] | None:
        variable = self.prefix + name
        if is_protected_variable(variable) or variable not in self.environ:
            return None
        return {name: self.environ[variable]}

    def secrets(self) -> Mapping[str, Mapping[str, str]]:
        names = (variable.removeprefix(self.prefix) for variable in self.environ if variable.startswith(self.prefix))
        return {name: pairs for name in names if (pairs := self.secret(name)) is not None}


@dataclass(frozen=True, slots=True, repr=False)
class FileSecrets:
    """`secretstores.local.file`: a JSON file, read once."""

    pairs: Mapping[str, Mapping[str, str]]

    def secret(self, name: str) -> Mapping[str, str] | None:
        return self.pairs.get(name)

    def secrets(self) -> Mapping[str, Mapping[str, str]]:
        return self.pairs


def read_file_secrets(path: Path, separator: str = ":", *, multi_valued: bool = False) -> FileSecrets:
    """Nested names are joined by `separator`: ``{"redis": {"password": "x"}}`` is the secret ``redis:password``. With
    `multi_valued`, each top-level name is a secret and only what lies below is joined. A relative `path` starts at the
    working directory. Raises `ComponentError`."""
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ComponentError(f"cannot read the secrets file {path.absolute()}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ComponentError(f"the secrets file {path.absolute()} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ComponentError(f"the secrets file {path.absolute()} must hold a JSON object, names and their values")
    if not multi_valued:
        return FileSecrets({name: {name: text} for name, text in _flatten(content, separator)})
    return FileSecrets({name: _pairs(name, value, separator) for name, value in content.items()})


def _pairs(name: str, value: object, separator: str) -> dict[str, str]:
    return dict(_flatten(value, separator)) if isinstance(value, dict | list) else {name: _text(value)}


def _flatten(value: object, separator: str, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = [(str(place), element) for place, element in enumerate(value)]
    else:
        yield separator.join(path), _text(value)
        return
    for name, element in inner:
        yield from _flatten(element, separator, (*path, name))


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
