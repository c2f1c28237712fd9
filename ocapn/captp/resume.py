"""Resuming a durable session on a new connection (spec/resume.md).

Three messages, op:resume-session, -accept and -confirm, or a refusal in place of any. Both sides as tables; an
event that has no entry cannot happen in that state, and nothing happens after ENDED:

    initiator    event               next         what is sent
    ASKED        accept, in order    CONFIRMED    op:resume-confirm, after the new epoch is committed
    ASKED        accept, not so      ENDED        op:resume-refuse
    ASKED        refused             ENDED        nothing
    CONFIRMED    op:ack              ATTACHED     op:ack, then the frames that the peer has not
    CONFIRMED    refused             ENDED        nothing

    responder    event               next         what is sent
    LISTENING    resume, in order    ACCEPTED     op:resume-accept
    LISTENING    resume, not so      ENDED        op:resume-refuse
    ACCEPTED     confirm, in order   ATTACHED     op:ack, after the epoch is committed, then the frames
    ACCEPTED     confirm, too late   ENDED        nothing: a newer epoch is committed
    ACCEPTED     confirm, not so     ENDED        op:resume-refuse
    ACCEPTED     refused             ENDED        nothing

A connection that ends in any state but ATTACHED leaves the session suspended: whoever wants it dials again.
Claims are judged only when they are known to be fresh: those of the responder at accept, the initiator's at confirm.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, final

import attrs

from ocapn.codec.resumption import (
    Claims,
    Hints,
    ResumeAccept,
    ResumeConfirm,
    ResumeRefuse,
    ResumeSession,
    Transcript,
    is_ack,
    is_start_or_abort,
    read_resumption,
    write_resume_accept,
    write_resume_confirm,
    write_resume_refuse,
    write_resume_session,
)
from ocapn.crypto import verify
from ocapn.errors import OCapNError, RemoteProtocolError
from ocapn.limits import MAX_POSITION

if TYPE_CHECKING:
    from ocapn.captp.frames import Frames
    from ocapn.captp.node import Node, Tombstone
    from ocapn.captp.session import Session

#: What a refusal means for the session (spec/resume.md, Refusals): those not named here end it.
KEPT: Final = ("unknown", "retry", "crossed", "policy", "stale")
#: A second attempt may begin while the first is this old, seconds (rule 7, crossed resumes).
_CROSSING: Final = 10.0


class State(Enum):
    ASKED = "asked"
    CONFIRMED = "confirmed"
    LISTENING = "listening"
    ACCEPTED = "accepted"
    ATTACHED = "attached"
    ENDED = "ended"


class Event(Enum):
    IN_ORDER = "in order"
    NOT_SO = "not so"
    TOO_LATE = "too late"
    REFUSED = "refused"
    ACK = "op:ack"


#: Every transition there is.
TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.ASKED, Event.IN_ORDER): State.CONFIRMED,
    (State.ASKED, Event.NOT_SO): State.ENDED,
    (State.ASKED, Event.REFUSED): State.ENDED,
    (State.CONFIRMED, Event.ACK): State.ATTACHED,
    (State.CONFIRMED, Event.REFUSED): State.ENDED,
    (State.LISTENING, Event.IN_ORDER): State.ACCEPTED,
    (State.LISTENING, Event.NOT_SO): State.ENDED,
    (State.ACCEPTED, Event.IN_ORDER): State.ATTACHED,
    (State.ACCEPTED, Event.TOO_LATE): State.ENDED,
    (State.ACCEPTED, Event.NOT_SO): State.ENDED,
    (State.ACCEPTED, Event.REFUSED): State.ENDED,
}


class Refusal(OCapNError):
    """The session is not resumed on this connection. `ours`: it is we who refused.

    `reason` is one of `ocapn.codec.resumption.REASONS`. `received`: how many of our frames the peer has accepted, if
    it said so, which it does when the session is over.
    """

    def __init__(self, reason: str, received: int | None = None, *, ours: bool = False) -> None:
        super().__init__(f"the resume was refused: {reason}")
        self.reason = reason
        self.received = received
        self.ours = ours


class TooLate(OCapNError):
    """Another connection has become the session's meanwhile: this one is closed, and nothing is lost."""


