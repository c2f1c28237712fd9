"""Numbered frames, their acknowledgement, and how two peers agree that a session is durable."""

from __future__ import annotations

from collections import deque
from hashlib import sha256
from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocapn import Limits, RemoteProtocolError
from ocapn.captp.frames import Agreement, Frames, Terms, read_terms, terms_of
from ocapn.captp.handshake import Handshake
from ocapn.captp.session import Session
from ocapn.codec.operations import EXPORT, Form, descriptor_bytes, write_abort
from ocapn.codec.resumption import is_ack, write_ack
from ocapn.errors import Aborted, Backpressure, Disconnected, SessionLost
from ocapn.model.values import Symbol
from tests.captp.sides import Box, Clock, Side, exported
from tests.captp.test_resume import Pair, ended, frames_of
from tests.conformance.encoding import Rec, Sym, encode, read_one

ASK: Final = Symbol("durable-session")
SESSION: Final = b"s" * 32
IDS: Final = (b"a" * 32, b"b" * 32)
#: A frame that nobody minds: a message to the bootstrap object, which wants no answer.
NOTHING: Final = b"<10'op:deliver<11'desc:export0+>[]ff>"


def frames(who: int = 0, *, agreement: Agreement = Agreement.AGREED, terms: Terms | None = None) -> Frames:
    terms = terms or Terms(60, 100, 1 << 20)
    return Frames(agreement, SESSION, IDS[who], IDS[1 - who], terms, 0.0)


def digest(sender: int, messages: list[bytes]) -> bytes:
    """As spec/resume.md has it."""
    value = sha256(b"ocapn-durable-1" + SESSION + IDS[sender]).digest()
    for message in messages:
        value = sha256(value + message).digest()
    return value


# One side


def test_numbers_and_digests() -> None:
    ours, theirs = frames(0), frames(1)
    messages = [b"one", b"two", b"three"]
    for message in messages:
        ours.number(message)
        assert theirs.take(message)
    assert (ours.sent, ours.acked, ours.size) == (3, 0, 11)
    assert (theirs.taken, theirs.committed) == (3, 3)
    assert theirs.claims().digest == digest(0, messages)
    assert ours.claims().digest == digest(1, [])
    assert ours.after(0) == messages
    assert ours.after(1) == messages[1:]
    assert ours.after(3) == []
    assert ours.judge(theirs.claims()) is None
    ours.acknowledge(2)
    assert (ours.sent, ours.acked, ours.size) == (3, 2, 5)
    assert ours.after(2) == [b"three"]
    assert ours.judge(theirs.claims()) is None
    ours.acknowledge(3)
    assert (ours.size, list(ours.kept)) == (0, [])
    ours.check()
    theirs.check()


def test_the_two_directions_have_digests_of_their_own() -> None:
    """Also with equal frames: what was sent cannot be passed off as what was received."""
    one, other = frames(0), frames(1)
    for side in (one, other):
        side.number(b"same")
        side.take(b"same")
    assert one.claims().digest == digest(1, [b"same"])
    assert other.claims().digest == digest(0, [b"same"])
    assert one.claims().digest != other.claims().digest


@pytest.mark.parametrize("message", [write_abort(""), write_abort("why")])
def test_an_abort_is_no_frame(message: bytes) -> None:
    side = frames()
    before = side.claims()
    assert side.take(message)
    assert side.claims() == before


def test_limits_of_what_is_kept() -> None:
    side = frames(terms=Terms(60, 100, 1 << 20))
    for count, full, overflown in ((99, False, False), (1, True, False), (99, True, False), (1, True, True)):
        for _ in range(count):
            side.number(b"x")
        assert (side.full, side.overflown) == (full, overflown)
    side.acknowledge(1)
    assert (side.full, side.overflown) == (True, False)
    side.acknowledge(101)
    assert (side.full, side.overflown) == (False, False)
    side = frames(terms=Terms(60, 100, 1 << 20))
    for size, full, overflown in (
        ((1 << 20) - 1, False, False),
        (1, True, False),
        ((1 << 20) - 1, True, False),
        (1, True, True),
    ):
        side.number(b"x" * size)
        assert (side.full, side.overflown) == (full, overflown)
    side.acknowledge(4)
    assert (side.full, side.overflown) == (False, False)


