"""Errors of the state stores, by what the caller should do.

StoreError
├── CommitRefused            this turn was not recorded, nothing of it; its neighbours are unaffected
│   ├── VersionConflict      reload the stream, decide again
│   ├── StaleEpoch           another host owns the partition: drop the activation, stop serving the partition
│   ├── DuplicateTurn        already consumed: give `receipt.reply` again
│   └── ImpossibleTurn       it holds what the store cannot: do not repeat it, tell whoever made it
├── StoreUnavailable         the store did not answer; the outcome is unknown: repeat the same commit
├── LeaseHeld                the partition has a living owner: wait, or take over by force if it is known dead
├── FormatError              the durable data is of a newer (or unknown) format: upgrade the program
├── ETagMismatch             the caller's: somebody else wrote the key, read it again
├── ETagInvalid              the caller's: this store never gave out such a tag
├── InvalidRequest           the caller's: the request can never succeed as it is
├── NotSupported             this store lacks the capability that was asked for
└── ComponentError           a component's YAML or a store URL is wrong: names the file, the field and the remedy
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statestores.model import Ownership, Receipt


class StoreError(Exception):
    """Base of everything a state store raises on purpose."""


class CommitRefused(StoreError):
    """The store refused one turn, whole."""


class VersionConflict(CommitRefused):
    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(f"{stream} is at version {actual}, the turn expected {expected}")
        self.stream, self.expected, self.actual = stream, expected, actual


class StaleEpoch(CommitRefused):
    def __init__(self, partition: int, epoch: int, newest: int) -> None:
        super().__init__(f"partition {partition} is at epoch {newest}, the commit carries {epoch}")
        self.partition, self.epoch, self.newest = partition, epoch, newest


class DuplicateTurn(CommitRefused):
    def __init__(self, stream: str, receipt: Receipt) -> None:
        super().__init__(f"{stream} already consumed {receipt.key}")
        self.stream, self.receipt = stream, receipt


class ImpossibleTurn(CommitRefused):
    """What `GroupCommit` makes of the `InvalidRequest` of a turn that stands alone."""

    def __init__(self, stream: str, fault: str) -> None:
        super().__init__(f"a turn of {stream} can never be recorded: {fault}")
        self.stream = stream


class StoreUnavailable(StoreError):
    """The store did not answer. What was being written may or may not have been recorded."""


class LeaseHeld(StoreError):
    def __init__(self, holder: Ownership) -> None:
        super().__init__(
            f"partition {holder.partition} is owned by {holder.owner} until {holder.lease_until_ms} ms "
            f"(epoch {holder.epoch})"
        )
        self.holder = holder


class FormatError(StoreError):
    pass


class ETagMismatch(StoreError):
    pass


class ETagInvalid(StoreError):
    pass


class InvalidRequest(StoreError):
    pass


class NotSupported(StoreError):
    pass


class ComponentError(StoreError):
    pass
