"""Keeps a cluster as it is wanted: so many hosts, every partition owned, nothing where a node is about to go.

    look (ask every host)  ->  plan (`actors.placement.plan`)  ->  orders (take, give)  ->  look again

It holds no truth. What a host owns it hears from the host, who has it from the store; if this process dies, another one
adopts the hosts that are there and goes on; while there is none, everything works but repair. So nothing is written
down here, and no order is waited for by anybody's call.

Failure cases:

- *A host's process ends*: heard of at once (`wait_gone`); its partitions are claimed by nobody, and another host takes
  them: at once when it can see that the process is gone, else when the lease has ended.
- *A host is frozen*: it does not answer, and is not waited for. Another host is told to take what it has, and does so
  when its lease ends. A host that is only slow renews its lease, so nobody can take anything from it. One that stays
  silent when others have all of it is ended, and replaced.
- *A host's event loop is blocked*, by code that computes or waits: it answers, but not by that loop. When its lease is
  over it is as good as silent; it is given more time to wake up, since a turn may end.
- *A host is cut off from the store*, and answers by its loop: the store answers others meanwhile, for the length of a
  lease. Then it is as good as blocked. While the store is away it answers nobody, and nothing is taken from anybody.
- *A host cannot be started*: tried again, ever more slowly; the reason stands in `status`.
- *No node has what hosts need*: nothing is tried; what is lacking where stands in `status`, and every look counts anew.
  So it is with activities that ask for more than any node has: their hosts say what they wait for.
- *An order fails or hangs*: each runs by itself, with a time limit, and the next look says what became of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from actors.hostneeds import NOTHING, HostNeeds
from actors.placement.hop import PeerGone
from actors.placement.plan import HostView, plan

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

log = logging.getLogger(__name__)

_REPORT_S = 1.0
_ORDER_S = 10.0
_LOOK_S = 0.5
_LOOK_AGAIN_S = 0.1
# At the beginning, nothing is handed out before all hosts are there, or so long.
_GATHER_S = 10.0
# A silent host is ended when others have owned everything for so many leases, and in any case after so long. What does
# not answer may only not have heard us, and have been started a moment ago.
_SILENT_LEASES = 3
_LONGEST_SILENCE_S = 90.0
_LONGEST_BACKOFF_S = 30.0
# Far above the longest wait. A power of hours of failures would be no number any more.
_MOST_DOUBLINGS = 10
_EMPTY: Mapping[str, Any] = MappingProxyType({})

LONGEST_LAG_S = 0.5
"""For how much longer an event loop is late is not measured."""


class HostFacts(NamedTuple):
    """What a host knows of itself. `since_ms`: when it was started. `owned`: epochs by partition. `lease_holds`:
    whether nobody else can have what it owns; of a host that owns nothing, False. `hears_store`: whether the store has
    answered it lately. `asked`: activities that it has given to processes elsewhere, by name, with what each needs of a
    node for itself."""

    since_ms: int
    partitions: int
    owned: dict[int, int]
    activations: int
    url: str
    lease_holds: bool
    hears_store: bool
    asked: tuple[tuple[str, HostNeeds], ...] = ()


class Report(NamedTuple):
    """What a host says of itself: its `HostFacts`, and where it runs. `lag_s`: how late its event loop is, up to
    `LONGEST_LAG_S`."""

    name: str
    node: str
    pid: int
    since_ms: int
    version: str
    partitions: int
    owned: dict[int, int]
    lag_s: float
    activations: int
    url: str
    lease_holds: bool
    hears_store: bool
    asked: tuple[tuple[str, HostNeeds], ...] = ()

    @property
    def is_blocked(self) -> bool:
        """Its event loop does nothing, so that it neither renews its lease nor sees that it is over, nor can it take
        anything. (The lease alone says nothing: while the store is away no host can renew it.)"""
        return not self.lease_holds and self.lag_s >= LONGEST_LAG_S


class Node(NamedTuple):
    """`leaving`: it is being drained, or will be taken away soon. `resources`, `labels`: what it has in all, see
    `HostNeeds.room`."""

    id: str
    leaving: bool
    resources: Mapping[str, float] = _EMPTY
    labels: Mapping[str, str] = _EMPTY


class HostHandle(Protocol):
    """A host in another process. Every method raises `PeerGone` when it has ended."""

    @property
    def name(self) -> str: ...
    async def report(self) -> Report: ...
    async def take(self, partitions: Sequence[int], alive: Sequence[str]) -> None:
        """Does not wait for what another host's lease holds: that is taken when the lease ends, if it ends. `alive`:
        the hosts that have not ended, silent ones among them."""

    async def give(self, partitions: Sequence[int], timeout_s: float) -> None: ...
    async def stop(self, timeout_s: float) -> None:
        """Drain, and end."""

    async def wait_gone(self) -> None:
        """Returns when the host's process has ended."""

    def kill(self) -> None: ...


