"""How soon a thread that waits for the interpreter gets it.

Python lets a busy thread run for 5 ms before it has to make room. A store's thread is seldom more than a millisecond at
work, but it needs the interpreter before and after: beside a busy event loop most of its time went by in waiting for
that, the loop and the disk took turns, and one of two cores stood idle. So a runtime shortens the interval while it
runs. What it costs is a switch of threads more per interval, and only where several threads want to run.
"""

from __future__ import annotations

import sys

_INTERVAL_S = 0.0003


def switch_often() -> float:
    """Shorten the interval, never lengthen it. Returns the former one, for `restore`."""
    former = sys.getswitchinterval()
    if former > _INTERVAL_S:
        sys.setswitchinterval(_INTERVAL_S)
    return former


def restore(former: float) -> None:
    """Put a former interval back, unless somebody else has changed it since."""
    if abs(sys.getswitchinterval() - _INTERVAL_S) < 1e-6:  # it is kept in microseconds
        sys.setswitchinterval(former)
