"""Resuming a durable session, driven by hand: attackers, crossings, old copies, and the tables of both sides.

What is signed is made here a second time, from spec/resume.md and with an encoder of the tests' own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from random import Random
from typing import Any, Final

import pytest

from ocapn import Limits, PeerLocator, RemoteProtocolError
from ocapn.captp.frames import Frames
from ocapn.captp.handshake import Handshake, Refused
from ocapn.captp.node import Introduction, Node
from ocapn.captp.resume import TRANSITIONS, Event, Initiator, Refusal, Responder, State, TooLate, Wire
from ocapn.captp.session import Session
from ocapn.codec.operations import (
    EXPORT,
    Form,
    StartSession,
    descriptor_bytes,
    write_abort,
    write_start_session,
)
from ocapn.codec.resumption import REASONS, is_ack, write_ack
from ocapn.codec.syrup import Encoder
from ocapn.crypto import SessionKey, location_message
from ocapn.errors import OCapNError, SessionEnded, SessionLost
from tests.captp.sides import Box, Clock, Side, exported
from tests.conformance.encoding import Rec, Sym, encode, read_one, signature
from tests.support import fields_of, interpreted

WIRE: Final = Wire("memory", b"", None, False)
NONCE: Final = bytes(range(32))


# Two sides with a durable session


class Pair:
    """Sides `a`, which dialled, and `b`, with a durable session. Each has a box that the other sends numbers to."""

    def __init__(self, limits: Limits | None = None, *, authenticated: bool = False, seed: int = 0) -> None:
        self.clock = Clock()
        self.sides = tuple(Side(name, limits=limits, clock=self.clock, seed=seed) for name in "ab")
        for side in self.sides:
            side.node.durable = lambda locator: "offer"
        a, b = self.sides
        names = ("b", "a") if authenticated else (None, None)
        dialler = Handshake(
            a.node, a.location, dialled=b.location, authenticated=names[0], form=Form(), binding=b""
        )
        listener = Handshake(
            b.node, b.location, dialled=None, authenticated=names[1], form=Form(), binding=b""
        )
        b_session = listener.judge(listener.read(dialler.outbound.pop()), 0.0)
        a_session = dialler.judge(dialler.read(listener.outbound.pop()), 0.0)
        self.a, self.b = self.sessions = (a_session, b_session)
        self.flow()
        assert self.a.durable
        assert self.b.durable
        self.boxes = (Box("of a"), Box("of b"))
        self._positions = [
            exported(session, box) for session, box in zip(self.sessions, self.boxes, strict=True)
        ]
        self.told = [0, 0]

    def tell(self, who: int, times: int = 1) -> None:
        """`who` (0 is `a`) sends the next numbers to the other's box."""
        for _ in range(times):
            recipient = descriptor_bytes(EXPORT, self._positions[1 - who])
            self.sessions[who].deliver_only(recipient, [self.told[who]])
            self.told[who] += 1

    def outgoing(self, who: int) -> list[bytes]:
        self.sides[who].run()
        messages = self.sessions[who].outbox.take()
        self.sessions[who].outbox.written(messages)
        return messages

    def flow(self, *ways: int) -> None:
        """Delivers what is under way until nothing moves; `ways`: only what these send."""
        moved = True
        while moved:
            moved = False
            for who in ways or (0, 1):
                for message in self.outgoing(who):
                    self.sessions[1 - who].receive(message)
                    moved = True
        for side in self.sides:
            side.run()

    def cut(self) -> None:
        """Both notice, and it is long ago that they heard of each other."""
        for session in self.sessions:
            session.disconnected("cut")
        self.clock.now += 50.0

    def check(self) -> None:
        """All that was sent has arrived, once and in order; nobody waits for an acknowledgement."""
        self.flow()
        assert [box.got for box in self.boxes] == [[[n] for n in range(told)] for told in reversed(self.told)]
        for side, session in zip(self.sides, self.sessions, strict=True):
            side.node.check()
            assert session.ended is None
            assert session.attached
            assert not frames_of(session).kept

    def resumed(self, who: int = 0) -> Attempt:
        """`who` resumes the session, and nothing goes wrong."""
        attempt = Attempt(self, who)
        attempt.run()
        return attempt

    def state(self) -> list[object]:
        """What a message that is not believed must not change."""
        return [
            (
                vars_of(frames_of(session)),
                session.attached,
                session.ended,
                dict(session.location.hints),
                session in side.node.sessions.values(),
                session.id in side.node.suspended,
            )
            for side, session in zip(self.sides, self.sessions, strict=True)
        ]


def ended(session: Session) -> SessionEnded | None:
    return session.ended


def authenticated(session: Session) -> bool:
    return session.authenticated


def frames_of(session: Session) -> Frames:
    assert session.frames is not None
    return session.frames


def vars_of(frames: Frames) -> dict[str, object]:
    return {name: copy.copy(getattr(frames, name)) for name in fields_of(Frames)}


def copy_of(frames: Frames) -> Frames:
    old = Frames(frames.agreement, b"", b"", b"", frames.terms, 0.0)
    for name in fields_of(Frames):
        setattr(old, name, copy.deepcopy(getattr(frames, name)))
    return old


def roll_back(session: Session, to: Frames) -> None:
    """The session is as an old backup has it."""
    for name in fields_of(Frames):
        setattr(session.frames, name, copy.copy(getattr(to, name)))


def history(limits: Limits | None = None, *, authenticated: bool = False) -> Pair:
    """A session that has resumed before, with frames in every condition, and that is cut now.

    Both have frames that the other has not; of those that `b` has, `a` knows some, and of those that `a` has, `b`.
    """
    pair = Pair(limits, authenticated=authenticated)
    pair.tell(0, 3)
    pair.tell(1, 3)
    pair.flow()
    pair.cut()
    pair.resumed()
    for who in (0, 1):
        pair.tell(who, 4)
        pair.flow()
    for who in (0, 1):
        pair.tell(who, 5)
        for message in pair.outgoing(who)[:3]:
            pair.sessions[1 - who].receive(message)
        pair.sides[1 - who].run()
    pair.cut()
    for session in pair.sessions:
        frames = frames_of(session)
        assert (frames.epoch, frames.proven) == (1, 1)
        assert frames.acked < frames.sent
    assert frames_of(pair.b).taken in range(frames_of(pair.a).acked + 1, frames_of(pair.a).sent)
    return pair


class Attempt:
    """One resume by `who`, and the messages of it that were made so far."""

    def __init__(self, pair: Pair, who: int = 0, wires: tuple[Wire, Wire] = (WIRE, WIRE)) -> None:
        self.pair = pair
        self.session = pair.sessions[who]
        self.initiator = Initiator(self.session, wires[0])
        self.responder = Responder(pair.sides[1 - who].node, wires[1])
        (self.resume,) = self.initiator.outbound
        self.accept = self.confirm = self.ack = b""

    def to_accept(self) -> Attempt:
        """Up to the accept, which is not read yet."""
        self.responder.read_resume(self.resume)
        self.responder.accept()
        self.accept = self.responder.outbound[-1]
        return self

    def to_confirm(self) -> Attempt:
        """Up to the confirm, which is not read yet."""
        if not self.accept:
            self.to_accept()
        self.initiator.read_accept(self.accept)
        self.initiator.confirm()
        self.confirm = self.initiator.outbound[-1]
        return self

    def to_ack(self) -> Attempt:
        """Up to the first op:ack, which is not read yet. What follows it is in `rest`."""
        if not self.confirm:
            self.to_confirm()
        self.take_confirm(self.confirm)
        session = self.responder.session
        assert session is not None
        self.ack, *self.rest = self.pair.outgoing(self.pair.sessions.index(session))
        return self

    def take_confirm(self, message: bytes) -> None:
        self.responder.read_confirm(message)
        self.responder.attach()

    def run(self) -> None:
        if not self.ack:
            self.to_ack()
        self.initiator.attach(self.ack)
        for message in (self.ack, *self.rest):
            self.session.receive(message)
        assert self.initiator.state is self.responder.state is State.ATTACHED


def test_a_session_goes_on_where_it_was() -> None:
    pair = history()
    for who in (0, 1, 1, 0):
        pair.resumed(who)
        pair.tell(0, 2)
        pair.tell(1, 2)
        pair.check()
        pair.tell(0, 2)
        pair.tell(1, 2)
        pair.outgoing(0)
        pair.cut()
        pair.tell(0)
        pair.tell(1)
    assert frames_of(pair.a).epoch == frames_of(pair.b).epoch == 5
    pair.resumed()
    pair.check()


def test_the_first_message_of_a_connection_is_an_ack_then_the_frames_that_are_missing() -> None:
    pair = history()
    kept = [message for message, _ in frames_of(pair.b).kept]
    missing = frames_of(pair.b).sent - frames_of(pair.a).taken
    assert 0 < missing < len(kept)
    attempt = Attempt(pair).to_ack()
    assert attempt.ack == write_ack(frames_of(pair.b).taken)
    assert attempt.rest == kept[-missing:]
    attempt.run()
    pair.check()


