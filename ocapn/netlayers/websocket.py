"""`websocket`: each message a binary frame, over HTTP, with TLS or behind a proxy that has it (spec/netlayers.md).

The peer that listens proves its designator, which is its key; who dials proves nothing. Needs the package wsproto: the
extra `websocket`.
"""

from __future__ import annotations

import math
import os
import secrets
import ssl
from collections import deque
from hashlib import sha256
from pathlib import Path
from typing import Final, final
from urllib.parse import urlsplit

import h11
import trio
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, Request
from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode, ParseFailed
from wsproto.handshake import H11Handshake
from wsproto.utilities import LocalProtocolError
from wsproto.utilities import RemoteProtocolError as HttpError

from ocapn.codec.operations import read_signature, signature_value
from ocapn.codec.syrup import Record, decode, encode
from ocapn.crypto import Identity, public_key_of, verify
from ocapn.errors import BadLocator, ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.model.values import Symbol
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer, unreachable
from ocapn.netlayers.identity import kept, new_identity, to_keep
from ocapn.netlayers.tcp import TcpListener, connect, is_every_address, is_loopback, listen, tune

TRANSPORT = "websocket"

_AUTH: Final = Symbol("init:peer-auth")
_ENVELOPE: Final = Symbol("desc:sig-envelope")
_CHALLENGE: Final = 32
_END: Final = b"\r\n\r\n"
_EVERYWHERE: Final = "{} stands for every address of this machine; url= says at which others find it"
#: What wsproto raises for a head of HTTP that is none of a WebSocket; ValueError for what is no text.
_NO_HTTP: Final = (HttpError, LocalProtocolError, h11.ProtocolError, ValueError)
#: Bytes read from a socket at once.
_READ: Final = 1 << 16
#: Frames that are taken in one pass of the loop.
_FRAMES: Final = 256
#: How long the answer to a ping may take to be sent while nothing else is, seconds.
_PONG: Final = 5.0


