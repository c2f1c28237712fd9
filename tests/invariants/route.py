"""What one connection of a peer with a baggage hands to its channel: I3, message by message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import ref as weakref

from ocapn.captp.resume import KEPT
from ocapn.captp.session import Session
from ocapn.codec.resumption import (
    Claims,
    ResumeAccept,
    ResumeConfirm,
    ResumeRefuse,
    ResumeSession,
    is_ack,
    read_ack,
    read_resumption,
)
from ocapn.connection import Connection
from ocapn.limits import Limits
from tests.invariants.disk import Bag

if TYPE_CHECKING:
    from tests.invariants.watch import Watch

_START: Final = (b"<16'op:start-session", b"\xd8\x1b\x85\x6dstart-session")
_ABORT: Final = (b"<8'op:abort", b"\xd8\x1b\x82\x65abort")
_LIMITS: Final = Limits()


class Route:
    """One connection. Frames are counted as the other side counts them: nothing on the wire says their number."""

    def __init__(self, connection: Connection, bag: Bag, watch: Watch) -> None:
        self._connection = weakref(connection)
        self._bag = bag
        self._watch = watch
        self._resumed: weakref[Session] | None = None
        self._accepted = False
        self._next = 0  # frame; 0 before the first

    def resumes(self, session: Session) -> None:
        """A session is to be resumed here."""
        self._resumed = weakref(session)

    def hand(self, messages: list[bytes]) -> list[bool]:
        """These are handed to the channel. Returns which of them are frames."""
        connection = self._connection()
        session = None if connection is None else connection.session
        numbered = [self._hand(session, message) for message in messages]
        self._next -= sum(numbered)
        return numbered

    def took(self, numbered: list[bool]) -> None:
        """The channel has taken these."""
        self._next += sum(numbered)

    def _say(self, what: str) -> None:
        self._watch.report(f"I3: {what}")

    def _hand(self, session: Session | None, message: bytes) -> bool:
        """Whether it is a frame; `_next` counts it until `hand` returns."""
        if not self._watch.may_go(message):
            self._say(f"{message[:60]!r}… is sent, and what came before it is not committed")
        if is_ack(message):
            self._ack(session, read_ack(message))
        elif message.startswith(_ABORT):
            if session is not None and session.id in self._bag.disk.sessions:
                self._say("op:abort is sent, and the end of the session is not committed")
        elif b"'op:resume-" in message[:16]:
            self._resume(message)
        elif not message.startswith(_START) and session is not None:
            return self._frame(session, message)
        return False

    def _frame(self, session: Session, message: bytes) -> bool:
        ledger = self._watch.ledger(session.frames)
        if ledger is None or session.frames is None:
            return False
        number = self._next = self._next or ledger.attached_at
        self._next += 1
        if session.ended is not None:
            return True  # what is left of it was appended, and may go or not
        if not ledger.unknown and ledger.frames_differ(number, message):
            self._say(f"what goes out as frame {number} is not frame {number}")
        settled_at = ledger.settled_at
        if settled_at is not None and number > settled_at:
            counts = self._bag.disk.counts(session.id)
            if counts is None or number > counts[2]:
                self._say(f"frame {number} is sent, and {counts and counts[2]} are committed")
        return True

    def _ack(self, session: Session | None, number: int) -> None:
        if session is None:
            self._say("op:ack is sent without a session")
            return
        disk = self._bag.disk
        counts = disk.counts(session.id)
        taken = disk.received(session.id) if counts is None else counts[4]
        if taken is None:
            self._say("op:ack is sent, and the session is not committed")
        elif number > taken:
            self._say(f"frame {number} is acknowledged, and {taken} are committed")
        if self._accepted and counts is not None and session.frames is not None:
            epoch = session.frames.epoch
            if counts[:2] != [epoch, epoch]:
                self._say(f"a resume is confirmed, and its epoch {epoch} is not committed")
        self._accepted = False

    # Resuming

    def _resume(self, message: bytes) -> None:
        operation = read_resumption(message, _LIMITS)
        session = None if self._resumed is None else self._resumed()
        disk = self._bag.disk
        if isinstance(operation, ResumeRefuse):
            if operation.reason not in KEPT and operation.session in disk.sessions:
                self._say(
                    f"a resume is refused ({operation.reason}), and the end of the session is not committed"
                )
        elif session is None:
            self._say("a resume is sent without a session")
        elif isinstance(operation, ResumeSession):
            self._claims(operation.session, operation.claims)
        elif isinstance(operation, ResumeAccept):
            self._accepted = True
            self._claims(session.id, operation.claims)
        elif isinstance(operation, ResumeConfirm):
            counts = disk.counts(session.id)
            epoch = None if session.frames is None else session.frames.epoch
            if counts is None or counts[0] != epoch:
                self._say(f"op:resume-confirm is sent, and its epoch {epoch} is not committed")

    def _claims(self, session_id: bytes, claims: Claims) -> None:
        """They are about what is on disk; of what the peer has acknowledged, more may be known."""
        disk = self._bag.disk
        counts = disk.counts(session_id)
        if counts is None:
            self._say("a session is resumed that is not committed")
            return
        said = [claims.epoch, claims.proven, claims.sent, claims.received]
        if said != [counts[0], counts[1], counts[2], counts[4]] or claims.acked < counts[3]:
            self._say(f"{claims} are claimed, and {counts} are committed")
        if claims.digest != disk.taken_digest(session_id):
            self._say("a digest is claimed that is not committed")
