"""``python -m tests.rayhead``: a small Ray, as `mecha run` starts one, without an application. It prints its address
when it is up, and ends when its standard input does."""

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