# What is signed


def claims(frames: Frames) -> list[Any]:
    return [frames.epoch, frames.proven, frames.sent, frames.acked, frames.taken, frames.taken_digest]


def channel(wire: Wire) -> list[Any]:
    return [Sym(wire.transport), wire.binding]


class Forger:
    """Makes the messages of one resume by hand, with the keys of both sides. `hints` are False.

    A value of `wrong` stands on the wire and in what is signed.
    """

    def __init__(self, pair: Pair, who: int = 0, wire: Wire = WIRE) -> None:
        self.initiator, self.responder = pair.sessions[who], pair.sessions[1 - who]
        self.keys = {"I": self.initiator.key, "R": self.responder.key}
        self.ids = self.initiator.key.public_id, self.responder.key.public_id
        self.session = self.initiator.id
        self.channel = channel(wire)
        self.nonces = [NONCE, NONCE[::-1]]
        self.hints: list[Any] = [False, False]
        self.claims = [claims(frames_of(self.initiator)), claims(frames_of(self.responder))]
        self.epoch = max(one[0] for one in self.claims) + 1

    def read_resume(self, message: bytes) -> None:
        """Takes over what an initiator has sent."""
        _, self.nonces[0], self.hints[0], self.claims[0], _ = _fields(message, "op:resume-session")

    def read_accept(self, message: bytes) -> None:
        self.nonces[1], self.epoch, self.hints[1], self.claims[1], _ = _fields(message, "op:resume-accept")

    def signed(self, record: str, reason: str = "retry", received: int | bool = False, to: str = "I") -> Rec:
        """What the signature of a record is over. `to`: who reads a refusal."""
        one, other = self.ids
        label = f"ocapn-durable-1:{record}"
        if record == "resume":
            return Rec(
                label, self.session, self.channel, self.nonces[0], one, other, self.hints[0], self.claims[0]
            )
        if record == "refuse":
            nonce, reader, sender = (
                (self.nonces[0], one, other) if to == "I" else (self.nonces[1], other, one)
            )
            return Rec(label, self.session, self.channel, nonce, sender, reader, Sym(reason), received)
        sides = (other, one) if record == "accept" else (one, other)
        return Rec(
            label, self.session, self.channel, *self.nonces, *sides, self.epoch, *self.hints, *self.claims
        )

    def message(
        self,
        record: str,
        reason: str = "retry",
        received: int | bool = False,
        to: str = "I",
        *,
        signed: Rec | None = None,
        by: str | None = None,
    ) -> bytes:
        if by is None:
            by = "I" if record in ("resume", "confirm") or to == "R" else "R"
        signed = self.signed(record, reason, received, to) if signed is None else signed
        return encode(
            self.unsigned(record, reason, received, to, signature(_Signer(self.keys[by]), encode(signed)))  # type: ignore[arg-type]
        )

    def unsigned(self, record: str, reason: str, received: int | bool, to: str, sig: Any = False) -> Rec:
        if record == "resume":
            return Rec("op:resume-session", self.session, self.nonces[0], self.hints[0], self.claims[0], sig)
        if record == "accept":
            return Rec("op:resume-accept", self.nonces[1], self.epoch, self.hints[1], self.claims[1], sig)
        if record == "confirm":
            return Rec("op:resume-confirm", sig)
        nonce = self.nonces[to != "I"]
        return Rec("op:resume-refuse", self.session, nonce, Sym(reason), received, sig)


class _Signer:
    """A session's key, as the tests' own code wants one."""

    def __init__(self, key: SessionKey) -> None:
        self._key = key

    def sign(self, message: bytes) -> Any:
        class Signed:
            signature = self._key.sign(message)

        return Signed


def _fields(message: bytes, label: str) -> list[Any]:
    record, end = read_one(message)
    assert end == len(message)
    assert record.label == label
    return list(record.fields)


class Reading:
    """A reader of one kind of message, ready for it, and the forger that has read what came before."""

    def __init__(self, record: str, wires: tuple[Wire, Wire] = (WIRE, WIRE)) -> None:
        self.pair = history()
        self.attempt = attempt = Attempt(self.pair, wires=wires)
        self.forger = forger = Forger(self.pair, wire=wires[0])
        self.to = "I"
        if record == "resume":
            self.read: Callable[[bytes], None] = attempt.responder.read_resume
            return
        forger.read_resume(attempt.resume)
        if record in ("accept", "refuse"):
            self.read = attempt.initiator.read_accept
        elif record == "late refuse":
            forger.read_accept(attempt.to_confirm().accept)
            self.read = attempt.initiator.attach
        else:
            forger.read_accept(attempt.to_confirm().accept)
            self.read = attempt.take_confirm
            self.to = "R" if record == "refuse of the initiator" else "I"


READERS: Final = ("resume", "accept", "confirm", "refuse", "late refuse", "refuse of the initiator")


def record_of(reader: str) -> str:
    return "refuse" if "refuse" in reader else reader


@pytest.mark.parametrize("reader", READERS)
def test_what_is_signed_is_what_the_page_says(reader: str) -> None:
    reading = Reading(reader)
    message = reading.forger.message(record_of(reader), to=reading.to)
    if "refuse" in reader:
        with pytest.raises(Refusal) as refusal:
            reading.read(message)
        assert (refusal.value.reason, refusal.value.received, refusal.value.ours) == ("retry", None, False)
    else:
        reading.read(message)


@pytest.mark.parametrize("who", [0, 1])
def test_what_is_sent_is_signed_so(who: int) -> None:
    """Our own messages, byte for byte: Ed25519 signatures are determined by key and message."""
    pair = history()
    attempt = Attempt(pair, who).to_confirm()
    forger = Forger(pair, who)
    forger.claims[0] = _fields(attempt.resume, "op:resume-session")[3]  # before the new epoch
    forger.read_resume(attempt.resume)
    assert forger.message("resume") == attempt.resume
    forger.read_accept(attempt.accept)
    assert forger.message("accept") == attempt.accept
    assert forger.message("confirm") == attempt.confirm


