"""Let go of suspended coroutines without running them.

A coroutine that is garbage collected while suspended is *closed*: GeneratorExit is thrown into it and its `finally`
blocks, `except BaseException` clauses and context managers run. For an evicted workflow that would be wrong twice: the
workflow goes on later, elsewhere, so nothing has ended that would call for cleaning up; and the code would run beside
the history, its effects belonging to no turn. Peers throw an exception in and hope that the code tolerates it.

Here the frames are told that they have completed: one byte of the coroutine object, its frame state, becomes
FRAME_COMPLETED. CPython's finalizer then sees nothing to close, and deallocation releases the frame's references as it
does for any finished coroutine: no user code runs, nothing leaks. The layout is private to CPython, so the byte's place
is found by observation at import (a probe coroutine is read when created, suspended and finished) and the whole
procedure is tried on a throwaway. Where either fails, as on another interpreter, evicted coroutines are kept alive
until the process ends: a leak, but never a `finally` that runs when it must not.

Generators that only the discarded frames own (a `contextlib.contextmanager` in a ``with``, the source of a ``for``) are
treated likewise; one that is also referenced from elsewhere stays intact. Objects with `__del__` are finalized as
usual."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

_COMPLETED = 1
_CLEARED = 4

_FRAMES = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)
_MANAGERS = (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)
_STACKS = (contextlib.ExitStack, contextlib.AsyncExitStack)
# Objects between a frame and the generators it owns, followed when nobody else holds them; the named ones are built-in
# iterators of `async for`, `anext` and `await`, which have no public name.
_LINKS = (types.MethodType, *_MANAGERS, *_STACKS)
_LINK_NAMES = frozenset({"async_generator_asend", "async_generator_athrow", "coroutine_wrapper", "anext_awaitable"})


@types.coroutine
def _suspend() -> Generator[None, None, None]:
    yield


async def _probe(ran: list[str]) -> None:
    try:
        await _suspend()
    finally:
        ran.append("finally")


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def _find_state_byte() -> int | None:
    """Offset of the frame state in a coroutine object: negative when created, greater when suspended, 4 when
    finished."""
    if platform.python_implementation() != "CPython":
        return None
    probe = _probe([])
    size = types.CoroutineType.__basicsize__
    created = ctypes.string_at(id(probe), size)
    probe.send(None)
    suspended = ctypes.string_at(id(probe), size)
    with contextlib.suppress(StopIteration):
        probe.send(None)
    finished = ctypes.string_at(id(probe), size)
    found = [
        i
        for i in range(size)
        if _signed(created[i]) in (-2, -3) and _signed(suspended[i]) in (-1, -2) and finished[i] == _CLEARED
    ]
    return found[0] if len(found) == 1 and _works(found[0]) else None


def _works(offset: int) -> bool:
    ran: list[str] = []
    probe = _probe(ran)
    probe.send(None)
    ctypes.c_int8.from_address(id(probe) + offset).value = _COMPLETED
    references = sys.getrefcount(ran)
    del probe
    return not ran and sys.getrefcount(ran) == references - 1


_STATE_BYTE = _find_state_byte()
_kept: list[Any] = []


def can_discard() -> bool:
    """Whether frames are freed here; otherwise they are kept until the process ends."""
    return _STATE_BYTE is not None


def discard(coroutines: Iterable[Any]) -> None:
    """Make suspended (or not yet started) coroutines, and everything they await or own alone, end without running.

    The caller must own them, and nothing may run them afterwards."""
    if _STATE_BYTE is None:
        _kept.extend(coroutines)
        return
    todo = list(coroutines)
    while todo:
        frame = todo.pop()
        if not _is_pending(frame):
            continue
        todo.extend(_owned_frames(frame))
        ctypes.c_int8.from_address(id(frame) + _STATE_BYTE).value = _COMPLETED


def _is_pending(frame: Any) -> bool:
    if isinstance(frame, types.CoroutineType):
        return frame.cr_frame is not None and not frame.cr_running
    if isinstance(frame, types.GeneratorType):
        return frame.gi_frame is not None and not frame.gi_running
    return isinstance(frame, types.AsyncGeneratorType) and frame.ag_frame is not None


def _owned_frames(frame: Any) -> list[Any]:
    """Generators and coroutines that this frame awaits, or refers to and nobody else does."""
    awaited = getattr(frame, "cr_await", None) or getattr(frame, "ag_await", None)
    owned = [awaited] if isinstance(awaited, _FRAMES) else []
    awaited = None
    links: list[Any] = [frame]
    while links:
        referents = _referents(links.pop())
        while referents:
            found = referents.pop()
            # A sole owner is the frame (or link): beside it count the name `found` and the argument of getrefcount.
            if isinstance(found, _FRAMES):
                if sys.getrefcount(found) <= 3:
                    owned.append(found)
            elif (isinstance(found, _LINKS) or type(found).__name__ in _LINK_NAMES) and sys.getrefcount(found) <= 3:
                links.append(found)
    return owned


def _referents(link: Any) -> list[Any]:
    if isinstance(link, _MANAGERS):
        return [link.gen]
    if isinstance(link, _STACKS):
        return [callback for _, callback in link._exit_callbacks]  # type: ignore[union-attr]  # of both kinds
    return gc.get_referents(link)
