"""The durable history of an instance: what came in, and what the code asked for. A wire format: see `VERSION`.

A history is a sequence of *records*, one for each turn that changed anything, each one event in the journal:

    Record(time_ms, inputs, commands)

*Inputs* are facts from outside, in the order they are applied. *Commands* are what the code issued in answer, in the
order it issued them. Replay feeds the inputs again and must get the same commands (INV-10). Both are JSON arrays of
arrays, the kind first:

    inputs                                            commands
    ["started", {v, id, x, name, input, at, r}]       ["activity", step, name, arguments]
    ["begun"]           a delayed start has come      ["timer", step, due_ms]
    ["done", step, result]                            ["cancel", step]     timer no longer wanted
    ["failed", step, type, message, traceback]        ["abandon", step]    result no longer wanted
    ["retry", step, attempt, due_ms, type, message]   ["call", step, actor type, actor id, method, arguments]
    ["again", step, attempt, first_ms]                ["send", step, actor type, actor id, method, arguments]
    ["fired", step]                                   ["status", value]
    ["event", name, payload]                          ["completed", output]
    ["paused"]  ["resumed"]                           ["failed", type, message]
    ["terminated", output]
    ["stalled", kind, message]  ["recovered"]

A value longer than the execution's limit is not recorded but referred to, by one element more, with null in its place:

    ["done", step, null, ref]                         ["activity", step, name, null, ref]
    ["event", name, null, ref]                        ["completed", null, ref]
    ["started", {…, "input": null, "ref": ref}]       ref: {"@": SHA-256 of the JSON, "n": its length in bytes}

So commands are the same at every replay, although each value is stored under an id of its own (`workflow.payloads`).
The limit for commands is recorded with the start (`l`; absent: none): that it is configured anew changes no history.
So is it that an output its annotation refuses is a failure (`o`; absent: it was none when the execution began).

`step` is a lexical place (see `workflow.loop.Scope`), `x` the execution id: new for each start under the same instance
id. "retry" and "again" are decisions of the engine, recorded as facts so that a changed retry policy cannot break a
replay. While an instance is paused or stalled, inputs are recorded but not applied; "resumed" or "recovered" applies
them."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from statestores.codec import encode

ACTOR_TYPE = "mecha.workflow"
"""Streams of instances are ``mecha.workflow/<instance id>``."""

VERSION = 1
"""Recorded with each start. A history of a newer version than this is not replayed."""

Input = tuple[Any, ...] | list[Any]
Command = tuple[Any, ...]

PENDING, RUNNING, SUSPENDED, STALLED = "PENDING", "RUNNING", "SUSPENDED", "STALLED"
COMPLETED, FAILED, TERMINATED = "COMPLETED", "FAILED", "TERMINATED"
TERMINAL = frozenset({COMPLETED, FAILED, TERMINATED})
STATUSES = frozenset({PENDING, RUNNING, SUSPENDED, STALLED}) | TERMINAL


class Record(NamedTuple):
    """One turn. `inputs` and `commands` are JSON arrays as text; "" is the empty array."""

    time_ms: int
    inputs: str
    commands: str


def encode_inputs(inputs: list[Input]) -> str:
    return encode(inputs).decode()


def encode_commands(commands: list[Command]) -> str:
    """Also the form in which commands are compared: equal commands are equal texts."""
    return orjson.dumps(commands).decode() if commands else ""


def parse(text: str) -> list[Any]:
    parsed: list[Any] = orjson.loads(text) if text else []
    return parsed


class Start(NamedTuple):
    """What the first input of a history says. `at_ms`: when the code begins, None: at once. `request`: identity of the
    start request, so that a repeated one is recognised. `limit`: JSON of commands longer than this is referred to; 0:
    none. `reference`: of the input, when it is too large to be recorded. `checked`: an output that its annotation
    refuses is a failure."""

    instance_id: str
    execution: str
    name: str
    input: Any
    at_ms: int | None
    request: str = ""
    limit: int = 0
    reference: dict[str, Any] | None = None
    checked: bool = True

    def to_input(self) -> Input:
        fields = {"v": VERSION, "id": self.instance_id, "x": self.execution, "name": self.name, "input": self.input}
        fields |= {"at": self.at_ms, "r": self.request}
        if self.limit:
            fields["l"] = self.limit
        if self.reference is not None:
            fields["ref"] = self.reference
        if self.checked:
            fields["o"] = 1
        return ("started", fields)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Start:
        return cls(
            data["id"],
            data["x"],
            data["name"],
            data["input"],
            data["at"],
            data["r"],
            data.get("l", 0),
            data.get("ref"),
            "o" in data,
        )


class Summary:
    """What is known of an instance without running its code: the fold of its records."""

    __slots__ = (
        "custom_status",
        "failure",
        "output",
        "output_reference",
        "paused",
        "stall",
        "started",
        "terminal",
        "waiting",
    )

    def __init__(self) -> None:
        self.started: Start | None = None
        self.waiting = False
        self.paused = False
        self.stall: tuple[str, str] | None = None
        self.terminal = ""
        self.output: Any = None
        self.output_reference: dict[str, Any] | None = None
        self.failure: tuple[str, str] | None = None
        self.custom_status: Any = None

    @property
    def status(self) -> str:
        if self.terminal:
            return self.terminal
        if self.stall is not None:
            return STALLED
        if self.paused:
            return SUSPENDED
        return PENDING if self.waiting else RUNNING

    def apply(self, record: Record) -> None:
        for item in parse(record.inputs):
            self._apply_input(item)
        for item in parse(record.commands):
            self._apply_command(item)

    def _apply_input(self, item: Input) -> None:
        kind = item[0]
        if kind == "started":
            self.started = Start.of(item[1])
            self.waiting = self.started.at_ms is not None
        elif kind == "begun":
            self.waiting = False
        elif kind in ("paused", "resumed"):
            self.paused = kind == "paused"
        elif kind == "stalled":
            self.stall = (item[1], item[2])
        elif kind == "recovered":
            self.stall = None
        elif kind == "terminated":
            self.terminal, self.output = TERMINATED, item[1]

    def _apply_command(self, item: Input) -> None:
        kind = item[0]
        if kind == "status":
            self.custom_status = item[1]
        elif kind == "completed":
            self.terminal, self.output = COMPLETED, item[1]
            self.output_reference = item[2] if len(item) > 2 else None
        elif kind == "failed":
            self.terminal, self.failure = FAILED, (item[1], item[2])
