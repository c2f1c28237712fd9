"""onion: names of services, what is said to Tor and by it, and a service that comes back with it."""

from __future__ import annotations

import hmac
import itertools
import logging
import math
import os
import shutil
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing

import durable
from ocapn import ConnectFailed, E, Identity, Limits, PeerLocator, SturdyRef, open_peer, send_only
from ocapn.errors import BadLocator
from ocapn.netlayers import backoff
from ocapn.netlayers import tor as control
from ocapn.netlayers.backoff import MOST_DELAY
from ocapn.netlayers.base import Channel, Listener, StreamChannel
from ocapn.netlayers.onion import OnionListener, OnionNetlayer
from ocapn.netlayers.tor import MOST_LINE, MOST_LINES, Replies, Service, TorError, check_service_id, expanded
from ocapn.netlayers.unix import SocketFile
from ocapn.testing import check_netlayer
from tests.netlayers.tor import FakeTor, fake_tor, name_of, real_tor
from tests.peer.support import Echo, Recorder, between, far
from tests.support import trio_test, trio_test_real

ALICE, BOB = (Identity(bytes([number]) * 32) for number in (1, 2))
BOBS = name_of(expanded(BOB.seed))
PASSWORD = "correct horse"
#: Where nobody listens.
NOWHERE = "127.0.0.1:1"


def at(name: str) -> PeerLocator:
    return PeerLocator("onion", name)


async def listening(netlayer: OnionNetlayer) -> Listener:
    listener = await netlayer.listen(Limits())
    assert listener is not None
    return listener


# Names and keys


@pytest.mark.parametrize(
    "name",
    [
        "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad",
        "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid",
    ],
)
def test_services_that_there_are(name: str) -> None:
    check_service_id(name)


BAD = {
    "short": BOBS[:-1],
    "long": BOBS + "a",
    "upper": BOBS.upper(),
    "of version 2": "facebookcorewwwi",
    "a digit that is none": "1" + BOBS[1:],
    "a letter that is none": "ä" + BOBS[1:],
    "with .onion": BOBS + ".onion",
    "another checksum": ("b" if BOBS[0] == "a" else "a") + BOBS[1:],
    "another version": BOBS[:-1] + "e",
    "a key": BOB.designator,
}


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
@trio_test
async def test_what_names_no_service(name: str) -> None:
    with pytest.raises(
        BadLocator, match="no onion service of version 3: 56 letters a to z and digits 2 to 7"
    ):
        await OnionNetlayer(listen=False).dial(at(name), Limits())


