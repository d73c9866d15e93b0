"""An exception of another process, as data that always arrives: the process it was raised in has no say in how.

Pickled alone, some do not: one that holds a lock cannot leave, one whose ``__init__`` wants more than its message
cannot arrive, and one like `SystemExit` ends the process instead. To whoever waits that looks like a process that was
lost, and its work would be done again, for ever.
"""

from __future__ import annotations

import pickle
from typing import NamedTuple

from actors.errortext import message_of, trace_of


class Raised(NamedTuple):
    """`names`: of its class and of those that this derives from, nearest first. `pickled`: the exception, b"" when that
    does not work."""

    names: tuple[str, ...]
    message: str
    trace: str
    pickled: bytes


def raised(error: BaseException) -> Raised:
    """On the side where it was raised."""
    names = tuple(cls.__name__ for cls in type(error).__mro__ if issubclass(cls, BaseException))
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        pickled = b""
    return Raised(names, message_of(error), trace_of(error), pickled)


def error_of(found: Raised) -> BaseException:
    """On the other side: the same exception, or else one that has its message and its class's name, and whose bases
    have the names of its bases. Its traceback over there is a note."""
    error = _unpickled(found.pickled) if found.pickled else None
    if error is None:
        cls: type[BaseException] = BaseException if "Exception" not in found.names else Exception
        for name in reversed(found.names[: found.names.index(cls.__name__)]):
            cls = type(name, (cls,), {})
        error = cls(found.message)
    error.add_note("In the process that ran it:\n" + found.trace)
    return error


def _unpickled(pickled: bytes) -> BaseException | None:
    try:
        error = pickle.loads(pickled)
    except Exception:
        return None
    return error if isinstance(error, BaseException) else None
