"""A turn in a task: one whose method may suspend, so that time passes between its start and its end.

Meanwhile it may be joined by calls of its chain, run longer than it may, be given up by its caller, or be torn down
with its host. However it ends, it ends when its method has really ended, and whoever has joined it (INV-5). What has
gone wrong by then decides, in this order:

    torn down          the host stops, the task was cancelled by nobody who said why: rolled back, its caller told so
    cancelled          `cancel_turn` said why: rolled back, also where the method swallowed the cancellation, since its
                       caller was promised that
    the method raised  rolled back, failed; so has one that has cancelled itself, unless it took no notice
    otherwise          ended: to be decided

The writer of an activation is its `running` from its start until that is known: a cancellation that comes later is too
late.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from actors.errors import DeadlineExceeded, HostStopping
from actors.interleaved import RolledBack, read_beside
from actors.turn import Turn, _current

if TYPE_CHECKING:
    from actors.activation import Activation
    from actors.definition import Method
    from actors.errors import ActorError
    from actors.message import Call

# How long `on_deactivate` may run when its type does not say: less than a host waits for its actors when it stops.
_FAREWELL_S = 20.0


async def run_in_task(
    activation: Activation, call: Call, method: Method, *, alone: bool = True, begun: Turn | None = None
) -> ActorError | None:
    """The task is the pump's when the turn runs `alone`, one of its own when beside others (a read). `begun`: the turn,
    when its method has returned, and only the rest is to come. Returns when it is decided or has failed: with what it
    failed."""
    turn = Turn(activation, call, method) if begun is None else begun
    call.turn = turn
    turn.task = task = asyncio.current_task()
    assert task is not None
    if alone:
        activation.running = activation.half_done = turn
    token = _current.set(turn)
    watch = _watch(turn)
    try:
        if begun is not None:
            result = begun.result
        else:
            if call.reminder is not None and activation.is_stale(call):
                activation.host.answer(call, None)
                return None
            if call.may_be_repeated and await activation.answered_before(turn):
                return None
            if method.interleave:
                result = await read_beside(turn)
            else:
                result = method.function(activation.instance, *call.args)
                if method.is_async:
                    result = await result
        while turn.rest is not None:
            rest, turn.rest = turn.rest, None
            await rest()
        while turn.joined:
            await asyncio.wait(turn.joined)
    except asyncio.CancelledError as error:
        if turn.cancelled_by is None and task.cancelling() and _may_be_torn_down(turn):
            _torn_down(turn)
            raise
        return await _end_early(turn, task, error)
    except RolledBack:
        activation.host.resubmit(call)
        return None
    except GeneratorExit:  # nothing may be waited for any more
        activation.roll_back(turn)
        raise
    except BaseException as error:
        outcome = await _end_early(turn, task, error)
        if isinstance(error, KeyboardInterrupt):  # not the method's, and meant for the process
            raise
        return outcome
    else:
        if task.cancelling():
            await _forget_own(turn, task)
        _no_longer_running(turn)
        if turn.cancelled_by is None:
            _current.set(None)  # what is made of the result (an iterator's items, say) is read from the actor as it is
            return activation.ended(turn, result)
        # The method swallowed the cancellation: the caller was promised a roll-back.
        return await _end_early(turn, task, None)
    finally:
        _no_longer_running(turn)
        turn.closed = True
        _current.reset(token)
        if alone:
            activation.no_longer_half_done()
        if watch is not None:
            watch.cancel()


def cancel_turn(turn: Turn, reason: BaseException) -> None:
    """Cancel a running turn: its method gets a CancelledError at its next await, and everything is rolled back. The
    turn ends when the method has really ended (INV-5), however long it takes to let go."""
    task = turn.task
    if task is None or task.done() or turn.cancelled_by is not None:
        return
    if turn.activation.running is turn or turn.method.read_only:
        turn.cancelled_by = reason
        task.cancel()


async def _end_early(turn: Turn, task: asyncio.Task[Any], error: BaseException | None) -> ActorError:
    """The turn has failed, by an error of its method or because it was cancelled."""
    _no_longer_running(turn)  # from here on a deadline comes too late to cancel anything
    if task.cancelling():
        await _forget_own(turn, task)
    reason = turn.cancelled_by
    if reason is not None:
        task.uncancel()
        if isinstance(error, Exception):
            reason.__cause__ = error
    while turn.joined:  # INV-5: nothing of a turn may run on after its end
        for joined in turn.joined:
            joined.cancel()
        await asyncio.wait(turn.joined)
    failure = reason or error
    assert failure is not None
    _current.set(None)  # the text of an error is made from the actor as it is
    return turn.activation.failed(turn, failure)


async def _forget_own(turn: Turn, task: asyncio.Task[Any]) -> None:
    """What the method has cancelled, if it was the method, is the task that others' turns run in as well."""
    if turn.cancelled_by is not None or _may_be_torn_down(turn):
        return
    while task.cancelling():
        task.uncancel()
    with contextlib.suppress(asyncio.CancelledError):  # one may be under way still
        await asyncio.sleep(0)


def _may_be_torn_down(turn: Turn) -> bool:
    """The wait for `on_deactivate` is limited also by hosts that give partitions away."""
    return turn.activation.host.draining or turn.method.name == "on_deactivate"


def _no_longer_running(turn: Turn) -> None:
    if turn.activation.running is turn:
        turn.activation.running = None


def _torn_down(turn: Turn) -> None:
    turn.activation.roll_back(turn)
    turn.activation.host.fail(turn.call, HostStopping(f"{turn.stream}: this host stopped before the turn had ended"))


def _watch(turn: Turn) -> asyncio.TimerHandle | None:
    """Cancel the turn when its caller gives up or it runs longer than its type allows."""
    turn.call.future.add_done_callback(lambda future: cancel_turn(turn, _given_up()) if future.cancelled() else None)
    timeout = (
        turn.method.timeout_s if turn.method.timeout_s is not None else turn.activation.definition.options.timeout_s
    )
    if timeout is None:
        if turn.method.name != "on_deactivate":
            return None
        timeout = _FAREWELL_S
    error = DeadlineExceeded(f"{turn.stream}.{turn.method.name} ran longer than {timeout:g} s and was rolled back")
    return asyncio.get_running_loop().call_later(timeout, cancel_turn, turn, error)


def _given_up() -> DeadlineExceeded:
    return DeadlineExceeded("the caller gave up")