def test_the_key_as_tor_has_it() -> None:
    """RFC 8032, 7.1, test 1: the scalar is known; and the service that Tor makes of it has our name."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    scalar = "307c83864f2833cb427a2ef1c00a013cfdff2768d980c0a3a520f006904de94f"
    assert expanded(seed)[:32].hex() == scalar
    for identity in (ALICE, BOB, Identity(seed)):
        assert OnionNetlayer(identity=identity).location == at(name_of(expanded(identity.seed)))


def test_swiss_numbers_in_uris_are_base64() -> None:
    sturdyref = SturdyRef(at(BOBS), b"\xff" * 4)
    assert sturdyref.uri == f"ocapn://{BOBS}.onion/s/_____w"
    assert SturdyRef.parse(sturdyref.uri) == sturdyref


@pytest.mark.parametrize("option", ["socks", "control"])
@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:0", "a b:9050"])
def test_what_is_no_address(option: str, address: str) -> None:
    with pytest.raises(BadLocator, match="an address is host:port"):
        OnionNetlayer(**{option: address})  # type: ignore[arg-type]


# Peers


@trio_test_real
async def test_contract() -> None:
    async with fake_tor() as tor:
        await check_netlayer(
            tor.netlayer, nobody=[at(BOBS)], malformed=[PeerLocator("onion", name) for name in BAD.values()]
        )


@trio_test_real
async def test_the_name_goes_to_the_proxy_as_it_is() -> None:
    """Looking it up here would tell whoever answers."""
    async with fake_tor() as tor, open_peer([tor.netlayer(listen=True, identity=BOB)]) as b:
        assert b.locator().uri == f"ocapn://{BOBS}.onion"
        resolved: list[object] = []

        async def getaddrinfo(*args: object, **options: object) -> object:
            resolved.append(args)
            raise OSError

        async with open_peer([tor.netlayer(listen=False)]) as a:
            with mock.patch.object(trio.socket, "getaddrinfo", getaddrinfo):
                await far(b, a, Echo())
        assert resolved == []
        assert tor.dialled == [(f"{BOBS}.onion", 9045)]


@trio_test_real
async def test_who_is_proved_and_where_from() -> None:
    async with fake_tor() as tor:
        listener = await listening(tor.netlayer(listen=True, identity=BOB))
        near = await tor.netlayer(listen=False).dial(at(BOBS), Limits())
        came_in = await listener.accept()
        assert (near.authenticated, came_in.authenticated) == (BOBS, None)
        for channel in (near, came_in):
            assert (channel.binding, channel.source, channel.vouches) == (b"", "", False)
            assert isinstance(channel, StreamChannel)
            assert channel.framing == "syrup"
            assert isinstance(channel._stream, trio.SocketStream)
            assert channel._stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
            await channel.aclose()
        await listener.aclose()
        assert OnionNetlayer.proves


@trio_test_real
async def test_a_durable_session_goes_on_after_a_cut() -> None:
    async with (
        fake_tor() as tor,
        open_peer([tor.netlayer(listen=True)]) as b,
        open_peer([tor.netlayer(listen=False)]) as a,
    ):
        recorder = Recorder()
        ref = await far(b, a, recorder)
        session = between(a, b)
        await E(ref).note(0)
        events = session.events()
        (connection,) = a._connections.values()
        await connection.channel.aclose()
        for number in range(1, 10):
            send_only(ref).note(number)
        assert await E(ref).note(10) is None
        assert recorder.seen == list(range(11))
        assert [(await events.receive()).status for _ in range(2)] == ["suspended", "live"]
        assert between(a, b) is session


@pytest.mark.parametrize("given", [None, BOB])
def test_the_same_peer_after_a_restart(given: Identity | None) -> None:
    store = durable.MemoryStore()

    @trio_test_real
    async def run() -> None:
        async with fake_tor() as tor:
            async with open_peer(
                [tor.netlayer(listen=True, identity=given)], baggage=durable.Baggage(store)
            ) as b:
                before = b.locator()
                assert (before.designator == BOBS) is (given is BOB)
                assert set(tor.services) == {before.designator}
            assert tor.services == {}
            again = durable.Baggage(store.reopened())
            async with open_peer([tor.netlayer(listen=True, identity=given)], baggage=again) as b:
                assert b.locator() == before
                assert set(tor.services) == {before.designator}
            other = durable.Baggage(store.reopened())
            with pytest.raises(ConnectFailed, match="the baggage is that of the peer"):
                async with open_peer([tor.netlayer(listen=True, identity=ALICE)], baggage=other):
                    pass

    run()


# Dialling


REPLIES = {
    1: "Tor cannot reach the service: it may not run now",
    2: "Tor is told not to connect there",
    3: "Tor has no network",
    4: "Tor finds no such service: it does not run now, or was started a moment ago",
    5: "the service refuses the connection: its peer does not run now",
    6: "Tor has given up: it has no network, or the service does not answer",
    7: "the proxy does not know CONNECT: it is no Tor",
    8: "the proxy knows no names: it is no Tor",
}


@pytest.mark.parametrize("code", REPLIES)
@trio_test_real
async def test_what_tor_refuses(code: int) -> None:
    async with fake_tor() as tor:
        tor.reply = bytes([5, code, 0, 1]) + bytes(6)
        with pytest.raises(ConnectFailed) as caught:
            await tor.netlayer(listen=False).dial(at(BOBS), Limits())
        assert str(caught.value) == f"cannot reach ocapn://{BOBS}.onion: {REPLIES[code]}"


@pytest.mark.parametrize(
    ("greeting", "reply", "why"),
    [
        (b"\x05\xff", b"", "No acceptable authentication methods were offered"),
        (b"\x05\x02", b"", "Unexpected SOCKS authentication method: 2"),
        (b"\x05\x77", b"", "Invalid authentication method: 0X77"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", "Unexpected SOCKS version number: 72"),
        (b"\x05\0", b"\x05\xf0\0\x01" + bytes(6), "Invalid reply code: 0XF0"),
        (b"\x05\0", b"\x04\0\0\x01" + bytes(6), "Unexpected SOCKS version number: 0X4"),
        (b"\x05\0", b"\x05\0\0\x09" + bytes(6), "Invalid address type: 0X9"),
        (b"\x05\0", b"\x05\0\0\x03\x02\xff\xff\0\0", "codec can't decode"),
        (b"\x05\0", b"\x05\0", "Connection closed unexpectedly"),
    ],
)
@trio_test_real
async def test_what_is_no_proxy(greeting: bytes, reply: bytes, why: str) -> None:
    async with fake_tor() as tor:
        tor.greeting, tor.reply = greeting, reply
        with pytest.raises(ConnectFailed) as caught:
            await tor.netlayer(listen=False).dial(at(BOBS), Limits())
        said = str(caught.value)
        assert said.startswith(f"cannot reach ocapn://{BOBS}.onion: the proxy at {tor.socks}: ")
        assert why in said
        assert len(said.splitlines()) == 1


@trio_test_real
async def test_nobody_is_at_the_socks_port() -> None:
    with pytest.raises(ConnectFailed) as caught:
        await OnionNetlayer(listen=False, socks=NOWHERE).dial(at(BOBS), Limits())
    assert str(caught.value) == (
        f"cannot reach ocapn://{BOBS}.onion: no Tor is at 127.0.0.1:1: Connection refused; start Tor, or say where it "
        "is: socks=HOST:PORT"
    )


@pytest.mark.parametrize("socks", ["a..b:9050", "host.invalid:9050"])
@trio_test_real
async def test_the_proxy_has_a_name_that_there_is_not(socks: str) -> None:
    with pytest.raises(ConnectFailed, match=f"^cannot reach ocapn://{BOBS}.onion: "):
        await OnionNetlayer(listen=False, socks=socks).dial(at(BOBS), Limits())


@trio_test_real
async def test_a_dial_takes_as_long_as_the_limits_of_the_peer_say() -> None:
    """The library would give up after a minute."""
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    here = OnionNetlayer(listen=False, socks=f"127.0.0.1:{silent.socket.getsockname()[1]}")
    with mock.patch.object(trio, "fail_after", wraps=trio.fail_after) as bounds:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.dial, at(BOBS), Limits(handshake=120.0))
            stream = await silent.accept()
            nursery.cancel_scope.cancel()
    assert [call.args for call in bounds.call_args_list] == [(math.inf,)]
    await stream.aclose()
    await silent.aclose()


# The control port


def secrets_of(tor: FakeTor) -> list[str]:
    """What no error, log or repr may show, nor half of it."""
    texts = [
        PASSWORD,
        PASSWORD.encode().hex(),
        BOB.seed.hex(),
        b64encode(BOB.seed).decode(),
        b64encode(expanded(BOB.seed)).decode(),
        tor.cookie.hex(),
        tor.cookie.hex().upper(),
    ]
    return [part for text in texts for part in (text, text[: len(text) // 2], text[len(text) // 2 :])]


async def refused(tor: FakeTor, **options: Any) -> str:
    """What the error says of listening there."""
    netlayer = tor.netlayer(listen=True, identity=BOB, **options)
    with pytest.raises(ConnectFailed) as caught:
        await netlayer.listen(Limits())
    said = str(caught.value)
    assert said.startswith(f"no onion service by the Tor at {tor.control}: ")
    assert len(said.splitlines()) == 1
    shown = said + repr(caught.value) + repr(netlayer) + repr(netlayer.location)
    for error in (caught.value.__cause__, caught.value.__context__):
        shown += repr(error)
    assert not [secret for secret in secrets_of(tor) if secret in shown]
    return said.removeprefix(f"no onion service by the Tor at {tor.control}: ")


def cookie_of(tor: FakeTor, directory: Path, name: str = "cookie", written: str | None = None) -> None:
    """Tor writes its cookie to a file, and says where; as `written`, if that is given."""
    path = directory / name
    path.write_bytes(tor.cookie)
    tor.methods = f'METHODS=COOKIE,SAFECOOKIE COOKIEFILE="{path if written is None else written}"'
    tor.proofs = {tor.cookie.hex()}


@trio_test_real
async def test_nobody_is_at_the_control_port() -> None:
    for where in (NOWHERE, "/nonexistent/control"):
        with pytest.raises(ConnectFailed) as caught:
            await OnionNetlayer(control=where).listen(Limits())
        why = "Connection refused" if where == NOWHERE else "No such file or directory"
        assert str(caught.value) == (
            f"no Tor is at the control port {where}: {why}; start Tor with ControlPort 9051 and CookieAuthentication "
            "1 in torrc, or say where it is: control=HOST:PORT or a path"
        )


@trio_test_real
async def test_a_control_port_that_is_a_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "control"
    async with fake_tor() as tor, trio.open_nursery() as nursery:
        file = await SocketFile.make(path)
        nursery.start_soon(trio.serve_listeners, tor._obey, [file.listener])
        listener = await listening(tor.netlayer(listen=True, identity=BOB, control=str(path)))
        assert set(tor.services) == {BOBS}
        await listener.aclose()
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectFailed, match="no Tor is at the control port /a\0b: "):
        await OnionNetlayer(control="/a\0b").listen(Limits())


@trio_test_real
async def test_where_tor_asks_for_nothing() -> None:
    async with fake_tor() as tor:
        listener = await listening(tor.netlayer(listen=True, password=PASSWORD))
        assert [line.split(" ")[0] for line in tor.heard] == ["PROTOCOLINFO", "AUTHENTICATE", "ADD_ONION"]
        assert tor.heard[1] == "AUTHENTICATE"
        await listener.aclose()


@pytest.mark.parametrize("password", [PASSWORD, 'a"b\r\nGETINFO version', "ä"])
@trio_test_real
async def test_a_password(password: str) -> None:
    async with fake_tor() as tor:
        tor.methods, tor.proofs = "METHODS=HASHEDPASSWORD", {password.encode().hex()}
        listener = await listening(tor.netlayer(listen=True, password=password))
        await listener.aclose()
        assert await refused(tor, password=PASSWORD[:-1]) == "it does not take the password"
        assert await refused(tor) == ("it wants a password: give it, or put CookieAuthentication 1 in torrc")
        tor.methods = "METHODS=COOKIE"
        assert await refused(tor, password=PASSWORD) == (
            "it takes no password: put HashedControlPassword in torrc, or give none"
        )
        assert await refused(tor) == "it wants a password: give it, or put CookieAuthentication 1 in torrc"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("cookie", None),
        ('a "b\\c', 'a \\"b\\\\c'),
        ("tab\t", "tab\\t"),
        ("ä", "\\303\\244"),
        ("7", "\\067"),
        ("9", "\\9"),
    ],
)
@trio_test_real
async def test_a_cookie(tmp_path: Path, name: str, written: str | None) -> None:
    async with fake_tor() as tor:
        cookie_of(tor, tmp_path, name, written and f"{tmp_path}/{written}")
        listener = await listening(tor.netlayer(listen=True))
        assert tor.heard[1].startswith("AUTHCHALLENGE SAFECOOKIE ")
        assert tor.cookie.hex() not in "".join(tor.heard)
        await listener.aclose()


@trio_test_real
async def test_a_cookie_is_never_said(tmp_path: Path) -> None:
    """What stands in the place of Tor could name any file that has as many bytes."""
    async with fake_tor() as tor:
        cookie_of(tor, tmp_path)
        tor.methods = tor.methods.replace("COOKIE,SAFECOOKIE", "COOKIE")
        assert await refused(tor) == "it wants a password: give it, or put CookieAuthentication 1 in torrc"
        assert tor.heard == ["PROTOCOLINFO 1"]


@trio_test_real
async def test_a_proof_that_is_not_taken(tmp_path: Path) -> None:
    async with fake_tor() as tor:
        cookie_of(tor, tmp_path)
        tor.says["AUTHENTICATE"] = lambda line: b"515 Authentication failed\r\n"
        assert await refused(tor) == f"it does not take the cookie in {tmp_path / 'cookie'}"


@trio_test_real
async def test_a_cookie_that_is_none(tmp_path: Path) -> None:
    """Of a file that is something else nothing is said to whoever is there."""
    path = tmp_path / "cookie"
    async with fake_tor() as tor:
        cookie_of(tor, tmp_path)
        for size in (0, 31, 33, 100_000):
            path.write_bytes(bytes(size))
            assert await refused(tor) == f"its cookie {path} has not 32 bytes: it is another file"
        path.unlink()
        assert await refused(tor) == (
            f"its cookie {path} cannot be read: No such file or directory; be in the group of Tor, or give a password"
        )
        os.mkfifo(path)
        assert await refused(tor) == f"its cookie {path} has not 32 bytes: it is another file"
        cookie_of(tor, tmp_path, "other", "\\777")
        assert "cannot be read: No such file or directory" in await refused(tor)
        cookie_of(tor, tmp_path, "other", "\\000")
        assert "cannot be read: no path" in await refused(tor)
        assert {line.split(" ")[0] for line in tor.heard} == {"PROTOCOLINFO"}


@trio_test_real
async def test_who_does_not_know_the_cookie_is_not_told_it(tmp_path: Path) -> None:
    async with fake_tor() as tor:
        cookie_of(tor, tmp_path)
        tor.cookie = bytes(32)
        assert await refused(tor) == (
            "it does not know its own cookie: something else is there, or the file is of before"
        )
        tor.says["AUTHCHALLENGE"] = lambda line: b"250 AUTHCHALLENGE SERVERHASH=00 SERVERNONCE=00\r\n"
        assert await refused(tor) == "it does not answer AUTHCHALLENGE"
        tor.says["AUTHCHALLENGE"] = lambda line: b"513 Invalid base16 client nonce\r\n"
        assert await refused(tor) == "it does not answer AUTHCHALLENGE"
        assert not [line for line in tor.heard if line.startswith("AUTHENTICATE")]


def test_the_proofs_are_those_of_the_specification() -> None:
    """control-spec, AUTHCHALLENGE: the two sides prove it by different keys, over the same bytes."""
    cookie, theirs = bytes(range(32)), bytes(32)
    asked: list[str] = []

    async def ask(self: Service, command: str) -> control.Reply:
        asked.append(command)
        both = cookie + bytes.fromhex(command.split(" ")[2]) + theirs
        key = b"Tor safe cookie authentication server-to-controller hash"
        mac = hmac.digest(key, both, "sha256").hex().upper()
        return control.Reply(250, [f"AUTHCHALLENGE SERVERHASH={mac} SERVERNONCE={theirs.hex()}"])

    async def run() -> None:
        with mock.patch.object(Service, "_ask", ask):
            proof = await Service(mock.Mock())._challenge(cookie)
        both = cookie + bytes.fromhex(asked[0].split(" ")[2]) + theirs
        key = b"Tor safe cookie authentication controller-to-server hash"
        assert proof == hmac.digest(key, both, "sha256")

    trio.run(run)


@pytest.mark.parametrize(
    ("word", "says", "why"),
    [
        ("PROTOCOLINFO", b"HTTP/1.1 400 Bad Request\r\n\r\n", "that is no control port of Tor"),
        ("PROTOCOLINFO", b"250\r\n", "that is no control port of Tor"),
        ("PROTOCOLINFO", b"250-\xff\r\n250 OK\r\n", "it does not say how to authenticate (PROTOCOLINFO)"),
        ("PROTOCOLINFO", b"250 OK\r\n", "it does not say how to authenticate (PROTOCOLINFO)"),
        ("PROTOCOLINFO", b"514 No\r\n", "it does not say how to authenticate (PROTOCOLINFO)"),
        (
            "PROTOCOLINFO",
            b"514-AUTH METHODS=NULL\r\n514 No\r\n",
            "it does not say how to authenticate (PROTOCOLINFO)",
        ),
        (
            "PROTOCOLINFO",
            b"250-AUTH METHODS=\r\n250 OK\r\n",
            "it does not say how to authenticate (PROTOCOLINFO)",
        ),
        (
            "PROTOCOLINFO",
            b"250-AUTH METHODS=TELEPATHY\r\n250 OK\r\n",
            "it wants a password: give it, or put CookieAuthentication 1 in torrc",
        ),
        (
            "PROTOCOLINFO",
            b'250-AUTH METHODS=TELEPATHY COOKIEFILE="/dev/null"\r\n250 OK\r\n',
            "it wants a password: give it, or put CookieAuthentication 1 in torrc",
        ),
        (
            "PROTOCOLINFO",
            b"250-AUTH METHODS=SAFECOOKIE\r\n250 OK\r\n",
            "it wants a password: give it, or put CookieAuthentication 1 in torrc",
        ),
        ("PROTOCOLINFO", None, "it ends the connection"),
        ("AUTHENTICATE", None, "it ends the connection"),
        ("ADD_ONION", None, "it ends the connection"),
        (
            "ADD_ONION",
            b"550 Onion address collision\r\n",
            "it does not add the service: 550 Onion address collision",
        ),
        ("ADD_ONION", b"250 OK\r\n", "it has added another service than it was asked for"),
        (
            "ADD_ONION",
            f"250-ServiceID={BOBS[:-1]}\r\n250 OK\r\n".encode(),
            "it has added another service than it was asked for",
        ),
        ("ADD_ONION", b"512 a\x1b[31m\nb\r\n", "it does not add the service: 512 a\\x1b[31m\\nb"),
        ("PROTOCOLINFO", b"250-" + b"a" * MOST_LINE + b"\r\n", "it says a line of more than 4,096 bytes"),
        ("PROTOCOLINFO", b"250-" + b"a" * MOST_LINE, "it says a line of more than 4,096 bytes"),
        ("PROTOCOLINFO", b"250-a\r\n" * MOST_LINES + b"250 OK\r\n", "it says more than 64 lines at once"),
        (
            "PROTOCOLINFO",
            b"250+a\r\n" + b"x\r\n" * 100 + b".\r\n250 OK\r\n",
            "it says more than 64 lines at once",
        ),
    ],
)
@trio_test_real
async def test_what_tor_should_not_say(word: str, says: bytes | None, why: str) -> None:
    async with fake_tor() as tor:
        tor.says[word] = lambda line: says
        assert await refused(tor, password=PASSWORD if word == "ADD_ONION" else None) == why


@pytest.mark.parametrize("word", ["AUTHENTICATE", "ADD_ONION"])
@trio_test_real
async def test_what_tor_says_of_secrets_is_not_shown(word: str) -> None:
    async with fake_tor() as tor:
        tor.methods, tor.proofs = "METHODS=HASHEDPASSWORD", {PASSWORD.encode().hex()}
        tor.says[word] = lambda line: f"512 Bad: {line[:-1]} {line[3:]}\r\n".encode()
        said = await refused(tor, password=PASSWORD)
        assert said in (
            "it does not take the password",
            "it does not add the service: 512 Bad: ADD_ONION … … _ONION … …",
        )


@trio_test_real
async def test_a_listener_that_fails_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets: list[Any] = []
    real = trio.socket.socket

    def noted(*args: Any, **options: Any) -> Any:
        sockets.append(real(*args, **options))
        return sockets[-1]

    async with fake_tor() as tor:
        monkeypatch.setattr(trio.socket, "socket", noted)
        tor.says["ADD_ONION"] = lambda line: b"550 No\r\n"
        await refused(tor)
        scope = trio.CancelScope()
        tor.says["PROTOCOLINFO"] = lambda line: scope.cancel() or b""
        with scope:
            await tor.netlayer(listen=True).listen(Limits())
        assert scope.cancelled_caught
        assert len(sockets) >= 4
        assert [socket.fileno() for socket in sockets] == [-1] * len(sockets)


@pytest.mark.parametrize("word", ["PROTOCOLINFO", "AUTHENTICATE", "ADD_ONION"])
@trio_test
async def test_a_tor_that_does_not_answer(word: str) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    fake = FakeTor()
    fake.says[word] = lambda line: b"250-a\r\n"

    async def obey() -> None:
        async for data in theirs:
            answer = fake._answer(bytes(data).decode().strip(), [])
            assert answer is not None
            await theirs.send_all(answer)

    async def reach(where: str) -> trio.abc.Stream:
        return ours

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey)
        with mock.patch.object(control, "_reach", reach):
            before = trio.current_time()
            with pytest.raises(ConnectFailed, match=r"by the Tor at x/y: it does not answer within 10 s$"):
                await control.add_service("x/y", None, BOB, 1, 2)
            assert trio.current_time() - before == control.PATIENCE
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")


# Replies


def taken(data: bytes, step: int) -> list[tuple[int, list[str]]]:
    replies, found = Replies(), []
    for start in range(0, len(data), step):
        replies.feed(data[start : start + step])
        while (reply := replies.take()) is not None:
            found.append((reply.status, reply.lines))
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_replies_in_pieces_of_any_size(step: int) -> None:
    data = b"250-a\r\n250+b=\r\n250 no end\r\n..\r\n.\r\n250 c\r\n515 d\r\n250 \r\n250-e\r\n"
    assert taken(data, step) == [(250, ["a", "b=", "c"]), (515, ["d"]), (250, [""])]


def test_the_longest_line_and_the_most_lines_that_are_taken() -> None:
    line = b"250 " + b"a" * (MOST_LINE - 4) + b"\r\n"
    for step in (1, 4096, 10_000):
        assert taken(line, step) == [(250, ["a" * (MOST_LINE - 4)])]
        for more in (b"a" + line[4:], b"aaa" + line[4:-2]):
            with pytest.raises(TorError, match="a line of more than 4,096 bytes"):
                taken(b"250 " + more, step)
        lines = b"250-a\r\n" * (MOST_LINES - 1) + b"250 b\r\n"
        assert [len(lines) for _, lines in taken(2 * lines, step)] == [MOST_LINES, MOST_LINES]
        with pytest.raises(TorError, match="more than 64 lines at once"):
            taken(b"250-a\r\n" + lines, step)


# Tor goes, and comes again


class Told(logging.Handler):
    """What is logged; `until` waits for a text."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._said = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._said.set()
        self._said = trio.Event()

    async def until(self, text: str, times: int = 1) -> None:
        while sum(text in record.getMessage() for record in self.records) < times:
            await self._said.wait()

    @property
    def warnings(self) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno >= logging.WARNING]


