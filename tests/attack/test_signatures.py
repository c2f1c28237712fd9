"""What is signed, with any byte changed (wire.md, Session start and Third-party handoff)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

import pytest

from ocapn.captp.delivery import BROKEN, FULFILLED
from ocapn.captp.handoff import DEPOSIT_GIFT
from ocapn.captp.handshake import Handshake
from ocapn.captp.session import Session
from ocapn.codec.operations import Form
from ocapn.crypto import sign_give, sign_receive
from ocapn.errors import Aborted, RemoteProtocolError
from ocapn.limits import Limits
from tests.captp.sides import Box, Link, Side, exported
from tests.conformance.encoding import Raw, Rec, Sym, encode
from tests.support import trio_test_real
from tests.wire.vectors import OPERATIONS

from .support import aborted, frame, scene

#: What a byte is changed by: one bit low, one high, case, and all of it.
CHANGES: Final = (0x01, 0x80, 0x20, 0xFF)


def changed(data: bytes, changes: tuple[int, ...] = CHANGES) -> Iterator[bytes]:
    """`data` with each byte changed in each way."""
    for i, byte in enumerate(data):
        for change in changes:
            yield data[:i] + bytes([byte ^ change]) + data[i + 1 :]


def test_a_start_session_with_any_byte_changed() -> None:
    dialler, listener = Side("dialler"), Side("listener")
    start = Handshake(
        dialler.node, dialler.location, dialled=listener.location, authenticated=None, form=Form()
    ).outbound[0]
    handshake = Handshake(listener.node, listener.location, dialled=None, authenticated=None, form=Form())
    count = 0
    for message in changed(start, tuple(1 << bit for bit in range(8))):
        with pytest.raises(RemoteProtocolError):
            handshake.read(message)
        count += 1
    assert count == 8 * len(start)
    assert handshake.read(start).location == dialler.location


@pytest.mark.parametrize("fifteenth", range(15))
@trio_test_real
async def test_a_changed_start_session_on_the_wire(fifteenth: int) -> None:
    async with scene() as here:
        client = await here.connect()
        start = encode(client.start())
        at = fifteenth * len(start) // 15
        await client.send_unframed(frame(start[:at] + bytes([start[at] ^ 0x01]) + start[at + 1 :]))
        reason = await aborted(client, "")
        assert (
            "malformed at byte" in reason
            or "the signature of the location is not by the session key" in reason
        )
        assert len(here.peer.sessions) == 1


class Handoff:
    """A gift of the exporter, deposited by the gifter for the receiver."""

    def __init__(self) -> None:
        limits = Limits(answers=100_000)
        self.exporter = Side("exporter", limits=limits)
        self.gifter, self.receiver = Side("gifter"), Side("receiver")
        self.at_gifter = Link(self.gifter, self.exporter)
        self.at_receiver = Link(self.receiver, self.exporter)
        self.between = Link(self.gifter, self.receiver)
        self.gift = Box("gift")
        self.gift_id = bytes(range(32))
        self._asked = 0
        self.deposit()

    def deposit(self) -> None:
        session = self.at_gifter.b
        position = exported(session, self.gift)
        session.receive(
            encode(
                Rec(
                    "op:deliver",
                    Rec("desc:export", 0),
                    [Sym(DEPOSIT_GIFT.name), self.gift_id, Rec("desc:export", position)],
                    False,
                    False,
                )
            )
        )
        self.exporter.run()

    def give(self) -> bytes:
        gifter = self.at_gifter.a
        return sign_give(
            gifter.key, self.between.b.key.public_key, self.exporter.location, gifter.id, self.gift_id
        )

    def claim(self, give: bytes, count: int = 0) -> bytes:
        session = self.at_receiver.a
        return sign_receive(self.between.b.key, session.id, session.key.public_id, count, give)

    def withdraw(self, claim: bytes) -> str:
        """What came of it: refused, broken, pending or fulfilled."""
        session = self.at_receiver.b
        position = self._asked
        self._asked += 1
        message = Rec(
            "op:deliver", Rec("desc:export", 0), [Sym("withdraw-gift"), Raw(claim)], position, False
        )
        try:
            session.receive(encode(message))
        except RemoteProtocolError:
            return "refused"
        self.exporter.run()
        end = session.tables.answers[position].end()
        if end.state == FULFILLED:
            assert end.value is self.gift
        return {FULFILLED: "fulfilled", BROKEN: "broken"}.get(end.state, "pending")

    def check(self) -> None:
        self.exporter.node.check()
        deposited, _ = self.exporter.node.gifts.counts(self.at_gifter.b.id)
        assert deposited == 1


def test_a_handoff_receive_with_any_byte_changed() -> None:
    """Also the bytes of the give inside it: the receiver has signed those as well."""
    handoff = Handoff()
    claim = handoff.claim(handoff.give())
    outcomes = {handoff.withdraw(message) for message in changed(claim)}
    assert outcomes == {"refused", "broken"}
    handoff.check()
    assert handoff.withdraw(claim) == "fulfilled"


def test_a_handoff_give_with_any_byte_changed_that_its_receiver_signed() -> None:
    handoff = Handoff()
    give = handoff.give()
    outcomes = {
        handoff.withdraw(handoff.claim(message, count))
        for count, message in enumerate(changed(give), start=1)
    }
    assert outcomes == {"refused", "broken"}
    handoff.check()
    assert handoff.withdraw(handoff.claim(give)) == "fulfilled"


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_change_of_an_operation_is_more_than_refused(name: str) -> None:
    """Whatever a byte becomes: the message is refused, or taken, and the tables are right."""
    random = Random(name)
    data = OPERATIONS[name]
    refused = taken = 0
    side, session = _session()
    for i in range(len(data)):
        for byte in random.sample(range(256), 5):
            message = data[:i] + bytes([byte]) + data[i + 1 :]
            try:
                session.receive(message)
            except Aborted:
                taken += 1
                side, session = _session()
            except RemoteProtocolError:
                refused += 1
                side.run()
                session.check()
                side, session = _session()
            else:
                taken += 1
                side.run()
                session.check()
    assert refused > len(data)
    assert taken or name not in ("deliver-fetch", "abort")


def _session() -> tuple[Side, Session]:
    """A session of a side that has exported and was asked a few things."""
    one, other = Side("one"), Side("other")
    link = Link(one, other)
    for number in range(8):
        exported(link.b, Box(answer=number))
    promise, _ = other.promise()
    exported(link.b, promise)
    return other, link.b
