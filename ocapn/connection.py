"""One connection: from accept or dial, through the handshake, a session's reading and writing, to its close."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol, final

import trio

from ocapn.captp.handshake import Handshake, Refused
from ocapn.captp.session import Session as CoreSession
from ocapn.errors import Aborted, Disconnected, RemoteProtocolError, SessionEnded, fresh, shown
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Netlayer
from ocapn.trace import Tracer

log: Final = logging.getLogger("ocapn.session")

#: Messages taken from a connection at once: enough to amortise a pass of the loop, few enough to stay fair.
_BATCH: Final = 64
#: Bytes of received messages that may wait in turns before reading stops (durable.md, limits).
_UNREAD_BYTES: Final = 8 << 20


class Owner(Protocol):
    """What a connection needs of the peer that it belongs to."""

    limits: Limits
    #: While true, sends do not wake anybody: `pump` is about to be called.
    busy: bool

    #: Connections that read on once turns have run.
    paused: list[Connection]

    def pump(self) -> None:
        """Runs turns, and sends what came of them."""

    def established(self, connection: Connection) -> None:
        """The connection has become a session."""

    def gone(self, session: CoreSession) -> None:
        """The connection of a session is closed."""

    async def hear_out(self, location: PeerLocator) -> None:
        """Lets a live session with `location` process what is readable on its connection."""


@final
class Session:
    """A session with another peer, for applications that want to know: `peer.sessions`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
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
        self._core.abort(reason)  # the peer is woken; a pump here would run turns in the caller's stack

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


