"""Activities that ask for processors, each in a process of its own: what a cluster does with them, without one.

`python -m tests.workflow.apart` takes an order on standard input, its result on standard output.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workflow import RetryPolicy, WorkerDied, activity
from workflow.activities import Ran, WorkerLost, activity_info, run_here

if TYPE_CHECKING:
    from workflow.definition import Needs
    from workflow.orders import Order
    from workflow.payloads import Keeper
    from workflow.pieces import Data

ROOT = Path(__file__).parents[2]


def begins(journal: str) -> list[str]:
    """What the attempts have noted at their beginning: process id, attempt, whether it knows of a former one."""
    path = Path(journal)
    return path.read_text().splitlines() if path.exists() else []


def _note(journal: str) -> None:
    info = activity_info()
    with Path(journal).open("a") as lines:
        lines.write(f"{os.getpid()} {info.attempt} {info.redelivered}\n")


@activity(num_cpus=1)
def dies(journal: str, times: int) -> int:
    """Kills its own process, so many times."""
    _note(journal)
    begun = len(begins(journal))
    if begun <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return begun


@activity(num_cpus=1, retry=RetryPolicy(max_attempts=2, initial_interval=0.01))
def always_dies(journal: str) -> None:
    _note(journal)
    os.kill(os.getpid(), signal.SIGKILL)


@activity(num_cpus=1)
def never_ends() -> None:
    while True:
        time.sleep(3600)


@activity(num_cpus=1, retry=RetryPolicy(max_attempts=1, timeout=0.3))
def is_cut_off() -> None:
    while True:
        time.sleep(3600)


class Processes:
    """Where activities run. `losses`: of so many attempts nothing is heard, as if their node had been lost. `pids`: of
    all processes there have been."""

    def __init__(self, losses: int = 0) -> None:
        self.pids: list[int] = []
        self._losses = losses

    def has_processors(self) -> bool:
        return True

    async def run(self, order: Order, needs: Needs, keeper: Keeper | None, arguments: Data | None) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.workflow.apart"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.pids.append(process.pid)
        try:
            said, _ = await process.communicate(pickle.dumps(order))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if self._losses:
            self._losses -= 1
            raise WorkerLost("its node is gone")
        if process.returncode:
            raise WorkerDied(f"it ended with {process.returncode}")
        return Ran(*pickle.loads(said))


def main() -> None:
    order: Order = pickle.load(sys.stdin.buffer)
    found = {activity.name: activity for activity in (dies, always_dies, never_ends, is_cut_off)}
    sys.stdout.buffer.write(pickle.dumps(run_here(found[order.name], order)))


if __name__ == "__main__":
    main()
