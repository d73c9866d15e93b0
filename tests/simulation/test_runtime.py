"""The whole runtime of one machine in a simulated world: thousands of seeds, all invariants, and proof it can fail.

A failing seed prints the command that runs it again:

    MECHA_SEED=17 pytest tests/simulation/test_runtime.py -k one_seed

``MECHA_SEEDS=100000`` runs more of them than the default.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest

import statestores.groupcommit as groupcommit
from actors.activation import Activation
from actors.backlogs import Backlogs
from actors.outbox import Outbox
from actors.ownership import Ownership
from actors.reminders import Reminders
from actors.turntask import run_in_task
from statestores.errors import StaleEpoch
from statestores.groupcommit import GroupCommit
from statestores.memory import MemoryJournal
from tests.simulation.faultystore import Faults
from tests.simulation.scenario import Focus, run_seed
from tests.simulation.simloop import SimulationFailed
from tests.simulation.world import Violation
from workflow.instance import WorkflowInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from statestores.model import TurnCommit
    from workflow.orders import Order

SEEDS = int(os.environ.get("MECHA_SEEDS", "2000"))
CHUNK = 100

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _hush() -> Iterator[None]:
    """Thousands of warnings about faults that are meant cost more than the runs. One seed is run with them."""
    logging.disable(logging.NOTSET if "MECHA_SEED" in os.environ else logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_the_invariants_hold(first: int) -> None:
    """INV-1 to INV-10, whatever the network, the machines and the order of events do."""
    for seed in range(first, min(first + CHUNK, SEEDS)):
        run_seed(seed)


def test_one_seed() -> None:
    """One seed is one run: the same steps at the same times, whenever it is run."""
    seed = int(os.environ.get("MECHA_SEED", "0"))
    assert run_seed(seed) == run_seed(seed)


# -- planted bugs ------------------------------------------------------------------------------------------------------


def loosen_the_fence(patch: Patch) -> None:
    """The store takes the commits of the owner before as well."""

    def fence(self: MemoryJournal, turn: TurnCommit) -> StaleEpoch | None:
        newest = self._epoch(turn.partition)
        return None if newest - 1 <= turn.epoch else StaleEpoch(turn.partition, turn.epoch, newest)

    patch.setattr(MemoryJournal, "_fence", fence)


def answer_before_commit(patch: Patch) -> None:
    """The turn acts as soon as it is decided."""
    submit = GroupCommit.submit

    def hasty(self: GroupCommit, commit: TurnCommit | None, done: Callable[[Any], None]) -> None:
        submit(self, commit, lambda outcome: None)
        asyncio.get_running_loop().call_soon(done, None)

    patch.setattr(GroupCommit, "submit", hasty)


def forget_receipts(patch: Patch) -> None:
    """A redelivered message, and a repeated keyed call, is not recognised."""

    async def none(self: MemoryJournal, stream: str, keys: list[str]) -> list[None]:
        return [None] * len(keys)

    refusal = MemoryJournal._refusal

    def blind(self: MemoryJournal, turn: TurnCommit) -> Any:
        return refusal(self, turn._replace(receipt=None))

    patch.setattr(MemoryJournal, "receipts", none)
    patch.setattr(MemoryJournal, "_refusal", blind)


def lose_the_outbox(patch: Patch) -> None:
    """A new owner does not look for messages that were left undelivered."""

    async def scan(self: Backlogs, backlog: Any) -> None:
        self._drop(backlog)

    patch.setattr(Backlogs, "_scan", scan)


def drop_messages_at_commit(patch: Patch) -> None:
    """Messages do not stand in the commit of their turn: they are delivered from memory alone."""
    submit = GroupCommit.submit

    def without(self: GroupCommit, commit: TurnCommit | None, done: Callable[[Any], None]) -> None:
        submit(self, commit if commit is None else commit._replace(outbox=()), done)

    patch.setattr(GroupCommit, "submit", without)


def omit_the_roll_back(patch: Patch) -> None:
    """What a failed turn did to the fields stays."""
    patch.setattr(Activation, "roll_back", lambda self, turn: None)


def load_too_early(patch: Patch) -> None:
    """A successor is loaded while turns of its predecessor are still at the store."""

    async def at_once(self: GroupCommit) -> None:
        """Settled, it says."""

    patch.setattr(GroupCommit, "drain", at_once)


def trust_an_ended_lease(patch: Patch) -> None:
    """A host that was frozen past its lease answers reads from memory."""
    patch.setattr(Ownership, "lease_holds", lambda self: True)


def show_what_is_undecided(patch: Patch) -> None:
    """Reads do not wait for the commit of what they have read."""
    patch.setattr(Activation, "_answer_read", lambda self, turn: self.host.answer(turn.call, turn.result))


def call_a_lost_commit_refused(patch: Patch) -> None:
    """A repeat that is refused for its epoch is reported as never applied, although its first attempt may stand."""
    patch.setattr(groupcommit, "_unknown", lambda outcome: outcome)


def let_turns_interleave(patch: Patch) -> None:
    """The next turn starts while the last one waits."""

    async def take(self: Activation, call: Any) -> None:
        self.host.create_task(run_in_task(self, call, call.method))

    patch.setattr(Activation, "_take", take)


def forget_reminders(patch: Patch) -> None:
    """A new owner fires only the reminders that are set while it lives."""

    async def scan(self: Reminders) -> None:
        self._scanned_to_ms = self._host.clock.now_ms() + 10_000

    patch.setattr(Reminders, "_scan", scan)


def remove_the_marker_early(patch: Patch) -> None:
    """The row by which an instance is found goes when its next-to-last activity is done."""

    def move(self: WorkflowInstance, turn: Any, orders: dict[str, Order], *, ended: bool) -> str | None:
        kept = {} if len(orders) == 1 and self._marker else orders
        return MOVE_MARKER(self, turn, kept, ended=ended)

    patch.setattr(WorkflowInstance, "_move_marker", move)


def forget_work_in_doubt(patch: Patch) -> None:
    """After a commit of unknown outcome, work that is under way is taken for complete."""
    recover = Outbox.recover

    def sure(self: Outbox, partitions: list[int]) -> None:
        recover(self, partitions)
        for partition in partitions:
            self._backlogs._standing["all"][partition].unsure = False

    patch.setattr(Outbox, "recover", sure)


MOVE_MARKER = WorkflowInstance._move_marker
TOKENS = ("tokens",) * 4
SLOW = Faults(delay_s=0.3)
DEAF = Faults(delay_s=0.02, lose_answer=0.6)


@pytest.mark.parametrize(
    ("plant", "found_as", "focus"),
    [
        (loosen_the_fence, "INV-2", Focus(("zombie", "zombie"), TOKENS)),
        (answer_before_commit, "INV-", Focus(("kill", "kill"), TOKENS)),
        (forget_receipts, "INV-8", Focus(("kill", "kill"), TOKENS)),
        (lose_the_outbox, "INV-9", Focus(("kill", "kill"), TOKENS)),
        (drop_messages_at_commit, "INV-", Focus(("kill", "kill"), ("money",) * 4)),
        (omit_the_roll_back, "INV-6", Focus((), TOKENS)),
        (load_too_early, "INV-7", Focus((), ("wipers",) * 4, SLOW)),
        (trust_an_ended_lease, "INV-7", Focus(("zombie",) * 3, ("watchers",) * 4, SLOW)),
        (show_what_is_undecided, "INV-7", Focus(("kill", "zombie"), TOKENS)),
        (call_a_lost_commit_refused, "INV-6", Focus(("rob",) * 6, TOKENS)),
        (let_turns_interleave, "INV-5", Focus((), TOKENS)),
        (forget_reminders, "INV-9", Focus(("kill", "kill"), ("chores",) * 3)),
        (remove_the_marker_early, "INV-9", Focus(("kill", "kill"), ("errands",) * 3)),
        (forget_work_in_doubt, "INV-9", Focus((), ("errands",) * 6, DEAF)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_bug_is_found(
    plant: Callable[[Patch], None], found_as: str, focus: Focus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation can fail: each of these bugs breaks an invariant in one of the first seeds."""
    plant(monkeypatch)
    for seed in range(500):
        try:
            run_seed(seed, focus)
        except (Violation, SimulationFailed) as error:
            if found_as in str(error):
                return
    pytest.fail(f"{plant.__name__} was not found in 500 seeds")
