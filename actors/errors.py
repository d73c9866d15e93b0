"""Errors of actors, by whose fault it was and what to do.

ActorError
├── CallerError                 the caller's: the same call can never succeed
│   ├── InvalidName             a type, id, method, timer or reminder name with forbidden characters
│   ├── UnknownActorType        nobody hosts this type: check the spelling, or which app is running
│   ├── UnknownMethod
│   ├── InvalidArguments        not what the method's annotations ask for
│   ├── InvalidSchedule         a due time, period or ttl that cannot be read, or says nothing
│   ├── InvalidState            a field that does not exist, or a value its annotation refuses
│   ├── ReminderExists          created with overwrite=False
│   └── ActorNotActive          asked for something only an active actor has
├── ActorFailed                 the method raised; the turn left no trace (INV-6)
├── UnserializableResult        the method's result, or its state, has no JSON form; the turn left no trace
├── Deadlock                    the call would wait for itself; names the chain
├── ReentrancyDepthExceeded
├── DeadlineExceeded            the call was not answered in time; a turn that had not been decided was rolled back
└── Retriable                   nothing wrong with the call: repeat it, with the same idempotency key
    ├── MailboxFull             the actor has too much waiting: try again later
    ├── ActorMoved              the activation was dropped before the turn was recorded: not applied
    ├── NotOwner                this host does not own the actor's partition (any more): not applied
    ├── HostStopping            this host is shutting down: not applied
    └── OutcomeUnknown          the store did not answer: it may or may not have been applied. Or the turn failed since
                                an actor it called could not be reached: what it had called before is done
"""

from __future__ import annotations


class ActorError(Exception):
    retriable = False


class CallerError(ActorError):
    pass


class InvalidName(CallerError):
    pass


class UnknownActorType(CallerError):
    pass


class UnknownMethod(CallerError):
    pass


class InvalidArguments(CallerError):
    pass


class InvalidState(CallerError):
    pass


class InvalidSchedule(CallerError, ValueError):
    pass


class ReminderExists(CallerError):
    pass


class ActorNotActive(CallerError):
    pass


class ActorFailed(ActorError):
    """`error_type` is the exception's class name, `message` its text; in process `__cause__` is the exception
    itself."""

    def __init__(self, error_type: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{error_type}: {message}" if message else error_type)
        self.error_type, self.message, self.traceback = error_type, message, traceback


class UnserializableResult(ActorError):
    pass


class Deadlock(ActorError):
    """`chain` names the actors that wait for each other, the first one repeated at the end."""

    def __init__(self, chain: tuple[str, ...]) -> None:
        super().__init__(
            "call would deadlock: "
            + " -> ".join(chain)
            + " (make the types in this chain reentrant, or use send instead of a call)"
        )
        self.chain = chain


class ReentrancyDepthExceeded(ActorError):
    pass


class DeadlineExceeded(ActorError):
    pass


class Retriable(ActorError):
    retriable = True


class MailboxFull(Retriable):
    pass


class ActorMoved(Retriable):
    pass


class NotOwner(Retriable):
    pass


class HostStopping(Retriable):
    pass


class OutcomeUnknown(Retriable):
    pass


NOT_HERE = (NotOwner, ActorMoved, HostStopping)
"""Not applied where it was tried: the actor lives elsewhere, or will."""
