"""``python -m tests.rayhead``: a small Ray, as `mecha run` starts one, without an application. It prints its address
when it is up, and ends when its standard input does.

It ignores SIGINT, as whatever a script starts in the background: Ray's processes inherit that, and tasks must be
interrupted all the same."""

from __future__ import annotations

import signal
import sys

import ray

from actors.placement.ray import start_ray, stop_ray

CPUS = 2


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_ray(None, CPUS)
    print(f"ray: {ray.get_runtime_context().gcs_address}", flush=True)
    sys.stdin.read()
    stop_ray()


if __name__ == "__main__":
    main()