def test_an_ack_is_due_after_so_many_frames() -> None:
    side = frames()
    for number in range(64):
        assert not side.ack_due
        assert side.untold == number
        side.take(b"x")
    assert side.ack_due
    assert side.tell(5.0) == 64
    assert (side.untold, side.ack_due, side.told_at) == (0, False, 5.0)


@pytest.mark.parametrize("agreement", [Agreement.UNDECIDED, Agreement.ASKING])
def test_nothing_is_acknowledged_before_it_is_settled(agreement: Agreement) -> None:
    side = frames(agreement=agreement)
    for _ in range(100):
        side.take(b"x")
    assert not side.settled
    assert not side.ack_due
    with pytest.raises(RemoteProtocolError, match="not durable"):
        side.take(write_ack(0))


def test_acks_of_one_connection_and_of_the_next() -> None:
    side = frames()
    for _ in range(10):
        side.number(b"x")
    for number in (0, 3, 3, 7):
        assert not side.take(write_ack(number))
        assert side.acked == number
    for number in (11, 2**63 - 1, 6, 0):
        with pytest.raises(RemoteProtocolError, match="op:ack of frame"):
            side.take(write_ack(number))
    assert (side.acked, side.taken) == (7, 0)
    side.attach(8, 1, 0.0)
    assert (side.acked, side.heard) == (8, None)
    # what was acknowledged on the connection before says nothing about the first on this
    assert not side.take(write_ack(5))
    assert side.acked == 8
    with pytest.raises(RemoteProtocolError, match="after one of frame 5"):
        side.take(write_ack(4))
    assert not side.take(write_ack(10))
    assert list(side.kept) == []
    side.check()


def test_the_first_ack_settles_a_provisional_session() -> None:
    side = frames(agreement=Agreement.PROVISIONAL)
    assert side.settled
    with pytest.raises(RemoteProtocolError, match="malformed"):
        side.take(b"<6'op:ack01+>")
    assert side.agreement.value == "provisional"
    assert not side.take(write_ack(0))
    assert side.agreement.value == "agreed"


def test_frames_that_come_again_are_dropped_without_a_look() -> None:
    side = frames()
    for message in (b"1", b"2", b"3"):
        side.take(message)
    claims = side.claims()
    side.attach(0, 2, 0.0)
    for message in (b"2", b"whatever"):
        assert not side.take(message)
        assert side.claims() == claims
    assert side.take(b"4")
    assert side.claims().digest == digest(1, [b"1", b"2", b"3", b"4"])


# A link that loses things


@attrs.define
class _End:
    who: int
    frames: Frames = attrs.field(init=False)
    sent: list[bytes] = attrs.field(factory=list)
    delivered: list[bytes] = attrs.field(factory=list)
    incoming: deque[bytes] = attrs.field(factory=deque)

    def __attrs_post_init__(self) -> None:
        self.frames = frames(self.who)


STEPS: Final = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 1), st.integers(1, 5)),
    st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(1, 7)),
    st.tuples(st.just("ack"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 1), st.integers(0, 3)),
)