@contextmanager
def told() -> Iterator[Told]:
    log, handler = logging.getLogger("ocapn.netlayer"), Told()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


GONE = "onion: Tor has gone, and the service with it, which is added again when Tor is back"


@trio_test_real
async def test_the_service_is_added_again_when_tor_is_back() -> None:
    with told() as log, mock.patch.object(backoff, "FIRST_DELAY", 0.01):
        async with (
            fake_tor() as tor,
            trio.open_nursery() as nursery,
            open_peer([tor.netlayer(listen=True, identity=BOB, password=PASSWORD)]) as b,
        ):
            await tor.stop()
            assert tor.services == {}
            await log.until("no Tor is at the control port")
            tor.says["ADD_ONION"] = lambda line: f"550 {line}\r\n".encode()
            await nursery.start(tor.run)
            await log.until("it does not add the service: 550 ADD_ONION …")
            del tor.says["ADD_ONION"]
            await log.until("onion: the service is there again")
            assert set(tor.services) == {BOBS}
            async with open_peer([tor.netlayer(listen=False)]) as a:
                ref = await far(b, a, Echo())
                assert await E(ref).echo(1) == 1
            nursery.cancel_scope.cancel()
    assert log.warnings == [GONE]
    logged = "".join(record.getMessage() for record in log.records)
    assert not [secret for secret in secrets_of(tor) if secret in logged]