class WebSocketNetlayer(Netlayer):
    """A peer that others dial at `ws://host:port/path`, or `wss://` with a context in `tls`; `listen=False` only dials.

    Port 0 lets the system choose. `url` is what the locator names where that is something else: that of a proxy, say.
    `certificate` is the one that those who dial see, DER: without it, sessions over TLS are not durable.
    `trust` is the context for dialling `wss://`; by default that of the system. `identity` is who the peer is: drawn at
    random unless given, and with a baggage the same after a restart. Raises ValueError for a `host` that is not
    loopback without `tls`, unless there is a `url` that begins with `wss://`, or `insecure_bind`; and for one that is
    every address of the machine without a `url`.
    """

    transport = TRANSPORT
    proves = True

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str = "/",
        *,
        identity: Identity | None = None,
        url: str | None = None,
        tls: ssl.SSLContext | None = None,
        certificate: bytes | None = None,
        trust: ssl.SSLContext | None = None,
        listen: bool = True,
        insecure_bind: bool = False,
    ) -> None:
        if not path.startswith("/"):
            raise ValueError(f"a path begins with /, not as {path!r} does")
        if url is not None:
            url_parts(url)
        secure = tls is not None or (url is not None and url.startswith("wss:"))
        if listen and not (secure or insecure_bind or is_loopback(host)):
            raise ValueError(
                f"ws:// is not encrypted, so it binds to loopback addresses, not to {host}: give tls=, "
                "the wss:// url of a proxy, or insecure_bind=True"
            )
        if listen and url is None and is_every_address(host):
            raise ValueError(_EVERYWHERE.format(host))
        for context, server in ((tls, True), (trust, False)):
            if context is not None:
                _check(context, server)
        self._host = host
        self._port = port
        self.path = path
        self.tls = tls
        self._url = url
        self._listen = listen
        self._trust = trust
        self._drawn = identity is None
        self._identity = identity or new_identity()
        #: Of a connection that comes in, unless it is in clear over loopback: the hash of the certificate that is seen.
        self.binding = None if certificate is None else sha256(certificate).digest()
        self.location = PeerLocator(TRANSPORT, self._identity.designator)

    @property
    def identity(self) -> str:
        return to_keep(self._identity, drawn=self._drawn)

    @property
    def seen_in_clear(self) -> bool:
        """Whether those who dial use no TLS, as far as is known here."""
        return self.tls is None and (self._url is None or self._url.startswith("ws:"))

    def be_again(self, identity: str) -> None:
        self._identity = kept(identity, self._identity, drawn=self._drawn)
        self.location = PeerLocator(TRANSPORT, self._identity.designator, self.location.hints)

    def answer(self, challenge: bytes) -> bytes:
        """The proof that this is the peer with that designator. Raises RemoteProtocolError for what is no challenge.

        Nothing is signed that could mean something else: a record of this label, with 32 bytes and nothing else.
        """
        match _record(challenge):
            case Record(label=label, fields=[bytes(drawn)]) if label is _AUTH and len(drawn) == _CHALLENGE:
                asked = Record(_AUTH, [drawn])
                return encode(Record(_ENVELOPE, [asked, signature_value(self._identity.sign(encode(asked)))]))
        raise RemoteProtocolError(f"the first message of a websocket is <init:peer-auth :{_CHALLENGE}-bytes>")

    async def listen(self, limits: Limits) -> Listener | None:
        if not self._listen:
            return None
        listener = await listen(self._host, self._port)
        host, port = listener.socket.getsockname()[:2]
        self.port = port
        if self._url is None and is_every_address(host):  # as "0" and "" are too
            await listener.aclose()
            raise ConnectFailed(_EVERYWHERE.format(host))
        scheme = "ws" if self.tls is None else "wss"
        url = self._url or f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{self.path}"
        self.location = PeerLocator(TRANSPORT, self._identity.designator, {"url": url})
        return TcpListener(
            listener, self.location, lambda stream, source: WebSocketChannel(stream, limits, self, source)
        )

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        wanted = public_key_of(locator.designator)
        scheme, host, port, target = url_parts(locator.hints.get("url", ""))
        try:
            stream = await connect(host, port)
        except OSError as error:
            raise unreachable(locator, error) from error
        tune(stream)
        context = None
        if scheme == "wss":
            context = self._trust or ssl.create_default_context()
        channel = WebSocketChannel(stream, limits)
        try:
            await channel.open(context, host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", target)
            await channel.prove(wanted)
        except (ChannelBroken, RemoteProtocolError) as error:
            await channel.aclose()
            raise unreachable(locator, error) from error
        except BaseException:
            await channel.aclose()
            raise
        channel.authenticated = locator.designator
        return channel


def _check(context: ssl.SSLContext, server: bool) -> None:
    """Raises ValueError for a context of the other side."""
    name = None if server else "localhost"
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=server, server_hostname=name)
    except ssl.SSLError as error:
        side = "tls is for listening (ssl.Purpose.CLIENT_AUTH)" if server else "trust is for dialling"
        raise ValueError(f"the context for {side}: {error}") from error


def certificate_in(path: str | os.PathLike[str]) -> bytes:
    """The first certificate in a PEM file, DER. Raises OSError, ValueError."""
    text = Path(path).read_text()
    begin, end = text.index("-----BEGIN CERT"), text.index("-----END CERT")
    return ssl.PEM_cert_to_DER_cert(f"{text[begin:end]}-----END CERTIFICATE-----\n")


def url_parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port, and the target of the request. Raises BadLocator."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    clear = target.isascii() and target.isprintable() and " " not in target
    clear = clear and all(mark.isprintable() and mark != " " for mark in parts.hostname or "")
    if (
        parts.scheme not in ("ws", "wss")
        or not parts.hostname
        or parts.fragment
        or parts.username
        or not clear
    ):
        raise BadLocator(
            "a websocket locator needs the hint url: ws://HOST:PORT/PATH or wss://HOST:PORT/PATH"
        )
    return parts.scheme, parts.hostname, port or (80 if parts.scheme == "ws" else 443), target


def _record(message: bytes) -> object:
    try:
        return decode(message)
    except RemoteProtocolError:
        return None


