"""Peers that are driven inside their own process: the program does the loop, and prints what came of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.processes import WrongResult, foreign_environment

if TYPE_CHECKING:
    from benchmarks.model import Setting


class PeerDrive(NamedTuple):
    rate: float
    p50_ms: float

    @property
    def detail(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms"


def driven(python: Path, program: str, where: object, in_flight: int, setting: Setting) -> PeerDrive:
    """Run ``program WHERE IN_FLIGHT WARM_UP_S SECONDS``. Raises `WrongResult`."""
    times = (str(setting.peer_warm_up_s), "5" if setting.quick else "10")
    command = [str(python), str(Path(__file__).parent / "programs" / program), str(where), str(in_flight), *times]
    done = subprocess.run(
        command, cwd=setting.directory, env=foreign_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise WrongResult(f"{program} failed:\n{done.stderr[-3000:]}")
    return PeerDrive(**json.loads(done.stdout.splitlines()[-1]))
