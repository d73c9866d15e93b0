"""When a failed activity is tried again: the arithmetic of `RetryPolicy`; and which functions can be activities."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from workflow import RetryPolicy, activity, workflow

DAY_MS = 24 * 3600 * 1000


@given(
    initial_ms=st.integers(0, DAY_MS),
    max_ms=st.integers(0, DAY_MS),
    backoff=st.floats(1.0, 1e300),
    attempt=st.integers(1, 2000),
)
@example(initial_ms=1000, max_ms=60_000, backoff=10.0, attempt=311)
@example(initial_ms=1000, max_ms=60_000, backoff=2.5, attempt=1_000)
@example(initial_ms=0, max_ms=60_000, backoff=10.0, attempt=400)
@example(initial_ms=DAY_MS, max_ms=DAY_MS, backoff=1.0, attempt=2000)
@settings(deadline=None)  # a busy machine is no defect
def test_delays_are_the_powers_up_to_the_limit(initial_ms: int, max_ms: int, backoff: float, attempt: int) -> None:
    """The wait after attempt n is initial * backoff ** (n - 1), at most the limit, whatever n is."""
    policy = RetryPolicy(0, f"{initial_ms}ms", backoff, f"{max_ms}ms")
    exact = min(initial_ms * Fraction(backoff) ** (attempt - 1), Fraction(max_ms))
    assert policy.delay_ms(attempt) == pytest.approx(float(exact), rel=1e-9, abs=1)


@pytest.mark.parametrize("attempt", [309, 310, 1024, 1025, 10**6, 2**62])
def test_no_attempt_is_too_late_to_have_a_delay(attempt: int) -> None:
    """Without a limit of attempts their number grows for ever: the wait stays the longest one."""
    for backoff in (2, 2.0, 2.1, 10.0, 1e300):
        assert RetryPolicy(max_attempts=0, backoff=backoff).delay_ms(attempt) == 60_000
    assert RetryPolicy(max_attempts=0, backoff=1.0).delay_ms(attempt) == 1_000


@pytest.mark.parametrize("backoff", [0.9, -1.0, math.nan, math.inf])
def test_backoffs_that_say_nothing_are_refused(backoff: float) -> None:
    """A wait that shrinks, or is no number, is a mistake of the policy's author, told when it is made."""
    with pytest.raises(ValueError, match="backoff"):
        RetryPolicy(backoff=backoff)


@pytest.mark.parametrize("attempts", [-1, 1.5, "3", True])
def test_numbers_of_attempts_that_cannot_be_are_refused(attempts: Any) -> None:
    """They are counted, so they are whole."""
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=attempts)


@pytest.mark.parametrize("timeout", [0, "0s", 0.0])
def test_a_timeout_of_nothing_is_refused(timeout: Any) -> None:
    """No attempt could end within it."""
    with pytest.raises(ValueError, match="timeout must be longer than 0"):
        RetryPolicy(timeout=timeout)
    with pytest.raises(ValueError, match="overall_timeout must be longer than 0"):
        RetryPolicy(overall_timeout=timeout)


@pytest.mark.parametrize("errors", [ValueError, "ValueError", [ValueError], (3,), (int,), (ValueError("x"),)])
def test_non_retriable_is_a_tuple_of_errors(errors: Any) -> None:
    """One class or name without the tuple, letters of which no error has the name, is refused and not ignored."""
    with pytest.raises(ValueError, match="non_retriable must be a tuple"):
        RetryPolicy(non_retriable=errors)
    assert not RetryPolicy(non_retriable=(ValueError, "KeyError")).retries(UnicodeError())


@pytest.mark.parametrize("is_async", [True, False])
def test_activities_that_are_generators_are_refused(is_async: bool) -> None:
    """They would fail at every attempt: what they give is no value."""

    async def later() -> Any:
        yield 1

    def now() -> Any:
        yield 1

    with pytest.raises(TypeError, match="a generator gives no one result"):
        activity(later if is_async else now)


class Till:
    """Whose methods are decorated."""

    async def pay(self, cents: int) -> int:
        return cents

    @classmethod
    async def close(cls) -> None: ...

    @staticmethod
    async def count(cents: int) -> int:
        return cents


@pytest.mark.parametrize("decorate", [activity, workflow])
def test_methods_are_refused(decorate: Any) -> None:
    """They would fail at every call, without their object: told at decoration. Any other function of a class is one."""
    with pytest.raises(TypeError, match=r"pay: Till\.pay is a method.*write a function.* outside of the class"):
        decorate(Till.pay)
    with pytest.raises(TypeError, match=r"close: Till\.close is a method"):
        decorate(Till.__dict__["close"].__func__)
    for function in (Till.count, Till().pay, Till.close):
        assert decorate(function).name == function.__name__


class Sent(BaseModel):
    """Written under a name that it is not read under."""

    size: int = Field(default=0, serialization_alias="length")


async def receives(sent: Sent) -> None: ...


async def gives() -> Sent:
    return Sent()


@pytest.mark.parametrize("decorate", [activity, workflow])
@pytest.mark.parametrize("function", [receives, gives])
def test_values_that_would_lose_something_are_refused(decorate: Any, function: Any) -> None:
    """On their way to an activity or a workflow, or back: told at decoration."""
    with pytest.raises(TypeError, match=r"Sent\.size is written as 'length'"):
        decorate(function)


def test_a_number_is_no_policy() -> None:
    """It could mean attempts or retries: told at decoration."""
    with pytest.raises(TypeError, match="not a RetryPolicy"):
        activity(retry=3)(abs)  # type: ignore[call-overload]  # the mistake
