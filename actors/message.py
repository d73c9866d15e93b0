"""A call on its way to a turn, and what an outbox message says.

A `Call` is volatile: it lives in the process that made it and in the one that runs it. Only messages of an outbox
outlive a process; `Envelope` is their durable form, a wire format: fields are added, never renamed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from statestores.codec import encode

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from actors.definition import Method
    from actors.reminders import Tick
    from actors.turn import Turn


@dataclasses.dataclass(slots=True, eq=False)
class Call:
    """One request for a turn.

    `future` gets the answer: JSON bytes when `raw`, else the result itself (the caller's own copy).
    """

    stream: str
    method_name: str
    future: asyncio.Future[Any]
    # Arguments: `payload` (JSON) until the target's host has validated it into `args`.
    args: tuple[Any, ...] = ()
    payload: bytes | None = None
    raw: bool = False
    # Idempotency key of a client, or id of the outbox message this call delivers (then `partition` is that of its
    # outbox).
    key: str | None = None
    outbox_id: str | None = None
    outbox_partition: int = -1
    # Identity of a call that goes from host to host, the same for every attempt: what it records leaves a receipt, so
    # that the call may be made again when the host it was sent to has died.
    hop: str | None = None
    # Until when such a call may be made again, by the wall clock, and how long what it records leaves a receipt, which
    # is longer (see `ClusterPlacement`). 0: it has made no hop, or its receipt lives as long as its outbox row.
    again_until_ms: int = 0
    receipt_ms: int = 0
    # Made by another host, which has it still, and sends it elsewhere when it is refused here.
    from_peer: bool = False
    # May have been delivered before: the target looks for a receipt before it runs the turn.
    redelivered: bool = False
    # There was no such receipt, when everything decided before this call had been committed; or there can be none, as
    # the key was made for this call.
    looked_up: bool = False
    # Where the outcome goes when it must be durable (a call out of an outbox): see `Envelope`.
    reply_to: tuple[str, str, str] | None = None
    caller: str = ""
    trace_id: str = ""
    # Streams whose turns wait for this call, outermost first, and the identity of the chain (Dapr's reentrancy id).
    chain: tuple[str, ...] = ()
    # The innermost of them that cannot go on before this is answered ("": none): what a deadlock is made of.
    waiter: str = ""
    chain_id: str | None = None
    # Seconds on the loop's clock.
    deadline: float | None = None
    timer: asyncio.TimerHandle | None = None
    attempt: int = 0
    # Until when it waits for somebody to own its actor's partition, once it has had to: seconds on the loop's clock.
    wait_until: float = 0.0
    method: Method | None = None
    turn: Turn | None = None
    # The wake-up this call is, for ticks of reminders.
    reminder: Tick | None = None
    # Nothing can be recorded of the actor, since its id was made for this call: there is nothing to load. A mistake in
    # this costs a refused commit (INV-1), and the turn is run again on what is loaded.
    fresh: bool = False
    # Made by the runtime itself: may call hooks and built-in methods, and passes while the host is draining. (Not the
    # limit of a mailbox: see `passes_limit`.)
    internal: bool = False

    def encoded(self) -> bytes:
        """Its arguments as JSON. Raises `InvalidArguments`."""
        if self.payload is not None:
            return self.payload
        return b"" if self.method is None else self.method.signature.encode_bound(self.args)

    def is_too_late(self, now_ms: int) -> bool:
        """Whether the receipt of an earlier attempt may be gone."""
        return 0 < self.again_until_ms < now_ms

    @property
    def needs_receipt(self) -> bool:
        return self.key is not None or self.outbox_id is not None

    @property
    def passes_limit(self) -> bool:
        """Wake-ups wait in a mailbox that is full: they are bounded where they are made, and nobody would make them
        again. Built-in methods do not when they are called for somebody outside."""
        return self.internal and (self.reminder is not None or not self.method_name.startswith("$"))

    @property
    def is_from_outside(self) -> bool:
        """No turn, message, reminder or built-in work waits for the answer."""
        if self.chain or self.outbox_id is not None or self.reminder is not None:
            return False
        return not self.internal or self.method_name == "$accept"

    @property
    def may_be_repeated(self) -> bool:
        """Whether the receipts are to be looked at before this is run."""
        return (self.key is not None or self.redelivered) and not self.looked_up

    @property
    def receipt_key(self) -> str:
        if self.outbox_id is not None:
            return self.outbox_id
        return f"key:{self.method_name}:{self.key}" if self.key is not None else f"hop:{self.hop}"


class Heard(asyncio.Future[Any]):
    """A `Call.future` of which nobody waits, since one function is told of the answer: what went wrong, None if
    nothing. It is called at once, not by way of the event loop, so it must be quick, and must not raise.

    It is never waited for, so nothing of a future is set up, and nothing of it works but what is written here."""

    __slots__ = ("_answered", "_tell")

    def __init__(self, tell: Callable[[BaseException | None], None]) -> None:
        self._tell = tell
        self._answered = False

    def done(self) -> bool:
        return self._answered

    def cancel(self, msg: Any = None) -> bool:
        return False

    def add_done_callback(self, fn: Any, /, *, context: contextvars.Context | None = None) -> None:
        """Nobody gives up such a call, or waits beside the one who is told."""

    def set_result(self, _result: Any, /) -> None:
        self._answered = True
        self._tell(None)

    def set_exception(self, exception: type | BaseException, /) -> None:
        self._answered = True
        self._tell(exception if isinstance(exception, BaseException) else exception())


class Envelope(NamedTuple):
    """What an outbox message asks for. `kind` "turn" is a turn of `stream`; any other kind is work for a worker, whose
    input is `payload`. With `reply_method` the outcome comes back as a turn of the sending stream:
    `reply_method(reply_token, result, error)`."""

    kind: str
    stream: str = ""
    method: str = ""
    payload: bytes = b""
    trace_id: str = ""
    reply_method: str = ""
    reply_token: str = ""

    @property
    def is_work(self) -> bool:
        return self.kind != "turn"

    def encode(self) -> bytes:
        if self.payload and not self.stream and not self.trace_id:  # posted work: most of what goes through here
            return b'{"k":%b,"p":%b}' % (orjson.dumps(self.kind), self.payload)
        fields: dict[str, Any] = {"k": self.kind}
        if self.stream:
            fields["s"] = self.stream
            fields["m"] = self.method
        if self.payload:
            fields["p"] = orjson.Fragment(self.payload)
        if self.trace_id:
            fields["x"] = self.trace_id
        if self.reply_method:
            fields["r"] = self.reply_method
            fields["t"] = self.reply_token
        return encode(fields)

    @classmethod
    def decode(cls, body: bytes) -> Envelope:
        fields = orjson.loads(body)
        payload = encode(fields["p"]) if "p" in fields else b""
        return cls(
            fields["k"],
            fields.get("s", ""),
            fields.get("m", ""),
            payload,
            fields.get("x", ""),
            fields.get("r", ""),
            fields.get("t", ""),
        )
