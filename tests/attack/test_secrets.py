"""No secret leaves the process where people look: logs, errors, reprs, dumps, traces (house.md, Habits)."""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import pytest

import ocapn
from ocapn import E, MemoryNetlayer, MemoryNetwork, OCapNError, Promise, SturdyRef
from ocapn.crypto import SessionKey
from ocapn.testing import quiet
from tests.conformance.encoding import BOOTSTRAP, Rec, Sym, answer, own
from tests.support import trio_test, trio_test_real

from .support import SWISS, VICTIM, Victim, aborted, call, frame, scene

GIFT: Final = b"the id of a gift, a secret too"
GUESS: Final = b"a swiss number of somebody else's"


def writings(secret: bytes) -> Iterator[str]:
    """The ways in which bytes are written."""
    yield secret.decode("latin-1")
    yield secret.hex()
    yield secret.hex().upper()
    yield repr(secret)[2:-1]
    yield quote(secret, safe="")
    yield base64.b64encode(secret).decode()
    yield base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    yield str(list(secret))[1:-1]


def holds(text: str, *secrets: bytes) -> bool:
    return any(writing in text for secret in secrets for writing in writings(secret))


def test_the_search_finds_what_it_looks_for() -> None:
    for writing in writings(SWISS):
        assert holds(f"before {writing} after", SWISS)
    assert not holds("nothing of it", SWISS)