@given(st.lists(STEPS, max_size=60))
def test_what_is_delivered_is_what_was_sent(steps: list[tuple[str, int, int]]) -> None:
    """Two sides over a link that is cut again and again; after the last cut all arrives."""
    ends = [_End(0), _End(1)]

    def send(end: _End) -> None:
        message = b"%d of %d" % (len(end.sent), end.who)
        end.sent.append(message)
        end.frames.number(message)
        ends[1 - end.who].incoming.append(message)

    def deliver(end: _End) -> None:
        message = end.incoming.popleft()
        if end.frames.take(message):
            end.delivered.append(message)

    def ack(end: _End) -> None:
        ends[1 - end.who].incoming.append(write_ack(end.frames.tell(0.0)))

    def cut(between: int) -> None:
        """Numbers are those of the claims, whatever has been sent since."""
        for end in ends:
            end.incoming.clear()
        claims = [end.frames.claims() for end in ends]
        for end, other in zip(ends, reversed(claims), strict=True):
            assert end.frames.judge(other) is None
        for end in ends:
            for _ in range(between):
                send(end)
            end.incoming.clear()
        for end in ends:
            end.incoming.clear()
        for end in ends:
            received = claims[1 - end.who].received
            end.frames.attach(received, claims[end.who].received + 1, 0.0)
            ack(end)
            ends[1 - end.who].incoming.extend(end.frames.after(received))

    def check() -> None:
        for end in ends:
            other = ends[1 - end.who]
            end.frames.check()
            assert end.delivered == other.sent[: len(end.delivered)]
            claims = end.frames.claims()
            assert claims.received == len(end.delivered)
            assert claims.digest == digest(other.who, end.delivered)
            assert end.frames.sent == len(end.sent)
            assert other.frames.acked <= claims.received <= other.frames.sent
            assert [message for message, _ in other.frames.kept] == other.sent[other.frames.acked :]

    for what, who, count in [*steps, ("cut", 0, 0)]:
        if what == "send":
            for _ in range(count):
                send(ends[who])
        elif what == "ack":
            ack(ends[who])
        elif what == "cut":
            cut(count)
        else:
            for _ in range(min(count, len(ends[who].incoming))):
                deliver(ends[who])
        check()
    for _ in range(2):
        for end in ends:
            while end.incoming:
                deliver(end)
            ack(end)
    check()
    for end in ends:
        assert end.delivered == ends[1 - end.who].sent
        assert not end.frames.kept


# Terms


@pytest.mark.parametrize(
    "value",
    [
        [ASK, 1, 60, 100, 1 << 20],
        [ASK, 1, 61, 101, 1 + (1 << 20)],
        [ASK, 1, 2**63 - 1, 2**63 - 1, 2**63 - 1],
    ],
)
def test_terms_that_are_enough(value: list[object]) -> None:
    terms = read_terms(value)
    assert terms is not None
    assert terms.value == value


NO_TERMS: Final[list[object]] = [
    [ASK, 1, 59, 100, 1 << 20],
    [ASK, 1, 60, 99, 1 << 20],
    [ASK, 1, 60, 100, (1 << 20) - 1],
    [ASK, 1, 0, 0, 0],
    [ASK, 1, -60, 100, 1 << 20],
    [ASK, 1, 60, -100, 1 << 20],
    [ASK, 1, 60, 100, -(1 << 20)],
    [ASK, 1, 2**63, 100, 1 << 20],
    [ASK, 1, 60, 2**63, 1 << 20],
    [ASK, 1, 60, 100, 2**63],
    [ASK, 1, 10**200, 10**200, 10**200],
    [ASK, 1, True, 100, 1 << 20],
    [ASK, 1, 60, True, 1 << 20],
    [ASK, 1, 60, 100, True],
    [ASK, 1, 60.0, 100, 1 << 20],
    [ASK, 1, "60", 100, 1 << 20],
    [ASK, 1, 60, 100, b"1048576"],
    [ASK, 0, 60, 100, 1 << 20],
    [ASK, 2, 60, 100, 1 << 20],
    [ASK, "1", 60, 100, 1 << 20],
    [ASK, 1, 60, 100],
    [ASK, 1, 60, 100, 1 << 20, 1],
    [ASK, 1, [60, 100, 1 << 20]],
    [Symbol("durable"), 1, 60, 100, 1 << 20],
    ["durable-session", 1, 60, 100, 1 << 20],
    [[ASK, 1, 60, 100, 1 << 20]],
    [],
    None,
    ASK,
    1,
]


@pytest.mark.parametrize("value", NO_TERMS)
def test_terms_that_are_none(value: object) -> None:
    assert read_terms(value) is None


def test_the_smaller_of_each_counts() -> None:
    one, other = Terms(100, 200, 1 << 21), Terms(90, 300, 1 << 22)
    assert one & other == other & one == Terms(90, 200, 1 << 21)
    limits = Limits(suspended=70.9, outbox_frames=123, outbox_bytes=1 << 20)
    assert terms_of(limits) == Terms(70, 123, 1 << 20)
    assert terms_of(limits).enough
    assert not terms_of(Limits(outbox_frames=99)).enough


