"""Calls that come back: of the chain that the running turn of an actor belongs to, so that they cannot wait for it.

Where the type is reentrant, or the method is `interleave`, such a call *joins* the turn: it is part of it, and answered
at once inside its chain. Its effects are committed, or rolled back, with that turn (the documented exception to INV-7).
Otherwise it is a deadlock.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from actors.decision import as_actor_error, result_for
from actors.errors import DeadlineExceeded, Deadlock, InvalidState, OutcomeUnknown, ReentrancyDepthExceeded
from actors.state import capture, changed_names, restore
from actors.turn import Turn, _current

if TYPE_CHECKING:
    from collections.abc import Collection

    from actors.activation import Activation
    from actors.definition import Method
    from actors.message import Call


def comes_back(activation: Activation, running: Turn, call: Call) -> bool:
    """True: it does, and was dealt with."""
    if (running._chain_id or running.call.chain_id) != call.chain_id:
        return False
    host, stream, options = activation.host, activation.stream, activation.definition.options
    method = call.method
    assert method is not None
    if not options.reentrant and not method.interleave:
        if stream not in call.chain:
            return False  # same id, given by a client twice: not waiting for itself
        start = call.chain.index(stream)
        host.fail(call, Deadlock((*call.chain[start:], stream)))
    elif running.depth >= options.max_depth:
        host.fail(call, ReentrancyDepthExceeded(f"maximum stack depth exceeded: {stream} at {running.depth}"))
    else:
        running.depth += 1
        task = host.create_task_for(call, _join(activation, running, call))
        joined = running.joined = running.joined if running.joined is not None else {}
        joined[task] = call
        task.add_done_callback(joined.pop)
        call.future.add_done_callback(lambda _: task.cancel())  # its caller has given it up
    return True


async def wait_without(turn: Turn, call: Call, error: BaseException, before: Collection[asyncio.Task[Any]]) -> None:
    """A call that the turn has made has failed, or was given up: what has joined the turn by way of it must not run on
    beside what the turn does next (INV-5). `before`: what had joined before the call. That it is cancelled itself
    meanwhile shortens nothing.

    Nothing is cancelled here, since whoever gives a call up cancels what it was waiting for (see `comes_back`). And a
    way is known by its actors only: what another call of the turn has let join, to the same actor at the same time, is
    waited for as well. That is not given up. So a call that has failed waits for what is there now; one that was given
    up, for what comes meanwhile too: what was asked may still call back to clean up."""
    may_come_back = isinstance(error, (asyncio.CancelledError, DeadlineExceeded))
    left = _joined_by_way_of(turn, call, before)
    cancelled = None
    while left and turn.cancelled_by is None:  # else whoever ends the turn sees to that
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as another:
            cancelled = another
        left = {task for task in left if not task.done()}
        if may_come_back:
            left |= _joined_by_way_of(turn, call, before)
    if cancelled is not None:
        raise cancelled


def _joined_by_way_of(turn: Turn, call: Call, before: Collection[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    way = (*call.chain, call.stream)
    joined = [(task, each) for task, each in (turn.joined or {}).items() if task not in before]
    return {task for task, each in joined if each is call or each.chain[: len(way)] == way}


async def _join(activation: Activation, outer: Turn, call: Call) -> None:
    """A read has a context of its own, which refuses what a read may not do."""
    host, stream, method = activation.host, activation.stream, call.method
    assert method is not None
    turn = Turn(activation, call, method) if method.read_only else outer
    token = _current.set(turn)
    scope = asyncio.timeout(method.timeout_s)
    try:
        async with scope:
            result = await _result(activation, call, method)
        result = result_for(call, method, result)
        if turn is not outer:
            for callback in turn.callbacks or ():
                outer.after_commit(callback)
        host.answer(call, result)
    except asyncio.CancelledError as error:
        if activation.running is outer and outer.cancelled_by is None and not host.draining:  # by its own method
            host.fail(call, as_actor_error(error))
        host.fail(call, OutcomeUnknown(f"the turn of {stream} this call had joined was cancelled"))
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, TimeoutError) and scope.expired():
            error = DeadlineExceeded(f"{stream}.{method.name} ran longer than {method.timeout_s:g} s")
        host.fail(call, as_actor_error(error))
    finally:
        turn.closed = turn.closed or turn is not outer
        _current.reset(token)
        outer.depth -= 1


async def _result(activation: Activation, call: Call, method: Method) -> Any:
    """Fields that a read has changed are put back, if nobody else can have changed them meanwhile: it cannot
    suspend."""
    definition, instance = activation.definition, activation.instance
    guarded = method.read_only and method.inline and not definition.event_sourced
    before = capture(definition, instance) if guarded else None
    try:
        result = method.function(instance, *call.args)
        return await result if method.is_async else result
    finally:
        if before is not None and (changed := changed_names(definition, instance, before)):
            restore(definition, instance, before, renew=False)
            raise InvalidState(f"{definition.name}.{method.name} is read_only, but changed {', '.join(changed)}")
