"""The wire form of calls between hosts."""

from __future__ import annotations

import pickle

from actors import ActorFailed, Deadlock, NotOwner
from actors.placement.hop import Asked, asked_of, decode_batch, decode_error, encode_batch, encode_error

ASKED = Asked("id", "A/a", "m", b"1", None, None, -1, False, None, "", "", ("B/b",), "B/b", None, 1.5, False)


def test_batches_arrive_as_they_left() -> None:
    """Calls, answers, failures and cancellations cross in one batch, in order."""
    items = [("ask", ASKED), ("answer", "x", b"2"), ("fail", "y", ("NotOwner", "no")), ("cancel", "z")]
    assert decode_batch(encode_batch(items)) == items


def test_fields_of_a_newer_release_are_left_out() -> None:
    """While a cluster is rolled, hosts of two releases talk: the older one takes what it knows."""
    newer = pickle.dumps([("ask", (*ASKED, "a field of tomorrow"))], 5)
    assert decode_batch(newer) == [("ask", ASKED)]
    assert asked_of(tuple(ASKED)) == ASKED


def test_errors_arrive_as_what_they_are() -> None:
    """Errors keep their kind and their text; what is no error of ours arrives as the method's."""
    for error in (NotOwner("no"), ActorFailed("ValueError", "bad", "trace"), Deadlock(("A/a", "B/b", "A/a"))):
        arrived = decode_error(encode_error(error))
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)
    assert str(decode_error(encode_error(KeyError("k")))) == "KeyError: 'k'"
