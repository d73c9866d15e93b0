"""An application whose code blocks for ever, in each kind of thread."""

from __future__ import annotations

import asyncio
import threading

from workflow import activity, workflow


def for_ever() -> None:
    print("blocked", flush=True)
    threading.Event().wait()


# Called by the interpreter before it waits for threads; `atexit` comes after that.
threading._register_atexit(lambda: print("ending", flush=True))  # type: ignore[attr-defined]  # private


@activity
def plain() -> None:
    for_ever()


@activity
async def beside() -> None:
    await asyncio.to_thread(for_ever)


@activity
async def own() -> None:
    threading.Thread(target=for_ever).start()
    await asyncio.Event().wait()


@workflow
async def blocking(kind: str) -> None:
    await {"plain": plain, "beside": beside, "own": own}[kind]()