# Agreeing


class Half:
    """One side, and a peer at the other end that is driven by hand.

    `asked`: the peer dialled, and may ask; else we dialled, and ask if the policy is to.
    """

    def __init__(
        self, *, asked: bool, policy: str = "offer", limits: Limits | None = None, resumable: bool = True
    ) -> None:
        self.clock = Clock()
        self.side = Side("us", limits=limits, clock=self.clock)
        self.side.node.durable = lambda locator: policy
        peer = Side("peer")
        us, them = self.side.location, peer.location
        ours = Handshake(
            self.side.node,
            us,
            dialled=None if asked else them,
            authenticated=None,
            form=Form(),
            binding=b"" if resumable else None,
        )
        theirs = Handshake(
            peer.node, them, dialled=us if asked else None, authenticated=None, form=Form(), binding=b""
        )
        if asked:
            self.session = ours.judge(ours.read(theirs.outbound.pop()), 0.0)
        else:
            theirs.judge(theirs.read(ours.outbound.pop()), 0.0)
            self.session = ours.judge(ours.read(theirs.outbound.pop()), 0.0)
        self.box = Box()
        self.position = exported(self.session, self.box)

    def receive(self, *messages: Rec | bytes) -> None:
        for message in messages:
            self.session.receive(message if isinstance(message, bytes) else encode(message))
            self.side.run()

    def sent(self) -> list[bytes]:
        self.side.run()
        messages = self.session.outbox.take()
        self.session.outbox.written(messages)
        return messages

    def outcome(self, resolver: int) -> tuple[str, Any]:
        """What a resolver of the peer is told, next of what is sent that is no acknowledgement."""
        records = [read_one(message)[0] for message in self.sent() if not is_ack(message)]
        (found,) = [one for one in records if one.fields[0] == Rec("desc:export", resolver)]
        verb, value = found.fields[1]
        return verb.name, value

    def aborted(self) -> str:
        """The reason of the op:abort that is sent last."""
        record, _ = read_one(self.sent()[-1])
        assert record.label == "op:abort"
        assert ended(self.session) is not None
        reason = record.fields[0]
        assert isinstance(reason, str)
        return reason


def durable(half: Half) -> bool:
    return half.session.durable


OFFER: Final = [Sym("durable-session"), 1, 100, 200, 1 << 21]


def ask(
    offer: list[Any] = OFFER, *, answer: int | bool = False, resolver: int | None = 1, to: int = 0
) -> Rec:
    told = False if resolver is None else Rec("desc:import-object", resolver)
    return Rec("op:deliver", Rec("desc:export", to), offer, answer, told)


def test_the_answer_is_our_own_offer() -> None:
    half = Half(asked=True, limits=Limits(suspended=3600.0, outbox_frames=150))
    half.receive(ask())
    assert half.outcome(1) == ("fulfill", [Sym("durable-session"), 1, 3600, 150, 64 << 20])
    assert frames_of(half.session).terms == Terms(100, 150, 1 << 21)
    assert not durable(half)  # the peer has not said that it has read it
    half.receive(write_ack(1))
    assert durable(half)
    half.side.node.check()


def test_a_cut_before_the_first_ack_ends_the_session_with_a_tombstone() -> None:
    half = Half(asked=True)
    half.receive(ask())
    half.session.disconnected("cut")
    assert isinstance(half.session.ended, Disconnected)
    tombstone = half.side.node.kept(half.session.id)
    assert tombstone is not None
    assert (tombstone.reason, tombstone.received) == ("ended", 1)
    assert half.side.node.knows_key(half.session.peer_key)
    half.side.node.check()


NOT_AN_ASK: Final[dict[str, list[Rec | bytes]]] = {
    "as the second frame": [NOTHING, ask()],
    "with an answer position": [ask(answer=1)],
    "to another object": [ask(to=1, resolver=2), ask()],
    "after garbage": [encode(Rec("op:gc-answers", [])), ask()],
    "after one without a resolver": [ask(resolver=None), ask()],
    "after terms that are none": [ask([*OFFER[:4], 1], resolver=2), ask()],
}


