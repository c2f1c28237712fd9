"""websocket: who is proved, TLS, what other programs send to a port, and the bytes that other implementations know."""

from __future__ import annotations

import base64
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Any
from unittest import mock

import pytest
import trio
import trustme
from wsproto.frame_protocol import CloseReason, FrameProtocol

import durable
import ocapn
from ocapn import ConnectFailed, E, Identity, Limits, Peer, PeerLocator, open_peer, send_only
from ocapn.captp.tables import Export
from ocapn.codec.operations import read_signature
from ocapn.codec.syrup import Record, decode
from ocapn.crypto import verify
from ocapn.dialling import _Redial
from ocapn.errors import BadLocator, RemoteProtocolError
from ocapn.netlayers.websocket import WebSocketChannel, WebSocketNetlayer
from ocapn.testing import check_netlayer
from tests.netlayers import makers
from tests.peer.support import Echo, Recorder, between, far
from tests.support import trio_test_real, until

ALICE, BOB, MALLORY = (Identity(bytes([number]) * 32) for number in (1, 2, 3))

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("127.0.0.1")
DER = ssl.PEM_cert_to_DER_cert(CERTIFICATE.cert_chain_pems[0].bytes().decode())


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(context)
    return context


def trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


def secure(*, listen: bool, certificate: bytes | None = DER, **options: Any) -> WebSocketNetlayer:
    tls = server_context() if listen else None
    return WebSocketNetlayer(listen=listen, tls=tls, trust=trust(), certificate=certificate, **options)


def at(url: str, identity: Identity = BOB) -> PeerLocator:
    return PeerLocator("websocket", identity.designator, {"url": url})


def url_of(peer: Peer) -> str:
    return peer.locator("websocket").hints["url"]


@trio_test_real
async def test_contract() -> None:
    await check_netlayer(
        makers.websocket,
        nobody=[at("ws://127.0.0.1:1/"), at("ws://host.invalid/")],
        malformed=[
            PeerLocator("websocket", BOB.designator),
            PeerLocator("websocket", "bob", {"url": "ws://127.0.0.1:9/"}),
            *map(
                at,
                (
                    "http://127.0.0.1/",
                    "ws://",
                    "ws:///x",
                    "ws://h:99999/",
                    "ws://a@h/",
                    "ws://h/#x",
                    "ws://h/ä",
                ),
            ),
        ],
    )


@trio_test_real
async def test_contract_with_tls() -> None:
    await check_netlayer(secure)


@trio_test_real
async def test_a_peer_over_tls_and_one_that_is_not_trusted() -> None:
    async with open_peer([secure(listen=True, identity=BOB)]) as b, open_peer([secure(listen=False)]) as a:
        assert url_of(b).startswith("wss://127.0.0.1:")
        ref = await far(b, a, Echo())
        data = os.urandom(900_000)
        assert await E(ref).echo(data) == data
        async with open_peer([WebSocketNetlayer(listen=False)]) as other:  # which trusts those of the system
            with pytest.raises(ConnectFailed, match=r"no TLS: .*certificate verify failed"):
                await other.connect(b.locator())
            with pytest.raises(ConnectFailed, match="in the handshake"):
                await other.connect(at(url_of(b).replace("wss:", "ws:")))


# Durable sessions


@pytest.mark.parametrize("tls", [False, True])
def test_a_durable_session_goes_on_after_a_cut(tls: bool) -> None:
    @trio_test_real
    async def run() -> None:
        make = secure if tls else makers.websocket
        async with open_peer([make(listen=True)]) as b, open_peer([make(listen=False)]) as a:
            recorder = Recorder()
            ref = await far(b, a, recorder)
            session = between(a, b)
            await until(lambda: session.durable and between(b, a).durable)
            events = session.events()
            (connection,) = a._connections.values()
            channel = connection.channel
            assert isinstance(channel, WebSocketChannel)
            for number in range(10):
                send_only(ref).note(number)
            await channel.aclose()
            send_only(ref).note(10)
            assert await E(ref).note(11) is None
            assert recorder.seen == list(range(12))
            assert [(await events.receive()).status for _ in range(2)] == ["suspended", "live"]
            bindings = {one.channel.binding for peer in (a, b) for one in peer._connections.values()}
            assert bindings == {sha256(DER).digest() if tls else b""}

    run()


