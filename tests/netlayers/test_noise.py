"""noise: peers that prove who they are, addresses, and attackers with a socket."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio

import durable
import ocapn
from ocapn import (
    ConnectFailed,
    E,
    Identity,
    Limits,
    NoiseNetlayer,
    Peer,
    PeerLocator,
    identity_file,
    open_peer,
    send_only,
)
from ocapn.errors import BadLocator, RemoteProtocolError
from ocapn.netlayers.base import Channel, ChannelBroken
from ocapn.netlayers.noise import NoiseChannel, parse_address
from ocapn.netlayers.websocket import WebSocketNetlayer
from ocapn.noise.handshake import FIRST, NoiseHandshake
from ocapn.noise.protocol import KeyPair
from ocapn.testing import check_netlayer
from tests.netlayers import makers
from tests.peer.support import Echo, Recorder, between, far
from tests.support import trio_test_real, until

ALICE, BOB, MALLORY = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
NOBODY = "127.0.0.1:1"


def at(address: str, identity: Identity = BOB) -> PeerLocator:
    return PeerLocator("noise", identity.designator, {"addr": address})


def address_of(peer: Peer) -> str:
    return peer.locator("noise").hints["addr"]


@trio_test_real
async def test_contract() -> None:
    await check_netlayer(
        makers.noise,
        nobody=[at(NOBODY), at("host.invalid:9")],
        malformed=[
            PeerLocator("noise", BOB.designator),
            PeerLocator("noise", "bob", {"addr": "127.0.0.1:9"}),
            *map(at, ("127.0.0.1", ":9", "h:0", "h:65536", "h:9,", "[::1:9", "a b:9", ",".join(["h:9"] * 9))),
        ],
    )


@trio_test_real
async def test_a_message_of_the_largest_size() -> None:
    async with open_peer([NoiseNetlayer()]) as a, open_peer([NoiseNetlayer()]) as b:
        ref = await far(a, b, Echo())
        data = os.urandom(900_000)
        assert await E(ref).echo(data) == data


# Who it is


@trio_test_real
async def test_another_peer_at_that_address() -> None:
    async with open_peer([NoiseNetlayer(identity=MALLORY)]) as there, open_peer([NoiseNetlayer()]) as here:
        with pytest.raises(ConnectFailed, match="nobody there is that peer"):
            await here.connect(at(address_of(there), BOB))
        assert there.sessions == here.sessions == []


@trio_test_real
async def test_a_location_that_is_not_the_one_that_was_proved(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    netlayer = NoiseNetlayer(listen=False, identity=MALLORY)
    netlayer.location = at(NOBODY, ALICE)
    async with open_peer([NoiseNetlayer(identity=BOB)]) as b, open_peer([netlayer]) as mallory:
        with pytest.raises(ConnectFailed, match="not the one that the netlayer authenticated"):
            await mallory.connect(b.locator())
        assert b.sessions == []


@trio_test_real
async def test_one_who_listens_and_names_another_location() -> None:
    netlayer = NoiseNetlayer(identity=MALLORY)
    async with open_peer([netlayer]) as mallory, open_peer([NoiseNetlayer()]) as here:
        true = mallory.locator()
        netlayer.location = mallory.node.own[0] = at(address_of(mallory), ALICE)
        with pytest.raises(ConnectFailed, match=f"{true.designator}.* was dialled, and .* answered"):
            await here.connect(true)


@trio_test_real
async def test_it_is_the_same_again_with_its_baggage(tmp_path: Path) -> None:
    designators = []
    for _ in range(2):
        with durable.open_baggage(tmp_path / "bag") as baggage:
            async with open_peer([NoiseNetlayer()], baggage=baggage) as peer:
                designators.append(peer.locator().designator)
    assert designators[0] == designators[1]


@trio_test_real
async def test_a_key_that_is_given_is_not_kept_and_is_to_be_given_again(tmp_path: Path) -> None:
    """The sessions of a baggage are those of one peer: it is not opened as another."""

    async def opened(identity: Identity | None) -> str:
        with durable.open_baggage(tmp_path / "bag") as baggage:
            async with open_peer([NoiseNetlayer(identity=identity)], baggage=baggage) as peer:
                return peer.locator().designator

    for _ in range(2):
        assert await opened(BOB) == BOB.designator
    for other, what in ((None, "no identity was given"), (ALICE, f"{ALICE.designator} was given")):
        with pytest.raises(
            ConnectFailed, match=f"the baggage is that of the peer {BOB.designator}, and {what}"
        ):
            await opened(other)
    for file in (tmp_path / "bag").iterdir():
        data = file.read_bytes()
        assert BOB.seed not in data
        assert BOB.seed.hex().encode() not in data


@pytest.mark.parametrize("text", ["", "bob", "abcd", 64 * "x", 51 * "a"])
def test_a_baggage_that_has_kept_what_is_no_identity(text: str) -> None:
    with pytest.raises(ConnectFailed, match="the baggage is that of the peer"):
        NoiseNetlayer().be_again(text)


def test_a_drawn_key_that_was_kept_is_not_that_which_is_given() -> None:
    for make in (NoiseNetlayer, WebSocketNetlayer):
        before = make()
        make(identity=Identity(bytes.fromhex(before.identity))).be_again(before.identity)
        with pytest.raises(ConnectFailed, match=r"and .* was given"):
            make(identity=BOB).be_again(before.identity)
        again = make()
        again.be_again(before.identity)
        assert again.location == before.location


def test_it_is_the_same_again_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    identity = identity_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert identity_file(path).designator == identity.designator
    assert path.read_bytes() == identity.seed
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_another_process_has_made_meanwhile_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "key"
    real = os.link

    def later(source: Path, target: Path) -> None:
        target.write_bytes(BOB.seed)
        target.chmod(0o600)
        real(source, target)

    with mock.patch("os.link", later):
        assert identity_file(path).designator == BOB.designator
    assert list(tmp_path.iterdir()) == [path]


def _short(path: Path) -> None:
    path.write_bytes(bytes(31))
    path.chmod(0o600)


def _long(path: Path) -> None:
    path.write_bytes(bytes(33))
    path.chmod(0o600)


def _open(path: Path) -> None:
    path.write_bytes(bytes(32))
    path.chmod(0o640)


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_short, "has not 32 bytes"),
        (_long, "has not 32 bytes"),
        (_open, "is open to other users: chmod 600"),
        (_pipe, "is no file"),
        (Path.mkdir, "is no file"),
        (
            lambda path: path.symlink_to(path.parent / "no" / "where"),
            "cannot be used: No such file or directory",
        ),
    ],
)
def test_an_identity_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    path = tmp_path / "key"
    make(path)
    with pytest.raises(ConnectFailed, match=said):
        identity_file(path)


# Addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("h:1", "h", 1),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[::1]:9", "::1", 9),
        ("a-b.example:80", "a-b.example", 80),
    ],
)
def test_an_address(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@trio_test_real
async def test_the_first_address_that_is_that_peer_is_taken() -> None:
    async with (
        open_peer([NoiseNetlayer(identity=BOB)]) as b,
        open_peer([NoiseNetlayer(identity=MALLORY)]) as mallory,
        open_peer([NoiseNetlayer()]) as a,
    ):
        session = await a.connect(at(",".join([NOBODY, "[::1]:1", address_of(mallory), address_of(b)])))
        assert session.location == b.locator()


@trio_test_real
async def test_an_address_that_does_not_answer_is_raced() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hangs = f"127.0.0.1:{silent.getsockname()[1]}"
        async with open_peer([NoiseNetlayer(identity=BOB)]) as b, open_peer([NoiseNetlayer()]) as a:
            with trio.fail_after(5):
                session = await a.connect(at(f"{hangs},{address_of(b)}"))
            assert session.location == b.locator()


def test_where_it_says_that_it_is() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ValueError, match="every address of this machine; advertise="):
            NoiseNetlayer(host)
        NoiseNetlayer(host, listen=False)
    with pytest.raises(BadLocator, match="an address is host:port"):
        NoiseNetlayer(advertise=["example.org"])
    with pytest.raises(ValueError, match="up to 8"):
        NoiseNetlayer(advertise=["h:1"] * 9)


@trio_test_real
async def test_it_names_the_addresses_that_it_was_told() -> None:
    netlayer = NoiseNetlayer("0.0.0.0", advertise=["example.org:1", "[2001:db8::1]:2"])
    async with open_peer([netlayer]) as peer:
        assert address_of(peer) == "example.org:1,[2001:db8::1]:2"
        assert peer.locator().uri.endswith("?addr=example.org%3A1%2C%5B2001%3Adb8%3A%3A1%5D%3A2")
        assert PeerLocator.parse(peer.locator().uri).hints == peer.locator().hints


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_over_ipv6_and_by_a_name(host: str) -> None:
    @trio_test_real
    async def run() -> None:
        try:
            async with open_peer([NoiseNetlayer(host)]) as b, open_peer([NoiseNetlayer(listen=False)]) as a:
                await a.connect(b.locator())
                _, _, port = address_of(b).rpartition(":")
                if host == "::1":
                    assert address_of(b) == f"[::1]:{port}"
                    return
                async with open_peer([NoiseNetlayer(listen=False)]) as other:
                    await other.connect(
                        PeerLocator("noise", b.locator().designator, {"addr": f"localhost:{port}"})
                    )
        except ConnectFailed as error:
            if host == "::1" and "cannot listen" in str(error):
                pytest.skip("no IPv6 here")
            raise

    run()


@trio_test_real
async def test_names_that_take_long_to_look_up_hold_up_nothing_else() -> None:
    """Who wrote the locator may have chosen them."""
    going_on = threading.Event()

    def slow(name: str, *_: object, **__: object) -> list[object]:
        going_on.wait(10)
        return []

    locators = [
        PeerLocator("noise", Identity(bytes([50 + number]) * 32).designator, {"addr": "a.test:1,b.test:1"})
        for number in range(30)
    ]
    async with open_peer([NoiseNetlayer(listen=False)]) as a:
        with mock.patch("socket.getaddrinfo", slow):
            async with trio.open_nursery() as nursery:
                for locator in locators:
                    nursery.start_soon(a.connect, locator)
                await trio.sleep(0.5)
                with trio.fail_after(2):
                    await trio.to_thread.run_sync(int)
                going_on.set()
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("host", ["0", "0.0"])
def test_other_ways_to_write_every_address(host: str) -> None:
    @trio_test_real
    async def run() -> None:
        for netlayer in (NoiseNetlayer(host), WebSocketNetlayer(host, insecure_bind=True)):
            with pytest.raises(ConnectFailed, match="stands for every address of this machine"):
                async with open_peer([netlayer]):
                    pass

    run()


# What arrives when


@trio_test_real
async def test_what_comes_in_one_piece_with_the_last_of_the_handshake() -> None:
    async with open_peer([NoiseNetlayer(identity=BOB)]) as b, middle(b) as way:
        held: list[bytes] = []

        def together(dialler: bool, data: bytes) -> bytes:
            if not dialler or (not held and len(data) < 100):
                return data
            held.append(data)
            return b"" if len(held) == 1 else b"".join(held) if len(held) == 2 else data

        way.change = together
        async with open_peer([NoiseNetlayer(listen=False)]) as a:
            await a.connect(at(way.address))
        assert len(held) >= 2


@trio_test_real
async def test_a_packet_that_does_not_end() -> None:
    """In time, or at all."""
    limits = Limits(frame_progress=0.2)
    listener = await NoiseNetlayer(identity=BOB).listen(limits)
    assert listener is not None
    for ends in (False, True):
        near, far = await both_ends(listener, limits)
        await near._stream.send_all(near._wrapped(b"<1'a1+>")[:-1])
        if ends:
            await near.aclose()
        error: type[Exception] = ChannelBroken if ends else RemoteProtocolError
        with trio.fail_after(5), pytest.raises(error, match=r"inside a message|more than 0.2 s to arrive"):
            await far.receive(1)
        for channel in (near, far):
            await channel.aclose()
    await listener.aclose()


async def both_ends(listener: Any, limits: Limits) -> tuple[NoiseChannel, NoiseChannel]:
    ends: list[Any] = []

    async def accept() -> None:
        ends.append(await listener.accept())
        await ends[0].begin()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        near = await NoiseNetlayer(listen=False).dial(listener.location, limits)
    assert isinstance(near, NoiseChannel)
    return near, ends[0]


@trio_test_real
async def test_what_finds_no_room_in_the_socket_goes_out_before_what_follows() -> None:
    """It was encrypted already: the next packet does not open without it."""
    limits = Limits()
    listener = await NoiseNetlayer(identity=BOB).listen(limits)
    assert listener is not None
    near, far = await both_ends(listener, limits)

    def full(fd: int, data: bytes) -> int:
        raise BlockingIOError

    messages = [b"<1'a%d+>" % number for number in range(3)]
    with mock.patch("os.write", full):
        assert near.send_now(messages[:1]) == 1
    assert near.unsent
    await near.send([])
    assert near.send_now(messages[1:2]) == 1
    await near.send(messages[2:])
    got: list[bytes] = []
    while len(got) < 3:
        got += await far.receive(3)
    assert got == messages
    await near.send([])
    for channel in (near, far):
        await channel.aclose()
    await listener.aclose()


@pytest.mark.parametrize("offers", [0, 7])
def test_no_codec_in_common_is_said(offers: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    netlayer = NoiseNetlayer(listen=False)
    real = netlayer.handshake

    def handshake(responder: bytes | None = None) -> NoiseHandshake:
        made = real(responder)
        made._codecs = (offers,)
        return made

    netlayer.handshake = handshake  # type: ignore[method-assign]

    @trio_test_real
    async def run() -> None:
        async with open_peer([NoiseNetlayer(identity=BOB)]) as b, open_peer([netlayer]) as a:
            if not offers:
                await a.connect(b.locator())
                return
            with pytest.raises(ConnectFailed, match="the two peers have no codec in common") as caught:
                await a.connect(b.locator())
            assert caught.value.lasting
            assert b.sessions == []

    run()
    assert ("no codec in common" in caplog.text) is bool(offers)


@trio_test_real
async def test_of_two_addresses_that_answer_at_once_one_is_closed() -> None:
    async with open_peer([NoiseNetlayer(identity=BOB)]) as b, middle(b) as one, middle(b) as other:
        netlayer = NoiseNetlayer(listen=False)
        closed = 0
        both = trio.Event()
        waiting = 0
        real_reach, real_close = NoiseNetlayer._reach, NoiseChannel.aclose

        async def reach(self: NoiseNetlayer, *args: Any) -> NoiseChannel:
            nonlocal waiting
            channel = await real_reach(self, *args)
            waiting += 1
            if waiting == 2:
                both.set()
            with trio.CancelScope(shield=True):
                await both.wait()
            return channel

        async def aclose(self: NoiseChannel) -> None:
            nonlocal closed
            closed += 1
            await real_close(self)

        with (
            mock.patch.object(NoiseNetlayer, "_reach", reach),
            mock.patch.object(NoiseChannel, "aclose", aclose),
        ):
            channel = await netlayer.dial(at(f"{one.address},{other.address}"), Limits())
            assert closed == 1
            await channel.aclose()


@trio_test_real
async def test_a_dial_that_is_cancelled_while_it_waits_for_the_disk_closes_its_connection() -> None:
    async with open_peer([NoiseNetlayer(identity=BOB)]) as b, open_peer([NoiseNetlayer(listen=False)]) as a:
        closed: list[Channel] = []
        real = NoiseChannel.aclose

        async def aclose(self: NoiseChannel) -> None:
            closed.append(self)
            await real(self)

        with (
            mock.patch.object(a, "settled", trio.sleep_forever),
            mock.patch.object(NoiseChannel, "aclose", aclose),
        ):
            with trio.move_on_after(0.3):
                await a.connect(b.locator())
            await until(lambda: bool(closed))


@trio_test_real
async def test_keys_cost_nothing_so_sessions_that_others_begin_are_bounded() -> None:
    """Those go first whose peers hold nothing."""
    limits = Limits(suspended_sessions=3)
    async with open_peer([NoiseNetlayer(identity=BOB)], limits=limits) as b:
        recorder = Recorder()
        async with open_peer([Once()]) as friend:
            ref = await friend.enliven(b.export(recorder))
            await E(ref).note(1)
            await until(lambda: all(one.durable for one in (*friend.sessions, *b.sessions)))
            kept = between(b, friend)
            for connection in list(b._connections.values()):
                await connection.channel.aclose()
            await until(lambda: kept.status == "suspended")
            for _ in range(6):
                async with open_peer([Once()]) as stranger:
                    await stranger.connect(b.locator())
                    theirs = between(b, stranger)
                    await until(lambda theirs=theirs: theirs.durable)  # type: ignore[misc]
                    for connection in list(b._connections.values()):
                        await connection.channel.aclose()
                    await until(lambda theirs=theirs: theirs.status != "live")  # type: ignore[misc]
            assert len(b.sessions) <= 3
            assert kept in b.sessions


class Once(NoiseNetlayer):
    """Dials once, so that what is cut stays so."""

    def __init__(self) -> None:
        super().__init__(listen=False)
        self._dialled = False

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        if self._dialled:
            raise ConnectFailed("once is enough")
        self._dialled = True
        return await super().dial(locator, limits)


# Attackers with a socket


async def dialled(peer: Peer) -> trio.SocketStream:
    return await trio.open_tcp_stream(*parse_address(address_of(peer)))


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"<16'op:start-session",
        b"\0\0",
        b"\xff\xff",
        FIRST.to_bytes(2, "big") + bytes(FIRST),
        FIRST.to_bytes(2, "big") + BOB.public_key + bytes(FIRST - 32),
    ],
)
def test_what_is_no_handshake_is_closed_at_once(said: bytes) -> None:
    @trio_test_real
    async def run() -> None:
        async with open_peer([NoiseNetlayer(identity=BOB)]) as b:
            async with await dialled(b) as stream:
                await stream.send_all(said)
                with trio.fail_after(5):
                    assert await ended(stream)
            assert b._acceptor.unauthenticated == {}
            async with open_peer([NoiseNetlayer()]) as a:
                await a.connect(b.locator())

    run()


async def ended(stream: trio.SocketStream) -> bool:
    try:
        return not await stream.receive_some(1)
    except trio.BrokenResourceError:
        return True


def first_of(identity: Identity = MALLORY) -> bytes:
    shake = NoiseHandshake(
        identity, KeyPair(os.urandom(32)), KeyPair(os.urandom(32)), responder=BOB.public_key
    )
    return FIRST.to_bytes(2, "big") + shake.first()


@pytest.mark.parametrize("said", [b"", b"\0", first_of()[:40], first_of()])
def test_a_handshake_that_is_not_finished_is_closed_after_a_while(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    @trio_test_real
    async def run() -> None:
        limits = Limits(handshake=0.2)
        async with open_peer([NoiseNetlayer(identity=BOB)], limits=limits) as b:
            async with await dialled(b) as stream:
                await stream.send_all(said)
                with trio.fail_after(5):
                    while not await ended(stream):
                        pass
            assert b._acceptor.unauthenticated == {}

    run()
    assert "no handshake of the netlayer within 0.2 s" in caplog.text


@pytest.mark.parametrize("raised", [False, True])
def test_slow_handshakes_from_500_sockets_keep_nobody_out(raised: bool) -> None:
    """With the limit for one source the most are closed; with it raised all wait, and others get in beside them."""

    @trio_test_real
    async def run() -> None:
        limits = Limits(unauthenticated_per_source=1000) if raised else Limits()
        waiting = 500 if raised else 32
        async with (
            open_peer([NoiseNetlayer(identity=BOB)], limits=limits) as b,
            contextlib.AsyncExitStack() as sockets,
        ):
            for _ in range(500):
                slow = trio.socket.socket()
                sockets.callback(slow.close)
                await slow.bind(("127.0.0.2", 0))  # another source than that of the peer that means well
                await slow.connect(parse_address(address_of(b)))
                await slow.send(first_of()[:30])
            await until(lambda: sum(b._acceptor.unauthenticated.values()) == waiting)
            async with open_peer([NoiseNetlayer(listen=False)]) as a:
                with trio.fail_after(10):
                    await a.connect(b.locator())
            assert b._acceptor.unauthenticated == {"noise 127.0.0.2": waiting}

    run()


# On the way


class Middle:
    """Passes on what two peers say, and may change it: `change` gets what comes from the dialler or the listener."""

    def __init__(self, to: tuple[str, int], listener: trio.SocketListener) -> None:
        self._to = to
        self._listener = listener
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        self.change: Callable[[bool, bytes], bytes] = lambda forth, data: data

    async def run(self) -> None:
        await trio.serve_listeners(self._pass_on, [self._listener])

    async def _pass_on(self, near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream(*self._to) as far, trio.open_nursery() as nursery:
            nursery.start_soon(self._one_way, True, near, far, nursery.cancel_scope)
            nursery.start_soon(self._one_way, False, far, near, nursery.cancel_scope)

    async def _one_way(
        self, forth: bool, source: trio.SocketStream, to: trio.SocketStream, over: trio.CancelScope
    ) -> None:
        try:
            async for data in source:
                await to.send_all(self.change(forth, bytes(data)))
        except trio.BrokenResourceError:
            pass
        over.cancel()


@asynccontextmanager
async def middle(peer: Peer) -> AsyncIterator[Middle]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    between_them = Middle(parse_address(address_of(peer)), listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between_them.run)
        yield between_them
        nursery.cancel_scope.cancel()


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("change", [flip, lambda data: data + data, lambda data: b"", lambda data: data[:-5]])
@pytest.mark.parametrize("forth", [False, True])
def test_what_is_altered_repeated_or_left_out_costs_a_connection_and_nothing_else(
    forth: bool, change: Callable[[bytes], bytes]
) -> None:
    """The durable session goes on over the next one."""

    @trio_test_real
    async def run() -> None:
        async with (
            open_peer([NoiseNetlayer(identity=BOB)]) as b,
            middle(b) as way,
            open_peer([NoiseNetlayer(listen=False)]) as a,
        ):
            recorder = Recorder()
            locator = at(way.address)
            ref = await a.enliven(ocapn.SturdyRef(locator, b.export(recorder).swiss))
            session = between(a, b)
            await until(lambda: session.durable and between(b, a).durable)
            events = session.events()
            said = 0

            def once(dialler: bool, data: bytes) -> bytes:
                nonlocal said
                said += dialler is forth
                return change(data) if dialler is forth and said == 5 else data

            way.change = once
            for number in range(30):
                send_only(ref).note(number)
                await trio.sleep(0.005)
            assert await E(ref).note(30) is None
            assert recorder.seen == list(range(31))
            assert between(a, b) is session
            assert (await events.receive()).status == "suspended"
            assert (await events.receive()).status == "live"

    run()


@pytest.mark.parametrize("change", [flip, lambda data: data + data, lambda data: data[:-5]])
@pytest.mark.parametrize("forth", [False, True])
def test_a_handshake_that_is_altered_is_no_session(forth: bool, change: Callable[[bytes], bytes]) -> None:
    @trio_test_real
    async def run() -> None:
        async with (
            open_peer([NoiseNetlayer(identity=BOB)], limits=Limits(handshake=0.5)) as b,
            middle(b) as way,
            open_peer([NoiseNetlayer(listen=False)], limits=Limits(handshake=0.5)) as a,
        ):
            way.change = lambda dialler, data: change(data) if dialler is forth else data
            with pytest.raises(ConnectFailed):
                await a.connect(at(way.address))
            assert a.sessions == b.sessions == []

    run()


@trio_test_real
async def test_what_was_recorded_is_of_no_use() -> None:
    """Who plays the dialler's whole side once more is not let in."""
    heard: list[bytes] = []

    def listen(dialler: bool, data: bytes) -> bytes:
        if dialler:
            heard.append(data)
        return data

    async with open_peer([NoiseNetlayer(identity=BOB)]) as b, middle(b) as way:
        recorder = Recorder()
        swiss = b.export(recorder).swiss
        way.change = listen
        async with open_peer([NoiseNetlayer(listen=False)], durable="never") as a:
            await E(await a.enliven(ocapn.SturdyRef(at(way.address), swiss))).note(1)
        assert recorder.seen == [1]
        async with await dialled(b) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                for data in heard:
                    await stream.send_all(data)
            with trio.fail_after(5):
                while not await ended(stream):
                    pass
        assert recorder.seen == [1]
        assert all(b"note" not in data and swiss not in data for data in heard)


