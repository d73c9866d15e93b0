"""Placement over several hosts: a call goes to the host whose epoch the store has for the actor's partition.

Nothing here is true, and nothing needs to be. The routing table is what the store said last; a call that goes to the
wrong host is refused there, unapplied, and goes again when the table has been read anew. A call whose host may have
died with it half done goes again under the same id, marked *redelivered*: the receipt its first attempt left, if it
was recorded, is its answer (INV-8), and an attempt that still runs somewhere cannot be recorded any more (INV-2).

Who is to own what, somebody else decides and says with `take` and `give` (see `actors.placement.plan`).

Failure cases, and what becomes of a call:

- *Nobody owns the partition just now* (a take-over is under way): it waits here, at most `patience_s`.
- *The owner died*: sent again to the next one, see above.
- *The owner is frozen*: it never answers, and its lease ends. Its successor waits for that moment, takes the partition,
  and tells the others (`took`); what was unanswered is sent to that one. Who does not hear of it reads it in the store.
- *The owner hands the partition over*: it refuses what is new, and finishes what it has.
- *This host hands it over*: what is new waits here until the store names the next owner.

A call is not made again for ever: the receipt of what it may have recorded is not kept for ever. With every hop goes a
time until which it may be made again, counted from a moment at which it was certainly not recorded: when it was first
sent, or when its host, asked so, said that it was still at it. It is long enough for a host to be found frozen, its
lease to end, and a successor to be waited for; receipts are kept twice as long, the second half being for clocks that
differ and for commits whose outcome their own host does not know yet. After it, the outcome is unknown.

All of this runs on the host's event loop; no public method but `take` and `give` awaits, so tables and queues are
consistent between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from typing import TYPE_CHECKING, Any

from actors.errors import NOT_HERE, ActorError, HostStopping, NotOwner, OutcomeUnknown
from actors.placement.cycles import Chaser
from actors.placement.hop import Asked, Link, decode_batch, decode_error, encode_error, result_of
from actors.placement.owners import host_name, is_gone
from statestores.errors import LeaseHeld, StoreError
from statestores.model import partition_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from actors.host import Host
    from actors.message import Call
    from actors.placement.hop import Item, Peers, Sent
    from statestores.model import Ownership

log = logging.getLogger(__name__)

# In the store, the owner of a partition that nobody may have yet. Like every owner's, its host's name is behind the
# last colon: it has none.
_NOBODY = "deposed:"
_FIRST_LOOK_S = 0.01
_LONGEST_LOOK_S = 0.25
# After the table says that a partition has moved, its former owner may still answer what it was asked, so long.
_FORMER_OWNER_S = 0.25
_LAST_ANSWERS_S = 1.0
# Whose lease is waited for may give it up before.
_TRY_S = 0.5


class ClusterPlacement:
    """One host's view of the cluster. `peers`: how others are reached. `refresh_s`: how often the table is read even
    though nothing went wrong, which is what finds the successor of a frozen host. `patience_s`: how long a call waits
    for a partition that has no owner, before it fails with `NotOwner`."""

    def __init__(self, host: Host, peers: Peers, *, refresh_s: float = 0.5, patience_s: float = 30.0) -> None:
        self._host = host
        self._peers = peers
        self._refresh_s = refresh_s
        self._patience_s = patience_s
        self.name = host_name(host.owner)
        count = host.journal.partitions
        # Names of hosts, "" where nobody is known.
        self.routes: list[str] = [""] * count
        self._links: dict[str, Link] = {}
        self._leaving: set[int] = set()
        # The epochs that come with them, and those that were heard of since the table was asked for last.
        self._epochs = [0] * count
        self._told: dict[int, int] = {}
        # By name, when the lease that a host was last seen with ends.
        self._lease_ends: dict[str, int] = {}
        # Hosts to tell of what this one takes, and partitions it waits for.
        self._others: set[str] = set()
        self._awaited: set[int] = set()
        # When the store has answered last.
        self._heard_s = -math.inf
        # Calls that nobody can take just now.
        self._parked: dict[int, list[Call]] = {}
        # (sender, id) of what this host was asked and has not answered.
        self._serving: dict[tuple[str, str], Call] = {}
        # Set once this host owns something.
        self.serves = asyncio.Event()
        self._chaser = Chaser(host, self.name, lambda peer, item: self._link_to(peer).put(item), refresh_s)
        host.when_standing = self._chaser.stands
        self._look = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def hears_store(self) -> bool:
        """Whether the store has answered within the length of a lease."""
        return self._host.clock.monotonic() - self._heard_s < self._host.ownership.lease_ms / 1000

    @property
    def _again_ms(self) -> int:
        return 4 * self._host.ownership.lease_ms + int(2000 * self._patience_s)

    @property
    def lacks(self) -> bool:
        """Nothing: who is to have what, somebody else decides."""
        return False

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self._read_routes()
        self._looking = asyncio.get_running_loop().create_task(self._look_for_ever(), name="routes")

    def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        links, self._links = self._links, {}
        for link in links.values():
            link.close()
            for sent in link.unanswered.values():
                unknown = OutcomeUnknown(f"{sent.call.stream}: this host stopped before {link.peer_name} had answered")
                self._host.fail(sent.call, unknown)
        for parked in self._parked.values():
            for call in parked:
                self._host.fail(call, HostStopping("this host has stopped"))
        self._parked.clear()

    async def drain(self) -> None:
        """A peer that does not take its answers, being frozen or at its own end, is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS_S):
                for link in tuple(self._links.values()):
                    await link.wait_sent()

    async def take(self, partitions: Sequence[int], *, force: bool) -> None:
        """Own these partitions from now on. Raises `LeaseHeld`, `StoreError`."""
        await self._host.take(partitions, force=force)
        self.serves.set()
        epochs = {partition: epoch for partition in partitions if (epoch := self._host.epochs[partition])}
        for name in self._others | self._links.keys():
            self._link_to(name).put(("took", epochs))
        for partition in partitions:
            self.routes[partition] = self.name
            self._unpark(partition)

    async def take_free(self, partitions: Sequence[int], alive: Collection[str]) -> None:
        """`take` what can be had: what has no owner, one whose lease has ended, or one that is known to have ended: its
        process was one of this machine and is gone. One that was of this cluster and is not among the `alive` is
        deposed: what it has can be had when its lease has ended. For the ends of leases this does not wait: the rest
        is taken then, unless its owner has renewed its lease. A host that is about to end takes nothing. Raises
        `StoreError`."""
        if self._host.draining:
            return
        self._others = {name for name in alive if name != self.name}
        await self._take_free([p for p in partitions if p not in self._awaited], alive)

    async def _take_free(self, partitions: Sequence[int], alive: Collection[str]) -> None:
        if not partitions:
            return
        try:
            await self.take(partitions, force=False)
        except LeaseHeld as held:
            if len(partitions) > 1:
                await asyncio.gather(*(self._take_free([partition], alive) for partition in partitions))
            elif is_gone(held.holder.owner):
                await self._host.journal.release([(held.holder.partition, held.holder.epoch)])
                await self._take_free(partitions, alive)
            elif self._is_ended(host_name(held.holder.owner), alive):
                self._await_end(await self._depose(held.holder))
            else:
                self._await_end(held.holder)

    def _await_end(self, holder: Ownership) -> None:
        if holder.partition not in self._awaited:
            self._awaited.add(holder.partition)
            self._host.create_task(self._take_at_end(holder))

    async def _take_at_end(self, holder: Ownership) -> None:
        """Take a partition at the moment its lease ends: callers wait for nothing else. Not what its owner has renewed
        meanwhile, being alive, nor what another host has taken."""
        clock, partition, end_ms = self._host.clock, holder.partition, holder.lease_until_ms
        try:
            while not self._host.draining:
                await asyncio.sleep(min(max(0, end_ms - clock.now_ms()) / 1000 + 0.001, _TRY_S))
                try:
                    await self.take([partition], force=False)
                except LeaseHeld as held:
                    if held.holder.epoch == holder.epoch and held.holder.lease_until_ms <= end_ms:
                        continue
                return
        except StoreError as error:
            log.warning("partition %d could not be taken: %s", partition, error)
        finally:
            self._awaited.discard(partition)

    def _is_ended(self, name: str, alive: Collection[str]) -> bool:
        """Names of one cluster's hosts differ behind the last dash. Hosts of another one that uses the same store are
        nothing we could know about, and nobody is nobody's host."""
        return bool(name) and name not in alive and name.rpartition("-")[0] == self.name.rpartition("-")[0]

    async def _depose(self, holder: Ownership) -> Ownership:
        """Take a partition from a host that was declared dead and goes on renewing its lease (a zombie), and give it to
        nobody until every read that it may still answer has been answered (INV-7). With the new epoch it can neither
        record nor renew anything; its last renewal was asked for before that, so its lease ends within one lease from
        now. Returns what the store has then.

        It is the store that remembers this, under no host's name: we may be told to take the partition once more, or be
        deposed ourselves, and neither may make the wait shorter. The first lease is longer than need be, for the case
        that we never come to correct it."""
        log.warning("partition %d is taken from %s, which was declared dead", holder.partition, holder.owner)
        journal, clock, lease_ms = self._host.journal, self._host.clock, self._host.ownership.lease_ms
        taken = await journal.acquire([holder.partition], _NOBODY, clock.now_ms(), 2 * lease_ms, force=True)
        kept = await journal.renew([(each.partition, each.epoch) for each in taken], _NOBODY, clock.now_ms(), lease_ms)
        return (kept or taken)[0]

    async def give(self, partitions: Sequence[int], timeout_s: float) -> None:
        """Hand partitions over to whoever takes them next, each as soon as it is quiet. New calls wait meanwhile, so
        none fails."""
        await asyncio.gather(*(self._give(p, timeout_s) for p in partitions if self._host.epochs[p]))

    async def _give(self, partition: int, timeout_s: float) -> None:
        self._leaving.add(partition)
        try:
            await self._host.give([partition], timeout_s)
        finally:
            self._leaving.discard(partition)
            self.routes[partition] = ""
            self._look.set()

    # -- the way out ---------------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        host = self._host
        partition = partition_of(call.stream, len(self.routes))
        if host.epochs[partition]:
            if partition not in self._leaving or self._holds_up(call):
                host.submit(call)
            elif call.reminder is not None or call.from_peer:
                host.fail(call, NotOwner(f"{call.stream} is being handed over"))
            else:
                self._park(call, partition)
        elif host.aborted:
            host.fail(call, HostStopping("this host has stopped"))
        elif call.reminder is not None or call.from_peer:
            # A reminder's row is found by the new owner, and a peer's call goes there by its own host: two hosts that
            # hold one call under one identity would take each other's answers.
            host.fail(call, NotOwner(f"{self.name} does not own partition {partition} of {call.stream}"))
        else:
            self._forward(call, partition)

    def _holds_up(self, call: Call) -> bool:
        """A turn that has to end before its partition can leave waits for this call."""
        count = len(self.routes)
        return any(partition_of(stream, count) in self._leaving for stream in call.chain)

    def _forward(self, call: Call, partition: int) -> None:
        owner = self.routes[partition]
        if not owner or owner == self.name:
            self._park(call, partition)
            return
        now_ms = self._host.clock.now_ms()
        if call.redelivered and call.is_too_late(now_ms):
            late = f"{call.stream}: its host was lost, too late to know whether an attempt was recorded"
            self._host.fail(call, OutcomeUnknown(late))
            return
        if call.outbox_id is None and (call.hop is None or not call.redelivered):  # it is not recorded now
            call.again_until_ms, call.receipt_ms = now_ms + self._again_ms, 2 * self._again_ms
        if call.hop is None:
            call.hop = self._host.new_id()
            call.future.add_done_callback(functools.partial(self._given_up, call))
        try:
            self._link_to(owner).ask(call, call.hop, partition)
            self._chaser.went(call, owner)
        except ActorError as error:
            self._host.fail(call, error)

    def _link_to(self, peer: str) -> Link:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = Link(self.name, peer, self._peers, self._link_gone)
        return link

    def _given_up(self, call: Call, _: object) -> None:
        """The caller has its answer, or wants none any more: a deadline, a cancellation."""
        assert call.hop is not None
        self._chaser.came_back(call)
        for link in self._links.values():
            if call.hop in link.unanswered:
                link.cancel(call.hop)

    def _park(self, call: Call, partition: int) -> None:
        now_s = asyncio.get_running_loop().time()
        if not call.wait_until:
            call.wait_until = now_s + self._patience_s
        elif now_s >= call.wait_until:
            self._host.fail(call, NotOwner(f"nobody has owned partition {partition} of {call.stream} so long"))
            return
        self._parked.setdefault(partition, []).append(call)
        self._look.set()

    def _unpark(self, partition: int) -> None:
        for call in self._parked.pop(partition, ()):
            if not call.future.done():
                self.submit(call)

    # -- the way in ----------------------------------------------------------------------------------------------------

    def receive(self, sender: str, batch: bytes) -> None:
        """A batch of another host's link to this one."""
        if self._host.aborted:
            return
        for item in decode_batch(batch):
            try:
                self._take_item(sender, item)
            except Exception:  # a bug must not cost the others of the batch their answers
                log.exception("%s could not take %r of %s", self.name, item, sender)

    def _take_item(self, sender: str, item: Item) -> None:
        match item:
            case ("ask", wanted):
                self._serve(sender, wanted)
            case ("cancel", call_id):
                if (call := self._serving.get((sender, call_id))) is not None:
                    call.future.cancel()
            case ("still", (asked_ms, call_ids)):
                busy = [call_id for call_id in call_ids if (sender, call_id) in self._serving]
                self._link_to(sender).put(("busy", (asked_ms, busy)))
            case ("busy", (asked_ms, call_ids)):
                self._still_at_it(sender, asked_ms, call_ids)
            case ("probe", probe):
                self._chaser.probed(sender, probe, self._serving)
            case ("cycle", (number, chain)):
                self._chaser.found(number, chain)
            case ("took", epochs):
                self._moved(sender, epochs)
            case (_, call_id, outcome):
                self._answered(sender, call_id, outcome)

    async def request(self, wanted: Asked) -> tuple[str, Any]:
        """A call of a client that is no host: ("answer", JSON) or ("fail", error), as on the wire. It goes on to
        whichever host owns the actor."""
        call = self._call_of(wanted)
        self._begin(call, wanted.left_s)
        try:
            return "answer", await call.future
        except ActorError as error:
            return "fail", encode_error(error)

    def _call_of(self, wanted: Asked) -> Call:
        call = self._host.new_call(wanted.stream, wanted.method)
        call.raw = True
        call.payload, call.caller, call.trace_id = wanted.payload, wanted.caller, wanted.trace_id
        call.key, call.outbox_id, call.outbox_partition = wanted.key, wanted.outbox_id, wanted.outbox_partition
        call.redelivered, call.reply_to, call.internal = wanted.redelivered, wanted.reply_to, wanted.internal
        call.chain, call.chain_id, call.waiter = wanted.chain, wanted.chain_id, wanted.waiter
        call.again_until_ms, call.receipt_ms = wanted.again_until_ms, wanted.receipt_ms
        return call

    def _begin(self, call: Call, left_s: float | None) -> None:
        if left_s is not None:
            loop = asyncio.get_running_loop()
            call.deadline = loop.time() + left_s
            call.timer = loop.call_at(call.deadline, self._host.expire, call)
        self.submit(call)

    def _serve(self, sender: str, wanted: Asked) -> None:
        if (sender, wanted.id) in self._serving:
            return
        host = self._host
        call = self._call_of(wanted)
        call.hop, call.from_peer = wanted.id, True
        self._serving[sender, wanted.id] = call
        if call.waiter:  # known at both ends, so that a cycle over two hosts is seen by one of them
            host.waits.add(call)
        call.future.add_done_callback(functools.partial(self._served, sender, call))
        self._begin(call, wanted.left_s)

    def _served(self, sender: str, call: Call, _: object) -> None:
        assert call.hop is not None
        del self._serving[sender, call.hop]
        if call.waiter:
            self._host.waits.remove(call)
        future = call.future
        if future.cancelled():
            return
        error = future.exception()
        if self._host.aborted:
            return
        link = self._link_to(sender)
        if error is None:
            # None: a durable call's failure, which has been recorded for its caller. On the wire that is empty.
            link.put(("answer", call.hop, future.result() or b""))
        else:
            link.put(("fail", call.hop, encode_error(error)))

    def _answered(self, sender: str, call_id: str, outcome: bytes | tuple[str, ...]) -> None:
        link = self._links.get(sender)
        sent = link.unanswered.pop(call_id, None) if link is not None else None
        if sent is None:  # asked again elsewhere meanwhile, or given up
            return
        call, partition = sent
        if isinstance(outcome, bytes):
            try:
                self._host.answer(call, result_of(call, outcome))
            except ActorError as error:
                self._host.fail(call, error)
            return
        failure = decode_error(outcome)
        if not isinstance(failure, NOT_HERE):
            self._host.fail(call, failure)
            return
        if self.routes[partition] == sender:
            self.routes[partition] = ""
        self._again(sent, redelivered=False)

    def _ask_after(self) -> None:
        """Of calls that have been under way for long: whether they still are. One that may have been recorded by an
        earlier attempt is as old as that."""
        now_ms, again_ms = self._host.clock.now_ms(), self._again_ms
        for link in self._links.values():
            if now_ms - link.asked_after_ms < again_ms / 4:
                continue
            old = [
                call_id
                for call_id, (call, _) in link.unanswered.items()
                if not call.redelivered and 0 < call.again_until_ms < now_ms + again_ms * 3 / 4
            ]
            if old:
                link.asked_after_ms = now_ms
                link.put(("still", (now_ms, old)))

    def _still_at_it(self, peer: str, asked_ms: int, call_ids: list[str]) -> None:
        """They were not recorded when the question was asked. (Answers keep their order: one that was given before is
        here.)"""
        link = self._links.get(peer)
        for call_id in call_ids:
            sent = link.unanswered.get(call_id) if link is not None else None
            if sent is not None and not sent.call.redelivered:
                sent.call.again_until_ms = max(sent.call.again_until_ms, asked_ms + self._again_ms)

    # -- going again ---------------------------------------------------------------------------------------------------

    def _again(self, sent: Sent, *, redelivered: bool) -> None:
        call = sent.call
        if call.future.done():
            return
        if redelivered:
            call.redelivered, call.looked_up = True, False
        self.submit(call)

    def _link_gone(self, link: Link) -> None:
        """The peer has ended: whatever it was asked and had not answered goes again."""
        if self._links.get(link.peer_name) is link:
            del self._links[link.peer_name]
        self.routes = ["" if name == link.peer_name else name for name in self.routes]
        waiting, link.unanswered = list(link.unanswered.values()), {}
        for sent in waiting:
            if link.reached:  # it was under way, and begins to wait anew
                sent.call.wait_until = 0.0
            self._again(sent, redelivered=link.reached)
        self._look.set()

    def _call_back(self) -> None:
        """Calls that wait for a host which does not own their actor any more: it has a moment left to answer, unless it
        was silent until its lease had ended; then they go where the table says. Looked for at every reading of the
        table, not when it changes: what was missed once, as a peer that ended without a word, is found the next
        time."""
        loop, now_ms = asyncio.get_running_loop(), self._host.clock.now_ms()
        for link in self._links.values():
            left = {i: sent for i, sent in link.unanswered.items() if self.routes[sent.partition] != link.peer_name}
            if left:
                is_silent = self._lease_ends.get(link.peer_name, now_ms + 1) <= now_ms
                loop.call_later(0.0 if is_silent else _FORMER_OWNER_S, self._give_up_on, link, left)

    def _give_up_on(self, link: Link, left: dict[str, Sent]) -> None:
        for call_id, sent in left.items():
            if link.unanswered.get(call_id) is sent and self.routes[sent.partition] != link.peer_name:
                del link.unanswered[call_id]
                sent.call.wait_until = 0.0
                self._again(sent, redelivered=True)

    # -- the table -----------------------------------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s = _FIRST_LOOK_S
        while True:
            try:
                async with asyncio.timeout(self._refresh_s):
                    await self._look.wait()
            except TimeoutError:
                delay_s = _FIRST_LOOK_S
            self._look.clear()
            try:
                await self._read_routes()
            except StoreError as error:
                log.warning("the owners of partitions cannot be read, trying again: %s", error)
            self._give_up_parked(loop.time())
            self._ask_after()
            self._chaser.look()
            if self._parked:
                self._look.set()
            # Asked for or not, ever more slowly: the store may go on naming an owner that has ended.
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _LONGEST_LOOK_S)

    async def _read_routes(self) -> None:
        self._told.clear()
        owners = await self._host.journal.owners()
        self._heard_s = self._host.clock.monotonic()
        ends: dict[str, int] = {}
        for ownership in owners:
            partition, name = ownership.partition, host_name(ownership.owner)
            if ownership.epoch < self._told.get(partition, 0):  # it was asked before, and told after
                continue
            if ownership.lease_until_ms:  # else it was given up
                ends[name] = max(ownership.lease_until_ms, ends.get(name, 0))
            if self._host.epochs[partition]:
                name = self.name
            self._epochs[partition] = ownership.epoch
            self._route(partition, name)
        self._lease_ends = {name: end for name, end in self._lease_ends.items() if name in self._links} | ends
        self._call_back()

    def _moved(self, name: str, epochs: dict[int, int]) -> None:
        """A host says what it has just taken. A hint, like the table: it may be late, but not newer than the store."""
        for partition, epoch in epochs.items():
            if epoch > self._epochs[partition] and not self._host.epochs[partition]:
                self._epochs[partition] = self._told[partition] = epoch
                self._route(partition, name)
        self._call_back()

    def _route(self, partition: int, name: str) -> None:
        self.routes[partition] = name
        if name and partition in self._parked:
            self._unpark(partition)

    def _give_up_parked(self, now_s: float) -> None:
        for partition, parked in list(self._parked.items()):
            for call in parked:
                if now_s >= call.wait_until:
                    self._host.fail(call, NotOwner(f"nobody has owned partition {partition} of {call.stream} so long"))
            self._parked[partition] = [call for call in parked if not call.future.done()]
            if not self._parked[partition]:
                del self._parked[partition]
