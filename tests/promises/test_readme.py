"""The README is a program: what it shows runs, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """The README's application, as a reader would save it."""
    found = re.search(r"```python\n(# bank\.py\n.*?)```", README.read_text(), re.DOTALL)
    assert found is not None, "the README has lost its example"
    file = tmp_path / "bank.py"
    file.write_text(found[1])
    return file


def _run(file: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(README.parent)}
    done = subprocess.run(
        [sys.executable, file.name], cwd=file.parent, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_example_runs_embedded(bank: Path) -> None:
    """README: "`python bank.py` runs it embedded", on a SQLite file."""
    assert _run(bank) == ["10", "told alice about 1000", "710"]
    assert (bank.parent / "bank.db").exists()


def test_what_was_answered_is_there_after_a_restart(bank: Path) -> None:
    """README: "A reply means committed": the second run finds the first one's state, and its finished workflow."""
    _run(bank)
    bank.write_text(bank.read_text().replace('instance_id="june"', 'instance_id="july"'))
    bank.write_text(bank.read_text().replace('wait("june")', 'wait("july")'))
    assert _run(bank) == ["720", "told alice about 1000", "1420"]


def test_the_example_is_readable_to_a_type_checker(bank: Path) -> None:
    """docs/actors.md: "A reference by class is checked by your type checker", which finds what `pip install -e .` has
    installed, from anywhere."""
    check = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--cache-dir", os.devnull, bank.name]
    done = subprocess.run(check, cwd=bank.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
