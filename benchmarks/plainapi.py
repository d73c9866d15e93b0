"""What reads are compared with: a FastAPI application that reads a dict. Served by ``python -m benchmarks.plainapi
PORT``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.loops import new_event_loop

KEYS = 1000

app = FastAPI()
_values: dict[str, Any] = {f"k{number}": {"number": number} for number in range(KEYS)}


@app.get("/state/{key}")
async def read(key: str) -> Any:
    return _values[key]


if __name__ == "__main__":
    config = uvicorn.Config(
        app, port=int(sys.argv[1]), http="httptools", ws="none", lifespan="off", loop="none",
        log_config=None, access_log=False, server_header=False,
    )  # fmt: skip
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve())
