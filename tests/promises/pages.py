"""Pages of the documentation as programs: their examples run, one after the other, as they stand."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


async def run_page(page: Path) -> dict[str, Any]:
    """Run each block of Python, with its assertions, in order; what they have defined."""
    # Where the examples live: annotations are resolved through it.
    module = ModuleType(f"{page.stem}_page")
    sys.modules[module.__name__] = module
    try:
        for block in _examples(page):
            code = compile(block, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            result = eval(code, vars(module))
            if inspect.isawaitable(result):
                await result
    finally:
        del sys.modules[module.__name__]
    return vars(module)


def unnamed_errors(page: Path, package: ModuleType, base: type[Exception]) -> list[str]:
    """Errors of a package, below `base`, that a page leaves out; not those that others are derived from."""
    exported = {name: getattr(package, name) for name in package.__all__}
    errors = [name for name, found in exported.items() if inspect.isclass(found) and issubclass(found, base)]
    assert errors
    return [name for name in errors if not exported[name].__subclasses__() and f"`{name}`" not in page.read_text()]


def _examples(page: Path) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert found, f"{page} has lost its examples"
    return found
