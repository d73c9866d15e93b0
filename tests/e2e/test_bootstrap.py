"""The script that makes the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def has_pip(venv: Path) -> bool:
    return subprocess.run([venv / "bin/python", "-m", "pip", "--version"], capture_output=True).returncode == 0


def test_set_up_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    """Killed while it makes the environment, it leaves a Python without pip; started again, it puts pip there."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    assert not has_pip(venv)
    environment = {**os.environ, "VENV": str(venv), "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    again = subprocess.run([ROOT / "scripts/bootstrap", "run"], env=environment, capture_output=True, text=True)
    assert has_pip(venv), again.stderr
