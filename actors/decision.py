"""The decision: what a turn that has run wants made durable, as one `TurnCommit`.

`decide` looks at the activation's memory and at what its turn has collected, and returns the commit, or None when there
is nothing to record: the turn was a read. Nothing has left the actor then, and nothing is stored; the activation hands
the commit to its host's group commit at once, before any other turn can start (nothing here awaits).

Before: the turn has ended, the version and the base are those of the last decision. After: version, base, listing,
snapshot and marks are as they will be once the commit is recorded, so that the next turn can be decided on top of it.
An error (what cannot be encoded, above all) comes before the activation is touched: it is still what it was, except
for the fields the method has set, which its caller puts back (INV-6).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from actors.errors import NOT_HERE, ActorError, ActorFailed, CallerError, InvalidState, OutcomeUnknown
from actors.errortext import message_of, trace_of
from actors.message import Envelope
from actors.reminders import advance_reminder
from actors.state import advance, changes, encode_changes, encode_snapshot
from actors.turn import Turn
from statestores.codec import CodecError, encode
from statestores.errors import StoreError
from statestores.model import IndexEntry, NewEvent, OutboxMessage, Receipt, TurnCommit

if TYPE_CHECKING:
    from actors.activation import Activation
    from actors.definition import Method
    from actors.message import Call

log = logging.getLogger(__name__)

# NamedTuples cost several times as much when they are made by their own constructor, and these are made by every turn.
_new = tuple.__new__


def decide(activation: Activation, turn: Turn, result: Any) -> TurnCommit | None:
    """The turn's method has returned `result`. Sets `turn.result` to what its caller gets."""
    call, method, definition = turn.call, turn.method, activation.definition
    if type(result) in method.signature.plain_results and not call.raw:
        turn.result = result
    else:
        turn.result = result_for(call, method, result)
    changed: dict[str, Any] | None = None
    if definition.event_sourced:
        if turn.applying:
            raise InvalidState(
                f"event {turn.applying!r} raised, so it could not be applied again: check in the method, before it"
            )
    elif not method.interleave:
        changed = changes(definition, activation.instance, activation.base)
        if changed is not None and method.read_only:
            raise InvalidState(f"{definition.name}.{method.name} is read_only, but changed {', '.join(changed)}")
    if turn.wrote or call.key is not None or call.outbox_id is not None or call.reminder is not None:
        if call.reply_to is not None:
            _post_reply(turn, call.reply_to, _encoded(turn, result), None)
        return _everything(activation, turn, changed, result)
    recorded = turn.events
    if changed is None and recorded is None:
        return None
    if not activation.indexed:
        return _everything(activation, turn, changed, result)
    # Most turns record what happened and do nothing else: straight on, without asking for all they have not done.
    if changed is not None:
        events: tuple[NewEvent, ...] = (_new(NewEvent, (definition.state_event, encode_changes(definition, changed))),)
    else:
        events = tuple(recorded or ())
    receipt = None if call.hop is None else _hop_receipt(turn, result)
    host = activation.host
    expected = activation.version
    activation.version = version = expected + len(events)
    if changed is not None:
        advance(definition, activation.base, changed)
    snapshot: bytes | None = None
    if version - activation.snapshot_version >= definition.options.snapshot_every:
        snapshot = _snapshot(activation)
    turn_id = turn._turn_id
    if turn_id is None:
        turn_id = turn._turn_id = host.new_id()
    return _new(
        TurnCommit,
        (
            activation.partition,
            host.epochs[activation.partition],
            activation.stream,
            turn_id,
            host.clock.now_ms(),
            expected,
            call.caller,
            call.trace_id,
            events,
            snapshot,
            None,
            (),
            (),
            (),
            (),
            (),
            receipt,
            False,
        ),
    )


def decide_failure(activation: Activation, turn: Turn, error: ActorError) -> tuple[Turn, TurnCommit]:
    """The outcome of a durable call is recorded even when it is a failure: its caller gets this one, once. Returns a
    turn that did nothing else, in place of the failed one, and its commit."""
    call = turn.call
    assert call.reply_to is not None
    clean = Turn(activation, call, turn.method)
    if isinstance(error, ActorFailed):
        failure = {"type": error.error_type, "message": error.message, "traceback": error.traceback}
    else:
        failure = {"type": type(error).__name__, "message": message_of(error), "traceback": ""}
    _post_reply(clean, call.reply_to, b"null", failure)
    return clean, _everything(activation, clean, None, None)


def result_for(call: Call, method: Method, result: Any) -> Any:
    """What the caller gets: JSON when it sent JSON, else a copy of its own. Raises `UnserializableResult`."""
    return method.signature.encode_result(result) if call.raw else method.signature.copy_result(result)


