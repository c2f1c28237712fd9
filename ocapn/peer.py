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
from typing import Any, Final, cast, final

import attrs
import trio

from ocapn.captp.delivery import LocalTarget, PromiseHandle, RefHandle, crossing
from ocapn.captp.handshake import Handshake, Refused
from ocapn.captp.node import LATER, Node, Turn
from ocapn.captp.passing import copy_passable, describe
from ocapn.captp.session import FETCH
from ocapn.captp.session import Session as CoreSession
from ocapn.codec.operations import form_of
from ocapn.errors import (
    Aborted,
    BadLocator,
    ConnectFailed,
    Disconnected,
    OCapNError,
    RemoteProtocolError,
    SessionEnded,
    TooBusy,
)
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer
from ocapn.promise import Promise
from ocapn.references import Ref, Target, current_node
from ocapn.trace import Tracer

log: Final = logging.getLogger("ocapn.session")
netlayer_log: Final = logging.getLogger("ocapn.netlayer")

#: Messages taken from a connection at once: enough to amortise a pass of the loop, few enough to stay fair.
_BATCH: Final = 64
#: Bytes of received messages that may wait in turns before reading stops (durable.md, limits).
_UNREAD_BYTES: Final = 8 << 20
#: How long a dial that the other side ended may wait for the session of crossed hellos, seconds.
_CROSSING: Final = 2.0
#: How often what has waited too long is looked for, seconds.
_EXPIRY: Final = 15.0


@final
class Session:
    """A session with another peer, for applications that want to know: `peer.sessions`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    @property
    def _core(self) -> CoreSession:
        core = self._connection.session
        assert core is not None
        return core

    @property
    def location(self) -> PeerLocator:
        """Where the other peer says it is."""
        return self._core.location

    @property
    def netlayer(self) -> str:
        """The transport that carries the session."""
        return self._connection.netlayer.transport

    @property
    def authenticated(self) -> bool:
        """Whether the netlayer proved to us that the other peer is the one that `location` names."""
        return self._core.authenticated

    @property
    def ended(self) -> SessionEnded | None:
        """Why the session is over, or None while it lives."""
        return self._core.ended

    def end(self, reason: str = "session ended") -> None:
        """Ends the session with op:abort: `reason` is sent. Its references break on both sides."""
        self._core.abort(reason)
        self._connection.peer._pump()

    async def writable(self) -> None:
        """Waits until the outbox has room for application messages. Raises SessionEnded."""
        await self._connection.writable()

    def stats(self) -> dict[str, int]:
        """Counts of messages and bytes since the start, and the present sizes of queues and tables."""
        return self._core.stats()

    def dump(self) -> dict[str, object]:
        """Every slot of the session, readable, without secrets."""
        return self._core.dump()

    def check(self) -> None:
        """The invariants of the session's tables. Raises AssertionError naming the first that does not hold."""
        self._core.check()

    def trace(self, write: Callable[[str], object] | None, *, secrets: bool = False) -> None:
        """Switches the wire trace on, a line a message to `write`, or off with None.

        Lines are in the notation of the specification. Swiss numbers and gift ids are left out unless `secrets`;
        what applications send is not.
        """
        self._core.trace = None if write is None else Tracer(write, secrets=secrets)

    def __repr__(self) -> str:
        return repr(self._core)


class _Wakeup:
    """A flag that one task waits on, set from synchronous code."""

    __slots__ = ("_set", "_task")

    def __init__(self) -> None:
        self._set = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        self._set = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    async def wait(self) -> None:
        """Returns once the flag was set since the last time; a checkpoint."""
        if self._set:
            await trio.lowlevel.checkpoint()
        else:
            self._task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._set = False


