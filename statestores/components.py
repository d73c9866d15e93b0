"""From a URL, or from Dapr's Component YAML, to a store.

    open_url         a URL -> its store, not opened yet
    load_resources   files -> components meant for this app (see `statestores.resources`)
    make_store       a state component -> its store, not opened yet
    store_component  what the HTTP layer must know of a state component: prefix of keys, how often expired keys are
                     purged, their default time to live

Stores are found by name in the entry point group `mecha.statestores`: the name is the URL's scheme, and follows
``state.`` in a component's type. What is wrong with a URL or a component is a `ComponentError` that says what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol, cast

from statestores.errors import ComponentError
from statestores.keyrules import MAX_TTL_S
from statestores.resources import Component, Metadata, actor_component, load_resources, make_secret_store
from statestores.settingtext import duration_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from statestores.store import StateStore

__all__ = [
    "DEFAULT_PURGE_EVERY_S",
    "ENTRY_POINT_GROUP",
    "Component",
    "StoreComponent",
    "StoreFactory",
    "actor_component",
    "key_prefix",
    "load_resources",
    "make_secret_store",
    "make_store",
    "open_url",
    "store_component",
]

ENTRY_POINT_GROUP = "mecha.statestores"

DEFAULT_PURGE_EVERY_S = 60.0

# Also entry points of ours; named here so that a source tree which was never installed has its stores, and so that no
# other package can take their names.
_BUILT_IN = {
    "memory": "statestores.memory:MemoryStore",
    "redis": "statestores.redis:RedisStore",
    "sqlite": "statestores.sqlite:SqliteStore",
}
_SCHEMES = {"rediss": "redis", "unix": "redis"}  # URL schemes that are not a store's name
_TYPES = {"in-memory": "memory"}  # component types that are not a store's name

# Metadata of every state component that concerns the runtime, never the store.
_RUNTIME_METADATA = frozenset(
    name.lower()
    for name in (
        "actorStateStore",
        "keyPrefix",
        "cleanupInterval",
        "ttlInSeconds",
        "outboxPublishPubsub",
        "outboxPublishTopic",
        "outboxPubsub",
        "outboxDiscardWhenMissingState",
    )
)


@dataclass(frozen=True, slots=True)
class StoreComponent:
    """What the API in front of a state component has to know of it. `key_prefix` goes before every key, as it is.
    `purge_every_s` is None when expired keys are to stay, hidden. `ttl_s` is that of keys written without one."""

    name: str
    key_prefix: str
    purge_every_s: float | None = DEFAULT_PURGE_EVERY_S
    ttl_s: int | None = None


class StoreFactory(Protocol):
    """What the entry point of a store names, usually its class."""

    def from_url(self, url: str) -> StateStore: ...

    def from_metadata(self, metadata: Mapping[str, str]) -> StateStore: ...


def open_url(url: str) -> StateStore:
    """The store that `url` describes; its `open` is the caller's to call."""
    scheme, separator, _ = url.partition(":")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ComponentError("a store is given by a URL, like sqlite:///file.db, memory:// or redis://localhost:6379")
    name = _SCHEMES.get(scheme.lower(), scheme.lower())
    if name not in (known := _known_stores()):
        schemes = ", ".join(f"{scheme}://" for scheme in sorted({*known, *_SCHEMES}))
        raise ComponentError(f"no store is known for {scheme}:// URLs; there are {schemes}")
    return _factory(name).from_url(url)


def make_store(component: Component) -> StateStore:
    """The store that a component of type ``state.…`` describes; its `open` is the caller's to call. Errors do not say
    which component: that is the caller's to add, as to those of `open`."""
    implementation = component.type.lower().removeprefix("state.")
    name = _TYPES.get(implementation, implementation)
    known = _known_stores()
    if not component.is_state or name not in known:
        types = {f"state.{name}" for name in known - set(_TYPES.values())} | {f"state.{name}" for name in _TYPES}
        raise ComponentError(f"spec.type {component.type!r} is no state store; there are {', '.join(sorted(types))}")
    own = {name: text for name, text in component.metadata.items() if name.lower() not in _RUNTIME_METADATA}
    try:
        return _factory(name).from_metadata(Metadata(own))
    except ComponentError as error:
        raise ComponentError(f"spec.metadata: {error}") from error


def _known_stores() -> set[str]:
    return set(_BUILT_IN) | {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _factory(name: str) -> StoreFactory:
    if name in _BUILT_IN:
        return cast("StoreFactory", resolve_name(_BUILT_IN[name]))
    entries = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if len({entry.value for entry in entries}) > 1:
        values = ", ".join(sorted(entry.value for entry in entries))
        raise ComponentError(f"several installed packages bring a store named {name!r} ({values}): remove all but one")
    try:
        return cast("StoreFactory", entries[0].load())
    except (ImportError, AttributeError) as error:
        raise ComponentError(f"the store {name!r} ({entries[0].value}) cannot be loaded: {error}") from error


def store_component(component: Component, app_id: str, namespace: str = "default") -> StoreComponent:
    """The facts of one state component, for the app `app_id`."""
    return StoreComponent(
        name=component.name,
        key_prefix=key_prefix(component, app_id, namespace),
        purge_every_s=_purge_every_s(component),
        ttl_s=_ttl_s(component),
    )


def key_prefix(component: Component, app_id: str, namespace: str = "default") -> str:
    """What goes before every key that the app uses in this store, by the component's `keyPrefix`: ``appid`` (the
    default), ``namespace``, ``name`` (of the store: shared by all its apps), ``none``, or any other text, itself."""
    strategy = component.metadata.get("keyPrefix", "")
    match strategy.lower():
        case "" | "appid":
            parts = app_id
        case "namespace":
            parts = f"{namespace}.{app_id}" if namespace else app_id
        case "name":
            parts = component.name
        case "none":
            return ""
        case _:
            parts = strategy
    if "||" in parts:
        raise ComponentError(f"{component}: keyPrefix {parts!r} must not contain '||', which separates it from the key")
    return f"{parts}||"


def _purge_every_s(component: Component) -> float | None:
    """The component's `cleanupInterval`; zero or less means never, as in Dapr."""
    if not (text := component.metadata.get("cleanupInterval", "")):
        return DEFAULT_PURGE_EVERY_S
    if text.startswith("-"):
        return None
    return duration_s(f"{component}: cleanupInterval", text) or None


def _ttl_s(component: Component) -> int | None:
    """The component's `ttlInSeconds`, as Dapr's Redis has it; zero or less means none."""
    if not (text := component.metadata.get("ttlInSeconds", "")):
        return None
    if not re.fullmatch(r"-?[0-9]{1,12}", text) or int(text) > MAX_TTL_S:
        raise ComponentError(
            f"{component}: ttlInSeconds must be a whole number of seconds, at most {MAX_TTL_S}, not {text!r}"
        )
    return max(0, int(text)) or None
