"""From a connection to a session and to its end: framing, op:start-session, one session a location."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import trio
import trio.testing
from nacl.signing import SigningKey

import ocapn
from tests.support import trio_test_real

from .client import TIMEOUT, Client, Message, Place
from .encoding import (
    BOOTSTRAP,
    Rec,
    Sym,
    encode,
    export,
    locator,
    make_key,
    obj,
    own,
    public_key,
)
from .peer import ECHO, GREETER, STURDYREF_ENLIVENER
from .support import SUBJECT, World, alive, world

FRAMINGS = ["none", "syrup", "netstring"]
framings = pytest.mark.parametrize("framing", FRAMINGS)


async def dialled(found: World, place: Place) -> tuple[Client, Rec]:
    """Has the peer dial `place`; returns the session that it was asked through, and the resolver it will tell."""
    client = await found.session("asker")
    enlivener = await client.fetch(STURDYREF_ENLIVENER)
    return client, await client.ask(enlivener, place.sturdyref(b"swiss"))


# Framing


@framings
@trio_test_real
async def test_what_comes_in_is_answered_in_its_framing(framing: str) -> None:
    async with world() as found:
        client = await found.session("client", framing)
        assert await alive(client)
        await client.send(Rec("op:bad"))
        assert "op:bad" in await client.aborted()


@framings
@trio_test_real
async def test_messages_may_come_byte_by_byte_or_many_at_once(framing: str) -> None:
    async with world() as found:
        place = await found.place("client")
        client = await place.connect(found.uri, framing)
        start = client.encode(client.start())
        if framing != "none":
            start = b"%d:%b%b" % (len(start), start, b"," if framing == "netstring" else b"")
        half = len(start) // 2
        await client.send_unframed(start[:half])
        last = len(start) - 2  # a netstring's comma comes with the byte before: else it is no netstring yet
        for at in range(half, last):
            await client.send_unframed(start[at : at + 1])
        await client.send_unframed(start[last:])
        await client.their_start()
        echo = await client.fetch(ECHO)
        resolvers = [client.position() for _ in range(100)]
        await client.send(*[Rec("op:deliver", echo, [n], False, obj(n)) for n in resolvers])
        for n in resolvers:
            told = Message.of(await client.next())
            assert (told.to, told.args) == (export(n), [Sym("fulfill"), [n]])


@framings
@trio_test_real
async def test_the_peer_dials_in_the_framing_of_the_hint(framing: str) -> None:
    async with world() as found:
        place = await found.place("exporter", framing=framing)
        asker, asked = await dialled(found, place)
        session = await place.accepted(framing)
        fetch = await session.message_to(BOOTSTRAP)
        await session.tell(own(fetch.resolver), Sym("break"), Rec("desc:error", "no"))
        assert await asker.broken(asked) == Rec("desc:error", "no")


@framings
@trio_test_real
async def test_the_peer_dials_in_its_own_framing_without_a_hint(framing: str) -> None:
    async with world(framing=framing) as found:
        place = await found.place("exporter")
        await dialled(found, place)
        session = await place.accepted(framing)
        assert (await session.message_to(BOOTSTRAP)).args == [Sym("fetch"), b"swiss"]


BAD_FRAMES = {
    "no length": b"x",
    "white space": b" 5:hello",
    "leading zero": b"05:hello",
    "no colon": b"5hello",
    "empty": b"0:",
    "a length without end": b"1" * 19,
    "over 8 KiB before the session": b"8193:",
    "over 8 KiB bare": b"<9000:",
    "nothing that Syrup knows": b"<?",
}


@pytest.mark.codec("syrup")
@pytest.mark.parametrize("name", BAD_FRAMES)
@trio_test_real
async def test_a_bad_frame_instead_of_a_first_message(name: str) -> None:
    async with world() as found:
        data = BAD_FRAMES[name]
        client = await (await found.place("client")).connect(found.uri)
        client.framing = "none" if data[:1] == b"<" else "syrup"
        await client.send_unframed(data)
        assert await client.aborted()


@pytest.mark.parametrize("data", [b"05:hello", b"0:", b"1048577:", b"<"], ids=repr)
@trio_test_real
async def test_a_bad_frame_in_a_session(data: bytes) -> None:
    async with world() as found:
        client = await found.session()
        assert await alive(client)
        await client.send_unframed(data)
        assert await client.aborted()
        assert not found.peer.sessions


@trio_test_real
async def test_a_netstring_without_its_comma() -> None:
    async with world() as found:
        client = await found.session("client", "netstring")
        assert await alive(client)
        await client.send_unframed(b"2:[];")
        assert "comma" in await client.aborted()


@trio_test_real
async def test_a_message_of_a_mebibyte_passes_and_a_longer_one_aborts() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        room = (1 << 20) - 300  # for what stands around it, here and in the answer
        assert await client.call(echo, bytes(room)) == [bytes(room)]
        await client.tell(echo, bytes(1 << 20))
        assert "1048576" in await client.aborted()


# op:start-session


REFUSED: dict[str, tuple[Callable[[Client], Rec], str]] = {
    "another operation first": (
        lambda client: Rec("op:deliver", BOOTSTRAP, [], False, False),
        "first message",
    ),
    "wrong version": (lambda client: client.start("2.0"), "version"),
    "signature over something else": (lambda client: client.start(signed=b"x"), "signature"),
    "signature of another location": (
        lambda client: client.start(signed=encode(Rec("my-location", locator("other", {})))),
        "signature",
    ),
    "signature by another key": (lambda client: client.start(key=bytes(make_key().verify_key)), "signature"),
    "key of small order": (lambda client: client.start(key=b"\x01" + bytes(31)), "signature"),
    "no location": (lambda client: client.start(location="ocapn://client.tcp-testing-only"), "location"),
    "hints that are true": (
        lambda client: client.start(location=Rec("ocapn-peer", Sym("tcp-testing-only"), "client", True)),
        "hints",
    ),
    "hints that are a list": (
        lambda client: client.start(location=Rec("ocapn-peer", Sym("tcp-testing-only"), "client", [])),
        "hints",
    ),
    "hints that are numbers": (
        lambda client: client.start(
            location=Rec("ocapn-peer", Sym("tcp-testing-only"), "client", {"port": 1})
        ),
        "hints",
    ),
    "the peer's own location": (lambda client: client.start(location=locator(SUBJECT, {})), "own location"),
    "a field too many": (
        lambda client: Rec("op:start-session", *client.start().fields, False),
        "fields",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@trio_test_real
async def test_a_start_that_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    async with world() as found:
        client = await (await found.place("client")).connect(found.uri)
        await client.send(make(client))
        assert reason in await client.aborted()
        assert not found.peer.sessions
        assert await alive(await client.place.session(found.uri)), "another attempt may succeed"


@pytest.mark.parametrize("hints", [False, {}, {"z": "", "é": "1"}], ids=repr)
@trio_test_real
async def test_any_hints_are_accepted(hints: object) -> None:
    async with world() as found:
        place = await found.place("client")
        place.location = Rec("ocapn-peer", Sym("tcp-testing-only"), "client", hints)
        assert await alive(await place.session(found.uri))
        assert [session.location.uri.partition("?")[0] for session in found.peer.sessions] == [
            "ocapn://client.tcp-testing-only"
        ]
        assert not found.peer.sessions[0].authenticated


@pytest.mark.codec("syrup")
@trio_test_real
async def test_the_listener_says_nothing_before_the_dialler() -> None:
    """The peer's first byte is sent after ours, framed alike, with a key of its own for each session."""
    async with world() as found:
        silent = await (await found.place("silent")).connect(found.uri)
        first, second = await found.session("first"), await found.session("second", "none")
        assert first.peer_key != second.peer_key
        with trio.move_on_after(0) as waited:
            await silent._stream.receive_some()
        assert waited.cancelled_caught, "the peer spoke first"