@pytest.mark.parametrize(
    ("options", "durable"),
    [
        ({"tls": True, "certificate": None}, False),  # it does not know which one those who dial see
        ({"url": "wss://example.org/"}, False),
        ({"url": "wss://example.org/", "certificate": DER}, True),
        ({"url": "ws://example.org/"}, True),
        ({}, True),
    ],
)
def test_where_a_session_may_be_durable(options: dict[str, Any], durable: bool) -> None:
    """As the side that listens sees it. A binding that the two sides do not share would only fail when it is needed."""
    tls = server_context() if options.pop("tls", False) else None
    netlayer = WebSocketNetlayer(tls=tls, **options)

    @trio_test_real
    async def run() -> None:
        listener = await netlayer.listen(Limits())
        assert listener is not None
        port = listener._listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        accepted: list[Any] = []

        async def accept() -> None:
            accepted.append(await listener.accept())
            await accepted[0].begin()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            here = WebSocketNetlayer(listen=False, trust=trust())
            url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
            channel = await here.dial(
                PeerLocator("websocket", netlayer.location.designator, {"url": url}), Limits()
            )
        assert (accepted[0].binding is not None) is durable
        await channel.aclose()
        await accepted[0].aclose()
        await listener.aclose()

    run()


# Who it is


@trio_test_real
async def test_the_bytes_by_which_a_peer_proves_who_it_is() -> None:
    """As other implementations write them, over a connection of its own making."""
    async with open_peer([WebSocketNetlayer(identity=BOB, path="/captp")]) as b:
        stream, frames = await upgraded(b, "/captp")
        drawn = bytes(range(32))
        asked = b"<14'init:peer-auth32:" + drawn + b">"
        await stream.send_all(bytes(frames.send_data(asked, fin=True)))
        answer = await message(stream, frames)
        assert answer.startswith(b"<17'desc:sig-envelope" + asked + b"[7'sig-val[5'eddsa[1'r32:")
        record = decode(answer)
        assert isinstance(record, Record)
        assert verify(BOB.public_key, asked, read_signature(record.fields[1]))
        await stream.aclose()


async def upgraded(peer: Peer, path: str = "/") -> tuple[trio.SocketStream, FrameProtocol]:
    """A connection that any other program could have made."""
    port = int(re.search(r":(\d+)/", url_of(peer))[1])  # type: ignore[index]
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    key = base64.b64encode(os.urandom(16)).decode()
    await stream.send_all(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some()
        assert data
        head += data
    assert head.startswith(b"HTTP/1.1 101")
    return stream, FrameProtocol(True, [])


async def message(stream: trio.SocketStream, frames: FrameProtocol) -> bytes:
    """What the next frame holds; empty at the end."""
    while True:
        for frame in frames.received_frames():
            return bytes(frame.payload)  # type: ignore[arg-type]
        data = await received(stream)
        if not data:
            return b""
        frames.receive_bytes(data)


async def received(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"<14'init:peer-auth31:" + bytes(31) + b">",
        b"<14'init:peer-auth33:" + bytes(33) + b">",
        b"<14'init:peer-auth32:" + bytes(32) + b"1+>",
        b"<14'init:peer-auth>",
        b"<14'init:peer-auth32'" + bytes(32) + b">",
        b"<14'init:peer-auth[32:" + bytes(32) + b"]>",
        b"<14'init:peer-auth32:" + bytes(32) + b">x",
        b"<11'my-location32:" + bytes(32) + b">",
        b"32:" + bytes(32),
        bytes(32),
        b"ocapn-noise-1responder" + bytes(64),
        b"<16'op:start-session3\"1.0>",
    ],
)
def test_it_signs_nothing_but_a_challenge(asked: bytes) -> None:
    with pytest.raises(
        RemoteProtocolError, match="the first message of a websocket is <init:peer-auth :32-bytes>"
    ):
        WebSocketNetlayer(identity=BOB).answer(asked)


