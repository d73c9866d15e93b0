"""Dapr's Component YAML: files -> the components that are meant for one app, every value resolved to text.

    file -> document -> draft (checked by shape) -> component (scoped, references and templates resolved)

Documents of other kinds are passed over. Every error is a `ComponentError` that names the file, the document in it, the
field and what to do.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from statestores.errors import ComponentError
from statestores.secretstores import EnvironmentSecrets, is_protected_variable, read_file_secrets
from statestores.settingtext import duration_s, flag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic_core import ErrorDetails

    from statestores.secretstores import SecretStore

log = logging.getLogger(__name__)

_API_VERSION = "dapr.io/v1alpha1"
_ENV_SECRETS, _FILE_SECRETS = "secretstores.local.env", "secretstores.local.file"


class Metadata(Mapping[str, str]):
    """A component's settings by name. Names are found in any case, as in Dapr, and listed as they were written."""

    def __init__(self, items: Mapping[str, str]) -> None:
        self._items = dict(items)
        self._written = {name.lower(): name for name in items}

    def __getitem__(self, name: str) -> str:
        return self._items[self._written[name.lower()]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._written

    def __repr__(self) -> str:
        """Names alone: values may be secrets, and representations end up in logs."""
        return f"Metadata({', '.join(self._items)})"


@dataclass(frozen=True, slots=True)
class Component:
    """A component that is meant for this app. `metadata` is final text: references and templates are resolved."""

    name: str
    type: str
    version: str = "v1"
    metadata: Mapping[str, str] = field(default_factory=lambda: Metadata({}), hash=False)
    scopes: tuple[str, ...] = ()
    ignore_errors: bool = False
    source: Path = Path()
    init_timeout_s: float = 5.0

    @property
    def is_state(self) -> bool:
        return self.type.lower().startswith("state.")

    def flag(self, name: str) -> bool:
        """A setting that is true or false (the default). Raises `ComponentError` for anything else."""
        return flag(f"{self}: {name}", self.metadata.get(name, ""))

    def __str__(self) -> str:
        return f"{self.source}: component {self.name!r}"


def load_resources(
    path: Path | Sequence[Path],
    app_id: str,
    namespace: str = "default",
    environ: Mapping[str, str] = os.environ,
) -> list[Component]:
    """The components for `app_id` in files and directories (their ``*.yaml`` and ``*.yml``, not deeper), in order.
    Types are matched in any case, as Dapr's registry does.

    Documents of another kind or of another system are passed over.
    """
    paths = [path] if isinstance(path, Path) else path
    documents = [document for file in _files(paths) for document in _read_documents(file)]
    drafts = [_parse(document) for document in documents if _is_component(document)]
    mine = [draft for draft in drafts if not draft.content.scopes or app_id in draft.content.scopes]
    _check_names(mine)
    resolver = _Resolver(app_id, namespace, environ)
    secret_stores = (_ENV_SECRETS, _FILE_SECRETS)
    resolver.add_secret_stores([draft for draft in mine if draft.content.spec.type.lower() in secret_stores])
    components = [resolver.component(draft) for draft in mine]
    actor_component(components)
    for component in components:
        if not component.is_state and component.metadata.get("actorStateStore", "").lower() == "true":
            log.warning(
                "%s has actorStateStore, and %r is no state store: it is passed over", component, component.type
            )
    return components


def actor_component(components: Iterable[Component]) -> Component | None:
    """The one state component with `actorStateStore`. Raises `ComponentError` when there are several."""
    found = [component for component in components if component.is_state and component.flag("actorStateStore")]
    if len(found) > 1:
        raise ComponentError(
            f"actorStateStore is true in several components ({'; '.join(map(str, found))}): actors live in one store"
        )
    return found[0] if found else None


def make_secret_store(component: Component, environ: Mapping[str, str] = os.environ) -> SecretStore:
    """The secret store that a component of type ``secretstores.local.env`` or ``secretstores.local.file`` describes."""
    if component.type.lower() == _ENV_SECRETS:
        return EnvironmentSecrets(environ, component.metadata.get("prefix", ""))
    if component.type.lower() != _FILE_SECRETS:
        raise ComponentError(
            f"{component}: spec.type {component.type!r} is no secret store; there are {_ENV_SECRETS}, {_FILE_SECRETS}"
        )
    if not (file := component.metadata.get("secretsFile", "")):
        raise ComponentError(f"{component}: spec.metadata: secretsFile is missing: give the path of a JSON file")
    try:
        return read_file_secrets(
            Path(file),
            component.metadata.get("nestedSeparator", "") or ":",
            multi_valued=component.flag("multiValued"),
        )
    except ComponentError as error:
        raise ComponentError(f"{component}: secretsFile: {error}") from error


@dataclass(frozen=True, slots=True)
class _Document:
    file: Path
    number: int  # in the file, from 1
    content: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.file}, document {self.number}"