@pytest.mark.parametrize("messages", list(NOT_AN_ASK.values()), ids=list(NOT_AN_ASK))
def test_an_ask_that_comes_otherwise_is_broken(messages: list[Rec | bytes]) -> None:
    half = Half(asked=True)
    half.receive(*messages)
    verb, _ = half.outcome(1)
    assert verb == "break"
    assert half.session.frames is None  # ordinary, for good
    assert ended(half.session) is None
    half.session.disconnected("cut")
    assert isinstance(half.session.ended, Disconnected)
    assert half.side.node.kept(half.session.id) is None


def test_an_ask_that_comes_twice() -> None:
    half = Half(asked=True)
    half.receive(ask())
    before = frames_of(half.session).terms
    half.receive(ask([*OFFER[:2], 60, 100, 1 << 20], resolver=2))
    records = [read_one(message)[0] for message in half.sent() if not is_ack(message)]
    told = [record for record in records if record.label == "op:deliver"]
    outcomes = {record.fields[0].fields[0]: record.fields[1][0].name for record in told}
    assert outcomes == {1: "fulfill", 2: "break"}
    assert frames_of(half.session).terms == before
    half.receive(write_ack(1))
    assert half.session.durable


def test_an_ask_by_who_was_dialled() -> None:
    """Only the dialler of the connection asks."""
    for policy in ("offer", "accept"):
        half = Half(asked=False, policy=policy)
        half.receive(ask())
        assert half.outcome(1)[0] == "break"
        assert not half.session.durable


@pytest.mark.parametrize(("policy", "resumable"), [("never", True), ("offer", False), ("accept", False)])
def test_an_ask_where_no_session_can_be_durable(policy: str, resumable: bool) -> None:
    half = Half(asked=True, policy=policy, resumable=resumable)
    half.receive(ask())
    assert half.outcome(1)[0] == "break"
    assert half.session.frames is None


@pytest.mark.parametrize(("policy", "resumable"), [("never", True), ("accept", True), ("offer", False)])
def test_who_does_not_ask(policy: str, resumable: bool) -> None:
    half = Half(asked=False, policy=policy, resumable=resumable)
    assert half.sent() == []
    assert half.session.frames is None


def test_limits_that_are_not_worth_it() -> None:
    for limits in (Limits(suspended=59.0), Limits(outbox_frames=99), Limits(outbox_bytes=1 << 19)):
        assert Half(asked=False, limits=limits).sent() == []
        half = Half(asked=True, limits=limits)
        half.receive(ask())
        assert half.outcome(1)[0] == "break"


