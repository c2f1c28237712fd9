"""From a connection to a session: op:start-session, and which of two connections lives.

The state of a connection, as a table (also in spec/wire.md):

    state        event            next         what is sent
    DIALLED      start accepted   LIVE         nothing (our start went out at once)
    DIALLED      start refused    ENDED        op:abort
    DIALLED      abort received   ENDED        nothing
    DIALLED      dropped          ENDED        op:abort (the incoming one of crossed hellos wins)
    LISTENING    start accepted   LIVE         our start
    LISTENING    start refused    ENDED        op:abort
    LISTENING    duplicate        ENDED        our start, then op:abort
    LISTENING    abort received   ENDED        nothing
    LIVE         start again      ENDED        op:abort
    LIVE         abort received   ENDED        nothing
    LIVE         dropped          ENDED        op:abort; nothing if the connection is gone or silent

Anything else that arrives before LIVE refuses the connection; nothing arrives after ENDED.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final, final

from ocapn.captp.frames import Agreement, terms_of
from ocapn.captp.node import Introduction
from ocapn.captp.session import Session
from ocapn.codec.messages import SYRUP, Codec
from ocapn.codec.operations import Abort, Form, StartSession
from ocapn.crypto import SessionKey, public_id, verify
from ocapn.errors import Aborted, OCapNError, RemoteProtocolError
from ocapn.model.locators import PeerLocator

if TYPE_CHECKING:
    from ocapn.captp.node import Node

VERSION: Final = "1.0"
_OTHER_VERSION: Final = "the version is "
_UNWANTED: Final = "this peer does not want a session with that peer"


def is_lasting(error: OCapNError) -> bool:
    """Whether a connection that has failed so shows that others to the same peer will fail as well.

    What a peer of another implementation says with op:abort is not known to.
    """
    if isinstance(error, Aborted):
        return error.reason == _UNWANTED or error.reason.startswith(_OTHER_VERSION)
    return isinstance(error, Refused) and error.lasting


class State(Enum):
    DIALLED = "dialled"
    LISTENING = "listening"
    LIVE = "live"
    ENDED = "ended"


class Event(Enum):
    ACCEPTED = "start accepted"
    REFUSED = "start refused"
    DUPLICATE = "duplicate"
    START_AGAIN = "start again"
    ABORT_RECEIVED = "abort received"
    DROPPED = "dropped"


#: Every transition there is; an event with no entry cannot happen in that state.
TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.DIALLED, Event.ACCEPTED): State.LIVE,
    (State.DIALLED, Event.REFUSED): State.ENDED,
    (State.DIALLED, Event.ABORT_RECEIVED): State.ENDED,
    (State.DIALLED, Event.DROPPED): State.ENDED,
    (State.LISTENING, Event.ACCEPTED): State.LIVE,
    (State.LISTENING, Event.REFUSED): State.ENDED,
    (State.LISTENING, Event.DUPLICATE): State.ENDED,
    (State.LISTENING, Event.ABORT_RECEIVED): State.ENDED,
    (State.LISTENING, Event.DROPPED): State.ENDED,
    (State.LIVE, Event.START_AGAIN): State.ENDED,
    (State.LIVE, Event.ABORT_RECEIVED): State.ENDED,
    (State.LIVE, Event.DROPPED): State.ENDED,
}


class Refused(RemoteProtocolError):
    """The connection does not become a session; the text is the reason for op:abort.

    `lasting`: nor will another to the same peer, as it is.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class Crossed(Refused):
    """Another connection with the same peer becomes the session."""


