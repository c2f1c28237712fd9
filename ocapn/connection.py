"""One connection: from accept or dial, through a handshake, a session's reading and writing, to its close.

A durable session may have several connections, one after the other.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from ocapn.captp.handshake import Handshake, Refused
from ocapn.captp.resume import Initiator, Refusal, Responder, TooLate, Wire
from ocapn.captp.session import Session as CoreSession
from ocapn.codec.messages import SYRUP
from ocapn.codec.resumption import is_ack, is_resume
from ocapn.errors import Aborted, Disconnected, RemoteProtocolError, SessionEnded, shown
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Netlayer
from ocapn.references import current_caller, current_node
from ocapn.sessions import Session

if TYPE_CHECKING:
    from ocapn.captp.node import Node

log: Final = logging.getLogger("ocapn.session")

#: Messages taken from a connection at once: enough to amortise a pass of the loop, few enough to stay fair.
_BATCH: Final = 256
#: A frame with which the process has ended so often is not taken again: the session ends. Processes that are killed
#: at random, before their first commit, reach a few.
_TRIES: Final = 30
#: Bytes of received messages that may wait in turns before reading stops (durable.md, limits).
_UNREAD_BYTES: Final = 8 << 20


class Owner(Protocol):
    """What a connection needs of the peer that it belongs to."""

    limits: Limits
    #: While true, sends do not wake anybody: `pump` or `pump_soon` is about to be called.
    busy: bool

    #: Connections that read on once turns have run.
    paused: list[Connection]

    #: What the sessions share.
    node: Node

    #: Within it, turns run.
    turns: AbstractContextManager[object]

    def public(self, session: CoreSession) -> Session:
        """The application's end of a session."""

    def connection_of(self, session: CoreSession) -> Connection | None:
        """The connection that a session has."""

    def attempt(self, session: CoreSession, connection: Connection) -> None:
        """A session is being resumed on the connection, which is dropped if another is quicker."""

    def refused(self, session: CoreSession | None, refusal: Refusal, connection: Connection) -> None:
        """A session was not resumed on the connection."""

    async def settled(self) -> None:
        """Returns when all that has happened so far is on disk, if it is kept."""

    def pump(self) -> None:
        """Runs turns, and sends what came of them."""

    def pump_soon(self) -> None:
        """Likewise, or lets what is read from other connections in this pass be sent with it."""

    def established(self, connection: Connection) -> None:
        """The connection has become a session."""

    def gone(self, connection: Connection) -> None:
        """The connection, which was a session's, is closed."""

    async def hear_out(self, location: PeerLocator) -> None:
        """Lets a live session with `location` process what is readable on its connection."""


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
        self._early: list[bytes] = []  # messages for the session that came with the handshake
        #: Cancelled when another connection becomes the session's first.
        self.attempt = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._reading = trio.CancelScope()
        self._read_room = Wakeup()

    # The handshake

    async def begin(self, deadline: float) -> None:
        """The transport says what it has to. Raises Disconnected, the connection being closed."""
        try:
            with trio.move_on_at(deadline):
                await self.channel.begin()
                return
            raise ChannelBroken(f"no handshake of the netlayer within {self.peer.limits.handshake:g} s")
        except (ChannelBroken, RemoteProtocolError) as error:
            await self._close([])
            raise Disconnected(str(error)) from None
        except BaseException:
            await self._close([])
            raise

    async def shake_hands(self, handshake: Handshake, deadline: float = math.inf) -> CoreSession:
        """From a connection to a session. Raises OCapNError, the connection then being closed.

        A dial is timed as a whole by who dials.
        """
        try:
            with trio.move_on_at(deadline):
                return await self._exchange(handshake)
            raise Refused(f"no op:start-session within {self.peer.limits.handshake:g} s")
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
        except Refusal:
            await self._close_refused(handshake.outbound)
            raise
        except TooLate:
            await self._close(handshake.outbound)
            raise
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
        if handshake.dialled is None and is_resume(messages[0]):
            handshake.codec = SYRUP  # until the session has its connection
            return await self._respond(messages[0], handshake)
        start = handshake.read(messages[0])
        if handshake.dialled is None and not handshake.only_claims(start.location):
            await self.peer.hear_out(start.location)
        session = handshake.judge(start, trio.current_time())
        self._live(session)
        await self._send_outbound(handshake)
        self._sending = False  # what the session sends may go out from now on
        return session

    @property
    def _wire(self) -> Wire:
        channel = self.channel
        assert channel.binding is not None
        location = self.netlayer.location
        return Wire(
            location.transport,
            channel.binding,
            channel.authenticated,
            dict(location.hints) or False,
            channel.vouches,
        )

    async def _respond(self, message: bytes, handshake: Handshake) -> CoreSession:
        """The peer resumes a session on this connection."""
        if self.channel.binding is None:
            raise Refused("no session can be resumed over this connection")
        responder = Responder(self.peer.node, self._wire)
        handshake.outbound = responder.outbound
        try:
            responder.read_resume(message)
            session = responder.session
            assert session is not None
            self.peer.attempt(session, self)
            with self.attempt:
                await self._committed(session)
                responder.accept()
                await self._send_outbound(responder)
                handshake.outbound = responder.outbound
                messages = await self.channel.receive(1)
                if not messages:
                    raise Disconnected("the connection ended before op:resume-confirm")
                responder.read_confirm(messages[0])
                await self.peer.settled()
                responder.attach()
                self._live(session)
                self._sending = False
                return session
            raise TooLate("another connection is the session's")
        except Refusal as refusal:
            self.peer.refused(responder.session, refusal, self)
            raise

    async def resume(self, session: CoreSession) -> None:
        """Resumes a suspended session on this connection, which was dialled for it.

        Raises OCapNError, the connection then being closed.
        """
        initiator: Initiator | None = None
        try:
            self.peer.attempt(session, self)
            with self.attempt:
                await self._committed(session)
                initiator = Initiator(session, self._wire)
                await self._send_outbound(initiator)
                messages = await self.channel.receive(1)
                if not messages:
                    raise Disconnected("the connection ended before op:resume-accept")
                session.asked_to_resume = None
                initiator.read_accept(messages[0])
                await self.peer.settled()
                initiator.confirm()
                await self._send_outbound(initiator)
                self._early = await self.channel.receive(1)
                if not self._early:
                    raise Disconnected("the connection ended before the first op:ack")
                initiator.attach(self._early[0])
                self._live(session)
                self._sending = False
                return
            raise TooLate("another connection is the session's")
        except Refusal as refusal:
            self.peer.refused(session, refusal, self)
            await self._close_refused([] if initiator is None else initiator.outbound)
            raise
        except ChannelBroken as error:
            await self._close([])
            raise Disconnected(str(error)) from None
        except RemoteProtocolError as error:
            await self._close([SYRUP.abort(str(error))])
            raise
        except BaseException:
            await self._close([])
            raise

    async def _committed(self, session: CoreSession) -> None:
        """Returns when the session's epoch, and everything that it has taken, is on disk: claims are about that."""
        epoch = None
        while session.frames is not None and (
            epoch != session.frames.epoch or session.frames.committed != session.frames.taken
        ):
            epoch = session.frames.epoch
            await self.peer.settled()

    async def _close_refused(self, last: list[bytes]) -> None:
        """As `_close`; if the session has ended with the refusal that is sent, that is on disk before."""
        try:
            await self.peer.settled()
        except BaseException:
            last = []
            raise
        finally:
            await self._close(last)

    def _lost(self, reason: str) -> None:
        """The connection failed; if the session was there already, it is over before it ran."""
        if self.session is not None:
            self._disconnected(reason)
            self.peer.gone(self)

    def _disconnected(self, reason: str) -> None:
        """The connection is gone. The session may have another by now."""
        session = self.session
        assert session is not None
        if self.peer.connection_of(session) is self:
            session.disconnected(reason)

    async def _send_outbound(self, handshake: Handshake | Initiator | Responder) -> None:
        messages, handshake.outbound = handshake.outbound, []
        if messages:
            rest = messages[self.channel.send_now(messages) :]
            if rest or self.channel.unsent:
                await self.channel.send(rest)

    def _live(self, session: CoreSession) -> None:
        self.session = session
        self.public = self.peer.public(session)
        self.channel.set_max_message(self.peer.limits.frame)
        session.on_leave = self._left
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
                self._disconnected("the connection was closed")
                if session.ended is None:  # it goes on elsewhere, or later
                    self._nursery.cancel_scope.cancel()
                else:
                    self._nursery.cancel_scope.deadline = trio.current_time() + self.peer.limits.closing
                    await self.peer.settled()
                    self.flush()
            if self._says_why(session):
                await self._half_close()
        finally:
            self._nursery = None
            self._disconnected("the peer was closed")
            assert self.public is not None
            self.public.make_room()
            await self._close([])
            self.peer.gone(self)

    async def _read_loop(self, session: CoreSession) -> None:
        channel = self.channel
        peer = self.peer
        assert self.public is not None
        try:
            while session.ended is None:
                messages, self._early = self._early or await channel.receive(_BATCH), []
                if not messages:
                    self._disconnected("the peer closed the connection")
                    break
                session.last_heard = trio.current_time()
                rest: list[bytes] = []
                if session.restarted and not all(map(is_ack, messages)):
                    await self._first_frame(session)
                    # Alone in its batch, so that it is soon known not to end the process.
                    first = next(i for i, message in enumerate(messages) if not is_ack(message)) + 1
                    messages, rest = messages[:first], messages[first:]
                peer.busy = True  # a pump follows: nobody has to be woken for it
                try:
                    with peer.turns:
                        taken = peer.node.receive(session, messages, peer.limits.slice_turns)
                    self._early = messages[taken:] + rest
                finally:
                    peer.busy = False
                    if session.restarted:  # until that frame is in a batch, the next would be tried like it
                        peer.pump()
                    else:
                        peer.pump_soon()
                del messages  # while this waits for more, which may be long
                self.public.make_room()
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
            self._disconnected(str(error))
        peer.pump()

    async def _first_frame(self, session: CoreSession) -> None:
        """The first frame since a restart: one that ends the process each time is not taken for ever."""
        keeper = self.peer.node.keeper
        assert keeper is not None
        times = keeper.tries(session)
        if times > _TRIES:
            session.lose(f"frame {session.received + 1} has ended the process {_TRIES} times")
        try:
            await self.peer.settled()
        except BaseException:  # the session goes on on another connection
            keeper.spared(session)
            raise

    async def _write(self, session: CoreSession) -> None:
        """Writes until there is nothing left to write. Runs only while the transport cannot take all at once."""
        channel = self.channel
        current_caller.set(None)  # whoever has sent so much
        current_node.set(self.peer.node)
        try:
            while self._has(session) and ((messages := session.outbox.take()) or channel.unsent):
                await channel.send(messages)
                if self._has(session):
                    self._written(session, messages)
        except ChannelBroken as error:
            self._disconnected(str(error))
        finally:
            self._sending = False

    def _has(self, session: CoreSession) -> bool:
        """Whether what the session has to send is for this connection."""
        return self.peer.connection_of(session) is self and (session.attached or session.ended is not None)

    def _written(self, session: CoreSession, messages: list[bytes]) -> None:
        session.outbox.written(messages)
        assert self.public is not None
        self.public.make_room()

    def flush(self) -> None:
        """There may be something to send: it is sent at once as far as it can be, and a task sends the rest."""
        session = self.session
        assert session is not None
        if not self._sending and (session.attached or self._says_why(session)):
            try:
                if self._all_sent(session):
                    return
            except ChannelBroken as error:
                self._disconnected(str(error))
                return
            if self._nursery is not None:
                self._sending = True
                self._nursery.start_soon(self._write, session)
        session.outbox.seen()

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
        return not channel.unsent and not session.outbox.messages

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
        node = self.peer.node
        return session.ended is None and (
            session.queued_turns > self.peer.limits.queued_turns
            or session.queued_bytes > _UNREAD_BYTES
            or (node.keeper is not None and bool(node.turns))
        )

    def _left(self) -> None:
        """The session has ended, was cut, or goes on on another connection."""
        self._reading.cancel()
        assert self.public is not None
        self.public.make_room()

    @staticmethod
    def _says_why(session: CoreSession) -> bool:
        """Whether a session that has ended still has its last messages to send."""
        return session.ended is not None and not isinstance(session.ended, Disconnected)

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
