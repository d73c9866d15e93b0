"""A small Ray of its own for the tests of one session, as `mecha run` starts one, and no application on it yet.

    python -m tests.rayhead           prints its address when it is up, and ends with its standard input
"""

from __future__ import annotations

import sys

import ray

from actors.placement.ray import start_ray, stop_ray

CPUS = 2


def main() -> None:
    start_ray(None, CPUS)
    print(f"ray: {ray.get_runtime_context().gcs_address}", flush=True)
    sys.stdin.read()
    stop_ray()


if __name__ == "__main__":
    main()
