"""From a module to what it serves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from runtime_api.loader import LoadError, absolute_target, default_app_id, find_application, load_application

if TYPE_CHECKING:
    from pathlib import Path

SHOP = """
from actors import actor, method
from workflow import activity, workflow

@actor
class Cart:
    items: int = 0

    @method
    async def add(self) -> int:
        self.items += 1
        return self.items

@actor(name="Stock")
class Warehouse:
    pass

@activity
async def charge(cents: int) -> str:
    return "ok"

@workflow
async def order(cents: int) -> str:
    return await charge(cents)

chosen = [Cart, order]
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / f"shop_{tmp_path.name}.py"
    file.write_text(SHOP)
    return file


def test_what_is_decorated_is_found(shop: Path) -> None:
    """No registration call: decorated classes and functions are the application."""
    application = load_application(str(shop))
    assert sorted(d.name for d in application.actors) == ["Cart", "Stock"]
    assert [w.name for w in application.workflows] == ["order"]
    assert [a.name for a in application.activities] == ["charge"]


def test_files_are_named_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes with another working directory. Modules are named as they are, also those with a dot and "py" in
    their names."""
    monkeypatch.chdir(tmp_path)
    assert absolute_target("shop.py") == f"{tmp_path}/shop.py"
    assert absolute_target("a/../shop.py:chosen.first") == f"{tmp_path}/shop.py:chosen.first"
    assert absolute_target("sub.pyx/shop.py") == f"{tmp_path}/sub.pyx/shop.py"
    for module in ("acme.pyservice", "acme.pyservice:app", "acme.shop", "acme"):
        assert absolute_target(module) == module


def test_a_name_chooses(shop: Path) -> None:
    """A name stands for one thing or a list of them."""
    assert [d.name for d in load_application(f"{shop}:Cart").actors] == ["Cart"]
    chosen = load_application(f"{shop}:chosen")
    assert ([d.name for d in chosen.actors], [w.name for w in chosen.workflows]) == (["Cart"], ["order"])


def test_modules_are_loaded_by_name_too(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`package.module` is as good as a path."""
    monkeypatch.syspath_prepend(str(shop.parent))
    assert [d.name for d in load_application(f"{shop.stem}:Warehouse").actors] == ["Stock"]


def test_siblings_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application may be several files beside each other."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"parts_{tmp_path.name}.py").write_text(SHOP)
    main = tmp_path / f"main_{tmp_path.name}.py"
    main.write_text(f"from parts_{tmp_path.name} import Cart\n")
    assert [d.name for d in load_application(str(main)).actors] == ["Cart"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("x = 1\n", "found no @actor"),
        ("def broken(:\n", "line 1"),
        ("import nothing_of_that_name\n", "nothing_of_that_name"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("import sys; sys.exit(3)\n", "exit code 3"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(tmp_path: Path, content: str, told: str) -> None:
    """Each mistake is named, with its place, on one line."""
    file = tmp_path / f"bad_{tmp_path.name}.py"
    file.write_text(content)
    with pytest.raises(LoadError, match=told) as caught:
        load_application(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["", ":Cart"])
def test_no_name_at_all(target: str) -> None:
    """A variable of a script that is not set names no application: that is said, and what would."""
    with pytest.raises(LoadError, match=r"no application is named: give app\.py"):
        load_application(target)


@pytest.mark.parametrize("target", ["nowhere.py", "./nowhere/app.py", "no.such.module", "json:nothing"])
def test_missing_files_modules_and_names(target: str) -> None:
    """What is not there is said to be not there."""
    with pytest.raises(LoadError):
        load_application(target)


@pytest.mark.parametrize("target", [".", "..", ".main", "main.py:", "a::b"])
def test_what_names_nothing(target: str) -> None:
    """It is told so in our words, not in those of the import machinery."""
    with pytest.raises(LoadError, match=r"neither a file that ends with \.py nor the name of a module"):
        load_application(target)


def test_two_of_one_name_are_refused(shop: Path) -> None:
    """A call by name must mean one thing."""
    cart = load_application(str(shop)).actors[0].cls
    other = type("Cart", (cart,), {})
    from actors import actor

    with pytest.raises(LoadError, match="'Cart'"):
        find_application([cart, actor(other)])


@pytest.mark.parametrize(("target", "app_id"), [("a/b/app.py:x", "app"), ("shop.py", "shop"), ("pkg.mod:y", "mod")])
def test_default_app_id(target: str, app_id: str) -> None:
    """The application's file names it."""
    assert default_app_id(target) == app_id
