"""A running peer: its nursery, its connections, one session a peer.

The shell around the protocol core. Bytes from a connection go into its session; turns run; then, in this order,
changes are committed (with a baggage), messages are handed to the connections, and waiting tasks are woken.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from types import CoroutineType
from typing import Any, Final, Literal, cast, final, overload

import trio

from ocapn.accepting import Acceptor
from ocapn.callbacks import start_soon
from ocapn.captp.bootstrap import FETCH
from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle
from ocapn.captp.node import Introduction, Node, Turn
from ocapn.captp.passing import describe
from ocapn.captp.port import Baggage, SetAside
from ocapn.captp.resume import Refusal
from ocapn.captp.session import Session as CoreSession
from ocapn.codec.operations import form_of
from ocapn.commits import Commits
from ocapn.connection import Connection, Wakeup
from ocapn.dialling import Dialler
from ocapn.errors import ConnectFailed, OCapNError, RemoteError, fresh
from ocapn.invoking import Invoker
from ocapn.leases import Lease
from ocapn.limits import Limits
from ocapn.methods import Methods, Turns
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.netlayers.base import Netlayer
from ocapn.policies import Reconnect
from ocapn.promise import Promise
from ocapn.reconcile import RestoredSession, facts
from ocapn.references import Ref, current_caller, current_node
from ocapn.registry import Registry
from ocapn.sessions import Keeping, Session
from ocapn.storage.backend import AsyncStorageBackend, StorageBackend, StorageStats
from ocapn.storage.memory import MemoryStorage
from ocapn.supervision import SupervisedConnection

netlayer_log: Final = logging.getLogger("ocapn.netlayer")

#: How long garbage waits for a message to go with, seconds.
_COLLECTING: Final = 0.01
#: The same with a baggage, where it costs a commit too; op:ack goes by then (durable.md: at the latest after 0.05).
_COLLECTING_KEPT: Final = 0.04
#: How often a connection is looked at for what is readable, before its session is judged: it may be a busy one.
_HEARING: Final = 100
#: How often what has waited too long is looked for, seconds.
_EXPIRY: Final = 5.0

#: Whether sessions are to survive their connections: asked for and accepted, only accepted, or neither.
Policy = Literal["offer", "accept", "never"]


@final
class Peer:
    """A peer of the network, running in the `async with` block of `open_peer`."""

    def __init__(
        self,
        netlayers: Sequence[Netlayer],
        limits: Limits,
        dialect: str | None,
        dialects: Mapping[PeerLocator, str],
        durable: Policy,
        durables: Mapping[PeerLocator, Policy],
        authenticate: Callable[[Introduction], bool] | None,
        baggage: Baggage | None,
        lease: Lease | None,
        storage: StorageBackend | AsyncStorageBackend | None,
        storage_identity: Callable[[Session], str | None] | None,
    ) -> None:
        self.limits = limits
        self._netlayers = {netlayer.transport: netlayer for netlayer in netlayers}
        self._durable = durable
        self._durables = dict(durables)
        self._connections: dict[CoreSession, Connection] = {}
        self._wakeup = Wakeup()
        self._garbage = Wakeup()
        self._token: trio.lowlevel.TrioToken | None = None
        self._wake_queued = False
        self._closing = False
        self._all_closed = trio.Event()
        self.paused: list[Connection] = []
        self.busy = False  # in `pump`, or about to call it or `pump_soon`
        self._service: trio.Nursery | None = None
        form = form_of(dialect)
        forms = {locator: form_of(name) for locator, name in dialects.items()}
        self._connected: dict[PeerLocator, SupervisedConnection] = {}
        self._dialler = Dialler(self, self._netlayers, form, forms, self._connected, self._forget)
        self._acceptor = Acceptor(self, self._netlayers.values(), form, self._dialler)
        self._invoker = Invoker(limits, self._start)
        self.node = self._node = Node(
            limits=limits,
            now=trio.lowlevel.current_clock().current_time,
            random=secrets.token_bytes,
            make_ref=Ref,
            make_promise=Promise,
            invoke=self._invoker.invoke,
            starts=self._starts,
            connect=self._dialler.connect,
            wake=self._wake,
            wake_from_finaliser=self._wake_from_finaliser,
            collect_soon=self._collect_soon,
            durable=lambda locator: durable if locator is None else self._durables.get(locator, durable),
            authenticate=authenticate or (lambda introduction: True),
        )
        self.turns = Turns(self._node)
        self._node.on_status = self._status
        if baggage is None:  # else nothing leaves before it is committed, op:ack included
            self._node.hasten = self._flush
        self._node.proving = frozenset(one.transport for one in netlayers if one.proves)
        self._commits: Commits | None = None
        self._restored = False
        #: The sessions that the baggage has brought back, as they were stored.
        self.restored: tuple[RestoredSession, ...] = ()
        if baggage is not None:
            keeper = self._node.keeper = baggage.keeper(self._node)
            self._commits = Commits(self._node, keeper, self._flush)
            if storage is None:
                storage = keeper.storage()
        if storage is None:
            storage = MemoryStorage(limits.storage, now=trio.current_time)
        self._keeping = Keeping(storage, limits.storage, storage_identity)
        self._registry = Registry(self._keeping, lease, self._connected)
        self._node.public = self._registry.caller
        self._methods = Methods(self._node, limits, self._registry.publics, baggage is not None, self.pump)

    # What applications use

    def export(self, obj: object, swiss: bytes | None = None) -> SturdyRef:
        """Makes an object reachable by a sturdyref, until `unexport`.

        `obj` is a Target, a Ref or a Promise. `swiss` is the secret that names it, 1 to 1,024 bytes; 32 random bytes
        unless given. The sturdyref names the first netlayer that listens, or the first. Raises NotPassable for
        another object, ValueError for a swiss number that is in use for another.
        """
        if not isinstance(obj, (LocalTarget, RefHandle, PromiseHandle)):
            raise NotPassableExport(obj)
        if swiss is None:
            swiss = secrets.token_bytes(32)
        if not isinstance(swiss, bytes) or not 1 <= len(swiss) <= 1024:
            raise ValueError("a swiss number is 1 to 1,024 bytes")
        if self._node.swiss.setdefault(swiss, obj) is not obj:
            raise ValueError("that swiss number is in use for another object; unexport it first")
        if self._node.keeper is not None:
            self._node.keeper.export(swiss, obj)
        return SturdyRef(self.locator(), swiss)

    def unexport(self, sturdyref: SturdyRef) -> None:
        """Ends a sturdyref: it enlivens nothing any more. References that were enlivened before stay.

        Raises KeyError if it is none of this peer's.
        """
        if not self._node.is_own(sturdyref.peer) or sturdyref.swiss not in self._node.swiss:
            raise KeyError("that sturdyref is not exported here")
        del self._node.swiss[sturdyref.swiss]
        if self._node.keeper is not None:
            self._node.keeper.unexport(sturdyref.swiss)

    async def enliven(self, sturdyref: SturdyRef | str) -> Any:
        """A live reference to the object that a sturdyref names, as a value or as a URI.

        Connects to its peer if there is no session yet. Raises ConnectFailed, BadLocator, SessionEnded, or
        RemoteError if there is no such object.
        """
        if isinstance(sturdyref, str):
            sturdyref = SturdyRef.parse(sturdyref)
        elif not isinstance(sturdyref, SturdyRef):
            raise TypeError(f"enliven takes a SturdyRef or its URI, not {describe(sturdyref)}")
        if self._node.is_own(sturdyref.peer):
            await trio.lowlevel.checkpoint()
            found = self._node.swiss.get(sturdyref.swiss)
            if found is None:
                raise RemoteError("no object has that swiss number")
            return await found if isinstance(found, Promise) else found
        session = await self._dialler.session_with(sturdyref.peer)
        public = self.public(session)
        while public.status == "expired":
            await public.renewed()
        question = session.deliver(session.bootstrap, [FETCH, sturdyref.swiss])
        self._show()  # this task waits next: nothing is gained by another pass of the loop
        return await cast(Promise, question.handle())

    @overload
    async def connect(self, locator: PeerLocator | str) -> Session: ...
    @overload
    async def connect(self, locator: PeerLocator | str, policy: Reconnect) -> SupervisedConnection: ...
    async def connect(
        self, locator: PeerLocator | str, policy: Reconnect | None = None
    ) -> Session | SupervisedConnection:
        """The session with a peer; dials if there is none. Raises ConnectFailed, BadLocator, SessionEnded.

        With a `policy` it is kept from now on, until the application disconnects: returns at once what keeps it, which
        is the same for all who ask with the same policy. Raises ValueError if it is kept with another policy, or if the
        peer is this one.
        """
        if isinstance(locator, str):
            locator = PeerLocator.parse(locator)
        if policy is not None:
            await trio.lowlevel.checkpoint()
            return self._supervise(locator, policy)
        session = await self._dialler.session_with(locator)
        if session.ended is not None:  # it came, and went before this task ran
            raise fresh(session.ended)
        return self.public(session)

    def _supervise(self, locator: PeerLocator, policy: Reconnect) -> SupervisedConnection:
        if self._node.is_own(locator):
            raise ValueError("that is this peer itself")
        if self._closing or self._service is None:
            raise ConnectFailed("this peer is closing")
        connection = self._connected.get(locator)
        if connection is not None and connection.status != "disconnected":
            if connection.policy != policy:
                raise ValueError(f"{locator.uri} is kept with another policy: disconnect that first")
            return connection
        connection = self._connected[locator] = SupervisedConnection(self, self._dialler, locator, policy)
        start_soon(self._service, self._keep, connection)
        return connection

    async def _keep(self, connection: SupervisedConnection) -> None:
        try:
            await connection.run()
        finally:
            if self._connected.get(connection.peer) is connection:
                del self._connected[connection.peer]

    @property
    def set_aside(self) -> Sequence[SetAside]:
        """What the baggage has of sessions that could not be used as they were kept, now or at an earlier opening."""
        return () if self._node.keeper is None else self._node.keeper.aside

    @property
    def connections(self) -> list[SupervisedConnection]:
        """Those that are kept: until they are disconnected."""
        return list(self._connected.values())

    def locator(self, transport: str | None = None) -> PeerLocator:
        """The locator of this peer over a transport; over the first that listens, or the first, by default.

        Raises KeyError for a transport that the peer does not have.
        """
        if transport is not None:
            return self._netlayers[transport].location
        return self._node.own[0]

    @property
    def sessions(self) -> list[Session]:
        """The sessions that have not ended, live and suspended."""
        return self._registry.going_on

    def storage_stats(self) -> StorageStats | None:
        """What is kept for callers (`current_storage`), cheaply; None if the backend is async, or does not count."""
        return self._keeping.stats()

    def check(self) -> None:
        """The invariants of all sessions, and those between them. Raises AssertionError."""
        self._node.check()

    def __repr__(self) -> str:
        return f"<Peer {self.locator().uri}, {len(self.sessions)} sessions>"

    # Turns

    def _wake(self) -> None:
        """There is something to do."""
        if not self.busy:
            self._wakeup.set()

    def _wake_from_finaliser(self) -> None:
        """There is something to release. Finalisers run in any thread, and in the middle of anything, trio's own
        bookkeeping included: this is the one way to tell trio that is safe there."""
        if not self._wake_queued and self._token is not None:
            self._wake_queued = True
            try:
                self._token.run_sync_soon(self._woken)
            except trio.RunFinishedError:
                pass

    def _woken(self) -> None:
        self._wake_queued = False
        self._wakeup.set()

    def pump(self) -> None:
        """Runs a slice of turns, less those that messages had as they came, and sends and tells what came of it."""
        if self.busy:
            return
        node = self._node
        self.busy = True
        try:
            with self.turns:
                ran, node.ran = node.ran, 0
                if node.turns:
                    node.run(self.limits.slice_turns - ran)
                node.collect()
                self._show()
        finally:
            self.busy = False
            node.quick = self._commits is None
        if self.paused:
            self.paused = [connection for connection in self.paused if not connection.read_on()]
        if not node.idle:
            self._wakeup.set()

    def pump_soon(self) -> None:
        """As `pump`; but while a batch is on its way to disk, what the messages of a whole pass leave is one batch."""
        if self._commits is not None and self._commits.writing:
            self._wakeup.set()
        else:
            self.pump()

    def _show(self) -> None:
        """Sends and tells what turns, or the application, have left to be sent and told."""
        if self._commits is not None:
            self._commits.ready()
            self._commits.show(self._node.take())
            return
        result = self._node.take()
        for session in result.outbound:
            self._flush(session)
        for tell in result.events:
            tell()

    def _flush(self, session: CoreSession) -> None:
        connection = self._connections.get(session)
        if connection is not None:
            connection.flush()
        else:
            session.outbox.seen()
        if session.outbox.overflown:
            session.overflows()

    async def settled(self) -> None:
        """Returns when all that has happened so far is on disk, if it is kept."""
        if self._commits is not None:
            await self._commits.settled()

    async def _pump_loop(self) -> None:
        while True:
            await self._wakeup.wait()
            self.pump()

    def _collect_soon(self) -> None:
        self._garbage.set()

    async def _garbage_loop(self) -> None:
        while True:
            await self._garbage.wait()
            await trio.sleep(_COLLECTING if self._commits is None else _COLLECTING_KEPT)
            self._node.collect_sessions()
            self.pump()

    async def _expiry_loop(self) -> None:
        while True:
            await trio.sleep(_EXPIRY)
            self._node.expire()
            await self._keeping.sweep()
            self.pump()

    def _starts(self, turn: Turn) -> bool:
        return self._methods.room(turn.source) and self._invoker.starts(turn)

    def _start(self, coroutine: CoroutineType[Any, Any, object], turn: Turn) -> object:
        """For the node, which is there before the methods are."""
        return self._methods.start(coroutine, turn)

    # Sessions

    def established(self, connection: Connection) -> None:
        """The connection has become a session: whoever waits for it is told."""
        session = connection.session
        assert session is not None
        self._connections[session] = connection
        if self._dialler.established(session, connection):
            self._wakeup.set()
        if self._closing:
            self._leave(session)

    def gone(self, connection: Connection) -> None:
        """The connection, which was a session's, is closed."""
        session = connection.session
        assert session is not None
        if self._connections.get(session) is connection:
            del self._connections[session]
        self._forget(session)
        if session not in self._connections:
            self._dialler.cut(session)
        if self._closing and not self._connections:
            self._all_closed.set()

    def _forget(self, session: CoreSession) -> None:
        """Forgets a session that has ended and has no connection any more."""
        if session.ended is None or session in self._connections:
            return
        public = self._registry.forget(session)
        if public is not None:
            self._methods.outlive(session, public)

    def public(self, session: CoreSession) -> Session:
        """The application's end of a session."""
        return self._registry.public(session)

    def limit(self, public: Session, lease: Lease | None) -> None:
        """The session may be used as long as the lease says; None: as that of this peer does."""
        self._registry.limit(public, lease)

    def _status(self, session: CoreSession) -> None:
        """A session was cut, has resumed or has ended: who listens is told, once that is committed."""
        if session.ended is not None:
            self._dialler.hurry(session)  # nobody has to dial for it any more
        self._registry.told(session)

    def sessions_with(self, locator: PeerLocator) -> list[Session]:
        """All that have not ended, of who is there and not only says so: one may be suspended beside a live one."""
        return [one for one in self.sessions if one.location == locator and not one._core.unproved]

    def reads(self, session: CoreSession) -> bool:
        """Whether what its peer sends is read: not while turns are behind."""
        connection = self._connections.get(session)
        return connection is not None and connection not in self.paused

    def connection_of(self, session: CoreSession) -> Connection | None:
        """The connection that a session has."""
        return self._connections.get(session)

    def attempt(self, session: CoreSession, connection: Connection) -> None:
        """A session is being resumed on the connection, which is dropped if another is quicker."""
        self._dialler.attempt(session, connection)

    def refused(self, session: CoreSession | None, refusal: Refusal, connection: Connection) -> None:
        """A session was not resumed on the connection."""
        if session is None or session.ended is not None:
            return
        self._dialler.refused(session, refusal, connection)
        self._wakeup.set()
        self._forget(session)

    # Accepting

    async def hear_out(self, location: PeerLocator) -> None:
        """Lets a live session with `location` process what is readable on its connection, before it is judged."""
        old = self._node.sessions.get(location)
        for _ in range(_HEARING):
            if old is None or old.ended is not None:
                return
            heard = old.bytes_in
            for _ in range(4):  # the loop looks for readable sockets, the reader reads, the session receives
                await trio.lowlevel.checkpoint()
            if old.bytes_in == heard:
                return

    # Life

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Everything that runs, shielded: only `_close` ends it."""
        self._token = trio.lowlevel.current_trio_token()
        self._node.thread = threading.get_ident()
        current_node.set(self._node)
        current_caller.set(None)  # it may be a method that has opened this peer
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as methods:
                self._methods.run_in(methods)
                async with trio.open_nursery() as service:
                    self._service = service
                    service.start_soon(self._pump_loop)
                    service.start_soon(self._expiry_loop)
                    service.start_soon(self._garbage_loop)
                    if self._commits is not None:
                        service.start_soon(self._commits.run)
                    self._registry.run_in(service)
                    self._dialler.run_in(service)
                    self._acceptor.run_in(service)
                    task_status.started()

    def _restore(self) -> None:
        """Brings back what the baggage has kept. Raises what the baggage raises."""
        keeper = self._node.keeper
        if keeper is not None:
            keeper.restore()
            self._restored = True
            now = trio.current_time()
            found = []
            for session in self._node.suspended.values():
                assert session.frames is not None
                self._dialler.restore(session, keeper.unknown(session))
                found.append(
                    RestoredSession(
                        session.location,
                        now - session.last_heard,
                        now - session.begun,
                        len(session.frames.kept),
                        self.public(session),
                        facts(session),
                        self._live_with,
                    )
                )
            self.restored = tuple(found)

    async def _live_with(self, restored: Session) -> Session:
        """The session, or if there is another by now, that; once it has a connection."""
        session, core = restored, restored._core
        if core.ended is None and (core.attached or core.unproved):  # no other is with that peer for sure
            await trio.lowlevel.checkpoint()
            self._dialler.hurry(core)
        else:
            session = await self.connect(restored.location)
        async with session.events() as events:
            while not session._core.attached and session.ended is None:
                try:
                    await events.receive()
                except trio.EndOfChannel:
                    raise ConnectFailed("this peer is closing") from None
        if session.ended is not None:
            raise fresh(session.ended)
        return session

    def _finish(self) -> None:
        """Nothing runs any more: what methods have done as they were cancelled is committed."""
        self._methods.close()
        keeper = self._node.keeper
        if keeper is not None:
            assert self._commits is not None
            try:
                if self._restored and not self._commits.failed:
                    self._commits.finish()
            finally:
                keeper.close()

    def _leave(self, session: CoreSession) -> None:
        """The peer is closing: a kept session is left as if it were cut, and goes on when the peer is opened again."""
        if self._node.keeper is not None and session.durable:
            session.disconnected("the peer was closed")
        else:
            session.abort("the peer was closed")

    async def _close(self) -> None:
        """Breaks what is owed, flushes, closes; then cancels what runs."""
        self._closing = True
        self._node.leaving = True
        self._dialler.stop()
        for kept in self.connections:
            kept.stop()
        try:
            with (
                trio.CancelScope(shield=True),
                trio.move_on_after(self.limits.closing + self.limits.draining),
            ):
                for session in list(self._registry.publics):
                    self._leave(session)
                self._dialler.give_up()
                self.pump()
                await self.settled()
                if self._connections:
                    await self._all_closed.wait()
        except Exception:
            if self._node.failure is None:  # else it leaves anyway, and must not take the place of another
                raise
        finally:
            assert self._service is not None
            self._service.cancel_scope.cancel()
            self._methods.cancel()


class NotPassableExport(OCapNError, TypeError):
    """`export` was given what is no reference."""

    def __init__(self, obj: object) -> None:
        super().__init__(
            f"{describe(obj)} cannot be exported: subclass ocapn.Target, or wrap a function with target"
        )
