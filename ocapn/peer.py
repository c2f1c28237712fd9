"""A running peer: its nursery, its connections, one session a peer.

The shell around the protocol core. Bytes from a connection go into its session; turns run; then, in this order,
changes are committed (with a baggage), messages are handed to the connections, and waiting tasks are woken.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import CoroutineType
from typing import Any, Final, Literal, cast, final, get_args

import trio

from ocapn.captp.bootstrap import FETCH
from ocapn.captp.delivery import LocalTarget, PromiseHandle, RefHandle, crossing
from ocapn.captp.handshake import Crossed, Handshake, State
from ocapn.captp.node import LATER, Introduction, Node, Turn
from ocapn.captp.passing import copy_result, describe
from ocapn.captp.port import Baggage
from ocapn.captp.resume import KEPT, Refusal
from ocapn.captp.session import LARGE
from ocapn.captp.session import Session as CoreSession
from ocapn.codec.operations import form_of
from ocapn.commits import Commits
from ocapn.connection import Connection, Session, Wakeup
from ocapn.errors import (
    Aborted,
    BadLocator,
    ConnectFailed,
    Disconnected,
    OCapNError,
    RemoteError,
    TooBusy,
    fresh,
    shown,
)
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.netlayers.base import Channel, Listener, Netlayer
from ocapn.promise import Promise
from ocapn.references import Ref, Target, current_node

log: Final = logging.getLogger("ocapn.session")
netlayer_log: Final = logging.getLogger("ocapn.netlayer")

#: How long a dial that the other side ended may wait for the session of crossed hellos, seconds.
_CROSSING: Final = 2.0
#: How long garbage waits for a message to go with, seconds.
_COLLECTING: Final = 0.01
#: In place of the id of a session, for methods begun when it had ended.
_LATE: Final = 0
#: How often what has waited too long is looked for, seconds.
_EXPIRY: Final = 5.0
#: Between attempts to resume a session: seconds at first, and at most; each is twice the last, less up to half of it.
_REDIAL: Final = (0.1, 30.0)
#: A peer that does not know a session may be another at its address, unless it is so for long: times, seconds.
_UNKNOWN: Final = (3, 600.0)

#: Whether sessions are to survive their connections: asked for and accepted, only accepted, or neither.
Policy = Literal["offer", "accept", "never"]


def _backoff(attempts: int, random: Callable[[int], bytes]) -> float:
    first, most = _REDIAL
    delay: float = min(most, first * 2.0 ** min(attempts, 30))
    return delay * (0.5 + int.from_bytes(random(2), "big") / (1 << 17))


_LOST: Final = {
    "ended": "the peer has ended the session",
    "expired": "the peer has given the session up",
    "diverged": "the two peers have different histories of the session",
}


def _lost(reason: str, ours: bool) -> str:
    """The reason of a refusal that ends a session, for people. `ours`: it is we who refused."""
    if reason in _LOST:
        return _LOST[reason]
    who = "the peer has" if (reason == "you-rolled-back") == ours else "this peer has"
    return f"{who} lost what it had committed, as if from an old backup"


@final
class _Redial:
    """A suspended session whose peer is dialled again and again."""

    __slots__ = ("_unknown", "attempts", "hurry")

    def __init__(self) -> None:
        self.attempts = 0
        #: Set when somebody wants the session now.
        self.hurry = trio.Event()
        self._unknown: list[float] = []

    def unknown(self) -> bool:
        """The peer has said that it does not know the session; whether it has said so often and long enough."""
        times, life = _UNKNOWN
        now = trio.current_time()
        self._unknown = [*self._unknown[: times - 1], now]
        return len(self._unknown) >= times and now - self._unknown[0] >= life


@final
class _Wanted:
    """A session that somebody waits for, and the dial that is under way."""

    __slots__ = ("callbacks", "settled")

    def __init__(self) -> None:
        self.callbacks: list[Callable[[CoreSession | OCapNError], None]] = []
        self.settled = trio.Event()

    def settle(self, result: CoreSession | OCapNError) -> None:
        self.settled.set()
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback(result)


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
    ) -> None:
        self.limits = limits
        self._netlayers = {netlayer.transport: netlayer for netlayer in netlayers}
        self._form = form_of(dialect)
        self._forms = {locator: form_of(name) for locator, name in dialects.items()}
        self._durable = durable
        self._durables = dict(durables)
        self._connections: dict[CoreSession, Connection] = {}
        self._publics: dict[CoreSession, Session] = {}
        self._attempts: dict[CoreSession, set[Connection]] = {}  # connections that a session may resume on
        self._redials: dict[CoreSession, _Redial] = {}  # suspended sessions
        self._wanted: dict[PeerLocator, _Wanted] = {}
        self._unauthenticated: dict[str, int] = {}
        self._running: dict[int, int] = {}  # methods, by the id of the session that called them
        self._outliving: list[
            tuple[CoreSession, Session]
        ] = []  # ended, with methods that run on, the oldest first
        self._wakeup = Wakeup()
        self._garbage = Wakeup()
        self._token: trio.lowlevel.TrioToken | None = None
        self._wake_queued = False
        self._closing = False
        self._all_closed = trio.Event()
        self.paused: list[Connection] = []
        self.busy = False  # in `_pump`, or about to call it
        self._service: trio.Nursery | None = None
        self._methods: trio.Nursery | None = None
        self._scopes: set[trio.CancelScope] = set()  # of methods that no session called
        self._listeners: list[tuple[Netlayer, Listener]] = []
        self.node = self._node = Node(
            limits=limits,
            now=trio.current_time,
            random=secrets.token_bytes,
            make_ref=Ref,
            make_promise=Promise,
            invoke=self._invoke,
            connect=self._connect,
            wake=self._wake,
            wake_from_finaliser=self._wake_from_finaliser,
            collect_soon=self._collect_soon,
            durable=lambda locator: self._durables.get(locator, self._durable),
            authenticate=authenticate or (lambda introduction: True),
        )
        self._node.on_status = self._status
        self._unbegun: set[CoroutineType[Any, Any, object]] = (
            set()
        )  # methods whose message is not committed yet
        self._commits: Commits | None = None
        self._restored = False
        if baggage is not None:
            keeper = self._node.keeper = baggage.keeper(self._node)
            self._commits = Commits(self._node, keeper, self._flush)

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
        session = await self._session_with(sturdyref.peer)
        question = session.deliver(session.bootstrap, [FETCH, sturdyref.swiss])
        self._show()  # this task waits next: nothing is gained by another pass of the loop
        return await cast(Promise, question.handle())

    async def connect(self, locator: PeerLocator | str) -> Session:
        """The session with a peer; dials if there is none. Raises ConnectFailed, BadLocator, SessionEnded."""
        if isinstance(locator, str):
            locator = PeerLocator.parse(locator)
        session = await self._session_with(locator)
        if session.ended is not None:  # it came, and went before this task ran
            raise fresh(session.ended)
        return self.public(session)

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
        return [public for session, public in self._publics.items() if session.ended is None]

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
        """Runs a slice of turns, and sends and tells what came of it."""
        if self.busy:
            return
        node = self._node
        self.busy = True
        current = current_node.set(node)  # whoever called: methods find their own peer
        try:
            node.run(self.limits.slice_turns)
            node.collect()
            self._show()
        finally:
            current_node.reset(current)
            self.busy = False
        if self.paused:
            self.paused = [connection for connection in self.paused if not connection.read_on()]
        if not node.idle:
            self._wakeup.set()

    def _show(self) -> None:
        """Sends and tells what turns, or the application, have left to be sent and told."""
        if self._commits is not None:
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
            await trio.sleep(_COLLECTING)
            self._node.collect_sessions()
            self.pump()

    async def _expiry_loop(self) -> None:
        while True:
            await trio.sleep(_EXPIRY)
            self._node.expire()
            self.pump()

    def _invoke(self, turn: Turn) -> object:
        target = turn.target
        assert isinstance(target, Target)
        result = target._ocapn_call(turn.args)
        kind = type(result)
        if result is None or kind is int or kind is str or kind is bool:
            return result
        if kind is CoroutineType:
            return self._start(cast("CoroutineType[Any, Any, object]", result), turn)
        if isinstance(result, (PromiseHandle, RefHandle, LocalTarget)):
            return result
        return copy_result(result, self.limits)

    def _start(self, coroutine: CoroutineType[Any, Any, object], turn: Turn) -> object:
        """Makes an `async` method a task. Messages to its target wait until it has run its first step."""
        source = turn.source
        key = id(source)
        running = self._running.get(key, 0)
        scopes = self._scopes
        if source is not None:
            public = self._publics.get(source)
            if public is None:  # the session is over: nobody will count what it has running
                key = _LATE
                running = self._running.get(key, 0)
            else:
                scopes = public.methods
            if running >= self.limits.running_methods:
                coroutine.close()
                raise TooBusy(f"{running} methods run for this session already")
            if turn.size >= LARGE and not source.keep(turn.size):
                coroutine.close()
                raise TooBusy("too many bytes are kept for methods that run for this session")
        self._running[key] = running + 1
        self._node.hold_back(turn.target)
        if self._commits is None:
            self._begin(coroutine, turn, key, scopes)
        else:  # once the message is committed, so that no restart runs the method again
            self._unbegun.add(coroutine)
            self._node.event(lambda: self._begin(coroutine, turn, key, scopes))
        return LATER

    def _begin(
        self, coroutine: CoroutineType[Any, Any, object], turn: Turn, key: int, scopes: set[trio.CancelScope]
    ) -> None:
        assert self._methods is not None
        self._unbegun.discard(coroutine)
        self._methods.start_soon(self._run_in_scope, coroutine, turn, key, scopes)

    async def _run_in_scope(
        self, coroutine: CoroutineType[Any, Any, object], turn: Turn, key: int, scopes: set[trio.CancelScope]
    ) -> None:
        with trio.CancelScope() as scope:
            scopes.add(scope)
            try:
                await self._run_method(coroutine, turn, key)
            finally:
                scopes.discard(scope)

    async def _run_method(self, coroutine: CoroutineType[Any, Any, object], turn: Turn, key: int) -> None:
        # trio runs this task without a break up to the coroutine's first checkpoint, so what is let go here is
        # begun only after that first step.
        self._node.go_on(turn.target)
        answer = turn.answer
        try:
            result = copy_result(await coroutine, self.limits)
        except Exception as error:
            if answer is None:
                self._node.log_lost(error, turn.source)
            else:
                answer.break_with(crossing(error))
        except trio.Cancelled:
            if answer is not None:
                answer.break_with(RemoteError("the method was cancelled"))
            raise
        else:
            if answer is not None:
                answer.resolve(result)
        finally:
            if turn.source is not None and turn.size >= LARGE:
                turn.source.kept_bytes -= turn.size
            left = self._running[key] - 1
            if left:
                self._running[key] = left
            else:
                del self._running[key]
        self.pump()

    # Sessions

    def _connect(self, locator: PeerLocator, callback: Callable[[CoreSession | OCapNError], None]) -> None:
        """A session with `locator`, told to `callback`: at once, or when it is there."""
        session = self._node.session_with(locator)
        if session is not None:
            if session in self._redials:
                self._redials[session].hurry.set()
            callback(session)
            return
        if self._closing:
            callback(ConnectFailed("this peer is closing"))
            return
        wanted = self._wanted.get(locator)
        if wanted is None:
            wanted = self._wanted[locator] = _Wanted()
            assert self._service is not None
            self._service.start_soon(self._dial, locator)
        wanted.callbacks.append(callback)

    async def _session_with(self, locator: PeerLocator) -> CoreSession:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._node.is_own(locator):
            raise ConnectFailed("that is this peer itself")
        done = trio.Event()
        results: list[CoreSession | OCapNError] = []

        def callback(result: CoreSession | OCapNError) -> None:
            results.append(result)
            done.set()

        self._connect(locator, callback)
        await done.wait()
        result = results[0]
        if isinstance(result, OCapNError):
            raise result
        return result

    def established(self, connection: Connection) -> None:
        """The connection has become a session: whoever waits for it is told."""
        session = connection.session
        assert session is not None
        self._connections[session] = connection
        for other in self._attempts.pop(session, ()):
            if other is not connection:
                other.attempt.cancel()
        wanted = self._wanted.pop(session.location, None)
        if wanted is not None:
            wanted.settle(session)
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
        if session not in self._connections and session not in self._redials and not self._over(session):
            assert self._service is not None
            self._redials[session] = _Redial()
            self._service.start_soon(self._redial, session)
        if self._closing and not self._connections:
            self._all_closed.set()

    def _forget(self, session: CoreSession) -> None:
        """Forgets a session that has ended and has no connection any more."""
        if session.ended is None or session in self._connections:
            return
        public = self._publics.pop(session, None)
        if public is not None and id(session) in self._running:
            self._outlives(session, public)

    def _outlives(self, session: CoreSession, public: Session) -> None:
        """Methods run on though their session has ended: as many as one session may have, for all that have."""
        running = self._running
        outliving = [one for one in self._outliving if id(one[0]) in running]
        outliving.append((session, public))
        left = sum(running[id(one)] for one, _ in outliving)
        while left > self.limits.running_methods:
            oldest, its = outliving.pop(0)
            left -= running[id(oldest)]
            for scope in its.methods:
                scope.cancel()
        self._outliving = outliving

    def public(self, session: CoreSession) -> Session:
        """The application's end of a session."""
        public = self._publics.get(session)
        if public is None:
            public = self._publics[session] = Session(session)
        return public

    def _status(self, session: CoreSession) -> None:
        """A session was cut, has resumed or has ended: who listens is told, once that is committed."""
        public = self._publics.get(session)
        if public is not None:
            self._node.event(public.tell)

    def connection_of(self, session: CoreSession) -> Connection | None:
        """The connection that a session has."""
        return self._connections.get(session)

    # Resuming

    def attempt(self, session: CoreSession, connection: Connection) -> None:
        """A session is being resumed on the connection, which is dropped if another is quicker."""
        self._attempts.setdefault(session, set()).add(connection)

    def _attempted(self, connection: Connection) -> None:
        for session, connections in list(self._attempts.items()):
            connections.discard(connection)
            if not connections:
                del self._attempts[session]

    def refused(self, session: CoreSession | None, refusal: Refusal, connection: Connection) -> None:
        """A session was not resumed on the connection."""
        if session is None or session.ended is not None:
            return
        reason = refusal.reason
        log.info("resume of the session with %s: %s", shown(session.location.uri), refusal)
        if reason == "unknown":
            redial = self._redials.get(session)
            if connection.channel.authenticated is not None or (redial is not None and redial.unknown()):
                session.lose("the peer does not know the session any more: it was restarted without it")
        elif reason == "stale" and not refusal.ours:
            log.error("this peer has an old copy of a session that another process goes on with")
            session.lose("this is an old copy of the session, and another goes on with it", reason=reason)
        elif reason not in KEPT:
            session.lose(_lost(reason, refusal.ours), refusal.received, reason=reason)
        self._wakeup.set()
        self._forget(session)

    def _over(self, session: CoreSession) -> bool:
        """Whether nobody has to dial for a session that was cut."""
        return session.attached or session.ended is not None or self._closing

    async def _redial(self, session: CoreSession) -> None:
        """Dials the peer of a suspended session until it resumes, on whatever connection, or ends."""
        redial = self._redials[session]
        delay = 0.0
        try:
            while not self._over(session):
                with trio.move_on_after(delay):
                    await redial.hurry.wait()
                if self._over(session):
                    break
                try:
                    connection = await self._resumed(session, first=not redial.attempts)
                except OCapNError as error:
                    log.info("resume of the session with %s: %s", shown(session.location.uri), shown(error))
                    redial.hurry = trio.Event()
                    redial.attempts += 1
                    delay = _backoff(redial.attempts, self._node.random)
                else:
                    del self._redials[session]
                    await connection.run()
                    return
        finally:
            if self._redials.get(session) is redial:
                del self._redials[session]
        self._forget(session)

    async def _resumed(self, session: CoreSession, *, first: bool) -> Connection:
        """Resumes a session on a new connection. Raises OCapNError."""
        locator = session.location
        netlayer = self._netlayers.get(locator.transport)
        if netlayer is None:
            raise ConnectFailed(f"this peer has no netlayer {locator.transport}")
        with trio.move_on_after(self.limits.handshake):
            channel = await netlayer.dial(locator, self.limits)
            connection = Connection(self, netlayer, channel)
            if self._over(session) or channel.binding is None:
                await channel.aclose()
                raise ConnectFailed("the session went on meanwhile, or cannot over this connection")
            if first:
                session.asked_to_resume = trio.current_time()
            try:
                await connection.resume(session)
            finally:
                session.asked_to_resume = None
                self._attempted(connection)
            return connection
        raise ConnectFailed(f"{locator.uri} did not answer within {self.limits.handshake:g} s")

    async def _dial(self, locator: PeerLocator) -> None:
        """Dials until there is a session, or says why there is none."""
        if locator in self._node.sessions:
            return  # it came in before this task began; who wanted it was told
        try:
            connection = await self._dialled(locator)
        except OCapNError as error:
            wanted = self._wanted.get(locator)
            if wanted is not None and isinstance(error, (Aborted, Crossed, Disconnected)):
                # It may have lost to a connection from the other side that is on its way (crossed hellos).
                with trio.move_on_after(_CROSSING):
                    await wanted.settled.wait()
            if wanted is not None and self._wanted.get(locator) is wanted:
                del self._wanted[locator]
                if not isinstance(error, (ConnectFailed, BadLocator)):
                    error = ConnectFailed(f"no session with {locator.uri}: {error}")
                wanted.settle(error)
                self.pump()
            return
        await connection.run()

    async def _dialled(self, locator: PeerLocator) -> Connection:
        netlayer = self._netlayers.get(locator.transport)
        if netlayer is None:
            have = ", ".join(self._netlayers) or "none"
            raise ConnectFailed(f"this peer has no netlayer {locator.transport}; it has {have}")
        form = self._forms.get(locator, self._form)
        handshake = Handshake(self._node, netlayer.location, dialled=locator, authenticated=None, form=form)
        self._node.dials[locator] = handshake
        scope = trio.CancelScope(deadline=trio.current_time() + self.limits.handshake)
        handshake.on_drop = scope.cancel
        try:
            with scope:
                channel = await netlayer.dial(locator, self.limits)
                handshake.authenticated = channel.authenticated
                handshake.resumable = channel.binding is not None
                connection = Connection(self, netlayer, channel)
                await connection.shake_hands(handshake)
                return connection
            if handshake.state is State.ENDED:
                raise Crossed("crossed hellos: the other connection is the session")
            raise ConnectFailed(f"{locator.uri} did not answer within {self.limits.handshake:g} s")
        finally:
            if self._node.dials.get(locator) is handshake:
                del self._node.dials[locator]

    async def hear_out(self, location: PeerLocator) -> None:
        """Lets a live session with `location` process what is readable on its connection, before it is judged."""
        old = self._node.sessions.get(location)
        while old is not None and old.ended is None:
            heard = old.counters[1]
            for _ in range(4):  # the loop looks for readable sockets, the reader reads, the session receives
                await trio.lowlevel.checkpoint()
            if old.counters[1] == heard:
                return

    async def _accept_loop(self, netlayer: Netlayer, listener: Listener) -> None:
        assert self._service is not None
        while True:
            try:
                channel = await listener.accept()
            except OSError as error:
                netlayer_log.warning("%s: cannot accept: %s", netlayer.transport, error)
                await trio.sleep(0.1)
                continue
            self._service.start_soon(self._accepted, netlayer, channel)

    async def _accepted(self, netlayer: Netlayer, channel: Channel) -> None:
        connection = Connection(self, netlayer, channel)
        source = f"{netlayer.transport} {channel.source}"
        count = self._unauthenticated.get(source, 0)
        if count >= self.limits.unauthenticated_per_source:
            netlayer_log.warning("%s: too many connections without a session; one is closed", source)
            await channel.aclose()
            return
        self._unauthenticated[source] = count + 1
        handshake = Handshake(
            self._node,
            netlayer.location,
            dialled=None,
            authenticated=channel.authenticated,
            form=self._form,
            resumable=channel.binding is not None,
        )
        try:
            await connection.shake_hands(handshake)
        except OCapNError as error:
            netlayer_log.info("%s: no session: %s", source, shown(error))
            return
        finally:
            self._attempted(connection)
            left = self._unauthenticated[source] - 1
            if left:
                self._unauthenticated[source] = left
            else:
                del self._unauthenticated[source]
        await connection.run()

    # Life

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Everything that runs, shielded: only `_close` ends it."""
        self._token = trio.lowlevel.current_trio_token()
        self._node.thread = threading.get_ident()
        current_node.set(self._node)
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as methods:
                self._methods = methods
                async with trio.open_nursery() as service:
                    self._service = service
                    service.start_soon(self._pump_loop)
                    service.start_soon(self._expiry_loop)
                    service.start_soon(self._garbage_loop)
                    if self._commits is not None:
                        service.start_soon(self._commits.run)
                    for session in list(self._redials):
                        service.start_soon(self._redial, session)
                    for netlayer, listener in self._listeners:
                        service.start_soon(self._accept_loop, netlayer, listener)
                    task_status.started()

    def _restore(self) -> None:
        """Brings back what the baggage has kept. Raises what the baggage raises."""
        if self._node.keeper is not None:
            self._node.keeper.restore()
            self._restored = True
            for session in self._node.suspended.values():
                self.public(session)
                self._redials[session] = _Redial()

    async def _listen(self) -> None:
        """Begins to listen wherever the peer can; from here on it knows its own locators."""
        for netlayer in self._netlayers.values():
            if self._node.keeper is not None:
                designator = netlayer.location.designator
                netlayer.be_again(self._node.keeper.designator(netlayer.transport, designator))
            listener = await netlayer.listen(self.limits)
            if listener is not None:
                self._listeners.append((netlayer, listener))
        listening = [netlayer for netlayer, _ in self._listeners]
        others = [netlayer for netlayer in self._netlayers.values() if netlayer not in listening]
        self._node.own = [netlayer.location for netlayer in [*listening, *others]]

    async def _stop_listening(self) -> None:
        with trio.CancelScope(shield=True):
            for _, listener in self._listeners:
                await listener.aclose()

    def _finish(self) -> None:
        """Nothing runs any more: what methods have done as they were cancelled is committed."""
        for coroutine in self._unbegun:
            coroutine.close()
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
        with trio.CancelScope(shield=True), trio.move_on_after(self.limits.closing + self.limits.draining):
            for session in list(self._publics):
                self._leave(session)
            wanted, self._wanted = self._wanted, {}
            for one in wanted.values():
                one.settle(ConnectFailed("this peer is closing"))
            self.pump()
            await self.settled()
            if self._connections:
                await self._all_closed.wait()
        assert self._service is not None
        assert self._methods is not None
        self._service.cancel_scope.cancel()
        self._methods.cancel_scope.cancel()


class NotPassableExport(OCapNError, TypeError):
    """`export` was given what is no reference."""

    def __init__(self, obj: object) -> None:
        super().__init__(
            f"{describe(obj)} cannot be exported: subclass ocapn.Target, or wrap a function with target"
        )


@asynccontextmanager
async def open_peer(
    netlayers: Sequence[Netlayer],
    *,
    limits: Limits | None = None,
    dialect: str | None = None,
    dialects: Mapping[PeerLocator, str] | None = None,
    durable: Policy = "offer",
    durables: Mapping[PeerLocator, Policy] | None = None,
    authenticate: Callable[[Introduction], bool] | None = None,
    baggage: Baggage | None = None,
) -> AsyncIterator[Peer]:
    """Runs a peer for as long as the block: `async with ocapn.open_peer(netlayers=[...]) as peer:`.

    It listens on every netlayer that can. `dialect` is how to write to peers that have not shown what they read:
    "2026-02", "2026-02-text-order", "2026-02-singular-gc" or "2026-01" (spec/wire.md), by default the newest, adapting;
    `dialects` says so for single peers.

    `durable` says whether sessions are to survive their connections: "offer" asks for it when dialling and accepts
    when asked, "accept" only accepts, "never" does neither; `durables` says so for single peers (spec/resume.md).
    `authenticate` is asked whether a peer may begin, or resume, a session. With a `baggage` (`durable.open_baggage`)
    durable sessions survive the process too: they, and what is kept of durable objects, are there again when the peer
    is opened with it again. It belongs to one peer at a time.

    On leaving, sessions end with op:abort after what is queued was flushed (at most `limits.closing` seconds), then
    running methods are cancelled.

    Raises ConnectFailed if a netlayer cannot listen, ValueError for two netlayers of one transport or none. What the
    block raises leaves as it is; a bug in the library ends the block, and leaves in an exception group.
    """
    transports = [netlayer.transport for netlayer in netlayers]
    if not transports or len(set(transports)) != len(transports):
        raise ValueError("a peer has at least one netlayer, and at most one of each transport")
    for policy in (durable, *(durables or {}).values()):
        if policy not in get_args(Policy):
            raise ValueError(f"durable is one of {', '.join(get_args(Policy))}, not {policy!r}")
    peer = Peer(
        netlayers, limits or Limits(), dialect, dialects or {}, durable, durables or {}, authenticate, baggage
    )
    failure: BaseException | None = None
    try:
        await peer._listen()
        peer._restore()
        async with trio.open_nursery() as nursery:
            with trio.CancelScope(
                shield=True
            ):  # a start that is cancelled would leave `_serve` without an end
                await nursery.start(peer._serve)
            token = current_node.set(peer._node)
            try:
                yield peer
            except BaseException as error:
                if nursery.cancel_scope.cancel_called:  # something of ours failed, and ended the block
                    raise
                failure = error  # the block's own: it is not for the nursery to put into a group
            finally:
                current_node.reset(token)
                await peer._close()
    except BaseExceptionGroup as group:
        if failure is None:
            raise
        raise BaseExceptionGroup("the block failed, and so did the peer", [failure, group]) from None
    finally:
        try:
            peer._finish()
        finally:
            peer._node.close()
            await peer._stop_listening()
    if failure is not None:
        raise failure