@trio_test_real
async def test_the_service_is_gone_with_its_peer() -> None:
    async with fake_tor() as tor:
        async with open_peer([tor.netlayer(listen=True, identity=BOB)]):
            assert set(tor.services) == {BOBS}
        with pytest.raises(ConnectFailed):
            await tor.netlayer(listen=False).dial(at(BOBS), Limits())
        assert tor.services == {}


class Idle(Listener):
    """Nobody dials; `fails` once."""

    location = at(BOBS)
    fails: Exception | None = None

    async def accept(self) -> Channel:
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@trio_test
async def test_how_often_tor_is_asked_again() -> None:
    """Half a second later, then after twice as long each time, up to a minute."""
    asked: list[float] = []
    ours, theirs = trio.testing.memory_stream_pair()

    async def add() -> Service:
        asked.append(trio.current_time())
        raise ConnectFailed("not yet")

    listener = OnionListener(Idle(), Service(ours), add)
    with told() as log:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            await trio.sleep(100)
            gone = trio.current_time()
            await theirs.aclose()
            await trio.sleep(300)
            nursery.cancel_scope.cancel()
    delays = [after - before for before, after in zip([gone, *asked], asked, strict=False)]
    assert delays == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert log.warnings == [GONE]


@trio_test
async def test_a_tor_that_comes_and_goes_is_not_asked_more_often() -> None:
    asked: list[float] = []
    life = 1.0
    ours, theirs = trio.testing.memory_stream_pair()

    async with trio.open_nursery() as nursery:

        async def end(stream: trio.abc.Stream) -> None:
            await trio.sleep(life)
            await stream.aclose()

        async def add() -> Service:
            asked.append(trio.current_time())
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(end, theirs)
            return Service(ours)

        with told():
            listener = OnionListener(Idle(), Service(ours), add)
            nursery.start_soon(listener.run)
            await theirs.aclose()
            await trio.sleep(600)
            delays = [after - before - life for before, after in itertools.pairwise(asked)]
            assert delays[:9] == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
            life = MOST_DELAY + 1
            await trio.sleep(200)
            assert asked[-1] - asked[-2] - life == pytest.approx(0.5)
        nursery.cancel_scope.cancel()


