"""How often Python's garbage collector looks at the young.

A turn leaves no cycles behind, but makes enough objects to set the collector off every few dozen turns: with Python's
own thresholds its fruitless looks took 15 to 25 % of the event loop's time under load. So a runtime makes them rarer
while it runs. What has to be collected still is, later.
"""

from __future__ import annotations

import gc

_THRESHOLDS = (100_000, 50, 100)


def collect_rarely() -> tuple[int, int, int]:
    """Raise the thresholds, never lower them. Returns the former ones, for `restore`."""
    former = gc.get_threshold()
    if 0 < former[0] < _THRESHOLDS[0]:  # 0: somebody has switched the collector off
        gc.set_threshold(*_THRESHOLDS)
    return former


def restore(former: tuple[int, int, int]) -> None:
    """Put former thresholds back, unless somebody else has changed them since."""
    if gc.get_threshold() == _THRESHOLDS:
        gc.set_threshold(*former)