@trio_test_real
async def test_who_says_nothing_is_refused_in_time() -> None:
    async with world(limits=ocapn.Limits(handshake=0.05)) as found:
        client = await (await found.place("client")).connect(found.uri)
        assert "op:start-session" in await client.aborted()


async def listens_on(client: Client) -> None:
    """The peer has half-closed the connection and reads on: what we send does not meet a reset."""
    for _ in range(16):
        await client.send_unframed(bytes(1 << 16))
    await client.send_eof()
    assert await client.receive_bytes() == b""


@trio_test_real
async def test_the_peer_drains_what_comes_after_our_abort() -> None:
    async with world() as found:
        client = await (await found.place("client")).connect(found.uri)
        await client.send(Rec("op:abort", "before it began"))
        assert await client.receive_bytes() == b""
        await listens_on(client)
        session = await found.session("another")
        await session.send(Rec("op:abort", "once it was there"))
        assert await session.receive_bytes() == b""
        await listens_on(session)


@trio_test_real
async def test_the_peer_drains_what_comes_after_its_abort() -> None:
    """Also what is no message: the rest of one that is too long."""
    async with world() as found:
        client = await (await found.place("client")).connect(found.uri)
        session = await found.session("another")
        for one in (client, session):
            await one.send_unframed(b"1048577:")
            assert (await one.next()).label == "op:abort"
            assert await one.receive_bytes() == b""
            await listens_on(one)


