"""Reads that go beside writing turns (`interleave`).

Such a read sees what a turn in a task has changed so far, and that turn may yet be rolled back. No answer may rest on
that (INV-7), so when the read has one (an error is one, too):

    a turn that was rolled back had changes meanwhile    the read is run again
    a turn that runs has changes                         it waits until that turn is decided: rolled back, the read is
                                                         run again; else it waits for the commit, as any read
    otherwise                                            as any read

It may show the middle of a turn that ends well, and misses what a turn takes back itself, before it fails, while the
read is suspended. A call of the running turn's own chain cannot wait for it, and joins it (see `actors.joined`).

The losing alternative, to read a copy of the last decided state, would make one for every read, and not be the `self`
that other methods know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.errors import Deadlock

if TYPE_CHECKING:
    from actors.turn import Turn


class RolledBack(Exception):
    """What the read has seen never was: to be run again."""


async def read_beside(turn: Turn) -> Any:
    """What the method returns or raises, once no running turn can take back what it has seen. Raises `RolledBack`,
    `Deadlock`."""
    activation, method = turn.activation, turn.method
    rolled_back = activation.rolled_back
    try:
        result = method.function(activation.instance, *turn.call.args)
        if method.is_async:
            result = await result
        writer = activation.writer_with_changes()
        if writer is not None:  # the next turn may change parts of it
            result = method.signature.copy_result(result)
    except (Exception, SystemExit):
        await _wait_decided(turn, activation.writer_with_changes(), rolled_back)
        raise
    await _wait_decided(turn, writer, rolled_back)
    return result


async def _wait_decided(turn: Turn, writer: Turn | None, rolled_back: int) -> None:
    activation, call = turn.activation, turn.call
    if turn.cancelled_by is not None:  # it fails, whatever it has seen
        return
    if activation.rolled_back != rolled_back:
        raise RolledBack
    if writer is None:
        return
    if call.waiter and (cycle := activation.host.waits.cycle(call.waiter, turn.stream)) is not None:
        raise Deadlock(cycle)
    await activation.wait_decided(writer)
    if writer.failed:
        raise RolledBack