@attrs.frozen
class Wire:
    """The connection that a session is to resume on, as the netlayer has it (rules 8 and 9).

    `binding` ties signatures to the connection where the netlayer has something to tie them to. `authenticated` is
    the designator that it proved for the other side, or None; if it `vouches`, whatever designator that side has is
    proved. `hints` are those of our own locator.
    """

    transport: str
    binding: bytes
    authenticated: str | None
    hints: Hints
    vouches: bool = False

    def seen_from(self, session: Session) -> Wire:
        """The same, of what it says for the peer of a session."""
        return attrs.evolve(self, authenticated=session.location.designator) if self.vouches else self


def _transcript(session: Session | Tombstone, wire: Wire, *, initiates: bool) -> Transcript:
    own, peer = session.key.public_id, session.peer_id
    initiator, responder = (own, peer) if initiates else (peer, own)
    return Transcript(session.id, wire.transport, wire.binding, initiator, responder)


def _refuse(
    node: Node, session: Session | Tombstone, transcript: Transcript, nonce: bytes, reason: str
) -> bytes:
    """A signed refusal. `nonce` is the reader's."""
    key = session.key
    received = None if reason in KEPT else session.received
    signature = key.sign(transcript.refuse(nonce, key.public_id, session.peer_id, reason, received))
    return write_resume_refuse(ResumeRefuse(session.id, nonce, reason, received, signature))


def _refusal(refuse: ResumeRefuse, session: Session, transcript: Transcript, nonce: bytes) -> Refusal:
    """The refusal that the peer sent, its signature checked. Raises RemoteProtocolError."""
    if refuse.session != session.id or refuse.nonce != nonce:
        raise RemoteProtocolError("the op:resume-refuse is for another resume")
    signed = transcript.refuse(nonce, session.peer_id, session.key.public_id, refuse.reason, refuse.received)
    if refuse.signature is None or not verify(session.peer_key, signed, refuse.signature):
        raise RemoteProtocolError("the op:resume-refuse is not signed by the key of the session")
    return Refusal(refuse.reason, refuse.received)


