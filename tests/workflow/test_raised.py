"""Exceptions of other processes: whatever they are, they arrive, with their names and their message."""

from __future__ import annotations

import threading
import traceback

import pytest

from workflow import RetryPolicy
from workflow.raised import error_of, raised


class Refused(ConnectionError):
    """Cannot arrive: it wants to be made by name."""

    def __init__(self, *, by: str) -> None:
        super().__init__(f"refused by {by}")


class Locked(Refused):
    """Cannot leave."""

    def __init__(self) -> None:
        super().__init__(by="a lock")
        self.lock = threading.Lock()


class Plain(Exception):
    pass


def there_and_back(error: BaseException) -> BaseException:
    def fails() -> None:
        raise error

    try:
        fails()
    except BaseException as caught:
        return error_of(raised(caught))
    raise AssertionError("not reached")


def test_an_exception_that_can_be_pickled_stays_itself() -> None:
    """Class and arguments; the place where it was raised is part of its text."""
    error = there_and_back(Plain("no", 7))
    assert type(error) is Plain
    assert error.args == ("no", 7)
    assert "in fails" in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("error", "names", "message"),
    [
        (Refused(by="Bob"), ["Refused", "ConnectionError", "OSError", "Exception"], "refused by Bob"),
        (Locked(), ["Locked", "Refused", "ConnectionError", "OSError", "Exception"], "refused by a lock"),
    ],
)
def test_others_keep_their_names_and_their_message(error: Exception, names: list[str], message: str) -> None:
    """So the failure that is recorded, and the policy that asks for names, see what they would see here."""
    found = there_and_back(error)
    assert [cls.__name__ for cls in type(found).__mro__][: len(names)] == names
    assert str(found) == message
    assert "in fails" in "".join(traceback.format_exception(found))
    assert isinstance(found, Exception)
    assert not RetryPolicy(non_retriable=("ConnectionError",)).retries(found)


def test_what_ends_a_process_arrives_as_well() -> None:
    """`SystemExit` in an activity is its failure, not the end of whoever ran it."""
    found = there_and_back(SystemExit(3))
    assert type(found) is SystemExit
    assert found.code == 3