@final
class _Connection:
    """One connection, from accept or dial to its close."""

    def __init__(self, peer: Peer, netlayer: Netlayer, channel: Channel) -> None:
        self.peer = peer
        self.netlayer = netlayer
        self.channel = channel
        self.session: CoreSession | None = None
        self.public: Session | None = None
        self.running_methods = 0
        self._room = trio.Event()
        self._wakeup = _Wakeup()
        self._reading = trio.CancelScope()
        self._read_room = _Wakeup()

    # The handshake

    async def shake_hands(self, handshake: Handshake) -> CoreSession:
        """From a connection to a session. Raises OCapNError, the connection then being closed."""
        limits = self.peer.limits
        try:
            with trio.move_on_after(limits.handshake):
                await self._send_outbound(handshake)
                messages = await self.channel.receive(1)
                if not messages:
                    raise Disconnected("the connection ended before op:start-session")
                start = handshake.read(messages[0])
                if handshake.dialled is None:
                    await self.peer._hear_out(start.location)
                session = handshake.judge(start, trio.current_time())
                self._live(session)
                await self._send_outbound(handshake)
                return session
            raise Refused(f"no op:start-session within {limits.handshake:g} s")
        except RemoteProtocolError as error:
            handshake.refuse(str(error))
            await self._close(handshake.outbound)
            raise
        except ChannelBroken as error:
            await self._close([])
            raise Disconnected(str(error)) from None
        except BaseException:
            await self._close(handshake.outbound)
            raise

    async def _send_outbound(self, handshake: Handshake) -> None:
        if handshake.outbound:
            messages = handshake.outbound
            handshake.outbound = []
            await self.channel.send(messages)

    def _live(self, session: CoreSession) -> None:
        self.session = session
        self.public = Session(self)
        self.channel.set_max_message(self.peer.limits.frame)
        session.on_end = self._ended
        self.peer._connections[session] = self
        self.peer._established(session)
        log.info("session with %s", session.location.uri)

    # The session

    async def run(self) -> None:
        """Reads and writes until the session has ended, then closes the connection."""
        session = self.session
        assert session is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_loop, session)
                with self._reading:
                    await self._read_loop(session)
                session.disconnected("the connection was closed")
                self._wakeup.set()
                nursery.cancel_scope.deadline = trio.current_time() + self.peer.limits.closing
        finally:
            session.disconnected("the peer was closed")
            self._room.set()
            await self._close([])
            self.peer._gone(session)

    async def _read_loop(self, session: CoreSession) -> None:
        channel = self.channel
        limits = self.peer.limits
        peer = self.peer
        try:
            while session.ended is None:
                if channel.progress_due:
                    with trio.move_on_after(limits.frame_progress) as progress:
                        messages = await channel.receive(_BATCH)
                    if progress.cancelled_caught:
                        raise RemoteProtocolError(
                            f"a message took over {limits.frame_progress:g} s to arrive"
                        )
                else:
                    messages = await channel.receive(_BATCH)
                if not messages:
                    session.disconnected("the peer closed the connection")
                    break
                session.last_heard = trio.current_time()
                for message in messages:
                    session.receive(message)
                peer._pump()
                while (
                    session.queued_turns > limits.queued_turns or session.queued_bytes > _UNREAD_BYTES
                ) and session.ended is None:
                    await self._read_room.wait()
        except SessionEnded as error:
            log.info("session with %s: %s", session.location.uri, error)
        except RemoteProtocolError as error:
            log.warning("session with %s aborted: %s", session.location.uri, error)
            session.abort(str(error))
        except ChannelBroken as error:
            session.disconnected(str(error))
        peer._pump()

    async def _write_loop(self, session: CoreSession) -> None:
        channel = self.channel
        try:
            while True:
                messages = session.take()
                if not messages:
                    if session.ended is not None:
                        break
                    await self._wakeup.wait()
                    continue
                await channel.send(messages)
                self._written(session, messages)
            if not isinstance(session.ended, Disconnected):
                await channel.send_eof()
                with trio.move_on_after(self.peer.limits.draining):
                    while await channel.receive(_BATCH):
                        pass
        except (ChannelBroken, RemoteProtocolError) as error:
            session.disconnected(str(error))

    def _written(self, session: CoreSession, messages: list[bytes]) -> None:
        session.written(len(messages), sum(map(len, messages)))
        if not self._room.is_set():
            limits = self.peer.limits
            if session.outbox_frames < limits.outbox_frames and session.outbox_bytes < limits.outbox_bytes:
                self._room.set()

    def flush(self) -> None:
        """There is something to send: the writer is woken."""
        session = self.session
        assert session is not None
        if session.overflown and session.ended is None:
            session.abort("the peer does not read what it is sent")
        self._wakeup.set()

    def read_on(self) -> None:
        """Turns have run: reading may go on."""
        self._read_room.set()

    def _ended(self, error: SessionEnded) -> None:
        self._reading.cancel()
        self._wakeup.set()
        self._room.set()

    async def writable(self) -> None:
        session = self.session
        assert session is not None
        limits = self.peer.limits
        await trio.lowlevel.checkpoint()
        while session.ended is None and (
            session.outbox_frames >= limits.outbox_frames or session.outbox_bytes >= limits.outbox_bytes
        ):
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()
        if session.ended is not None:
            raise session.ended

    async def _close(self, last: list[bytes]) -> None:
        """Flush, half-close, drain, close: a plain close with unread input would reset the connection."""
        with trio.CancelScope(shield=True):
            if last:
                with trio.move_on_after(self.peer.limits.draining):
                    try:
                        await self.channel.send(last)
                        await self.channel.send_eof()
                        while await self.channel.receive(_BATCH):
                            pass
                    except (ChannelBroken, RemoteProtocolError):
                        pass
            await self.channel.aclose()


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
@attrs.frozen
class _Setting:
    """How to speak with a peer, or with all of which nothing else is said."""

    dialect: str | None = None


