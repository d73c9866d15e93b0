"""From ``app.py[:name]``, a module or a list to the actors, workflows and activities in it. There is no registration
call: what carries a decorator is served, wherever it was imported from."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar, cast

from actors.definition import ActorDefinition, definition_of
from actors.fieldguard import check_guards
from workflow.definition import Activity, Workflow

AppSource: TypeAlias = ModuleType | Mapping[str, object] | Iterable[object]

N = TypeVar("N", ActorDefinition, "Workflow[Any, Any]", "Activity[Any, Any]")


class LoadError(Exception):
    """The application cannot be loaded; the text is one line that says where and why."""


@dataclass(frozen=True, slots=True)
class Application:
    """What an application brings. Names are unique within each kind."""

    actors: tuple[ActorDefinition, ...] = ()
    workflows: tuple[Workflow[Any, Any], ...] = ()
    activities: tuple[Activity[Any, Any], ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.actors or self.workflows or self.activities)


def find_application(source: AppSource) -> Application:
    """The decorated things in a module, a namespace, or a list of classes, functions and modules.

    Raises `LoadError` when two different things of a kind have one name, or a class is not guarded any more.
    """
    found = _objects(source)
    types = [definition for item in found if (definition := definition_of(item)) is not None]
    try:
        for definition in types:
            check_guards(definition)
    except TypeError as error:
        raise LoadError(str(error)) from None
    return Application(
        _unique("actor types", types),
        _unique("workflows", [item for item in found if isinstance(item, Workflow)]),
        _unique("activities", [item for item in found if isinstance(item, Activity)]),
    )


def _objects(source: AppSource) -> list[object]:
    if isinstance(source, ModuleType):
        return list(vars(source).values())
    if isinstance(source, Mapping):
        return list(source.values())
    nested = (
        vars(item).values() if isinstance(item, ModuleType) else [item] for item in cast("Iterable[object]", source)
    )
    return [item for items in nested for item in items]


def _unique(kind: str, found: list[N]) -> tuple[N, ...]:
    by_name: dict[str, N] = {}
    for item in found:
        if by_name.setdefault(item.name, item) is not item:
            raise LoadError(f"two {kind} are named {item.name!r}: give one of them another name in its decorator")
    return tuple(by_name.values())


def load_application(target: str) -> Application:
    """The application at ``path/app.py``, ``path/app.py:name``, ``package.module`` or ``package.module:name``.

    `name` is something in the module: a decorated class or function, a list of them, or a module. The module runs as an
    import would run it, with its directory on ``sys.path``. Raises `LoadError`.
    """
    place, name = _split(target)
    if not place:
        raise LoadError("no application is named: give app.py, app.py:name, package.module or package.module:name")
    module = _import(place)
    source: AppSource = module if not name else _named(module, name, place)
    application = find_application(source)
    if application.is_empty:
        raise LoadError(f"{target}: found no @actor class, no @workflow and no @activity in it")
    return application


def default_app_id(target: str) -> str:
    """The app's id when none was given: the name of its file or module."""
    place, _ = _split(target)
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]


def absolute_target(target: str) -> str:
    """The same application from any working directory: a file with its whole path, a module as it is."""
    place, _ = _split(target)
    return os.path.abspath(place) + target[len(place) :] if _is_file(place) else target


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _split(target: str) -> tuple[str, str]:
    place, separator, name = target.rpartition(":")
    # A colon may belong to a path (C:\app.py): what follows it must be a name.
    return (place, name) if separator and name.replace(".", "").isidentifier() else (target, "")


def _named(module: ModuleType, name: str, place: str) -> AppSource:
    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise LoadError(f"{place}: there is no {name!r} in it")
        value = getattr(value, part)
    if isinstance(value, list | tuple | set | frozenset | ModuleType | Mapping):
        return value
    return [value]


def _import(place: str) -> ModuleType:
    try:
        return _import_file(Path(place)) if _is_file(place) else _import_module(place)
    except LoadError:
        raise
    except SyntaxError as error:
        raise LoadError(f"{place}: {error.msg} ({error.filename}, line {error.lineno})") from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        raise LoadError(f"{place}: {type(error).__name__}: {text} ({frame.filename}, line {frame.lineno})") from error
    except SystemExit as error:
        raise LoadError(
            f"{place}: the module ended the program (exit code {error.code}) while it was imported"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    path = path.resolve()
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return loaded
        name = f"mecha_app_{name}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if "" in name.split(".") or ":" in name:
        raise LoadError(f"{name}: neither a file that ends with .py nor the name of a module")
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)
