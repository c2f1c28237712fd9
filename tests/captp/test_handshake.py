"""The table of the handshake: every entry is reached, and no other transition is possible."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from random import Random

import pytest

from ocapn import Aborted, OCapNError, PeerLocator, RemoteProtocolError
from ocapn.captp.handshake import TRANSITIONS, Event, Handshake, Refused, State
from ocapn.captp.node import Node
from ocapn.captp.session import Session
from ocapn.codec.operations import Form, StartSession, write_abort, write_start_session
from ocapn.codec.syrup import Encoder
from ocapn.crypto import SessionKey, location_message
from tests.captp.sides import Side, pair
from tests.support import interpreted

B = PeerLocator("memory", "b")
#: What the session does once there is one; the handshake itself has ended.
OF_THE_SESSION = {
    (State.LIVE, Event.START_AGAIN),
    (State.LIVE, Event.ABORT_RECEIVED),
    (State.LIVE, Event.DROPPED),
}


def start(
    node: Node, location: PeerLocator = B, *, version: str = "1.0", key: SessionKey | None = None
) -> bytes:
    key = key or SessionKey(Random(1).randbytes(32))
    signature = key.sign(location_message(location))
    return write_start_session(
        Encoder(node.limits), StartSession(version, key.public_key, location, signature)
    )


def handshake(side: Side, state: State) -> Handshake:
    """One in that state; ENDED by an abort that came."""
    dialled = None if state is State.LISTENING else B
    shake = Handshake(side.node, side.location, dialled=dialled, authenticated=None, form=Form())
    if dialled is not None:
        side.node.dials[B] = shake
        shake.outbound.clear()  # sent
    if state is State.LIVE:
        shake.judge(shake.read(start(side.node)), 0.0)
    elif state is State.ENDED:
        shake.drop("ended before the test")
        shake.outbound.clear()
    return shake


def accepted(shake: Handshake, node: Node) -> None:
    shake.judge(shake.read(start(node)), 0.0)


def refused(shake: Handshake, node: Node) -> None:
    try:
        shake.read(start(node, version="0.9"))
    except Refused as error:
        shake.refuse(str(error))


def duplicate(shake: Handshake, node: Node) -> None:
    other = Handshake(node, node.own[0], dialled=None, authenticated=None, form=Form())
    other.judge(other.read(start(node, key=SessionKey(Random(2).randbytes(32)))), 0.0)
    shake.judge(shake.read(start(node)), 0.0)


def abort_received(shake: Handshake, node: Node) -> None:
    shake.read(write_abort("no"))


def dropped(shake: Handshake, node: Node) -> None:
    shake.drop("another is the session")


ACTIONS: dict[Event, Callable[[Handshake, Node], None]] = {
    Event.ACCEPTED: accepted,
    Event.REFUSED: refused,
    Event.DUPLICATE: duplicate,
    Event.ABORT_RECEIVED: abort_received,
    Event.DROPPED: dropped,
}
#: How many messages each sends (module docstring of handshake.py): our start, op:abort, both or none.
SENT = {
    (State.DIALLED, Event.ACCEPTED): [],
    (State.DIALLED, Event.REFUSED): ["op:abort"],
    (State.DIALLED, Event.ABORT_RECEIVED): [],
    (State.DIALLED, Event.DROPPED): ["op:abort"],
    (State.LISTENING, Event.ACCEPTED): ["op:start-session"],
    (State.LISTENING, Event.REFUSED): ["op:abort"],
    (State.LISTENING, Event.DUPLICATE): ["op:start-session", "op:abort"],
    (State.LISTENING, Event.ABORT_RECEIVED): [],
    (State.LISTENING, Event.DROPPED): ["op:abort"],
}


def names(messages: list[bytes]) -> list[str]:
    return ["op:abort" if b"op:abort" in message[:14] else "op:start-session" for message in messages]


def test_the_entries_are_those_of_the_handshake_and_the_session() -> None:
    assert TRANSITIONS.keys() == SENT.keys() | OF_THE_SESSION


@pytest.mark.parametrize(("state", "event"), SENT)
def test_every_transition(state: State, event: Event) -> None:
    side = Side("a")
    shake = handshake(side, state)
    try:
        ACTIONS[event](shake, side.node)
    except OCapNError:
        assert shake.state is not State.LIVE
    assert shake.state is TRANSITIONS[state, event]
    assert names(shake.outbound) == SENT[state, event]
    assert (len(side.node.sessions) == 1) == (shake.state is State.LIVE or event is Event.DUPLICATE)
    if event is Event.DROPPED:
        assert not side.node.dials


@interpreted
@pytest.mark.parametrize(("state", "action"), list(product(State, Event)))
def test_no_other_transition(state: State, action: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done in whatever state, only entries of the table are taken, and nothing fails in another way."""
    if action not in ACTIONS:
        return
    side = Side("a")
    shake = handshake(side, state)
    taken: list[tuple[State, Event]] = []
    step = Handshake._step

    def note(self: Handshake, event: Event) -> None:
        if self is shake:
            taken.append((self.state, event))
        step(self, event)

    monkeypatch.setattr(Handshake, "_step", note)
    before = shake.state
    if state is not State.LIVE:  # then messages go to the session
        try:
            ACTIONS[action](shake, side.node)
        except OCapNError:
            pass
    else:
        shake.refuse("too late")
        shake.drop("too late")
    assert set(taken) <= TRANSITIONS.keys()
    assert len(taken) <= 1
    if not taken:
        assert shake.state is before
        assert not shake.outbound
    if before is State.ENDED or before is State.LIVE:
        assert not taken