@final
class Handshake:
    """One connection until it is a session. What `outbound` holds is to be sent, in order.

    `dialled` is the location we want to reach; None for a connection that came in. `own` is the location that we
    give as ours. `authenticated` is the designator that the netlayer proved for the other side, or None; if it
    `vouches`, that is the one which the other side says it has.
    """

    def __init__(
        self,
        node: Node,
        own: PeerLocator,
        *,
        dialled: PeerLocator | None,
        authenticated: str | None,
        form: Form,
        binding: bytes | None = None,
        vouches: bool = False,
        codec: Codec = SYRUP,
    ) -> None:
        self._node = node
        #: Of the messages on this connection, and of the session that begins on it.
        self.codec = codec
        self._own = own
        self.dialled = dialled
        self.authenticated = authenticated
        self.vouches = vouches
        self._form = form
        #: What ties signatures to the connection; None if no session could be resumed over it.
        self.binding = binding
        #: Called when another connection wins: this one is to be closed.
        self.on_drop: Callable[[], None] | None = None
        self.key = SessionKey(node.random(32))
        self.state = State.LISTENING if dialled is None else State.DIALLED
        self.outbound: list[bytes] = []
        if dialled is not None:
            self._send_start()

    def _send_start(self) -> None:
        location = self._own
        codec = self.codec
        encoder = codec.encoder(self._node.limits, text_order=self._form.text_order)
        signature = self.key.sign(codec.location_message(encoder.encode(location)))
        operation = StartSession(VERSION, self.key.public_key, location, signature)
        self.outbound.append(codec.start_session(encoder, operation))

    def reached(
        self, *, authenticated: str | None, binding: bytes | None, vouches: bool, codec: Codec
    ) -> None:
        """The connection that was dialled is there."""
        self.authenticated = authenticated
        self.binding = binding
        self.vouches = vouches
        if codec is not self.codec and self.outbound:
            self.codec = codec
            self.outbound.clear()
            self._send_start()

    def _step(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    def _under_way(self) -> None:
        """Raises Refused once the connection was dropped: a message may have been on its way to us then."""
        if self.state is State.ENDED:
            raise Crossed("crossed hellos: the other connection is the session")

    def read(self, message: bytes) -> StartSession:
        """The other side's op:start-session, checked but not yet judged. Raises Refused, Aborted, DecodeError."""
        self._under_way()
        decoder = self.codec.decoder(self._node.limits)
        operation = decoder.decode(message)
        if decoder.text_order:
            self._form = Form(self._form.old_deliver, self._form.old_gc, text_order=True)
        if isinstance(operation, Abort):
            self._step(Event.ABORT_RECEIVED)
            raise Aborted(operation.reason)
        if not isinstance(operation, StartSession):
            raise Refused("the first message of a connection is op:start-session")
        if operation.version != VERSION:
            raise Refused(
                f"{_OTHER_VERSION}{operation.version[:40]!r}, and this peer speaks {VERSION!r}", lasting=True
            )
        location = operation.location
        assert location.wire is not None
        signed = self.codec.location_message(location.wire)
        if not verify(operation.public_key, signed, operation.signature):
            raise Refused("the signature of the location is not by the session key", lasting=True)
        if operation.public_key == self.key.public_key:
            raise Refused("this is our own session key")
        if self._node.is_own(location):
            raise Refused("this is our own location")
        if self._node.knows_key(operation.public_key):
            raise Refused("the session key is that of another session")
        if self.dialled is not None and location != self.dialled:
            raise Refused(f"{self.dialled.uri} was dialled, and {location.uri} answered", lasting=True)
        if location.transport != self._own.transport:
            raise Refused("the location is of another transport than the connection", lasting=True)
        if self.vouches:
            self.authenticated = location.designator
        if self.authenticated is not None and location.designator != self.authenticated:
            raise Refused("the location is not the one that the netlayer authenticated", lasting=True)
        return operation

    def only_claims(self, location: PeerLocator) -> bool:
        """Whether the other side says that it is at that location, where a dial would have proved it."""
        proves = location.transport in self._node.proving
        return proves and self.dialled is None and self.authenticated is None

    def judge(self, start: StartSession, now: float) -> Session:
        """The session that begins here. Raises Refused if another connection is, or becomes, the session.

        First process what is readable on the connection of a live session with the same location.
        """
        self._under_way()
        node = self._node
        location = start.location
        if self.only_claims(location):
            return self._begun(start, now)  # whoever it is, it is not taken for the peer there
        live = node.sessions.get(location)
        if live is not None and now - live.last_heard >= node.limits.silence:
            live.disconnected("silent, and the peer has come back on a new connection")
            live = None
        if live is not None:
            if self.dialled is None:
                self._send_start()
                self._step(Event.DUPLICATE)
                self.outbound.append(self.codec.abort("there is a session with this location already"))
            raise Refused("there is a session with this location already")
        dial = None if self.dialled is not None else node.dials.get(location)
        if dial is not None:
            # A dial that has not sent its hello is dropped: the other side could not reach the same verdict.
            if not dial.outbound and dial.key.public_id > public_id(start.public_key):
                raise Crossed("crossed hellos: the other connection is the session")
            dial.drop("crossed hellos: the other connection is the session")
        return self._begun(start, now)

    def _begun(self, start: StartSession, now: float) -> Session:
        """The session, unless the application does not want it."""
        node = self._node
        location = start.location
        authenticated = self.authenticated is not None
        if not node.authenticate(
            Introduction(location, start.public_key, False, authenticated, self.binding)
        ):
            raise Refused(_UNWANTED, lasting=True)
        if self.dialled is None:
            self._send_start()
        self._step(Event.ACCEPTED)
        if authenticated and self.dialled is None:
            # Nobody else can say so: the peer has forgotten the session that it had with us.
            for kept in [
                one for one in node.suspended.values() if one.location == location and not one.unproved
            ]:
                kept.lose("the peer has begun a new session")
        return Session(
            node,
            key=self.key,
            peer_key=start.public_key,
            location=location,
            dialled=self.dialled is not None,
            authenticated=authenticated,
            form=self._form,
            now=now,
            agreement=self._agreement(location),
            codec=self.codec,
        )

    def _agreement(self, location: PeerLocator) -> Agreement | None:
        """How a durable session is to be agreed on, if the policy for that peer, and the connection, allow one."""
        policy = self._node.durable(None if self.only_claims(location) else location)
        if policy == "never" or self.binding is None or not terms_of(self._node.limits).enough:
            return None
        if self.dialled is None:
            return Agreement.UNDECIDED
        return Agreement.ASKING if policy == "offer" else None

    def refuse(self, reason: str) -> None:
        """Ends the connection with op:abort, unless it has ended."""
        if self.state in (State.DIALLED, State.LISTENING):
            self._step(Event.REFUSED)
            self.outbound.append(self.codec.abort(reason))

    def drop(self, reason: str) -> None:
        """Another connection is the session: ends this one, if it is under way."""
        if self.state in (State.DIALLED, State.LISTENING):
            self._step(Event.DROPPED)
            if self.outbound:
                self.outbound.clear()  # our start is not on its way: the other side is to hear nothing of this
            else:
                self.outbound.append(self.codec.abort(reason))
            self._node.dropped(self)
            if self.on_drop is not None:
                self.on_drop()