@trio_test_real
async def test_another_peer_at_that_place() -> None:
    async with (
        open_peer([WebSocketNetlayer(identity=MALLORY)]) as there,
        open_peer([makers.websocket(listen=False)]) as a,
    ):
        with pytest.raises(ConnectFailed, match="does not prove that it is the one that was dialled"):
            await a.connect(at(url_of(there), BOB))


@pytest.mark.parametrize(
    "change",
    [
        lambda answer, other: other,  # to another challenge
        lambda answer, other: answer[:-20] + bytes([answer[-20] ^ 1]) + answer[-19:],
        lambda answer, other: answer.replace(b"desc:sig-envelope", b"desc:sig-envelops"),
        lambda answer, other: b"<2'ab>",
        lambda answer, other: b"f",
        lambda answer, other: answer + b"f",
    ],
)
def test_an_answer_that_proves_nothing(change: Callable[[bytes, bytes], bytes]) -> None:
    netlayer = WebSocketNetlayer(identity=BOB)
    real = WebSocketNetlayer.answer
    other = real(netlayer, b"<14'init:peer-auth32:" + bytes(32) + b">")
    netlayer.answer = lambda challenge: change(real(netlayer, challenge), other)  # type: ignore[method-assign]

    @trio_test_real
    async def run() -> None:
        async with open_peer([netlayer]) as b, open_peer([makers.websocket(listen=False)]) as a:
            with pytest.raises(ConnectFailed, match="does not prove that it is the one that was dialled"):
                await a.connect(b.locator())

    run()


@trio_test_real
async def test_who_dials_proves_nothing_and_who_answers_is_the_one() -> None:
    async with open_peer([WebSocketNetlayer(identity=BOB)]) as b, open_peer([WebSocketNetlayer()]) as a:
        await far(b, a, Echo())
        assert between(a, b).authenticated
        assert not between(b, a).authenticated


@trio_test_real
async def test_a_location_that_is_not_the_one_that_was_proved() -> None:
    netlayer = WebSocketNetlayer(identity=MALLORY)
    async with open_peer([netlayer]) as there, open_peer([WebSocketNetlayer()]) as a:
        true = there.locator()
        netlayer.location = there.node.own[0] = at(url_of(there), ALICE)
        with pytest.raises(ConnectFailed, match=r"was dialled, and .* answered"):
            await a.connect(true)


# What comes to a port


