"""The text of an exception: one that can always be had, stored and sent.

An exception is user code as well: its ``__str__`` may raise, and what it returns may have no UTF-8 form (half a
surrogate pair, as in the name of a file that is not UTF-8). Whoever reports a failure must not fail by that. The same
exception has the same text each time, as far as that is in our hands: it may stand in the commands of a workflow.
"""

from __future__ import annotations

import traceback

_NO_TEXT = "<exception str() failed>"


def message_of(error: BaseException) -> str:
    """``str(error)``. Never raises."""
    try:
        return storable(str(error))
    except Exception:
        return _NO_TEXT


def trace_of(error: BaseException, longest: int | None = None) -> str:
    """The traceback as Python shows it, its last `longest` characters. Never raises."""
    try:
        text = storable("".join(traceback.format_exception(error)))
    except Exception:
        text = f"{type(error).__name__}: {message_of(error)}\n"
    return text if longest is None else text[-longest:]


def storable(text: str) -> str:
    """With half surrogate pairs, which have no UTF-8 form, written as escapes."""
    return str.encode(text, "utf-8", "backslashreplace").decode()