class Fleet(Protocol):
    """Where hosts run."""

    async def start_host(self, version: str, node: str | None) -> HostHandle:
        """Returns when the host is ready to take partitions. `node`: it must run there. Raises whatever went wrong."""

    async def existing(self) -> list[HostHandle]:
        """Hosts that are there already."""

    async def nodes(self) -> list[Node]: ...


class Wanted(NamedTuple):
    """`hosts` that serve, all together; with `per_node`, so many on each node instead. `spares`: more, ready to take
    the place of one that ends; with `per_node` one on each node, if any. `version`: of the code; hosts of another one
    are replaced, one at a time. `needs`: what each host asks its node for. Nodes without it do not count, and none is
    to carry more hosts than it has room for. `lease_s`: of hosts."""

    hosts: int = 2
    per_node: int = 0
    spares: int = 1
    version: str = "1"
    drain_s: float = 30.0
    needs: HostNeeds = NOTHING
    lease_s: float = 3.0

    def room(self, node: Node) -> int:
        """How many hosts a node can carry, present ones among them."""
        return 0 if node.leaving else self.needs.room(node.resources, node.labels)

    def on_node(self, node: Node) -> int:
        """With `per_node`: how many hosts are to be on a node."""
        return min(self.room(node), self.per_node + (self.spares > 0))

    def serving(self, nodes: Sequence[Node]) -> int:
        if not self.per_node:
            return self.hosts
        return max(1, sum(min(self.room(node), self.per_node) for node in nodes))

    def total(self, nodes: Sequence[Node]) -> int:
        """Those that serve and the spares."""
        if not self.per_node:
            return self.hosts + self.spares
        return self.serving(nodes) + (sum(self.room(node) > 0 for node in nodes) if self.spares else 0)

    def placeable(self, nodes: Sequence[Node]) -> int:
        """How many of `total` the nodes have room for."""
        there = sum(self.on_node(node) if self.per_node else self.room(node) for node in nodes)
        return min(there, self.total(nodes))

    def unplaced(self, nodes: Sequence[Node]) -> str:
        """Which hosts no node has room for, and why; "" when there are none, or no nodes are known yet."""
        total, placeable = self.total(nodes), self.placeable(nodes)
        if placeable == total or not nodes:
            return ""
        facts = "; ".join(f"node {node.id[:12]} {self._offer(node)}" for node in nodes)
        needs = "needs nothing but a node" if self.needs == NOTHING else f"needs {self.needs}"
        return f"{total - placeable} of {total} hosts have no place. Each {needs}. {facts}"

    def _offer(self, node: Node) -> str:
        lacks = self.needs.lacks(node.resources, node.labels)
        if node.leaving:
            return "is leaving"
        return f"has {', '.join(lacks)}" if lacks else f"has room for {self.room(node)}"