@final
class Peer:
    """A peer of the network, running in the `async with` block of `open_peer`."""

    def __init__(
        self,
        netlayers: Sequence[Netlayer],
        limits: Limits,
        dialect: str | None,
        dialects: Mapping[PeerLocator, str],
    ) -> None:
        self.limits = limits
        self._netlayers = {netlayer.transport: netlayer for netlayer in netlayers}
        self._form = form_of(dialect)
        self._forms = {locator: form_of(name) for locator, name in dialects.items()}
        self._connections: dict[CoreSession, _Connection] = {}
        self._wanted: dict[PeerLocator, _Wanted] = {}
        self._unauthenticated: dict[str, int] = {}
        self._running: dict[int, int] = {}
        self._wakeup = _Wakeup()
        self._token: trio.lowlevel.TrioToken | None = None
        self._wake_queued = False
        self._closing = False
        self._all_closed = trio.Event()
        self._pumping = False
        self._service: trio.Nursery | None = None
        self._methods: trio.Nursery | None = None
        self._listeners: list[Listener] = []
        self._node = Node(
            limits=limits,
            now=trio.current_time,
            random=secrets.token_bytes,
            make_ref=Ref,
            make_promise=Promise,
            invoke=self._invoke,
            connect=self._connect,
            wake=self._wake,
        )

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
        return SturdyRef(self.locator(), swiss)

    def unexport(self, sturdyref: SturdyRef) -> None:
        """Ends a sturdyref: it enlivens nothing any more. References that were enlivened before stay.

        Raises KeyError if it is none of this peer's.
        """
        if not self._node.is_own(sturdyref.peer) or sturdyref.swiss not in self._node.swiss:
            raise KeyError("that sturdyref is not exported here")
        del self._node.swiss[sturdyref.swiss]

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
                raise ConnectFailed("this peer has no object with that swiss number")
            return await found if isinstance(found, Promise) else found
        session = await self._session_with(sturdyref.peer)
        question = session.deliver(session.bootstrap, [FETCH, sturdyref.swiss])
        return await cast(Promise, question.handle())

    async def connect(self, locator: PeerLocator | str) -> Session:
        """The session with a peer; dials if there is none. Raises ConnectFailed, BadLocator."""
        if isinstance(locator, str):
            locator = PeerLocator.parse(locator)
        session = await self._session_with(locator)
        public = self._connections[session].public
        assert public is not None
        return public

    def locator(self, transport: str | None = None) -> PeerLocator:
        """The locator of this peer over a transport; over the first that listens, or the first, by default.

        Raises KeyError for a transport that the peer does not have.
        """
        if transport is not None:
            return self._netlayers[transport].location
        return self._node.own[0]

    @property
    def sessions(self) -> list[Session]:
        """The live sessions."""
        return [
            connection.public
            for session, connection in self._connections.items()
            if session.ended is None and connection.public is not None
        ]

    def check(self) -> None:
        """The invariants of all sessions, and those between them. Raises AssertionError."""
        self._node.check()

    def __repr__(self) -> str:
        return f"<Peer {self.locator().uri}, {len(self.sessions)} sessions>"

    # Turns

    def _wake(self) -> None:
        """There is something to do. May be called by finalisers, in any thread."""
        if threading.get_ident() == self._node.thread:
            if not self._pumping:
                self._wakeup.set()
        elif not self._wake_queued and self._token is not None:
            self._wake_queued = True
            try:
                self._token.run_sync_soon(self._woken)
            except trio.RunFinishedError:
                pass

    def _woken(self) -> None:
        self._wake_queued = False
        self._wakeup.set()

    def _pump(self) -> None:
        """Runs a slice of turns, and sends and tells what came of it."""
        if self._pumping:
            return
        node = self._node
        self._pumping = True
        try:
            node.run(self.limits.slice_turns)
            node.collect()
            result = node.take()
            connections = self._connections
            for session in result.outbound:
                connection = connections.get(session)
                if connection is not None:
                    connection.flush()
            for tell in result.events:
                tell()
        finally:
            self._pumping = False
        if not node.idle:
            self._wakeup.set()

    async def _pump_loop(self) -> None:
        while True:
            await self._wakeup.wait()
            self._pump()
            for connection in self._connections.values():
                connection.read_on()

    async def _expiry_loop(self) -> None:
        while True:
            await trio.sleep(_EXPIRY)
            self._node.expire()
            self._pump()

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
        return copy_passable(result, self.limits, "the result")

    def _start(self, coroutine: CoroutineType[Any, Any, object], turn: Turn) -> object:
        """Makes an `async` method a task. Messages to its target wait until it has run its first step."""
        source = turn.source
        key = id(source)
        running = self._running.get(key, 0)
        if source is not None and running >= self.limits.running_methods:
            coroutine.close()
            raise TooBusy(f"{running} methods run for this session already")
        assert self._methods is not None
        self._running[key] = running + 1
        self._node.hold_back(turn.target)
        self._methods.start_soon(self._run_method, coroutine, turn, key)
        return LATER

    async def _run_method(self, coroutine: CoroutineType[Any, Any, object], turn: Turn, key: int) -> None:
        # trio runs this task without a break up to the coroutine's first checkpoint, so what is let go here is
        # begun only after that first step.
        self._node.go_on(turn.target)
        answer = turn.answer
        try:
            result = copy_passable(await coroutine, self.limits, "the result")
        except Exception as error:
            if answer is None:
                self._node.log_lost(error)
            else:
                answer.break_with(crossing(error))
        else:
            if answer is not None:
                answer.resolve(result)
        finally:
            left = self._running[key] - 1
            if left:
                self._running[key] = left
            else:
                del self._running[key]
        self._pump()

    # Sessions

    def _connect(self, locator: PeerLocator, callback: Callable[[CoreSession | OCapNError], None]) -> None:
        """A session with `locator`, told to `callback`: at once, or when it is there."""
        live = self._node.sessions.get(locator)
        if live is not None:
            callback(live)
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
        await trio.lowlevel.checkpoint()
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

    def _established(self, session: CoreSession) -> None:
        wanted = self._wanted.pop(session.location, None)
        if wanted is not None:
            wanted.settle(session)
            self._wakeup.set()

    def _gone(self, session: CoreSession) -> None:
        """The connection of a session is closed."""
        self._connections.pop(session, None)
        if self._closing and not self._connections:
            self._all_closed.set()

    async def _dial(self, locator: PeerLocator) -> None:
        """Dials until there is a session, or says why there is none."""
        try:
            connection = await self._dialled(locator)
        except OCapNError as error:
            wanted = self._wanted.get(locator)
            if wanted is not None and isinstance(error, (Aborted, Refused, Disconnected)):
                # It may have lost to a connection from the other side that is on its way (crossed hellos).
                with trio.move_on_after(_CROSSING):
                    await wanted.settled.wait()
            if wanted is not None and self._wanted.get(locator) is wanted:
                del self._wanted[locator]
                if not isinstance(error, (ConnectFailed, BadLocator)):
                    error = ConnectFailed(f"no session with {locator.uri}: {error}")
                wanted.settle(error)
                self._pump()
            return
        await connection.run()

    async def _dialled(self, locator: PeerLocator) -> _Connection:
        netlayer = self._netlayers.get(locator.transport)
        if netlayer is None:
            have = ", ".join(self._netlayers) or "none"
            raise ConnectFailed(f"this peer has no netlayer {locator.transport}; it has {have}")
        form = self._forms.get(locator, self._form)
        handshake = Handshake(self._node, netlayer.location, dialled=locator, authenticated=None, form=form)
        self._node.dials[locator] = handshake
        scope = trio.CancelScope()
        handshake.on_drop = scope.cancel
        try:
            with scope:
                with trio.move_on_after(self.limits.handshake):
                    channel = await netlayer.dial(locator, self.limits)
                    handshake.authenticated = channel.authenticated
                    connection = _Connection(self, netlayer, channel)
                    await connection.shake_hands(handshake)
                    return connection
                raise ConnectFailed(f"{locator.uri} did not answer within {self.limits.handshake:g} s")
            raise Refused("crossed hellos: the other connection is the session")
        finally:
            if self._node.dials.get(locator) is handshake:
                del self._node.dials[locator]

    async def _hear_out(self, location: PeerLocator) -> None:
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
        connection = _Connection(self, netlayer, channel)
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
        )
        try:
            await connection.shake_hands(handshake)
        except OCapNError as error:
            netlayer_log.info("%s: no session: %s", source, error)
            return
        finally:
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
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as methods:
                    self._methods = methods
                    async with trio.open_nursery() as service:
                        self._service = service
                        await self._listen()
                        service.start_soon(self._pump_loop)
                        service.start_soon(self._expiry_loop)
                        for netlayer, listener in self._bound:
                            service.start_soon(self._accept_loop, netlayer, listener)
                        task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                for listener in self._listeners:
                    await listener.aclose()

    async def _listen(self) -> None:
        self._bound: list[tuple[Netlayer, Listener]] = []
        for netlayer in self._netlayers.values():
            listener = await netlayer.listen(self.limits)
            if listener is not None:
                self._listeners.append(listener)
                self._bound.append((netlayer, listener))
        listening = [netlayer for netlayer, _ in self._bound]
        others = [netlayer for netlayer in self._netlayers.values() if netlayer not in listening]
        self._node.own = [netlayer.location for netlayer in [*listening, *others]]

    async def _close(self) -> None:
        """Breaks what is owed, flushes, closes; then cancels what runs."""
        self._closing = True
        with trio.CancelScope(shield=True), trio.move_on_after(self.limits.closing + self.limits.draining):
            for session in list(self._connections):
                session.abort("the peer was closed")
            self._pump()
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
) -> AsyncIterator[Peer]:
    """Runs a peer for as long as the block: `async with ocapn.open_peer(netlayers=[...]) as peer:`.

    It listens on every netlayer that can. `dialect` is how to write to peers that have not shown what they read:
    "2026-02", "2026-02-singular-gc" or "2026-01", by default the newest; `dialects` says so for single peers.
    On leaving, sessions end with op:abort after what is queued was flushed (at most `limits.closing` seconds), then
    running methods are cancelled. Raises ConnectFailed if a netlayer cannot listen, ValueError for two netlayers of
    one transport or none.
    """
    transports = [netlayer.transport for netlayer in netlayers]
    if not transports or len(set(transports)) != len(transports):
        raise ValueError("a peer has at least one netlayer, and at most one of each transport")
    peer = Peer(netlayers, limits or Limits(), dialect, dialects or {})
    async with trio.open_nursery() as nursery:
        await nursery.start(peer._serve)
        token = current_node.set(peer._node)
        try:
            yield peer
        finally:
            current_node.reset(token)
            await peer._close()