class _Model(BaseModel):
    """Unknown fields are passed over: files are shared with other runtimes and tools."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_empty(cls, content: object) -> object:
        """A name with nothing after it is as good as absent; an item's `value` is then the empty text."""
        if not isinstance(content, dict):
            return content
        return {name: value for name, value in content.items() if value is not None or name == "value"}


class _SecretKeyRef(_Model):
    name: str = Field(min_length=1)
    key: str = ""


class _Item(_Model):
    name: str = Field(min_length=1)
    value: str | None = None
    secret_key_ref: _SecretKeyRef | None = None
    env_ref: str | None = None

    @field_validator("value", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            return value
        raise ValueError("must be a text, a number or true or false: put anything else in quotes")

    @model_validator(mode="after")
    def _has_one_source(self) -> _Item:
        sources = [self.value or None, self.secret_key_ref, self.env_ref]
        if sum(source is not None for source in sources) > 1:
            raise ValueError("has more than one of value, secretKeyRef and envRef: keep one")
        if self.value is None and self.secret_key_ref is None and self.env_ref is None:
            raise ValueError("has no value: add value, secretKeyRef or envRef")
        return self


class _Spec(_Model):
    type: str = Field(pattern=r"^\w[\w-]*(\.[\w-]+)+$")
    version: str = "v1"
    ignore_errors: bool = False
    init_timeout: str = "5s"
    metadata: tuple[_Item, ...] = ()


class _ObjectMeta(_Model):
    name: str = Field(min_length=1)


class _Auth(_Model):
    secret_store: str = ""


class _ComponentDocument(_Model):
    api_version: str
    metadata: _ObjectMeta
    spec: _Spec
    auth: _Auth = _Auth()
    scopes: tuple[str, ...] = ()

    @field_validator("api_version")
    @classmethod
    def _is_known(cls, version: str) -> str:
        if version != _API_VERSION:
            raise ValueError(f"is {version!r}: write {_API_VERSION}")
        return version


@dataclass(frozen=True, slots=True)
class _Draft:
    """A component whose values are still to be resolved."""

    document: _Document
    content: _ComponentDocument

    @property
    def name(self) -> str:
        return self.content.metadata.name

    def __str__(self) -> str:
        return f"{self.document} (component {self.name!r})"


class _Loader(yaml.SafeLoader):
    """`yaml.safe_load` but for one thing: numbers and dates stay the text that was written, which is what metadata
    wants. YAML 1.1 would make 630 of 10:30, 83 of 0123 and 1.1 of 1.10."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
        elif path.is_file():
            yield path
        else:
            raise ComponentError(f"{path} does not exist: give a directory with Component YAML, or one such file")


def _read_documents(file: Path) -> Iterator[_Document]:
    try:
        contents = list(yaml.load_all(file.read_text(encoding="utf-8"), _Loader))  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ComponentError(f"{file}: cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ComponentError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error
    for number, content in enumerate(contents, 1):
        if isinstance(content, dict):
            yield _Document(file, number, content)


def _is_component(document: _Document) -> bool:
    """Whether it is a component of Dapr's. What does not say that it is Dapr's belongs to somebody else."""
    version, kind = document.content.get("apiVersion"), document.content.get("kind")
    if version is None:
        return kind == "Component"  # and then fails for its missing apiVersion
    if not str(version).startswith("dapr.io/"):
        return False
    if kind is None:
        raise ComponentError(f"{document}: kind is missing: write kind: Component")
    return bool(kind == "Component")


def _parse(document: _Document) -> _Draft:
    try:
        return _Draft(document, _ComponentDocument.model_validate(document.content))
    except ValidationError as error:
        raise ComponentError(f"{document}: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    """One line: each field that is wrong, as it is written in YAML, and why."""
    return "; ".join(f"{_field_path(fault['loc'])} {_reason(fault)}" for fault in error.errors())


def _field_path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def _reason(fault: ErrorDetails) -> str:
    match fault["type"]:
        case "missing":
            return "is missing: add it"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "string_pattern_mismatch":
            return f"is {fault['input']!r}: write a block and a name, like state.sqlite"
        case "string_too_short":
            return "is empty: fill it in"
        case _:
            return f"is wrong: {fault['msg']}, got {fault['input']!r}"


def _check_names(drafts: Sequence[_Draft]) -> None:
    seen: dict[str, _Draft] = {}
    for draft in drafts:
        if (other := seen.setdefault(draft.name, draft)) is not draft:
            raise ComponentError(f"{draft}: metadata.name is taken by {other.document}: rename one, or scope them")
        names: set[str] = set()
        for number, item in enumerate(draft.content.spec.metadata):
            if item.name.lower() in names:
                raise ComponentError(f"{draft}: spec.metadata[{number}] repeats {item.name!r}: remove one")
            names.add(item.name.lower())


class _Resolver:
    """Turns references and templates into text. `add_secret_stores` comes first."""

    def __init__(self, app_id: str, namespace: str, environ: Mapping[str, str]) -> None:
        self._app_id, self._namespace, self._environ = app_id, namespace, environ
        self._secret_stores: dict[str, SecretStore] = {}

    def add_secret_stores(self, drafts: Iterable[_Draft]) -> None:
        for draft in drafts:
            self._secret_stores[draft.name] = make_secret_store(self.component(draft), self._environ)

    def component(self, draft: _Draft) -> Component:
        spec = draft.content.spec
        metadata = {
            item.name: self._text(item, draft, f"{draft}: spec.metadata[{number}] ({item.name})")
            for number, item in enumerate(spec.metadata)
        }
        return Component(
            name=draft.name,
            type=spec.type,
            version=spec.version,
            metadata=Metadata(metadata),
            scopes=draft.content.scopes,
            ignore_errors=spec.ignore_errors,
            source=draft.document.file,
            init_timeout_s=_init_timeout_s(draft),
        )

    def _text(self, item: _Item, draft: _Draft, where: str) -> str:
        if item.secret_key_ref is not None:
            return self._secret(item.secret_key_ref, draft, where)
        if item.env_ref is not None:
            return self._variable(item.env_ref, where)
        return self._filled(item.value or "", where)

    def _secret(self, reference: _SecretKeyRef, draft: _Draft, where: str) -> str:
        store_name = draft.content.auth.secret_store
        if not store_name:
            raise ComponentError(f"{where}: secretKeyRef needs a secret store: add auth: {{secretStore: NAME}}")
        if (store := self._secret_stores.get(store_name)) is None:
            known = ", ".join(sorted(self._secret_stores)) or "none"
            raise ComponentError(
                f"{where}: auth.secretStore {store_name!r} is no secret store of this app (there are: {known}):"
                f" add a component of that name and of type {_ENV_SECRETS} or {_FILE_SECRETS}"
            )
        pairs = store.secret(reference.name)
        if pairs is None:
            raise ComponentError(f"{where}: {store_name!r} has no secret {reference.name!r}: add it there")
        key = reference.key or reference.name
        if key not in pairs:
            raise ComponentError(f"{where}: secret {reference.name!r} has no key {key!r}: use one of {sorted(pairs)}")
        return pairs[key]

    def _variable(self, name: str, where: str) -> str:
        if is_protected_variable(name):
            raise ComponentError(f"{where}: envRef {name!r} is the runtime's own: take another variable")
        if name not in self._environ:
            raise ComponentError(f"{where}: the variable {name!r} is not set: set it, or remove the envRef")
        return self._environ[name]

    def _filled(self, text: str, where: str) -> str:
        """`text` with its templates filled in; each {uuid} is a new one. Secrets and variables are left as they are."""

        def fill(template: re.Match[str]) -> str:
            match template[1]:
                case "uuid":
                    return str(uuid4())
                case "appID":
                    return self._app_id
                case "namespace":
                    return f"{self._namespace}.{self._app_id}"
            if not (pod := self._environ.get("POD_NAME", "")):
                raise ComponentError(f"{where}: uses {{podName}}: set the environment variable POD_NAME")
            return pod

        return re.sub(r"\{(uuid|appID|namespace|podName)\}", fill, text)


def _init_timeout_s(draft: _Draft) -> float:
    return duration_s(f"{draft}: spec.initTimeout", draft.content.spec.init_timeout)