def as_actor_error(error: BaseException, method: Method | None = None) -> ActorError:
    """What a caller gets for an exception of a method. A mistake the method made as a caller is its own failure, and
    where an actor is that it has called says nothing of where the method's own is (whoever made the call over a hop
    would take it there again, and again what the method has had done before). The built-in methods pass both on."""
    built_in = method is not None and method.name.startswith("$")
    if isinstance(error, NOT_HERE) and not built_in:
        unknown = OutcomeUnknown(f"a call that the turn had made was not taken: {message_of(error)}")
        unknown.__cause__ = error
        return unknown
    if isinstance(error, ActorError) and (built_in or not isinstance(error, CallerError)):
        return error
    if isinstance(error, StoreError):  # a turn that could not look for its receipt, say: no fault of the method
        return OutcomeUnknown(f"the store did not answer: {error}")
    failed = ActorFailed(type(error).__name__, message_of(error), trace_of(error))
    failed.__cause__ = error
    return failed


def _everything(activation: Activation, turn: Turn, changed: dict[str, Any] | None, result: Any) -> TurnCommit:
    host, call, definition = activation.host, turn.call, activation.definition
    now_ms = host.clock.now_ms()
    events: tuple[NewEvent, ...] = ()
    if turn.deleting:  # nor does what it has set outlive the actor
        turn.reminders_set = turn.reminders_cleared = turn.timers = None
    else:
        if changed is not None:
            events = (NewEvent(definition.state_event, encode_changes(definition, changed)),)
        elif turn.events is not None:
            events = tuple(turn.events)
    expected = activation.version
    # A receipt alone (a keyed read, a tick that came too late) does not bring an actor into being.
    exists = bool(events) or bool(turn.reminders_set)
    listing: IndexEntry | None = None
    if (turn.listing is not None or (exists and not activation.indexed)) and not turn.deleting:
        name, status, at_ms = turn.listing or ("", "", None)
        since_ms = now_ms if at_ms is None else at_ms
        listing = IndexEntry(activation.stream, name, status, since_ms, since_ms)
    if call.reminder is not None and not turn.deleting and not activation.is_stale(call):
        advance_reminder(turn, call.reminder, now_ms)
    receipt: Receipt | None = None
    if call.outbox_id is not None:
        receipt = Receipt(call.outbox_id, b"", now_ms + definition.options.receipts_ms, call.outbox_partition)
    elif call.key is not None:
        kept_ms = max(definition.options.receipts_ms, call.receipt_ms)
        receipt = Receipt(call.receipt_key, _encoded(turn, result), now_ms + kept_ms)
    elif call.hop is not None:
        receipt = _hop_receipt(turn, result)
    # From here on nothing can fail.
    activation.version = version = expected + len(events)
    if changed is not None:
        advance(definition, activation.base, changed)
    snapshot: bytes | None = None
    if events and version - activation.snapshot_version >= definition.options.snapshot_every:
        snapshot = _snapshot(activation)
    activation.indexed = activation.indexed or listing is not None
    _note_marks(activation, turn)
    commit: TurnCommit = _new(
        TurnCommit,
        (
            activation.partition,
            host.epochs[activation.partition],
            activation.stream,
            turn.turn_id,
            now_ms,
            expected,
            call.caller,
            call.trace_id,
            events,
            snapshot,
            listing,
            tuple(turn.reminders_set.values()) if turn.reminders_set else (),
            tuple(turn.reminders_cleared) if turn.reminders_cleared else (),
            tuple([message for message, _ in turn.outbox]) if turn.outbox else (),
            tuple(turn.outbox_done) if turn.outbox_done else (),
            (),
            receipt,
            turn.deleting,
        ),
    )
    return commit


def _hop_receipt(turn: Turn, result: Any) -> Receipt:
    """The answer to a call from another host, which makes it again when this one dies before it has answered."""
    call = turn.call
    return Receipt(call.receipt_key, _encoded(turn, result), turn.now_ms() + call.receipt_ms)


def _snapshot(activation: Activation) -> bytes | None:
    """None when the state has no JSON form: event-sourced state needs none, it is the fold of its events."""
    activation.snapshot_version = activation.version
    try:
        return encode_snapshot(activation.definition, activation.instance)
    except CodecError as error:
        log.warning("%s goes without snapshots, and loads ever slower: %s", activation.stream, error)
        return None


def _note_marks(activation: Activation, turn: Turn) -> None:
    if turn.reminders_set or turn.reminders_cleared:
        marks = activation.marks = activation.marks or {}
        marks.update(dict.fromkeys(turn.reminders_cleared or ()))
        marks.update(turn.reminders_set or {})


def _encoded(turn: Turn, result: Any) -> bytes:
    return turn.result if turn.call.raw else turn.method.signature.encode_result(result)


def _post_reply(turn: Turn, reply_to: tuple[str, str, str], result: bytes, error: dict[str, str] | None) -> None:
    """The outcome of a durable call: a message from the called actor's own outbox, so it is as sure as the turn
    itself."""
    stream, method, token = reply_to
    payload = b"[%b,%b,%b]" % (encode(token), result, encode(error))
    envelope = Envelope("turn", stream, method, payload, turn.trace_id)
    turn.wrote = True
    turn.outbox = turn.outbox or []
    turn.outbox.append((OutboxMessage(f"{turn.turn_id}.{len(turn.outbox)}", turn.stream, envelope.encode()), envelope))
