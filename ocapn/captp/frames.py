"""The numbered frames of a durable session: what keeps it whole when its connection is cut (spec/resume.md).

A frame is the bytes of one message. Both sides number the frames of each direction from the first after
op:start-session, and hash them; the numbers are never sent. What the peer has not acknowledged is kept, and goes
out again, byte for byte, on the connection that the session resumes on. `op:ack` and `op:abort` are not frames.

How far two peers have agreed that their session is durable:

    UNDECIDED    the peer dialled, and its first frame has not come: it may ask
    ASKING       we dialled and asked; the answer has not come
    PROVISIONAL  we were asked and have agreed; the asker's first op:ack has not come
    AGREED       the session survives its connection

A session that is not durable has no frames.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from hashlib import sha256
from typing import Final, final

import attrs

from ocapn.codec.resumption import Claims, is_ack, is_control, read_ack
from ocapn.errors import RemoteProtocolError
from ocapn.limits import MAX_POSITION, Limits
from ocapn.model.values import Symbol

DURABLE_SESSION: Final = Symbol("durable-session")
VERSION: Final = 1
#: After this many frames that were not acknowledged an op:ack goes out at once; sooner, with garbage.
_ACK_AFTER: Final = 64
#: An offer of less than this is not worth having: seconds, frames, bytes.
_LEAST: Final = (60, 100, 1 << 20)


class Agreement(Enum):
    UNDECIDED = "undecided"
    ASKING = "asking"
    PROVISIONAL = "provisional"
    AGREED = "agreed"


@attrs.frozen
class Terms:
    """What a side is willing to do for a durable session, or what both are.

    `life`: seconds that it may be suspended; `frames` and `size` (bytes): what is kept for the peer to acknowledge.
    """

    life: int
    frames: int
    size: int

    @property
    def value(self) -> list[object]:
        """`['durable-session 1 ttl frames bytes]`, as it is asked and answered."""
        return [DURABLE_SESSION, VERSION, self.life, self.frames, self.size]

    @property
    def enough(self) -> bool:
        return all(have >= least for have, least in zip(attrs.astuple(self), _LEAST, strict=True))

    def __and__(self, other: Terms) -> Terms:
        """The smaller of each."""
        return Terms(*map(min, attrs.astuple(self), attrs.astuple(other)))


def terms_of(limits: Limits) -> Terms:
    """What a peer with these limits offers."""
    return Terms(int(limits.suspended), limits.outbox_frames, limits.outbox_bytes)


def read_terms(value: object) -> Terms | None:
    """The terms that a peer asked or answered with; None if they are none that can be accepted."""
    match value:
        case [head, int(version), int(life), int(frames), int(size)] if head is DURABLE_SESSION:
            numbers = (version, life, frames, size)
            terms = Terms(life, frames, size)
            if (
                version == VERSION
                and terms.enough
                and all(type(one) is int and one <= MAX_POSITION for one in numbers)
            ):
                return terms
    return None


@final
class Frames:
    """The frames of one session, both ways.

    Ours: `sent` and `acked` count them; those between are in `kept`, with the digest up to each, and have `size`
    bytes. Theirs: `taken` counts those that were received here, `committed` those of them that no crash undoes.
    Of the present connection: `heard` is the last acknowledgement that came, None before the first; `told` the last
    that was given, at `told_at`.

    Invariants: acked + len(kept) == sent; told <= committed <= taken; what is acknowledged is never kept.
    """

    __slots__ = (
        "_committed",
        "_committed_sent",
        "_next",
        "acked",
        "acked_digest",
        "agreement",
        "confirmed",
        "epoch",
        "heard",
        "kept",
        "proven",
        "sent",
        "sent_digest",
        "settled",
        "since",
        "size",
        "taken",
        "taken_digest",
        "terms",
        "told",
        "told_at",
    )

    def __init__(
        self, agreement: Agreement, session: bytes, own_id: bytes, peer_id: bytes, terms: Terms, now: float
    ) -> None:
        self.agreement = agreement
        #: Whether it is settled that the session is durable, as far as this side can know.
        self.settled = agreement in (Agreement.PROVISIONAL, Agreement.AGREED)
        self.terms = terms
        #: When it was asked for; once the session is suspended, since when it is.
        self.since = now
        self.epoch = 0
        self.proven = 0  # the epoch that the peer is known to have committed
        self.sent = 0
        self.acked = 0
        self.kept: deque[tuple[bytes, bytes]] = deque()
        self.size = 0
        self.acked_digest = self.sent_digest = _first_digest(session, own_id)
        self.taken = 0
        self._committed: int | None = None
        self._committed_sent: int | None = None
        self.taken_digest = _first_digest(session, peer_id)
        self.heard: int | None = None
        self.confirmed = False  # the asker's first op:ack has come
        self.told = 0
        self.told_at = now
        self._next = 1

    def agree(self, terms: Terms, agreement: Agreement) -> None:
        """The peer has said what it offers."""
        self.terms &= terms
        self.agreement = agreement
        self.settled = True

    # Ours

    def number(self, message: bytes) -> None:
        """One more frame of ours."""
        self._keep(message)

    def _keep(self, message: bytes) -> None:
        self.sent += 1
        digest = self.sent_digest = sha256(self.sent_digest + message).digest()
        self.kept.append((message, digest))
        self.size += len(message)

    def acknowledge(self, number: int) -> None:
        """The peer has frames up to `number` for good."""
        for _ in range(number - self.acked):
            message, self.acked_digest = self.kept.popleft()
            self.size -= len(message)
            self.acked += 1

    def after(self, number: int) -> list[bytes]:
        """The frames to send again to a peer that has those up to `number`, from `acked` to `sent`."""
        kept = list(self.kept)[number - self.acked :]
        return [message for message, _ in kept]

    def _digest_at(self, number: int) -> bytes:
        """The digest of our frames up to `number`, from `acked` to `sent`."""
        return self.acked_digest if number == self.acked else self.kept[number - self.acked - 1][1]

    @property
    def full(self) -> bool:
        """Whether applications have to wait until the peer has acknowledged some of what is kept."""
        return len(self.kept) >= self.terms.frames or self.size >= self.terms.size

    @property
    def overflown(self) -> bool:
        """Whether so much is kept that the session must end."""
        return len(self.kept) >= 2 * self.terms.frames or self.size >= 2 * self.terms.size

    # Theirs

    def take(self, message: bytes) -> bool:
        """Whether a message that arrived is for the session: neither an op:ack nor a frame that came before.

        Raises RemoteProtocolError.
        """
        if is_control(message):
            if not is_ack(message):
                return True
            self._heard(read_ack(message))
            return False
        number = self._next
        self._next = number + 1
        if number <= self.taken:
            return False
        self.taken = number
        self.taken_digest = sha256(self.taken_digest + message).digest()
        return True

    def _heard(self, number: int) -> None:
        if self.agreement is Agreement.PROVISIONAL:
            self.agreement = Agreement.AGREED
            self.confirmed = True
        elif self.agreement is not Agreement.AGREED:
            raise RemoteProtocolError("op:ack in a session that is not durable")
        if number > self.sent:
            raise RemoteProtocolError(f"op:ack of frame {number}, and {self.sent} were sent")
        if self.heard is not None and number < self.heard:
            raise RemoteProtocolError(f"op:ack of frame {number} after one of frame {self.heard}")
        self.heard = number
        self.acknowledge(number)

    @property
    def committed(self) -> int:
        """How many were taken for good. Without a baggage that is all: nothing outlives what has taken them."""
        return self.taken if self._committed is None else self._committed

    def commit(self, sent: int, taken: int) -> None:
        """Frames of ours up to `sent`, and of theirs up to `taken`, are on disk."""
        self._committed_sent = sent
        self._committed = taken

    @property
    def committed_sent(self) -> int:
        """How many of our frames may be shown."""
        return self.sent if self._committed_sent is None else self._committed_sent

    @property
    def untold(self) -> int:
        """How many frames are committed here without the peer having been told, if it is to be."""
        return self.committed - self.told if self.settled else 0

    @property
    def ack_due(self) -> bool:
        """Whether so many are that an op:ack does not wait."""
        return self.untold >= _ACK_AFTER

    def tell(self, now: float) -> int:
        """The number to acknowledge now."""
        self.told = self.committed
        self.told_at = now
        return self.told

    def restore(
        self,
        epoch: int,
        proven: int,
        acked: int,
        taken: int,
        acked_digest: bytes,
        taken_digest: bytes,
        kept: list[bytes],
    ) -> None:
        """These were the frames when the process ended; `kept` has those that were not acknowledged."""
        self.epoch = epoch
        self.proven = proven
        self.acked = acked
        self.acked_digest = self.sent_digest = acked_digest
        self.sent = acked
        for message in kept:
            self._keep(message)
        self.taken = taken
        self.taken_digest = taken_digest
        self.commit(self.sent, taken)

    # Resuming

    def claims(self) -> Claims:
        """What this side has for good. Nothing that was taken may wait for its commit; what is to be sent may."""
        assert self.committed == self.taken
        sent = self.committed_sent
        return Claims(self.epoch, self.proven, sent, self.acked, self.taken, self.taken_digest)

    def judge(self, claims: Claims) -> str | None:
        """What is wrong with the peer's claims, from our side: a reason to refuse with, or None."""
        if claims.epoch < self.proven or claims.sent < self.taken or claims.received < self.acked:
            return "you-rolled-back"
        if claims.received > self.sent or claims.acked > self.taken or claims.proven > self.epoch:
            return "i-rolled-back"
        if claims.digest != self._digest_at(claims.received):
            return "diverged"
        return None

    def attach(self, received: int, first: int, now: float) -> tuple[list[bytes], list[bytes]]:
        """A new connection: the peer has our frames up to `received`, and its first one here is number `first`.

        Returns the frames to send again, and those that are to be committed before.
        """
        self.acknowledge(received)
        self._next = first
        self.heard = None
        self.told = 0
        self.told_at = now
        committed = max(self.committed_sent, received)
        again = self.after(received)
        return again[: committed - received], again[committed - received :]

    def check(self) -> None:
        """Raises AssertionError naming the first invariant that does not hold."""
        assert self.acked + len(self.kept) == self.sent, "frames are miscounted"
        assert self.told <= self.committed <= self.taken, "frames are acknowledged that are not committed"
        assert self.size == sum(len(message) for message, _ in self.kept), "bytes of frames are miscounted"
        assert self._digest_at(self.sent) == self.sent_digest, "the digest is not that of the last frame"


def _first_digest(session: bytes, sender: bytes) -> bytes:
    return sha256(b"ocapn-durable-1" + session + sender).digest()