@final
class WebSocketChannel(Channel):
    """Binary frames, whole messages. Control frames are answered while it receives."""

    def __init__(
        self,
        stream: trio.SocketStream,
        limits: Limits,
        netlayer: WebSocketNetlayer | None = None,
        source: str = "",
    ) -> None:
        """`netlayer` is that of the side that listens; None for the one that dials."""
        self._socket = stream
        self._stream: trio.abc.Stream = stream
        self._limits = limits
        self._max_message = limits.unauthenticated_frame
        self._frames = FrameProtocol(netlayer is None, [])
        self._messages: deque[bytes] = deque()
        self._message = bytearray()  # what has come of one that is not whole
        self._deadline: float | None = None
        self._ended = False
        self._said_end = False
        self._sending = trio.Lock()
        self._pong: bytes | None = None  # what is to be answered to a ping
        self._failure: RemoteProtocolError | None = None
        self._no_frames = False  # what comes can be read no more
        self._netlayer = netlayer
        self.source = source

    # The handshake

    async def open(self, context: ssl.SSLContext | None, host: str, authority: str, target: str) -> None:
        """The dialler's side of TLS, if there is a context, and of HTTP. Raises ChannelBroken."""
        request = H11Handshake(ConnectionType.CLIENT)
        try:
            asked = request.send(Request(host=authority, target=target))
            if context is not None:
                await self._encrypt(
                    trio.SSLStream(self._socket, context, server_hostname=host, https_compatible=True)
                )
        except (h11.ProtocolError, ValueError) as error:  # it cannot be written, or be in a certificate
            raise ChannelBroken(f"no host can be called {host!r}: {error}") from error
        await self._send_all(asked)
        head, rest = await self._head()
        try:
            request.receive_data(head)
            events = list(request.events())
        except _NO_HTTP as error:
            raise ChannelBroken(f"the answer is not that of a WebSocket server: {error}") from error
        match events:
            case [AcceptConnection()]:
                pass
            case [RejectConnection(status_code=code), *_]:
                raise ChannelBroken(f"the server answered with status {code}")
            case _:
                raise ChannelBroken("the answer is not that of a WebSocket server")
        self._frames.receive_bytes(rest)
        if context is not None:
            assert isinstance(self._stream, trio.SSLStream)
            certificate = self._stream.getpeercert(binary_form=True)
            self.binding = None if certificate is None else sha256(certificate).digest()
        else:
            self.binding = b"" if self._is_local else None

    async def prove(self, wanted: bytes) -> None:
        """Has the other side prove that it has this key. Raises ChannelBroken, RemoteProtocolError."""
        asked = Record(_AUTH, [secrets.token_bytes(_CHALLENGE)])
        await self.send([encode(asked)])
        answers = await self.receive(1)
        match _record(answers[0]) if answers else None:
            case Record(label=label, fields=[signed, signature]) if label is _ENVELOPE and signed == asked:
                try:
                    if verify(wanted, encode(asked), read_signature(signature)):
                        return
                except ValueError:
                    pass
        raise ChannelBroken("the peer there does not prove that it is the one that was dialled")

    async def begin(self) -> None:
        assert self._netlayer is not None
        netlayer = self._netlayer
        if netlayer.tls is not None:
            await self._encrypt(
                trio.SSLStream(self._socket, netlayer.tls, server_side=True, https_compatible=True)
            )
        await self._accept_upgrade(netlayer.path)
        if netlayer.binding is not None:
            self.binding = netlayer.binding
        elif netlayer.seen_in_clear and self._is_local:
            self.binding = b""
        asked = await self.receive(1)
        if not asked:
            raise ChannelBroken("the connection ended before init:peer-auth")
        await self.send([netlayer.answer(asked[0])])

    async def _accept_upgrade(self, path: str) -> None:
        upgrade = H11Handshake(ConnectionType.SERVER)
        head, rest = await self._head()
        try:
            upgrade.receive_data(head)
            events = list(upgrade.events())
        except _NO_HTTP as error:
            await self._send_all(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            raise ChannelBroken(f"that is no WebSocket client: {error}") from error
        match events:
            case [Request(target=target)] if target.partition("?")[0] == path:
                await self._send_all(upgrade.send(AcceptConnection()))
            case [Request()]:
                await self._send_all(upgrade.send(RejectConnection(status_code=404)))
                raise ChannelBroken("it asked for another path")
            case _:
                raise ChannelBroken("that is no WebSocket client")
        self._frames.receive_bytes(rest)

    async def _head(self) -> tuple[bytes, bytes]:
        """The head of what HTTP says, and what came behind it."""
        data = b""
        while _END not in data:
            if len(data) > self._limits.unauthenticated_frame:
                raise ChannelBroken(
                    f"the head of HTTP has more than {self._limits.unauthenticated_frame:,} bytes"
                )
            more = await self._receive_some()
            if not more:
                raise ChannelBroken("the connection ended in the handshake")
            data += more
        at = data.index(_END) + len(_END)
        return data[:at], data[at:]

    async def _encrypt(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken(f"no TLS: {error.__cause__ or error}") from error

    @property
    def _is_local(self) -> bool:
        try:
            return is_loopback(self._socket.socket.getpeername()[0])
        except OSError:  # it is gone already
            return False

    # Messages

    async def send(self, messages: list[bytes]) -> None:
        await self._send_all(
            b"".join(bytes(self._frames.send_data(message, fin=True)) for message in messages)
        )

    async def receive(self, most: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        while True:
            while not self._parse(most):
                await trio.lowlevel.checkpoint()
            if self._pong is not None and not self._sending.locked():  # else who sends answers it
                with trio.move_on_after(_PONG, shield=True) as in_time:  # half of it would be worse than none
                    await self._send_all(b"")
                if in_time.cancelled_caught:
                    raise ChannelBroken("it pings, and does not read the answers")
            if self._messages:
                return [self._messages.popleft() for _ in range(min(most, len(self._messages)))]
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return []
            await self._more()

    def set_max_message(self, size: int) -> None:
        self._max_message = size

    async def drain(self) -> None:
        while not self._ended:
            try:
                closed = any(frame.opcode is Opcode.CLOSE for frame in self._frames.received_frames())
            except ParseFailed:
                self._no_frames, closed = True, False
            data = b"" if closed else await self._receive_some()
            if data and not self._no_frames:
                self._frames.receive_bytes(data)
            self._ended = not data

    async def send_eof(self) -> None:
        if not self._said_end:
            self._said_end = True
            await self._send_all(bytes(self._frames.close(CloseReason.NORMAL_CLOSURE)))

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    def _parse(self, most: int) -> bool:
        """Takes messages out of what has come, up to `most`: those behind may be under another limit. Whether that is
        all for now: of many frames a part is taken in each pass of the loop, as others have work too."""
        if self._failure is not None or self._ended:
            return True
        try:
            frames = self._frames.received_frames()
            for _ in range(_FRAMES):
                if len(self._messages) == most or self._ended:
                    return True
                frame = next(frames, None)
                if frame is None:
                    return True
                self._take(frame)
            return False
        except ParseFailed as error:
            self._no_frames = True
            self._failure = RemoteProtocolError(str(error))
            return True
        except RemoteProtocolError as error:
            self._failure = error
            return True

    def _take(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.PING:
                self._pong = bytes(frame.payload)  # type: ignore[arg-type]  # of the last one alone (RFC 6455, 5.5.3)
            case Opcode.CLOSE:
                self._ended = True
            case Opcode.BINARY:
                if len(self._message) + len(frame.payload) > self._max_message:
                    raise RemoteProtocolError(f"a message of more than {self._max_message} bytes")
                self._message += frame.payload  # type: ignore[arg-type]
                if frame.frame_finished and frame.message_finished:
                    self._messages.append(bytes(self._message))
                    self._message.clear()
                    self._deadline = None
                elif self._deadline is None:
                    self._deadline = trio.current_time() + self._limits.frame_progress
            case Opcode.TEXT:
                raise RemoteProtocolError("a text frame: each message is a binary one")

    async def _more(self) -> None:
        with trio.move_on_at(math.inf if self._deadline is None else self._deadline) as in_time:
            data = await self._receive_some()
        if in_time.cancelled_caught:
            raise RemoteProtocolError(f"a message took more than {self._limits.frame_progress:g} s to arrive")
        if data:
            self._frames.receive_bytes(data)
        elif self._deadline is not None:
            raise ChannelBroken("the connection ended inside a message")
        else:
            self._ended = True

    async def _receive_some(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_READ))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken(str(error.__cause__ or error) or "the connection is closed") from error

    async def _send_all(self, data: bytes) -> None:
        """Sends the bytes, and the answer to a ping if one is due."""
        try:
            async with self._sending:
                if data:
                    await self._stream.send_all(data)
                while self._pong is not None:
                    pong, self._pong = self._pong, None
                    await self._stream.send_all(bytes(self._frames.pong(pong)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken(str(error) or "the connection is closed") from error
