"""``python -m examples.flights``: the job, which an interrupt ends quietly at any moment, also while it is imported."""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from examples.flights.job import main as run_job  # with all that it needs: the longest part of its beginning

        return run_job()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