class Wakeup:
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
class Connection:
    """One connection, from accept or dial to its close."""

    def __init__(self, peer: Owner, netlayer: Netlayer, channel: Channel) -> None:
        self.peer = peer
        self.netlayer = netlayer
        self.channel = channel
        self.session: CoreSession | None = None
        self.public: Session | None = None
        self._sending = True  # the handshake's messages go first
        self._room = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._reading = trio.CancelScope()
        self._read_room = Wakeup()
        #: The running `async` methods that the other peer called. They may outlive the session.
        self.methods: set[trio.CancelScope] = set()

    # The handshake

    async def shake_hands(self, handshake: Handshake) -> CoreSession:
        """From a connection to a session. Raises OCapNError, the connection then being closed.

        A dial is timed as a whole by who dials; a connection that came in has `limits.handshake` from here.
        """
        try:
            if handshake.dialled is not None:
                return await self._exchange(handshake)
            limit = self.peer.limits.handshake
            with trio.move_on_after(limit):
                return await self._exchange(handshake)
            raise Refused(f"no op:start-session within {limit:g} s")
        except RemoteProtocolError as error:
            handshake.refuse(str(error))
            self._lost(str(error))
            await self._close(handshake.outbound)
            raise
        except Aborted:
            await self._close([], drain=True)
            raise
        except ChannelBroken as error:
            self._lost(str(error))
            await self._close([])
            raise Disconnected(str(error)) from None
        except BaseException:
            self._lost("the peer was closed")
            await self._close(handshake.outbound)
            raise

    async def _exchange(self, handshake: Handshake) -> CoreSession:
        """Our op:start-session for theirs, in the order that fits our role."""
        await self._send_outbound(handshake)
        messages = await self.channel.receive(1)
        if not messages:
            raise Disconnected("the connection ended before op:start-session")
        start = handshake.read(messages[0])
        if handshake.dialled is None:
            await self.peer.hear_out(start.location)
        session = handshake.judge(start, trio.current_time())
        self._live(session)
        await self._send_outbound(handshake)
        self._sending = False  # what the session sends may go out from now on
        return session

    def _lost(self, reason: str) -> None:
        """The connection failed; if the session was there already, it is over before it ran."""
        if self.session is not None:
            self.session.disconnected(reason)
            self.peer.gone(self.session)

    async def _send_outbound(self, handshake: Handshake) -> None:
        messages, handshake.outbound = handshake.outbound, []
        if messages:
            rest = messages[self.channel.send_now(messages) :]
            if rest or self.channel.unsent:
                await self.channel.send(rest)

    def _live(self, session: CoreSession) -> None:
        self.session = session
        self.public = Session(self)
        self.channel.set_max_message(self.peer.limits.frame)
        session.on_end = self._ended
        self.peer.established(self)
        if log.isEnabledFor(logging.INFO):
            log.info("session with %s", shown(session.location.uri))

    # The session

    async def run(self) -> None:
        """Reads and writes until the session has ended, then closes the connection."""
        session = self.session
        assert session is not None
        try:
            async with trio.open_nursery() as self._nursery:
                self.flush()
                with self._reading:
                    await self._read_loop(session)
                session.disconnected("the connection was closed")
                self._nursery.cancel_scope.deadline = trio.current_time() + self.peer.limits.closing
                self.flush()
            if not isinstance(session.ended, Disconnected):
                await self._half_close()
        finally:
            self._nursery = None
            session.disconnected("the peer was closed")
            self._room.set()
            await self._close([])
            self.peer.gone(session)

    async def _read_loop(self, session: CoreSession) -> None:
        channel = self.channel
        peer = self.peer
        try:
            while session.ended is None:
                messages = await channel.receive(_BATCH)
                if not messages:
                    session.disconnected("the peer closed the connection")
                    break
                session.last_heard = trio.current_time()
                peer.busy = True  # `_pump` follows: nobody has to be woken for it
                try:
                    for message in messages:
                        session.receive(message)
                finally:
                    peer.busy = False
                    peer.pump()
                del message, messages  # while this waits for more, which may be long
                if not self._room.is_set() and session.has_room:
                    self._room.set()
                while self._full():
                    peer.paused.append(self)
                    await self._read_room.wait()
        except SessionEnded as error:
            if log.isEnabledFor(logging.INFO):
                log.info("session with %s: %s", shown(session.location.uri), shown(error))
        except RemoteProtocolError as error:
            log.warning("session with %s aborted: %s", shown(session.location.uri), shown(error))
            session.abort(str(error))
        except ChannelBroken as error:
            session.disconnected(str(error))
        peer.pump()

    async def _write(self, session: CoreSession) -> None:
        """Writes until there is nothing left to write. Runs only while the transport cannot take all at once."""
        channel = self.channel
        try:
            while (messages := session.outbox.take()) or channel.unsent:
                await channel.send(messages)
                self._written(session, messages)
        except ChannelBroken as error:
            session.disconnected(str(error))
        finally:
            self._sending = False

    def _written(self, session: CoreSession, messages: list[bytes]) -> None:
        session.outbox.written(messages)
        if not self._room.is_set() and session.has_room:
            self._room.set()

    def flush(self) -> None:
        """There may be something to send: it is sent at once as far as it can be, and a task sends the rest."""
        session = self.session
        assert session is not None
        if not self._sending and not isinstance(session.ended, Disconnected):
            try:
                if self._all_sent(session):
                    return
            except ChannelBroken as error:
                session.disconnected(str(error))
                return
            if self._nursery is not None:
                self._sending = True
                self._nursery.start_soon(self._write, session)
        session.outbox.seen()
        if session.outbox.overflown and session.ended is None:
            session.abort("the peer does not read what it is sent")

    def _all_sent(self, session: CoreSession) -> bool:
        """Sends what can be sent without waiting; whether that was all. Raises ChannelBroken."""
        channel = self.channel
        if channel.unsent:
            return False
        messages = session.outbox.take()
        if not messages:
            return True
        sent = channel.send_now(messages)
        if sent:
            self._written(session, messages[:sent])
        if sent < len(messages):
            session.outbox.put_back(messages[sent:])
            return False
        return not channel.unsent

    def read_on(self) -> bool:
        """Turns have run: reading goes on if few enough of this session's are left. Says whether it does."""
        if self._full():
            return False
        self._read_room.set()
        return True

    def _full(self) -> bool:
        """Whether reading has to wait for turns to run."""
        session = self.session
        assert session is not None
        return session.ended is None and (
            session.queued_turns > self.peer.limits.queued_turns or session.queued_bytes > _UNREAD_BYTES
        )

    def _ended(self, error: SessionEnded) -> None:
        self._reading.cancel()
        self._room.set()

    async def writable(self) -> None:
        session = self.session
        assert session is not None
        await trio.lowlevel.checkpoint()
        while session.ended is None and not session.has_room:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()
        if session.ended is not None:
            raise fresh(session.ended)

    async def _half_close(self) -> None:
        """Half-closes and drains: a plain close with unread input would reset the connection, and the other side
        would not read what was sent last."""
        with trio.move_on_after(self.peer.limits.draining):
            try:
                await self.channel.send_eof()
                await self.channel.drain()
            except ChannelBroken:
                pass

    async def _close(self, last: list[bytes], *, drain: bool = False) -> None:
        """Sends what is left to be said, and closes."""
        with trio.CancelScope(shield=True):
            if last:
                with trio.move_on_after(self.peer.limits.draining):
                    try:
                        await self.channel.send(last)
                    except ChannelBroken:
                        pass
            if last or drain:
                await self._half_close()
            await self.channel.aclose()