@final
class Initiator:
    """Our resume of a suspended session, on one connection. What `outbound` holds is to be sent, in order."""

    def __init__(self, session: Session, wire: Wire) -> None:
        assert session.frames is not None
        self.session = session
        self._frames: Frames = session.frames
        self._wire = wire.seen_from(session)
        self._transcript = _transcript(session, wire, initiates=True)
        self.state = State.ASKED
        nonce = session.node.random(32)
        self._claims = self._frames.claims()
        signed = self._transcript.resume(nonce, wire.hints, self._claims)
        self._first = ResumeSession(session.id, nonce, wire.hints, self._claims, session.key.sign(signed))
        self._accept: ResumeAccept | None = None
        self.outbound = [write_resume_session(self._first)]

    def _step(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    def read_accept(self, message: bytes) -> None:
        """The answer. Raises Refusal, TooLate, RemoteProtocolError.

        The new epoch stands in the session's frames afterwards: it is to be committed before `confirm`.
        """
        session = self.session
        answer = _answer(message, session)
        if isinstance(answer, ResumeRefuse):
            self._step(Event.REFUSED)
            mine = (self._first.session, self._first.nonce)
            if (
                answer.reason == "unknown" and (answer.session, answer.nonce) == mine
            ):  # who says so has no key
                raise Refusal("unknown")
            raise _refusal(answer, session, self._transcript, self._first.nonce)
        if answer is None:  # what a peer that has lost the session, or never knew of any, says
            self._step(Event.REFUSED)
            raise Refusal("unknown")
        if not isinstance(answer, ResumeAccept):
            raise RemoteProtocolError("the answer to op:resume-session is accept or refuse")
        signed = self._transcript.accept(self._first, answer.nonce, answer.epoch, answer.hints, answer.claims)
        if not verify(session.peer_key, signed, answer.signature):
            raise RemoteProtocolError("the op:resume-accept is not signed by the key of the session")
        if answer.epoch != _next_epoch(self._claims, answer.claims):
            raise RemoteProtocolError("the epoch of op:resume-accept is not the next")
        if session.ended is not None or session.attached or self._frames.epoch != self._claims.epoch:
            raise TooLate("the session went on, or ended, on another connection")
        session.last_heard = session.node.now()  # it is fresh: our nonce is signed
        reason = self._frames.judge(answer.claims)
        if reason is None and not (
            self._proves(session)
            and session.node.admits(session, self._wire.authenticated, self._wire.binding)
        ):
            reason = "policy"
        if reason is not None:
            self._step(Event.NOT_SO)
            self.outbound.append(_refuse(session.node, session, self._transcript, answer.nonce, reason))
            raise Refusal(reason, answer.claims.received, ours=True)
        self._step(Event.IN_ORDER)
        self._frames.epoch = answer.epoch
        session.node.touch(session)
        session.moved(answer.hints)
        self._accept = answer

    def _proves(self, session: Session) -> bool:
        """Whether the netlayer has proved nobody, or the peer that the session is with."""
        return self._wire.authenticated in (None, session.location.designator)

    def confirm(self) -> None:
        """Sends the confirm: the epoch is committed."""
        assert self._accept is not None
        signature = self.session.key.sign(self._transcript.confirm(self._first, self._accept))
        self.outbound.append(write_resume_confirm(ResumeConfirm(signature)))

    def attach(self, message: bytes) -> None:
        """The first message after the confirm: an op:ack, or a refusal still. Raises as `read_accept`.

        The session is attached to this connection afterwards.
        """
        session = self.session
        assert self._accept is not None
        if not is_ack(message):
            answer = _answer(message, session)
            if not isinstance(answer, ResumeRefuse):
                raise RemoteProtocolError("the first message after op:resume-confirm is op:ack")
            self._step(Event.REFUSED)
            raise _refusal(answer, session, self._transcript, self._first.nonce)
        if session.ended is not None or session.attached or self._frames.epoch != self._accept.epoch:
            raise TooLate("the session went on, or ended, on another connection")
        self._step(Event.ACK)
        self._frames.proven = self._accept.epoch
        session.attach(self._accept.claims.received, self._claims.received + 1, self._wire.authenticated)


def _answer(message: bytes, session: Session) -> object:
    """A record of the resume; None for what a peer says that knows nothing of it. Raises DecodeError."""
    if is_start_or_abort(message):
        return None
    return read_resumption(message, session.node.limits)


def _next_epoch(one: Claims, other: Claims) -> int:
    epoch = max(one.epoch, other.epoch) + 1
    if epoch > MAX_POSITION:
        raise RemoteProtocolError("the epoch would be 2^63")
    return epoch


@final
class Responder:
    """A peer's resume on a connection that came in. What `outbound` holds is to be sent, in order.

    Nothing is kept of it before the confirm.
    """

    def __init__(self, node: Node, wire: Wire) -> None:
        self._node = node
        self._wire = wire
        self.state = State.LISTENING
        self.outbound: list[bytes] = []
        self._first: ResumeSession | None = None
        self._accept: ResumeAccept | None = None
        self.session: Session | None = None

    def _step(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    def read_resume(self, message: bytes) -> None:
        """The first message. Raises Refusal, RemoteProtocolError.

        Afterwards `session` is the one to be resumed: what it has taken is to be committed before `accept`.
        """
        node = self._node
        first = read_resumption(message, node.limits)
        if not isinstance(first, ResumeSession):
            raise RemoteProtocolError(
                "the first message of a connection is op:start-session or op:resume-session"
            )
        kept = node.kept(first.session)
        if kept is None:
            self._step(Event.NOT_SO)
            self.outbound.append(
                write_resume_refuse(ResumeRefuse(first.session, first.nonce, "unknown", None, None))
            )
            raise Refusal("unknown", ours=True)
        self._transcript = _transcript(kept, self._wire, initiates=False)
        signed = self._transcript.resume(first.nonce, first.hints, first.claims)
        if not verify(kept.peer_key, signed, first.signature):
            raise RemoteProtocolError("the op:resume-session is not signed by the key of the session")
        self._first = first
        if kept.reason is not None:
            self._refuse(kept, first.nonce, kept.reason)
        session = node.kept_session(first.session)
        assert session is not None
        self._wire = self._wire.seen_from(session)
        if session.location.transport != self._wire.transport or self._wire.authenticated not in (
            None,
            session.location.designator,
        ):
            self._refuse(session, first.nonce, "policy")
        asked = session.asked_to_resume
        if asked is not None and node.now() - asked < _CROSSING and session.key.public_id > session.peer_id:
            self._refuse(session, first.nonce, "crossed")
        self.session = session

    def accept(self) -> None:
        """Answers with our claims: what was taken is committed. Raises Refusal."""
        session, first = self.session, self._first
        assert session is not None
        assert first is not None
        if session.ended is not None:
            self._refuse(session, first.nonce, session.reason or "ended")
        assert session.frames is not None
        nonce = self._node.random(32)
        claims = session.frames.claims()
        epoch = _next_epoch(first.claims, claims)
        hints = self._wire.hints
        signature = session.key.sign(self._transcript.accept(first, nonce, epoch, hints, claims))
        self._accept = ResumeAccept(nonce, epoch, hints, claims, signature)
        self._step(Event.IN_ORDER)
        self.outbound.append(write_resume_accept(self._accept))

    def read_confirm(self, message: bytes) -> None:
        """The third message. Raises Refusal, TooLate, RemoteProtocolError.

        The epoch stands in the session's frames afterwards: it is to be committed before `attach`.
        """
        session, first, accept = self.session, self._first, self._accept
        assert session is not None
        assert first is not None
        assert accept is not None
        answer = read_resumption(message, self._node.limits)
        if isinstance(answer, ResumeRefuse):
            self._step(Event.REFUSED)
            refusal = _refusal(answer, session, self._transcript, accept.nonce)
            if refusal.reason in ("i-rolled-back", "diverged") and session.heard_lately:
                refusal = Refusal("stale", ours=True)  # an old copy of the peer has found out that it is one
            raise refusal
        if not isinstance(answer, ResumeConfirm):
            raise RemoteProtocolError("op:resume-confirm follows op:resume-accept")
        if not verify(session.peer_key, self._transcript.confirm(first, accept), answer.signature):
            raise RemoteProtocolError("the op:resume-confirm is not signed by the key of the session")
        frames = session.frames
        assert frames is not None
        if session.ended is not None:
            self._refuse(session, first.nonce, session.reason or "ended")
        if accept.epoch <= frames.epoch:
            self._step(Event.TOO_LATE)
            raise TooLate("a newer connection is the session's")
        if frames.taken != accept.claims.received:
            session.disconnected("the peer resumes the session on another connection")
            self._refuse(session, first.nonce, "retry")
        reason = frames.judge(first.claims)
        if reason in ("you-rolled-back", "diverged") and session.heard_lately:
            reason = "stale"  # an old copy of the peer, while the peer is there
        if reason is None and not self._node.admits(session, self._wire.authenticated, self._wire.binding):
            reason = "policy"
        if reason is not None:
            self._refuse(session, first.nonce, reason, first.claims.received)
        if session.attached:  # nothing more is taken from the old connection
            session.disconnected("the peer has resumed the session on another connection")
        frames.epoch = frames.proven = accept.epoch
        self._node.touch(session)
        self._step(Event.IN_ORDER)

    def attach(self) -> None:
        """The epoch is committed: the session is attached to this connection. Raises TooLate."""
        session, first, accept = self.session, self._first, self._accept
        assert session is not None
        assert session.frames is not None
        assert first is not None
        assert accept is not None
        if session.ended is not None or session.attached or session.frames.epoch != accept.epoch:
            raise TooLate("the session went on, or ended, on another connection")
        session.moved(first.hints)
        session.attach(first.claims.received, accept.claims.received + 1, self._wire.authenticated)

    def _refuse(
        self, session: Session | Tombstone, nonce: bytes, reason: str, received: int | None = None
    ) -> None:
        self._step(Event.NOT_SO)
        self.outbound.append(_refuse(self._node, session, self._transcript, nonce, reason))
        raise Refusal(reason, received, ours=True)
