"""Group commit: many turns, one store transaction.

One writer per host. Whatever was decided while the last batch was being written makes the next one, in order of
decision, so the cost of a transaction (and its fsync) is shared by everything in flight, and a lone turn waits for
nobody. One batch is at the store at a time. The next one is handed over before the last one is answered, since the
answers give the loop work for as long as the store needs; but where answers bring new turns at once (workflows, callers
in this process), a small batch waits for these, since one of twice the size costs the processor much less than two.

Order is the contract the output gate stands on: answers are given in the order of submission, and a *barrier* (`commit`
None) is answered after everything submitted before it. No public method awaits, so nothing can slip between a decision
and its place in the queue.

When the store does not answer, the same batch is repeated, with backoff, until `patience_s` has passed: stores
recognise turns they have recorded (INV-8). After that the batch fails with `StoreUnavailable`, outcome unknown. So does
a turn whose repeat is refused for its epoch: the first attempt may have been recorded before the partition was lost.

A batch that the store cannot take is halved until the turn that is to blame stands alone. When the store says that this
turn can never be recorded (`InvalidRequest`), so does its outcome (`ImpossibleTurn`); any other error is a bug of the
store, after which nothing is known of the turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from statestores.errors import CommitRefused, ImpossibleTurn, InvalidRequest, StaleEpoch, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from statestores.model import TurnCommit
    from statestores.store import Journal

    Outcome = CommitRefused | StoreUnavailable | None
    Done = Callable[[Outcome], None]
    Submission = tuple[TurnCommit | None, Done]

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 2.0
# Up to this size batches are not divided, and are worth waiting a moment for what makes them larger. From twice this
# size on one takes at most half of what is in flight: while the store writes one half, the loop decides the other.
_SMALL = 64


class GroupCommit:
    """`submit` from the event loop's thread only. `done` is called on the loop, once per submission, in order."""

    def __init__(self, journal: Journal, *, max_batch: int = 512, patience_s: float = 30.0) -> None:
        self._journal = journal
        self._max_batch = max_batch
        self._patience_s = patience_s
        self._queue: list[Submission] = []
        self._wake: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        # The commit that is under way beside the answers to the one before it.
        self._committing: asyncio.Task[list[Outcome]] | None = None
        # Whether the last answers brought about as many new turns, within one round of the loop.
        self._prompt = False
        # Taken off the queue and not answered yet.
        self._batch: deque[Submission] = deque()

    def start(self) -> None:
        self._writer = asyncio.get_running_loop().create_task(self._write(), name="group-commit")
        self._writer.add_done_callback(self._writer_ended)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        """By itself it never ends. Should it, those who wait are told, and another one takes its place: a host that
        answers nobody any more would be worse than any bug."""
        if writer is not self._writer or writer.cancelled():  # stopped on purpose, or the loop is about to end
            return
        log.critical("the writer of commits ended", exc_info=writer.exception())
        self.start()
        self.abandon()

    @property
    def idle(self) -> bool:
        """Nothing is queued and nothing is being written: a barrier would be answered at once."""
        return not self._queue and not self._batch

    def submit(self, commit: TurnCommit | None, done: Done) -> None:
        """Queue a decided turn, or a barrier."""
        self._queue.append((commit, done))
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    async def drain(self) -> None:
        """Return when everything submitted before this call has been answered."""
        if self.idle:
            return
        drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.submit(None, lambda _: settle(drained))
        await drained

    async def close(self) -> None:
        """Drain, then stop the writer."""
        if self._writer is None:
            return
        await self.drain()
        writer, self._writer = self._writer, None
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    def abort(self) -> None:
        """Stop at once, as a crash would: what is queued is never answered."""
        tasks = (self._writer, self._committing)
        self._writer = self._committing = None
        for task in tasks:
            if task is not None:
                task.cancel()

    def abandon(self) -> None:
        """After the writer has ended: tell everybody who still waits that the outcome is unknown."""
        waiting, self._queue = [*self._batch, *self._queue], []
        self._batch.clear()
        for commit, done in waiting:
            outcome = StoreUnavailable("the host stopped before the store answered") if commit is not None else None
            _tell(done, outcome)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        if self._committing is not None:  # of a writer that ended: one batch is at the store at a time
            await asyncio.wait([self._committing])
            self._committing = None
        while True:
            if not self._queue:
                self._wake = loop.create_future()
                await self._wake
            batch = self._take()
            outcomes = await self._commit(_turns_of(batch))
            while batch:
                early = not self._prompt or len(self._queue) >= _SMALL
                following = self._hand_over() if early else []
                waiting = len(self._queue)
                self._answer(batch, iter(outcomes))
                await asyncio.sleep(0)
                self._prompt = 2 * (len(self._queue) - waiting) >= len(batch)
                if not early:
                    following = self._hand_over()
                batch, outcomes = following, await self._committing if self._committing is not None else []
                self._committing = None

    def _hand_over(self) -> list[Submission]:
        batch = self._take()
        if batch:
            self._committing = asyncio.get_running_loop().create_task(self._commit(_turns_of(batch)))
        return batch

    def _take(self) -> list[Submission]:
        at_most = min(self._max_batch, max(_SMALL, (len(self._queue) + len(self._batch)) // 2))
        batch = self._queue[:at_most]
        del self._queue[:at_most]
        self._batch.extend(batch)
        return batch

    def _answer(self, batch: list[Submission], outcomes: Iterator[Outcome]) -> None:
        for commit, done in batch:
            if not self._batch:  # abandoned by one of the answers
                return
            self._batch.popleft()
            _tell(done, next(outcomes) if commit is not None else None)

    async def _commit(self, turns: list[TurnCommit]) -> list[Outcome]:
        if not turns:
            return []
        return await self._commit_until(turns, asyncio.get_running_loop().time() + self._patience_s)

    async def _commit_until(self, turns: list[TurnCommit], give_up: float, repeated: bool = False) -> list[Outcome]:
        """`repeated`: turns of this call may have been recorded already."""
        loop = asyncio.get_running_loop()
        delay = _FIRST_RETRY_S
        while True:
            try:
                outcomes = await self._journal.commit(turns)
                if len(outcomes) != len(turns):
                    return _failed(turns, StoreError(f"{len(outcomes)} answers to {len(turns)} turns"))
                return [_unknown(each) for each in outcomes] if repeated else [*outcomes]
            except StoreUnavailable as error:
                if loop.time() + delay > give_up:
                    return [error] * len(turns)
                log.warning("store unavailable, repeating a batch of %d turns in %.2f s: %s", len(turns), delay, error)
            except InvalidRequest as error:  # before anything was recorded
                if len(turns) == 1:
                    log.error("%s cannot be recorded: %s", turns[0].stream, error)
                    return [ImpossibleTurn(turns[0].stream, str(error))]
                return await self._commit_halves(turns, give_up, repeated)
            except StoreError as error:  # of no turn in particular
                return _failed(turns, error)
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                return _failed(turns, error)
            except Exception as error:
                if len(turns) == 1:
                    return _failed(turns, error)
                return await self._commit_halves(turns, give_up, repeated=True)
            await asyncio.sleep(delay)
            repeated = True
            delay = min(delay * 2, _LONGEST_RETRY_S)

    async def _commit_halves(self, turns: list[TurnCommit], give_up: float, repeated: bool) -> list[Outcome]:
        middle = len(turns) // 2
        return [
            *await self._commit_until(turns[:middle], give_up, repeated),
            *await self._commit_until(turns[middle:], give_up, repeated),
        ]


def _turns_of(batch: list[Submission]) -> list[TurnCommit]:
    return [commit for commit, _ in batch if commit is not None]


def _tell(done: Done, outcome: Outcome) -> None:
    try:
        done(outcome)
    except Exception:  # one caller's bug must not strand the others' answers
        log.exception("an answer to a committed turn failed")


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task at hand; a store may raise the same error for reasons of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failed(turns: list[TurnCommit], error: BaseException) -> list[Outcome]:
    """A bug in a store, or a setting: what was being written is as unknown as after a lost answer."""
    log.error("the store failed unexpectedly", exc_info=error)
    return [StoreUnavailable(f"the store failed: {error!r}")] * len(turns)


def _unknown(outcome: Outcome) -> Outcome:
    """What a repeated turn's answer says of its first attempt. The fence is checked before anything is recognised."""
    if isinstance(outcome, StaleEpoch):
        log.warning("whether a repeated turn was recorded is unknown: %s", outcome)
        return StoreUnavailable(f"first the answer was lost, then the partition: {outcome}")
    return outcome


def settle(future: asyncio.Future[None]) -> None:
    """Wake whoever still waits for the future."""
    if not future.done():
        future.set_result(None)