class _Known:
    """A host, and what was heard of it last. `report` None: it does not answer. `node`, `version`: "" until they are
    known, from who started it or from its first answer."""

    def __init__(self, handle: HostHandle, node: str, version: str) -> None:
        self.handle = handle
        self.report: Report | None = None
        # The question that is under way. One that was not answered in time is asked again, without being waited for.
        self.asked: asyncio.Task[None] | None = None
        self.silent = False
        self.silent_since_s = 0.0
        # Since when the store has answered others and not this host; None: it has not been so.
        self.cut_off_since_s: float | None = None
        self.node = node
        self.version = version
        self.leaving = False
        self.stopping = False
        # The orders it is carrying out: "take", "give".
        self.busy: set[str] = set()
        # What it has been told to take, until it has said what it owns since.
        self.taking: frozenset[int] = frozenset()


class Supervisor:
    def __init__(self, fleet: Fleet, wanted: Wanted) -> None:
        self._fleet = fleet
        self._hosts: dict[str, _Known] = {}
        self._nodes: list[Node] = []
        self._starting: dict[asyncio.Task[None], str | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._begun_s = 0.0
        self._gathered = False
        self._told = ""
        self._failures = 0
        self.wanted = wanted
        self.last_error = ""

    async def run(self) -> None:
        """For ever. Cancel it to stop."""
        self._begun_s = asyncio.get_running_loop().time()
        try:
            for handle in await self._fleet.existing():
                self._adopt(handle)
            await self._ask_all(None)
            while True:
                self._wake.clear()
                delay_s = _LOOK_AGAIN_S if await self._look() else _LOOK_S
                try:
                    async with asyncio.timeout(delay_s):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            for task in (*self._tasks, *self._starting):
                task.cancel()

    async def stop_hosts(self) -> None:
        """After `run` was cancelled: drain and end every host."""
        handles = [known.handle for known in self._hosts.values()]
        await asyncio.gather(*(self._end(handle) for handle in handles))

    def roll(self, version: str) -> None:
        """Replace every host by one of this version of the code, one at a time, without failed calls. Versions grow:
        one that is not greater than the present one is nothing new."""
        self.wanted = self.wanted._replace(version=version)
        self._wake.set()

    @property
    def is_settled(self) -> bool:
        """Every partition is owned, by hosts of the version that is wanted."""
        reports = self.reports()
        return self._is_all_owned(reports) and all(report.version == self.wanted.version for report in reports)

    @staticmethod
    def _is_all_owned(reports: Sequence[Report]) -> bool:
        return bool(reports) and len({p for report in reports for p in report.owned}) == reports[0].partitions

    @property
    def wanted_serving(self) -> int:
        return self.wanted.serving(self._nodes)

    @property
    def placeable(self) -> int:
        """For how many of the hosts that are wanted there is room."""
        return self.wanted.placeable(self._nodes)

    @property
    def unplaced(self) -> str:
        """Which hosts (see `Wanted.unplaced`) and which activities no node has what they need for; "" for none."""
        found = [self.wanted.unplaced(self._nodes), *self._unplaced_activities()]
        return ". ".join(filter(None, found))

    def _unplaced_activities(self) -> list[str]:
        staying = [node for node in self._nodes if not node.leaving]
        asked = sorted({asked for known in self._hosts.values() if known.report for asked in known.report.asked})
        return [
            f"Activity {name} waits for a node with {needs}"
            for name, needs in asked
            if self._nodes and not any(needs.room(node.resources, node.labels) for node in staying)
        ]

    def reports(self) -> list[Report]:
        """Of the hosts that answer, oldest first; a partition two of them claim stands with the newer epoch."""
        found = [known.report for known in self._hosts.values() if known.report is not None]
        newest: dict[int, int] = {}
        for report in found:
            for partition, epoch in report.owned.items():
                newest[partition] = max(epoch, newest.get(partition, 0))
        return sorted(
            (r._replace(owned={p: e for p, e in r.owned.items() if newest[p] == e}) for r in found),
            key=lambda report: (report.since_ms, report.name),
        )

    def silent(self) -> list[str]:
        return [name for name, known in self._hosts.items() if known.report is None]

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _look(self) -> bool:
        """One round. Whether something is under way, so that the next look should come soon."""
        try:
            self._nodes = await self._fleet.nodes()
        except Exception as error:
            log.warning("the nodes of the cluster are not known just now: %s", error)
        await self._ask_all(_LOOK_AGAIN_S)
        leaving_nodes = {node.id for node in self._nodes if node.leaving}
        for known in self._hosts.values():
            if known.node in leaving_nodes:
                known.leaving = True
        if (unplaced := self.unplaced) != self._told:
            self._told = unplaced
            log.warning("%s", unplaced or "everything has its place")
        self._start_missing()
        self._replace_old()
        self._retire_surplus()
        return self._order() | self._end_leaving() | bool(self._starting)

    async def _ask_all(self, wait_s: float | None) -> None:
        """Whoever has not answered after `wait_s` is not waited for: what it said last will do for this time."""
        for known in self._hosts.values():
            if known.asked is None or known.asked.done():
                known.asked = self._run(self._ask(known))
        if questions := [known.asked for known in self._hosts.values() if known.asked and not known.silent]:
            await asyncio.wait(questions, timeout=wait_s)

    async def _ask(self, known: _Known) -> None:
        # The answer says whether it has what it was told to take, if it is not still about to.
        told = frozenset() if "take" in known.busy else known.taking
        try:
            async with asyncio.timeout(_REPORT_S):
                report = await known.handle.report()
        except PeerGone:
            self._forget(known)
        except Exception as error:
            self._unheard(known, str(error) or type(error).__name__)
        else:
            known.node, known.version = report.node, report.version
            if report.is_blocked:
                self._unheard(known, "its event loop is blocked, its lease is over", may_come_back=True)
            elif self._is_cut_off(known, report):
                self._unheard(known, "the store answers others, and not this host", may_come_back=True)
            else:
                self._heard(known, report, told)

    def _heard(self, known: _Known, report: Report, told: frozenset[int]) -> None:
        known.report = report
        known.taking -= told
        if known.silent:
            known.silent = False
            self._wake.set()
        if report.version > self.wanted.version:  # asked of a supervisor before this one
            self.wanted = self.wanted._replace(version=report.version)

    def _is_cut_off(self, known: _Known, report: Report) -> bool:
        """For a whole lease, since a store that was away does not go and come back for all hosts at one moment."""
        others = (other.report for other in self._hosts.values() if other is not known)
        if report.lease_holds or report.hears_store or not any(other and other.hears_store for other in others):
            known.cut_off_since_s = None
            return False
        now_s = asyncio.get_running_loop().time()
        if known.cut_off_since_s is None:
            known.cut_off_since_s = now_s
        return now_s - known.cut_off_since_s > self.wanted.lease_s

    def _unheard(self, known: _Known, reason: str, *, may_come_back: bool = False) -> None:
        """It claims nothing until it answers."""
        now_s = asyncio.get_running_loop().time()
        if known.report is not None:
            log.warning("host %s does not answer: %s", known.handle.name, reason)
        if not known.silent:
            known.silent, known.silent_since_s = True, now_s
            self._wake.set()
        known.report = None
        silent_s = now_s - known.silent_since_s
        if self._is_given_up(known, silent_s, may_come_back):
            log.warning("host %s has been silent for %.0f s, and is ended", known.handle.name, silent_s)
            known.leaving = True  # its place is another one's, whenever it goes
            known.handle.kill()

    def _is_given_up(self, known: _Known, silent_s: float, may_come_back: bool) -> bool:
        """Soon, when others own everything: it can record nothing any more. One that may only not hear us, may still be
        started by somebody, may be in a turn that ends, or may reach the store again is given time; a turn of the only
        host there is, any time."""
        if may_come_back and len(self._hosts) == 1:
            return False
        if silent_s > _LONGEST_SILENCE_S:
            return True
        is_up = bool(known.version) and not may_come_back
        return is_up and silent_s > _SILENT_LEASES * self.wanted.lease_s and self._is_all_owned(self.reports())

    def _order(self) -> bool:
        reports = self.reports()
        if not reports or not self._has_gathered(len(reports)):
            return bool(reports)
        orders = plan(reports[0].partitions, [self._view(report) for report in reports], self.wanted_serving)
        for name, partitions in orders.take.items():
            if "take" not in self._hosts[name].busy:
                self._hosts[name].taking |= frozenset(partitions)
            self._send(self._hosts[name], "take", self._hosts[name].handle.take(partitions, [*self._hosts]))
        owned = {report.name: report.owned for report in reports}
        for name, partitions in orders.give.items():
            if had := [partition for partition in partitions if partition in owned[name]]:
                self._send(self._hosts[name], "give", self._hosts[name].handle.give(had, self.wanted.drain_s))
        return not orders.is_empty or any(k.busy or (k.taking and k.report) for k in self._hosts.values())

    def _view(self, report: Report) -> HostView:
        """What a host was told to take counts as its own until it has said what it owns since: told to two hosts, of
        which one does not know of the other yet, it would be taken from the first as from one that has ended."""
        known = self._hosts[report.name]
        owned = known.taking | report.owned.keys()
        return HostView(report.name, owned, report.since_ms, known.leaving or known.stopping)

    def _has_gathered(self, count: int) -> bool:
        late = asyncio.get_running_loop().time() - self._begun_s > _GATHER_S
        self._gathered = self._gathered or late or count >= self.wanted_serving
        return self._gathered

    def _send(self, known: _Known, kind: str, order: Coroutine[object, object, None]) -> None:
        """Unless the host has an order of that kind already."""
        if kind in known.busy:
            order.close()
            return
        known.busy.add(kind)
        self._run(self._carry_out(known, kind, order))

    async def _carry_out(self, known: _Known, kind: str, order: Coroutine[object, object, None]) -> None:
        limit_s = _ORDER_S + (self.wanted.drain_s if kind == "give" else 0.0)
        log.info("host %s is to %s", known.handle.name, kind)
        try:
            async with asyncio.timeout(limit_s):
                await order
            log.info("host %s: %s done", known.handle.name, kind)
        except Exception as error:
            log.warning("host %s did not %s: %s", known.handle.name, kind, str(error) or type(error).__name__)
        finally:
            known.busy.discard(kind)
            if kind == "give":
                self._wake.set()

    # -- hosts come and go --------------------------------------------------------------------------------------------

    def _start_missing(self) -> None:
        staying = [known for known in self._hosts.values() if not known.leaving and not known.stopping]
        if not self.wanted.per_node:
            # At the beginning spares come later: processes that start together take the processors from each other.
            wanted = self.wanted.total(self._nodes) if self._gathered else self.wanted_serving
            missing = wanted - len(staying) - len(self._starting)
            for _ in range(min(missing, self._free_anywhere())):
                self._start_host(None)
            return
        for node in self._nodes:
            there = sum(known.node == node.id for known in staying)
            coming = sum(target == node.id for target in self._starting.values())
            for _ in range(min(self.wanted.on_node(node) - there - coming, self._free(node))):
                self._start_host(node.id)

    def _free(self, node: Node) -> int:
        """For how many more hosts there is room: one that is about to end keeps its place until it has."""
        taken = sum(known.node == node.id for known in self._hosts.values())
        return max(0, self.wanted.room(node) - taken - sum(target == node.id for target in self._starting.values()))

    def _free_anywhere(self) -> int:
        somewhere = sum(not known.node for known in self._hosts.values())
        somewhere += sum(target is None for target in self._starting.values())
        return sum(map(self._free, self._nodes)) - somewhere

    def _start_host(self, node: str | None) -> None:
        task = asyncio.get_running_loop().create_task(self._start(node))
        self._starting[task] = node
        task.add_done_callback(lambda done: self._starting.pop(done, None))

    async def _start(self, node: str | None) -> None:
        if self._failures:
            await asyncio.sleep(min(2.0 ** min(self._failures, _MOST_DOUBLINGS), _LONGEST_BACKOFF_S))
        version = self.wanted.version
        try:
            handle = await self._fleet.start_host(version, node)
        except Exception as error:
            self._failures += 1
            self.last_error = f"{type(error).__name__}: {error}"
            log.warning("a host cannot be started: %s", self.last_error)
        else:
            self._failures = 0
            self._adopt(handle, node or "", version)
        self._wake.set()

    def _adopt(self, handle: HostHandle, node: str = "", version: str = "") -> None:
        """`node`: where it was told to run; `version`: with what. Before its first answer nothing else says that the
        node has its host, and that it is one of the new ones."""
        if handle.name not in self._hosts:
            known = self._hosts[handle.name] = _Known(handle, node, version)
            self._run(self._watch(known))

    async def _watch(self, known: _Known) -> None:
        await known.handle.wait_gone()
        self._forget(known)

    def _forget(self, known: _Known) -> None:
        if self._hosts.pop(known.handle.name, None) is not None:
            if not known.stopping:
                log.warning("host %s has ended", known.handle.name)
            self._wake.set()

    def _replace_old(self) -> None:
        """One host of a former version leaves at a time, once there is one of the new version to take its place; where
        there is no room for one more, before that."""
        old = [known for known in self._hosts.values() if known.version not in ("", self.wanted.version)]
        if not old or self._is_one_going():
            return
        new = [known for known in self._hosts.values() if known.version == self.wanted.version]
        total = self.wanted.total(self._nodes)
        # Those that own least first: spares are gone before anything has to move. Of silent ones nobody knows.
        first = min(old, key=lambda known: (known.report is None, _load(known)))
        if sum(known.report is not None for known in new) + len(old) > total:
            first.leaving = True
        elif len(new) + len(old) > total:  # it will answer in a moment, or be ended
            return
        elif not self._starting and self._has_room_beside(first):
            self._start_host(first.node if self.wanted.per_node else None)
        elif not self._starting and len(self._hosts) > 1:
            first.leaving = True
        elif not self._starting:  # nobody can take what it has: calls wait for its successor
            first.stopping = True
            self._run(self._end(first.handle))

    def _retire_surplus(self) -> None:
        """More hosts than are wanted: somebody else was starting some of them, as a supervisor before this one. Those
        that own least leave, one at a time, the youngest first. Only hosts that answer count."""
        there = [known for known in self._hosts.values() if known.report is not None]
        if not there or self._starting or self._is_one_going() or any(k.version != self.wanted.version for k in there):
            return
        if self.wanted.per_node:
            crowds = [([k for k in there if k.node == node.id], self.wanted.on_node(node)) for node in self._nodes]
        else:
            crowds = [(there, self.wanted.total(self._nodes))]
        for crowd, most in crowds:
            if len(crowd) > most:
                min(crowd, key=lambda known: (_load(known), -_since_ms(known))).leaving = True
                return

    def _is_one_going(self) -> bool:
        return any(known.leaving or known.stopping for known in self._hosts.values())

    def _has_room_beside(self, known: _Known) -> bool:
        if not self.wanted.per_node:
            return self._free_anywhere() > 0
        return any(node.id == known.node and self._free(node) > 0 for node in self._nodes)

    def _end_leaving(self) -> bool:
        leaving = [known for known in self._hosts.values() if known.leaving and not known.stopping]
        for known in leaving:
            if known.report is not None and not known.report.owned and not known.busy and not known.taking:
                known.stopping = True
                self._run(self._end(known.handle))
        return bool(leaving)

    async def _end(self, handle: HostHandle) -> None:
        try:
            async with asyncio.timeout(self.wanted.drain_s + _ORDER_S):
                await handle.stop(self.wanted.drain_s)
        except PeerGone:
            pass
        except Exception as error:
            log.warning("host %s did not end by itself: %s", handle.name, str(error) or type(error).__name__)
        handle.kill()

    def _run(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _load(known: _Known) -> int:
    return len(known.report.owned) if known.report is not None else 0


def _since_ms(known: _Known) -> int:
    return known.report.since_ms if known.report is not None else 0


def new_version() -> str:
    """The name of a deployment: the instant it was asked for, UTC."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())
