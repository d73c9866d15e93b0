"""Served to Restate: a durable counter, and a workflow of three durable steps. Runs in the peers' virtual environment.

    python restate_services.py PORT

Settings are those the SDK's pages advise for production (one worker, as our server is one process): hypercorn,
HTTP/2, no limit to streams of a connection; uvloop.
"""

from __future__ import annotations

# mypy: disable-error-code="untyped-decorator,no-any-return"
import asyncio
import sys

import restate
import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config

counter = restate.VirtualObject("Counter")
three_steps = restate.Service("ThreeSteps")


@counter.handler()
async def add(ctx: restate.ObjectContext, by: int) -> int:
    value = (await ctx.get("value", type_hint=int) or 0) + by
    ctx.set("value", value)
    return value


@counter.handler(kind="shared")
async def get(ctx: restate.ObjectSharedContext) -> int:
    return await ctx.get("value", type_hint=int) or 0


async def add_one(number: int) -> int:
    return number + 1


@three_steps.handler()
async def run(ctx: restate.Context, number: int) -> int:
    number = await ctx.run_typed("first", add_one, number=number)
    number = await ctx.run_typed("second", add_one, number=number)
    return await ctx.run_typed("third", add_one, number=number)


def main() -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.h2_max_concurrent_streams = 2**31 - 1
    config.keep_alive_max_requests = 2**31 - 1
    config.keep_alive_timeout = 2**31 - 1
    uvloop.install()
    asyncio.run(serve(restate.app(services=[counter, three_steps]), config))


if __name__ == "__main__":
    main()
