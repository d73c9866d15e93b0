"""Three durable steps on DBOS and SQLite, driven in the same process. Runs in the peers' virtual environment.

    python dbos_steps.py FILE IN_FLIGHT WARM_UP_S SECONDS

Prints one line of JSON. Workflows are awaited directly, DBOS's shortest way: nothing is polled. The file is in WAL
mode, as ours is (DBOS leaves SQLite's default, a rollback journal); synchronous is FULL in both.
"""

from __future__ import annotations

# mypy: disable-error-code="untyped-decorator,no-any-return"
import asyncio
import json
import sqlite3
import statistics
import sys
import time

from dbos import DBOS, DBOSConfig


@DBOS.step()
async def add_one(number: int) -> int:
    return number + 1


@DBOS.workflow()
async def three_steps(number: int) -> int:
    number = await add_one(number)
    number = await add_one(number)
    return await add_one(number)


async def drive(in_flight: int, warm_up_s: float, seconds: float) -> dict[str, float]:
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    latencies: list[float] = []

    async def work() -> None:
        while (started := time.perf_counter()) < end:
            result = await three_steps(0)
            assert result == 3
            now = time.perf_counter()
            if begin <= now < end:
                latencies.append(now - started)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return {"rate": len(latencies) / seconds, "p50_ms": statistics.median(latencies) * 1000}


def main() -> None:
    file = sys.argv[1]
    in_flight, warm_up_s, seconds = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    config: DBOSConfig = {"name": "bench", "system_database_url": f"sqlite:///{file}", "log_level": "ERROR"}
    DBOS(config=config)
    DBOS.launch()
    try:
        print(json.dumps(asyncio.run(drive(in_flight, warm_up_s, seconds))))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main()