@trio_test
async def test_what_tor_says_later_is_not_kept() -> None:
    """It says nothing of its own accord; who floods the port fills no memory."""
    ours, theirs = trio.testing.memory_stream_pair()
    here = Service(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.gone)
        for _ in range(100):
            await theirs.send_all(b"650 x" * 10_000)
        await theirs.aclose()
    assert here._replies.take() is None
    assert not here._replies._data


@trio_test
async def test_a_connection_that_is_reset() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(TorError, match="it ends the connection"):
        await Service(ours).add(BOB, None, 1, 2)
    broken = mock.Mock(receive_some=mock.AsyncMock(side_effect=trio.BrokenResourceError))
    await Service(broken).gone()


@trio_test_real
async def test_a_listener_that_is_closed_while_it_accepts() -> None:
    with told() as log:
        async with fake_tor() as tor, trio.open_nursery() as nursery:
            listener = await listening(tor.netlayer(listen=True))

            async def accept() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await listener.accept()

            nursery.start_soon(accept)
            nursery.start_soon(listener.run)
            await trio.testing.wait_all_tasks_blocked()
            await listener.aclose()
    assert [record.getMessage() for record in log.records] == []
    assert tor.services == {}


# The real one


needs_tor = pytest.mark.skipif(shutil.which("tor") is None, reason="the daemon tor is not installed")
COLLISION = "it does not add the service: 550 Onion address collision"


