"""The edge of the runtime: the embedded form (`Runtime`), HTTP (`create_app`) and the command line.

Names are imported when they are first used: ``mecha --help`` loads none of them, an embedded runtime no web framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime_api.app import create_app
    from runtime_api.loader import Application, LoadError, find_application, load_application
    from runtime_api.runtime import Runtime

__all__ = ["Application", "LoadError", "Runtime", "create_app", "find_application", "load_application"]

_HOMES = {"Runtime": "runtime", "create_app": "app"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'loader')}"), name)