class Heard:
    """All that was logged, traced, raised and shown."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.lines: list[str] = []

    def watch(self, session: ocapn.Session) -> None:
        session.trace(self.lines.append)

    def see(self, *things: object) -> None:
        for thing in things:
            self.lines.append(repr(thing))
            self.lines.append(str(thing))
            self.lines.append(f"{thing}")
            if isinstance(thing, BaseException):
                self.lines.append("".join(traceback.format_exception(thing)))

    def text(self) -> str:
        formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
        logged = [formatter.format(record) for record in self._caplog.records]
        return "\n".join([*logged, *self.lines])


def keys_of(peer: ocapn.Peer) -> list[bytes]:
    return [bytes(core.key._signing) for core in peer._node.sessions.values()]


@trio_test_real
async def test_what_an_attacker_does_with_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """Right and wrong, in every operation that takes one."""
    caplog.set_level(logging.DEBUG)
    heard = Heard(caplog)
    async with scene() as here:
        gifter, client = await here.attacker(), await here.attacker()
        keys = keys_of(here.peer)
        for session in here.peer.sessions:
            heard.watch(session)
        # Swiss numbers, guessed and known, as bytes and as what they should not be.
        for swiss in (GUESS, SWISS, GUESS.decode()):
            await client.send(call("fetch", swiss, to=BOOTSTRAP))
            heard.see(await client.outcome(await client.ask(BOOTSTRAP, Sym("fetch"), swiss)))
        for args in ([], [GUESS, 1, 2, 3]):
            heard.see(await client.outcome(await client.ask(BOOTSTRAP, Sym("fetch"), *args)))
        # Gifts.
        gift = own(await gifter.call(VICTIM, Sym("me")))
        for wrong in ([GIFT, gift], [GIFT, gift], [GIFT, 1], [GIFT * 3, gift], [GIFT]):
            await gifter.tell(BOOTSTRAP, Sym("deposit-gift"), *wrong)
        give = gifter.give(client.public_key, client, GIFT)
        claims = [
            client.claim(client.key, give, session=bytes(32)),
            client.claim(gifter.key, give),
            client.claim(client.key, gifter.give(client.public_key, client, GIFT, session=bytes(32))),
            client.claim(client.key, gifter.give(client.public_key, client, GIFT, key=client.key)),
            client.claim(client.key, give),
            client.claim(client.key, give),
            give,
            1,
        ]
        for claim in claims:
            heard.see(await client.outcome(await client.ask(BOOTSTRAP, Sym("withdraw-gift"), claim)))
        # A give as an argument, and sturdyrefs, in calls that fail and that do not.
        sturdyref = Rec("ocapn-sturdyref", client.place.location, GUESS)
        for method in ("echo", "drop", "no such method", "note", "hang"):
            await client.send(call(method, sturdyref), call(method, sturdyref, position=False))
        await client.send(call("drop", gifter.give(client.peer_key, client, GIFT)))
        await client.send(Rec("op:get", answer(1), "field", 50))
        await client.nothing_else()
        for session in here.peer.sessions:
            heard.see(session, session.dump(), session.stats(), session._core, session._core.tables.__class__)
            heard.see(session._core.key, session._core.__class__)
        heard.see(here.peer, here.victim.things, here.peer._node)
        await gifter.end()
        # What breaks the protocol, with a secret in it.
        await client.send_unframed(
            frame(call("drop", Rec("desc:handoff-give", [], sturdyref, b"", b"", GIFT)))
        )
        heard.see(await aborted(client, ""))
        text = heard.text()
        assert "fetch" in text
        assert "deposit-gift" in text
        assert "desc:handoff-give" in text
        for line in text.splitlines():
            assert not holds(line, SWISS, GUESS, GIFT, *keys), line


@trio_test
async def test_what_honest_peers_do_with_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """Three peers, introductions, sturdyrefs passed on, errors on the way."""
    caplog.set_level(logging.DEBUG)
    heard = Heard(caplog)
    async with three() as (alice, bob, carol):
        swiss = [b"swiss number one of carol's", b"swiss number two of bob's own"]
        at_carol = carol.export(Victim(), swiss[0])
        at_bob = bob.export(Victim(), swiss[1])
        carols = await alice.enliven(at_carol)
        bobs = await alice.enliven(at_bob)
        for peer in (alice, bob, carol):
            for session in peer.sessions:
                heard.watch(session)
        await E(bobs).keep(carols)  # a handoff: bob and carol have a session now
        await quiet(alice, bob, carol)
        for peer in (bob, carol):
            for session in peer.sessions:
                heard.watch(session)
        await E(bobs).keep(carols)
        await E(bobs).keep(at_carol)
        assert await E(bobs).kept() == at_carol
        for name in ("fail", "note"):
            await failing(heard, E(bobs)[name](at_carol))
        for wrong in (SturdyRef(at_carol.peer, GUESS), SturdyRef(bob.locator(), GUESS)):
            heard.see(wrong)
            await failing_call(heard, alice.enliven(wrong))
        await failing_call(heard, carol.enliven(SturdyRef(carol.locator(), GUESS)))
        await failing_call(heard, alice.enliven(wrong.uri.replace("memory", "no such transport")))
        await failing_call(heard, alice.enliven(wrong.uri + "%zz"))
        await failing_call(heard, alice.enliven(SturdyRef(ocapn.PeerLocator("memory", "nobody"), GUESS)))
        for use in (lambda: carol.unexport(wrong), lambda: carol.export(carols, swiss[0])):
            try:
                use()
            except (KeyError, ValueError) as error:
                heard.see(error)
        await quiet(alice, bob, carol)
        secrets = [*swiss, GUESS]
        for peer in (alice, bob, carol):
            secrets += keys_of(peer)
            heard.see(peer, at_carol, at_bob, carols, bobs)
            for session in peer.sessions:
                heard.see(session, session.dump(), session.stats(), session.location)
        text = heard.text()
        for operation in ("fetch", "deposit-gift", "withdraw-gift", "desc:handoff-give", "ocapn-sturdyref"):
            assert operation in text, operation
        assert not holds(text, *secrets)
        # Gift ids are drawn, so they are found in the trace of one who asks for secrets.
        loud: list[str] = []
        for session in alice.sessions:
            session.trace(loud.append, secrets=True)
        await E(bobs).keep(carols)
        await E(bobs).keep(at_carol)
        await failing_call(heard, alice.enliven(SturdyRef(at_carol.peer, GUESS)))
        assert holds("\n".join(loud), swiss[0])
        assert holds("\n".join(loud), GUESS)
        gifts = [line.split("'deposit-gift :")[1].split()[0] for line in loud if "'deposit-gift :" in line]
        assert len(gifts) == 1
        assert len(bytes.fromhex(gifts[0])) == 32
        assert gifts[0] not in heard.text()
    assert not holds(heard.text(), *secrets)


@asynccontextmanager
async def three() -> AsyncIterator[tuple[ocapn.Peer, ocapn.Peer, ocapn.Peer]]:
    network = MemoryNetwork()
    async with (
        ocapn.open_peer([MemoryNetlayer(network, "alice")]) as alice,
        ocapn.open_peer([MemoryNetlayer(network, "bob")]) as bob,
        ocapn.open_peer([MemoryNetlayer(network, "carol")]) as carol,
    ):
        yield alice, bob, carol


async def failing(heard: Heard, promise: Promise) -> None:
    try:
        await promise
    except OCapNError as error:
        heard.see(error, promise)
    else:
        raise AssertionError("it did not fail")


async def failing_call(heard: Heard, call: Any) -> None:
    try:
        await call
    except OCapNError as error:
        heard.see(error, error.args)
    else:
        raise AssertionError("it did not fail")


def test_keys_are_not_shown() -> None:
    seed = bytes(range(100, 132))
    key = SessionKey(seed)
    text = f"{key!r} {key} {key.__dict__ if hasattr(key, '__dict__') else ''}"
    assert not holds(text, seed)


@trio_test_real
async def test_a_trace_of_what_is_malformed(caplog: pytest.LogCaptureFixture) -> None:
    """It is written that it came, not what it was; and the reason is that of the decoder, not of the trace."""
    caplog.set_level(logging.DEBUG)
    deep = b"<10'op:deliver<11'desc:answer1+>[" + b"[" * 190 + b"]" * 190 + b"]ff>"
    for data, reason in (
        (b"<10'op:deliver" + SWISS, "malformed at byte"),
        (deep, "nested more than 64 deep"),
        (b"<10'op:deliver<11'desc:answer1+>[" + b"9" * 300 + b"+]ff>", "more than 256 digits"),
        (b"[" * 5_000, "nested more than 64 deep"),
    ):
        lines: list[str] = []
        async with scene() as here:
            client = await here.attacker()
            here.session(client).trace(lines.append)
            await client.send_unframed(frame(call("note", "attacker", 1), data))
            await aborted(client, reason)
            assert here.victim.heard["attacker"] == [1]
        assert lines[0].startswith("<- <op:deliver")
        assert lines[1].startswith("<- ")
        assert lines[-1].startswith("-> <op:abort")
        assert not holds("\n".join(lines), SWISS)
    assert not holds(caplog.text, SWISS)
