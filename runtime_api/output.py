"""What commands print on stdout: it gets out, or the command fails."""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO


class OutputError(Exception):
    """Nothing more can be printed; the text is one line that says why."""


def write_line(text: str) -> None:
    """Print at once. Raises `OutputError` when stdout is closed or its disk is full; `BrokenPipeError` when its reader
    has gone, which had enough."""
    stdout: TextIO | None = sys.stdout  # None: it was closed before we began
    try:
        if stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, file=stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        if stdout is not None:
            _give_up(stdout)
        raise OutputError(f"cannot write to stdout: {error.strerror}") from None


def _give_up(stdout: TextIO) -> None:
    """What is left of the text would be tried again at the end of the process, and fail loudly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stdout.fileno())
    os.close(nowhere)
