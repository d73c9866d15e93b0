"""Virtual actors with turn-based concurrency: the lifecycle and state half of the runtime.

Users need `actor`, `method`, `event`, `context` and `send`; the rest composes a runtime around them.
"""

from actors.client import ActorClient
from actors.clock import Clock, LoopClock, SystemClock
from actors.deadletters import DeadLetter
from actors.definition import ActorDefinition, actor, definition_of, event, method
from actors.errors import (
    ActorError,
    ActorFailed,
    ActorMoved,
    ActorNotActive,
    CallerError,
    DeadlineExceeded,
    Deadlock,
    HostStopping,
    InvalidArguments,
    InvalidName,
    InvalidSchedule,
    InvalidState,
    MailboxFull,
    NotOwner,
    OutcomeUnknown,
    ReentrancyDepthExceeded,
    ReminderExists,
    Retriable,
    UnknownActorType,
    UnknownMethod,
    UnserializableResult,
)
from actors.host import Host
from actors.outbox import Work, Worker
from actors.placement.local import StoreInUse
from actors.ref import MakeReference
from actors.turn import Turn, context, send

__all__ = [
    "ActorClient",
    "ActorDefinition",
    "ActorError",
    "ActorFailed",
    "ActorMoved",
    "ActorNotActive",
    "CallerError",
    "Clock",
    "DeadLetter",
    "DeadlineExceeded",
    "Deadlock",
    "Host",
    "HostStopping",
    "InvalidArguments",
    "InvalidName",
    "InvalidSchedule",
    "InvalidState",
    "LoopClock",
    "MailboxFull",
    "MakeReference",
    "NotOwner",
    "OutcomeUnknown",
    "ReentrancyDepthExceeded",
    "ReminderExists",
    "Retriable",
    "StoreInUse",
    "SystemClock",
    "Turn",
    "UnknownActorType",
    "UnknownMethod",
    "UnserializableResult",
    "Work",
    "Worker",
    "actor",
    "context",
    "definition_of",
    "event",
    "method",
    "send",
]