@pytest.mark.parametrize(
    ("said", "answer", "logged"),
    [
        (b"hello\r\n\r\n", b"HTTP/1.1 400", "that is no WebSocket client"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400", "that is no WebSocket client"),
        (b"\x16\x03\x01\x02\0\x01" + b"\r\n\r\n", b"HTTP/1.1 400", "that is no WebSocket client"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: \xff\r\n\r\n",
            b"HTTP/1.1 400",
            "that is no WebSocket client",
        ),
        (
            b"GET /\xff HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"HTTP/1.1 400",
            "that is no WebSocket client",
        ),
        (
            b"GET /x HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            b"HTTP/1.1 404",
            "another path",
        ),
        (b"GET / HTTP/1.1\r\n" + 9000 * b"x", b"", "the head of HTTP has more than 8,192 bytes"),
    ],
)
def test_what_is_no_websocket_client(
    said: bytes, answer: bytes, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    @trio_test_real
    async def run() -> None:
        async with open_peer([WebSocketNetlayer(identity=BOB)]) as b:
            port = int(re.search(r":(\d+)/", url_of(b))[1])  # type: ignore[index]
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(said)
                got = b""
                with trio.fail_after(5):
                    while data := await received(stream):
                        got += data
                assert got.startswith(answer)
            await until(lambda: not b._acceptor.unauthenticated)

    run()
    assert logged in caplog.text


@pytest.mark.parametrize("steps", ["nothing", "half a request", "no challenge"])
def test_a_handshake_that_is_not_finished_is_closed_after_a_while(steps: str) -> None:
    @trio_test_real
    async def run() -> None:
        async with open_peer([WebSocketNetlayer(identity=BOB)], limits=Limits(handshake=0.2)) as b:
            if steps == "no challenge":
                stream, _ = await upgraded(b)
            else:
                port = int(re.search(r":(\d+)/", url_of(b))[1])  # type: ignore[index]
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                if steps == "half a request":
                    await stream.send_all(b"GET / HTTP/1.1\r\nHost")
            with trio.fail_after(5):
                while await received(stream):
                    pass
            await stream.aclose()
            await until(lambda: not b._acceptor.unauthenticated)

    run()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (lambda frames: frames.send_data("text", fin=True), "each message is a binary one"),
        (lambda frames: b"\x83\x80\0\0\0\0", "Invalid opcode"),
        (lambda frames: b"\x82\x01x", "unmasked"),
        (lambda frames: frames.send_data(bytes(9000), fin=True), "more than 8192 bytes"),
        (
            lambda frames: frames.send_data(bytes(5000), fin=False) + frames.send_data(bytes(5000), fin=True),
            "more than 8192",
        ),
        (lambda frames: b"\xc2\x80\0\0\0\0", "Reserved bit"),
        (lambda frames: b"\x80\x80\0\0\0\0", "unexpected CONTINUATION"),
    ],
)
def test_frames_that_are_none_of_this_netlayer(
    frame: Callable[[FrameProtocol], bytes], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    @trio_test_real
    async def run() -> None:
        async with open_peer([WebSocketNetlayer(identity=BOB)]) as b:
            stream, frames = await upgraded(b)
            await stream.send_all(bytes(frame(frames)))
            with trio.fail_after(5), suppress(AssertionError):
                while await received(stream):
                    pass
            await stream.aclose()

    run()
    assert said in caplog.text


@trio_test_real
async def test_pings_are_answered_and_the_last_is_enough() -> None:
    async with open_peer([WebSocketNetlayer(identity=BOB)]) as b:
        stream, frames = await upgraded(b)
        await stream.send_all(b"".join(bytes(frames.ping(b"%d" % number)) for number in range(3)))
        assert await message(stream, frames) == b"2"
        await stream.send_all(bytes(frames.ping(b"again")))
        assert await message(stream, frames) == b"again"
        await stream.aclose()


@trio_test_real
async def test_a_message_that_does_not_end_in_time() -> None:
    netlayer = WebSocketNetlayer(identity=BOB)
    async with open_peer([netlayer], limits=Limits(frame_progress=0.2)) as b:
        stream, frames = await upgraded(b)
        await stream.send_all(bytes(frames.send_data(b"<14'", fin=False)))
        with trio.fail_after(5):
            while await received(stream):
                pass
        await stream.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 \xff\r\nUpgrade: websocket\r\nConnection: \xff\r\n\r\n",
        b"",
        10_000 * b"x",
    ],
)
def test_a_server_that_is_none_of_this_netlayer(answer: bytes) -> None:
    @trio_test_real
    async def run() -> None:
        async def serve(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            with suppress(trio.BrokenResourceError):
                await stream.send_all(answer)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/"
        async with trio.open_nursery() as nursery, open_peer([makers.websocket(listen=False)]) as a:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            with pytest.raises(ConnectFailed):
                await a.connect(at(url))
            nursery.cancel_scope.cancel()

    run()


@trio_test_real
async def test_what_is_no_tls_ends_its_connection_alone() -> None:
    async with open_peer([secure(listen=True, identity=BOB)]) as b, open_peer([secure(listen=False)]) as a:
        await a.connect(b.locator())
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\0\5hello", b""):
            port = int(re.search(r":(\d+)/", url_of(b))[1])  # type: ignore[index]
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(said)
                await stream.send_eof()
                with trio.fail_after(5):
                    while await received(stream):
                        pass
        await until(lambda: not b._acceptor.unauthenticated)
        assert len(b.sessions) == 1


@pytest.mark.parametrize(
    "host", [".", "a..b", "xn--", "\u2488com", 70 * "a", "-", "127.0.0.1\0", "127.0.0.1\x01"]
)
def test_hosts_that_cannot_be(host: str) -> None:
    @trio_test_real
    async def run() -> None:
        async with open_peer([makers.websocket(listen=False)]) as a:
            for scheme in ("ws", "wss"):
                with pytest.raises((ConnectFailed, BadLocator)):
                    await a.connect(at(f"{scheme}://{host}:9/"))

    run()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_host_that_is_found_and_cannot_be_written(scheme: str) -> None:
    @trio_test_real
    async def run() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
        with mock.patch("socket.getaddrinfo", return_value=found):
            async with open_peer([makers.websocket(listen=False)], limits=Limits(handshake=0.3)) as a:
                for host in ("\u00e4.example", ".x"):
                    with pytest.raises(ConnectFailed, match=r"no host can be called|did not answer"):
                        await a.connect(at(f"{scheme}://{host}:{port}/"))
        await listener.aclose()

    run()


# Where it is


def test_what_it_binds_to() -> None:
    with pytest.raises(
        ValueError, match="ws:// is not encrypted, so it binds to loopback addresses, not to "
    ):
        WebSocketNetlayer("0.0.0.0")
    with pytest.raises(ValueError, match="binds to loopback"):
        WebSocketNetlayer("0.0.0.0", url="ws://example.org/")
    for options in (
        {"url": "wss://example.org/x"},
        {"tls": server_context(), "url": "wss://example.org/"},
        {"insecure_bind": True, "url": "ws://example.org/"},
        {"listen": False},
    ):
        WebSocketNetlayer("0.0.0.0", **options)
    with pytest.raises(ValueError, match="stands for every address of this machine; url="):
        WebSocketNetlayer("::", tls=server_context())
    with pytest.raises(ValueError, match="a path begins with /"):
        WebSocketNetlayer(path="captp")
    with pytest.raises(BadLocator, match="needs the hint url"):
        WebSocketNetlayer(url="http://example.org/")


@trio_test_real
async def test_behind_a_proxy_under_a_path() -> None:
    """The proxy sends on what comes to one of its paths, and the peer says where that is."""
    async with open_peer([WebSocketNetlayer(identity=BOB, path="/a/b", url="ws://example.org/a/b")]) as b:
        ((_, listener),) = b._acceptor._listeners
        port = listener._listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        assert url_of(b) == "ws://example.org/a/b"
        async with open_peer([makers.websocket(listen=False)]) as a:
            session = await a.connect(at(f"ws://127.0.0.1:{port}/a/b?who=a"))
            assert session.location.hints == {"url": "ws://example.org/a/b"}
            with pytest.raises(ConnectFailed, match="the server answered with status 404"):
                await a.connect(at(f"ws://127.0.0.1:{port}/a", ALICE))


def test_its_uris_have_swiss_numbers_in_base64url() -> None:
    sturdyref = ocapn.SturdyRef(at("wss://example.org/a"), bytes(range(250, 256)))
    assert sturdyref.uri == f"ocapn://{BOB.designator}.websocket/s/-vv8_f7_?url=wss%3A%2F%2Fexample.org%2Fa"
    assert ocapn.SturdyRef.parse(sturdyref.uri) == sturdyref


# Who only says who it is


@trio_test_real
async def test_one_who_dials_in_as_another_is_not_spoken_to_as_that_peer() -> None:
    """Else it would be told the swiss number of an object of that peer."""
    network = WebSocketNetlayer(listen=False, identity=MALLORY)
    network.location = at("ws://127.0.0.1:1/", BOB)
    async with (
        open_peer([WebSocketNetlayer(identity=BOB)]) as b,
        open_peer([WebSocketNetlayer(identity=ALICE)]) as a,
        open_peer([network]) as mallory,
    ):
        theirs = await mallory.enliven(a.export(Echo()))
        (claimed,) = a.sessions
        assert claimed.location == b.locator()
        assert await E(theirs).echo(1) == 1  # it may speak
        recorder = Recorder()
        ref = await a.enliven(b.export(recorder))
        await E(ref).note(1)
        assert recorder.seen == [1]
        assert [session.authenticated for session in a.sessions] == [False, True]
        session = await a.connect(b.locator())
        assert session.authenticated
        session.end("no more")
        await E(await a.enliven(b.export(recorder))).note(2)
        assert recorder.seen == [1, 2]
        a.check()


@trio_test_real
async def test_it_does_not_come_in_the_way_of_a_dial_either() -> None:
    """Nor of whoever keeps a connection with that peer."""
    network = WebSocketNetlayer(listen=False, identity=MALLORY)
    network.location = at("ws://127.0.0.1:1/", BOB)
    async with open_peer([WebSocketNetlayer(identity=ALICE)]) as a, open_peer([network]) as mallory:
        connection = await a.connect(at("ws://127.0.0.1:1/", BOB), ocapn.Reconnect(base=0.05, factor=1.0))
        await mallory.connect(a.locator())
        await trio.sleep(0.2)
        assert connection.status in ("connecting", "reconnecting")
        assert connection.snapshot().session is None


@trio_test_real
async def test_two_peers_that_dial_each_other_have_a_session_each_way() -> None:
    """Each is sure of the one that it has dialled; a cut of one is not the end of the other."""
    async with (
        open_peer([WebSocketNetlayer(identity=BOB)]) as b,
        open_peer([WebSocketNetlayer(identity=ALICE)]) as a,
    ):
        here, there = Recorder(), Recorder()
        to_b, to_a = await a.enliven(b.export(there)), await b.enliven(a.export(here))
        for number in range(3):
            await E(to_a).note(number)
            await E(to_b).note(number)
        assert here.seen == there.seen == [0, 1, 2]
        assert [len(peer.sessions) for peer in (a, b)] == [2, 2]
        await until(lambda: all(one.durable for peer in (a, b) for one in peer.sessions))
        for connection in list(a._connections.values()):
            await connection.channel.aclose()
        await E(to_b).note(3)
        await E(to_a).note(3)
        assert here.seen == there.seen == [0, 1, 2, 3]
        assert await E(to_b).note(to_a) is None  # home again, over the other session
        for peer in (a, b):
            peer.check()


@asynccontextmanager
async def claimed(**options: Any) -> AsyncIterator[tuple[Peer, Peer, ocapn.Session]]:
    """A peer, one that dials in as BOB and is not, and the session of the first with it."""
    netlayer = WebSocketNetlayer(listen=False, identity=MALLORY)
    netlayer.location = at("ws://127.0.0.1:1/", BOB)
    async with (
        open_peer([WebSocketNetlayer(identity=ALICE)], **options) as a,
        open_peer([netlayer]) as mallory,
    ):
        await mallory.connect(a.locator())
        (session,) = a.sessions
        yield a, mallory, session


@trio_test_real
async def test_it_has_no_part_in_what_is_for_the_peer_that_it_names() -> None:
    """Neither its lease nor its durability, and its failures are not those of the connection that is kept."""
    bob = at("ws://127.0.0.1:1/", BOB)
    async with claimed(durable="never", durables={bob: "offer"}, lease=ocapn.Lease(life=1000.0)) as (
        a,
        _,
        session,
    ):
        connection = await a.connect(bob, ocapn.Reconnect(base=60.0, cap=60.0, lease=ocapn.Lease(life=1.0)))
        await until(lambda: connection.snapshot().attempt == 1)
        tenure = a._registry.tenures[session]
        assert tenure.lease.life == 1000.0
        await trio.sleep(0.1)
        assert not session.durable
        a._dialler._delay(session._core, _Redial(), ConnectFailed("of the stranger"))
        assert connection.snapshot().attempt == 1
        connection.disconnect()
        assert session.ended is None
        a.check()
        session._core.tables.exports[1] = wrong = Export(1, session._core.spent, 0, False)
        wrong.count = -5
        with pytest.raises(AssertionError):
            a.check()
        del session._core.tables.exports[1]


@trio_test_real
async def test_a_busy_session_does_not_keep_another_from_being_made() -> None:
    async with (
        open_peer([WebSocketNetlayer(identity=BOB)]) as b,
        open_peer([WebSocketNetlayer(identity=ALICE)]) as a,
    ):
        await a.connect(b.locator())
        with mock.patch.object(a, "hear_out", trio.sleep_forever), trio.fail_after(5):
            await b.connect(a.locator())
        assert len(a.sessions) == 2


@trio_test_real
async def test_a_restored_session_that_the_peer_began_is_reconciled_with_itself() -> None:
    store = durable.MemoryStore()
    async with open_peer([WebSocketNetlayer(identity=BOB)]) as b:
        here = WebSocketNetlayer(identity=ALICE)
        async with open_peer([here], baggage=durable.Baggage(store)) as a:
            await a.connect(b.locator())
            await b.connect(a.locator())
            await until(lambda: all(one.durable for one in (*a.sessions, *b.sessions)))
            await a.settled()
            port = here.port
        again = WebSocketNetlayer(port=port or 0, identity=ALICE)
        async with open_peer([again], baggage=durable.Baggage(store.reopened())) as a:
            assert len(a.restored) == 2
            for restored in a.restored:
                with trio.fail_after(10):
                    difference = await restored.reconcile()
                assert difference.session is restored.session
                assert {change.what for change in difference.changes} <= {"authenticated"}


def test_a_context_of_the_other_side() -> None:
    with pytest.raises(ValueError, match="the context for tls is for listening"):
        WebSocketNetlayer(tls=trust())
    with pytest.raises(ValueError, match="the context for trust is for dialling"):
        WebSocketNetlayer(trust=server_context())


def test_of_many_frames_a_part_is_taken_at_a_time() -> None:
    channel = WebSocketChannel(mock.Mock(), Limits())
    frames = FrameProtocol(False, [])
    channel._frames.receive_bytes(bytes(frames.send_data(b"x", fin=False)))
    channel._frames.receive_bytes(b"".join(bytes(frames.send_data(b"", fin=False)) for _ in range(600)))
    channel._deadline = 0.0  # it has begun
    assert [channel._parse(1) for _ in range(3)] == [False, False, True]
    assert channel._message == b"x"


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize(
    "said", [lambda frames: bytes(frames.send_data("text", fin=True)), lambda frames: b"\x83\x80\0\0\0\0"]
)
def test_draining_goes_on_after_what_is_no_message(
    said: Callable[[FrameProtocol], bytes], closes: bool
) -> None:
    @trio_test_real
    async def run() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        channel = WebSocketChannel(await listener.accept(), Limits(), WebSocketNetlayer())
        frames = FrameProtocol(True, [])
        await near.send_all(said(frames))
        with pytest.raises(RemoteProtocolError):
            await channel.receive(1)
        drained = False

        async def drain() -> None:
            nonlocal drained
            await channel.drain()
            drained = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await near.send_all(bytes(frames.send_data(bytes(100_000), fin=True)))
            await trio.sleep(0.05)
            assert not drained
            readable = said(FrameProtocol(True, [])) != b"\x83\x80\0\0\0\0"
            if closes and readable:  # a frame says so, and the connection stays
                await near.send_all(bytes(frames.close(CloseReason.NORMAL_CLOSURE)))
            else:
                await near.send_eof()
        for closable in (near, channel, listener):
            await closable.aclose()

    run()