def test_a_connection_dropped_before_its_start_went_out_says_nothing() -> None:
    """Otherwise the other side would judge a start that this one has given up."""
    side = Side("a")
    shake = Handshake(side.node, side.location, dialled=B, authenticated=None, form=Form())
    shake.drop("another is the session")
    assert shake.outbound == []


def test_what_was_on_its_way_to_a_dropped_connection_is_refused() -> None:
    """Found by the model: a message that had arrived when the connection was dropped ended the whole peer."""
    side = Side("a")
    for message in (start(side.node), write_abort("no")):
        shake = handshake(side, State.ENDED)
        with pytest.raises(Refused):
            shake.read(message)
    shake = handshake(side, State.DIALLED)
    read = shake.read(start(side.node))
    shake.drop("another is the session")
    with pytest.raises(Refused):
        shake.judge(read, 0.0)
    assert not side.node.sessions


def live() -> tuple[Side, Session]:
    a, _, link = pair()
    return a, link.a


def test_live_start_again() -> None:
    a, session = live()
    with pytest.raises(RemoteProtocolError):
        session.receive(start(a.node))
    session.abort("a second op:start-session")
    assert session.ended is not None
    assert names(session.outbox.take()) == ["op:abort"]


def test_live_abort_received() -> None:
    _, session = live()
    with pytest.raises(Aborted):
        session.receive(write_abort("enough"))
    assert isinstance(session.ended, Aborted)
    assert session.outbox.take() == []


def test_live_dropped() -> None:
    """A session that was silent too long yields to a new connection."""
    a, session = live()
    shake = Handshake(a.node, a.location, dialled=None, authenticated=None, form=Form())
    read = shake.read(start(a.node))
    with pytest.raises(Refused):
        shake.judge(read, a.node.limits.silence - 1)
    assert list(a.node.sessions.values()) == [session]
    shake = Handshake(a.node, a.location, dialled=None, authenticated=None, form=Form())
    new = shake.judge(shake.read(start(a.node)), a.node.limits.silence)
    assert session.ended is not None
    assert a.node.sessions == {new.location: new}
    a.node.check()


@pytest.mark.parametrize("seed", range(8))
def test_crossed_hellos_leave_one_session(seed: int) -> None:
    """Both dial; whichever key is higher, both sides keep the same connection, in whatever order hellos arrive."""
    for order in range(2):
        a, b = Side("a", seed=seed), Side("b", seed=seed + 100)
        dials = []
        for mine, other in ((a, b), (b, a)):
            dial = Handshake(
                mine.node, mine.location, dialled=other.location, authenticated=None, form=Form()
            )
            mine.node.dials[other.location] = dial
            dials.append((dial, other, dial.outbound.pop()))
        if order:
            dials.reverse()
        for dial, side, hello in dials:
            listener = Handshake(side.node, side.location, dialled=None, authenticated=None, form=Form())
            read = listener.read(hello)
            try:
                listener.judge(read, 0.0)
            except Refused as error:
                listener.refuse(str(error))
            for answer in listener.outbound:
                if dial.state is State.DIALLED:
                    try:
                        dial.judge(dial.read(answer), 0.0)
                        dial._node.dials.pop(side.location, None)
                    except OCapNError:
                        pass
        assert len(a.node.sessions) == len(b.node.sessions) == 1
        assert a.node.sessions[b.location].id == b.node.sessions[a.location].id