def leaves(value: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    fields = value.fields if isinstance(value, Rec) else value if isinstance(value, list) else None
    if fields is None:
        yield path
    else:
        for number, field in enumerate(fields):
            yield from leaves(field, (*path, number))


def other(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case False:
            return {"host": "elsewhere"}
        case int():
            return value + 1
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
        case Sym(name):
            return Sym("ended" if name == "retry" else name + "x")
    raise TypeError(repr(value))


def altered(value: Any, path: tuple[int, ...]) -> Any:
    if not path:
        return other(value)
    fields = list(value.fields if isinstance(value, Rec) else value)
    fields[path[0]] = altered(fields[path[0]], path[1:])
    return Rec(value.label, *fields) if isinstance(value, Rec) else fields


_SHAPE: Final = Forger(history())
SIGNED: Final = [
    (reader, path)
    for reader in READERS
    for path in leaves(_SHAPE.signed(record_of(reader), to="R" if reader == READERS[-1] else "I"))
]
ON_THE_WIRE: Final = [
    (reader, path)
    for reader in READERS
    for path in leaves(_SHAPE.unsigned(record_of(reader), "retry", False, "I", sig=[NONCE, NONCE]))
    if path[0] < len(_SHAPE.unsigned(record_of(reader), "retry", False, "I").fields) - 1
]


def test_no_signed_field_is_missed() -> None:
    """session, two of the channel, nonces, two sides, epoch, hints and six claims a side."""
    counts = [sum(reader == one for one, _ in SIGNED) for reader in READERS]
    assert counts == [13, 22, 22, 8, 8, 8]


def is_not_believed(reading: Reading, message: bytes) -> None:
    """The message is refused as one that breaks the protocol, and changes nothing."""
    before = reading.pair.state()
    with pytest.raises(RemoteProtocolError):
        reading.read(message)
    assert reading.pair.state() == before
    # and the session resumes as if nothing had been
    for session in reading.pair.sessions:
        session.disconnected("in case it was not")
    reading.pair.resumed(1)
    reading.pair.check()


@pytest.mark.parametrize(("reader", "path"), SIGNED)
def test_a_signature_over_anything_else_is_not_believed(reader: str, path: tuple[int, ...]) -> None:
    """The message says what is right; one field of what was signed is another."""
    reading = Reading(reader)
    record = record_of(reader)
    signed = altered(reading.forger.signed(record, to=reading.to), path)
    is_not_believed(reading, reading.forger.message(record, to=reading.to, signed=signed))


@pytest.mark.parametrize(("reader", "path"), ON_THE_WIRE)
def test_a_field_that_was_altered_on_the_way_is_not_believed(reader: str, path: tuple[int, ...]) -> None:
    """The signature is right; one field of the message is another."""
    reading = Reading(reader)
    record = record_of(reader)
    whole, _ = read_one(reading.forger.message(record, to=reading.to))
    if whole.fields[path[0]] is False and record == "refuse":
        message = encode(Rec(whole.label, *whole.fields[:3], 7, whole.fields[4]))
    else:
        message = encode(altered(whole, path))
    if (reader, path) == ("resume", (0,)):  # the session: there is no such one
        with pytest.raises(Refusal, match="unknown"):
            reading.read(message)
    else:
        is_not_believed(reading, message)


@pytest.mark.parametrize(
    ("reader", "label"), list(product(READERS, ("resume", "accept", "confirm", "refuse", "")))
)
def test_a_signature_of_one_record_is_none_of_another(reader: str, label: str) -> None:
    record = record_of(reader)
    if label == record:
        return
    reading = Reading(reader)
    right = reading.forger.signed(record, to=reading.to)
    wrong = Rec(f"ocapn-durable-1:{label}" if label else "my-location", *right.fields)
    is_not_believed(reading, reading.forger.message(record, to=reading.to, signed=wrong))


@pytest.mark.parametrize("reader", READERS)
def test_a_signature_by_the_reader_itself_is_not_believed(reader: str) -> None:
    reading = Reading(reader)
    record = record_of(reader)
    by = "R" if record in ("resume", "confirm") or reading.to == "R" else "I"
    is_not_believed(reading, reading.forger.message(record, to=reading.to, by=by))


@pytest.mark.parametrize("reader", READERS)
def test_a_message_of_another_session_is_not_believed(reader: str) -> None:
    """All is as it should be, but for the keys."""
    reading = Reading(reader)
    reading.forger.keys = {"I": SessionKey(bytes(32)), "R": SessionKey(bytes(32))}
    is_not_believed(reading, reading.forger.message(record_of(reader), to=reading.to))


# Replayed, reflected, relayed


def test_a_resume_that_is_replayed_evicts_nobody_and_leads_nowhere() -> None:
    """An attacker has heard a whole resume, and says it again: as often as it likes, on a live and on a cut session."""
    pair = history()
    heard = pair.resumed()
    left: list[str] = []
    pair.b.on_leave = lambda: left.append("b")
    for live in (True, False):
        for _ in range(3):
            before = pair.state()
            attacker = Responder(pair.sides[1].node, WIRE)
            attacker.read_resume(heard.resume)
            attacker.accept()
            assert pair.state() == before
            with pytest.raises(RemoteProtocolError, match="not signed"):
                attacker.read_confirm(heard.confirm)
            assert pair.state() == before
        if live:
            assert left == []
            pair.tell(0)
            pair.flow()
            pair.cut()
    pair.resumed()
    pair.check()


@pytest.mark.parametrize("state", ["asked", "confirmed"])
def test_answers_that_are_replayed_to_a_later_resume(state: str) -> None:
    pair = history()
    first = Attempt(pair).to_ack()
    refused = Forger(pair)
    refused.read_resume(first.resume)
    refusals = [refused.message("refuse", reason) for reason in REASONS if reason != "unknown"]
    pair.cut()
    later = Attempt(pair)
    read = later.initiator.read_accept
    if state == "confirmed":
        later.to_confirm()
        read = later.initiator.attach
    before = pair.state()
    unsigned = encode(refused.unsigned("refuse", "unknown", False, "I"))
    for message in (first.accept, *refusals, unsigned):
        with pytest.raises(RemoteProtocolError):
            read(message)
        later.initiator.state = State.ASKED if state == "asked" else State.CONFIRMED
        assert pair.state() == before


def test_own_messages_that_are_sent_back() -> None:
    pair = history()
    attempt = Attempt(pair)
    before = pair.state()
    # our resume as the peer's, to whoever listens at ours
    with pytest.raises(RemoteProtocolError, match="not signed"):
        Responder(pair.sides[0].node, WIRE).read_resume(attempt.resume)
    # our resume as an answer to itself
    with pytest.raises(RemoteProtocolError):
        attempt.initiator.read_accept(attempt.resume)
    # the accept that we gave to the peer, as the peer's to us: both have asked at once
    mine, theirs = Attempt(pair, 0), Attempt(pair, 1)
    theirs.to_accept()
    with pytest.raises(RemoteProtocolError):
        mine.initiator.read_accept(theirs.accept)
    # their accept, and their confirm, sent back to them
    mine = Attempt(pair, 0).to_accept()
    with pytest.raises(RemoteProtocolError):
        mine.responder.read_confirm(mine.accept)
    assert pair.state() == before


def test_a_resume_that_is_handed_to_another_peer() -> None:
    """Whoever reads it at C has nothing for D: C knows no such session, and cannot answer for its peer."""
    pair, other_pair = history(), Pair(seed=1)
    attempt = Attempt(pair)
    stranger = Responder(other_pair.sides[1].node, WIRE)
    before = other_pair.state(), pair.state()
    with pytest.raises(Refusal) as refusal:
        stranger.read_resume(attempt.resume)
    assert (refusal.value.reason, refusal.value.ours) == ("unknown", True)
    forger = Forger(pair)
    forger.read_resume(attempt.resume)
    forger.keys["R"] = other_pair.b.key
    with pytest.raises(RemoteProtocolError):
        attempt.initiator.read_accept(forger.message("accept"))
    assert (other_pair.state(), pair.state()) == before


NOISE: Final = (Wire("memory", b"one", None, False), Wire("memory", b"other", None, False))


def test_a_resume_that_is_relayed_to_another_connection() -> None:
    """With a binding, what was signed for one connection is nothing on another: whoever stands between sees that."""
    pair = history()
    attempt = Attempt(pair, wires=NOISE)
    with pytest.raises(RemoteProtocolError, match="not signed"):
        attempt.responder.read_resume(attempt.resume)
    pair.resumed()
    pair.check()


@pytest.mark.parametrize("reader", READERS[1:])
def test_what_is_signed_for_another_connection(reader: str) -> None:
    reading = Reading(reader, wires=(NOISE[0], NOISE[0]))
    reading.forger.channel = channel(NOISE[1])
    is_not_believed(reading, reading.forger.message(record_of(reader), to=reading.to))


def test_a_resume_over_another_transport() -> None:
    pair = history()
    other_wire = Wire("unix", b"", None, False)
    attempt = Attempt(pair, wires=(WIRE, other_wire))
    with pytest.raises(RemoteProtocolError, match="not signed"):
        attempt.responder.read_resume(attempt.resume)
    attempt = Attempt(pair, wires=(other_wire, other_wire))
    with pytest.raises(Refusal, match="policy"):
        attempt.responder.read_resume(attempt.resume)
    pair.resumed()
    pair.check()


def test_a_resume_by_whom_the_netlayer_knows_to_be_another() -> None:
    pair = history(authenticated=True)
    wires = (Wire("memory", b"", "b", False), Wire("memory", b"", "mallory", False))
    attempt = Attempt(pair, wires=wires)
    with pytest.raises(Refusal, match="policy"):
        attempt.responder.read_resume(attempt.resume)
    assert attempt.responder.state is State.ENDED
    with pytest.raises(Refusal) as refusal:
        attempt.initiator.read_accept(attempt.responder.outbound[-1])
    assert (refusal.value.reason, refusal.value.ours) == ("policy", False)
    Attempt(pair, wires=(wires[0], Wire("memory", b"", "a", False))).run()
    pair.check()


def test_a_resume_of_a_session_that_was_begun_afresh() -> None:
    """New keys, a new session id: what was captured of the old session is nothing to the new one."""
    pair = history()
    captured = Attempt(pair)
    for session in pair.sessions:
        session.lose("over")
    fresh = Pair(seed=1)
    for who in (0, 1):
        with pytest.raises(Refusal) as refusal:
            Responder(fresh.sides[who].node, WIRE).read_resume(captured.resume)
        assert (refusal.value.reason, refusal.value.ours) == ("unknown", True)
    # with the id of the new session written into it
    whole, _ = read_one(captured.resume)
    message = encode(Rec(whole.label, fresh.a.id, *whole.fields[1:]))
    with pytest.raises(RemoteProtocolError, match="not signed"):
        Responder(fresh.sides[1].node, WIRE).read_resume(message)
    fresh.check()


# Refusals


@pytest.mark.parametrize("reader", ["refuse", "late refuse", "refuse of the initiator"])
@pytest.mark.parametrize("reason", [one for one in REASONS if one != "unknown"])
def test_refusals_are_believed_with_a_signature_alone(reader: str, reason: str) -> None:
    reading = Reading(reader)
    is_not_believed(reading, encode(reading.forger.unsigned("refuse", reason, 3, reading.to)))
    reading = Reading(reader)
    with pytest.raises(Refusal) as refusal:
        reading.read(reading.forger.message("refuse", reason, 3, reading.to))
    assert (refusal.value.reason, refusal.value.received, refusal.value.ours) == (reason, 3, False)


def test_an_unknown_without_a_signature() -> None:
    """It is believed in place of the accept alone: whoever has come further has the key."""
    reading = Reading("refuse")
    with pytest.raises(Refusal, match="unknown"):
        reading.read(encode(reading.forger.unsigned("refuse", "unknown", False, "I")))
    for reader, to in (("late refuse", "I"), ("refuse of the initiator", "R")):
        reading = Reading(reader)
        is_not_believed(reading, encode(reading.forger.unsigned("refuse", "unknown", False, to)))


@pytest.mark.parametrize("reader", ["refuse", "late refuse", "refuse of the initiator"])
@pytest.mark.parametrize("what", ["nonce", "the other's nonce", "session"])
def test_a_refusal_for_another_resume(reader: str, what: str) -> None:
    """Also of a whole other transcript, correctly signed by the session's key."""
    for reason in ("unknown", "retry", "ended"):
        reading = Reading(reader)
        forger = reading.forger
        if what == "session":
            forger.session = bytes(32)
        elif what == "nonce":
            forger.nonces = [bytes(32), bytes(32)]
        else:
            forger.nonces.reverse()
        is_not_believed(reading, forger.message("refuse", reason, to=reading.to))


@pytest.mark.parametrize("first", [write_abort("no"), b"<16'op:start-session3\"1.0>"])
def test_what_a_peer_says_that_knows_nothing_of_resuming(first: bytes) -> None:
    """It is an unsigned `unknown`, in place of the accept alone."""
    pair = history()
    attempt = Attempt(pair)
    before = pair.state()
    with pytest.raises(Refusal, match="unknown") as refusal:
        attempt.initiator.read_accept(first)
    assert not refusal.value.ours
    assert pair.state() == before
    attempt = Attempt(pair).to_confirm()
    before = pair.state()
    with pytest.raises(RemoteProtocolError):
        attempt.initiator.attach(first)
    assert pair.state() == before


# Impostors, and keys that are not new


def hello(key: SessionKey, location: PeerLocator, node: Node) -> bytes:
    operation = StartSession("1.0", key.public_key, location, key.sign(location_message(location)))
    return write_start_session(Encoder(node.limits), operation)


def listening(side: Side, authenticated: str | None = None) -> Handshake:
    return Handshake(
        side.node, side.location, dialled=None, authenticated=authenticated, form=Form(), binding=b""
    )


def test_an_impostor_gets_a_session_of_its_own_and_takes_nothing() -> None:
    pair = history()
    b, node = pair.b, pair.sides[1].node
    box = pair.boxes[1]
    before = pair.state()
    shake = listening(pair.sides[1])
    impostor = shake.judge(shake.read(hello(SessionKey(NONCE), pair.sides[0].location, node)), 0.0)
    assert pair.state() == before
    assert impostor is not b
    assert impostor.id != b.id
    assert node.kept_session(b.id) is b
    # the exports of the suspended session are not there for the impostor
    with pytest.raises(RemoteProtocolError, match="never exported"):
        impostor.receive(b"<10'op:deliver<11'desc:export1+>[4\"mine]ff>")
    got = list(box.got)
    assert got
    # the session resumes beside it, and both live
    pair.resumed()
    assert b.attached
    assert b.ended is None
    assert impostor.attached
    node.check()
    impostor.abort("done")
    assert node.session_with(pair.sides[0].location) is b
    pair.check()
    assert box.got[: len(got)] == got


def test_a_session_beside_an_impostor_is_resumed_while_live_and_ends() -> None:
    """However often it goes on on another connection beside an impostor, the tables of sessions are right."""
    pair = history()
    node = pair.sides[1].node
    shake = listening(pair.sides[1])
    impostor = shake.judge(shake.read(hello(SessionKey(NONCE), pair.sides[0].location, node)), 0.0)
    pair.resumed()
    for _ in range(3):
        pair.a.disconnected("only one side notices")
        pair.resumed()
        node.check()
    pair.b.abort("over")
    node.check()
    impostor.abort("over")
    node.check()
    assert node.session_with(pair.sides[0].location) is None
    assert not node.sessions


def test_a_dial_of_ours_that_comes_late_ends_no_suspended_session() -> None:
    """The other side has said nothing of it: it has only accepted another."""
    pair = history(authenticated=True)
    side, location = pair.sides[0], pair.sides[1].location
    dial = Handshake(side.node, side.location, dialled=location, authenticated="b", form=Form(), binding=b"")
    begun = dial.judge(dial.read(hello(SessionKey(NONCE), location, side.node)), 0.0)
    assert ended(pair.a) is None
    assert side.node.session_with(location) is begun
    pair.resumed()
    assert pair.a.attached
    side.node.check()


def test_what_is_only_claimed_where_a_dial_would_prove_it() -> None:
    """It counts for nothing that is about the peer which it names; what this side has dialled is vouched for, whoever
    resumes it."""
    pair = history()
    side, location = pair.sides[1], pair.sides[0].location
    side.node.proving = frozenset({location.transport})
    asked: list[PeerLocator | None] = []

    def durable(locator: PeerLocator | None) -> str:
        asked.append(locator)
        return "never"

    side.node.durable = durable
    shake = listening(side)
    assert shake.only_claims(location)
    claimed = shake.judge(shake.read(hello(SessionKey(NONCE), location, side.node)), 0.0)
    assert claimed.unproved
    assert asked == [None]
    assert side.node.session_with(location) is pair.b
    side.node.check()

    def vouched_for(dialled: bool) -> bool:
        claimed.dialled = dialled
        return claimed.vouched_for

    assert [vouched_for(dialled) for dialled in (True, False)] == [True, False]


def test_a_new_start_by_the_peer_itself_ends_the_suspended_session() -> None:
    pair = history(authenticated=True)
    node = pair.sides[1].node
    location = pair.sides[0].location
    shake = listening(pair.sides[1], "mallory")
    with pytest.raises(Refused, match="authenticated"):
        shake.read(hello(SessionKey(NONCE), location, node))
    assert ended(pair.b) is None
    shake = listening(pair.sides[1], "a")
    begun = shake.judge(shake.read(hello(SessionKey(NONCE), location, node)), 0.0)
    assert isinstance(pair.b.ended, SessionLost)
    assert "begun a new session" in str(pair.b.ended)
    assert node.session_with(location) is begun
    node.check()
    # the peer is told, if it resumes after all
    attempt = Attempt(pair)
    with pytest.raises(Refusal, match="ended"):
        attempt.responder.read_resume(attempt.resume)
    with pytest.raises(Refusal) as refusal:
        attempt.initiator.read_accept(attempt.responder.outbound[-1])
    assert refusal.value.received == frames_of(pair.b).taken


@pytest.mark.parametrize("when", ["live", "suspended", "tombstone", "erased"])
def test_a_start_with_the_key_of_a_session_that_is_kept(when: str) -> None:
    limits = Limits(tombstone_life=100.0)
    pair = history(limits)
    side = pair.sides[1]
    if when == "live":
        pair.resumed()
    elif when in ("tombstone", "erased"):
        pair.b.lose("over")
    if when == "erased":
        pair.clock.now += 100.0
        side.node.expire()
    for location in (pair.sides[0].location, PeerLocator("memory", "elsewhere")):
        shake = listening(side)
        message = hello(pair.a.key, location, side.node)
        if when == "erased":
            shake.read(message)
        else:
            with pytest.raises(Refused, match="key is that of another session"):
                shake.read(message)
    side.node.check()


# Judging claims


def judged(pair: Pair, by: str, change: Callable[[list[Any]], None]) -> Refusal | None:
    """What the initiator says to these claims of the responder, or the responder to those of the initiator.

    All is signed as it should be: the one who claims is hand-made, and finds nothing wrong itself.
    """
    forger = Forger(pair)
    attempt = Attempt(pair)
    try:
        if by == "initiator":
            change(forger.claims[1])
            forger.read_resume(attempt.resume)
            forger.epoch = max(forger.claims[0][0], forger.claims[1][0]) + 1
            attempt.initiator.read_accept(forger.message("accept"))
            return None
        change(forger.claims[0])
        responder = attempt.responder
        responder.read_resume(forger.message("resume"))
        responder.accept()
        forger.read_accept(responder.outbound[-1])
        responder.read_confirm(forger.message("confirm"))
        return None
    except Refusal as error:
        refusal = error
    assert refusal.ours
    assert (attempt.initiator if by == "initiator" else attempt.responder).state is State.ENDED
    return refusal


def replaced(number: int, value: Callable[[Frames], int | bytes]) -> Callable[[Frames, list[Any]], None]:
    def change(judge: Frames, claims: list[Any]) -> None:
        claims[number] = value(judge)
        if number == 4 and judge.acked <= claims[4] <= judge.sent:
            claims[5] = digest_at(judge, claims[4])

    return change


def digest_at(frames: Frames, number: int) -> bytes:
    return frames._digest_at(number)


EPOCH, PROVEN, SENT, ACKED, RECEIVED, DIGEST = range(6)
#: What is claimed, from the view of who judges: the claim, its value, and the reason of the refusal.
CLAIMS: Final[list[tuple[str, Callable[[Frames, list[Any]], None], str | None]]] = [
    ("as it is", lambda judge, claims: None, None),
    ("epoch as proven", replaced(EPOCH, lambda judge: judge.proven), None),
    ("epoch below proven", replaced(EPOCH, lambda judge: judge.proven - 1), "you-rolled-back"),
    ("epoch far above", replaced(EPOCH, lambda judge: judge.epoch + 1000), None),
    ("sent as taken", replaced(SENT, lambda judge: judge.taken), None),
    ("sent below taken", replaced(SENT, lambda judge: judge.taken - 1), "you-rolled-back"),
    ("received as acked", replaced(RECEIVED, lambda judge: judge.acked), None),
    ("received below acked", replaced(RECEIVED, lambda judge: judge.acked - 1), "you-rolled-back"),
    ("received as sent", replaced(RECEIVED, lambda judge: judge.sent), None),
    ("received above sent", replaced(RECEIVED, lambda judge: judge.sent + 1), "i-rolled-back"),
    ("acked as taken", replaced(ACKED, lambda judge: judge.taken), None),
    ("acked above taken", replaced(ACKED, lambda judge: judge.taken + 1), "i-rolled-back"),
    ("proven as epoch", replaced(PROVEN, lambda judge: judge.epoch), None),
    ("proven above epoch", replaced(PROVEN, lambda judge: judge.epoch + 1), "i-rolled-back"),
    ("proven below", replaced(PROVEN, lambda judge: 0), None),
    ("acked below", replaced(ACKED, lambda judge: 0), None),
    ("another digest", replaced(DIGEST, lambda judge: bytes(32)), "diverged"),
    ("huge", replaced(RECEIVED, lambda judge: 2**63 - 1), "i-rolled-back"),
]


@pytest.mark.parametrize(("change", "reason"), [one[1:] for one in CLAIMS], ids=[one[0] for one in CLAIMS])
@pytest.mark.parametrize("by", ["initiator", "responder"])
def test_judging_claims(by: str, change: Callable[[Frames, list[Any]], None], reason: str | None) -> None:
    pair = history()
    judge = frames_of(pair.a if by == "initiator" else pair.b)
    before = pair.state()
    refusal = judged(pair, by, lambda claims: change(judge, claims))
    if reason is None:
        assert refusal is None
        assert judge.epoch > 1
        assert judge.proven == (1 if by == "initiator" else judge.epoch)
    else:
        assert refusal is not None
        assert refusal.reason == reason
        assert refusal.received is not None
        assert pair.state() == before


def exactly(claimed: list[Any]) -> Callable[[list[Any]], None]:
    def change(claims: list[Any]) -> None:
        claims[:] = claimed

    return change


def test_every_frame_that_is_kept_has_its_digest_compared() -> None:
    pair = history()
    frames = frames_of(pair.b)
    for number in range(frames.acked, frames.sent + 1):
        for wrong in (False, True):
            digest = bytes(32) if wrong else digest_at(frames, number)
            claimed = [1, 1, frames.taken, frames.acked, number, digest]
            refusal = judged(history(), "responder", exactly(claimed))
            assert (None if refusal is None else refusal.reason) == ("diverged" if wrong else None)


def old_copy_of(session: Session) -> Frames:
    return copy_of(frames_of(session))


def _epoch(pair: Pair) -> None:
    pair.resumed()
    pair.cut()


def _sent(pair: Pair) -> None:
    pair.tell(0)
    for message in pair.outgoing(0):
        pair.b.receive(message)
    pair.cut()


def _received(pair: Pair) -> None:
    pair.tell(1)
    pair.flow(1)
    (message,) = pair.outgoing(0)
    assert message == write_ack(frames_of(pair.a).taken)
    pair.b.receive(message)
    pair.cut()


def _acked(pair: Pair) -> None:
    pair.tell(0)
    pair.flow(0)
    copied = old_copy_of(pair.a)
    pair.flow(1)
    pair.cut()
    assert frames_of(pair.a).acked == copied.acked + 1
    roll_back(pair.a, copied)


@pytest.mark.parametrize("dials", [0, 1])
@pytest.mark.parametrize("progress", [_epoch, _sent, _received])
def test_an_old_copy_of_one_side(progress: Callable[[Pair], None], dials: int) -> None:
    """`a` goes on, is put back to where it was, and both sides learn that it was `a`."""
    pair = Pair()
    pair.tell(0)
    pair.tell(1)
    pair.flow()
    if progress is _epoch:
        pair.cut()
    old = old_copy_of(pair.a)
    progress(pair)
    roll_back(pair.a, old)
    attempt = Attempt(pair, dials).to_accept()
    with pytest.raises(Refusal) as found:
        attempt.initiator.read_accept(attempt.accept)
    with pytest.raises(Refusal) as told:
        attempt.responder.read_confirm(attempt.initiator.outbound[-1])
    reason = "i-rolled-back" if dials == 0 else "you-rolled-back"
    assert (found.value.reason, found.value.ours) == (reason, True)
    assert (told.value.reason, told.value.ours) == (reason, False)
    assert attempt.initiator.state is attempt.responder.state is State.ENDED
    # each is told how many of its frames the other has accepted
    assert found.value.received == frames_of(pair.sessions[1 - dials]).taken
    assert told.value.received == frames_of(pair.sessions[dials]).taken


@pytest.mark.parametrize("dials", [0, 1])
def test_an_old_count_of_acknowledged_frames_is_no_loss(dials: int) -> None:
    pair = Pair()
    _acked(pair)
    pair.resumed(dials)
    pair.check()


@pytest.mark.parametrize("dials", [0, 1])
def test_histories_that_differ(dials: int) -> None:
    """An old copy went on by itself: the counts are right, the frames are others. Whoever sent them can tell."""
    pair = Pair()
    old = old_copy_of(pair.a)
    pair.tell(0)
    for message in pair.outgoing(0):
        pair.b.receive(message)
    pair.cut()
    roll_back(pair.a, old)
    pair.told[0] = 100
    pair.tell(0)
    attempt = Attempt(pair, dials).to_accept()
    if dials == 0:
        with pytest.raises(Refusal) as found:
            attempt.initiator.read_accept(attempt.accept)
        with pytest.raises(Refusal) as told:
            attempt.responder.read_confirm(attempt.initiator.outbound[-1])
    else:
        attempt.to_confirm()
        with pytest.raises(Refusal) as found:
            attempt.take_confirm(attempt.confirm)
        with pytest.raises(Refusal) as told:
            attempt.initiator.attach(attempt.responder.outbound[-1])
    assert (found.value.reason, found.value.ours) == ("diverged", True)
    assert (told.value.reason, told.value.ours, told.value.received) == (
        "diverged",
        False,
        frames_of(pair.a).taken,
    )


# Old copies beside the original


def copied(pair: Pair, frames: Frames) -> Session:
    """The session of `a` in another process, from a backup."""
    side = Side("a", clock=pair.clock, seed=7)
    original = pair.a
    session = Session(
        side.node,
        key=original.key,
        peer_key=original.peer_key,
        location=original.location,
        dialled=True,
        authenticated=False,
        form=Form(),
        now=0.0,
    )
    session.frames = copy_of(frames)
    side.node.keep(session)
    session.disconnected("it is not there yet")
    return session


def test_an_old_copy_that_dials_while_the_original_is_live_finds_itself_older() -> None:
    pair = Pair()
    old = old_copy_of(pair.a)
    pair.tell(0, 3)
    pair.tell(1, 3)
    pair.flow()
    before = pair.state()
    initiator = Initiator(copied(pair, old), WIRE)
    responder = Responder(pair.sides[1].node, WIRE)
    responder.read_resume(initiator.outbound[-1])
    responder.accept()
    with pytest.raises(Refusal) as refusal:
        initiator.read_accept(responder.outbound[-1])
    assert (refusal.value.reason, refusal.value.ours) == ("i-rolled-back", True)
    with pytest.raises(Refusal) as told:
        responder.read_confirm(initiator.outbound[-1])
    assert (told.value.reason, told.value.ours) == ("stale", True)
    assert pair.state() == before
    pair.tell(0)
    pair.tell(1)
    pair.check()


def test_an_old_copy_that_does_not_look_is_stale() -> None:
    """The original is heard from: it goes on. 45 s later the copy would be taken for a peer that was rolled back."""
    for silence, reason in ((44.0, "stale"), (45.0, "you-rolled-back")):
        pair = Pair()
        pair.tell(1, 3)
        pair.flow()
        pair.b.last_heard = pair.clock.now
        pair.clock.now += silence
        before = pair.state()
        pair.b.on_leave = pytest.fail

        def roll(claims: list[Any]) -> None:
            claims[RECEIVED] -= 3

        refusal = judged(pair, "responder", roll)
        assert refusal is not None
        assert refusal.reason == reason
        assert pair.state() == before
        pair.tell(0)
        pair.tell(1)
        pair.check()


@pytest.mark.parametrize("reason", ["i-rolled-back", "diverged"])
@pytest.mark.parametrize("lately", [True, False])
def test_an_old_copy_that_says_so(reason: str, lately: bool) -> None:
    """While the original is heard from, it is not believed that the session is over."""
    pair = Pair()
    attempt = Attempt(pair).to_accept()
    forger = Forger(pair)
    forger.read_resume(attempt.resume)
    forger.read_accept(attempt.accept)
    pair.clock.now = 0.0 if lately else 100.0
    before = pair.state()
    with pytest.raises(Refusal) as refusal:
        attempt.responder.read_confirm(forger.message("refuse", reason, 7, to="R"))
    expected = ("stale", True) if lately else (reason, False)
    assert (refusal.value.reason, refusal.value.ours) == expected
    assert pair.state() == before


# Frames that come between accept and confirm (rule 4), epochs, crossings


def test_frames_taken_between_accept_and_confirm() -> None:
    pair = history()
    pair.resumed()
    pair.check()
    pair.a.disconnected("only `a` has noticed")
    frames_of(pair.a).since = 0.0
    attempt = Attempt(pair).to_confirm()
    pair.b.receive(b"<10'op:deliver<11'desc:export0+>[]ff>")  # it was under way on the old connection
    pair.sides[1].run()
    left: list[int] = []
    pair.b.on_leave = lambda: left.append(1)
    with pytest.raises(Refusal) as refusal:
        attempt.take_confirm(attempt.confirm)
    assert (refusal.value.reason, refusal.value.ours) == ("retry", True)
    assert left == [1]
    assert not pair.b.attached
    assert pair.b.ended is None
    assert frames_of(pair.b).epoch == 1 + 1  # of `history`, and the one above; that of the confirm is not
    with pytest.raises(Refusal) as told:
        attempt.initiator.attach(attempt.responder.outbound[-1])
    assert (told.value.reason, told.value.ours, told.value.received) == ("retry", False, None)


@pytest.mark.parametrize("by", [-1, 1, 1000])
def test_an_epoch_that_is_not_the_next(by: int) -> None:
    reading = Reading("accept")
    reading.forger.epoch += by
    is_not_believed(reading, reading.forger.message("accept"))


@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_the_last_epoch_there_is(side: str) -> None:
    pair = history()
    frames_of(pair.sessions[side == "responder"]).epoch = 2**63 - 2
    if side == "responder":
        Attempt(pair).run()
        pair.cut()
    else:
        Attempt(pair).to_accept().run()
        pair.cut()
    assert frames_of(pair.a).epoch == 2**63 - 1
    attempt = Attempt(pair)
    with pytest.raises(RemoteProtocolError, match="2\\^63"):
        attempt.to_accept()


def test_a_confirm_that_comes_after_one_of_a_newer_epoch() -> None:
    """Two connections of one session have an accept: the first confirm wins, the other is closed without a word."""
    for first in (0, 1):
        pair = history()
        attempts = [Attempt(pair).to_accept(), Attempt(pair).to_accept()]
        attempts[first].run()
        before = pair.state()
        late = attempts[1 - first]
        with pytest.raises(TooLate):
            late.initiator.read_accept(late.accept)
        assert pair.state() == before
        # a hand-made initiator that confirms all the same
        forger = Forger(pair)
        forger.read_resume(late.resume)
        forger.read_accept(late.accept)
        said = list(late.responder.outbound)
        with pytest.raises(TooLate):
            late.take_confirm(forger.message("confirm"))
        assert late.responder.state is State.ENDED
        assert late.responder.outbound == said
        assert pair.state() == before
        pair.check()


def test_a_late_confirm_closes_without_an_alarm_whatever_it_claims() -> None:
    """A newer epoch is looked at before anything else: claims that were overtaken say nothing (rule 2)."""
    pair = history()
    late = Attempt(pair).to_accept()
    pair.resumed()
    pair.check()  # the claims of the late one are old by now
    forger = Forger(pair)
    forger.read_resume(late.resume)
    forger.read_accept(late.accept)
    before = pair.state()
    with pytest.raises(TooLate):
        late.take_confirm(forger.message("confirm"))
    assert pair.state() == before


def test_the_first_ack_on_a_connection_that_was_overtaken() -> None:
    pair = history()
    slow = Attempt(pair).to_ack()
    for session in pair.sessions:
        session.disconnected("")
    pair.resumed(1)
    before = pair.state()
    with pytest.raises(TooLate):
        slow.initiator.attach(slow.ack)
    assert pair.state() == before
    pair.check()


def test_what_was_proven_is_known_only_from_the_first_ack() -> None:
    pair = history()
    attempt = Attempt(pair).to_confirm()
    assert (frames_of(pair.a).epoch, frames_of(pair.a).proven) == (2, 1)
    assert not pair.a.attached
    attempt.to_ack()
    assert (frames_of(pair.b).epoch, frames_of(pair.b).proven) == (2, 2)
    assert (frames_of(pair.a).epoch, frames_of(pair.a).proven) == (2, 1)
    attempt.run()
    assert (frames_of(pair.a).epoch, frames_of(pair.a).proven) == (2, 2)


@pytest.mark.parametrize("lost", ["resume", "accept", "confirm", "ack"])
@pytest.mark.parametrize("again", [0, 1])
def test_a_resume_that_is_cut_anywhere(lost: str, again: int) -> None:
    """Whatever was the last to arrive, and whoever dials next, the session goes on; a later confirm changes nothing."""
    pair = history()
    attempt = Attempt(pair)
    if lost == "accept":
        attempt.to_accept()
    elif lost == "confirm":
        attempt.to_confirm()
    elif lost == "ack":
        attempt.to_ack()
    for session in pair.sessions:
        session.disconnected("cut again")
    pair.tell(0)
    pair.tell(1)
    pair.resumed(again)
    pair.check()
    if lost == "confirm":
        before = pair.state()
        with pytest.raises(TooLate):
            attempt.take_confirm(attempt.confirm)
        assert pair.state() == before
        pair.check()


def higher(pair: Pair) -> int:
    """Whose public identifier is the higher one."""
    return int(pair.b.key.public_id > pair.a.key.public_id)


def test_crossed_resumes_and_who_refuses() -> None:
    pair = history()
    high = higher(pair)
    one, other_one = Attempt(pair, high), Attempt(pair, 1 - high)
    for session in pair.sessions:
        session.asked_to_resume = pair.clock.now
    with pytest.raises(Refusal) as refusal:
        other_one.to_accept()
    assert (refusal.value.reason, refusal.value.ours) == ("crossed", True)
    assert other_one.responder.state is State.ENDED
    with pytest.raises(Refusal) as told:
        other_one.initiator.read_accept(other_one.responder.outbound[-1])
    assert (told.value.reason, told.value.received) == ("crossed", None)
    one.run()
    pair.check()


@pytest.mark.parametrize(
    ("age", "crossed"), [(0.0, True), (9.9, True), (10.0, False), (100.0, False), (None, False)]
)
def test_an_attempt_that_is_old_or_answered_is_no_crossing(age: float | None, crossed: bool) -> None:
    pair = history()
    high = higher(pair)
    pair.clock.now = 200.0
    pair.sessions[high].asked_to_resume = None if age is None else 200.0 - age
    attempt = Attempt(pair, 1 - high)
    if crossed:
        with pytest.raises(Refusal, match="crossed"):
            attempt.to_accept()
    else:
        attempt.run()
        pair.check()


def interleavings() -> Iterator[tuple[int, ...]]:
    """Every order of the steps of two attempts, four each: the accept, reading it, the confirm, the first ack."""

    def go(left: tuple[int, int], so_far: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if left == (0, 0):
            yield so_far
        for one in (0, 1):
            if left[one]:
                rest = (left[0] - (one == 0), left[1] - (one == 1))
                yield from go(rest, (*so_far, one))

    return go((4, 4), ())


@pytest.mark.parametrize("crossing", [False, True], ids=["same side", "crossed"])
def test_two_attempts_in_every_order(crossing: bool) -> None:
    """Whatever the order, no alarm, no wrong attachment; after at most one more resume all has arrived."""
    winners = set()
    for order in interleavings():
        pair = history()
        attempts = [Attempt(pair, 0), Attempt(pair, 1 if crossing else 0)]
        steps = [_steps(attempt) for attempt in attempts]
        lost: set[int] = set()
        for one in order:
            if one in lost:
                continue
            if not went_on(steps[one]):
                lost.add(one)
        attached = [session.attached for session in pair.sessions]
        epochs = [frames_of(session).epoch for session in pair.sessions]
        done = [one for one in (0, 1) if attempts[one].initiator.state is State.ATTACHED]
        assert len(done) <= 1
        winners.update(done)
        if attached == [True, True] and done:
            assert epochs[0] == epochs[1]
        else:
            pair.cut()
            pair.resumed(order[0])
        pair.check()
    assert winners == {0, 1}


def went_on(steps: Iterator[None]) -> bool:
    """Whether the next step of an attempt was taken. One that was overtaken ends as it should."""
    try:
        next(steps)
    except TooLate:
        return False
    except Refusal as refusal:
        if refusal.reason != "retry":
            raise
        return False
    return True


def _steps(attempt: Attempt) -> Iterator[None]:
    attempt.to_accept()
    yield
    attempt.to_confirm()
    yield
    attempt.to_ack()
    yield
    attempt.initiator.attach(attempt.ack)
    for message in (attempt.ack, *attempt.rest):
        attempt.session.receive(message)
    yield


# The tables


def _policy(pair: Pair, who: int) -> None:
    def nobody(introduction: Introduction) -> bool:
        return False

    pair.sides[who].node.authenticate = nobody


def refuse(attempt: Attempt, to: str) -> bytes:
    forger = Forger(attempt.pair)
    forger.read_resume(attempt.resume)
    if to == "R":
        forger.read_accept(attempt.accept)
    return forger.message("refuse", to=to)


def _initiator_in_order(pair: Pair) -> None:
    Attempt(pair).to_confirm()


def _initiator_not_so(pair: Pair) -> None:
    _policy(pair, 0)
    attempt = Attempt(pair).to_accept()
    with pytest.raises(Refusal, match="policy"):
        attempt.initiator.read_accept(attempt.accept)


def _initiator_refused(pair: Pair) -> None:
    attempt = Attempt(pair)
    with pytest.raises(Refusal, match="retry"):
        attempt.initiator.read_accept(refuse(attempt, "I"))


def _initiator_ack(pair: Pair) -> None:
    Attempt(pair).run()


def _initiator_refused_late(pair: Pair) -> None:
    attempt = Attempt(pair).to_confirm()
    with pytest.raises(Refusal, match="retry"):
        attempt.initiator.attach(refuse(attempt, "I"))


def _responder_in_order(pair: Pair) -> None:
    Attempt(pair).to_accept()


def _responder_not_so(pair: Pair) -> None:
    pair.b.lose("over")
    with pytest.raises(Refusal, match="ended"):
        Attempt(pair).to_accept()


def _responder_confirmed(pair: Pair) -> None:
    Attempt(pair).to_ack()


def _responder_too_late(pair: Pair) -> None:
    test_a_late_confirm_closes_without_an_alarm_whatever_it_claims()


def _responder_confirmed_not_so(pair: Pair) -> None:
    _policy(pair, 1)
    attempt = Attempt(pair).to_confirm()
    with pytest.raises(Refusal, match="policy"):
        attempt.take_confirm(attempt.confirm)


def _responder_refused(pair: Pair) -> None:
    attempt = Attempt(pair).to_accept()
    with pytest.raises(Refusal, match="retry"):
        attempt.responder.read_confirm(refuse(attempt, "R"))


REACHED: Final[dict[tuple[State, Event], Callable[[Pair], None]]] = {
    (State.ASKED, Event.IN_ORDER): _initiator_in_order,
    (State.ASKED, Event.NOT_SO): _initiator_not_so,
    (State.ASKED, Event.REFUSED): _initiator_refused,
    (State.CONFIRMED, Event.ACK): _initiator_ack,
    (State.CONFIRMED, Event.REFUSED): _initiator_refused_late,
    (State.LISTENING, Event.IN_ORDER): _responder_in_order,
    (State.LISTENING, Event.NOT_SO): _responder_not_so,
    (State.ACCEPTED, Event.IN_ORDER): _responder_confirmed,
    (State.ACCEPTED, Event.TOO_LATE): _responder_too_late,
    (State.ACCEPTED, Event.NOT_SO): _responder_confirmed_not_so,
    (State.ACCEPTED, Event.REFUSED): _responder_refused,
}


def test_every_transition_is_listed() -> None:
    assert set(REACHED) == set(TRANSITIONS)


@interpreted
@pytest.mark.parametrize("entry", list(REACHED), ids=lambda entry: f"{entry[0].value}, {entry[1].value}")
def test_every_transition_is_reached(entry: tuple[State, Event], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[State, Event]] = []

    class Watched(dict[tuple[State, Event], State]):
        def __getitem__(self, key: tuple[State, Event]) -> State:
            seen.append(key)
            return super().__getitem__(key)

    monkeypatch.setattr("ocapn.captp.resume.TRANSITIONS", Watched(TRANSITIONS))
    pair = history()
    seen.clear()
    REACHED[entry](pair)
    assert entry in seen


@pytest.mark.parametrize(
    "message", ["resume", "accept", "confirm", "ack", "abort", "start", "nothing", "deliver"]
)
@pytest.mark.parametrize("state", [State.ASKED, State.CONFIRMED, State.LISTENING, State.ACCEPTED])
def test_any_other_message_in_any_state_is_refused_and_changes_nothing(state: State, message: str) -> None:
    """Genuine ones of the same resume, in the wrong place."""
    model = Attempt(history()).to_ack()
    pair = history()
    attempt = Attempt(pair)
    if state is not State.LISTENING:
        attempt.to_confirm()
    if state is State.ACCEPTED:
        attempt.initiator.state = State.ENDED
    messages = {
        "resume": attempt.resume,
        "accept": attempt.accept or model.accept,
        "confirm": attempt.confirm or model.confirm,
        "ack": write_ack(0),
        "abort": write_abort("no"),
        "start": hello(SessionKey(NONCE), pair.sides[0].location, pair.sides[0].node),
        "nothing": b"",
        "deliver": b"<10'op:deliver<11'desc:export0+>[]ff>",
    }
    expected = {
        State.ASKED: ("accept",),
        State.CONFIRMED: ("ack",),
        State.LISTENING: ("resume",),
        State.ACCEPTED: ("confirm",),
    }
    if message in expected[state]:
        return
    if state is State.ASKED:
        pair = history()
        attempt = Attempt(pair)
        if message in ("resume", "confirm"):
            messages["resume"] = attempt.resume
    read = {
        State.ASKED: attempt.initiator.read_accept,
        State.CONFIRMED: attempt.initiator.attach,
        State.LISTENING: attempt.responder.read_resume,
        State.ACCEPTED: attempt.take_confirm,
    }[state]
    before = pair.state()
    if state is State.ASKED and message in ("abort", "start"):
        with pytest.raises(Refusal, match="unknown"):
            read(messages[message])
    else:
        with pytest.raises(RemoteProtocolError):
            read(messages[message])
    assert pair.state() == before


# Ends and tombstones


def told(pair: Pair, who: int = 0) -> Refusal:
    """What `who` is told that tries to resume."""
    attempt = Attempt(pair, who)
    with pytest.raises(Refusal):
        attempt.responder.read_resume(attempt.resume)
    with pytest.raises(Refusal) as refusal:
        attempt.initiator.read_accept(attempt.responder.outbound[-1])
    return refusal.value


@pytest.mark.parametrize("ends", [0, 1])
def test_a_session_that_has_ended_while_suspended(ends: int) -> None:
    pair = history()
    over, other_one = pair.sessions[ends], pair.sessions[1 - ends]
    over.abort("I have had enough")
    refusal = told(pair, 1 - ends)
    assert (refusal.reason, refusal.received) == ("ended", frames_of(over).taken)
    assert frames_of(other_one).acked < frames_of(over).taken < frames_of(other_one).sent
    other_one.lose("the peer has ended it", refusal.received, reason=refusal.reason)
    error = other_one.ended
    assert isinstance(error, SessionLost)
    assert error.delivered == frames_of(over).taken
    assert error.never_delivered == frames_of(other_one).sent - frames_of(over).taken
    assert error.uncertain == 0


def test_a_session_that_ends_between_the_messages_of_a_resume() -> None:
    pair = history()
    attempt = Attempt(pair)
    attempt.responder.read_resume(attempt.resume)
    pair.b.abort("over")
    with pytest.raises(Refusal, match="ended"):
        attempt.responder.accept()
    pair = history()
    attempt = Attempt(pair).to_confirm()
    pair.b.abort("over")
    with pytest.raises(Refusal) as refusal:
        attempt.take_confirm(attempt.confirm)
    assert refusal.value.ours
    with pytest.raises(Refusal) as said:
        attempt.initiator.attach(attempt.responder.outbound[-1])
    assert (said.value.reason, said.value.received) == ("ended", frames_of(pair.b).taken)
    pair = history()
    attempt = Attempt(pair).to_accept()
    pair.a.abort("over")
    with pytest.raises(TooLate):
        attempt.initiator.read_accept(attempt.accept)
    pair = history()
    attempt = Attempt(pair).to_ack()
    pair.a.abort("over")
    with pytest.raises(TooLate):
        attempt.initiator.attach(attempt.ack)


def test_a_session_that_has_expired() -> None:
    pair = history(Limits(suspended=100.0))
    since = frames_of(pair.b).since
    pair.clock.now = since + 99.0
    pair.sides[1].node.expire()
    assert ended(pair.b) is None
    pair.clock.now = since + 100.0
    pair.sides[1].node.expire()
    assert isinstance(pair.b.ended, SessionLost)
    refusal = told(pair)
    assert (refusal.reason, refusal.received) == ("expired", frames_of(pair.b).taken)
    pair.sides[1].node.check()


def test_the_smaller_of_both_lives_counts() -> None:
    pair = Pair(Limits(suspended=100.0))
    assert [frames_of(session).terms.life for session in pair.sessions] == [100, 100]


def test_a_session_that_holds_nothing_is_kept_for_a_minute() -> None:
    pair = Pair()
    for session in pair.sessions:
        session.tables.exports.clear()
        session.tables._export_of.clear()
        assert not any(session.tables.sizes().values())
    pair.flow()
    pair.cut()
    pair.clock.now = 59.0
    for side in pair.sides:
        side.node.expire()
    assert ended(pair.a) is ended(pair.b) is None
    pair.clock.now = 60.0
    for side in pair.sides:
        side.node.expire()
    assert isinstance(pair.a.ended, SessionEnded)
    assert isinstance(pair.b.ended, SessionEnded)


def test_tombstones_are_kept_so_long() -> None:
    pair = history(Limits(tombstone_life=1000.0))
    pair.b.lose("over")
    since = pair.clock.now
    pair.clock.now = since + 999.0
    pair.sides[1].node.expire()
    assert told(pair).reason == "ended"
    assert pair.sides[1].node.knows_key(pair.a.key.public_key)
    pair.clock.now = since + 1000.0
    pair.sides[1].node.expire()
    refusal = told(pair)
    assert (refusal.reason, refusal.received) == ("unknown", None)
    assert not pair.sides[1].node.knows_key(pair.a.key.public_key)


def test_so_many_tombstones_are_kept() -> None:
    pair = history(Limits(tombstones=3))
    side = pair.sides[1]
    ids = [pair.b.id]
    pair.b.lose("over")
    for number in range(3):
        assert told(pair).reason == "ended"
        shake = listening(side)
        location = PeerLocator("memory", f"peer {number}")
        session = shake.judge(
            shake.read(hello(SessionKey(bytes([number + 1]) * 32), location, side.node)), 0.0
        )
        session.receive(ASK)
        side.run()
        ids.append(session.id)
        session.abort("over")
        side.node.check()
    assert told(pair).reason == "unknown"
    assert [side.node.kept(one) is not None for one in ids] == [False, True, True, True]


ASK: Final = encode(
    Rec(
        "op:deliver",
        Rec("desc:export", 0),
        [Sym("durable-session"), 1, 86_400, 10_000, 64 << 20],
        False,
        Rec("desc:import-object", 1),
    )
)


def test_a_tombstone_says_nothing_to_strangers() -> None:
    pair = history()
    pair.b.lose("over")
    whole, _ = read_one(Attempt(pair).resume)
    message = encode(Rec(whole.label, *whole.fields[:4], signature(_Signer(SessionKey(NONCE)), b"")))  # type: ignore[arg-type]
    responder = Responder(pair.sides[1].node, WIRE)
    with pytest.raises(RemoteProtocolError, match="not signed"):
        responder.read_resume(message)
    assert responder.outbound == []


def test_a_session_that_is_not_durable_yet_is_unknown() -> None:
    """The asker's first op:ack has not come: a cut ends the session, and a resume is told so."""
    pair = Pair.__new__(Pair)
    pair.clock = Clock()
    a, b = pair.sides = tuple(Side(name, clock=pair.clock) for name in "ab")
    for side in pair.sides:
        side.node.durable = lambda locator: "offer"
    dialler = Handshake(a.node, a.location, dialled=b.location, authenticated=None, form=Form(), binding=b"")
    listener = listening(b)
    pair.b = listener.judge(listener.read(dialler.outbound.pop()), 0.0)
    pair.a = dialler.judge(dialler.read(listener.outbound.pop()), 0.0)
    pair.sessions = (pair.a, pair.b)
    pair.flow(0)
    for message in pair.outgoing(1):
        pair.a.receive(message)
    assert pair.a.durable
    assert not pair.b.durable
    pair.cut()
    assert pair.b.ended is not None
    refusal = told(pair)
    assert (refusal.reason, refusal.received) == ("ended", 1)


def test_where_the_peer_can_be_reached_from_now_on() -> None:
    """Hints are believed once they are fresh: at accept and at confirm."""
    pair = history()
    wires = (Wire("memory", b"", None, {"at": "one"}), Wire("memory", b"", None, {"at": "two"}))
    attempt = Attempt(pair, wires=wires).to_accept()
    assert not pair.b.location.hints
    attempt.to_confirm()
    assert pair.a.location.hints == {"at": "two"}
    assert not pair.b.location.hints
    attempt.run()
    assert pair.b.location.hints == {"at": "one"}
    pair.check()
    for number, session in enumerate(pair.sessions):
        assert session.location == pair.sides[1 - number].location


def test_what_was_authenticated_is_that_of_the_present_connection() -> None:
    pair = history()
    assert not authenticated(pair.b)
    named = (Wire("memory", b"", "b", False), Wire("memory", b"", "a", False))
    Attempt(pair, wires=named).run()
    assert authenticated(pair.a)
    assert authenticated(pair.b)
    pair.cut()
    pair.resumed()
    assert not authenticated(pair.b)


@pytest.mark.parametrize("ahead", [0, 5])
def test_an_accept_writes_nothing(ahead: int) -> None:
    """Also if the initiator has an epoch that the responder has not: its confirm was lost."""
    pair = history()
    frames_of(pair.a).epoch += ahead
    before = pair.state()
    attempt = Attempt(pair).to_accept()
    assert pair.state() == before
    attempt.run()
    assert frames_of(pair.a).epoch == frames_of(pair.b).epoch == 2 + ahead
    pair.check()


def test_the_policy_of_the_application() -> None:
    pair = history()
    asked: list[Introduction] = []

    def answer(introduction: Introduction) -> bool:
        asked.append(introduction)
        return False

    pair.sides[1].node.authenticate = answer
    attempt = Attempt(pair).to_confirm()
    before = pair.state()
    with pytest.raises(Refusal, match="policy"):
        attempt.take_confirm(attempt.confirm)
    assert pair.state() == before
    assert asked == [Introduction(pair.sides[0].location, pair.a.key.public_key, True, False, b"")]
    with pytest.raises(Refusal) as refusal:
        attempt.initiator.attach(attempt.responder.outbound[-1])
    assert (refusal.value.reason, refusal.value.received) == ("policy", None)


def test_random_messages_in_every_state() -> None:
    """Mutated ones of a valid resume: nothing but the errors of this package, and no change."""
    random = Random(1)
    pair = history()
    attempt = Attempt(pair).to_ack()
    genuine = [attempt.resume, attempt.accept, attempt.confirm, attempt.ack, refuse(attempt, "I")]
    for _ in range(300):
        message = bytearray(random.choice(genuine))
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(message) + 1)
            message[at : at + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
        reading = random.choice([_reads_resume, _reads_accept, _reads_confirm, _reads_ack])
        fresh = history()
        read = reading(fresh)
        if is_ack(bytes(message)) or bytes(message) in genuine:
            continue
        before = fresh.state()
        with pytest.raises(OCapNError):
            read(bytes(message))
        assert fresh.state() == before


def _reads_resume(pair: Pair) -> Callable[[bytes], None]:
    return Attempt(pair).responder.read_resume


def _reads_accept(pair: Pair) -> Callable[[bytes], None]:
    return Attempt(pair).initiator.read_accept


def _reads_confirm(pair: Pair) -> Callable[[bytes], None]:
    return Attempt(pair).to_accept().responder.read_confirm


def _reads_ack(pair: Pair) -> Callable[[bytes], None]:
    return Attempt(pair).to_confirm().initiator.attach
