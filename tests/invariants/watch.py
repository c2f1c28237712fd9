"""One watch: all that a test opens, and what was found wrong with it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet
from weakref import ref as weakref

from durable.baggage import Baggage, Batch
from durable.directory import DirectoryStore
from durable.memory import MemoryStore
from durable.sealing import SealedStore
from durable.store import Changes, Store
from ocapn.captp.frames import Frames
from ocapn.captp.node import Node
from ocapn.captp.session import Session
from ocapn.connection import Connection
from ocapn.peer import _EXPIRY, Peer
from tests.invariants.disk import Bag, Disk
from tests.invariants.ledger import Ledger
from tests.invariants.route import Route

#: So much is reported: of one fault, much more follows.
_MOST: Final = 20
#: Sessions are forgotten when there are more, as in tests with thousands of examples.
_SESSIONS: Final = 400


class Watch:
    """`seams` tells it what happens. `check` is for the end; `wrong` has what was found."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._excused: list[str] = []
        self._most = _SESSIONS
        self._nodes: WeakSet[Node] = WeakSet()
        self._sessions: dict[tuple[bytes, bytes], weakref[Session]] = {}
        self._ledgers: dict[int, Ledger] = {}  # by the id of the frames, which they keep
        self._lives: dict[tuple[bytes, bytes], list[Ledger]] = {}
        self._disks: dict[int, Disk] = {}  # by the id of the store, which they keep
        self._bags: WeakKeyDictionary[Baggage, Bag] = WeakKeyDictionary()
        self._routes: WeakKeyDictionary[Connection, Route] = WeakKeyDictionary()
        self._appended: dict[int, tuple[bytes, Bag, int]] = {}  # by the id of the message, which it keeps
        self._over: list[tuple[Bag, int, bytes]] = []

    def excuse(self, *names: str) -> None:
        """The test breaks these invariants by itself: `I7`, and so on."""
        self._excused += names

    def report(self, what: str) -> None:
        if len(self.wrong) < _MOST and what not in self.wrong and not what.startswith(tuple(self._excused)):
            self.wrong.append(what)

    def check(self) -> None:
        """Nothing runs any more."""
        for ledger in self._ledgers.values():
            ledger.check()
        for bag, when, session_id in self._over:
            if bag.shown(when) and session_id in bag.disk.sessions:
                self.report("I9: a session that has ended is kept, with its key")
        for disk in self._disks.values():
            disk.check_keys(self.report)

    def _forget(self) -> None:
        """What is over is checked now."""
        gc.collect()
        self.check()
        self._ledgers = {key: one for key, one in self._ledgers.items() if one.session is not None}
        kept = set(self._ledgers.values())
        self._lives = {
            key: left for key, all_ in self._lives.items() if (left := [x for x in all_ if x in kept])
        }
        self._sessions = {key: one for key, one in self._sessions.items() if one() is not None}
        disks = [bag.disk for bag in self._bags.values()]
        self._disks = {key: one for key, one in self._disks.items() if one in disks}
        self._appended.clear()
        self._over.clear()

    # Sessions

    def peer(self, peer: Peer) -> None:
        """Sessions of its node are watched; those of a node that a test drives by hand are the test's own."""
        self._nodes.add(peer._node)

    def session(self, node: Node, session: Session) -> None:
        """A session is made, or comes from a baggage; its frames come next."""
        if node not in self._nodes:
            return
        if len(self._sessions) > self._most:
            self._forget()
            self._most = 2 * len(self._sessions) + _SESSIONS
        self._sessions[session.id, session.key.public_id] = weakref(session)
        bag = self.bag_of(node)
        if bag is not None:
            bag.disk.keys[session.key.seed] = session.id

    def frames(self, frames: Frames, session_id: bytes, own_id: bytes) -> None:
        """Frames are made, of the session that was last made with these ids if there is one."""
        key = (session_id, own_id)
        found = self._sessions.get(key)
        session = None if found is None else found()
        if session is None:
            return
        bag = self.bag_of(session.node)

        def committed() -> int | None:
            if bag is None:
                return None
            counts = bag.disk.counts(session_id)
            return 0 if counts is None else counts[2]

        ledger = Ledger(session, frames, self.report, committed)
        self._ledgers[id(frames)] = ledger
        self._lives.setdefault(key, []).insert(0, ledger)

    def restored(self, frames: Frames) -> None:
        ledger = self.ledger(frames)
        if ledger is not None:
            for lives in self._lives.values():
                if lives[0] is ledger:
                    ledger.restore(lives[1:])

    def ledger(self, frames: Frames | None) -> Ledger | None:
        return None if frames is None else self._ledgers.get(id(frames))

    def ended(self, session: Session) -> None:
        bag = self.bag_of(session.node)
        if bag is not None:
            self._over.append((bag, bag.now, session.id))

    # What is on disk

    def disk(self, store: Store) -> Disk:
        disk = self._disks.get(id(store))
        if disk is None:
            disk = self._disks[id(store)] = Disk(store)
        return disk

    def bag_of(self, node: Node) -> Bag | None:
        keeper: Any = node.keeper
        baggage = getattr(keeper, "_baggage", None)
        return None if baggage is None else self.bag(baggage)

    def bag(self, baggage: Baggage) -> Bag | None:
        """None for one over a store whose commits are not watched."""
        bag = self._bags.get(baggage)
        if bag is None:
            store = baggage._store
            if not isinstance(store, (MemoryStore, DirectoryStore, SealedStore)):
                return None
            bag = self._bags[baggage] = Bag(baggage, self.disk(store))
        return bag

    def restoring(self, node: Node) -> None:
        bag = self.bag_of(node)
        if bag is not None:
            bag.disk.load()

    def cut(self, baggage: Baggage, batch: Batch | None) -> None:
        bag = self.bag(baggage)
        if bag is not None:
            bag.cut(None if batch is None else batch.number)

    def committed(self, store: Store, changes: Changes, baggage: Baggage | None, batch: int) -> None:
        """A commit has returned, of batches up to this number; in any thread."""
        self.disk(store).commit(changes)
        bag = None if baggage is None else self.bag(baggage)
        if bag is not None:
            bag.committed = max(bag.committed, batch)

    def cleaned(self, store: DirectoryStore | SealedStore) -> None:
        """The store has erased from its files what was deleted."""
        disk = self._disks.get(id(store))
        if disk is not None:
            disk.check_files(Path(store.path), self.report)

    # What is shown

    def appended(self, session: Session, message: bytes) -> None:
        bag = self.bag_of(session.node)
        if bag is not None:
            self._appended[id(message)] = (message, bag, bag.now)

    def event(self, node: Node, tell: Callable[[], None]) -> Callable[[], None]:
        """What tells the application of something that has happened, and looks whether it may."""
        bag = self.bag_of(node)
        if bag is None:
            return tell
        when = bag.now

        def watched() -> None:
            if not bag.shown(when) and not node._closed:
                self.report("I3: the application is told of what is not committed")
            tell()

        return watched

    def connection(self, connection: Connection) -> Route | None:
        """A connection of a peer with a baggage begins."""
        node = getattr(connection.peer, "node", None)
        bag = None if node is None else self.bag_of(node)
        if bag is None:
            return None
        route = self._routes[connection] = Route(connection, bag, self)
        return route

    def attempt(self, session: Session, connection: Connection) -> None:
        route = self._routes.get(connection)
        if route is not None:
            route.resumes(session)

    def may_go(self, message: bytes) -> bool:
        """Whether all that came before a message is on disk, as far as the message was seen when it was written."""
        found = self._appended.pop(id(message), None)
        if found is None or found[0] is not message:
            return True
        _, bag, when = found
        return bag.shown(when)

    # Ends

    def closing(self, peer: Peer) -> None:
        """The block of a peer is left: its sessions are whole still."""
        for session in peer._registry.publics:
            ledger = self.ledger(session.frames)
            if ledger is not None:
                ledger.check()
        node = peer._node
        for tombstone in node._tombstones.values():
            if tombstone.until < node.now() - 2 * _EXPIRY:
                self.report("I9: a tombstone is kept beyond its time")

    def finished(self, peer: Peer) -> None:
        """A peer has ended, and all that it had to commit is committed."""
        bag = self.bag_of(peer._node)
        if bag is not None and peer._restored:
            bag.disk.check_tombstones(peer._node._tombstones, self.report)
