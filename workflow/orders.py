"""Activities that were commanded and have no outcome yet: the *open orders* of an instance.

They follow from its records alone, without its code: an order is opened by the command "activity" and closed by
"done", "failed", "retry" (the next attempt is a command of its own) or "abandon". So nothing else durable has to name
them. What a scan of the partition must find is the instance, and for that one row is enough: its *marker*, a message in
the outbox that stands exactly as long as there are open orders.

    Invariant (INV-9): after every commit of an instance that has not ended, its marker stands if and only if it has
    open orders. The turn that opens the first one posts the marker, the turn that closes the last one removes it.

A turn that closes one order and opens the next, as in most workflows every turn does, leaves the marker alone.

    what happens                                what is in the store             who begins the orders
    ------------------------------------------  -------------------------------  -------------------------------------
    a turn that opens orders commits            its record, the marker           the turn, from memory (INV-7)
    crash, or take-over, after that             the same                         whoever finds the marker by a scan
    crash before, or commit refused             neither                          nobody: nothing was commanded
    outcome of a commit unknown                 both or neither (INV-4)          the scan that follows (host.recover)
    the live program is evicted                 the same                         they run on: nothing here needs it
    paused, stalled                             the same                         as ever; outcomes are recorded, parked
    terminated, purged                          no marker                        what runs ends unheard (*)
    completed with orders open                  a row for each of them           from its row: at least once, unheard
    activity not deployed here                  the marker                       a host that has it

(*) What runs in a process of its own is cancelled, what waits for a thread or a process is not begun; so it is with
what the code gives up ("abandon").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from workflow.history import ACTOR_TYPE, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workflow.history import Input, Record


class Order:
    """One attempt of an activity. `arguments` is JSON; `reference`: what is recorded in place of large ones, `stored`:
    where those are (see `workflow.payloads`; set by the instance, which knows). `first_ms`: when its first attempt was
    commanded; `row`: the message that stands for this order alone, "" where the marker does; `failure`: what
    the attempt before it has failed with, where that is known; `given_up`: nobody will hear its outcome."""

    __slots__ = (
        "arguments",
        "attempt",
        "execution",
        "failure",
        "first_ms",
        "given_up",
        "instance_id",
        "key",
        "name",
        "redelivered",
        "reference",
        "row",
        "step",
        "stored",
    )

    def __init__(
        self,
        instance_id: str,
        execution: str,
        step: str,
        name: str,
        arguments: bytes,
        attempt: int,
        first_ms: int,
        row: str = "",
    ) -> None:
        self.instance_id = instance_id
        self.execution = execution
        self.step = step
        self.name = name
        self.arguments = arguments
        self.attempt = attempt
        self.first_ms = first_ms
        self.row = row
        # Unique for ever, since an execution id is.
        self.key = (execution, step, attempt)
        self.reference: dict[str, Any] | None = None
        self.stored = ""
        self.failure = ""
        # May have been begun before, somewhere.
        self.redelivered = False
        self.given_up = False

    @property
    def stream(self) -> str:
        return f"{ACTOR_TYPE}/{self.instance_id}"

    def encode(self) -> bytes:
        """The body of its own row. A wire format: fields are added, never renamed."""
        body = {"x": self.execution, "s": self.step, "n": self.name, "a": orjson.Fragment(self.arguments)}
        if self.stored:
            body["p"] = self.stored
        return orjson.dumps(body | {"k": self.attempt, "f": self.first_ms})

    @classmethod
    def decode(cls, instance_id: str, row: str, body: bytes) -> Order:
        fields = orjson.loads(body)
        arguments = orjson.dumps(fields["a"])
        order = cls(instance_id, fields["x"], fields["s"], fields["n"], arguments, fields["k"], fields["f"], row)
        order.stored = fields.get("p", "")
        return order


class OpenOrders:
    """The open orders of one execution, by step: a fold of its records."""

    __slots__ = ("_again", "_failures", "execution", "instance_id", "orders")

    def __init__(self, instance_id: str, execution: str) -> None:
        self.instance_id = instance_id
        self.execution = execution
        self.orders: dict[str, Order] = {}
        # Of steps whose next attempt is due: its number, and when the first was commanded. The command may come much
        # later (it waits for `resume`), hence from any record before.
        self._again: dict[str, tuple[int, int]] = {}
        # Of steps that wait for their next attempt: what the last one has failed with.
        self._failures: dict[str, str] = {}

    @classmethod
    def of(cls, instance_id: str, execution: str, records: Sequence[Record], since: int) -> OpenOrders:
        """Of all records; at `records[since]` there were none."""
        found = cls(instance_id, execution)
        for position, record in enumerate(records):
            if position < since:
                if '"again"' in record.inputs or '"retry"' in record.inputs:
                    found.apply(record.time_ms, parse(record.inputs), ())
            elif found.orders or '"activity"' in record.commands or '"again"' in record.inputs:
                found.apply(record.time_ms, parse(record.inputs), parse(record.commands))
        return found

    def has(self, order: Order) -> bool:
        """Whether that attempt is still open."""
        found = self.orders.get(order.step)
        return found is not None and found.attempt == order.attempt

    def apply(self, time_ms: int, inputs: Sequence[Input], commands: Sequence[Any]) -> list[Order]:
        """One turn. Returns the orders it opens."""
        orders = self.orders
        for item in inputs:
            kind = item[0]
            if kind == "done" or kind == "failed" or kind == "retry":
                orders.pop(item[1], None)
                if kind == "retry":
                    self._failures[item[1]] = f"{item[4]}: {item[5]}"
            elif kind == "again":
                # Histories of the first version do not say when the first attempt was.
                self._again[item[1]] = item[2], item[3] if len(item) > 3 else time_ms
        opened: list[Order] = []
        abandons = False
        for command in commands:
            kind = command[0]
            if kind == "activity":
                _, step, name, arguments, *references = command
                attempt, first_ms = self._again.pop(step) if step in self._again else (1, time_ms)
                order = Order(self.instance_id, self.execution, step, name, orjson.dumps(arguments), attempt, first_ms)
                if references:
                    order.reference = references[0]
                if attempt > 1:
                    order.failure = self._failures.pop(step, "")
                orders[step] = order
                opened.append(order)
            elif kind == "abandon":
                orders.pop(command[1], None)
                self._failures.pop(command[1], None)
                abandons = True
        return [order for order in opened if orders.get(order.step) is order] if abandons else opened