async def is_there(where: str, identity: Identity) -> bool:
    """Whether Tor has the service: it takes none twice."""
    try:
        other = await control.add_service(where, None, identity, 9045, 1)
    except ConnectFailed as error:
        if COLLISION in str(error):
            return True
        raise
    await other.aclose()
    return False


@needs_tor
@pytest.mark.parametrize("password", [None, PASSWORD])
def test_the_real_tor_adds_the_service_that_is_meant(tmp_path: Path, password: str | None) -> None:
    """By its cookie, and by a password. It says the name that it has made of the key, which is compared."""

    @trio_test_real
    async def run() -> None:
        async with real_tor(tmp_path, PASSWORD) as real:
            netlayer = OnionNetlayer(control=real.control, password=password, identity=BOB)
            assert not await is_there(real.control, BOB)
            for _ in range(5):  # at once again, as the service goes with the connection
                listener = await listening(netlayer)
                assert await is_there(real.control, BOB)
                await listener.aclose()

    run()


@needs_tor
def test_the_real_tor_refuses(tmp_path: Path) -> None:
    @trio_test_real
    async def run() -> None:
        async with real_tor(tmp_path, PASSWORD) as real:
            with pytest.raises(ConnectFailed, match=r"it does not take the password$"):
                await OnionNetlayer(control=real.control, password="wrong").listen(Limits())
            listener = await listening(OnionNetlayer(control=real.control, identity=BOB))
            with pytest.raises(ConnectFailed, match=f"{COLLISION}$"):
                await OnionNetlayer(control=real.control, identity=BOB).listen(Limits())
            await listener.aclose()

    run()


@needs_tor
def test_the_real_tor_and_a_peer_that_is_restarted(tmp_path: Path) -> None:
    store = durable.MemoryStore()

    @trio_test_real
    async def run() -> None:
        async with real_tor(tmp_path) as real:
            locators: list[PeerLocator] = []
            for _ in range(2):
                baggage = durable.Baggage(store.reopened()) if locators else durable.Baggage(store)
                async with open_peer([OnionNetlayer(control=real.control)], baggage=baggage) as peer:
                    locators.append(peer.locator())
            assert locators[0] == locators[1]

    run()


@needs_tor
def test_the_real_tor_is_killed_and_started_again(tmp_path: Path) -> None:
    @trio_test_real
    async def run() -> None:
        with told() as log:
            async with real_tor(tmp_path) as real:
                netlayer = OnionNetlayer(control=real.control, identity=BOB)
                async with open_peer([netlayer]):
                    await real.kill()
                    await log.until(GONE)
                    await real.start()
                    await log.until("onion: the service is there again")
                    assert await is_there(real.control, BOB)
            assert log.warnings == [GONE]

    run()