def bytes_of(value: object) -> Any:
    """The same for the tests' encoder."""
    if isinstance(value, Symbol):
        return Sym(value.name)
    return [bytes_of(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "value", [one for one in NO_TERMS if isinstance(one, list) and one and one[0] is ASK]
)
def test_asking_on_terms_that_are_none(value: list[object]) -> None:
    half = Half(asked=True)
    half.receive(ask(bytes_of(value)))
    assert half.outcome(1)[0] == "break"
    assert half.session.frames is None
    assert ended(half.session) is None


def answer(verb: str, value: Any, resolver: int) -> Rec:
    return Rec("op:deliver", Rec("desc:export", resolver), [Sym(verb), value], False, False)


class Asking(Half):
    """We have dialled and asked."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(asked=False, limits=limits)
        (message,) = self.sent()
        record, _ = read_one(message)
        assert record.fields[0] == Rec("desc:export", 0)
        terms = terms_of(limits or Limits())
        assert record.fields[1] == [Sym("durable-session"), 1, terms.life, terms.frames, terms.size]
        assert record.fields[2] is False
        self.resolver = record.fields[3].fields[0]


def test_the_answer_makes_the_session_durable_and_is_acknowledged_at_once() -> None:
    half = Asking()
    assert not durable(half)
    half.receive(answer("fulfill", OFFER, half.resolver))
    assert durable(half)
    assert frames_of(half.session).terms == Terms(100, 200, 1 << 21)
    assert half.session.outbox.take()[0] == write_ack(1)


@pytest.mark.parametrize("value", [one for one in NO_TERMS if one is not None])
def test_an_answer_on_terms_that_are_none(value: object) -> None:
    half = Asking()
    half.receive(answer("fulfill", bytes_of(value), half.resolver))
    assert "terms that are none" in half.aborted()
    half.side.node.check()


@pytest.mark.parametrize("verb", ["break", "nonsense"])
def test_an_answer_that_is_no(verb: str) -> None:
    half = Asking()
    half.receive(answer(verb, Rec("desc:error", "no such method"), half.resolver))
    assert ended(half.session) is None
    assert not half.session.durable
    half.session.disconnected("cut")
    assert isinstance(half.session.ended, Disconnected)


@pytest.mark.parametrize("seconds", [29.9, 30.0])
def test_an_answer_that_comes_too_late(seconds: float) -> None:
    half = Asking()
    half.clock.now = seconds
    half.side.node.expire()
    assert (half.session.frames is None) == (seconds >= 30)
    half.receive(answer("fulfill", OFFER, half.resolver))
    if seconds < 30:
        assert half.session.durable
    else:
        assert "too late" in half.aborted()


def test_a_refusal_that_comes_too_late() -> None:
    half = Asking()
    half.clock.now = 30.0
    half.side.node.expire()
    half.receive(answer("break", Rec("desc:error", "no"), half.resolver))
    assert ended(half.session) is None


def test_an_answer_that_comes_twice() -> None:
    half = Asking()
    half.receive(answer("fulfill", OFFER, half.resolver))
    half.receive(answer("fulfill", [*OFFER[:2], 60, 100, 1 << 20], half.resolver))
    assert half.session.durable
    assert frames_of(half.session).terms == Terms(100, 200, 1 << 21)


def test_a_cut_before_the_answer() -> None:
    half = Asking()
    half.session.disconnected("cut")
    assert isinstance(half.session.ended, Disconnected)
    assert half.side.node.kept(half.session.id) is None


# Acknowledgements in a session


def refused(session: Session, message: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        session.receive(message)


@pytest.mark.parametrize("asked", [False, True])
def test_an_ack_before_it_is_agreed(asked: bool) -> None:
    half = Half(asked=asked)
    half.sent()
    refused(half.session, write_ack(0), "not durable")


@pytest.mark.parametrize("policy", ["never", "offer"])
def test_an_ack_in_an_ordinary_session(policy: str) -> None:
    half = Half(asked=True, policy=policy)
    half.receive(NOTHING)
    refused(half.session, write_ack(1), "no operation is called 'op:ack'")


def test_acks_that_are_wrong() -> None:
    for number in (-1, 0, 1):
        pair = Pair()
        pair.tell(0, 5)
        pair.flow(0)
        frames = frames_of(pair.a)
        before = frames.acked
        pair.a.receive(write_ack(frames.sent - 1))
        assert frames.acked == frames.sent - 1 > before
        if number == 0:
            pair.a.receive(write_ack(frames.sent - 1))
            pair.a.receive(write_ack(frames.sent))
        elif number == 1:
            refused(pair.a, write_ack(frames.sent + 1), "were sent")
        else:
            refused(pair.a, write_ack(frames.sent - 2), "after one of frame")


@pytest.mark.parametrize("data", [b"<6'op:ack>", b"<6'op:ack-1+>", b"<6'op:ack2->", b"<6'op:ack%d+>" % 2**70])
def test_acks_that_are_malformed(data: bytes) -> None:
    pair = Pair()
    refused(pair.a, data, "op:ack")


def test_every_64_frames_are_acknowledged_at_once() -> None:
    pair = Pair()
    pair.tell(0, 63)
    for message in pair.sessions[0].outbox.take():
        pair.b.receive(message)
    assert not [message for message in pair.b.outbox.take() if is_ack(message)]
    pair.tell(0)
    for message in pair.sessions[0].outbox.take():
        pair.b.receive(message)
    assert [message for message in pair.b.outbox.take() if is_ack(message)] == [
        write_ack(frames_of(pair.b).taken)
    ]


def test_signs_of_life_and_silence() -> None:
    pair = Pair()
    start = pair.clock.now
    for seconds, expected in ((14.9, []), (15.0, [write_ack(frames_of(pair.a).taken)]), (29.0, [])):
        pair.clock.now = start + seconds
        pair.sides[0].node.expire()
        assert pair.a.outbox.take() == expected
    pair.clock.now = start + 44.9
    pair.sides[0].node.expire()
    assert pair.a.state == "live"
    pair.clock.now = start + 45.0
    pair.sides[0].node.expire()
    assert pair.a.state == "suspended"
    assert ended(pair.a) is None
    pair.clock.now = start + 100.0
    pair.sides[0].node.expire()
    assert pair.outgoing(0) == []  # nobody is there


def test_an_abort_says_first_how_far_it_got() -> None:
    pair = Pair()
    pair.tell(0, 3)
    for message in pair.sessions[0].outbox.take():
        pair.b.receive(message)
    pair.b.abort("enough")
    *_, ack, abort = pair.outgoing(1)
    assert (ack, abort) == (write_ack(frames_of(pair.b).taken), write_abort("enough"))
    pair.a.receive(ack)
    with pytest.raises(Aborted):
        pair.a.receive(abort)
    assert frames_of(pair.a).acked == frames_of(pair.a).sent
    for side, session in zip(pair.sides, pair.sessions, strict=True):
        kept = side.node.kept(session.id)
        assert kept is not None
        assert (kept.reason, kept.received) == ("ended", frames_of(session).taken)
        side.node.check()


@pytest.mark.parametrize("suspended", [False, True])
def test_backpressure_is_about_what_was_not_acknowledged(suspended: bool) -> None:
    """It does not help that the network has taken it all. Answers still go out."""
    limits = Limits(outbox_frames=100)
    pair = Pair(limits)
    if suspended:
        pair.cut()
    frames = frames_of(pair.a)
    while not frames.full:
        pair.tell(0)
        pair.outgoing(0)
    assert len(frames.kept) == 100
    assert not pair.a.has_room
    with pytest.raises(Backpressure):
        pair.tell(0)
    pair.a.deliver_only(descriptor_bytes(EXPORT, 1), [], forwarded=True)
    assert len(frames.kept) == 101
    if not suspended:
        pair.a.receive(write_ack(frames.sent - 99))
        assert pair.a.has_room
    while not pair.a.outbox.overflown:
        pair.a.deliver_only(descriptor_bytes(EXPORT, 1), [], forwarded=True)
    assert len(frames.kept) == 200


def test_what_is_known_of_a_session_that_is_lost() -> None:
    """Without a count of the peer's, what was not acknowledged is uncertain; a count is believed within reason."""
    for received, expected in (
        (None, (-4, 0, 4)),
        (-2, (-2, 2, 0)),
        (0, (0, 0, 0)),
        (-1000, (-4, 4, 0)),
        (1000, (0, 0, 0)),
    ):
        pair = Pair()
        pair.tell(0, 4)
        frames = frames_of(pair.a)
        assert len(frames.kept) == 4
        pair.a.lose("over", None if received is None else frames.sent + received)
        error = pair.a.ended
        assert isinstance(error, SessionLost)
        delivered, never, uncertain = expected
        counts = (error.delivered, error.never_delivered, error.uncertain)
        assert counts == (frames.sent + delivered, never, uncertain)


def test_frames_of_a_session_are_counted_from_the_first() -> None:
    """The ask and its answer included; acknowledgements and op:abort not."""
    pair = Pair()
    a, b = frames_of(pair.a), frames_of(pair.b)
    assert (a.sent, b.taken) == (1, 1)
    assert (b.sent, a.taken) == (2, 2)  # the answer, and the return of its resolver
    pair.tell(0, 3)
    pair.flow()
    assert (a.sent, a.acked, b.taken) == (4, 4, 4)