@trio_test_real
async def test_a_durable_session_moves_to_another_address() -> None:
    """Of a peer that was restarted elsewhere: who it has a session with finds it there from then on."""
    store = durable.MemoryStore()
    async with open_peer([NoiseNetlayer()]) as a:
        recorder = Recorder()
        sturdyref = a.export(recorder)
        async with open_peer([NoiseNetlayer()], baggage=durable.Baggage(store)) as b:
            await E(await b.enliven(sturdyref)).note(1)
            session = between(a, b)
            await until(lambda: session.durable and between(b, a).durable)
            before = b.locator()
        async with open_peer([NoiseNetlayer()], baggage=durable.Baggage(store.reopened())) as b:
            await until(lambda: session.status == "live")
            assert b.locator() == before == session.location
            assert address_of(b) != before.hints["addr"]
            assert session.location.hints == b.locator().hints
            assert between(a, b) is session


@trio_test_real
async def test_a_location_of_another_transport_than_the_connection() -> None:
    """Else somebody could come in where nothing is proved, and be taken for a peer that is proved elsewhere."""
    tcp = ocapn.TcpTestingNetlayer(listen=False)
    tcp.location = at(NOBODY, ALICE)
    async with (
        open_peer([NoiseNetlayer(identity=BOB), ocapn.TcpTestingNetlayer()]) as b,
        open_peer([tcp]) as mallory,
    ):
        with pytest.raises(ConnectFailed, match="of another transport than the connection"):
            await mallory.connect(b.locator("tcp-testing-only"))
        assert b.sessions == []


@trio_test_real
async def test_who_decides_on_sessions_sees_the_binding() -> None:
    seen: list[ocapn.Introduction] = []

    def decide(introduction: ocapn.Introduction) -> bool:
        seen.append(introduction)
        return True

    async with open_peer([NoiseNetlayer()], authenticate=decide) as b, open_peer([NoiseNetlayer()]) as a:
        await a.connect(b.locator())
        ((_, connection),) = a._connections.items()
        assert [one.binding for one in seen] == [connection.channel.binding]
        assert len(connection.channel.binding or b"") == 32
        assert [one.locator for one in seen] == [a.locator()]