@trio_test_real
async def test_an_abort_that_follows_unread_input_is_read() -> None:
    """The peer half-closes and drains: a plain close would reset the connection."""
    async with world() as found:
        client = await (await found.place("client")).connect(found.uri)
        await client.send(client.start("2.0"), *[client.start()] * 50)
        assert "version" in await client.aborted()


@trio_test_real
async def test_a_connection_that_is_reset_right_after_its_start_leaves_no_session() -> None:
    async with world() as found:
        place = await found.place("client")
        for _ in range(10):
            client = await place.connect(found.uri)
            await trio.testing.wait_all_tasks_blocked()  # it is accepted
            client.send_now(client.start())
            client.reset()
            await trio.testing.wait_all_tasks_blocked()
            assert not found.peer.sessions
        assert await alive(await place.session(found.uri))


# The peer dials


async def _of_another(session: Client) -> str:
    hints = session.place.location.fields[2]
    await session.send(session.start(location=locator("unwanted", hints)))
    return await session.aborted()


async def _wrongly_signed(session: Client) -> str:
    await session.send(session.start(signed=b"x"))
    return await session.aborted()


async def _no_start(session: Client) -> str:
    await session.send(Rec("op:deliver", BOOTSTRAP, [], False, False))
    return await session.aborted()


async def _an_abort(session: Client) -> str:
    await session.send(Rec("op:abort", "not today"))
    await session.send_eof()
    assert await session.receive_bytes() == b""
    return "not today"


async def _nothing(session: Client) -> str:
    await session.send_eof()
    assert await session.receive_bytes() == b""
    return "ended"


ANSWERS = {
    "unwanted": _of_another,
    "signature": _wrongly_signed,
    "first message": _no_start,
    "not today": _an_abort,
    "ended": _nothing,
}


@trio_test_real
async def test_who_is_dialled_answers_wrong() -> None:
    """The peer aborts, and the wish that it dialled for breaks with the reason."""
    async with world() as found, trio.open_nursery() as nursery:

        async def check(reason: str) -> None:
            place = await found.place("wanted-" + reason.replace(" ", "-"))
            asker = await found.session("asker-" + reason)
            asked = await asker.ask(await asker.fetch(STURDYREF_ENLIVENER), place.sturdyref(b"swiss"))
            session = await place.accept()
            assert reason in await ANSWERS[reason](session)
            assert reason in (await asker.broken(asked)).fields[0]
            assert await alive(asker)

        for reason in ANSWERS:
            nursery.start_soon(check, reason)


@trio_test_real
async def test_the_peer_s_own_start_comes_back() -> None:
    async with world() as found:
        place = await found.place("mirror")
        await dialled(found, place)
        with trio.fail_after(TIMEOUT):
            stream = await place.listener.accept()
        session = Client(place, stream, "syrup", text_order=False)
        place.clients.append(session)
        await session.send_bytes(await session.receive_bytes())
        assert "own session key" in await session.aborted()


# One session a location


@trio_test_real
async def test_a_second_connection_gets_our_start_and_then_the_abort() -> None:
    async with world() as found:
        first = await found.session()
        second = await first.place.connect(found.uri)
        await second.send(second.start())
        await second.their_start()
        assert "session" in await second.aborted()
        assert await alive(first)
        assert len(found.peer.sessions) == 1


@pytest.mark.parametrize("how", ["op:abort", "half-close", "close"])
@trio_test_real
async def test_the_same_location_comes_back_after_its_session_ended(how: str) -> None:
    """The end of the old one is seen first, however soon the new one comes."""
    async with world() as found:
        place = await found.place("client")
        for _ in range(10):
            client = await place.session(found.uri)
            if how == "op:abort":
                await client.send(Rec("op:abort", "I will be back"))
            elif how == "half-close":
                await client.send_eof()
            else:
                await client.close()
        client = await place.session(found.uri)
        assert await alive(client)
        assert len(found.peer.sessions) == 1


