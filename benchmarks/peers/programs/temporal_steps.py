"""Three activities on Temporal, worker and client in one process. Runs in the peers' virtual environment.

    python temporal_steps.py PORT IN_FLIGHT WARM_UP_S SECONDS

Prints one line of JSON. The worker scales its pollers by itself, as Temporal's pages recommend, and runs workflows
without the sandbox, which is quicker.
"""

from __future__ import annotations

# mypy: disable-error-code="untyped-decorator,no-any-return"
import asyncio
import json
import os
import statistics
import sys
import time
from datetime import timedelta
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker

QUEUE = "bench"


@activity.defn
async def add_one(number: int) -> int:
    return number + 1


@workflow.defn
class ThreeSteps:
    @workflow.run
    async def run(self, number: int) -> int:
        for _ in range(3):
            number = await workflow.execute_activity(add_one, number, start_to_close_timeout=timedelta(seconds=60))
        return number


async def drive(client: Client, in_flight: int, warm_up_s: float, seconds: float) -> dict[str, float]:
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    latencies: list[float] = []

    async def work() -> None:
        while (started := time.perf_counter()) < end:
            result = await client.execute_workflow(ThreeSteps.run, 0, id=str(uuid4()), task_queue=QUEUE)
            assert result == 3
            now = time.perf_counter()
            if begin <= now < end:
                latencies.append(now - started)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return {"rate": len(latencies) / seconds, "p50_ms": statistics.median(latencies) * 1000}


async def main() -> None:
    client = await Client.connect(f"127.0.0.1:{sys.argv[1]}")
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[ThreeSteps],
        activities=[add_one],
        workflow_runner=UnsandboxedWorkflowRunner(),
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
        activity_task_poller_behavior=PollerBehaviorAutoscaling(),
    )
    async with worker:
        result = await drive(client, int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    print(json.dumps(result), flush=True)
    # The client's native threads now and then bring the interpreter down while it finishes. All has been said.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