@trio_test_real
async def test_what_is_readable_on_the_old_connection_is_heard_before_the_new_one_is_judged() -> None:
    """The end of the old session and the start of the new one arrive together, in either order."""
    async with world() as found:
        place = await found.place("client")
        old = await place.session(found.uri)
        for _ in range(20):
            new = await place.connect(found.uri)
            await trio.testing.wait_all_tasks_blocked()  # it is accepted
            new.send_now(new.start())
            old.send_now(Rec("op:abort", "I am back"))
            await new.their_start()
            assert await alive(new)
            await old.close()
            old = new


@trio_test_real
async def test_a_silent_session_yields_to_a_new_connection() -> None:
    async with world(limits=ocapn.Limits(silence=math.ulp(1.0))) as found:
        first = await found.session()
        second = await first.place.session(found.uri)
        assert await alive(second)
        await first.ends()
        assert len(found.peer.sessions) == 1


@trio_test_real
async def test_nothing_of_an_ended_session_is_held() -> None:
    """References break on both sides: what the client held is let go, what the peer held is broken."""
    kept: list[object] = []

    @ocapn.target
    def keep(reference: object) -> None:
        kept.append(reference)

    async with world() as found:
        found.peer.export(keep, b"keep")
        client = await found.session()
        await client.call(await client.fetch(b"keep"), obj(client.position()))
        (session,) = found.peer.sessions
        assert session.stats()["imports"] == 1
        await client.end()
        assert isinstance(session.ended, ocapn.Aborted)
        assert session.ended.reason == "the test is done"
        with pytest.raises(ocapn.Aborted, match="the test is done"):
            await ocapn.E(kept[0])()


@trio_test_real
async def test_crossed_hellos_leave_one_session_that_serves_both() -> None:
    """Whichever wins: what the peer wanted of the place goes through it, and what the place wants too."""
    for higher in (True, False):
        async with world() as found:
            place = await found.place("other")
            asker, asked = await dialled(found, place)
            inbound = await place.accept()
            key = make_key(lambda one, it=inbound, up=higher: (one > it.peer_id) is up)  # type: ignore[misc]
            outbound = await place.connect(found.uri, key=key)
            await outbound.send(outbound.start())
            if higher:
                await inbound.aborted()
                await outbound.their_start()
                session = outbound
            else:
                await outbound.aborted()
                await inbound.send(inbound.start())
                session = inbound
            fetch = await session.message_to(BOOTSTRAP)
            await session.tell(own(fetch.resolver), Sym("fulfill"), "found")
            assert await asker.fulfilled(asked) == "found"
            assert await alive(session)
            assert len(found.peer.sessions) == 2


@trio_test_real
async def test_crossed_hellos_when_the_winner_then_fails() -> None:
    """The place drops the connection that won: the peer's wish breaks, and the next one dials anew."""
    async with world() as found:
        place = await found.place("other")
        asker, asked = await dialled(found, place)
        inbound = await place.accept()
        key = make_key(lambda one: one > inbound.peer_id)
        outbound = await place.connect(found.uri, key=key)
        await outbound.send(outbound.start())
        await outbound.their_start()
        await outbound.message_to(BOOTSTRAP)
        await outbound.close()
        assert await asker.broken(asked)
        again = await asker.ask(await asker.fetch(STURDYREF_ENLIVENER), place.sturdyref(b"swiss"))
        session = await place.accepted()
        fetch = await session.message_to(BOOTSTRAP)
        await session.tell(own(fetch.resolver), Sym("fulfill"), "found")
        assert await asker.fulfilled(again) == "found"


@trio_test_real
async def test_a_key_of_small_order_is_refused_whatever_the_signature() -> None:
    """Anybody can make signatures for it."""
    async with world() as found:
        client = await (await found.place("client")).connect(found.uri)
        start = client.start()
        forged = [Sym("sig-val"), [Sym("eddsa"), [Sym("r"), b"\x01" + bytes(31)], [Sym("s"), bytes(32)]]]
        small = Rec("op:start-session", "1.0", public_key(b"\x01" + bytes(31)), start.fields[2], forged)
        await client.send(small)
        assert "signature" in await client.aborted()


@trio_test_real
async def test_one_key_for_two_sessions_of_two_locations() -> None:
    """Keys are per session; the peer takes care of its own."""
    async with world() as found:
        key = SigningKey.generate()
        sessions = []
        for name in ("one", "two"):
            client = await (await found.place(name)).connect(found.uri, key=key)
            await client.shake_hands()
            sessions.append(client)
        assert sessions[0].session_id != sessions[1].session_id
        greeter = await sessions[1].fetch(GREETER)
        position = sessions[1].position()
        await sessions[1].tell(greeter, obj(position))
        assert (await sessions[1].message_to(export(position))).args == ["Hello"]
